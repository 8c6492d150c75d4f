"""A series that ends before its own headers say so, as a user of the command line meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from conftest import EXAMPLES
from shell import Run, shell

run = pytest.fixture(shell)
HERE, ALL = 20, 35


@pytest.fixture
def cut_off(run: Run, tmp_path: Path) -> Path:
    """An example as a series of 35 slices, whose sender stopped after 20."""
    image = EXAMPLES / "images/hippocampus_003.nii.gz"
    assert run("dicomize", "--images", image, "--output", tmp_path / "dicom").code == 0
    folder = tmp_path / "dicom/hippocampus_003"
    files = sorted(folder.rglob("*.dcm"))
    assert len(files) == ALL
    for number, path in enumerate(files):
        dataset = pydicom.dcmread(path)
        dataset.ImagesInAcquisition = ALL
        dataset.save_as(path)
        if number >= HERE:
            path.unlink()
    return folder


def test_predict_refuses_a_series_whose_sender_stopped_and_inspect_says_why(
    run: Run, cut_off: Path, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    bundle, out = tiny_bundle(), tmp_path / "out"
    answer = run("predict", "--bundle", bundle, "--input", cut_off, "--output", out, "--format", "seg,sr")
    assert answer.code == 3
    said = answer.err.replace("\n", " ")
    assert "it holds 20 images, and its headers count 35 (ImagesInAcquisition): 15 missing" in said
    assert "fetch the missing images, or pass --accept-incomplete to read the images that exist" in said
    assert not out.exists() or not list(out.iterdir())
    shown = run("inspect", cut_off, "--json")
    assert shown.code == 3
    (row,) = json.loads(shown.out)["series"]
    assert (row["outcome"], "15 missing" in row["reason"]) == ("refused", True)


def test_predict_reads_what_is_here_on_request_and_every_result_says_so(
    run: Run, cut_off: Path, tiny_bundle: Callable[[], Path], tmp_path: Path
) -> None:
    words = ["--bundle", tiny_bundle(), "--input", cut_off, "--output", tmp_path / "out", "--accept-incomplete"]
    answer = run("predict", *words, "--format", "seg,sr,rtstruct,gsps,sc,pm")
    assert answer.code == 0, answer.err
    assert "note on hippocampus_003: read on request although it is incomplete" in answer.out
    document = json.loads((tmp_path / "out/hippocampus_003_result.json").read_text())
    assert any("holds 20 images, and its headers count 35" in note for note in document["source"]["notes"])
    assert document["source"]["instances"] == HERE
    seg = pydicom.dcmread(tmp_path / "out/hippocampus_003_seg.dcm")
    told = [item.get("ContributionDescription", "") for item in seg.ContributingEquipmentSequence]
    assert any("repairs=accept_incomplete;" in text for text in told)
    objects = sorted((tmp_path / "out").rglob("*.dcm"))
    assert {pydicom.dcmread(path).Modality for path in objects} >= {"SEG", "SR", "RTSTRUCT", "PR", "OT"}
    for path in objects:
        assert pydicom.dcmread(path).SeriesDescription.startswith("INCOMPLETE SERIES, "), path.name
    report = pydicom.dcmread(tmp_path / "out/hippocampus_003_sr.dcm")
    texts = [item.value for item in report.iterall() if item.keyword == "TextValue"]
    assert any("holds 20 images, and its headers count 35" in text for text in texts)
