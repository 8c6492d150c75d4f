"""How well two surfaces agree, and which voxels lie near a surface. Boolean arrays in, floats (or a mask) out.

All lengths are in the unit of `spacing_mm`: millimetres for volumes, pixels for pictures, whose spacing is 1. Arrays are 3D
with a spacing for I, J, K, or 2D with a spacing for I, J. A picture must not come as (I, J, 1): such a volume is one slice
thick, and all of its voxels are border voxels.

Two definitions of a surface are used here, each where it is customary:
- Scores between masks (`SurfacePair`) use *border voxels*, as the papers and MONAI do: a mask minus its
  erosion by one face-connected step (6 neighbours in 3D, 4 in 2D). Outside the image is background, so a mask that is cut by
  the field of view has a border at the image's edge.
- `surface_band` uses the *faces* between foreground and background voxels. The image's edge is no face, since nothing was
  predicted beyond it.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import edt
import numpy as np
from numpy.typing import NDArray

from .boxes import Box, bounding_box
from .overlap import Mask, check_masks, iou

Spacing = Sequence[float]
# A distance of 3 x 0.1 mm must count as within 0.3 mm, although binary fractions make it a little larger.
_SLACK = 1e-6
_BLOCK_VOXELS = 1 << 19  # 2 MiB in float32
_VOXELS_A_THREAD = 1 << 18  # some milliseconds of work, so that starting a thread costs little


def border(mask: Mask) -> Mask:
    """Voxels of a mask with a face neighbour outside the mask or outside the image. Same shape."""
    # Erosion by one face-connected step: a voxel stays if both of its neighbours along every axis are in the mask.
    inner = mask.copy()
    for axis in range(mask.ndim):
        ahead, behind = _shifted(axis, 1), _shifted(axis, -1)
        inner[behind] &= mask[ahead]
        inner[ahead] &= mask[behind]
        for end in (0, -1):
            inner[(slice(None),) * axis + (end,)] = False
    return mask & ~inner


class SurfacePair:
    """Two masks with the distance of each voxel from their borders, from which every surface score is computed.

    Args:
        truth: Shape (I, J, K) or (I, J). Reference mask.
        predicted: Same shape and grid as `truth`.
        spacing_mm: Voxel size along each axis; pixels (all 1) for a planar image.

    Attributes:
        truth: In the box that holds both masks; voxels beyond it change no score.
        predicted: Same shape.
        to_truth: Same shape, float32: distance to the nearest border voxel of the truth; None if the truth is empty.
        to_predicted: The same for the prediction.

    Raises:
        ValueError: The masks differ in shape or are not boolean, or the spacing does not fit.
    """

    def __init__(self, truth: Mask, predicted: Mask, spacing_mm: Spacing) -> None:
        check_masks(truth, predicted)
        _check_lengths(truth.ndim, spacing_mm, 1.0)
        # Voxels beyond the common box change neither borders nor distances.
        if (window := bounding_box(truth | predicted, margin=[0] * truth.ndim)) is not None:
            truth, predicted = truth[window], predicted[window]
        # One distance map for each mask serves all scores: boundary IoU reads it inside its own mask, surface distances
        # at the border of the other mask.
        self.to_truth, self.to_predicted = (
            _distance_to(border(mask), spacing_mm) if mask.any() else None for mask in (truth, predicted)
        )
        self.truth, self.predicted = truth, predicted

    def boundary_iou(self, width_mm: float) -> float:
        """IoU of the two masks, counting only voxels near their own surface.

        The band of a mask is every voxel of it whose centre lies within `width_mm` of the centre of one of its border voxels.
        (With the distance to the outside instead, the caps of an organ would not count if slices are thicker than `width_mm`.)

        Args:
            width_mm: Depth of the band inside each surface, greater than 0, in the unit of the spacing.

        Returns:
            0 to 1. Both masks empty: 1. One empty: 0.

        Raises:
            ValueError: The width does not fit.

        Source: Cheng et al., Boundary IoU, CVPR 2021, arXiv:2103.16562.
        """
        _check_width(width_mm)
        # An empty mask has no border to measure from. IoU gives the agreed values: 1 if both are empty, 0 if one is.
        if self.to_truth is None or self.to_predicted is None:
            return iou(self.truth, self.predicted)
        most = reach(width_mm)
        return iou(self.truth & (self.to_truth <= most), self.predicted & (self.to_predicted <= most))

    def distances(self) -> "SurfaceDistances":
        """Distances from each border voxel of one mask to the nearest border voxel of the other."""
        return SurfaceDistances(
            _at_border(self.truth, self.to_truth, self.to_predicted),
            _at_border(self.predicted, self.to_predicted, self.to_truth),
        )


def reach(width_mm: float) -> float:
    """The width plus what rounding may add to a distance of the same length."""
    return width_mm * (1 + _SLACK) + _SLACK


def _at_border(mask: Mask, own: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Shape (n,): the distances to the other mask at the border voxels of a mask, whose own distance is 0."""
    if own is None:
        return np.zeros(0, np.float32)
    # edt gives exactly 0 at border voxels and at least the smallest spacing elsewhere.
    edge = own == 0
    return np.full(np.count_nonzero(edge), np.inf, np.float32) if other is None else other[edge]


def _distance_to(edge: Mask, spacing_mm: Spacing) -> NDArray[np.float32]:
    """Distance of each voxel's centre to the nearest voxel of `edge`, same shape; `edge` is not empty."""
    elsewhere = (~edge).view(np.uint8)  # faster in edt than booleans, which it gives to its threads line by line
    # edt holds the lock of the Python interpreter, so a large mask gets several threads of its own.
    threads = min(os.cpu_count() or 1, 1 + edge.size // _VOXELS_A_THREAD)
    # Without edt's black border: `border` has marked the voxels at the image's edge already.
    spacing = tuple(map(float, spacing_mm))
    return np.asarray(edt.edt(elsewhere, anisotropy=spacing, black_border=False, parallel=threads))


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between the border voxels of two masks, centre to centre, in the unit of the spacing.

    Attributes:
        truth_to_predicted: Shape (n,): distance of each border voxel of the truth to the prediction's nearest border voxel.
            Infinite if the prediction is empty; no element if the truth is empty.
        predicted_to_truth: Shape (m,): the same from the prediction to the truth.
    """

    truth_to_predicted: NDArray[np.float32]
    predicted_to_truth: NDArray[np.float32]

    @cached_property
    def both(self) -> NDArray[np.float32]:
        """Shape (n,): the distances of both directions, in the unit of the spacing."""
        return np.concatenate([self.truth_to_predicted, self.predicted_to_truth])


def surface_distances(truth: Mask, predicted: Mask, spacing_mm: Spacing) -> SurfaceDistances:
    """Distances from each border voxel of one mask to the nearest border voxel of the other.

    Args:
        truth: Shape (I, J, K) or (I, J). Reference mask.
        predicted: Same shape and grid.
        spacing_mm: Voxel size along each axis.

    Raises:
        ValueError: The masks differ in shape or are not boolean, or the spacing does not fit.
    """
    return SurfacePair(truth, predicted, spacing_mm).distances()


def hausdorff_distance(distances: SurfaceDistances, *, percentile: float = 95.0) -> float:
    """The larger of the two directed percentiles of the surface distances ("HD95"), in the unit of the spacing.

    Returns:
        0 or more. Both masks empty: 0. One empty: infinity, since there is no distance; count such cases apart.

    Source: Huttenlocher et al. 1993; the percentile is taken for each direction, as in MONAI and MetricsReloaded.
    """
    both = distances.both
    # np.percentile interpolates between infinities to NaN, so an empty mask is answered before.
    if not np.isfinite(both).all():
        return float("inf")
    # The percentile of the pooled distances would be another figure (panoptica's); the longer border would outweigh the
    # other.
    directed = [distances.truth_to_predicted, distances.predicted_to_truth]
    return max((float(np.percentile(d, percentile)) for d in directed if d.size), default=0.0)


def average_surface_distance(distances: SurfaceDistances) -> float:
    """Mean of the surface distances, both directions pooled ("ASSD"). Empty masks as in `hausdorff_distance`."""
    both = distances.both
    # The distances are float32; their sum is taken in float64.
    return float(both.mean(dtype=np.float64)) if both.size else 0.0


def normalised_surface_dice(distances: SurfaceDistances, *, tolerance_mm: float) -> float:
    """Part of both surfaces that lies within the tolerance of the other ("NSD", surface Dice).

    Every border voxel counts once, whatever its area; DeepMind's `surface-distance` weights by area.

    Returns:
        0 to 1. Both masks empty: 1. One empty: 0.

    Source: Nikolov et al., arXiv:1809.04430.
    """
    both = distances.both
    return float(np.mean(both <= reach(tolerance_mm))) if both.size else 1.0


def surface_band(
    predicted_foreground: Mask, spacing_mm: Spacing, width_mm: float, *, valid: Mask | None = None
) -> Mask:
    """Voxels whose centre lies within `width_mm`, on either side, of the surface of a predicted foreground.

    The surface is the set of faces between a foreground and a background voxel. A face is represented by its centre, midway
    between the two voxel centres. So voxels beside a flat surface across axis a have a distance of (n - 1/2) spacings of this
    axis, n = 1, 2, ..., the same on both sides, whatever the anisotropy.
    Reason for the centres: on a slanted surface the edges of the steps stick out, so whole faces give a band that is too wide,
    and distances between voxel centres give a band that is too narrow. A ball of radius 9 mm on voxels of 1 mm, band 2 mm,
    compared with the true spherical shell: IoU 0.94 (whole faces 0.86, voxel centres 0.85).

    Args:
        predicted_foreground: Shape (I, J, K) or (I, J). Chosen by the prediction alone, never by the truth: in a region that
            the outcome chooses, probabilities cannot be calibrated.
        spacing_mm: Voxel size along each axis.
        width_mm: Largest distance from the surface, greater than 0.
        valid: Same shape. Voxels that count, or None for all. A face lies between two valid voxels, so at the end of the valid
            voxels there is no surface, as at the image's edge.

    Returns:
        Same shape, valid voxels only. All False if there is no surface (no voxel, or every voxel, is foreground).

    Raises:
        ValueError: A mask is not boolean, or shapes, width or spacing do not fit.
    """
    check_masks(predicted_foreground, predicted_foreground)
    if valid is not None and (valid.dtype != np.bool_ or valid.shape != predicted_foreground.shape):
        raise ValueError(
            f"valid is {valid.dtype} {valid.shape}; a boolean mask of {predicted_foreground.shape} is needed"
        )
    _check_lengths(predicted_foreground.ndim, spacing_mm, width_mm)
    band = np.zeros_like(predicted_foreground)
    # Only voxels near the foreground can lie in the band; two further voxels hold the faces and the rounding.
    margin = [int(width_mm / step) + 2 for step in spacing_mm]
    window = bounding_box(predicted_foreground, margin)
    if window is None:
        return band
    mask, counts, near = predicted_foreground[window], None if valid is None else valid[window], band[window]
    for block, around, inside in _blocks(mask.shape, margin):
        part = np.ascontiguousarray(mask[around])
        if not part.all() and part.any():
            near[block] = _near_faces(part, None if counts is None else counts[around], spacing_mm, width_mm)[inside]
    if valid is not None:
        band &= valid
    return band


def _blocks(shape: Sequence[int], margin: Sequence[int]) -> Iterator[tuple[Box, Box, Box]]:
    """Boxes that tile an array, each with the box that has a margin around it, and its own place in this larger box."""
    # Distances of a block fit the cache of a processor. Much smaller than its margin it would be mostly margin.
    usual = round(_BLOCK_VOXELS ** (1 / len(shape)))
    lengths = [max(usual, 4 * wide) for wide in margin]
    for starts in product(*(range(0, whole, length) for whole, length in zip(shape, lengths, strict=True))):
        sides = list(zip(starts, shape, lengths, margin, strict=True))
        block = tuple(slice(start, min(start + length, whole)) for start, whole, length, _ in sides)
        around = tuple(slice(max(0, start - wide), start + length + wide) for start, _, length, wide in sides)
        inside = tuple(slice(b.start - a.start, b.stop - a.start) for b, a in zip(block, around, strict=True))
        yield block, around, inside


def _near_faces(mask: Mask, valid: Mask | None, spacing_mm: Spacing, width_mm: float) -> Mask:
    """The band in an array whose outside does not count."""
    # Squares are compared, so that no root is taken. Centres of the faces across each axis form a grid of their own,
    # shifted by half a voxel along this axis; the band is the union over the axes.
    limit, band = np.float32(reach(width_mm) ** 2), np.zeros(mask.shape, bool)
    for axis in range(mask.ndim):
        faces = np.diff(mask, axis=axis)
        if valid is not None:
            faces &= valid[_shifted(axis, 1)] & valid[_shifted(axis, -1)]
        faces = np.moveaxis(faces, axis, 0)
        band |= _squared_distance_to_faces(faces, mask.shape, axis, spacing_mm, width_mm) <= limit
    return band


def _squared_distance_to_faces(
    faces: Mask, shape: tuple[int, ...], axis: int, spacing_mm: Spacing, width_mm: float
) -> NDArray[np.float32]:
    """Squared distance of each voxel centre to the centre of the nearest face across `axis`; infinite beyond `width_mm`.

    Of `faces` this axis comes first and is one shorter: whether a voxel and the next along it differ, and both are valid.
    The squared distance is a sum over the axes, so one running minimum along each axis finds it exactly.
    """
    squared = np.full(shape, np.inf, dtype=np.float32)
    near, step = np.moveaxis(squared, axis, 0), spacing_mm[axis]
    # The number of n from 0 on with (n + 1/2) steps within the width.
    most = min(int(width_mm / step + 0.5 + _SLACK), len(faces))
    for n in range(most - 1, -1, -1):  # farthest first, so that nearer faces overwrite it
        cost, last = np.float32(((n + 0.5) * step) ** 2), len(faces) - n
        near[:last][faces[n:]] = cost  # the face lies n voxels and a half ahead
        near[n + 1 :][faces[:last]] = cost  # the face lies n voxels and a half behind
    for other in (a for a in range(len(shape)) if a != axis):
        squared = _spread(squared, other, spacing_mm[other], int(width_mm / spacing_mm[other] + _SLACK))
    return squared


def _spread(squared: NDArray[np.float32], axis: int, step: float, most: int) -> NDArray[np.float32]:
    """For each voxel the least of `squared` at a voxel up to `most` steps away along an axis, plus the square of this way."""
    least = squared.copy()
    for n in range(1, min(most, squared.shape[axis] - 1) + 1):
        cost = np.float32((n * step) ** 2)
        ahead, behind = _shifted(axis, n), _shifted(axis, -n)
        np.minimum(least[ahead], squared[behind] + cost, out=least[ahead])
        np.minimum(least[behind], squared[ahead] + cost, out=least[behind])
    return least


def _shifted(axis: int, n: int) -> tuple[slice, ...]:
    """Index of all voxels but the first n (n > 0) or the last -n (n < 0) along an axis."""
    return (*(slice(None),) * axis, slice(n, None) if n > 0 else slice(None, n))


def _check_lengths(ndim: int, spacing_mm: Spacing, width_mm: float) -> None:
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if ndim not in (2, 3) or spacing.shape != (ndim,):
        raise ValueError(
            f"masks of {ndim} dimensions came with spacing {tuple(spacing_mm)}; 2D or 3D, one length an axis"
        )
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise ValueError(f"spacing is {tuple(spacing_mm)}; finite lengths above 0 are needed")
    _check_width(width_mm)


def _check_width(width_mm: float) -> None:
    if not (np.isfinite(width_mm) and width_mm > 0):
        raise ValueError(f"width is {width_mm}; a finite length above 0 is needed")
