"""Resampling in slabs against MONAI's own: equal to the bit, and the same record of what was done."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Identityd,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityd,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)

from dicom_io.volume import LPS_FROM_RAS, Volume
from monai_unet_app.bundle import Bundle
from monai_unet_app.data.monai_bridge import to_metatensor
from monai_unet_app.inference import slabs
from monai_unet_app.inference.slabs import resampled, resampling_in_slabs
from monai_unet_app.inference.way_back import Interpolated
from monai_unet_app.machine_memory import taken_by
from monai_unet_app.pipeline import preprocess


def image_of(shape: tuple[int, ...], shear: float, channels: int = 1) -> MetaTensor:
    affine = np.diag([-0.8, 0.9, -2.5, 1.0])
    affine[:3, :3] += shear * np.array([[0, 0.1, 0.2], [0.3, 0, -0.1], [0.05, 0.2, 0]])
    affine[:3, 3] = 3.0, -7.0, 11.0
    values = np.random.default_rng(0).normal(size=(channels, *shape)).astype(np.float32)
    return MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(affine))


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("shear", [0.0, 1.0])
@pytest.mark.parametrize("voxels", [1, 700, 5000])
def test_slabs_equal_the_whole_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, voxels: int, shear: float, padding: str, corners: bool
) -> None:
    spacing = Spacingd("image", (1.1, 0.7, 2.0), mode="bilinear", padding_mode=padding, align_corners=corners)
    steps = Compose([Orientationd("image", "RAS", labels=None), spacing])
    whole = steps({"image": image_of((31, 22, 13), shear, channels=2)})["image"]
    heights, rows = sampled_heights(monkeypatch), rows_in_float64(monkeypatch)
    monkeypatch.setattr(slabs, "_SLAB_VOXELS", voxels)
    with resampling_in_slabs():
        in_slabs = steps({"image": image_of((31, 22, 13), shear, channels=2)})["image"]
    assert len(heights) > 2
    if padding != "reflection":
        assert max(rows) < 31, "never the whole image in float64"
    assert sum(heights) == whole.shape[1]
    assert torch.equal(in_slabs, whole)
    assert in_slabs.dtype == whole.dtype
    assert torch.equal(in_slabs.affine, whole.affine)
    assert [op["class"] for op in in_slabs.applied_operations] == [op["class"] for op in whole.applied_operations]


def sampled_heights(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The height of each slab that is sampled from now on."""
    heights: list[int] = []
    positions = Interpolated.positions

    def noted(way: Interpolated, box: tuple[slice, ...]) -> torch.Tensor:
        heights.append(box[0].stop - box[0].start)
        return positions(way, box)

    monkeypatch.setattr(Interpolated, "positions", noted)
    return heights


def rows_in_float64(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of the input are in float64 at a time from now on."""
    counts: list[int] = []

    class Counted(slabs._RowsInFloat64):
        def __call__(self, rows: slice) -> torch.Tensor:
            counts.append(rows.stop - rows.start)
            return super().__call__(rows)

    monkeypatch.setattr(slabs, "_RowsInFloat64", Counted)
    return counts


def test_a_large_image_is_never_in_float64_as_a_whole() -> None:
    image, step = MetaTensor(torch.zeros(1, 400, 400, 240)), Spacingd("image", (1.5, 1.5, 1.5))
    assert not step({"image": MetaTensor(torch.zeros(1, 9, 9, 9))})["image"].any()  # what a first run loads
    with resampling_in_slabs():
        grown = taken_by(lambda: step({"image": image}))
    assert grown < 4 * 400 * 400 * 240 + 1.2e8  # the result is a third of the image; float64 would be twice


@pytest.mark.parametrize(("mode", "dtype"), [("nearest", np.float64), ("bilinear", np.float32), (3, np.float64)])
def test_other_interpolation_is_that_of_monai(monkeypatch: pytest.MonkeyPatch, mode: str | int, dtype: type) -> None:
    padding = "nearest" if mode == 3 else "border"
    step = Spacingd("image", (1.1, 0.7, 2.0), mode=mode, padding_mode=padding, dtype=dtype)
    whole = step({"image": image_of((12, 13, 14), 1.0)})["image"]
    monkeypatch.setattr(slabs, "_SLAB_VOXELS", 100)
    with resampling_in_slabs():
        assert torch.equal(step({"image": image_of((12, 13, 14), 1.0)})["image"], whole)


def preprocessing(spacing_mm: tuple[float, float, float], *first: object) -> Compose:
    """Transforms as a bundle has them; the first stands for the one that loads."""
    looking = [Identityd("image"), EnsureChannelFirstd("image"), Orientationd("image", "RAS", labels=None)]
    computing = [ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0, 1, clip=True), NormalizeIntensityd("image")]
    return Compose([*looking, *first, Spacingd("image", spacing_mm), *computing])


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("spacing_mm", [(0.8, 0.9, 2.5), (1.1, 0.7, 2.0)], ids=["kept", "resampled"])
def test_the_order_of_axes_in_memory_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch,
    spacing_mm: tuple[float, float, float],
    axes: tuple[int, int, int],
    channels: int,
    large: bool,
) -> None:
    values = np.random.default_rng(0).normal(size=(31, 22, 13, channels)).astype(np.float32)
    turned = np.diag([-0.8, 0.9, -2.5, 1.0])[:, [*axes, 3]]
    array = np.asfortranarray(values.transpose(*axes, 3))
    volume = Volume(array if channels > 1 else array[..., 0], LPS_FROM_RAS @ turned)
    bundle = cast(Bundle, SimpleNamespace(preprocessing=preprocessing(spacing_mm)))
    wanted = bundle.preprocessing({"image": to_metatensor(volume)}, start=1)["image"]
    if large:
        monkeypatch.setattr(slabs, "_SLAB_VOXELS", 700)
    before = volume.array.copy()
    image = preprocess(volume, bundle)["image"]
    assert torch.equal(image, wanted)
    assert image.stride() == wanted.stride()
    assert str(image.applied_operations) == str(wanted.applied_operations)
    assert np.array_equal(volume.array, before)


def test_an_image_is_shared_only_with_transforms_that_look_at_it() -> None:
    """What computes before the resampling gets a copy of its own, and so does all where nothing is resampled."""
    volume = Volume(np.zeros((31, 22, 13), np.float32), np.diag([0.8, -0.9, -2.5, 1.0]))
    item = {"image": to_metatensor(volume)}
    assert resampled(preprocessing((1.1, 0.7, 2.0)), item) is not None
    assert resampled(preprocessing((0.8, 0.9, 2.5)), item) is None
    assert resampled(preprocessing((1.1, 0.7, 2.0), ScaleIntensityd("image")), item) is None
    assert resampled(Compose([Identityd("image")]), item) is None
