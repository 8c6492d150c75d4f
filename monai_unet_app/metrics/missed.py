"""The part of each structure that a mask of all voxels above a threshold misses, counted slab by slab."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .boxes import Box


class MissedVoxels:
    """Counts how many true voxels of each structure have a probability below each threshold; they are no part of its mask.

    Slabs come in any order, and each voxel lies in one of them; the whole grid is one slab, too.

    Args:
        truth: Exclusive structures: shape (I, J, K), whole numbers from 0, the background, to S. Overlapping structures: shape
            (S, I, J, K), boolean. One axis fewer for a picture.
        structures: Number S of the structures.
        thresholds: T probabilities, rising.
    """

    def __init__(self, truth: NDArray[Any], structures: int, thresholds: Sequence[float]) -> None:
        self._truth, self._thresholds = truth, np.asarray(thresholds, dtype=np.float64)
        # Column t: voxels whose probability reaches t of the thresholds and no more.
        self._reached = np.zeros((structures, len(thresholds) + 1), np.int64)

    def add(self, slab: Box, probabilities: NDArray[Any]) -> None:
        """Counts one slab.

        Args:
            slab: Where it lies, a slice for each axis of the grid.
            probabilities: Shape (C, ...) with the grid of the slab, 0 to 1; the background first if structures are exclusive.
        """
        # A voxel with exactly the threshold, in the precision of the probabilities, belongs to the mask.
        thresholds = self._thresholds.astype(probabilities.dtype)
        maps = self._truth.reshape(-1, *self._truth.shape[-len(slab) :])[(slice(None), *slab)]
        at = np.nonzero(maps)
        # One map holds the numbers of all structures, or each structure has a map of 0 and 1
        number = at[0] + maps[at].astype(np.intp) - 1
        inside = probabilities[(number + len(probabilities) - len(self._reached), *at[1:])]
        cell = number * self._reached.shape[1] + np.searchsorted(thresholds, inside, side="right")
        self._reached += np.bincount(cell, minlength=self._reached.size).reshape(self._reached.shape)

    @property
    def parts(self) -> NDArray[np.float64]:
        """Shape (S, T), 0 to 1: the part of the true voxels below each threshold; NaN for a structure without true voxels."""
        below = np.cumsum(self._reached, axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(below[:, :-1] / below[:, -1:], dtype=np.float64)
