"""From a folder as nnU-Net wants it to a DICOM result, by four commands and without editing a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from shell import Run, shell
from small_data import tilted_volumes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    yield from shell(capsys)


def test_from_a_raw_folder_to_a_dicom_result(tmp_path: Path, run: Run) -> None:
    data = tilted_volumes(tmp_path / "Dataset001_Balls", 4)
    names = {"background": 0, "liver": 2, "spleen": 5}
    (data / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}, "labels": names}))
    assert run("dicomize", "--images", data / "imagesTr/case0_0000.nii.gz", "--output", tmp_path / "dicom").code == 0

    answer = run("plan", data, "--output", tmp_path / "plan", "--time", "0.2min")
    assert answer.code == 0, answer.err
    assert "--folds all" in answer.out.replace("\n", " ")  # the next command
    quick = ["--epochs", "4", "--learning-rate", "0.01"]
    answer = run(
        "train", "--bundle", tmp_path / "plan", "--data", data, "--output", tmp_path / "made", "--folds", "all", *quick
    )
    assert answer.code == 0, answer.err
    curves = (
        EventAccumulator(str(next((tmp_path / "made/run/tensorboard").rglob("events*")))).Reload().Tags()["scalars"]
    )
    assert {"train/loss", "selection/mean_dice", "selection/dice/liver", "selection/dice/spleen"} <= set(curves)
    answer = run("calibrate", "--bundle", tmp_path / "made", "--data", data)
    assert answer.code == 0, answer.err
    answer = run("evaluate", "--bundle", tmp_path / "made", "--data", data, "--folds", "--output", tmp_path / "oof")
    assert answer.code == 0, answer.err
    series = tmp_path / "dicom/case0_0000"
    answer = run(
        *("predict", "--bundle", tmp_path / "made", "--input", series, "--output", tmp_path / "out"),
        *("--format", "seg,sr", "--deliver-rejected"),
    )
    assert answer.code == 0, answer.err
    (seg,) = (tmp_path / "out").glob("*_seg.dcm")
    segments = pydicom.dcmread(seg).SegmentSequence
    assert [str(segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning) for segment in segments] == [
        "Liver",
        "Spleen",
    ]
    assert list((tmp_path / "out").glob("*_sr.dcm"))
