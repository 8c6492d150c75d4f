"""Voxels without a class: from a folder to a bundle, to a SEG and back, and nothing counts them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from shell import Run, shell
from small_data import plan_bundle, tilted_volumes
from test_overlap_bundles import REGIONS, mask_list

from monai_unet_app.bundle import load_bundle
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.cases import data_row
from monai_unet_app.data.inspect import check_cases
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import BundleError, InputRefusedError
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.plan import BundlePlan
from monai_unet_app.planning.write import write_plan
from monai_unet_app.training import ValidationStep, update

run = pytest.fixture(shell)
NAMES = {"background": 0, "liver": 2, "spleen": 5}


def half_labelled(folder: Path, ignored: int = 7, labels: dict[str, Any] | None = None) -> Path:
    """Volumes with two balls, and a third of the labels of four of five without a class."""
    data = tilted_volumes(folder)
    for number, file in enumerate(sorted((data / "labelsTr").iterdir())):
        label = nibabel.load(file)
        array = np.asarray(label.dataobj).copy()
        if number:
            array[array.shape[0] * 2 // 3 :] = ignored
        nibabel.save(nibabel.Nifti1Image(array, label.affine), file)
    document = {"channel_names": {"0": "MRI"}, "labels": {**(labels or NAMES), "ignore": ignored}}
    (data / "dataset.json").write_text(json.dumps(document))
    return data


def planned(data: Path, **said: Any) -> BundlePlan:
    config = PlanConfig(data, **{"time_s": 1e-3, "modality": "MR", **said})
    return plan_bundle(config, lambda network, channels, outputs: network.voxels * network.filters[0] / 16e6)


def test_the_plan_of_half_labelled_cases_is_that_of_their_classes(tmp_path: Path) -> None:
    data = half_labelled(tmp_path / "volumes")
    plan = planned(data)
    assert plan.structures == {2: "liver", 5: "spleen"}
    assert (plan.values["ignore_label"], plan.values["label_values"]) == (7, [2, 5])
    for case in plan.fingerprint.cases:
        assert set(case.class_voxels) <= {0, 2, 5}
        assert sum(case.class_voxels.values()) + case.ignored == np.prod(case.shape)
    assert [bool(case.ignored) for case in plan.fingerprint.cases] == [False, True, True, True, True]
    (data / "dataset.json").unlink()
    said = planned(data, ignore=7, structures={2: "liver", 5: "spleen"})
    assert said.values == plan.values
    with pytest.raises(InputRefusedError, match=r"\[7\]|value 7"):
        planned(data, structures={2: "liver", 5: "spleen"})


@pytest.mark.parametrize(
    ("ignored", "said", "reason"),
    [
        (7, {"ignore": 5}, "a value from 1 to 255 that no structure has"),
        (7, {"ignore": 300}, "a value from 1 to 255 that no structure has"),
        (1, {"ignore": 1}, "structures get the numbers 1 to 2; a larger value"),
    ],
)
def test_a_value_that_is_a_class_as_well_cannot_be_ignored(
    ignored: int, said: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    data = half_labelled(tmp_path / "volumes", ignored)
    (data / "dataset.json").unlink()
    with pytest.raises(InputRefusedError, match=reason):
        planned(data, structures={2: "liver", 5: "spleen"}, **said)


def test_a_bundle_whose_ignored_value_is_a_class_is_refused(tmp_path: Path) -> None:
    write_plan(planned(half_labelled(tmp_path / "volumes")), tmp_path / "plan")
    config = tmp_path / "plan/configs/inference.yaml"
    text = config.read_text()
    for value, reason in ((5, "label_values gives to a structure as well"), (1, "the number of a structure as well")):
        config.write_text(text.replace("ignore_label: 7", f"ignore_label: {value}"))
        with pytest.raises(BundleError, match=reason):
            _ = load_bundle(tmp_path / "plan").file_values


@pytest.mark.parametrize("labels", [NAMES, {"background": 0, **REGIONS}])
def test_no_window_is_centred_on_a_voxel_without_a_class(labels: dict[str, Any], tmp_path: Path) -> None:
    data = half_labelled(tmp_path / "volumes", labels=labels)
    write_plan(planned(data), tmp_path / "plan")
    case = find_data(data)[1]
    assert case.label is not None
    array = read_labels(case.label, read_volume(case.image), load_bundle(tmp_path / "plan").file_values).array
    where = np.moveaxis(array.reshape(*array.shape[:3], -1), 3, 0)
    assert (where == 7).any()
    parser = ConfigParser()
    parser.read_config([str(tmp_path / f"plan/configs/{name}.yaml") for name in ("inference", "train")])
    item: Any = {"image": torch.zeros(1, *where.shape[1:]), "label": torch.from_numpy(where.copy())}
    for transform in parser.get_parsed_content("prepare"):
        item = transform(item)
    places = [np.asarray(one) for key in item if key.endswith("cls_indices") for one in item[key]]
    assert len(places) == 3
    assert all(len(one) for one in places)
    assert all(not (where[0].ravel()[one] == 7).any() for one in places)


@pytest.mark.parametrize("channels", [(1, 3), (2, 2)])
def test_a_validation_sees_background_where_there_is_no_class(channels: tuple[int, int]) -> None:
    label = torch.ones(1, channels[0], 4, 4, 4)
    label[..., 2:] = 9
    output = {"pred": torch.randn(1, channels[1], 4, 4, 4), "label": label}
    before = output["pred"].clone()
    update._make_background(output, label == 9)
    assert torch.equal(output["pred"][..., :2], before[..., :2])
    assert (output["label"].unique().tolist(), int(output["label"][..., 2:].sum())) == ([0.0, 1.0], 0)
    if channels[0] == 1:
        assert not output["pred"].argmax(1)[..., 2:].any()
    else:
        assert (output["pred"][..., 2:] < -100).all()
    assert ValidationStep().ignored is None


@pytest.mark.slow
@pytest.mark.parametrize("labels", [NAMES, {"background": 0, **REGIONS}])
def test_from_half_labelled_cases_to_a_seg_and_back_to_training(
    labels: dict[str, Any], tmp_path: Path, run: Run
) -> None:
    data = half_labelled(tmp_path / "volumes", labels=labels)
    plan, made = tmp_path / "plan", tmp_path / "made"
    write_plan(planned(data), plan)
    told = ["--epochs", 4, "--learning-rate", 0.01, "--folds", 0, "--tracking", "none", "--precision", "f32"]
    answer = run("train", "--bundle", plan, "--data", data, "--output", made, *told)
    assert answer.code == 0, answer.err
    answer = run("calibrate", "--bundle", made, "--data", data, "--folds", "--unchecked")
    assert answer.code == 0, answer.err
    answer = run("evaluate", "--bundle", made, "--data", data, "--folds", "--output", tmp_path / "report")
    assert answer.code == 0, answer.err
    shutil.copy(made / "folds/0/models/model.pt", made / "models/model.pt")

    back = tmp_path / "back"
    words = ["--images", data / "imagesTr", "--labels", data / "labelsTr", "--bundle", made, "--output", back]
    answer = run("dicomize", *words)
    assert answer.code == 0, answer.err
    seg = pydicom.dcmread(sorted(back.glob("*/seg.dcm"))[1])
    assert seg.SegmentSequence[-1].SegmentLabel == "Not labelled"
    again = planned(back)
    assert again.values["ignore_label"] == 255
    assert [case.ignored for case in again.fingerprint.cases] == [
        case.ignored for case in planned(data).fingerprint.cases
    ]
    assert list(again.structures.values()) == ["Liver", "Spleen"]
    write_plan(again, tmp_path / "again")
    answer = run(
        "train", "--bundle", tmp_path / "again", "--data", back, "--output", tmp_path / "b", "--folds", 0, "--epochs", 1
    )
    assert answer.code == 0, answer.err
    answer = run("convert", back, "--to", "nnunet", "--output", tmp_path / "Dataset101_Back")
    assert answer.code == 0, answer.err
    document = json.loads((tmp_path / "Dataset101_Back/dataset.json").read_text())
    written = np.asarray(nibabel.load(sorted((tmp_path / "Dataset101_Back/labelsTr").iterdir())[1]).dataobj)
    assert document["labels"]["ignore"] == written.max()
    assert int((written == written.max()).sum()) == again.fingerprint.cases[1].ignored
    third = planned(tmp_path / "Dataset101_Back")
    assert [case.ignored for case in third.fingerprint.cases] == [case.ignored for case in again.fingerprint.cases]


def test_masks_of_files_share_the_ignored_value(tmp_path: Path) -> None:
    data = half_labelled(tmp_path / "volumes")
    listed = mask_list(data, {"liver": (2, 5), "spleen": (5,)})
    for file in data.glob("liver_*.nii.gz"):
        mask = nibabel.load(file)
        array = np.asarray(mask.dataobj).copy()
        array[:3] = 9
        nibabel.save(nibabel.Nifti1Image(array, mask.affine), file)
    (data / "dataset.json").unlink()
    plan = planned(listed, ignore=9)
    assert plan.values["label_values"] == {"masks": 2}
    assert {case.ignored for case in plan.fingerprint.cases} == {3 * int(np.prod(plan.fingerprint.cases[0].shape[1:]))}
    write_plan(plan, tmp_path / "plan")
    rows = [data_row(case, case.id) for case in find_data(listed)]
    assert check_cases(rows, load_bundle(tmp_path / "plan")).refused == ()
    assert yaml.safe_load((tmp_path / "plan/configs/train.yaml").read_text())["loss"]["ignored"] == "@ignore_label"
