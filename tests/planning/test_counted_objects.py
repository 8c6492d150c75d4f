"""Objects that touch: planned, trained, counted, written as segments of their own, and back to training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation
from shell import Run, shell
from skimage.segmentation import watershed
from small_data import numbered_discs, plan_bundle

from dicom_io.read import read_series
from dicom_io.seg import read_seg
from monai_unet_app.bundle import load_bundle
from monai_unet_app.data.labels import FileValues
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.components import match_components
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.plan import BundlePlan
from monai_unet_app.planning.write import write_plan

run = pytest.fixture(shell)


def planned(data: Path, **said: Any) -> BundlePlan:
    config = PlanConfig(data, **{"time_s": 1e-3, "objects": "nucleus", **said})
    return plan_bundle(config, lambda network, channels, outputs: network.voxels * network.filters[0] / 16e6)


def touching_balls(folder: Path, count: int = 5) -> Path:
    """Oblique volumes with three balls, two of which touch; labels number them, with gaps."""
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        affine, turn = np.eye(4), Rotation.from_euler("xyz", [8, -5, 3 + number], degrees=True).as_matrix()
        affine[:3] = np.column_stack([turn @ np.diag([1.1, 1.0, 2.0]), [-10, 20, 5]])
        place = np.stack(np.meshgrid(*map(np.arange, (34 + number, 28, 16)), indexing="ij"), axis=-1)
        label = np.zeros(place.shape[:3], np.uint16)
        for value, centre in ((3, (9, 10, 7)), (7, (19, 12, 8)), (300, (28, 22, 8))):
            inside = np.linalg.norm((place - centre) / (5.4, 5.4, 3.2), axis=-1) < 1
            label[inside & (label == 0)] = value
        image = np.random.default_rng(number).normal(100, 8, label.shape) + 90 * (label > 0)
        nibabel.save(
            nibabel.Nifti1Image(image.astype(np.float32), affine), folder / f"imagesTr/case{number}_0000.nii.gz"
        )
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / f"labelsTr/case{number}.nii.gz")
    return folder


def parser_of(root: Path, *names: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(root / f"configs/{name}.yaml") for name in names])
    parser["bundle_root"] = str(root)
    return parser


def two_discs() -> np.ndarray:
    """Shape (40, 60): two discs of 9 pixels radius that touch, and a small one alone."""
    y, x = np.mgrid[:40, :60]
    label = np.zeros((40, 60), int)
    for number, (row, column, radius) in enumerate(((18, 16, 9), (18, 33, 9), (33, 52, 3)), 1):
        label[((y - row) ** 2 + (x - column) ** 2 < radius**2) & (label == 0)] = number
    return label


def test_middles_and_masks_give_the_objects_back_in_the_plain_configs_of_the_bundle(tmp_path: Path) -> None:
    write_plan(planned(numbered_discs(tmp_path / "data")), tmp_path / "plan")
    parser, truth = parser_of(tmp_path / "plan", "inference"), two_discs()
    masks = parser.get_parsed_content("masks_of")(MetaTensor(torch.from_numpy(truth)[None].float()))
    assert np.array_equal(masks[0], truth > 0)
    depth = [ndimage.distance_transform_edt(truth == number) for number in (1, 2, 3)]
    for number in (
        1,
        2,
        3,
    ):  # half as deep as the deepest, by an own transform of each object, but for the step at its edge
        middle = np.asarray(masks[1] > 0) & (truth == number)
        own = depth[number - 1]
        assert (own[middle] >= 0.5 * own.max() - 1).all()
        assert middle[own >= 0.5 * own.max() + 1].all()
    assert ndimage.label(masks[0])[1] == 2
    data: Mapping[str, Any] = {"pred": 0.8 * masks + 0.1}
    for name in ("decide", "tidy"):
        for transform in parser.get_parsed_content(name):
            data = transform(data)
    assert torch.equal(data["prob"], 0.8 * masks[:1] + 0.1)
    found = np.asarray(data["pred"][0]).astype(int)
    scores = match_components(truth, found)
    assert (scores.truth, scores.predicted, scores.found) == (3, 3, 3)
    assert scores.iou_sum > 2.9
    small = torch.from_numpy(truth == 3)[None]
    for middles, count in ((masks[1:] * ~small, 2), (0 * masks[1:], 0)):  # what has no middle is no object
        data = {"pred": torch.cat([masks[:1], middles])}
        for name in ("decide", "tidy"):
            for transform in parser.get_parsed_content(name):
                data = transform(data)
        assert int(data["pred"].max()) == count


def test_numbered_objects_are_matched_as_they_are_numbered() -> None:
    truth = two_discs() * 100  # numbers with gaps
    scores = match_components(truth, watershed(-ndimage.distance_transform_edt(truth > 0), truth, mask=truth > 0))
    assert (scores.truth, scores.predicted, scores.panoptic_quality) == (3, 3, pytest.approx(1, abs=0.05))
    joined = match_components(truth, truth > 0)
    assert (joined.truth, joined.predicted, joined.found) == (3, 2, 1)  # half of a pair is no match at an IoU above 0.5
    assert match_components(truth > 0, truth > 0).truth == 2


@pytest.mark.parametrize("array", [np.full((3, 3, 3), 70000), np.full((3, 3, 3), -1)])
@pytest.mark.parametrize("values", ["instances", "objects"])
def test_numbers_that_16_bits_do_not_hold_are_refused(array: np.ndarray, values: str) -> None:
    with pytest.raises(InputRefusedError, match=r"up to 65535 are needed|from 0 are needed"):
        FileValues.parse(values).numbered(array, "label.nii.gz")


def test_objects_and_ignored_voxels_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="objects need labels of every voxel"):
        planned(numbered_discs(tmp_path / "data"), ignore=255)


def test_numbered_labels_go_to_segments_and_to_nnunet_by_their_bundle(tmp_path: Path, run: Run) -> None:
    data = touching_balls(tmp_path / "volumes")
    write_plan(planned(data, modality="MR"), tmp_path / "plan")
    coded = tmp_path / "plan/configs/segments.json"
    kidney = {"CodeValue": "64033007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Kidney"}
    organ = {"CodeValue": "91723000", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Anatomical Structure"}
    told = json.loads(coded.read_text())
    told["segmentAttributes"][0][0] |= {
        "SegmentedPropertyTypeCodeSequence": kidney,
        "SegmentedPropertyCategoryCodeSequence": organ,
    }
    coded.write_text(json.dumps(told))
    words = ["--images", data / "imagesTr", "--labels", data / "labelsTr", "--bundle", tmp_path / "plan"]
    answer = run("dicomize", *words, "--output", tmp_path / "dicom")
    assert answer.code == 0, answer.err
    seg = sorted((tmp_path / "dicom").glob("*/seg.dcm"))[0]
    assert [item.SegmentLabel for item in pydicom.dcmread(seg).SegmentSequence] == [
        "Nucleus 1",
        "Nucleus 2",
        "Nucleus 3",
    ]
    output = tmp_path / "Dataset101_Balls"
    answer = run("convert", data, "--to", "nnunet", "--bundle", tmp_path / "plan", "--output", output)
    assert answer.code == 0, answer.err
    written = np.asarray(nibabel.load(output / "labelsTr/case0.nii.gz").dataobj)
    assert np.array_equal(written, np.asarray(nibabel.load(data / "labelsTr/case0.nii.gz").dataobj) > 0)


@pytest.mark.slow
def test_from_numbered_balls_to_segments_and_back_to_training(tmp_path: Path, run: Run) -> None:
    data, plan, made = touching_balls(tmp_path / "volumes"), tmp_path / "plan", tmp_path / "made"
    write_plan(planned(data, modality="MR"), plan)
    told = ["--epochs", 30, "--learning-rate", 0.01, "--folds", 0, "--tracking", "none", "--precision", "f32"]
    answer = run("train", "--bundle", plan, "--data", data, "--output", made, *told)
    assert answer.code == 0, answer.err
    answer = run("calibrate", "--bundle", made, "--data", data, "--folds", "--unchecked")
    assert answer.code == 0, answer.err
    answer = run("evaluate", "--bundle", made, "--data", data, "--folds", "--output", tmp_path / "report")
    assert answer.code == 0, answer.err
    rows = (tmp_path / "report/cases.csv").read_text()
    assert "components_truth" in rows.splitlines()[0]
    (made / "models/model.pt").write_bytes((made / "folds/0/models/model.pt").read_bytes())
    words = [
        "--output",
        tmp_path / "out",
        "--format",
        "nifti,seg,sr,rtstruct",
        "--dicomize",
        "--uncoded",
        "--deliver-rejected",
    ]
    answer = run("predict", "--bundle", made, "--input", data / "imagesTr", *words)
    assert answer.code == 0, answer.err

    record = json.loads((tmp_path / "out/case0_0000_result.json").read_text())
    (row,) = record["structures"]
    numbers = np.asarray(nibabel.load(tmp_path / "out/case0_0000_seg.nii.gz").dataobj)
    assert numbers.ndim == 3
    assert row["objects"] == len(np.unique(numbers)) - 1 == numbers.max() > 1
    seg = pydicom.dcmread(tmp_path / "out/case0_0000_seg.dcm")
    assert [item.SegmentLabel for item in seg.SegmentSequence] == [f"Nucleus {n}" for n in range(1, row["objects"] + 1)]
    assert len({item.TrackingUID for item in seg.SegmentSequence}) == row["objects"]
    series = read_series(tmp_path / "out/case0_0000_dicom")
    stored = read_seg(tmp_path / "out/case0_0000_seg.dcm", series)
    counts = np.bincount(stored.array.ravel().astype(int))[1:]
    assert sorted(counts) == sorted(np.bincount(numbers.ravel().astype(int))[1:])
    report = pydicom.dcmread(tmp_path / "out/case0_0000_sr.dcm").to_json()
    assert f"Nucleus: {row['objects']} object(s)" in report

    page = run("review", "--result", tmp_path / "out/case0_0000_result.json", "--input", data / "imagesTr/case0_0000.nii.gz",
               "--output", tmp_path / "review")  # fmt: skip
    assert page.code == 0, page.err
    assert f"<td>{row['objects']}" in (tmp_path / "review/index.html").read_text()
    back = tmp_path / "back"
    for number in range(5):
        (back / f"case{number}").mkdir(parents=True)
        (tmp_path / f"out/case{number}_0000_dicom").rename(back / f"case{number}/series")
        (tmp_path / f"out/case{number}_0000_seg.dcm").rename(back / f"case{number}/seg.dcm")
    again = planned(back, modality="MR")
    assert again.fingerprint.cases[0].class_voxels[1] == row["voxels"]
    write_plan(again, tmp_path / "again")
    answer = run(
        "train", "--bundle", tmp_path / "again", "--data", back, "--output", tmp_path / "b", "--folds", 0, "--epochs", 1
    )
    assert answer.code == 0, answer.err


@pytest.mark.slow
def test_a_picture_of_counted_discs_has_its_numbers_in_every_file(tmp_path: Path, run: Run) -> None:
    data = numbered_discs(tmp_path / "data", discs=12)
    write_plan(planned(data), tmp_path / "plan")
    told = ["--epochs", 12, "--learning-rate", 0.01, "--folds", 0, "--tracking", "none", "--precision", "f32"]
    answer = run("train", "--bundle", tmp_path / "plan", "--data", data, "--output", tmp_path / "made", *told)
    assert answer.code == 0, answer.err
    made = tmp_path / "made"
    (made / "models/model.pt").write_bytes((made / "folds/0/models/model.pt").read_bytes())
    words = ["--output", tmp_path / "out", "--format", "nifti,png"]
    answer = run("predict", "--bundle", made, "--input", data / "images", *words)
    assert answer.code == 0, answer.err
    (row,) = json.loads((tmp_path / "out/p0_result.json").read_text())["structures"]
    picture = np.asarray(Image.open(tmp_path / "out/p0_seg.png"))
    assert len(np.unique(picture)) - 1 == row["objects"] > 1
    bundle = load_bundle(made)
    bundle_run = parser_of(made, "inference")
    assert bundle_run.get_parsed_content("outputs") == bundle.outputs.name == "counted"
