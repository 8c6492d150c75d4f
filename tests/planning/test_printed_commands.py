"""From a folder of labelled images to a result: every command that is printed runs as it stands, and no other is needed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from shell import Answer, Run, shell
from small_data import numbered_discs, tilted_volumes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow

WAY = ["plan", "train", "calibrate", "evaluate", "predict"]
FOLDS, PARTITIONS = 8, 80
"""Cases from which `plan` deals folds, and partitions: of 80, 9 calibrate."""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)  # some outputs have no folder in their name
    # A busy machine gets the same network and as many steps
    monkeypatch.setattr("monai_unet_app.planning.speed.seconds_of_a_window", lambda *of, **named: 0.02)
    monkeypatch.setattr("monai_unet_app.planning.sizing._FILTERS", (8,))
    yield from shell(capsys)


def follow(run: Run, *first: object) -> dict[str, Answer]:
    """Runs a command and every command that is printed next; the answer of each verb."""
    answers: dict[str, Answer] = {}
    commands = [[str(word) for word in first]]
    while commands:
        words = commands.pop(0)
        answer = answers[words[0]] = run(*words)
        assert answer.code == 0, (words, answer.err)
        printed = [line for line in answer.out.splitlines() if line.startswith("next: ")]
        commands += [shlex.split(line)[2:] for line in printed]
        assert all(line.startswith("next: monai-unet ") for line in printed), printed
    return answers


def seg_of(output: Path) -> pydicom.Dataset:
    (file,) = output.glob("*_seg.dcm")
    return pydicom.dcmread(file)


def test_volumes_end_at_a_seg(tmp_path: Path, run: Run) -> None:
    data = tilted_volumes(tmp_path / "Dataset001_Balls", FOLDS)
    names = {"background": 0, "liver": 2, "spleen": 5}
    (data / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}, "labels": names}))
    answers = follow(run, "plan", data, "--output", tmp_path / "my_plan", "--time", "0.02min")
    assert list(answers) == WAY
    assert "--folds all" in answers["plan"].out
    curves = EventAccumulator(str(next((tmp_path / "my_plan_trained/run/tensorboard").rglob("events*")))).Reload()
    assert {"train/loss", "selection/mean_dice", "selection/dice/liver", "selection/dice/spleen"} <= set(
        curves.Tags()["scalars"]
    )
    measured = json.loads((tmp_path / "my_plan_trained_evaluation/metrics.json").read_text())["data"]
    assert measured["seen"] == {}
    assert len(measured["folds"]) == FOLDS
    words = ["evaluate", "--bundle", "my_plan_trained", "--data", data, "--output", "no"]
    assert "no case is left to work on; give other cases, or --folds" in run(*words).err
    results = tmp_path / "my_plan_trained_results"
    segments = seg_of(results).SegmentSequence
    assert [str(segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning) for segment in segments] == [
        "Liver",
        "Spleen",
    ]
    assert list(results.glob("*_sr.dcm"))


def test_pictures_end_at_png_and_say_so(tmp_path: Path, run: Run) -> None:
    data = numbered_discs(tmp_path / "pictures", PARTITIONS)
    flags = ("--objects", "disc", "--time", "0.1min")
    answers = follow(run, "plan", data, "--output", tmp_path / "my_plan", *flags)
    assert list(answers) == WAY
    assert "--folds all" not in answers["plan"].out
    assert "results of pictures are PNG files and result.json" in answers["plan"].err
    (mask,) = (tmp_path / "my_plan_trained_results").glob("*_seg.png")
    assert np.asarray(Image.open(mask)).shape == (70, 90)
    picture = next((data / "images").glob("*.png"))
    for flags in ([], ["--dicomize", "--uncoded"]):
        words = ["--input", picture, "--output", tmp_path / "no", "--format", "seg", *flags]
        refused = run("predict", "--bundle", tmp_path / "my_plan_trained", *words)
        assert refused.code == 2
        assert "DICOM results cannot be made of it" in refused.err
        assert "give --format png" in refused.err
