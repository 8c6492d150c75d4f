"""From rows of logits to boxes of the source grid: the parts of a bundle's `result`, run on one box after the other.

    probable     logits -> calibrated probabilities, on the working grid; looks a few voxels around (the halo)
    back         the working grid -> the source grid
    decide       probabilities -> labels, voxel by voxel
    tidy         what looks at the whole label map, such as the largest piece; afterwards

A `result` that is a plain list, or that undoes transforms which `way_back` does not know, runs on the whole image at once.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from torch import Tensor

from monai_unet_app.inference.halo import halo_voxels
from monai_unet_app.inference.kernels import OurKernels
from monai_unet_app.inference.nnunet import ToSource
from monai_unet_app.inference.spool import Rows
from monai_unet_app.inference.way_back import Box, WayBack, way_back
from monai_unet_app.inference.windows import shape_of, whole_box, within

PIECE_BYTES = 1 << 26
"""Of the probabilities in a piece; a few copies of them exist at a time. An image that is smaller is one piece."""

_NEGLIGIBLE = 1e-9
"""A probability: a class that has less everywhere in a large result's piece is 0 there, and is not interpolated."""

_LEADS_BACK = (Invertd, ToSource)
Item = dict[str, MetaTensor]


@dataclass(frozen=True)
class Piece:
    """A box of the result on the source grid.

    Attributes:
        box: Its place, an axis for each spatial axis of the image.
        probabilities: Shape (C, *box), float32.
        decision: Shape (1, *box) with label values, or of overlapping labels (S, *box), 0 or 1.
        uncalibrated: Shape (C, *box): the probabilities without calibration; None where they are not asked for.
    """

    box: Box
    probabilities: Tensor
    decision: Tensor
    uncalibrated: Tensor | None = None


@dataclass(frozen=True)
class ResultSteps:
    """The transforms of a bundle's `result`, by part.

    Attributes:
        probable, back, decide, tidy: Each a list of MONAI's transforms of the item "pred"; `decide` adds "prob".
        named: False for a plain list, which stands in `back`.
    """

    probable: Sequence[Any]
    back: Sequence[Any]
    decide: Sequence[Any]
    tidy: Sequence[Any]
    named: bool = True

    def way_back(self, image: MetaTensor) -> WayBack | None:
        """The way from the grid of a preprocessed image to its source; None if this result must run on the whole image."""
        inverting = [step for step in self.back if isinstance(step, _LEADS_BACK)]
        if not self.named or len(inverting) > 1 or (inverting and self.back[0] is not inverting[0]):
            return None
        if not inverting:
            return WayBack((), tuple(image.shape[1:]))
        return None if any(getattr(inverting[0], "nearest_interp", ())) else way_back(image)

    @cached_property
    def repair(self) -> Compose:
        """What follows `Invertd` in `back`, and `decide`: both look at one voxel only."""
        return Compose([*(step for step in self.back if not isinstance(step, _LEADS_BACK)), *self.decide])

    @property
    def needs_image(self) -> bool:
        """Whether a transform of `tidy` states in `needs` that it looks at the probabilities and the image as well."""
        return any(getattr(step, "needs", ()) for step in self.tidy)

    def probabilities(self, logits: Tensor, *, quick: bool = False) -> Tensor:
        """Probabilities (C, *box) of logits (C, *box) on the working grid, which are used up; `quick` as in `OurKernels`."""
        with OurKernels(quick=quick):
            return torch.as_tensor(Compose(list(self.probable))({"pred": logits})["pred"]).as_subclass(Tensor)


def whole_piece(logits: Tensor, item: Item, steps: ResultSteps, uncalibrated: ResultSteps | None) -> Piece:
    """The result as one piece, by MONAI alone."""
    outputs = []
    for chosen in (steps, uncalibrated) if uncalibrated else (steps,):
        run = Compose([*chosen.probable, *chosen.back, *chosen.decide])
        with OurKernels():
            outputs.append(run({**item, "pred": logits.clone()}))
    raw = torch.as_tensor(outputs[1]["prob"]) if uncalibrated else None
    probabilities, decision = (torch.as_tensor(outputs[0][key]) for key in ("prob", "pred"))
    return Piece(whole_box(probabilities.shape[1:]), probabilities, decision, raw)


def pieces(
    rows: Iterable[Rows],
    back: WayBack,
    steps: ResultSteps,
    uncalibrated: ResultSteps | None = None,
    size: int = PIECE_BYTES,
) -> Iterator[Piece]:
    """The result in pieces that fill the source grid.

    Args:
        rows: Logits, from `predict_rows`.
        back: The way to the source grid.
        steps: The parts of `result`.
        uncalibrated: The same without calibration, if its probabilities are asked for.
        size: Bytes of the probabilities in a piece.
    """
    store = RowStore(rows)
    shape, halo = back.source_shape, (math.inf,) * len(back.shape)
    if 4 * store.channels * math.prod(shape) > size:
        halo = halo_voxels(steps.probabilities, store.channels, len(shape))
    for box, passed in _boxes(back, store.channels, halo, size):
        needed = back.needed(box)
        probabilities = [
            _on_source(store, needed, halo, chosen, back, box)
            for chosen in ((steps, uncalibrated) if uncalibrated else (steps,))
        ]
        with OurKernels():
            output = steps.repair({"pred": probabilities[0]})
        raw = torch.as_tensor(uncalibrated.repair({"pred": probabilities[1]})["prob"]) if uncalibrated else None
        yield Piece(box, torch.as_tensor(output["prob"]), torch.as_tensor(output["pred"]), raw)
        del probabilities, output, raw  # the next windows run before the next piece
        store.forget(passed)


def _on_source(
    store: "RowStore", needed: Box, halo: Sequence[float], steps: ResultSteps, back: WayBack, box: Box
) -> Tensor:
    """Shape (C, *box): the probabilities on a box of the source grid, before `repair`."""
    if any(side.stop <= side.start for side in needed):
        return torch.full((store.channels, *shape_of(box)), back.fill)
    wide, is_large = widened(needed, halo, back.shape), not any(math.isinf(n) for n in halo)
    probabilities = steps.probabilities(store.box(wide), quick=is_large)[(slice(None), *within(needed, wide))]
    if (
        not is_large or math.isnan(back.fill) or (there := ~(probabilities.flatten(1).amax(1) < _NEGLIGIBLE)).all()
    ):  # so that NaN is there
        return back(probabilities, box)
    out = torch.zeros((store.channels, *shape_of(box)), device=probabilities.device)
    if there.any():
        out[there] = back(probabilities[there], box)
    return out


def widened(box: Box, margin: Sequence[float], shape: Sequence[int]) -> Box:
    """The box with a margin inside the grid, at the border too as wide as what `probable` looks at: pooling refuses less."""
    sides = []
    for side, m, n in zip(box, margin, shape, strict=True):
        start, stop = max(0, side.start - m), min(n, side.stop + m)
        start = max(0, min(start, stop - (2 * m + 1)))
        sides.append(slice(int(start), int(min(n, max(stop, start + 2 * m + 1)))))
    return tuple(sides)


def _boxes(back: WayBack, channels: int, halo: Sequence[float], size: int) -> Iterator[tuple[Box, int]]:
    """Boxes of the source grid in the order in which rows of the working grid come, each with the rows that are done with it.

    A box is cut along two axes: along the axis of the source that runs with the rows, and along the longest of the others.
    """
    shape = back.source_shape
    if any(math.isinf(n) for n in halo):
        yield whole_box(shape), 0
        return
    lead, rising = _lead_axis(back)
    other, height, width = piece_sides(shape, lead, channels, size)
    starts = list(range(0, shape[lead], height))
    slabs = [slice(start, min(start + height, shape[lead])) for start in (starts if rising else reversed(starts))]
    for number, slab in enumerate(slabs):
        columns = [slice(start, min(start + width, shape[other])) for start in range(0, shape[other], width)]
        for n, column in enumerate(columns):
            sides = [slice(0, length) for length in shape]
            sides[lead], sides[other] = slab, column
            done = n == len(columns) - 1 and number < len(slabs) - 1
            yield tuple(sides), _first_row(back, lead, slabs[number + 1], halo) if done else 0


def piece_sides(shape: Sequence[int], lead: int, channels: int, size: int) -> tuple[int, int, int]:
    """The second axis along which a source grid is cut, and a piece's length along `lead` and along that axis."""
    other = max((axis for axis in range(len(shape)) if axis != lead), key=lambda axis: shape[axis])
    area = size / (4 * channels * math.prod(n for axis, n in enumerate(shape) if axis not in (lead, other)))
    # Nearly square, since both cuts cost a halo; flat, since all classes of its rows are held; never more than the axes have
    height = max(1, min(shape[lead], int(max(math.sqrt(area / 2), area / shape[other]))))
    return other, height, max(1, min(shape[other], int(area / height)))


def _lead_axis(back: WayBack) -> tuple[int, bool]:
    """The axis of the source grid along which the rows of the working grid run most, and whether both rise together."""
    moves = []
    for axis, n in enumerate(back.source_shape):
        planes = [
            back.needed(tuple(slice(at, at + 1) if a == axis else slice(0, m) for a, m in enumerate(back.source_shape)))
            for at in (0, n - 1)
        ]
        first, last = (plane[0].start + plane[0].stop for plane in planes)
        moves.append(last - first)
    lead = max(range(len(moves)), key=lambda axis: abs(moves[axis]))
    return lead, moves[lead] >= 0


def _first_row(back: WayBack, lead: int, slab: slice, halo: Sequence[float]) -> int:
    """The first row of the working grid that a slab of the source grid, or any slab after it, needs."""
    needed = back.needed(tuple(slab if axis == lead else slice(0, n) for axis, n in enumerate(back.source_shape)))
    first: int = widened(needed, halo, back.shape)[0].start
    return first


class RowStore:
    """Rows of logits that came and are still needed, for boxes that are asked for along the first axis.

    Args:
        rows: Where they come from; nothing is taken before it is needed.
    """

    def __init__(self, rows: Iterable[Rows]) -> None:
        self._rows = iter(rows)
        self._held: deque[Rows] = deque([next(self._rows)])

    @property
    def channels(self) -> int:
        """C of the logits."""
        return len(self._held[-1][1])

    def box(self, box: Box) -> Tensor:
        """Shape (C, *box): a copy of the logits there."""
        while self._end < box[0].stop:
            self._held.append(next(self._rows))
        parts = [
            values[:, max(0, box[0].start - start) : box[0].stop - start][(slice(None), slice(None), *box[1:])]
            for start, values in self._held
            if start < box[0].stop and start + values.shape[1] > box[0].start
        ]
        return torch.cat(parts, 1)

    def forget(self, row: int) -> None:
        """Rows before this one will not be asked for again."""
        while len(self._held) > 1 and self._held[1][0] <= row:
            self._held.popleft()

    @property
    def _end(self) -> int:
        start, values = self._held[-1]
        return start + values.shape[1]
