"""Children that fail are not started again and again without a pause, nor destinations that are away tried so."""

from __future__ import annotations

import time

import pytest

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
