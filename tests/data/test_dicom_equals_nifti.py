"""The tensors that reach a network are the same bits whether a case comes as DICOM or as the NIfTI read back from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EXAMPLES, REPOSITORY
from monai.transforms import LoadImaged
from phantoms import oblique_affine

from dicom_io.dicomize import DicomizedCase, dicomize
from dicom_io.read import read_series
from dicom_io.volume import Provenance, Volume
from monai_unet_app.bundle import load_bundle
from monai_unet_app.data.digest import image_fingerprint, same_image
from monai_unet_app.data.labels import read_labels
from monai_unet_app.data.monai_bridge import VolumeReader
from monai_unet_app.data.read import read_volume
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.results import write_nifti

BUNDLE = REPOSITORY / "bundles" / "hippocampus_mri_unet3d"
SHAPE = (22, 27, 17)
GRIDS = {
    "RAS, 1 mm": np.diag([-1.0, -1.0, 1.0, 1.0]),
    "oblique, spacing 1.25 x 0.75 x 1.6": oblique_affine((1.25, 0.75, 1.6)),
    "left-handed, oblique": oblique_affine((0.8, 1.3, 1.1)) @ np.diag([1.0, 1.0, -1.0, 1.0]),
    "sagittal slices": oblique_affine((0.9, 1.2, 1.7), degrees=(4.0, 83.0, 95.0)),
}
INTENSITIES = {"whole numbers": 1.0, "floats": 1 / 7, "millions": 1.7e6 / 600, "negative too": -1 / 3}


def case(grid: str, intensities: str) -> tuple[Volume, Volume]:
    """A lopsided image and labels as a NIfTI would give them."""
    i, j, k = np.indices(SHAPE)
    array = 3.0 * i + 7 * j + 11 * k + np.random.default_rng(5).integers(0, 90, SHAPE)
    if INTENSITIES[intensities] < 0:
        array = array - 200
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:11, 4:17, 5:9], labels[9:15, 8:22, 9:14] = 1, 2
    image = Volume((array * abs(INTENSITIES[intensities])).astype(np.float32), GRIDS[grid], Provenance("nifti"))
    return image, image.with_array(labels)


def converted(grid: str, intensities: str, folder: Path) -> tuple[Volume, DicomizedCase]:
    image, labels = case(grid, intensities)
    segments = load_bundle(BUNDLE).segments
    return image, dicomize(image, folder / "dicom", labels=labels, segments=segments, case_id="phantom")


def tensors(image: Path, label: Path, reader: object) -> dict[str, torch.Tensor]:
    """What the bundle's list `deterministic` makes of a case; reader None is MONAI's own."""
    return load_bundle(BUNDLE, reader=reader).preprocessing({"image": str(image), "label": str(label)})


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    for key in ("image", "label"):
        assert first[key].shape == second[key].shape
        assert torch.equal(first[key].as_tensor(), second[key].as_tensor()), key  # type: ignore[attr-defined]
        assert torch.equal(first[key].affine, second[key].affine)  # type: ignore[attr-defined]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_converted_case_gives_the_same_tensors_as_the_nifti_read_back_from_it(grid: str, tmp_path: Path) -> None:
    _, made = converted(grid, "floats", tmp_path)
    assert made.seg is not None
    volume = read_series(made.series_folder)
    image, label = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    write_nifti(volume.array, volume, image)
    write_nifti(read_labels(made.seg, volume).array.astype(np.uint8), volume, label)
    rows = [{"image": str(made.series_folder), "label": str(made.seg)}]
    as_dicom = tensors(made.series_folder, made.seg, VolumeReader(rows))
    assert_same(as_dicom, tensors(image, label, None))
    assert_same(as_dicom, tensors(image, label, VolumeReader([{"image": str(image), "label": str(label)}])))
    assert set(np.unique(as_dicom["label"])) == {0.0, 1.0, 2.0}


def test_spacingd_really_interpolates_where_the_spacing_is_not_1(tmp_path: Path) -> None:
    _, made = converted("oblique, spacing 1.25 x 0.75 x 1.6", "floats", tmp_path)
    assert made.seg is not None
    rows = [{"image": str(made.series_folder), "label": str(made.seg)}]
    seen = tensors(made.series_folder, made.seg, VolumeReader(rows))
    assert tuple(seen["image"].shape[1:]) != SHAPE
    assert np.linalg.norm(np.asarray(seen["image"].affine)[:3, :3], axis=0) == pytest.approx(1.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("intensities", INTENSITIES)
def test_against_the_original_floats_the_rounding_stays_within_the_stated_bound(
    intensities: str, tmp_path: Path
) -> None:
    image, made = converted("left-handed, oblique", intensities, tmp_path)
    back = read_series(made.series_folder).on_grid_of(image)
    largest = float(np.abs(image.array).max())
    error = float(np.abs(back.array.astype(np.float64) - image.array).max())
    assert error <= made.max_rounding_error
    # one of 65535 (32767 with a sign) steps to the largest value; the slope is rounded up to four digits
    steps = 32767 if image.array.min() < 0 else 65535
    assert made.max_rounding_error <= 0.505 * 1.001 * largest / steps
    assert (error == 0) == (intensities == "whole numbers")


def test_labels_come_back_at_the_same_places_in_the_patient(tmp_path: Path) -> None:
    for number, grid in enumerate(GRIDS):
        image, made = converted(grid, "whole numbers", tmp_path / str(number))
        assert made.seg is not None
        labels = read_labels(made.seg, read_series(made.series_folder)).on_grid_of(image)
        np.testing.assert_array_equal(labels.array, case(grid, "whole numbers")[1].array)


def test_a_real_crop_is_the_same_in_both_forms(tmp_path: Path) -> None:
    name = "hippocampus_003.nii.gz"
    image = read_volume(EXAMPLES / "images" / name)
    labels = read_labels(EXAMPLES / "labels" / name, image)
    segments = load_bundle(BUNDLE).segments
    made = dicomize(image, tmp_path, labels=labels, segments=segments, case_id="hippocampus_003")
    assert made.seg is not None
    volume = read_series(made.series_folder)
    write_nifti(volume.array, volume, tmp_path / "image.nii.gz")
    write_nifti(read_labels(made.seg, volume).array, volume, tmp_path / "label.nii.gz")
    as_dicom = tensors(
        made.series_folder, made.seg, VolumeReader([{"image": str(made.series_folder), "label": str(made.seg)}])
    )
    assert_same(as_dicom, tensors(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", None))
    original = tensors(EXAMPLES / "images" / name, EXAMPLES / "labels" / name, None)
    assert torch.equal(original["label"].as_tensor(), as_dicom["label"].as_tensor())  # type: ignore[attr-defined]
    step = 1 / float(
        np.subtract(*np.percentile(image.array, (99.5, 0.5)))
    )  # both images are scaled to 0 .. 1, then whitened
    spread = 1 / float(np.clip((image.array - np.percentile(image.array, 0.5)) * step, 0, 1).std())
    apart = float((original["image"] - as_dicom["image"]).abs().max())
    assert apart <= 4 * made.max_rounding_error * step * spread
    assert same_image(image_fingerprint(image), image_fingerprint(volume))


def test_slices_as_channels_are_refused_and_none_is_dropped(tmp_path: Path) -> None:
    _, made = converted("RAS, 1 mm", "floats", tmp_path)
    files = [str(file) for file in sorted(made.series_folder.iterdir())]
    with pytest.raises(InputRefusedError, match=rf"and {len(files) - 1} more are given as channels"):
        LoadImaged(keys="image", reader=VolumeReader())({"image": files})


def test_a_label_that_does_not_lie_on_its_series_is_refused_on_the_way_to_the_network(tmp_path: Path) -> None:
    """MONAI's LoadImage tries its other readers when one raises: a refused label must not come in through those."""
    image, made = converted("oblique, spacing 1.25 x 0.75 x 1.6", "floats", tmp_path / "one")
    moved = np.array(image.affine_lps)
    moved[0, 3] += 40.0
    other = dicomize(replace(image, affine_lps=moved), tmp_path / "two", case_id="other")
    rows = [{"image": str(other.series_folder), "label": str(made.seg)}]
    with pytest.raises(InputRefusedError, match=r"label seg\.dcm"):
        LoadImaged(keys=["image", "label"], reader=VolumeReader(rows))(rows[0])


def test_an_image_that_breaks_the_bundles_rules_is_refused_by_the_reader_too(tmp_path: Path) -> None:
    _, made = converted("RAS, 1 mm", "floats", tmp_path)
    reader = VolumeReader(rules={"channels": 1, "modality": ["CT"]})
    with pytest.raises(InputRefusedError, match="its modality is MR, CT is needed"):
        LoadImaged(keys="image", reader=reader)({"image": str(made.series_folder)})
