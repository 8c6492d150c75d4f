"""A NIfTI of a CT becomes a CT series, which the bundle that segmented it reads again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from shell import Run, shell

from dicom_io.read import read_series
from dicom_io.validators import dciodvfy_errors, program
from dicom_io.volume import Volume

run = pytest.fixture(shell)
Make = Callable[[str], Path]
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def scan(crop: Volume, tmp_path: Path) -> Path:
    """The crop as HU, -700 to 500 in whole numbers, in a NIfTI."""
    array = np.rint(crop.array * 2 - 600).clip(-700, 500).astype(np.int16)
    assert array.min() < -300
    assert array.max() > 300
    nibabel.save(nibabel.Nifti1Image(array, crop.affine_ras), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def taking(bundle: Path, modality: str) -> Path:
    """The bundle with another rule for modalities."""
    config = bundle / "configs/inference.yaml"
    text = config.read_text()
    assert "modality: [MR]" in text
    config.write_text(text.replace("modality: [MR]", f"modality: [{modality}]"))
    return bundle


def in_place(values: np.ndarray, affine_lps: np.ndarray) -> dict[tuple[float, ...], float]:
    """Value by LPS millimetres of its voxel."""
    index = np.argwhere(np.ones(values.shape, bool))
    points = np.round(index @ affine_lps[:3, :3].T + affine_lps[:3, 3], 2) + 0.0
    return dict(zip(map(tuple, points.tolist()), values[tuple(index.T)].tolist(), strict=True))


def test_predict_dicomize_with_a_ct_bundle_writes_a_ct_series_that_the_bundle_takes(
    run: Run, tiny_bundle: Make, scan: Path, crop: Volume, tmp_path: Path
) -> None:
    bundle, out = taking(tiny_bundle("hippocampus_mri_unet3d"), "CT"), tmp_path / "out"
    words = ["predict", "--bundle", bundle]
    answer = run(*words, "--input", scan, "--output", out, "--format", "nifti,seg,sr", "--dicomize")
    assert answer.code == 0, answer.err
    document = json.loads((out / "scan_result.json").read_text())
    assert document["files"]["series"] == "scan_dicom/ct"
    files = sorted((out / "scan_dicom/ct").iterdir())
    header = pydicom.dcmread(files[0])
    assert (header.SOPClassUID, header.Modality, header.RescaleType) == (CT_IMAGE_STORAGE, "CT", "HU")
    assert header.file_meta.MediaStorageSOPClassUID == CT_IMAGE_STORAGE
    series = read_series(out / "scan_dicom/ct")
    original = np.asanyarray(nibabel.load(scan).dataobj)
    assert in_place(series.array, series.affine_lps) == in_place(original.astype(np.float32), crop.affine_lps)
    if program("dciodvfy") is not None:
        assert {path.name: dciodvfy_errors(path) for path in (files[0], files[-1], *out.glob("*.dcm"))} == {
            path.name: [] for path in (files[0], files[-1], *out.glob("*.dcm"))
        }
    again = run(*words, "--input", out / "scan_dicom/ct", "--output", tmp_path / "again", "--format", "nifti")
    assert again.code == 0, again.err
    (ct,) = (tmp_path / "again").glob("*_result.json")
    assert json.loads(ct.read_text())["source"]["modality"] == "CT"


def test_a_bundle_of_another_modality_is_refused_before_work_with_the_remedy(
    run: Run, tiny_bundle: Make, scan: Path, tmp_path: Path
) -> None:
    bundle = taking(tiny_bundle("hippocampus_mri_unet3d"), "PT")
    words = ["--bundle", bundle, "--input", scan, "--output", tmp_path / "out", "--format", "seg", "--dicomize"]
    answer = run("predict", *words)
    assert answer.code == 2
    assert "takes PT, but --dicomize writes MR or CT" in answer.err.replace("\n", " ")
    assert "--dicom-source DIR" in answer.err.replace("\n", " ")
    assert not list(tmp_path.glob("out/*"))


def test_the_verb_writes_what_modality_says_and_replaces_an_earlier_conversion(
    run: Run, scan: Path, tmp_path: Path
) -> None:
    words = ["dicomize", "--images", scan, "--output", tmp_path / "dicom"]
    for flags, kind in (([], "MR"), (["--modality", "CT"], "CT"), (["--modality", "MR"], "MR")):
        assert run(*words, *flags).code == 0
        assert [path.name for path in (tmp_path / "dicom/scan").iterdir()] == [kind.lower()]
        assert read_series(tmp_path / "dicom/scan").provenance.modality == kind


def test_fractions_of_hu_come_back_within_the_stated_rounding(run: Run, crop: Volume, tmp_path: Path) -> None:
    array = (crop.array * 2.37 - 900.5).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, crop.affine_ras), tmp_path / "scan.nii.gz")
    answer = run(
        "dicomize", "--images", tmp_path / "scan.nii.gz", "--output", tmp_path / "dicom", "--modality", "CT", "--json"
    )
    (row,) = json.loads(answer.out)["cases"]
    found = read_series(tmp_path / "dicom/scan").array
    error = np.abs(np.sort(found.ravel().astype(float)) - np.sort(array.ravel())).max()
    assert 0 < error <= row["max_rounding_error"] < 0.03
    if program("dciodvfy") is not None:
        assert dciodvfy_errors(sorted((tmp_path / "dicom/scan/ct").iterdir())[0]) == []
