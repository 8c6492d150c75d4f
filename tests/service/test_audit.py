"""A trail that was changed, computed anew, cut or deleted says so, and where; one that a crash tore is whole up to there."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from nodes import open_trail, site_on_any_port, write_site

from monai_unet_app.cli import main
from monai_unet_app.errors import AppError, InputRefusedError, UsageError
from monai_unet_app.service import audit
from monai_unet_app.service.audit import BEGIN, AuditTrail, TrailError, read_key, verify
from monai_unet_app.service.database import Head, read_head
from monai_unet_app.service.node import Node
from monai_unet_app.service.queue import Queue


@pytest.fixture
def trail(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    opened = open_trail(path)
    for number in range(5):
        opened.write("delivered", result=number, destination="pacs")
    return path


def test_an_unchanged_trail_is_whole(trail: Path, tmp_path: Path) -> None:
    found = verify(trail)
    last = json.loads(trail.read_text().splitlines()[-1])
    assert (found.lines, found.last) == (5, last["sha256"])
    empty = tmp_path / "empty.jsonl"
    open_trail(empty)
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
    with pytest.raises(InputRefusedError, match=f"line {line} was changed after it was written"):
        verify(trail)
    with pytest.raises(InputRefusedError):
        open_trail(trail)  # nothing is added to a chain that is broken


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ('"destination": "pacs"', '"destination": "elsewhere", "destination": "pacs"'),
        ('"event": "delivered"', '"event": "refused", "event": "delivered"'),
        ('"destination": "pacs"', '"destination":  "pacs"'),
        ('"destination": "pacs"', '"destination": "\\u0070acs"'),
        ('"result": 2', '"result": 2.0'),
        ("}\n", "}\r\n"),
        ("}\n", '}  {"event": "refused"}\n'),
    ],
    ids=["a key twice", "an event twice", "a space", "an escape", "a number", "another end", "two objects"],
)
def test_forged_text_that_leaves_what_a_parser_keeps_is_found(
    trail: Path, was: str, becomes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = trail.read_text().splitlines(keepends=True)
    assert was in lines[2]
    lines[2] = lines[2].replace(was, becomes)
    trail.write_bytes("".join(lines).encode())
    assert main(["trace", "--audit", str(trail)]) == 3
    assert "line 3 was changed after it was written" in capsys.readouterr().err.replace("\n", " ")


def test_names_in_any_script_and_very_odd_lines_are_judged_by_their_text(trail: Path) -> None:
    open_trail(trail).write("released", who="Yamada^Tarō 山田^太郎\u2028", share=0.1, no=None)
    assert verify(trail, read_key(trail.with_name("audit.key"))).signed == 6
    *before, last = trail.read_text().removesuffix("\n").split("\n")
    unsigned = json.dumps({**json.loads(last), "hmac": "ü"}, ensure_ascii=False)
    for odd, why in (("[" * 100_000, "line 6 was changed"), (unsigned, "line 6 is not signed by the node's key")):
        trail.write_text("\n".join([*before, odd, ""]))
        with pytest.raises(InputRefusedError, match=why):
            verify(trail, read_key(trail.with_name("audit.key")))


def test_a_line_made_up_by_somebody_who_can_count_does_not_follow_the_next(trail: Path) -> None:
    lines = [json.loads(line) for line in trail.read_text().splitlines()]
    lines[2]["destination"] = "elsewhere"
    del lines[2]["sha256"], lines[2]["hmac"]
    lines[2]["sha256"] = audit._digest(lines[2])
    trail.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputRefusedError, match="line 4 "):
        verify(trail)


def test_half_a_line_is_set_aside_and_the_chain_goes_on(trail: Path) -> None:
    with trail.open("a") as stream:
        stream.write('{"n": 6, "time": "20')
    open_trail(trail).write("started")
    assert verify(trail).lines == 6
    assert trail.with_suffix(".torn").read_text() == '{"n": 6, "time": "20\n'


def test_a_disk_that_is_full_leaves_no_half_line(trail: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_trail(trail)
    monkeypatch.setattr(audit.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        opened.write("delivered")
    monkeypatch.undo()
    assert verify(trail).lines == 5
    opened.write("delivered")
    assert verify(trail).lines == 6


def test_the_verb_says_how_long_it_is_or_where_it_breaks(trail: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--audit", str(trail)]) == 0
    assert "is complete: 5 line(s)" in capsys.readouterr().out.replace("\n", " ")
    trail.write_text(trail.read_text().replace("pacs", "elsewhere"))
    assert main(["trace", "--audit", str(trail)]) == 3
    assert "line 1 was changed after it was written" in capsys.readouterr().err
    assert main(["trace", "--audit", str(trail.with_name("absent"))]) == 3


def computed_anew(trail: Path, *, signed: bool = True) -> None:
    """The trail as somebody writes it who can count, but has no key: another destination, and a chain that is whole."""
    last, made = BEGIN, []
    for line in map(json.loads, trail.read_text().splitlines()):
        signature = {"hmac": line.pop("hmac")}
        signature = signature if signed else {}
        line.pop("sha256")
        if not signed:
            line.pop("key")
        line.update(destination="elsewhere", previous=last)
        last = audit._digest(line)
        made.append({**line, "sha256": last, **signature})
    trail.write_text("".join(json.dumps(line) + "\n" for line in made))


@pytest.mark.parametrize("signed", [True, False], ids=["with the old signatures", "without signatures"])
def test_a_trail_that_was_computed_anew_is_refused_by_who_has_the_key(
    trail: Path, capsys: pytest.CaptureFixture[str], signed: bool
) -> None:
    assert verify(trail, read_key(trail.with_name("audit.key"))).signed == 5
    computed_anew(trail, signed=signed)
    assert verify(trail).lines == 5  # the chain itself is whole
    assert main(["trace", "--audit", str(trail)]) == 3
    assert "signed by the" in capsys.readouterr().err
    with pytest.raises(InputRefusedError, match="signed by the"):
        open_trail(trail)
    trail.with_name("audit.key").rename(trail.with_name("elsewhere.key"))
    assert main(["trace", "--audit", str(trail)]) == 0
    assert "not checked; the key is needed" in capsys.readouterr().out.replace("\n", " ")
    assert main(["trace", "--audit", str(trail), "--key", str(trail.with_name("elsewhere.key"))]) == 3


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site whose node has written some lines, and was ended."""
    path = write_site(tmp_path, 104)
    write_lines(path, 3)
    return path


def write_lines(site: Path, count: int) -> None:
    node = Node(site_on_any_port(site))
    for number in range(count):
        node.audit.write("delivered", result=number, destination="pacs")
    node.queue.close()
    node._lock_file.close()


def cut(trail: Path) -> None:
    trail.write_text("".join(trail.read_text().splitlines(keepends=True)[:-1]))


def replace_by_another(trail: Path) -> None:
    computed_anew(trail)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut, "has 2 line\\(s\\), but the node's database records line 3"),
        (Path.unlink, "has 0 line\\(s\\), but the node's database records line 3"),
        (replace_by_another, "is not the line recorded in the node's database|not signed by the node's key"),
    ],
)
def test_a_node_does_not_start_on_a_trail_that_is_not_what_its_database_remembers(
    site: Path, capsys: pytest.CaptureFixture[str], change, said: str
) -> None:
    trail = site.parent / "node/audit.jsonl"
    assert main(["trace", "--audit", str(trail)]) == 0
    assert "no line recorded in node.sqlite is missing (line 3)" in capsys.readouterr().out.replace("\n", " ")
    change(trail)
    with pytest.raises(InputRefusedError, match=said):
        Node(site_on_any_port(site))
    assert main(["trace", "--audit", str(trail)]) == 3
    assert "compare" in (told := capsys.readouterr().err.replace("\n", " ")) or "put the whole trail back" in told


def test_a_trail_that_is_cut_while_the_node_runs_gets_no_further_line(trail: Path) -> None:
    opened = open_trail(trail)
    whole = trail.read_text()
    cut(trail)
    with pytest.raises(AppError, match="changed, cut or replaced"):
        opened.write("delivered")
    with pytest.raises(AppError):
        opened.check_writable()
    assert verify(trail).lines == 4
    with trail.open("r+") as stream:
        stream.write(whole)
    opened.write("delivered")
    assert verify(trail).lines == 6


def test_an_unsigned_trail_of_an_earlier_version_goes_on_signed(trail: Path) -> None:
    computed_anew(trail, signed=False)
    trail.with_name("audit.key").unlink()
    open_trail(trail).write("delivered")
    events = [json.loads(line)["event"] for line in trail.read_text().splitlines()]
    assert events == ["delivered"] * 5 + ["signed from here on", "delivered"]
    found = verify(trail, read_key(trail.with_name("audit.key")))
    assert (found.lines, found.signed) == (7, 2)
    trail.write_text(trail.read_text().replace("elsewhere", "nowhere", 1))
    with pytest.raises(InputRefusedError, match="line 1 "):
        open_trail(trail)


def test_a_key_may_lie_elsewhere_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    site = write_site(tmp_path, 104, node='audit_key = "keys/audit"')
    (tmp_path / "keys").mkdir()
    write_lines(site, 1)
    key = tmp_path / "keys/audit"
    assert key.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "node/audit.key").exists()
    key.chmod(0o640)
    with pytest.raises(UsageError, match="mode 640; only its owner may read a key"):
        Node(site_on_any_port(site))


def test_a_lost_key_is_replaced_by_who_says_so_and_the_trail_tells_it(site: Path) -> None:
    trail, key = site.parent / "node/audit.jsonl", site.parent / "node/audit.key"
    key.unlink()
    with pytest.raises(UsageError, match="put it back from its copy"):
        Node(site_on_any_port(site))
    node = Node(site_on_any_port(site), new_key=True)
    node.queue.close()
    node._lock_file.close()
    assert json.loads(trail.read_text().splitlines()[-1])["event"] == "new key"
    assert verify(trail, read_key(key), read_head(site.parent / "node/node.sqlite")).signed == 1
    with pytest.raises(UsageError, match="leave it out"):
        Node(site_on_any_port(site), new_key=True)


@pytest.mark.parametrize("has_signed", [True, False])
def test_a_change_of_keys_that_a_kill_interrupted_is_finished_or_begun_anew(trail: Path, has_signed: bool) -> None:
    key, new = trail.with_name("audit.key"), trail.with_name("audit.key.new")
    if not has_signed:
        computed_anew(trail, signed=False)
    key.rename(new)
    open_trail(trail).write("delivered")
    assert not new.exists()
    assert verify(trail, read_key(key)).signed == (6 if has_signed else 2)


KILLED = """
import os, signal, sys
from pathlib import Path
from monai_unet_app.service import audit
from monai_unet_app.service.queue import Queue

folder, moment = Path(sys.argv[1]), sys.argv[2]
queue = Queue(folder / "node.sqlite")
trail = audit.AuditTrail(folder / "audit.jsonl", None, queue)
trail.write("started")

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def write_half(path, text):
    with path.open("ab") as stream:
        stream.write(text.encode()[: len(text) // 2])
    die()

if moment == "before the line":
    audit._append = die
elif moment == "in the line":
    audit._append = write_half
elif moment == "after the line":
    queue.record_head = die
with queue.transaction():
    queue.record_instances("1.2.3", 2)
    trail.write("complete", study="1.2.3")
    if moment == "before the commit":
        die()
die()
"""


@pytest.mark.parametrize(
    ("moment", "lines", "remembered", "instances"),
    [
        ("before the line", 1, 1, 0),
        ("in the line", 1, 1, 0),
        ("after the line", 2, 1, 0),
        ("before the commit", 2, 1, 0),
        ("after the commit", 2, 2, 2),
    ],
)
def test_a_kill_between_line_and_database_is_no_false_alarm(
    tmp_path: Path, moment: str, lines: int, remembered: int, instances: int
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment], check=False)
    assert killed.returncode == -signal.SIGKILL
    trail, database = tmp_path / "audit.jsonl", tmp_path / "node.sqlite"
    head = read_head(database)
    assert head is not None
    assert head.n == remembered
    queue = Queue(database)
    AuditTrail(trail, None, queue).write("started")
    assert queue.instances("1.2.3") == instances
    assert verify(trail, read_key(tmp_path / "audit.key"), queue.head()).lines == lines + 1
    assert main(["trace", "--audit", str(trail)]) == 0
    queue.close()


def test_a_database_that_cannot_record_takes_nothing_back_from_the_trail(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "node.sqlite")
    trail = AuditTrail(tmp_path / "audit.jsonl", None, queue)

    def fail() -> None:
        with queue.transaction() as db:
            trail.write("complete", study="1.2.3")
            db.execute("SELECT nothing")

    with pytest.raises(sqlite3.Error):
        fail()
    assert queue.head() == Head(0, BEGIN)
    trail.write("complete", study="1.2.3")
    assert queue.head() == Head(2, verify(trail.path).last)


def test_a_line_that_the_trail_could_not_take_survives_a_kill_in_the_database(tmp_path: Path) -> None:
    path, queue = tmp_path / "audit.jsonl", Queue(tmp_path / "node.sqlite")
    trail = AuditTrail(path, None, queue)
    trail.write("started", port=1)
    kept = path.rename(tmp_path / "kept")
    with pytest.raises(
        TrailError, match=r"audit.jsonl cannot be written \(No such file or directory\); .* put the file back"
    ):
        trail.write("read", who="eva")
    assert not trail.write_or_keep("submitted", who="eva", studies=["1.2"])
    kept.rename(path)  # and the node is killed: nothing is closed
    AuditTrail(path, None, Queue(tmp_path / "node.sqlite")).write("started", port=2)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", "submitted", "started"]
    assert verify(path, read_key(tmp_path / "audit.key"), read_head(tmp_path / "node.sqlite")).lines == 3
