"""A trail that was changed says so, and where; one that a crash tore is whole up to there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monai_unet_app.cli import main
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.service import audit
from monai_unet_app.service.audit import BEGIN, AuditTrail, verify


@pytest.fixture
def trail(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    opened = AuditTrail(path)
    for number in range(5):
        opened.write("delivered", result=number, destination="pacs")
    return path


def test_an_unchanged_trail_is_whole(trail: Path, tmp_path: Path) -> None:
    found = verify(trail)
    last = json.loads(trail.read_text().splitlines()[-1])
    assert (found.lines, found.last) == (5, last["sha256"])
    empty = tmp_path / "empty.jsonl"
    AuditTrail(empty)
    assert verify(empty) == audit.Verified(0, BEGIN)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [*lines[:2], lines[2].replace("pacs", "elsewhere"), *lines[3:]], 3),
        (lambda lines: [*lines[:1], *lines[2:]], 2),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
        (lambda lines: [*lines[:4], lines[3], lines[4]], 5),
        (lambda lines: [*lines[:2], "", *lines[2:]], 3),
        (lambda lines: [*lines[:3], "[1]", *lines[4:]], 4),
    ],
    ids=["changed", "taken out", "exchanged", "doubled", "empty", "something else"],
)
def test_what_was_done_to_it_is_found_at_its_place(trail: Path, change, line: int) -> None:
    trail.write_text("\n".join(change(trail.read_text().splitlines())) + "\n")
    with pytest.raises(InputRefusedError, match=f"line {line} is not what was written"):
        verify(trail)
    with pytest.raises(InputRefusedError):
        AuditTrail(trail)  # nothing is added to a chain that is broken


def test_a_line_made_up_by_somebody_who_can_count_does_not_follow_the_next(trail: Path) -> None:
    lines = [json.loads(line) for line in trail.read_text().splitlines()]
    lines[2]["destination"] = "elsewhere"
    del lines[2]["sha256"]
    lines[2]["sha256"] = audit._digest(lines[2])
    trail.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputRefusedError, match="line 4 "):
        verify(trail)


def test_half_a_line_is_set_aside_and_the_chain_goes_on(trail: Path) -> None:
    with trail.open("a") as stream:
        stream.write('{"n": 6, "time": "20')
    AuditTrail(trail).write("started")
    assert verify(trail).lines == 6
    assert trail.with_suffix(".torn").read_text() == '{"n": 6, "time": "20\n'


def test_a_disk_that_is_full_leaves_no_half_line(trail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = AuditTrail(trail)
    monkeypatch.setattr(audit.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        opened.write("delivered")
    monkeypatch.undo()
    assert verify(trail).lines == 5
    opened.write("delivered")
    assert verify(trail).lines == 6


def test_the_verb_says_how_long_it_is_or_where_it_breaks(trail: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify", str(trail)]) == 0
    assert "is whole: 5 line(s)" in capsys.readouterr().out.replace("\n", " ")
    trail.write_text(trail.read_text().replace("pacs", "elsewhere"))
    assert main(["audit", "verify", str(trail)]) == 3
    assert "line 1 is not what was written there" in capsys.readouterr().err
    assert main(["audit", "verify", str(trail.with_name("absent"))]) == 3
