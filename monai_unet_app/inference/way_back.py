"""The way back from the working grid to the source grid, box by box: what `Invertd` does to the whole image at once.

MONAI records every spatial transform of the preprocessing. `way_back` reads the record and undoes it for a box of the source
grid: which box of the working grid it needs, and the values on it. The arithmetic is MONAI's own, so where a box is the whole
grid the values are those of `Invertd` to the bit, and otherwise to the rounding of a position.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from monai.data import MetaTensor
from monai.networks.utils import to_norm_affine
from monai.transforms.spatial.functional import AFFINE_TOL
from numpy.typing import NDArray
from torch import Tensor

from monai_unet_app.inference.nnunet.resampling import Resized
from monai_unet_app.inference.windows import shape_of

Box = tuple[slice, ...]
Affine = NDArray[np.float64]
_CHUNK_BYTES = 1 << 26  # of the float64 values that are interpolated at once
_POSITIONS = 1 << 19  # of voxels that are computed at once, 150 bytes each
_ROUNDING = 1e-6  # voxels: far more than the rounding of a position
_SHEAR = 1e-5  # voxels: what directions that are rounded to float32 move the ends of a box


@dataclass(frozen=True)
class Moved:
    """A transform undone: axes swapped, reversed, cropped or padded. Every value stays what it is; where none was, `fill`.

    This and `Interpolated` lead from a grid to the grid before it. `needed` is the box of the grid that the values on a box of
    the grid before are made of. A call gives these values, shape (C, *box), from values (C, *held) on the box `needed`.

    Attributes:
        shape: Shape of the grid before.
        size: Shape of the grid.
        order: For each axis of the grid before, the axis of the grid that it is.
        start: For each axis of the grid before, the position on the grid of its first voxel.
        step: 1, or -1 where the axis runs the other way.
        fill: The value where nothing is known.
    """

    shape: tuple[int, ...]
    size: tuple[int, ...]
    order: tuple[int, ...]
    start: tuple[int, ...]
    step: tuple[int, ...]
    fill: float = 0.0

    def needed(self, box: Box) -> Box:
        sides = [slice(0, 0)] * len(box)
        for axis, own in enumerate(self.order):
            first, last = (self.start[axis] + self.step[axis] * n for n in (box[axis].start, box[axis].stop - 1))
            low, high = sorted((first, last))
            size = self.size[own]
            sides[own] = slice(min(max(low, 0), size), min(max(high + 1, 0), size))
        return tuple(sides)

    def __call__(self, values: Tensor, held: Box, box: Box) -> Tensor:
        turned = values.permute(0, *(own + 1 for own in self.order))
        turned = turned.flip([axis + 1 for axis, step in enumerate(self.step) if step < 0])
        if turned.shape[1:] == shape_of(box):
            return turned
        inside: list[slice] = []
        for axis, own in enumerate(self.order):
            ends = (held[own].start, held[own].stop - 1)
            first, last = sorted((end - self.start[axis]) * self.step[axis] - box[axis].start for end in ends)
            inside.append(slice(first, last + 1) if turned.shape[axis + 1] else slice(0, 0))
        out = values.new_full((len(values), *shape_of(box)), self.fill)
        out[(slice(None), *inside)] = turned
        return out


@dataclass(frozen=True)
class Interpolated:
    """A transform undone: linear interpolation as `SpatialResample.inverse` does it; beyond the border the value at the border.

    Attributes:
        shape: Shape of the grid before.
        size: Shape of the grid.
        step: Shape (R + 1, R + 1): index on the grid before -> position on the grid.
        corners: `align_corners` of the transform.
    """

    shape: tuple[int, ...]
    size: tuple[int, ...]
    step: Affine
    corners: bool

    def needed(self, box: Box) -> Box:
        ends = np.stack(np.meshgrid(*([side.start, side.stop - 1] for side in box), indexing="ij")).reshape(
            len(box), -1
        )
        positions = self.step[:-1, :-1] @ ends + self.step[:-1, -1:]
        low = np.floor(positions.min(axis=1) - _ROUNDING).astype(int)
        high = np.floor(positions.max(axis=1) + _ROUNDING).astype(int) + 2
        # A position beyond the border takes the last voxel
        return tuple(
            slice(min(max(a, 0), n - 1), max(min(b, n), 1)) for a, b, n in zip(low, high, self.size, strict=True)
        )

    def __call__(self, values: Tensor, held: Box, box: Box) -> Tensor:
        if self._is_along_axes(box) and shape_of(box) != self.shape:
            return self._along_axes(values, held, box)
        height = max(1, _POSITIONS // math.prod(shape_of(box[1:])))
        out = values.new_empty((len(values), *shape_of(box)))
        for start in range(box[0].start, box[0].stop, height):
            slab = slice(start, min(start + height, box[0].stop))
            out[:, slab.start - box[0].start : slab.stop - box[0].start] = self._sampled(values, held, (slab, *box[1:]))
        return out

    def _sampled(self, values: Tensor, held: Box, box: Box) -> Tensor:
        grid = self.positions(box).to(values.device)
        corners = self.corners
        if shape_of(held) != self.size:
            grid, corners = self._within(grid, held), False
        count = 8 * math.prod(grid.shape[1:-1])
        parts = torch.split(values, max(1, _CHUNK_BYTES // count))
        return torch.cat(
            [F.grid_sample(part[None].double(), grid, "bilinear", "border", corners)[0].float() for part in parts]
        )

    def _is_along_axes(self, box: Box) -> bool:
        """Whether each axis is a stretched axis of the grid before, so that one can be interpolated after the other."""
        turned = self.step[:-1, :-1] - np.diag(np.diag(self.step[:-1, :-1]))
        return bool(np.abs(turned).max() * max(shape_of(box)) / 2 < _SHEAR)

    def _along_axes(self, values: Tensor, held: Box, box: Box) -> Tensor:
        """As `_sampled`, in a fraction of the time: the same weights, multiplied one axis after the other."""
        out = values.new_empty((len(values), *shape_of(box)))
        first, *middle, last = (self._weights(axis, held, box, values.device) for axis in range(len(box)))
        for channel, target in zip(values, out, strict=True):  # one at a time, so that what lies between stays small
            result = channel.double() @ last.T
            for axis, weights in enumerate(middle, 1):
                result = torch.matmul(weights, result.movedim(axis, -2)).movedim(-2, axis)
            target.copy_((first @ result.flatten(1)).view_as(target))
        return out

    def _weights(self, axis: int, held: Box, box: Box, device: torch.device) -> Tensor:
        """Shape (voxels of the box, voxels of `held`) along an axis: two weights a row, which sum up to 1."""
        middle = [(side.start + side.stop) // 2 for side in box]
        thin = tuple(
            side if n == axis else slice(at, at + 1) for n, (side, at) in enumerate(zip(box, middle, strict=True))
        )
        line = self.positions(thin)[..., len(box) - 1 - axis].flatten()
        size, count = self.size[axis], held[axis].stop - held[axis].start
        at = (line + 1) / 2 * (size - 1) if self.corners else ((line + 1) * size - 1) / 2
        at = at.clamp(0, size - 1) - held[axis].start
        low = at.floor().long()
        weights, rows = line.new_zeros(len(line), count), torch.arange(len(line))
        weights[rows, low] += 1 - (at - low)
        weights[rows, (low + 1).clamp(max=count - 1)] += at - low
        return weights.to(device)

    def positions(self, box: Box) -> Tensor:
        """Positions of the voxels of a box as `grid_sample` takes them, by MONAI's arithmetic.

        Shape (1, *box, R), -1 to 1, the last axis first.
        """
        theta = to_norm_affine(torch.from_numpy(self.step)[None], self.size, self.shape, align_corners=self.corners)
        rank = len(box)
        backwards = list(reversed(range(rank)))
        theta[:, :rank] = theta[:, backwards]
        theta[:, :, :rank] = theta[:, :, backwards]
        # As in torch.nn.functional.affine_grid, but only the box of it
        lines = []
        for side, n in zip(box, self.shape, strict=True):
            line = torch.linspace(-1, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1, dtype=torch.float64)
            lines.append((line if self.corners or n == 1 else line * (n - 1) / n)[side])
        base = torch.stack([*reversed(torch.meshgrid(*lines, indexing="ij")), torch.ones([len(x) for x in lines])], -1)
        flat = base.double().reshape(1, -1, rank + 1)
        return flat.bmm(theta[:, :rank].transpose(1, 2)).reshape(1, *base.shape[:-1], rank)

    def _within(self, grid: Tensor, held: Box) -> Tensor:
        """The same positions, relative to a box of the grid."""
        whole = grid.new_tensor(self.size[::-1])
        first = grid.new_tensor([side.start for side in reversed(held)])
        size = grid.new_tensor(shape_of(held)[::-1])
        at = (grid + 1) / 2 * (whole - 1) if self.corners else ((grid + 1) * whole - 1) / 2
        at = torch.minimum(at.clamp(min=0), whole - 1) - first
        return (2 * at + 1) / size - 1


@dataclass(frozen=True)
class WayBack:
    """The inverse of the spatial transforms of an image.

    Attributes:
        steps: From the working grid to the source grid.
        shape: Shape of the working grid.
    """

    steps: tuple[Moved | Interpolated | Resized, ...]
    shape: tuple[int, ...]

    @property
    def fill(self) -> float:
        """The value where the image was cropped: 0 of probabilities, NaN of logits."""
        return next((step.fill for step in self.steps if isinstance(step, Moved) and step.fill), 0.0)

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Shape of the source grid."""
        return self.steps[-1].shape if self.steps else self.shape

    def needed(self, box: Box) -> Box:
        """The box of the working grid that the values on a box of the source grid are made of; empty sides: of nothing."""
        for step in reversed(self.steps):
            box = step.needed(box)
        return box

    def __call__(self, values: Tensor, box: Box) -> Tensor:
        """Values on a box of the source grid.

        Args:
            values: Shape (C, *needed(box)), float32.
            box: A box of the source grid.

        Returns:
            Shape (C, *box), float32.
        """
        boxes = [box]
        for step in reversed(self.steps):
            boxes.append(step.needed(boxes[-1]))
        if any(side.stop <= side.start for one in boxes for side in one):
            return values.new_full((len(values), *shape_of(box)), self.fill)
        for step in self.steps:
            held = boxes.pop()
            values = step(values, held, boxes[-1])
        return values


def way_back(image: MetaTensor) -> WayBack | None:
    """The inverse of the spatial transforms that MONAI recorded on an image; None if one of them cannot be undone in boxes.

    Args:
        image: Shape (C, *spatial) in voxels of the working grid, preprocessed.
    """
    shape, affine = tuple(image.shape[1:]), np.asarray(image.affine, np.float64)
    if len(affine) != len(shape) + 1 and image.applied_operations:
        return None
    steps: list[Moved | Interpolated | Resized] = []
    for operation in reversed(image.applied_operations):
        undo = _UNDO.get(operation["class"])
        step, affine = undo(operation, steps[-1].shape if steps else shape, affine) if undo else (None, affine)
        if step is None:
            return None
        steps.append(step)
    return WayBack(tuple(steps), shape)


Undone = tuple["Moved | Interpolated | Resized | None", Affine]


def _undo_orientation(operation: Mapping[str, Any], shape: tuple[int, ...], affine: Affine) -> Undone:
    """As `Orientation.inverse`."""
    original = np.asarray(operation["extra_info"]["original_affine"], np.float64)
    if len(original) != len(affine):
        return None, affine
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(nibabel.aff2axcodes(original))
    ).astype(int)
    # Row n of `turn`: where axis n goes, and whether it is reversed
    order = tuple(int(n) for n in np.argsort(turn[:, 0]))
    steps = tuple(int(turn[own, 1]) for own in order)
    start = tuple(0 if step > 0 else shape[own] - 1 for own, step in zip(order, steps, strict=True))
    before = tuple(shape[own] for own in order)
    return Moved(before, shape, order, start, steps), np.asarray(
        affine @ nibabel.orientations.inv_ornt_aff(turn, shape), np.float64
    )


def _undo_resampling(operation: Mapping[str, Any], shape: tuple[int, ...], affine: Affine) -> Undone:
    """As `SpatialResample.inverse`, for linear interpolation in float64."""
    info, size = operation["extra_info"], tuple(map(int, operation["orig_size"]))
    before = np.asarray(info["src_affine"], np.float64)
    if len(before) != len(affine) or len(size) != len(shape):
        return None, affine
    step = np.asarray(np.linalg.solve(affine, before), np.float64)
    # MONAI leaves an image alone that would hardly move
    unmoved = np.allclose(affine, before, atol=AFFINE_TOL) or np.allclose(step, np.eye(len(step)), atol=AFFINE_TOL)
    if unmoved and size == shape:
        return _shifted(shape, before, np.zeros((len(shape), 2), np.int64))
    if (info["mode"], info["padding_mode"], info["dtype"]) != ("bilinear", "border", "float64"):
        return None, affine
    return Interpolated(size, shape, step, info["align_corners"] is True), before


def _undo_cropping(operation: Mapping[str, Any], shape: tuple[int, ...], affine: Affine) -> Undone:
    """As `Crop.inverse`: 0 where the image was cropped, and without what `CropForeground` padded where its box was larger."""
    info = operation["extra_info"]
    ends = np.reshape(info["cropped"], (-1, 2)).astype(int)
    if "pad_info" in info:
        ends = ends - _padded(info["pad_info"])
    return _shifted(shape, affine, ends)


def _undo_padding(operation: Mapping[str, Any], shape: tuple[int, ...], affine: Affine) -> Undone:
    """As `Pad.inverse`: without what was padded."""
    return _shifted(shape, affine, -_padded(operation))


def _undo_nnunet_crop(operation: Mapping[str, Any], shape: tuple[int, ...], affine: Affine) -> Undone:
    """Logits are NaN where nnU-Net cropped the image."""
    before, own = tuple(operation["source"]), operation["order"]
    order = tuple(own.index(axis) for axis in range(len(before)))
    start = tuple(-operation["box"][axis][0] for axis in order)
    return Moved(before, shape, order, start, (1,) * len(before), math.nan), np.array(operation["affine"])


def _undo_nnunet_resampling(operation: Mapping[str, Any], shape: tuple[int, ...], affine: Affine) -> Undone:
    return Resized(tuple(operation["cropped"]), shape, tuple(operation["linear"])), affine


def _padded(operation: Mapping[str, Any]) -> NDArray[np.int64]:
    """Shape (R, 2): voxels that were padded before and after each axis."""
    return np.array(operation["extra_info"]["padded"][1:], dtype=np.int64)  # the first entry is the channels'


def _shifted(shape: tuple[int, ...], affine: Affine, ends: NDArray[np.int64]) -> Undone:
    """With voxels added before and after each axis, shape (R, 2); taken away where a number is negative."""
    if len(ends) != len(shape):
        return None, affine
    moved = affine.copy()
    moved[:-1, -1] -= affine[:-1, :-1] @ ends[:, 0]
    size = tuple(int(n) for n in shape + ends.sum(axis=1))
    start = tuple(int(-before) for before in ends[:, 0])
    return Moved(size, shape, tuple(range(len(shape))), start, (1,) * len(shape)), moved


_UNDO: Mapping[str, Callable[[Mapping[str, Any], tuple[int, ...], Affine], Undone]] = {
    "Orientation": _undo_orientation,
    "SpatialResample": _undo_resampling,
    **dict.fromkeys(("Crop", "SpatialCrop", "CenterSpatialCrop", "CropForeground"), _undo_cropping),
    "nnUNetCrop": _undo_nnunet_crop,
    "nnUNetResampling": _undo_nnunet_resampling,
    **dict.fromkeys(("Pad", "SpatialPad", "BorderPad", "DivisiblePad"), _undo_padding),
}
