"""Connected parts of masks: how many there are, how many a prediction finds, and how many it invents.

A component is a set of voxels that touch by faces, edges or corners (26 neighbours in 3D, 8 in 2D).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from .overlap import Mask, check_masks

_PIECE, _SLAB = 1 << 20, 1 << 22  # voxels


@dataclass(frozen=True)
class ComponentScores:
    """How many components of a truth a prediction has found ("lesion-wise" scores).

    A component of the truth is *found*, and a component of the prediction is *right*, if the IoU of the two is above the
    threshold.

    Attributes:
        truth: Components of the truth.
        predicted: Components of the prediction.
        found: Components of the truth that a component of the prediction matches.
        right: Components of the prediction that match a component of the truth; the others are false-positive islands.
        iou_sum: Sum over found components of the IoU with their match.
    """

    truth: int
    predicted: int
    found: int
    right: int
    iou_sum: float

    @property
    def missed(self) -> int:
        """Components of the truth that no component of the prediction matches."""
        return self.truth - self.found

    @property
    def invented(self) -> int:
        """False-positive islands: components of the prediction that match no component of the truth."""
        return self.predicted - self.right

    @property
    def sensitivity(self) -> float:
        """Found / all components of the truth, 0 to 1; 1 if the truth has no component."""
        return self.found / self.truth if self.truth else 1.0

    @property
    def f1(self) -> float:
        """Detection F1 ("recognition quality"), 0 to 1. Both masks without components: 1. One mask without: 0."""
        total = self.truth + self.predicted
        return (self.found + self.right) / total if total else 1.0

    @property
    def panoptic_quality(self) -> float:
        """PQ, 0 to 1: mean IoU of the matches times `f1`; empty masks as in `f1`.

        Source: Kirillov et al., Panoptic Segmentation, CVPR 2019, arXiv:1801.00868 (threshold 0.5: matches are unique).
        """
        if not self.truth + self.predicted:
            return 1.0
        return self.iou_sum / self.found * self.f1 if self.found else 0.0


def components(mask: Mask) -> tuple[NDArray[np.signedinteger], int]:
    """The number of each voxel's component, from 1, in the shape of the mask with 0 outside; and the number of components."""
    # scipy joins voxels by faces only unless it gets a full block of neighbours.
    labels, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return labels, int(count)


def largest_component(mask: Mask) -> int:
    """How many voxels the largest component of a mask has; 0 without voxels. Slab by slab: numbers take 4 bytes a voxel."""
    sizes, joined, last = [np.zeros(1, np.int64)], [np.zeros((2, 0), np.int64)], None
    height = max(1, _SLAB * len(mask) // max(1, mask.size))
    for start in range(0, len(mask), height):
        numbers, count = components(mask[start : start + height])
        before = sum(map(len, sizes)) - 1  # entry 0 is the outside
        sizes.append(np.bincount(numbers.ravel(), minlength=count + 1)[1:])
        first, end = (np.where(plane > 0, plane.astype(np.int64) + before, 0) for plane in (numbers[0], numbers[-1]))
        if last is not None:
            joined.append(_touching(last, first, before + count + 1))
        last = end
    each, pairs = np.concatenate(sizes), np.concatenate(joined, axis=1)
    graph = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), (len(each), len(each)))
    return int(np.bincount(connected_components(graph, directed=False)[1], each).max())


def _touching(plane: NDArray[np.int64], other: NDArray[np.int64], base: int) -> NDArray[np.int64]:
    """Shape (2, pairs): numbers from 1, below `base`, in a plane and in the plane beside it whose voxels touch."""
    wide, pairs = np.pad(other, 1), []
    for shift in np.ndindex((3,) * plane.ndim):
        beside = wide[tuple(slice(s, s + n) for s, n in zip(shift, plane.shape, strict=True))]
        both = (plane > 0) & (beside > 0)
        pairs.append(np.unique(plane[both] * base + beside[both]))
    return np.stack(np.divmod(np.unique(np.concatenate(pairs)), base))


def match_components(truth: NDArray[Any], predicted: NDArray[Any], *, least_iou: float = 0.5) -> ComponentScores:
    """Components of two masks, or objects of two maps that number them, matched where their IoU is above `least_iou`.

    From 0.5 on a match is unique. Below 0.5, a component is found if any component of the other mask overlaps it enough, and
    its IoU is the largest of these.

    Args:
        truth: Shape (I, J, K) or (I, J), boolean; or the number of each voxel's object, 0 outside.
        predicted: Same shape and grid.
        least_iou: 0 (any voxel in common) or more, below 1.

    Raises:
        ValueError: The masks differ in shape or are not boolean, or `least_iou` is out of range.
    """
    check_masks(*(mask if mask.dtype == np.bool_ else mask > 0 for mask in (truth, predicted)))
    if not 0 <= least_iou < 1:
        raise ValueError(f"least_iou is {least_iou}; 0 or more and below 1 is needed")
    (first, count), (second, other_count) = map(_numbered, (truth, predicted))
    voxels = _voxels_of_pairs(first, second, (count + 1, other_count + 1))
    # Sizes of whole components: pairs with 0, the outside of the other mask, count as well.
    sizes, other_sizes = voxels.sum(axis=1)[1:], voxels.sum(axis=0)[1:]
    pairs = voxels[1:, 1:].tocoo()
    iou = pairs.data / (sizes[pairs.row] + other_sizes[pairs.col] - pairs.data)
    best, best_other = np.zeros(count), np.zeros(other_count)
    # ufunc.at takes repeated indices one after the other: a component with several partners gets its largest IoU.
    np.maximum.at(best, pairs.row, iou)
    np.maximum.at(best_other, pairs.col, iou)
    is_found = best > least_iou
    return ComponentScores(
        count, other_count, int(is_found.sum()), int((best_other > least_iou).sum()), float(best[is_found].sum())
    )


def _numbered(mask: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """As `components`; of numbers of objects these, without gaps."""
    if mask.dtype == np.bool_:
        return components(mask)
    present = np.bincount(mask.ravel(), minlength=1) > 0
    present[0] = False
    return np.where(present, np.cumsum(present), 0)[mask], int(present.sum())


def _voxels_of_pairs(first: NDArray[Any], second: NDArray[Any], shape: tuple[int, int]) -> csr_array:
    """How many voxels have each pair of component numbers, in a sparse table of this shape; (0, 0) is not counted."""
    voxels, first, second = csr_array(shape, dtype=np.int64), first.ravel(), second.ravel()
    for start in range(0, first.size, _PIECE):  # the numbers of pairs take many bytes a voxel
        part, other = first[start : start + _PIECE], second[start : start + _PIECE]
        either = (part > 0) | (other > 0)
        ones = np.ones(np.count_nonzero(either), np.int64)
        voxels += csr_array((ones, (part[either], other[either])), shape)
    return voxels
