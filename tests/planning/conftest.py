"""Bundles that are planned or imported need no consent: nobody has agreed to anything in these tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def everything_agreed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the fixture of all other tests."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "of_user"))
