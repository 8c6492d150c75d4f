"""Labels whose structures share voxels: regions of label values, a mask a file, masks in one file, segments of a SEG."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import source_phantoms
from phantoms import oblique_affine
from PIL import Image
from result_phantoms import RESULT

from dicom_io.seg import write_seg
from dicom_io.volume import LPS_FROM_RAS, Volume
from monai_unet_app.data.case_files import find_data, find_images
from monai_unet_app.data.cases import data_row
from monai_unet_app.data.datalist import read_dataset_json
from monai_unet_app.data.inspect import Accepted, inspect_cases
from monai_unet_app.data.labels import FileValues, as_numbers, check_values, mask_count, masks_of, read_labels
from monai_unet_app.data.nnunet_folder import NnunetConfig, write_nnunet_folder
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import BundleError, InputRefusedError

REGIONS = FileValues.parse([[1, 2, 3], [2, 3], 3])
"""Whole, core and enhancing tumour, as BraTS has them."""
SHAPE = (11, 9, 7)


def nested() -> np.ndarray:
    """Values 1 to 3, each a box of its own size near a corner."""
    array = np.zeros(SHAPE, np.uint8)
    array[1:8, 2:7, 1:5] = 1
    array[2:6, 3:6, 1:4] = 2
    array[3:5, 4:6, 2:3] = 3
    return array


def saved(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, LPS_FROM_RAS @ oblique_affine()), path)
    return path


def image_file(path: Path) -> Path:
    return saved(path, np.random.default_rng(len(path.name)).normal(100, 20, SHAPE).astype(np.float32))


def masks_of_nested() -> np.ndarray:
    """Shape (I, J, K, 3)."""
    return np.stack([np.isin(nested(), values) for values in ((1, 2, 3), (2, 3), (3,))], axis=-1).astype(np.uint8)


def test_regions_are_masks_of_their_values(tmp_path: Path) -> None:
    image = read_volume(image_file(tmp_path / "image.nii.gz"))
    labels = read_labels(saved(tmp_path / "label.nii.gz", nested()), image, REGIONS)
    assert np.array_equal(labels.array, masks_of_nested())
    assert np.array_equal(as_numbers(labels).array, nested())
    check_values(labels, range(4), "label")
    with pytest.raises(InputRefusedError, match=r"holds 3 mask\(s\); one for each of 2 structures"):
        check_values(labels, range(3), "label")
    with pytest.raises(
        InputRefusedError, match=r"the value\(s\) \[4\]; the regions .* are \[\[1, 2, 3\], \[2, 3\], \[3\]\]"
    ):
        read_labels(saved(tmp_path / "more.nii.gz", nested() + (nested() == 3)), image, REGIONS)
    ignoring = replace(REGIONS, ignored=255)
    array = nested()
    array[0, 0, 0] = 255
    labels = read_labels(saved(tmp_path / "ignored.nii.gz", array), image, ignoring)
    assert (labels.array[0, 0, 0] == 255).all()
    assert np.array_equal(labels.array[1:], masks_of_nested()[1:])


def test_channels_that_hold_every_voxel_once_are_classes_with_the_background_first(tmp_path: Path) -> None:
    """One-hot as torch writes it; with as many names as channels they are structures that fill the image."""
    numbers = nested()
    one_hot = np.stack([numbers == value for value in range(4)], axis=-1).astype(np.uint8)
    image = read_volume(image_file(tmp_path / "images/a.nii.gz"))
    path = saved(tmp_path / "labels/a.nii.gz", one_hot)
    cases = find_data(tmp_path)
    assert (masks_of(cases), masks_of(cases, 3), masks_of(cases, 4)) == (3, 3, 4)
    assert np.array_equal(as_numbers(read_labels(path, image, FileValues(masks=3))).array, numbers)
    assert np.array_equal(read_labels(path, image).array, numbers)
    assert np.array_equal(read_labels(path, image, FileValues().for_structures(3)).array, numbers)
    assert np.array_equal(read_labels(path, image, FileValues().for_structures(4)).array, numbers + 1)
    assert read_labels(path, image, FileValues(masks=4)).array.shape == (*SHAPE, 4)
    one_hot[1, 1, 1] = 255
    cases[0].label.unlink()
    saved(path, one_hot)
    assert (masks_of(cases), masks_of(cases, ignored=255)) == (4, 3)
    one_hot[2, 2, 2] = 0  # not every voxel has a class: these are masks, without a background
    cases[0].label.unlink()
    saved(path, one_hot)
    assert masks_of(cases) == 4
    two = saved(tmp_path / "two.nii.gz", np.stack([numbers == 0, numbers > 0], axis=-1).astype(np.uint8))
    assert np.array_equal(read_labels(two, image, FileValues().for_structures(1)).array, numbers > 0)


@pytest.mark.parametrize("told", [[[]], [[1, 2], [2, 1]], [[1, -1]], {"masks": 0}, {"mask": 2}, [["a"]]])
def test_other_label_values_are_refused(told: object) -> None:
    with pytest.raises(BundleError, match="label_values is"):
        FileValues.parse(told)


def test_masks_in_files_in_channels_and_in_segments_are_the_same(tmp_path: Path) -> None:
    series = source_phantoms.oblique_mr(tmp_path / "series")
    masks = np.zeros((*series.shape, 2), np.uint8)
    masks[1:5, 2:6, 1:4, 0] = masks[3:6, 4:7, 2:4, 1] = 1
    seg = write_seg(series.with_array(masks), series, tmp_path / "seg.dcm", RESULT)
    two = FileValues.parse({"masks": 2})
    from_seg = read_labels(seg, series, two)
    assert np.array_equal(from_seg.array, masks)

    def nifti(name: str, array: np.ndarray) -> Path:
        nibabel.save(nibabel.Nifti1Image(array, series.affine_ras), tmp_path / name)
        return tmp_path / name

    files = [nifti(f"{n}.nii.gz", masks[..., n]) for n in range(2)]
    assert np.array_equal(read_labels(files, series, two).array, masks)
    assert np.array_equal(read_labels(nifti("both.nii.gz", masks), series, two).array, masks)
    assert [mask_count(path) for path in (seg, tmp_path / "both.nii.gz", files[0])] == [2, 2, 1]
    with pytest.raises(
        InputRefusedError, match=r"its masks share \d+ voxel\(s\); a bundle whose outputs are exclusive"
    ):
        read_labels(files, series)
    with pytest.raises(InputRefusedError, match=r"a mask of 0 and 1 for each structure"):
        read_labels(nifti("three.nii.gz", masks * 3), series, two)
    with pytest.raises(InputRefusedError, match="it has a segment 2; the bundle has 1 structures"):
        read_labels(seg, series, FileValues(masks=1))


def test_masks_that_share_no_voxel_are_numbers_for_a_bundle_of_exclusive_classes(tmp_path: Path) -> None:
    image = read_volume(image_file(tmp_path / "image.nii.gz"))
    files = [saved(tmp_path / f"{value}.nii.gz", (nested() == value).astype(np.uint8)) for value in (1, 2, 3)]
    assert np.array_equal(read_labels(files, image).array, nested())
    four = saved(
        tmp_path / "four.nii.gz", np.stack([nested() == value for value in (1, 2, 3)], axis=-1).astype(np.uint8)
    )
    assert np.array_equal(read_labels(four, image).array, nested())


def listed(folder: Path, *, labels: bool = True) -> Path:
    """A list of three cases with a mask a structure."""
    rows = []
    for case in range(3):
        image_file(folder / f"image_{'x' * case}.nii.gz")
        names = ("whole", "core", "enhancing")
        for name, mask in zip(names, np.moveaxis(masks_of_nested(), 3, 0), strict=True):
            saved(folder / f"{name}_{case}.nii.gz", mask)
        masks = {name: f"{name}_{case}.nii.gz" for name in names}
        rows.append({"id": f"case{case}", "image": f"image_{'x' * case}.nii.gz"} | ({"label": masks} if labels else {}))
    (folder / "list.json").write_text(json.dumps(rows))
    return folder / "list.json"


def test_a_list_names_the_masks_and_all_cases_must_name_the_same(tmp_path: Path) -> None:
    cases = find_images(listed(tmp_path))
    assert [file.name for file in cases[1].label_files] == ["whole_1.nii.gz", "core_1.nii.gz", "enhancing_1.nii.gz"]
    assert cases[1].mask_names == ("whole", "core", "enhancing")
    assert data_row(cases[1], "anna")["label"] == [str(file) for file in cases[1].label_files]
    assert masks_of(cases) == 3
    (found,) = inspect_cases(cases[:1], Accepted(values=FileValues(masks=3))).cases
    assert found.overlaps
    counts = masks_of_nested().sum(axis=(0, 1, 2)).tolist()
    assert found.class_voxels == {0: int((nested() == 0).sum()), **dict(enumerate(counts, 1))}
    rows = json.loads((tmp_path / "list.json").read_text())
    rows[1]["label"] = {name: rows[1]["label"][name] for name in ("core", "whole", "enhancing")}
    (tmp_path / "list.json").write_text(json.dumps(rows))
    with pytest.raises(
        InputRefusedError, match=r"whole, core, enhancing \(case\d\) and core, whole, enhancing \(case1\)"
    ):
        find_images(tmp_path / "list.json")


def test_regions_of_a_dataset_json_are_known_and_written_again(tmp_path: Path) -> None:
    regions = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0, **regions}})
    )
    facts = read_dataset_json(tmp_path)
    assert facts is not None
    assert (facts.names, facts.regions) == ({}, {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)})
    cases = find_images(listed(tmp_path / "data"))
    told = dict(enumerate(cases[0].mask_names, 1))
    written = write_nnunet_folder(
        cases, NnunetConfig(tmp_path / "Dataset101_T", told=told, values=FileValues(masks=3), modality="CT")
    )
    assert written.document["labels"] == {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    assert written.document["regions_class_order"] == [1, 2, 3]
    again = read_dataset_json(tmp_path / "Dataset101_T")
    assert again is not None
    assert again.regions == facts.regions
    for case in range(3):
        labels = np.asarray(nibabel.load(tmp_path / f"Dataset101_T/labelsTr/case{case}.nii.gz").dataobj)
        assert np.array_equal(labels, nested())


def test_regions_that_share_no_voxel_keep_their_values_together(tmp_path: Path) -> None:
    for folder, name, array in (("imagesTr", "a_0000", nested() * 10.0 + 1), ("labelsTr", "a", nested())):
        saved(tmp_path / f"set/{folder}/{name}.nii.gz", array)
    values = FileValues(regions=((1,), (2, 3)))
    config = NnunetConfig(tmp_path / "Dataset101_T", told={1: "rim", 2: "core"}, values=values, modality="CT")
    document = write_nnunet_folder(find_data(tmp_path / "set"), config).document
    labels = np.asarray(nibabel.load(tmp_path / "Dataset101_T/labelsTr/a.nii.gz").dataobj)
    assert np.array_equal(np.isin(labels, document["labels"]["rim"]), nested() == 1)
    assert np.array_equal(np.isin(labels, document["labels"]["core"]), nested() > 1)


def test_pictures_of_several_channels_are_written_a_file_each(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(2), []
    for name in ("red", "green"):
        Image.fromarray(rng.integers(0, 255, (12, 15), np.uint8)).save(tmp_path / f"{name}.png")
    Image.fromarray(rng.integers(0, 2, (12, 15), np.uint8)).save(tmp_path / "label.png")
    rows = [{"id": "a", "image": {"red": "red.png", "green": "green.png"}, "label": "label.png"}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    write_nnunet_folder(find_images(tmp_path / "list.json"), NnunetConfig(tmp_path / "Dataset101_P", told={1: "spot"}))
    for number, name in enumerate(("red", "green")):
        written = np.asarray(Image.open(tmp_path / f"Dataset101_P/imagesTr/a_{number:04}.png"))
        assert np.array_equal(written, np.asarray(Image.open(tmp_path / f"{name}.png")))


def painted(labels: np.ndarray, document: dict) -> np.ndarray:
    """What nnU-Net's export makes of right masks of the regions: each painted over the earlier ones."""
    result = np.zeros_like(labels)
    named = {name: values for name, values in document["labels"].items() if name != "background"}
    for values, value in zip(named.values(), document["regions_class_order"], strict=True):
        result[np.isin(labels, values)] = value
    return result


def test_nested_structures_survive_the_way_that_nnunet_exports_regions(tmp_path: Path) -> None:
    cases = find_images(listed(tmp_path / "data"))
    config = NnunetConfig(
        tmp_path / "Dataset101_T", told={1: "a", 2: "b", 3: "c"}, values=FileValues(masks=3), modality="CT"
    )
    document = dict(write_nnunet_folder(cases, config).document)
    assert np.array_equal(painted(nested(), document), nested())


def test_labels_of_a_volume_are_one_map_for_what_compares_cases() -> None:
    volume = Volume(masks_of_nested(), oblique_affine())
    assert np.array_equal(as_numbers(volume).array, nested())
