"""An image that ends too early is not accepted by the shipped bundles, whole ones still are, and one without a gate says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import EXAMPLES, REPOSITORY
from shell import Run, shell

CASES = ("hippocampus_132", "hippocampus_161")  # of the selection cases: they taught the gate nothing
SLICES = 20
pytestmark = pytest.mark.slow


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    yield from shell(capsys)


def predicted(run: Run, bundle: Path | str, images: Path, output: Path, *flags: str) -> dict[str, dict[str, Any]]:
    answer = run("predict", "--bundle", bundle, "--input", images, "--output", output, "--deliver-rejected", *flags)
    assert answer.code == 0, answer.err
    return {path.name[: -len("_result.json")]: json.loads(path.read_text()) for path in output.glob("*_result.json")}


@pytest.mark.parametrize("name", ["hippocampus_mri_unet3d", "hippocampus_mri_unet2d"])
def test_a_crop_of_which_twenty_slices_came_is_not_accepted_and_the_whole_crop_is(
    name: str, run: Run, tmp_path: Path
) -> None:
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    for case in CASES:
        file = EXAMPLES / f"images/{case}.nii.gz"
        shutil.copy2(file, tmp_path / "whole")
        image = nibabel.load(file)
        assert image.shape[2] > SLICES + 10
        nibabel.save(image.slicer[:, :, :SLICES], tmp_path / "cut" / file.name)  # type: ignore[attr-defined]
    for found in predicted(run, name, tmp_path / "whole", tmp_path / "of_whole").values():
        assert found["assessment"]["verdict"] == "accept"
        assert all("volume_interval_ml" in row and "cut_off" not in row for row in found["structures"])
    for found in predicted(run, name, tmp_path / "cut", tmp_path / "of_cut").values():
        assert found["assessment"]["verdict"] in ("review", "reject")
        reasons = " ".join(found["assessment"]["reasons"])
        assert "it touches the border of the image on the head side" in reasons
        cut = [row for row in found["structures"] if "cut_off" in row]
        assert cut
        assert all(row["cut_off"] == ["head"] and "volume_interval_ml" not in row for row in cut)
        assert all("volume_interval_ml" not in row for row in found["wholes"])


def test_an_inverted_image_is_rejected_without_tta_and_unjudged_with_it_where_no_statements_were_fitted(
    run: Run, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(REPOSITORY / "bundles/hippocampus_mri_unet3d", tmp_path / "hippocampus_mri_unet3d"))
    document = json.loads((bundle / "configs/confidence.json").read_text())
    del document["settings"]["tta"]
    (bundle / "configs/confidence.json").write_text(json.dumps(document))
    image = nibabel.load(EXAMPLES / f"images/{CASES[0]}.nii.gz")
    array = np.asarray(image.dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(array.max() - array, image.affine), tmp_path / "in/inverted.nii.gz")  # type: ignore[attr-defined]
    plain = predicted(run, bundle, tmp_path / "in", tmp_path / "plain")["inverted"]["assessment"]
    averaged = predicted(run, bundle, tmp_path / "in", tmp_path / "averaged", "--tta")["inverted"]["assessment"]
    assert plain["verdict"] == "reject"
    assert averaged["verdict"] is None
    assert "no quality gate has judged this result" in averaged["reasons"][0]
    assert "run monai-unet calibrate --tta" in averaged["reasons"][0]
