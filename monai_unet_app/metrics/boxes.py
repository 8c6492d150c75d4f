"""The smallest index box around a mask, around each value of a label map, or around each structure."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from .overlap import Mask

Box = tuple[slice, ...]


def bounding_box(mask: Mask, margin: Sequence[int]) -> Box | None:
    """Smallest index box around a mask of any shape, widened by `margin` voxels inside the array; None for an empty mask."""
    axes = range(mask.ndim)
    held = [np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    if not held[0].size:
        return None
    return tuple(slice(max(0, int(at[0]) - m), int(at[-1]) + 1 + m) for at, m in zip(held, margin, strict=True))


def boxes_of(labels: NDArray[Any], count: int) -> list[Box | None]:
    """Smallest index box around each value from 1 to `count` in whole numbers of any shape; None for a value without voxels."""
    # Along the memory: across it, as slices of DICOM lie in their array, scipy takes six times as long.
    if abs(labels.strides[0]) >= abs(labels.strides[-1]):
        return list(find_objects(labels, max_label=count))
    return [None if box is None else box[::-1] for box in find_objects(labels.T, max_label=count)]


class Region(NamedTuple):
    """The voxels of a structure: those of `labels`, shape (*grid), that have this value; `box` holds them, None without any."""

    labels: NDArray[Any]
    value: int
    box: Box | None


def regions_of(labels: NDArray[Any], axes: int, count: int) -> list[Region]:
    """The region of each of `count` structures, in their order.

    Args:
        labels: A map of the numbers of all structures, shape (*grid), or a map for each, (S, *grid), above 0 inside.
        axes: Of the grid.
        count: Number S of the structures.
    """
    maps = labels.reshape(-1, *labels.shape[-axes:])
    if len(maps) == count:
        maps = maps.astype(np.bool_, copy=False).view(np.uint8)
    return [
        Region(own, value, box) for own in maps for value, box in enumerate(boxes_of(own, count // len(maps)), start=1)
    ]
