"""What the how-tos show in Python runs as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from phantoms import lopsided_array, oblique_affine, write_mr_series

import dicom_io


def test_the_python_of_the_dicom_how_to_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mr_series(tmp_path / "SERIES", lopsided_array(), oblique_affine())
    segments = json.loads((REPOSITORY / "bundles/hippocampus_mri_unet3d/configs/segments.json").read_text())
    segments["segmentAttributes"][0] = segments["segmentAttributes"][0][:1]
    del segments["wholes"]  # they name the other segment
    (tmp_path / "segments.json").write_text(json.dumps(segments))
    page = (REPOSITORY / "docs/how-to/dicom-from-python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 5
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    assert (names["numbered"] == names["labels"].array).all()
    assert {path.name for path in tmp_path.glob("*.dcm")} == {"seg.dcm", "rtstruct.dcm", "sr.dcm"}


@pytest.mark.slow
def test_the_python_from_arrays_to_a_calibrated_bundle_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/how-to/python.md").read_text(), re.DOTALL)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    # A busy machine gets the same network, and a small one
    monkeypatch.setattr("monai_unet_app.planning.speed.seconds_of_a_window", lambda *of, **named: 0.02)
    monkeypatch.setattr("monai_unet_app.planning.sizing._FILTERS", (8,))
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    assert names["fitted"].nll_after <= names["fitted"].nll_before
    assert names["case"].segmentation.labels.shape[-3:] == (32, 28, 24)
    assert (tmp_path / "evaluation/report.html").is_file()
    assert next((tmp_path / "results").glob("*.nii.gz")).is_file()


@pytest.mark.parametrize("name", dicom_io.__all__)
def test_every_door_opens(name: str) -> None:
    assert getattr(dicom_io, name).__module__.startswith("dicom_io.")
