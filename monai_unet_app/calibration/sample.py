"""What of a case a calibration is fitted on: all of it, or boxes of a large image.

The logits of a large image do not fit into the memory of a fit, which passes over all cases many times. Boxes are drawn from
them while they come: more where labels meet, since probabilities are hard to calibrate there, fewer elsewhere. Each box counts
for those of its kind that were not drawn, so that the likelihood of a sample is that of the image but for chance.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import product
from operator import add
from typing import Any

import numpy as np
import torch

from monai_unet_app.inference.pieces import RowStore, widened
from monai_unet_app.inference.spool import Rows
from monai_unet_app.inference.way_back import Box
from monai_unet_app.inference.windows import whole_box, within
from monai_unet_app.metrics.outputs import Outputs

SAMPLE_BYTES = 1 << 25
"""Of the logits of a case. A case with fewer is taken whole; of a larger one so many are drawn."""

BOX_VOXELS = 512
"""Of a box: 8 voxels along each axis of a volume, 23 pixels of a picture."""

SEED = 0
_AT_BOUNDARIES = 0.75  # of the sample, if there are so many boxes in which labels meet

_TOGETHER_BYTES = 1 << 22  # of the logits of boxes that are calibrated in one call

Halo = Callable[[int, int], Sequence[float]]
"""From the number of channels and of spatial axes: how many voxels away along each axis a calibration looks."""


@dataclass(frozen=True)
class Part:
    """Logits and truth of a box of a case, of boxes of one size behind each other along the first axis, or of the whole case.

    Attributes:
        logits: Shape (C, *wide): of the box, and of the voxels around it that its calibration looks at.
        truth: Shape (1, *box) of class numbers, or (C, *box) of 0 and 1; the ignored value in voxels without a class.
        inside: The place of the box in `logits`; of several, that of each in its own.
        times: How many voxels of the image a voxel of the box stands for; 1 for a whole case.
        share: Of the boxes in a mean over the voxels of the image, 0 to 1; those of all parts of a case sum to 1.
        boxes: How many there are.
        ignored: Value of the truth in voxels without a class; None where all have one.
    """

    logits: torch.Tensor
    truth: torch.Tensor
    inside: Box
    times: float = 1.0
    share: float = 1.0
    boxes: int = 1
    ignored: int | None = None

    @property
    def counts(self) -> torch.Tensor:
        """Shape (voxels of the boxes,): whether each has a class."""
        every = torch.ones_like(self.truth[0], dtype=torch.bool)
        return (every if self.ignored is None else (self.truth != self.ignored).all(0)).flatten()

    def pairs(self, calibrated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (C, ...) and truth (1 or C, ...) of the voxels that have a class, from calibrated logits (C, *wide)."""
        logits = self.of_boxes(calibrated)
        if self.ignored is None:
            return logits, self.truth
        return logits.flatten(1)[:, self.counts], self.truth.flatten(1)[:, self.counts]

    def of_boxes(self, calibrated: torch.Tensor) -> torch.Tensor:
        """Shape (C, *box), one behind the other, from calibrated logits (C, *wide): without what lies around."""
        each = calibrated.reshape(len(calibrated), self.boxes, -1, *calibrated.shape[2:])
        return each[(slice(None), slice(None), *self.inside)].flatten(1, 2)


@dataclass(frozen=True)
class Drawn:
    """How many boxes were drawn from large images, and of how many.

    Attributes:
        cases: Number of cases of which boxes were drawn; other cases were taken whole.
        at_boundaries: Boxes drawn in which, or beside which, predicted labels meet.
        of_boundaries: Such boxes that there are.
        elsewhere: Other boxes drawn.
        of_elsewhere: Other boxes that there are.
    """

    cases: int
    at_boundaries: int
    of_boundaries: int
    elsewhere: int
    of_elsewhere: int

    def __add__(self, other: "Drawn") -> "Drawn":
        return Drawn(*map(add, astuple(self), astuple(other)))

    def document(self) -> dict[str, Any]:
        """As it stands in `models/calibration.json`."""
        return {
            "cases": self.cases,
            "voxels_of_a_box": BOX_VOXELS,
            "seed": SEED,
            "at_boundaries": {"boxes": self.at_boundaries, "of": self.of_boundaries},
            "elsewhere": {"boxes": self.elsewhere, "of": self.of_elsewhere},
        }

    @property
    def sentence(self) -> str:
        """In words."""
        return (
            f"{self.cases} large case(s) fitted on a sample of boxes of about {BOX_VOXELS} voxels: {self.at_boundaries} of "
            f"{self.of_boundaries} where labels meet, {self.elsewhere} of {self.of_elsewhere} elsewhere (seed {SEED})"
        )


def parts_of(
    rows: Iterable[Rows], label: torch.Tensor, outputs: Outputs, halo: Halo, ignored: int | None = None
) -> tuple[list[Part], Drawn | None]:
    """What of a case is fitted on.

    Args:
        rows: Its logits, from `predict_rows`.
        label: Shape (1, *spatial) of class numbers, or (C, *spatial) of 0 and 1.
        outputs: What the logits mean.
        halo: How far the calibrations look that will be fitted; asked for a large case only.
        ignored: Value of the label in voxels without a class.

    Returns:
        The parts, and what was drawn; None for a whole case. A calibration that looks without limit needs the whole case.
    """
    shape = tuple(label.shape[1:])
    store = RowStore(rows)
    if 4 * store.channels * label[0].numel() > SAMPLE_BYTES:
        margin = halo(store.channels, len(shape))
        if np.isfinite(margin).all():
            return _drawn(store, label, outputs, margin, ignored)
    everything = whole_box(shape)
    truth = _truth(label, outputs, store.channels, ignored)
    return [Part(store.box(everything), truth, everything, ignored=ignored)], None


def _truth(label: torch.Tensor, outputs: Outputs, channels: int, ignored: int | None) -> torch.Tensor:
    truth = outputs.truth(label, channels)
    return truth if ignored is None else truth.float().masked_fill((label == ignored).any(0), ignored)


def _drawn(
    store: RowStore, label: torch.Tensor, outputs: Outputs, margin: Sequence[float], ignored: int | None
) -> tuple[list[Part], Drawn]:
    shape = tuple(label.shape[1:])
    edge = round(BOX_VOXELS ** (1 / len(shape)))
    bytes_of_box = 4 * store.channels * np.prod([min(n, edge + 2 * m) for n, m in zip(shape, margin, strict=True)])
    room, generator = max(2, int(SAMPLE_BYTES / bytes_of_box)), np.random.default_rng(SEED)
    most = max(1, int(room * _AT_BOUNDARIES))
    at_boundaries, elsewhere = _Kind(most, generator), _Kind(room - most, generator)
    for box, inside, logits in wide_boxes(store, shape, edge, margin):
        part = Part(
            logits, _truth(label[(slice(None), *box)], outputs, store.channels, ignored), inside, ignored=ignored
        )
        (at_boundaries if _labels_meet(outputs.labels(logits)) else elsewhere).offer(part)
    voxels = at_boundaries.voxels + elsewhere.voxels
    parts = [*at_boundaries.parts(voxels), *elsewhere.parts(voxels)]
    return list(_together(parts, margin[0])), Drawn(1, *at_boundaries.counts, *elsewhere.counts)


def _together(parts: Sequence[Part], margin: float) -> Iterator[Part]:
    """The parts, with boxes that are alike behind each other along the first axis.

    Those that have the whole margin there, in voxels, on both sides: their calibration does not see the next box.
    """
    alike: dict[Any, list[Part]] = {}
    for part in parts:
        shape, first = part.logits.shape, part.inside[0]
        if min(first.start, shape[1] - first.stop) < margin:
            yield part
        else:
            places = tuple((side.start, side.stop) for side in part.inside)
            alike.setdefault((shape, places, part.times), []).append(part)
    for boxes in alike.values():
        count = max(1, _TOGETHER_BYTES // (4 * boxes[0].logits.numel()))
        for start in range(0, len(boxes), count):
            some = boxes[start : start + count]
            logits, truth = (torch.cat([getattr(part, name) for part in some], 1) for name in ("logits", "truth"))
            yield replace(some[0], logits=logits, truth=truth, share=sum(part.share for part in some), boxes=len(some))


def wide_boxes(
    store: RowStore, shape: Sequence[int], edge: int, margin: Sequence[float]
) -> Iterator[tuple[Box, Box, torch.Tensor]]:
    """Boxes that fill a working grid, one after the other, each with a margin.

    Args:
        store: The logits.
        shape: Of the grid.
        edge: Of a box, in voxels; the last ones are narrower.
        margin: In voxels along each axis, finite.

    Yields:
        The box, its place in the wider one, and the logits of the wider one, (C, *wide), a copy.
    """
    sides = [[slice(start, min(start + edge, n)) for start in range(0, n, edge)] for n in shape]
    for box in product(*sides):
        wide = widened(box, margin, shape)
        store.forget(int(box[0].start - 2 * margin[0]))  # a wider box never reaches back further than this
        yield box, within(box, wide), store.box(wide)


def _labels_meet(labels: torch.Tensor) -> bool:
    """Whether label maps, (maps, *box), are not the same everywhere."""
    each = labels.flatten(1)
    return bool((each != each[:, :1]).any())


class _Kind:
    """Boxes of one kind: a sample of those that come, each as likely as any other (reservoir sampling).

    Args:
        most: Of boxes that are kept.
        generator: Draws them.

    Source: Vitter, Random Sampling with a Reservoir, ACM TOMS 1985, algorithm R.
    """

    def __init__(self, most: int, generator: np.random.Generator) -> None:
        self._most, self._generator = most, generator
        self._kept: list[Part] = []
        self._boxes = self.voxels = 0

    def offer(self, part: Part) -> None:
        """The next box; one whose voxels have no class is passed over."""
        if not (voxels := int(part.counts.sum())):
            return
        self._boxes += 1
        self.voxels += voxels
        if len(self._kept) < self._most:
            self._kept.append(part)
        elif (place := int(self._generator.integers(self._boxes))) < self._most:
            self._kept[place] = part

    @property
    def counts(self) -> tuple[int, int]:
        """(boxes drawn, boxes that came)."""
        return len(self._kept), self._boxes

    def parts(self, voxels: int) -> Iterator[Part]:
        """The boxes drawn, which stand for all of this kind in an image of so many voxels."""
        counts = [int(part.counts.sum()) for part in self._kept]
        times = self.voxels / max(1, sum(counts))
        for part, count in zip(self._kept, counts, strict=True):
            yield replace(part, times=times, share=times * count / voxels)
