"""nnU-Net's resampling: cubic for images, linear for logits, and by the nearest slice along an axis of thick slices."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor

Box = tuple[slice, ...]
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
    for channel, target in zip(image.astype(np.float64), out, strict=True):
        target[...] = (
            _spline(channel, shape, kernel.order) if axis is None else _by_slices(channel, shape, kernel, axis)
        )
    return out


def _spline(values: NDArray[np.float64], shape: tuple[int, ...], order: int) -> NDArray[np.float64]:
    from skimage.transform import resize

    out: NDArray[np.float64] = resize(values, shape, order, mode="edge", anti_aliasing=False)  # type: ignore[no-untyped-call]
    return out


def _by_slices(values: NDArray[np.float64], shape: tuple[int, ...], kernel: Kernel, axis: int) -> NDArray[np.float64]:
    plane = tuple(n for at, n in enumerate(shape) if at != axis)
    slices = [_spline(one, plane, kernel.order) for one in np.moveaxis(values, axis, 0)]
    stack = np.stack(slices, axis)
    if stack.shape == shape:
        return stack
    places = [old / n * (np.arange(n) + 0.5) - 0.5 for old, n in zip(stack.shape, shape, strict=True)]
    grid = np.array(np.meshgrid(*places, indexing="ij"))
    out: NDArray[np.float64] = map_coordinates(stack, grid, order=kernel.order_z, mode="nearest")
    return out


@dataclass(frozen=True)
class Resized:
    """nnU-Net's resampling of logits, box by box; a step of `way_back.WayBack`.

    Values are interpolated in float64 along one axis after the other, and rounded to half precision, as nnU-Net stores them.

    Attributes:
        shape: Shape of the grid before the preprocessing resampled it, in voxels.
        size: Shape of the working grid, in voxels.
        linear: For each axis whether values are interpolated; else the nearest is taken.
    """

    shape: tuple[int, ...]
    size: tuple[int, ...]
    linear: tuple[bool, ...]

    def needed(self, box: Box) -> Box:
        """The box of the working grid that a box of the grid before is made of."""
        ends = (self._ends(axis, side) for axis, side in enumerate(box))
        return tuple(slice(int(low.min()), int(high.max()) + 1) for low, high, _ in ends)

    def __call__(self, values: Tensor, held: Box, box: Box) -> Tensor:
        """Shape (C, *box), float32, of values (C, *held), logits in any unit."""
        if self.shape == self.size:
            return values
        first, *middle, last = (self._weights(axis, held[axis], side) for axis, side in enumerate(box))
        out = values.new_empty((len(values), *(side.stop - side.start for side in box)), device="cpu")
        for channel, target in zip(
            values.cpu(), out, strict=True
        ):  # one at a time, so that what lies between stays small
            result = channel.double() @ last.T
            for axis, weights in enumerate(middle, 1):
                result = torch.matmul(weights, result.movedim(axis, -2)).movedim(-2, axis)
            mixed = (first @ result.flatten(1)).view_as(target)
            # By numpy: torch rounds to single precision on the way to half, and then a second time
            target.copy_(torch.from_numpy(mixed.numpy().astype(np.float16)))
        return out.to(values.device)

    def _ends(self, axis: int, side: slice) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """For each position of a side: the two positions on the working grid, and the weight of the second."""
        last = self.size[axis] - 1
        at = (np.arange(side.start, side.stop) + 0.5) * (self.size[axis] / self.shape[axis]) - 0.5
        if not self.linear[axis]:
            nearest = np.clip(np.floor(at + 0.5), 0, last).astype(np.int64)
            return nearest, nearest, np.zeros(len(at))
        at = np.clip(at, 0, last)
        low = np.floor(at).astype(np.int64)
        return low, np.minimum(low + 1, last), at - low

    def _weights(self, axis: int, held: slice, side: slice) -> Tensor:
        """Shape (positions of `side`, positions of `held`): two weights a row, which sum up to 1."""
        low, high, share = self._ends(axis, side)
        weights, rows = np.zeros((len(low), held.stop - held.start)), np.arange(len(low))
        weights[rows, low - held.start] += 1 - share
        weights[rows, high - held.start] += share
        return torch.from_numpy(weights)
