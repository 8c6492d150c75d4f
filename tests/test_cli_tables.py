"""What the command line prints of bundles with many structures, and the command that it says comes next."""

from __future__ import annotations

import argparse
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from monai_unet_app import progress_bars
from monai_unet_app.cli import show
from monai_unet_app.cli.common import next_command
from monai_unet_app.cli.parser import build_parser
from monai_unet_app.errors import of_surroundings

CLASSES = [f"Structure with a long name number {n}" for n in range(1, 21)]


def score(value: float) -> dict[str, Any]:
    return {
        "mean": value,
        "mean_interval": [value - 0.1, value + 0.1],
        "top_label": value,
        "top_label_interval": None,
        "per_class": {label: value + n / 1000 for n, label in enumerate(CLASSES)},
    }


@pytest.mark.parametrize("width", [80, 200])
def test_scores_of_twenty_classes_are_whole_at_any_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("dice", "iou", "boundary_iou", "precision", "recall", "ece", "ece_band")
    metrics = {key: score(0.5) for key in keys} | {"hd95_mm": score(123.4)}
    metrics["components"] = {"truth": score(7.0), "panoptic_quality": score(0.75)}
    metrics["hd95_mm"]["undefined_cases"] = dict.fromkeys(CLASSES, 0) | {CLASSES[4]: 3, CLASSES[6]: 1}
    metrics |= {"absent_cases": {CLASSES[0]: 2, CLASSES[1]: 9}, "undefined": {CLASSES[1]: "nowhere"}}
    monkeypatch.setattr(show, "out", Console(width=width))
    show.metrics_table(metrics)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "0.4000 to 0.6000" in printed
    assert "panoptic_quality" in printed
    assert "0.6500 to 0.8500" in printed
    sentences = ("HD95 is undefined", "truth and result")
    assert max(len(line) for line in printed.splitlines() if not line.startswith(sentences)) <= width
    words = " ".join(printed.split())
    assert f"HD95 is undefined in 3 case(s) of {CLASSES[4]}, 1 of {CLASSES[6]}, where" in words
    assert f"truth and result are both empty in 2 case(s) of {CLASSES[0]}; Dice counts as 1 there" in words
    for n in range(20):
        assert f" 0.{500 + n} " in words
        assert f" {123.4 + n / 1000:.1f} " in words


def test_structures_and_statements_of_long_names_are_whole_at_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "out", Console(width=80))
    rows = [{"label": label, "volume_ml": 1234.5, "mean_probability": 0.5} for label in CLASSES]
    rows[0] |= {"objects": 12, "objects_interval": [10, 15]}
    show.structures_table(
        [
            {
                "case": "a_case_with_a_long_name",
                "structures": rows,
                "wholes": [],
                "assessment": None,
                "seconds": {"a": 1.0},
            }
        ]
    )
    said = {"not_stated": {}, "mask_from": {"risk": 0.1, **dict.fromkeys(CLASSES, 0.25)}}
    show.statements_table({"plain": said})
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert printed.count("1234.5 mL") == 20
    assert "12 object(s)" in printed
    assert "(10 to 15)" in printed


def test_a_name_in_brackets_is_a_name_and_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(show, "out", Console(width=80))
    row = {"label": "[red]left", "volume_ml": 1.0, "mean_probability": None}
    case = {"case": "[b]case", "structures": [row], "wholes": [row], "assessment": None, "seconds": {"a": 1.0}}
    show.structures_table([case])
    show.statements_table(
        {"plain": {"not_stated": {"gate": "of [red]left"}, "mask_from": {"risk": 0.1, "[red]left": 0.2}}}
    )
    printed = capsys.readouterr().out
    assert printed.count("[red]left") == 4
    assert printed.count("[b]case") == 2


GIVEN = {
    "all": ["--images", "my images", "--labels", "it's here", "--label-suffix", "_1stHO", "--splits", "plan.json"],
    "a suffix with a dash": ["--data", "D", "--label-suffix=-seg", "--device", "cpu"],
    "averages": ["--data", "D", "--tta"],
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize(("verb", "following"), [("train", "calibrate"), ("calibrate", "evaluate")])
def test_the_command_that_comes_next_has_the_flags_that_were_given(given: list[str], verb: str, following: str) -> None:
    if verb == "train" and "--tta" in given:
        pytest.skip("train has no --tta")
    first = build_parser().parse_args(
        [verb, "--bundle", "template", "--output", "o", *given][: None if verb == "train" else 3]
        + ([] if verb == "train" else given)
    )
    told = next_command(following, Path("my bundle"), first).removeprefix("next: ")
    second: argparse.Namespace = build_parser().parse_args(shlex.split(told)[1:])
    assert following != "evaluate" or second.output == Path("my bundle_evaluation")
    assert second.bundle == "my bundle"
    for name in ("labels", "label_suffix", "splits", "device"):
        assert getattr(second, name) == getattr(first, name)
    assert (second.data or second.images) == (first.data or first.images)
    assert second.tta == getattr(first, "tta", False)


def test_the_bar_moves_while_one_case_is_at_work() -> None:
    steps = show.Steps("segmenting", 1)
    steps.windows(3, 12)
    assert steps.tasks[0].completed == pytest.approx(0.25)
    steps("a case")
    assert steps.tasks[0].completed == 1


SIZES = {
    "large": ({"volume_ml": 5.1, "volume_interval_ml": [3.65, 4.39]}, "5.10 mL\n(probably too large: 3.65 to 4.39)"),
    "small": ({"volume_ml": 0.1, "volume_interval_ml": [0.2, 0.3]}, "0.100 mL\n(probably too small: 0.200 to 0.300)"),
    "inside": ({"volume_ml": 4.0, "volume_interval_ml": [3.65, 4.39]}, "4.00 mL\n(3.65 to 4.39)"),
    "at an end": ({"pixels": 90, "pixels_interval": [80.2, 90.0]}, "90 px\n(80 to 90)"),
    "objects": (
        {"pixels": 90, "objects": 3, "objects_interval": [4, 6]},
        "90 px\n3 object(s)\n(probably too few: 4 to 6)",
    ),
}


@pytest.mark.parametrize(("row", "words"), SIZES.values(), ids=SIZES)
def test_a_size_outside_its_own_interval_says_how_it_is_probably_off(row: dict[str, Any], words: str) -> None:
    assert show.size(row) == words


@pytest.mark.parametrize(("verdict", "word"), [("review", "review"), (None, "not judged")])
def test_the_table_ends_with_the_verdict_on_the_whole_result(
    verdict: str | None, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"label": "liver", "volume_ml": 5.1, "mean_probability": 0.9, "verdict": "accept"}
    case = {"case": "a", "structures": [row], "wholes": [], "seconds": {"a": 1.0}, "assessment": {"verdict": verdict}}
    show.structures_table([case])
    liver, whole = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines() if "│ a " in line]
    assert liver == ["a", "liver", "5.10", "mL", "0.900", "accept", "1.0"]
    assert whole == ["a", "result", *word.split()]


def test_without_a_terminal_no_cell_of_a_table_is_cut_or_folded(capsys: pytest.CaptureFixture[str]) -> None:
    cells = ["a-name-without-a-place-to-fold-" * 3, "a sentence of several words, " * 4]
    show.print_table(("name", "why"), [cells])
    printed = capsys.readouterr().out
    assert all(cell.strip() in printed for cell in cells)


def test_without_a_terminal_dated_lines_tell_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_bars, "EVERY_S", 0.005)
    with show.Steps("calibrating", 12) as step:
        step.tasks[0].start_time -= 600.0  # type: ignore[operator]
        step("case 1")
        step("case 2")
        time.sleep(0.1)
        for n in range(3, 13):
            step(f"case {n}")
        time.sleep(0.1)
    lines = [
        re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d (.+)", line) for line in capsys.readouterr().err.splitlines()
    ]
    # 10 minutes for 2 cases are 50 for the other 10
    wanted = {"calibrating: 2 of 12, about 50 minutes left", "calibrating: 12 of 12, finishing"}
    assert wanted <= {line[1] if line else None for line in lines}
    assert None not in lines


def test_with_json_no_line_is_printed_while_it_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_bars, "EVERY_S", 0.01)
    with show.silence(True), show.Steps("calibrating", 2):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"),
            "--workers 0",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/1"),
            "disk is full",
        ),
        (OSError(28, "No space left on device"), "disk is full"),
        (ValueError("something else"), None),
    ],
)
def test_what_the_machine_lacks_is_told_in_one_sentence(error: Exception, words: str | None) -> None:
    try:
        raise RuntimeError("Failed to evaluate ConfigExpression") from error
    except RuntimeError as outer:
        said = of_surroundings(outer)
    assert (said is None) if words is None else words in str(said)
