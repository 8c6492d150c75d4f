"""What is kept of a case after it has been read, so that it can be compared with all others: some kilobytes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from dicom_io.volume import LPS_FROM_RAS, Volume
from monai_unet_app.data.digest import in_ras, turned_to_ras
from monai_unet_app.metrics.boxes import bounding_box

Floats = NDArray[np.float32]

# Of `Fit`, for the labels of one image
_CLEARLY, _AGREES = 1.05, 1.1  # how much more, and how much at least, edges agree with flipped labels that are right
_BETTER_AWAY = 0.92  # of `nearest`: below it edges speak for labels some voxels away
_MORE_AWAY = 1.2  # how much more than usual they agree there at least
_TELLS = 1.3  # of `ratio`: below it edges tell nothing
PICTURE_EDGE = {2: 64, 3: 16}
"""Blocks along the longest axis of a small picture of a picture, and of a volume."""

FARTHEST = 6  # voxels that a label is moved by, to see whether it lies on its image
_MOVES = (3, 4, 5, FARTHEST)
_LEAST_SURFACE = 50  # voxels: of fewer the mean says little
_SURFACE = 1200  # voxels of the surface that are looked at
_MOST_VOXELS = 2**22  # of a cut-out; a larger one is thinned out
_SAMPLED = 100_000  # voxels, for percentiles
_DETAIL = 5  # blocks: what is wider is taken off the small picture, since all images of one organ have it in common


@dataclass(frozen=True)
class ClassPlace:
    """Where one structure of a case is, beside the other structures of this case.

    Attributes:
        centre: From the centre of all structures to its own, in LPS, divided by their root mean square radius; along I, J and
            K for pictures.
        share: Of the voxels of all structures, 0 to 1.
        brightness: Its mean intensity less that of all structures, divided by their deviation.
    """

    centre: tuple[float, float, float]
    share: float
    brightness: float


Lie = Literal["follow", "tell nothing", "mirrored", "moved"]


@dataclass(frozen=True)
class Fit:
    """How well the surface of a label follows the edges of its image.

    Attributes:
        ratio: Agreement where the label lies, divided by the mean agreement where it is moved by some voxels; about 1 for a
            label of another image.
        nearest: Agreement where it lies, or one voxel off, divided by the best agreement where it is moved.
    """

    ratio: float
    nearest: float


@dataclass(frozen=True)
class Sketch:
    """What is kept of one case.

    Attributes:
        content: Digest of the voxels, whatever their header and the order of their axes.
        label: Digest of the label's voxels; empty without a label or for an empty one.
        patient: `Provenance.patient_digest`.
        picture: Shape (16, 16, 16), or (64, 64, 1) for pictures: detail of the image in blocks, of length 1.
        classes: By label value above 0.
        fit: None without a label, or where its surface is too small.
        directions: Shape (3, 3): column n is the direction in LPS of axis n of the array in RAS order; the axes themselves for
            pictures.
    """

    content: str
    label: str
    patient: str
    picture: Floats
    classes: Mapping[int, ClassPlace]
    fit: Fit | None
    directions: NDArray[np.float64]


def sketch_of(volume: Volume, labels: Volume | None) -> Sketch:
    """What is kept of a case.

    Args:
        volume: Shape (I, J, K) or (I, J, K, C).
        labels: Shape (I, J, K) on the same grid, whole numbers.
    """
    image = in_ras(volume)
    numbers = in_ras(labels) if labels is not None and labels.array.any() else None
    return Sketch(
        content=_digest(turned_to_ras(volume.array, volume)),
        label="" if numbers is None else _digest(numbers),
        patient=volume.provenance.patient_digest,
        picture=small_picture(image, planar=volume.planar),
        classes={} if numbers is None else _class_places(image, numbers, volume),
        fit=None if numbers is None else fit_of(image, numbers),
        directions=(steps := _steps(volume)) / np.linalg.norm(steps, axis=0),
    )


def _digest(array: NDArray[np.generic]) -> str:
    digest = hashlib.sha256(repr(array.shape).encode())
    for plane in array.T:  # planes, since a digest needs a copy in order
        digest.update(np.ascontiguousarray(plane, dtype=np.float32).data)
    return digest.hexdigest()


def small_picture(image: NDArray[np.generic], *, planar: bool) -> Floats:
    """Means of blocks without what is wider than five blocks, in the corner of a cube of zeros; of length 1.

    The size of a block is a whole number of voxels, so that a moved or cut image has the same picture at another place.

    Args:
        image: Shape (I, J, K).
        planar: Whether it is a picture, of which K is 1.
    """
    edge = PICTURE_EDGE[2 if planar else 3]
    blocks = image.astype(np.float32, copy=False)
    for axis, length in enumerate(image.shape):
        blocks = _block_means(blocks, -(-length // edge), axis)
    blocks = np.clip(blocks, *np.percentile(blocks, (0.5, 99.5)))
    window = [_DETAIL if length > 1 else 1 for length in blocks.shape]
    detail = blocks - ndimage.uniform_filter(blocks, window, mode="nearest")
    detail = np.clip(detail / (detail.std() or 1.0), -4, 4)
    picture = np.zeros((edge, edge, 1 if planar else edge), np.float32)
    picture[tuple(slice(length) for length in detail.shape)] = detail
    return picture / np.float32(np.linalg.norm(picture) or 1.0)


def _block_means(array: NDArray[np.generic], size: int, axis: int) -> Floats:
    starts = np.arange(0, array.shape[axis], size)
    counts = np.diff(np.append(starts, array.shape[axis]))
    sums = np.add.reduceat(array, starts, axis=axis, dtype=np.float32)
    return np.asarray(sums / counts.reshape([-1 if n == axis else 1 for n in range(3)]), dtype=np.float32)


def _class_places(image: NDArray[np.generic], numbers: NDArray[np.generic], volume: Volume) -> dict[int, ClassPlace]:
    step = _thinning(numbers.shape)
    some = tuple(slice(None, None, n) for n in step)
    numbers, image = numbers[some], image[some]
    places = np.nonzero(numbers)
    values, which = np.unique(numbers[places], return_inverse=True)
    if not values.size:
        return {}
    counts = np.bincount(which)
    world = (_steps(volume) * step) @ np.array(places, dtype=np.float64)
    world -= world.mean(axis=1, keepdims=True)
    radius = float(np.sqrt((world**2).sum(axis=0).mean())) or 1.0
    bright = image[places].astype(np.float64)
    bright = (bright - bright.mean()) / (bright.std() or 1.0)
    centres = [np.bincount(which, along) / counts / radius for along in world]
    columns = (values.astype(int), *centres, counts / counts.sum(), np.bincount(which, bright) / counts)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {value: ClassPlace((x, y, z), share, brightness) for value, x, y, z, share, brightness in rows}


def _thinning(shape: Sequence[int]) -> list[int]:
    """Every how many voxels along each axis are taken, so that few enough are left; the longest axis is thinned first."""
    step = [1] * len(shape)
    while np.prod(left := [-(-length // n) for length, n in zip(shape, step, strict=True)]) > _MOST_VOXELS:
        step[int(np.argmax(left))] += 1
    return step


def _steps(volume: Volume) -> NDArray[np.float64]:
    """Shape (3, 3): column n is the step in LPS mm along axis n of the array in RAS order; of one pixel for pictures."""
    if volume.planar:
        return np.eye(3)
    steps = np.zeros((3, 3))
    for axis, (to, sign) in enumerate(io_orientation(volume.affine_ras)):
        steps[:, int(to)] = sign * volume.affine_ras[:3, axis]
    return LPS_FROM_RAS[:3, :3] @ steps


def fit_of(image: NDArray[np.generic], numbers: NDArray[np.generic]) -> Fit | None:
    """How well the surface of all structures follows the edges of the image; None if there are fewer than 50 voxels of it.

    The agreement at a voxel of the surface is (n . g)^2 / (|g|^2 + e^2), where n is the normal of the label, g the gradient of
    the smoothed image and e the usual |g|: 0 to 1, whether the structure is brighter or darker than what is around it.

    Args:
        image: Shape (I, J, K); 1 along an axis that does not count.
        numbers: Same shape; 0 is the background.

    Source: Haber and Modersitzki, Intensity Gradient Based Registration and Fusion, MICCAI 2006 (normalised gradient fields).
    """
    axes = [axis for axis, length in enumerate(image.shape) if length > 2]
    smooth, mask = _cut_out(image, numbers, axes)
    slopes = [np.gradient(mask, axis=axis) for axis in axes]
    steepness = np.sqrt(sum((slope**2 for slope in slopes), np.zeros_like(mask)))
    points = np.argwhere(steepness > 0)
    if len(points) < _LEAST_SURFACE:
        return None
    points = points[:: -(-len(points) // _SURFACE)]
    at = tuple(points.T)
    normals = np.array([slope[at] for slope in slopes]) / steepness[at]
    moves = _moves(axes)
    # Not a number outside and on the border, so that no move leaves the array
    margin = [(FARTHEST + 1) * (axis in axes) for axis in range(3)]
    around = np.pad(smooth, [(n, n) for n in margin], constant_values=np.nan)
    slopes = [np.gradient(around, axis=axis) for axis in axes]
    places = [tuple((points + move + margin).T) for move in moves]
    gradients = np.array([[slope[place] for slope in slopes] for place in places], float)  # (moves, axes, points)
    lengths = (gradients**2).sum(axis=1)
    inside = np.isfinite(lengths).any(axis=1)  # moves that leave some of the surface in the image
    if not inside[0]:
        return None
    gradients, lengths, distance = gradients[inside], lengths[inside], np.abs(moves[inside]).max(axis=1)
    usual = float(np.nanmedian(lengths)) or float(np.nanmean(lengths)) or 1.0
    agreement = np.nanmean((gradients * normals).sum(axis=1) ** 2 / (lengths + usual), axis=1)
    far = agreement[distance > 1]
    if not far.max(initial=0) > 0:
        return None
    return Fit(float(agreement[0] / far.mean()), float(agreement[distance <= 1].max() / far.max()))


def lie_of(image: NDArray[np.generic], numbers: NDArray[np.generic]) -> tuple[Lie, int]:
    """How the labels of one image lie on it, by its edges, and the axis along which they are mirrored (else -1).

    "mirrored": edges agree clearly better with the labels flipped along an axis. "moved": they agree better some voxels away.
    "tell nothing": neither, and they hardly agree more than with moved labels. `benchmarks/label_place.py` tells how often each
    of these is right.

    Args:
        image: Shape (I, J, K).
        numbers: Same shape; 0 is the background; some voxel is not.
    """
    own = fit_of(image, numbers)
    if own is None:
        return "tell nothing", -1
    flipped = [fit_of(image, np.flip(numbers, axis)) if numbers.shape[axis] > 1 else None for axis in range(3)]
    ratios = [fit.ratio if fit else 0.0 for fit in flipped]
    best = int(np.argmax(ratios))
    if ratios[best] > max(_CLEARLY * own.ratio, _AGREES):
        return "mirrored", best
    if own.nearest < _BETTER_AWAY and own.ratio / own.nearest > _MORE_AWAY:
        return "moved", -1
    return ("follow" if own.ratio >= _TELLS else "tell nothing"), -1


def _cut_out(image: NDArray[np.generic], numbers: NDArray[np.generic], axes: Sequence[int]) -> tuple[Floats, Floats]:
    """The smoothed image and the mask of all structures, around the structures."""
    marked = numbers != 0
    box = bounding_box(marked, [FARTHEST + 3] * 3)
    assert box is not None
    some = tuple(slice(None, None, n) for n in _thinning(image[box].shape))
    part = np.asarray(image[box][some], dtype=np.float32)
    low, high = np.percentile(part.ravel()[:: -(-part.size // _SAMPLED)], (1, 99))
    smooth = ndimage.gaussian_filter(
        np.clip(part, low, high), [1.0 if axis in axes else 0.0 for axis in range(3)], truncate=3.0
    )
    return smooth, marked[box][some].astype(np.float32)


def _moves(axes: Sequence[int]) -> NDArray[np.int64]:
    """Shape (M, 3): no move first, then by one voxel, then by three to six voxels, along the axes and across all of them."""
    steps = np.array([d for d in product((-1, 0, 1), repeat=3) if not any(d[n] for n in range(3) if n not in axes)])
    directions = [step for step in steps if np.abs(step).sum() in (1, len(axes))]
    return np.array([(0, 0, 0), *(step * far for far in (1, *_MOVES) for step in directions)])
