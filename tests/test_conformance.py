"""docs/conformance.md says what the code says: it is made from the code's own tables and from written objects."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
STATEMENT = REPOSITORY / "docs" / "conformance.md"


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "tools"), *sys.path])
    import make_conformance

    return make_conformance


def test_making_the_conformance_statement_again_gives_the_file(maker: ModuleType) -> None:
    written = STATEMENT.read_text(encoding="utf-8")
    if maker.made_with() not in " ".join(written.split()):
        pytest.skip(f"the statement repeats tables of other library versions than {maker.made_with()}; make it again")
    assert maker.document() == written, "run python tools/make_conformance.py"
