"""The way back in boxes gives what MONAI's Invertd gives on whole arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    Invertd,
    Orientationd,
    Resized,
    Rotated,
    Spacingd,
    SpatialCropd,
    SpatialPadd,
)

from monai_unet_app.inference import way_back as way_back_module
from monai_unet_app.inference.way_back import way_back

SHAPE = (26, 23, 17)
RAS = Orientationd("image", axcodes="RAS", labels=None)


def spacing(*mm: float, **changed: Any) -> Spacingd:
    return Spacingd("image", pixdim=mm, mode="bilinear", **changed)


def affine(
    mm: Sequence[float], angle: float = 0.0, order: Sequence[int] = (0, 1, 2), signs: Sequence[int] = (1, 1, 1)
) -> np.ndarray:
    """Index to RAS mm of an oblique grid with its axes in this order and these directions."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    out = np.eye(4)
    out[:3, :3] = (turn @ np.diag(mm))[:, list(order)] @ np.diag(signs)
    out[:3, 3] = (-11.3, 40.7, 3.1)
    return out


OBLIQUE = affine((0.8, 0.9, 2.5), 0.2, (2, 0, 1), (-1, 1, -1))
SHEARED = OBLIQUE.astype(np.float32).astype(float)
CASES = {
    "thicker slices": ([RAS, spacing(1.5, 1.5, 1.5)], affine((0.8, 0.8, 2.5))),
    "oblique, axes swapped and reversed": ([RAS, spacing(1.5, 1.3, 1.5)], OBLIQUE),
    "directions rounded to float32": ([RAS, spacing(0.6, 0.7, 1.5)], SHEARED),
    "nothing to resample": ([RAS, spacing(0.8, 0.9, 2.5)], affine((0.8, 0.9, 2.5), 0, (1, 0, 2), (-1, -1, 1))),
    "half the voxels, ties of rounding": ([RAS, spacing(2, 2, 2)], affine((1, 1, 1))),
    "corners aligned": ([RAS, spacing(2, 2, 2, align_corners=True)], affine((1, 1, 1))),
    "onto the axes of the scanner": ([spacing(2, 2, 1.3, diagonal=True)], affine((1, 1, 1), 0.3)),
    "cropped before": (
        [RAS, SpatialCropd("image", roi_start=(3, 4, 5), roi_end=(20, 19, 15)), spacing(2, 2, 1.3)],
        OBLIQUE,
    ),
    "cropped after": (
        [RAS, spacing(2, 2, 2), SpatialCropd("image", roi_start=(3, 2, 1), roi_end=(9, 8, 7))],
        affine((1, 1, 1)),
    ),
    "cropped and padded": (
        [RAS, spacing(1.4, 1.4, 2), CropForegroundd("image", "image", margin=1), SpatialPadd("image", (30, 30, 30))],
        OBLIQUE,
    ),
    "turned after the spacing": ([RAS, spacing(2, 2, 2), Orientationd("image", axcodes="LSP", labels=None)], OBLIQUE),
}


@pytest.mark.parametrize("positions", [1 << 19, 1000])
@pytest.mark.parametrize(("transforms", "place"), CASES.values(), ids=CASES.keys())
def test_boxes_of_any_size_hold_what_invertd_gives(
    transforms: list[Any], place: np.ndarray, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(way_back_module, "_POSITIONS", positions)
    torch.manual_seed(3)
    image = MetaTensor(torch.rand(1, *SHAPE) + 0.1, affine=torch.from_numpy(place))
    preprocessing = Compose(transforms)
    item = preprocessing({"image": image})
    working = torch.softmax(2 * torch.randn(4, *item["image"].shape[1:]), 0)
    invert = Invertd("pred", preprocessing, "image", nearest_interp=False)
    expected = invert({**item, "pred": MetaTensor(working.clone())})["pred"].as_tensor()
    way = way_back(item["image"])
    assert way is not None
    assert way.source_shape == SHAPE == tuple(expected.shape[1:])
    for size in (SHAPE, (7, 9, 40), (9, 4, 6)):
        found = torch.full_like(expected, -1)
        for corner in product(*(range(0, n, step) for n, step in zip(SHAPE, size, strict=True))):
            box = tuple(slice(a, min(a + step, n)) for a, step, n in zip(corner, size, SHAPE, strict=True))
            found[(slice(None), *box)] = way(working[(slice(None), *way.needed(box))], box)
        torch.testing.assert_close(found, expected, atol=4e-7 if place is SHEARED else 6e-8, rtol=0)
        assert torch.equal(found.argmax(0), expected.argmax(0))


def test_what_a_box_needs_is_little_more_than_itself() -> None:
    image = MetaTensor(torch.rand(1, *SHAPE), affine=torch.from_numpy(affine((1, 1, 1))))
    item = Compose([RAS, spacing(0.5, 0.5, 0.5)])({"image": image})
    way = way_back(item["image"])
    assert way is not None
    needed = way.needed((slice(4, 8), slice(0, 3), slice(16, 17)))
    assert [side.stop - side.start for side in needed] == pytest.approx([8, 6, 2], abs=2)


@pytest.mark.parametrize(
    "transform", [Resized("image", (20, 20, 20)), Rotated("image", 0.3), spacing(2, 2, 2, padding_mode="zeros")]
)
def test_what_cannot_be_undone_in_boxes_is_not_undone_wrongly(transform: Any) -> None:
    image = MetaTensor(torch.rand(1, *SHAPE), affine=torch.eye(4, dtype=torch.float64))
    assert way_back(Compose([transform])({"image": image})["image"]) is None
