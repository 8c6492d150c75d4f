"""Resampling in slabs against MONAI's own: equal to the bit, and the same record of what was done."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd

from monai_unet_app.inference import slabs
from monai_unet_app.inference.slabs import resampling_in_slabs
from monai_unet_app.inference.way_back import Interpolated


def image_of(shape: tuple[int, ...], shear: float, channels: int = 1) -> MetaTensor:
    affine = np.diag([-0.8, 0.9, -2.5, 1.0])
    affine[:3, :3] += shear * np.array([[0, 0.1, 0.2], [0.3, 0, -0.1], [0.05, 0.2, 0]])
    affine[:3, 3] = 3.0, -7.0, 11.0
    values = np.random.default_rng(0).normal(size=(channels, *shape)).astype(np.float32)
    return MetaTensor(torch.from_numpy(values), affine=torch.from_numpy(affine))


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("shear", [0.0, 1.0])
@pytest.mark.parametrize("voxels", [1, 700, 5000])
def test_slabs_equal_the_whole_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, voxels: int, shear: float, padding: str, corners: bool
) -> None:
    spacing = Spacingd("image", (1.1, 0.7, 2.0), mode="bilinear", padding_mode=padding, align_corners=corners)
    steps = Compose([Orientationd("image", "RAS", labels=None), spacing])
    whole = steps({"image": image_of((31, 22, 13), shear, channels=2)})["image"]
    heights = sampled_heights(monkeypatch)
    monkeypatch.setattr(slabs, "_SLAB_VOXELS", voxels)
    with resampling_in_slabs():
        in_slabs = steps({"image": image_of((31, 22, 13), shear, channels=2)})["image"]
    assert len(heights) > 2
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


@pytest.mark.parametrize(("mode", "dtype"), [("nearest", np.float64), ("bilinear", np.float32), (3, np.float64)])
def test_other_interpolation_is_that_of_monai(monkeypatch: pytest.MonkeyPatch, mode: str | int, dtype: type) -> None:
    padding = "nearest" if mode == 3 else "border"
    step = Spacingd("image", (1.1, 0.7, 2.0), mode=mode, padding_mode=padding, dtype=dtype)
    whole = step({"image": image_of((12, 13, 14), 1.0)})["image"]
    monkeypatch.setattr(slabs, "_SLAB_VOXELS", 100)
    with resampling_in_slabs():
        assert torch.equal(step({"image": image_of((12, 13, 14), 1.0)})["image"], whole)
