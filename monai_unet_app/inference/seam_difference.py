"""How far an answer that was put together from windows differs, where they meet, from that of a window without a seam there."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch

from monai_unet_app.inference.engines import Engine
from monai_unet_app.inference.predict import padded
from monai_unet_app.inference.spool import Rows
from monai_unet_app.inference.windows import Slices, WindowSettings, within
from monai_unet_app.metrics.outputs import Outputs

MOST_PLACES = 4
"""Of a case: so many windows are computed once more."""


@dataclass(frozen=True)
class SeamDifference:
    """Sums over the places that were looked at; they add up over cases.

    Attributes:
        total: Sum of the absolute differences of the probability of foreground.
        voxels: Number of voxels in it: those that are foreground in one of the two answers.
        places: Number of windows that were computed once more.
    """

    total: float = 0.0
    voxels: int = 0
    places: int = 0

    @property
    def mean(self) -> float | None:
        """0 to 1; None without a voxel."""
        return self.total / self.voxels if self.voxels else None

    def __add__(self, other: "SeamDifference") -> "SeamDifference":
        return SeamDifference(self.total + other.total, self.voxels + other.voxels, self.places + other.places)


def seam_difference(
    rows: Iterable[Rows], image: torch.Tensor, engine: Engine, settings: WindowSettings, outputs: Outputs
) -> SeamDifference:
    """The difference at the MOST_PLACES seams with the most foreground.

    A place is a window that stands half a step beside the windows of the bundle, along every axis that has several: its centre
    is where those see the image farthest from their own centres. The network answers for it alone. The two answers are compared
    in its middle, half of its size and at most a step along each such axis, where its own border is far.

    Args:
        rows: Logits of the image, from `predict_rows` with these settings without mirror images; gone through twice.
        image: Shape (C, *spatial), preprocessed.
        engine: Runs the windows.
        settings: The sliding window of the bundle.
        outputs: What the logits mean.

    Returns:
        Nothing but zeros if one window holds the image, or no place has foreground.
    """
    plan = settings.plan(tuple(image.shape[1:]))
    starts = [sorted({window.place[axis].start for window in plan.windows}) for axis in range(image.ndim - 1)]
    seamed = [len(own) > 1 and size > 1 for own, size in zip(starts, plan.window, strict=True)]
    if not any(seamed):
        return SeamDifference()
    # Where each axis may have its window and, of it, the voxels that are compared
    axes = [
        [_shifted(a, b, size) for a, b in pairwise(own) if b - a > 1]
        if meet
        else [(a, slice(max(a, side.start), min(a + size, side.stop))) for a in own]
        for own, size, meet, side in zip(starts, plan.window, seamed, plan.inside, strict=True)
    ]
    found = torch.cat([_foreground(values, outputs) >= 0.5 for _, values in rows])
    places: list[tuple[int, Slices, Slices]] = []
    for place in product(*axes):
        compared = tuple(part for _, part in place)
        window = tuple(slice(start, start + size) for (start, _), size in zip(place, plan.window, strict=True))
        places.append((int(found[within(compared, plan.inside)].sum()), window, compared))
    chosen = [entry for entry in sorted(places, key=lambda entry: -entry[0])[:MOST_PLACES] if entry[0]]
    padded_image = padded(image, plan, settings)
    difference = SeamDifference()
    for _, window, compared in chosen:
        answer = engine(padded_image[(slice(None), *window)][None].to(engine.device)).logits[0].float().cpu()
        alone = _foreground(answer[(slice(None), *within(compared, window))], outputs)
        together = _foreground(_logits_in(rows, within(compared, plan.inside)), outputs)
        counted = (alone >= 0.5) | (together >= 0.5)
        total = float((alone - together).abs()[counted].sum())
        difference += SeamDifference(total, int(counted.sum()), 1)
    return difference


def _shifted(start: int, following: int, size: int) -> tuple[int, slice]:
    """The start of the window half way between two neighbouring windows, and its middle."""
    shifted = start + (following - start) // 2
    middle = min(following - start, size // 2)
    first = shifted + (size - middle) // 2
    return shifted, slice(first, first + middle)


def _logits_in(rows: Iterable[Rows], box: Sequence[slice]) -> torch.Tensor:
    """The logits of a box of the image, shape (C, *box), on the CPU."""
    first, *rest = box
    parts = []
    for start, values in rows:
        inside = slice(max(0, first.start - start), max(0, min(values.shape[1], first.stop - start)))
        parts.append(values[(slice(None), inside, *rest)].float().cpu())
    return torch.cat(parts, 1)


def _foreground(logits: torch.Tensor, outputs: Outputs) -> torch.Tensor:
    """Probability of foreground without calibration, shape (*spatial), from logits (C, *spatial), on the CPU."""
    return outputs.foreground(outputs.probabilities(logits.float())).cpu()
