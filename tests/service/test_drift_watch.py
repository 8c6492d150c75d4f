"""The node asks about drift in the background, one question at a time."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from monai_unet_app.service import drift_watch
from monai_unet_app.service.drift_watch import DriftWatch


def test_it_asks_again_only_when_the_answer_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = threading.Semaphore(0), threading.Event()

    def slow(node: object) -> list[dict[str, Any]]:
        asked.release()
        assert answer.wait(20)
        return [{"rule": "any", "state": "steady"}]

    monkeypatch.setattr(drift_watch, "_EVERY_S", 0.0)
    monkeypatch.setattr(drift_watch, "drift_of", slow)
    watch = DriftWatch(cast(Any, None))
    watch.run()
    assert asked.acquire(timeout=20)
    for _ in range(5):
        watch.run()
    assert not asked.acquire(timeout=0.2)
    answer.set()
    watch._asking.join(20)
    assert watch.rules == [{"rule": "any", "state": "steady"}]
    watch.run()
    assert asked.acquire(timeout=20)
    watch._asking.join(20)
