"""Structures that share voxels, from a folder to a SEG and back to training, with no file edited by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import yaml
from shell import Run, shell
from small_data import plan_bundle, tilted_volumes
from test_channels import one_file_each, two_channels

from dicom_io.read import read_series
from dicom_io.seg import read_segments
from monai_unet_app.bundle import load_bundle
from monai_unet_app.cli.common import regions
from monai_unet_app.errors import InputRefusedError, UsageError
from monai_unet_app.planning.decisions import PlanConfig
from monai_unet_app.planning.plan import BundlePlan
from monai_unet_app.planning.write import write_plan

run = pytest.fixture(shell)
REGIONS = {"liver": [2, 5], "spleen": 5}


def region_data(folder: Path, count: int = 5) -> Path:
    data = tilted_volumes(folder, count)
    document = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, **REGIONS}, "regions_class_order": [2, 5]}
    (data / "dataset.json").write_text(json.dumps(document))
    return data


def planned(data: Path, **said: Any) -> BundlePlan:
    config = PlanConfig(data, **{"time_s": 20.0, "modality": "MR", **said})
    return plan_bundle(config, lambda network, channels, outputs: network.voxels * network.filters[0] / 16e6)


def mask_list(data: Path, values: dict[str, tuple[int, ...]]) -> Path:
    """The list of the cases of a folder, with a mask a structure."""
    rows = []
    for file in sorted((data / "labelsTr").iterdir()):
        label, name = nibabel.load(file), file.name.removesuffix(".nii.gz")
        for structure, held in values.items():
            mask = np.isin(np.asarray(label.dataobj), held).astype(np.uint8)
            nibabel.save(nibabel.Nifti1Image(mask, label.affine), data / f"{structure}_{name}.nii.gz")
        masks = {structure: f"{structure}_{name}.nii.gz" for structure in values}
        rows.append({"id": name, "image": f"imagesTr/{name}_0000.nii.gz", "label": masks})
    (data / "list.json").write_text(json.dumps(rows))
    return data / "list.json"


def test_regions_and_masks_plan_the_same_bundle_and_masks_apart_one_of_classes(tmp_path: Path) -> None:
    data = region_data(tmp_path / "volumes")
    by_regions, said = (
        planned(data),
        planned(tilted_volumes(tmp_path / "more"), regions={"liver": (2, 5), "spleen": (5,)}),
    )
    by_masks = planned(mask_list(data, {"liver": (2, 5), "spleen": (5,)}))
    apart = planned(mask_list(data, {"liver": (2,), "spleen": (5,)}))
    assert by_regions.values["label_values"] == said.values["label_values"] == [[2, 5], [5]]
    assert by_masks.values["label_values"] == {"masks": 2}
    assert apart.values["label_values"] is None
    assert [one.values["outputs"] for one in (by_regions, by_masks, apart)] == [
        "overlapping",
        "overlapping",
        "exclusive",
    ]
    for name in ("labels", "ratios", "window", "network"):
        assert by_regions.values.get(name) == by_masks.values.get(name)
    assert by_regions.fingerprint.cases[0].class_voxels == by_masks.fingerprint.cases[0].class_voxels


def test_flags_name_regions() -> None:
    assert regions(["1=a", "2=b"]) == {}
    assert regions(["1+2+3=whole tumour", "3=core"]) == {"whole tumour": (1, 2, 3), "core": (3,)}
    with pytest.raises(UsageError, match="a label value above 0"):
        regions(["1+x=whole"])


def test_a_value_of_no_region_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match=r"the value\(s\) \[2\]; the regions"):
        planned(tilted_volumes(tmp_path / "volumes"), regions={"a": (5,), "b": (5, 7)})


@pytest.mark.slow
def test_from_regions_to_a_seg_and_back_to_training(tmp_path: Path, run: Run) -> None:
    data = region_data(tmp_path / "volumes")
    plan, made = tmp_path / "plan", tmp_path / "made"
    write_plan(planned(data, time_s=1e-3), plan)
    told = ["--epochs", 4, "--learning-rate", 0.01, "--folds", 0, "--tracking", "none", "--precision", "f32"]
    assert run("train", "--bundle", plan, "--data", data, "--output", made, *told).code == 0
    assert run("calibrate", "--bundle", made, "--data", data, "--folds", "--unchecked").code == 0
    answer = run("evaluate", "--bundle", made, "--data", data, "--folds", "--output", tmp_path / "report")
    assert answer.code == 0, answer.err
    shutil.copy(made / "folds/0/models/model.pt", made / "models/model.pt")
    flags = ["--output", tmp_path / "out", "--format", "nifti,seg,sr,rtstruct", "--dicomize", "--deliver-rejected"]
    assert run("predict", "--bundle", made, "--input", data / "imagesTr", *flags).code == 0

    back = tmp_path / "back"
    for number in range(5):
        shutil.copytree(tmp_path / f"out/case{number}_0000_dicom", back / f"case{number}")
        shutil.copy(tmp_path / f"out/case{number}_0000_seg.dcm", back / f"case{number}/seg.dcm")
    seg = back / "case0/seg.dcm"
    assert pydicom.dcmread(seg).SegmentsOverlap == "YES"
    series = read_series([file for file in (back / "case0").rglob("*.dcm") if file != seg])
    stored = read_segments(seg, series).array
    found = np.asarray(nibabel.load(tmp_path / "out/case0_0000_seg.nii.gz").dataobj)
    assert stored.sum(axis=(0, 1, 2)).tolist() == found.sum(axis=(0, 1, 2)).tolist()
    again = tmp_path / "again"
    write_plan(planned(back, time_s=1e-3), again)
    inference = yaml.safe_load((again / "configs/inference.yaml").read_text())
    assert (inference["label_values"], inference["outputs"]) == ({"masks": 2}, "overlapping")
    assert load_bundle(again).structure_names == ("Liver", "Spleen")
    answer = run("train", "--bundle", again, "--data", back, "--output", tmp_path / "b", "--folds", 0, "--epochs", 1)
    assert answer.code == 0, answer.err
    answer = run("convert", back, "--to", "nnunet", "--output", tmp_path / "Dataset101_Back")
    assert answer.code == 0, answer.err
    numbers = np.asarray(nibabel.load(tmp_path / "Dataset101_Back/labelsTr/case0.nii.gz").dataobj)
    labels = json.loads((tmp_path / "Dataset101_Back/dataset.json").read_text())["labels"]
    for channel, name in enumerate(("Liver", "Spleen")):
        assert int(np.isin(numbers, labels[name]).sum()) == int(stored[..., channel].sum())


def test_regions_are_not_trained_with_a_softmax(tmp_path: Path, run: Run) -> None:
    data = region_data(tmp_path / "data")
    write_plan(planned(data), tmp_path / "made")
    config = tmp_path / "made/configs/inference.yaml"
    text = config.read_text()
    config.write_text(
        text.replace("outputs: overlapping", "outputs: exclusive").replace("labels: [", 'labels: ["background", ')
    )
    answer = run("train", "--bundle", tmp_path / "made", "--data", data, "--output", tmp_path / "out", "--folds", 0)
    assert (answer.code, "may share voxels" in answer.err, (tmp_path / "out").exists()) == (3, True, False), answer.err


def test_inspect_counts_masks_and_takes_the_channels_of_a_bundle(tmp_path: Path, run: Run) -> None:
    masks = mask_list(region_data(tmp_path / "volumes"), {"liver": (2, 5), "spleen": (5,)})
    answer = run("inspect", masks, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["cases"][0]["class_voxels"].keys() == {"0", "1", "2"}
    data = one_file_each(two_channels(tmp_path / "channels"))
    write_plan(planned(data), tmp_path / "bundle")
    for folder in (data, data / "imagesTr"):
        answer = run("inspect", folder, "--bundle", tmp_path / "bundle", "--json")
        assert answer.code == 0, answer.err
        assert [case["id"] for case in json.loads(answer.out)["cases"]] == [f"case{n}" for n in range(5)]
    (data / "imagesTr/case2_0001.nii.gz").unlink()
    answer = run("inspect", data / "imagesTr", "--bundle", tmp_path / "bundle")
    assert (answer.code, "case2 has case2_0000" in answer.err) == (3, True)
