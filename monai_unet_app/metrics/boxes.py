"""Index boxes: the smallest one around a mask, and around each value of a label map."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .overlap import Mask

Box = tuple[slice, ...]

_SLAB = 1 << 18  # voxels looked at together: they and their runs stay in the processor's cache


def bounding_box(mask: Mask, margin: Sequence[int]) -> Box | None:
    """Smallest index box around a mask of any shape, widened by `margin` voxels inside the array; None for an empty mask."""
    axes = range(mask.ndim)
    held = [np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    if not held[0].size:
        return None
    return tuple(slice(max(0, int(at[0]) - m), int(at[-1]) + 1 + m) for at, m in zip(held, margin, strict=True))


def label_boxes(labels: NDArray[Any], most: int) -> list[Box | None]:
    """Smallest index box around each value from 1 to `most` of a label map; None for a value that no voxel has.

    What `scipy.ndimage.find_objects` gives, several times as fast: only the two ends of each run of equal voxels are
    looked up.

    Args:
        labels: Whole numbers of 0 to `most`, any shape.
        most: Largest value.
    """
    low, high = np.full((labels.ndim, most + 1), max(labels.shape)), np.full((labels.ndim, most + 1), -1)
    # Axes in the order of memory, so that flattening copies nothing.
    order = np.argsort(labels.strides, kind="stable")[::-1]
    for values, begins, ends in _runs(labels.transpose(order)):
        for axis, begin, end in zip(order, begins, ends, strict=True):
            np.minimum.at(low[axis], values, begin)
            np.maximum.at(high[axis], values, end)
    first, past = low.T[1:].tolist(), (high.T[1:] + 1).tolist()
    return [tuple(map(slice, a, b)) if b[0] else None for a, b in zip(first, past, strict=True)]


def _runs(
    labels: NDArray[Any],
) -> Iterator[tuple[NDArray[np.intp], tuple[NDArray[Any], ...], tuple[NDArray[Any], ...]]]:
    """Runs of one value other than 0 along the last axis, slab by slab: values, and the indices of first and last voxels."""
    plane = labels[:1].size
    step = max(1, _SLAB // max(1, plane))
    for start in range(0, len(labels), step):
        slab = labels[start : start + step]
        flat = slab.reshape(-1)
        begins = np.ones(slab.shape, dtype=bool)
        np.not_equal(flat[1:], flat[:-1], out=begins.reshape(-1)[1:])
        begins[..., :1] = True
        first = np.flatnonzero(begins)
        last = np.append(first, flat.size)[1:] - 1
        values = flat[first].astype(np.intp)
        held = values > 0
        begin, end = (np.unravel_index(at[held] + start * plane, labels.shape) for at in (first, last))
        yield values[held], begin, end
