"""What is reported as one structure of several parts: what `segments.json` states, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from phantoms import write_mr_series
from PIL import Image
from shell import Run, shell
from small_data import eye_picture

from dicom_io.volume import Volume

run = pytest.fixture(shell)
Make = Callable[[str], Path]


def code(value: str, meaning: str) -> dict[str, str]:
    return {"CodeValue": value, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning}


CATEGORY, KIDNEY = code("91723000", "Anatomical Structure"), code("64033007", "Kidney")
SIDES = (code("7771000", "Left"), code("24028007", "Right"))
BOTH = {
    "label": "Kidneys",
    "parts": [1, 2],
    "SegmentedPropertyCategoryCodeSequence": CATEGORY,
    "SegmentedPropertyTypeCodeSequence": KIDNEY,
}


def kidneys(bundle: Path, **more: Any) -> Path:
    """The bundle with a left and a right kidney for its two structures."""
    segments = [
        {
            "labelID": number,
            "SegmentLabel": f"{side['CodeMeaning']} kidney",
            "SegmentedPropertyCategoryCodeSequence": CATEGORY,
            "SegmentedPropertyTypeCodeSequence": KIDNEY,
            "SegmentedPropertyTypeModifierCodeSequence": side,
        }
        for number, side in enumerate(SIDES, start=1)
    ]
    document = {"schema_version": "1.1", "segmentAttributes": [segments]} | more
    (bundle / "configs/segments.json").write_text(json.dumps(document))
    config = bundle / "configs/inference.yaml"
    text = config.read_text().replace("[background, anterior, posterior]", "[background, kidney_left, kidney_right]")
    config.write_text(text.replace("mirror_axes: [0]", "mirror_axes: []"))
    return bundle


def predicted(run: Run, bundle: Path, crop: Volume, folder: Path) -> tuple[dict[str, Any], list[Any], str]:
    """result.json, the measurement groups of the report, and what the command line prints."""
    write_mr_series(folder / "case", crop.array.astype(np.int16), crop.affine_lps)
    words = ["--bundle", bundle, "--input", folder / "case", "--output", folder / "out", "--format", "sr"]
    answer = run("predict", *words)
    assert answer.code == 0, answer.err
    report = hd.sr.Comprehensive3DSR.from_dataset(pydicom.dcmread(folder / "out/case_sr.dcm"))
    content: Any = report.content
    groups = [*content.get_volumetric_roi_measurement_groups(), *content.get_image_measurement_groups()]
    return json.loads((folder / "out/case_result.json").read_text()), groups, answer.out


def test_a_left_and_a_right_kidney_are_no_whole_in_result_and_report(
    run: Run, tiny_bundle: Make, crop: Volume, tmp_path: Path
) -> None:
    document, groups, told = predicted(run, kidneys(tiny_bundle("hippocampus_mri_unet3d")), crop, tmp_path)
    assert [row["label"] for row in document["structures"]] == ["Left kidney", "Right kidney"]
    assert document["wholes"] == []
    assert [group.tracking_identifier for group in groups] == ["1 Left kidney", "2 Right kidney"]
    assert "whole" not in told


def test_both_kidneys_together_are_reported_where_the_bundle_states_them(
    run: Run, tiny_bundle: Make, crop: Volume, tmp_path: Path
) -> None:
    bundle = kidneys(tiny_bundle("hippocampus_mri_unet3d"), wholes=[BOTH])
    document, groups, told = predicted(run, bundle, crop, tmp_path)
    (row,) = document["wholes"]
    assert (row["label"], row["parts"]) == ("Kidneys", [1, 2])
    assert row["voxels"] == sum(one["voxels"] for one in document["structures"])
    assert groups[-1].tracking_identifier == "1+2 Kidneys"
    assert "Kidneys, whole" in told


def test_a_whole_of_a_part_that_does_not_exist_ends_the_run_before_a_file_is_written(
    run: Run, tiny_bundle: Make, crop: Volume, tmp_path: Path
) -> None:
    bundle = kidneys(tiny_bundle("hippocampus_mri_unet3d"), wholes=[BOTH | {"parts": [1, 3]}])
    write_mr_series(tmp_path / "case", crop.array.astype(np.int16), crop.affine_lps)
    answer = run("predict", "--bundle", bundle, "--input", tmp_path / "case", "--output", tmp_path / "out")
    assert answer.code != 0
    assert "there is no labelID 3" in answer.err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_whole_of_structures_that_may_overlap_is_refused(run: Run, tiny_bundle: Make, tmp_path: Path) -> None:
    bundle = tiny_bundle("retina_vessel_unet2d")
    path = bundle / "configs/segments.json"
    document = json.loads(path.read_text())
    second = document["segmentAttributes"][0][0] | {"labelID": 2, "SegmentLabel": "Vein"}
    document["segmentAttributes"][0].append(second)
    path.write_text(json.dumps(document | {"wholes": [BOTH]}))
    config = bundle / "configs/inference.yaml"
    config.write_text(config.read_text().replace("labels: [vessel]", "labels: [vessel, vein]"))
    Image.fromarray(eye_picture(1)[0]).save(tmp_path / "eye.png")
    answer = run("predict", "--bundle", bundle, "--input", tmp_path / "eye.png", "--output", tmp_path / "out")
    assert answer.code != 0
    assert "overlap do not add up" in answer.err.replace("\n", " ")
