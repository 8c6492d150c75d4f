"""What goes wrong with images, on purpose: sound images of calibration subjects, spoiled as scanners and exports spoil them.

Each way is a pure function of image, labels and a random generator; labels go along where the anatomy does.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dicom_io.volume import Volume

Pair = tuple[NDArray[Any], NDArray[Any]]
Corruption = Callable[[NDArray[Any], NDArray[Any], np.random.Generator], Pair]


TRUNCATED = "truncated"
"""The field of view ends too early: slices, rows or columns are missing on one side, and a part of the structures with them."""

_KEPT = 0.4, 0.8  # part of the field of view that is left of a truncated one


def spoil(volume: Volume, labels: NDArray[Any], how: str, seed: int) -> tuple[Volume, NDArray[Any]]:
    """The volume and its labels (I, J, K), spoiled in one of `ways_for` it; the same for the same seed.

    TRUNCATED gives a smaller grid; every other way keeps it.
    """
    if how == TRUNCATED:
        return _truncated(volume, labels, np.random.default_rng([seed, len(WAYS)]))
    generator = np.random.default_rng([seed, sorted(WAYS).index(how)])
    image, moved = WAYS[how](volume.array.astype(np.float32), labels, generator)
    return replace(volume, array=np.ascontiguousarray(image)), np.ascontiguousarray(moved)


def ways_for(volume: Volume) -> tuple[str, ...]:
    """The names of what can be done to it: a picture has no third axis, and one in colour a last one that is none of space."""
    return tuple(name for name in sorted([*WAYS, TRUNCATED]) if not (volume.planar and name in _OF_VOLUMES))


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
    """A random part of the field of view along a random axis; what is left stays where it was in the patient."""
    axis, first = int(generator.integers(_dimensions(volume.array))), bool(generator.integers(2))
    size = volume.array.shape[axis]
    kept = max(1, round(size * generator.uniform(*_KEPT)))
    return truncated(volume, labels, axis, slice(kept) if first else slice(size - kept, None))


def truncated(volume: Volume, labels: NDArray[Any], axis: int, kept: slice) -> tuple[Volume, NDArray[Any]]:
    """A part of a volume and of its labels, in its place in the patient.

    Args:
        volume: The image.
        labels: Shape (I, J, K), label values, or (I, J, K, C).
        axis: The array axis that is cut, 0 to 2.
        kept: The voxels along this axis that are kept.
    """
    part = _along(axis, kept)
    affine_lps = volume.affine_lps.copy()
    affine_lps[:3, 3] += affine_lps[:3, axis] * kept.indices(volume.array.shape[axis])[0]
    image, moved = np.ascontiguousarray(volume.array[part]), np.ascontiguousarray(labels[part])
    return replace(volume, array=image, affine_lps=affine_lps), moved


def _noise(level: float) -> Corruption:
    return lambda a, t, g: (a + g.normal(0, level * a.std(), a.shape).astype(np.float32), t)


def _blur(voxels: float) -> Corruption:
    return lambda a, t, g: (ndimage.gaussian_filter(a, _spatial(a, voxels)), t)


def _gamma(power: float) -> Corruption:
    def change(a: NDArray[Any], t: NDArray[Any], g: np.random.Generator) -> Pair:
        span = float(np.ptp(a)) or 1.0
        return ((a - a.min()) / span) ** np.float32(power) * span + a.min(), t

    return change


def _invert(a: NDArray[Any], t: NDArray[Any], g: np.random.Generator) -> Pair:
    return a.max() + a.min() - a, t


def _shade(a: NDArray[Any], t: NDArray[Any], g: np.random.Generator) -> Pair:
    """A field of brightness that rises several times along a random direction, as of a surface coil."""
    towards = g.normal(size=_dimensions(a))
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in a.shape[: len(towards)]), indexing="ij")
    slope = sum(step * axis for step, axis in zip(towards / np.linalg.norm(towards), grid, strict=True))
    field = np.exp(np.float32(1.2) * np.asarray(slope, dtype=np.float32))
    return a * field.reshape(*field.shape, *[1] * (a.ndim - field.ndim)), t


def _flip(axis: int) -> Corruption:
    return lambda a, t, g: (np.flip(a, axis), np.flip(t, axis))


def _cut(a: NDArray[Any], t: NDArray[Any], g: np.random.Generator) -> Pair:
    """Half of the field of view is empty, along a random axis."""
    axis, side = int(g.integers(_dimensions(a))), bool(g.integers(2))
    half = a.shape[axis] // 2
    left = a.copy()
    left[_along(axis, slice(half) if side else slice(half, None))] = a.min()
    return left, t


def _zoom(factor: float) -> Corruption:
    """As if the header's spacing were wrong by this factor."""

    def change(a: NDArray[Any], t: NDArray[Any], g: np.random.Generator) -> Pair:
        return _resampled(a, factor, order=1), _resampled(t, factor, order=0)

    return change


def _resampled(array: NDArray[Any], factor: float, order: int) -> NDArray[Any]:
    dimensions = 2 if array.ndim > 2 and array.shape[2] == 1 else min(array.ndim, 3)
    scale = np.ones(array.ndim)
    scale[:dimensions] = 1 / factor
    centre = (np.array(array.shape) - 1) / 2
    return np.asarray(ndimage.affine_transform(array, scale, centre - scale * centre, order=order, mode="nearest"))


def _ghost(a: NDArray[Any], t: NDArray[Any], g: np.random.Generator) -> Pair:
    """Every other line of k-space along one axis is of a body that has moved."""
    axis = int(g.integers(_dimensions(a)))
    lines = np.fft.fft(a, axis=axis)
    moved = np.fft.fft(np.roll(a, max(1, a.shape[axis] // 8), axis=axis), axis=axis)
    every_other = _along(axis, slice(None, None, 2))
    lines[every_other] = moved[every_other]
    return np.abs(np.fft.ifft(lines, axis=axis)).astype(np.float32), t


def _shuffle(a: NDArray[Any], t: NDArray[Any], g: np.random.Generator) -> Pair:
    """Slices in a wrong order."""
    return a[:, :, g.permutation(a.shape[2])], t


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, part)


def _dimensions(array: NDArray[Any]) -> int:
    """Axes of space along which there is more than one voxel."""
    return 2 if array.ndim > 2 and array.shape[2] == 1 else 3


def _spatial(array: NDArray[Any], value: float) -> tuple[float, ...]:
    return tuple(value if axis < _dimensions(array) else 0.0 for axis in range(array.ndim))


WAYS: Mapping[str, Corruption] = {
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
_OF_VOLUMES = frozenset({"flipped along K", "slices shuffled"})
