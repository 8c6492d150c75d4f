"""Corrupted images: sound images of calibration subjects with the faults that scanners and exports cause.

Each corruption is a pure function of image, labels and a random generator. Where it moves the anatomy, it moves the labels too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_io.boxes import Box
from dicom_io.volume import Volume

Pair = tuple[NDArray[Any], NDArray[Any]]
Corruption = Callable[[NDArray[Any], NDArray[Any], np.random.Generator], Pair]


TRUNCATED = "truncated"
"""The field of view ends too early: slices, rows or columns are missing on one side, and a part of the structures with them."""

_SPACE = (0, 1, 2)
"""Axes of an image over which intensities are measured: channels may differ by orders of magnitude."""

_REMAINING = 0.4, 0.8  # least and largest part of the field of view that a truncated image has


def corrupted(volume: Volume, labels: NDArray[Any], name: str, seed: int) -> tuple[Volume, NDArray[Any]]:
    """The volume and its labels with one corruption. The same seed gives the same result.

    TRUNCATED gives a smaller grid; every other corruption keeps the grid.

    Args:
        volume: The image.
        labels: Shape (I, J, K), label values, or (I, J, K, C).
        name: Of the corruption; `corruptions_of` lists those that the image can have.
        seed: Of the random generator; every corruption has a generator of its own.
    """
    generator = np.random.default_rng([seed, [*sorted(CORRUPTIONS), TRUNCATED].index(name)])
    if name == TRUNCATED:
        return _truncated(volume, labels, generator)
    image, moved = CORRUPTIONS[name](volume.array.astype(np.float32), labels, generator)
    return replace(volume, array=np.ascontiguousarray(image)), np.ascontiguousarray(moved)


def corruptions_of(volume: Volume) -> tuple[str, ...]:
    """The names of the corruptions that an image can have. Those along the third axis are left out for a picture."""
    return tuple(
        name for name in sorted([*CORRUPTIONS, TRUNCATED]) if not (volume.planar and name in _ALONG_THIRD_AXIS)
    )


def dice_of_whole(truth: NDArray[np.bool_], predicted: NDArray[np.bool_], lost: int = 0) -> float:
    """Dice against the whole structure, of which a part may lie outside the image.

    Args:
        truth: Shape (I, J, K) or (I, J). The part of the structure that lies in the image.
        predicted: Same shape. The structure as segmented.
        lost: Voxels of the structure outside the image.

    Returns:
        0 to 1; 1 if both masks are empty and nothing was lost.
    """
    both = int(np.count_nonzero(truth)) + lost + int(np.count_nonzero(predicted))
    return 2 * int(np.count_nonzero(truth & predicted)) / both if both else 1.0


def _truncated(volume: Volume, labels: NDArray[Any], generator: np.random.Generator) -> tuple[Volume, NDArray[Any]]:
    """A random part of the field of view along a random axis; the voxels stay in their place in the patient."""
    axis, from_first = int(generator.integers(_dimensions(volume.array))), bool(generator.integers(2))
    size = volume.array.shape[axis]
    remaining = max(1, round(size * generator.uniform(*_REMAINING)))
    return truncated(volume, labels, axis, slice(remaining) if from_first else slice(size - remaining, None))


def truncated(volume: Volume, labels: NDArray[Any], axis: int, remaining: slice) -> tuple[Volume, NDArray[Any]]:
    """A part of a volume and of its labels, in its place in the patient.

    Args:
        volume: The image.
        labels: Shape (I, J, K), label values, or (I, J, K, C).
        axis: The array axis that is cut, 0 to 2.
        remaining: The voxels along this axis that the part has.
    """
    i, j, k = (slice(*(remaining if n == axis else slice(None)).indices(size)) for n, size in enumerate(volume.shape))
    return volume.cropped((i, j, k)), np.ascontiguousarray(labels[i, j, k])


def crop_around(volume: Volume, centre: Sequence[float], sizes: Sequence[int]) -> Box:
    """A box of a volume, moved into it where it would reach beyond.

    Args:
        volume: The image.
        centre: Index of the voxel in the middle.
        sizes: Of the box along I, J, K, in voxels; no more than the image has.
    """
    starts = [
        min(max(0, round(middle) - size // 2), n - size)
        for middle, size, n in zip(centre, sizes, volume.shape, strict=True)
    ]
    i, j, k = (slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    return i, j, k


def _noise(level: float) -> Corruption:
    """Gaussian noise with this multiple of each channel's own standard deviation."""
    return lambda image, labels, generator: (
        image + generator.normal(0, level * image.std(_SPACE, keepdims=True), image.shape).astype(np.float32),
        labels,
    )


def _blur(voxels: float) -> Corruption:
    """Gaussian blur with this standard deviation along every axis of space."""
    return lambda image, labels, generator: (
        ndimage.gaussian_filter(image, [voxels if axis < _dimensions(image) else 0.0 for axis in range(image.ndim)]),
        labels,
    )


def _gamma(power: float) -> Corruption:
    """Intensities of each channel, scaled to 0 to 1, to this power: darker above 1, brighter below."""

    def change(image: NDArray[Any], labels: NDArray[Any], generator: np.random.Generator) -> Pair:
        least, span = image.min(_SPACE, keepdims=True), np.ptp(image, _SPACE, keepdims=True)
        span[span == 0] = 1  # a channel of a single value
        return ((image - least) / span) ** np.float32(power) * span + least, labels

    return change


def _invert(image: NDArray[Any], labels: NDArray[Any], generator: np.random.Generator) -> Pair:
    return image.max(_SPACE, keepdims=True) + image.min(_SPACE, keepdims=True) - image, labels


def _shade(image: NDArray[Any], labels: NDArray[Any], generator: np.random.Generator) -> Pair:
    """Brightness that rises by a factor of 11 (e^2.4) or more along a random direction, as beside a surface coil in MR."""
    direction = generator.normal(size=_dimensions(image))
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape[: len(direction)]), indexing="ij")
    slope = sum(step * axis for step, axis in zip(direction / np.linalg.norm(direction), grid, strict=True))
    field = np.exp(np.float32(1.2) * np.asarray(slope, dtype=np.float32))
    return image * field.reshape(*field.shape, *[1] * (image.ndim - field.ndim)), labels


def _flip(axis: int) -> Corruption:
    return lambda image, labels, generator: (np.flip(image, axis), np.flip(labels, axis))


def _cut(image: NDArray[Any], labels: NDArray[Any], generator: np.random.Generator) -> Pair:
    """Half of the field of view is empty, along a random axis."""
    axis, first_half = int(generator.integers(_dimensions(image))), bool(generator.integers(2))
    half = image.shape[axis] // 2
    cut = image.copy()
    cut[_along(axis, slice(half) if first_half else slice(half, None))] = image.min(_SPACE, keepdims=True)
    return cut, labels


def _zoom(factor: float) -> Corruption:
    """As if the header's spacing were wrong by this factor."""
    return lambda image, labels, generator: (
        _resampled(image, factor, order=1),
        # Nearest neighbour: the mean of two label values would be a third structure.
        _resampled(labels, factor, order=0),
    )


def _resampled(array: NDArray[Any], factor: float, order: int) -> NDArray[Any]:
    scale = np.ones(array.ndim)
    scale[: _dimensions(array)] = 1 / factor
    # The centre of the grid stays in its place.
    centre = (np.array(array.shape) - 1) / 2
    return np.asarray(ndimage.affine_transform(array, scale, centre - scale * centre, order=order, mode="nearest"))


def _ghost(image: NDArray[Any], labels: NDArray[Any], generator: np.random.Generator) -> Pair:
    """Ghosts of motion: every other line of k-space along a random axis shows the body an eighth of the image further."""
    axis = int(generator.integers(_dimensions(image)))
    # A difference between even and odd lines gives a copy half a field of view away (N/2 ghost).
    lines = np.fft.fft(image, axis=axis)
    moved = np.fft.fft(np.roll(image, max(1, image.shape[axis] // 8), axis=axis), axis=axis)
    every_other = _along(axis, slice(None, None, 2))
    lines[every_other] = moved[every_other]
    # MR shows magnitudes; with mixed lines the inverse transform is complex.
    return np.abs(np.fft.ifft(lines, axis=axis)).astype(np.float32), labels


def _shuffle(image: NDArray[Any], labels: NDArray[Any], generator: np.random.Generator) -> Pair:
    """Slices in a wrong order; the labels stay in the order of the anatomy."""
    return image[:, :, generator.permutation(image.shape[2])], labels


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, part)


def _dimensions(array: NDArray[Any]) -> int:
    """Number of spatial axes of an image or its labels: 2 for a picture, (I, J, 1) or (I, J, 1, C)."""
    return 2 if array.shape[2] == 1 else 3


CORRUPTIONS: Mapping[str, Corruption] = {
    "noise": _noise(0.5),
    "strong noise": _noise(2.0),
    "blur": _blur(1.5),
    "strong blur": _blur(3.0),
    "dark": _gamma(3.0),
    "bright": _gamma(0.4),
    "inverted": _invert,
    "shading": _shade,
    "flipped along J": _flip(1),
    "flipped along K": _flip(2),
    "half cut off": _cut,
    "too large": _zoom(1.5),
    "too small": _zoom(0.6),
    "ghosts": _ghost,
    "slices shuffled": _shuffle,
}
_ALONG_THIRD_AXIS = frozenset({"flipped along K", "slices shuffled"})
