"""nnU-Net's resampling: cubic for images, linear for logits, and by the nearest slice along an axis of thick slices."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor

Box = tuple[slice, ...]
Knot = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Positions on an axis, and the weights of the values there."""

_SLAB_VOXELS = 1 << 18  # whose positions are in memory at once
_SPLINE_BORDER = 12  # voxels, in scipy.ndimage
_THICK = 3  # times the finest spacing: a coarser axis is resampled by itself


@dataclass(frozen=True)
class Kernel:
    """How a plan resamples: the order of the spline, and an axis that is resampled by itself.

    Attributes:
        order: 0 nearest, 1 linear, 3 cubic.
        order_z: As `order`.
        separate_z: None: where one axis is more than three times as coarse as the finest.
    """

    order: int
    order_z: int = 0
    separate_z: bool | None = None

    def axis(self, old: Sequence[float], new: Sequence[float]) -> int | None:
        """The axis that is resampled by itself, from one spacing in mm to another; None for no axis."""
        if self.separate_z is False:
            return None
        for spacing in (old,) if self.separate_z else (old, new):
            if self.separate_z or max(spacing) / min(spacing) > _THICK:
                coarse = [axis for axis, step in enumerate(spacing) if max(spacing) / step == 1]
                return coarse[0] if len(coarse) == 1 else None
        return None


def new_shape(shape: Sequence[int], old: Sequence[float], new: Sequence[float]) -> tuple[int, ...]:
    """The shape in voxels that a grid of one spacing in mm has with another."""
    return tuple(round(a / b * n) for a, b, n in zip(old, new, shape, strict=True))


def resized(
    image: NDArray[np.float32], shape: tuple[int, ...], kernel: Kernel, axis: int | None
) -> NDArray[np.float32]:
    """Channels (C, *spatial) on a grid of another shape in voxels, as nnU-Net resamples them; values in any unit.

    Args:
        image: Float32.
        shape: The new spatial shape.
        kernel: How the values are interpolated.
        axis: Spatial axis that is resampled by itself, slice by slice in between.
    """
    if image.shape[1:] == shape:
        return image
    out = np.empty((len(image), *shape), image.dtype)
    for single, target in zip(image, out, strict=True):
        channel = single.astype(np.float64)
        target[...] = (
            _spline(channel, shape, kernel.order) if axis is None else _by_slices(channel, shape, kernel, axis)
        )
    return out


def resizing_bytes(old: Sequence[int], new: Sequence[int], kernel: Kernel) -> float:
    """What `resized` takes in memory beside the image and its answer at most, from one shape to another, along whatever axis.

    A channel, the new one, and what a spline is fitted to, twice; where an axis may be resampled by itself, instead what the
    two others have become, with positions and values of new voxels.
    """
    voxels, resized_voxels = math.prod(old), math.prod(new)
    beside = [2 * _bordered(old)]
    for axis, slices in enumerate(old if kernel.separate_z is not False else ()):
        stack = [*new[:axis], slices, *new[axis + 1 :]]
        at_once, fitted = (resized_voxels, 2 * _bordered(stack)) if kernel.order_z > 1 else (_SLAB_VOXELS, 0)
        beside.append(math.prod(stack) + 4 * min(resized_voxels, at_once) + fitted)
    return 8.0 * (voxels + resized_voxels + max(beside))


def _bordered(shape: Sequence[int]) -> int:
    """Voxels of what scipy fits a spline to: with a border on each side."""
    return math.prod(n + 2 * _SPLINE_BORDER for n in shape)


def _spline(values: NDArray[np.float64], shape: tuple[int, ...], order: int) -> NDArray[np.float64]:
    from skimage.transform import resize

    out: NDArray[np.float64] = resize(values, shape, order, mode="edge", anti_aliasing=False)  # type: ignore[no-untyped-call]
    return out


def _by_slices(values: NDArray[np.float64], shape: tuple[int, ...], kernel: Kernel, axis: int) -> NDArray[np.float64]:
    plane = tuple(n for at, n in enumerate(shape) if at != axis)
    stack = np.empty(
        [old if at == axis else new for at, (old, new) in enumerate(zip(values.shape, shape, strict=True))]
    )
    for one, target in zip(np.moveaxis(values, axis, 0), np.moveaxis(stack, axis, 0), strict=True):
        target[...] = _spline(one, plane, kernel.order)
    if stack.shape == shape:
        return stack
    places = [old / n * (np.arange(n) + 0.5) - 0.5 for old, n in zip(stack.shape, shape, strict=True)]
    out = np.empty(shape)
    height = len(out) if kernel.order_z > 1 else 1 + _SLAB_VOXELS * len(out) // out.size  # a spline is fitted only once
    for start in range(0, len(out), height):
        slab = np.ix_(places[0][start : start + height], *places[1:])
        out[start : start + height] = map_coordinates(
            stack, np.stack(np.broadcast_arrays(*slab)), order=kernel.order_z, mode="nearest"
        )
    return out


@dataclass(frozen=True)
class Resized:
    """nnU-Net's resampling of logits, box by box; a step of `way_back.WayBack`.

    Products and sums are those of scipy's `zoom`, in its order, so that rounding to half precision, in which nnU-Net stores
    logits, gives its values to the bit.

    Attributes:
        shape: Shape of the grid before the preprocessing resampled it, in voxels.
        size: Shape of the working grid, in voxels.
        linear: For each axis whether values are interpolated; else the nearest is taken.
    """

    shape: tuple[int, ...]
    size: tuple[int, ...]
    linear: tuple[bool, ...]

    def needed(self, box: Box) -> Box:
        """The box of the working grid that a box of the grid before is made of; empty sides: of nothing."""
        if any(side.stop <= side.start for side in box):
            return (slice(0, 0),) * len(box)
        knots = ([place for place, _ in self._knots(axis, side)] for axis, side in enumerate(box))
        return tuple(slice(int(near[0].min()), int(near[-1].max()) + 1) for near in knots)

    def __call__(self, values: Tensor, held: Box, box: Box) -> Tensor:
        """Shape (C, *box), float32, of values (C, *held), logits in any unit."""
        if self.shape == self.size:
            return values
        knots = [
            [(place - held[axis].start, weights) for place, weights in self._knots(axis, side)]
            for axis, side in enumerate(box)
        ]
        out = np.empty((len(values), *(side.stop - side.start for side in box)), np.float16)
        for channel, target in zip(values.cpu().numpy(), out, strict=True):  # one by one, to take little memory
            target[...] = reduce(np.add, _parts(channel.astype(np.float64), knots))
        return torch.from_numpy(out.astype(np.float32)).to(values.device)

    def _knots(self, axis: int, side: slice) -> list[Knot]:
        """Of the positions of a side along an axis: the places on the working grid that have a part in them."""
        last = self.size[axis] - 1
        at = (np.arange(side.start, side.stop) + 0.5) * (self.size[axis] / self.shape[axis]) - 0.5
        if not self.linear[axis]:
            return [(np.clip(np.floor(at + 0.5), 0, last).astype(np.int64), np.ones(len(at)))]
        low = np.floor(at).astype(np.int64)
        share = at - low
        first = 1 - share
        # Beyond the border both are the voxel at the border; a neighbour without a part is not asked for
        return [(np.clip(low, 0, last), first), (np.clip(low + (share > 0), 0, last), 1 - first)]


def _parts(
    values: NDArray[np.float64], knots: Sequence[Sequence[Knot]], axis: int = 0
) -> Iterator[NDArray[np.float64]]:
    """For each combination of places along the axes from this one: the values there times their weights, axis by axis."""
    if axis == values.ndim:
        yield values
        return
    for place, weights in knots[axis]:
        part = np.take(values, place, axis) * weights.reshape(-1, *[1] * (values.ndim - 1 - axis))
        yield from _parts(part, knots, axis + 1)
