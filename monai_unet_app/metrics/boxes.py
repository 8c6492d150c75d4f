"""The smallest index box around a mask."""

from collections.abc import Sequence

import numpy as np

from .overlap import Mask

Box = tuple[slice, ...]


def bounding_box(mask: Mask, margin: Sequence[int]) -> Box | None:
    """Smallest index box around a mask of any shape, widened by `margin` voxels inside the array; None for an empty mask."""
    axes = range(mask.ndim)
    held = [np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    if not held[0].size:
        return None
    return tuple(slice(max(0, int(at[0]) - m), int(at[-1]) + 1 + m) for at, m in zip(held, margin, strict=True))
