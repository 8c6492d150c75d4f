"""Children that fail are started again after a pause, as are deliveries; a fault of a child is logged before it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from monai_unet_app.errors import AppError, InputRefusedError
from monai_unet_app.service.child_processes import READY, Child, run_verb
from monai_unet_app.service.worker_pool import Pause, WorkerPool


def test_each_pause_is_twice_the_one_before_until_a_try_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    pause = Pause(first_s=2.0, longest_s=5.0)
    assert pause.is_over
    for length in (2.0, 4.0, 5.0, 5.0):
        pause.begin()
        clock += length - 0.1
        assert not pause.is_over
        clock += 0.2
        assert pause.is_over
    pause.begin()
    pause.end()
    assert pause.is_over
    pause.begin()
    clock += 2.1
    assert pause.is_over


def test_a_child_that_cannot_read_what_the_node_sends_ends_with_a_traceback() -> None:
    code = "from monai_unet_app.service.child_processes import serve; serve(lambda: (lambda message: message, {}))"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline()) == READY
        _, log = child.communicate("no JSON\n", timeout=20)
        assert child.returncode == 1
        assert "Traceback" in log
        assert "JSONDecodeError" in log
    finally:
        child.kill()


def test_a_child_that_takes_the_place_of_another_works_where_that_one_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import sys
from monai_unet_app.service.child_processes import serve
found = sys.argv[2] if sys.argv[1:2] == ["--device"] else "cuda:3"
serve(lambda: (lambda message: sys.exit(1) if message["last"] else {"found": found}, {"args": ["--device", found + "!"]}))
"""
    (tmp_path / "found_once.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = WorkerPool("found_once", [], 1, silent_s=30)
    try:
        for wanted in ("cuda:3", "cuda:3!"):
            child = ready_child(pool)
            child.start_task("a study", {"last": False})
            _, message = pool.inbox.get(timeout=20)
            assert message == {"found": wanted}
            child.end_task()
            child.start_task("a study that kills its worker", {"last": True})
            child._process.wait(20)
    finally:
        pool.end(0)


def test_a_verb_in_a_process_of_its_own_refuses_in_its_own_words_and_has_a_limit_of_time(tmp_path: Path) -> None:
    (tmp_path / "one.dcm").write_bytes(b"no DICOM")
    with pytest.raises(InputRefusedError, match=r"one\.dcm"):
        run_verb(["trace", str(tmp_path / "one.dcm")], 60)
    with pytest.raises(AppError, match=r"trace took more than 0\.05 s; try again when the node is less busy"):
        run_verb(["trace", str(tmp_path / "one.dcm")], 0.05)


def ready_child(pool: WorkerPool) -> Child:
    """The child of a pool of one, as soon as it can work; one that has ended is replaced."""
    end = time.monotonic() + 20
    while not pool.idle():
        assert time.monotonic() < end
        list(pool.messages())
        pool.start_missing()
        time.sleep(0.02)
    return pool.idle()[0]
