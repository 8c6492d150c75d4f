"""What a user sees of trainings that other processes do: lines with their names, and bars in a terminal."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from monai_unet_app import progress_bars
from monai_unet_app.errors import AppError
from monai_unet_app.training.progress import DISPLAY_ELSEWHERE, NamedBars, ProgressBar, StepsDone


def test_lines_begin_with_the_name_of_their_training(capsys: pytest.CaptureFixture[str]) -> None:
    with NamedBars() as bars:
        bars.hear("fold 2", "epoch   3/25 · loss 0.4321 · Dice on watched cases 0.1234 [best]")
        bars.hear("fold 2", (30, 250, "loss 0.432"))
        bars.hear("fold 1", AppError("no room"))
        bars.hear("fold 1", None)
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.splitlines() == [
        "fold 2 · epoch   3/25 · loss 0.4321 · Dice on watched cases 0.1234 [best]",
        "fold 1 · failed: no room; the running trainings go on to their end, no other begins",
    ]


def test_without_a_terminal_the_time_that_is_left_counts_from_where_a_training_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_bars, "EVERY_S", 0.005)
    with NamedBars() as bars:
        bars.hear("fold 2", (400, 1000, "loss 0.5"))
        bars.bars.tasks[0].start_time -= 60.0  # type: ignore[operator]
        bars.hear("fold 2", (500, 1000, "loss 0.4"))
        time.sleep(0.1)
    # A minute for 100 steps is 5 for the other 500
    assert " fold 2: 500 of 1000, about 5 minutes left\n" in capsys.readouterr().err


def test_a_terminal_has_a_bar_for_each_training_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes it for a terminal
    seen = NamedBars()
    assert seen.console.is_terminal
    screen = Console(file=io.StringIO(), width=80, force_terminal=False)
    seen.hear("all data", (5, 40, "loss 0.500"))
    seen.hear("fold 2", (10, 40, "loss 0.400"))
    seen.hear("fold 3", (40, 40, "loss 0.300"))
    seen.hear("fold 3", None)
    screen.print(seen.bars.get_renderable())
    lines: list[str] = screen.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 2  # none is folded in 80 columns
    for line, words in zip(lines, ("all data 5/40 loss 0.500 left", "fold 2 10/40 loss 0.400 left"), strict=True):
        assert all(word in line for word in words.split())
        assert len(line) <= 80


def test_a_training_in_another_process_tells_its_steps_and_draws_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    told: list[StepsDone] = []
    token = DISPLAY_ELSEWHERE.set(told.append)
    try:
        bar = ProgressBar(SimpleNamespace(history=[{"loss": 0.5, "metric": None}]))  # type: ignore[arg-type]
        state = SimpleNamespace(epoch=0, iteration=0, epoch_length=4, max_epochs=2, output={"loss": 0.5})
        engine: Any = SimpleNamespace(state=state)
        bar.start(engine)
        for state.iteration in range(1, 5):
            bar.step(engine)
        state.epoch = 1
        bar.print_epoch(engine)
        bar.stop(engine)
    finally:
        DISPLAY_ELSEWHERE.reset(token)
    assert told == [(step, 8, "loss 0.500") for step in range(1, 5)]
    assert capsys.readouterr().err.splitlines() == ["epoch   1/2 · loss 0.5000"]
