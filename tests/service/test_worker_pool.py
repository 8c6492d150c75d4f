"""Children that fail are started again after a pause, as are deliveries; a fault of a child is logged before it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from monai_unet_app.service.child_processes import READY
from monai_unet_app.service.worker_pool import Pause


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
