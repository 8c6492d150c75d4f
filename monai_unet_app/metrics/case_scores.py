"""The scores of one case.

Exclusive classes (softmax) come as a label map, overlapping labels (sigmoid) as one mask for each class. The grid has three
axes, or two for a picture; lengths and sizes are in the unit of the spacing and of the voxel size.

Voxels that do not count (an ignore label, the outside of the field of view) are cut out of both masks before anything is
measured, and out of every population: their values change no figure. Where a mask ends at such voxels it has a border, as at
the image's edge, and both masks have it in the same place. The band around the predicted surface has no surface there, since
nothing was predicted beyond.
"""

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import boundary, overlap
from .bootstrap import finite_mean
from .boxes import Box, regions_of
from .centreline import centreline_dice
from .components import ComponentScores, match_components
from .plan import WHOLE, EvaluationPlan
from .populations import Populations
from .reliability import (
    CALIBRATION_ERRORS,
    TOP_LABEL,
    BinCounts,
    ReliabilityCounts,
    count_populations,
    expected_calibration_error,
)

_WORK_BYTES = 2**30  # memory for the classes that are measured at once
_BYTES_A_VOXEL = 16  # of a class's box: its two masks, their borders and distances
Counts = Mapping[str, ReliabilityCounts]
Errors = Mapping[str, float]
"""Key of `CALIBRATION_ERRORS` -> the error of the top label; NaN without decisions."""


@dataclass(frozen=True)
class CaseArrays:
    """One case on the grid of its image: (I, J, K), or (I, J) for a picture.

    Attributes:
        case_id: Name of the case; no patient identity.
        subject: Name of the person; the cases of a person share it.
        truth: Exclusive classes: shape (I, J, K), whole numbers, 0 is the background. Overlapping labels: shape (C, I, J, K),
            boolean, one mask for each named class.
        predicted: As `truth`: the labels that were delivered, after post-processing.
        probabilities: Shape (C, I, J, K), 0 to 1, calibrated if the bundle calibrates; the background first if the classes are
            exclusive. None where a `CaseCounter` is given them slab by slab, or where there are none.
        spacing: Distance of neighbouring voxels along each axis: mm, or 1 for the pixels of a picture.
        voxel_size: Size of one voxel: millilitres (not the product of the spacing on a sheared grid), or 1 for a pixel.
        uncalibrated: Probabilities before calibration, same shape, or None.
        valid: Shape (I, J, K), boolean: voxels that count, or None for all. Chosen by the author of the truth or by the field
            of view, never by the result.
        objects: Of truth and prediction, shape (C, I, J, K): the number of each voxel's object. None: objects are components.
    """

    case_id: str
    subject: str
    truth: NDArray[Any]
    predicted: NDArray[Any]
    probabilities: NDArray[Any] | None
    spacing: boundary.Spacing
    voxel_size: float
    uncalibrated: NDArray[Any] | None = None
    valid: NDArray[np.bool_] | None = None
    objects: tuple[NDArray[Any], NDArray[Any]] | None = None


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class in one case; lengths and sizes in the units of the plan.

    `hd`, `hd95` and `assd` are infinite where exactly one of the two masks is empty. Components match where their IoU is
    above 0.5. `surface_dice_at` has an entry for each of the plan's tolerances; `centreline_dice` is None unless the
    plan asks for it.
    """

    name: str
    dice: float
    iou: float
    boundary_iou: float
    precision: float
    recall: float
    surface_dice: float
    surface_dice_at: tuple[float, ...]
    hd: float
    hd95: float
    assd: float
    truth_size: float
    predicted_size: float
    components: ComponentScores
    centreline_dice: float | None = None

    @property
    def absent(self) -> bool:
        """Neither true nor predicted anywhere in this case: the scores are 1 and 0 by agreement, not by merit."""
        return not self.truth_size and not self.predicted_size

    @property
    def iou_boundary_min(self) -> float:
        """The smaller of IoU and boundary IoU: thin things fail the first, coarse outlines the second."""
        return min(self.iou, self.boundary_iou)

    @property
    def size_difference(self) -> float:
        """Predicted minus true size."""
        return self.predicted_size - self.truth_size


@dataclass(frozen=True)
class CaseScores:
    """The scores of a case: all that is kept of it, so little that a data set may be of any size.

    Attributes:
        case_id: Name of the case.
        subject: Name of the person.
        classes: One entry for each named class, in their order.
        bins: Counts in the equal bins of confidence, for each of the two populations of the headlines.
        errors: The errors of this case alone, for every population of the plan.
        errors_before: The same before calibration; empty if that was not given.
        pixel_accuracy: Part of the counted voxels whose label is right, 0 to 1. Overlapping labels: part of the right answers
            among the answers for all labels and voxels.
        expected_sizes: For each named class the sum of its probabilities times the size of a voxel; empty without these.
    """

    case_id: str
    subject: str
    classes: tuple[ClassScores, ...]
    bins: Mapping[str, BinCounts]
    errors: Mapping[str, Errors]
    errors_before: Mapping[str, Errors] = field(default_factory=dict)
    pixel_accuracy: float = math.nan
    expected_sizes: tuple[float, ...] = ()

    def mean(self, score: str) -> float:
        """Mean of a score (a name of `ClassScores`) over the classes that define it; NaN where none does."""
        return finite_mean(getattr(entry, score) for entry in self.classes)

    def ece(self, population: str, row: int = TOP_LABEL) -> float:
        """Calibration error of this case alone in a population of the headlines; NaN where that is empty."""
        return expected_calibration_error(self.bins[population], row)

    def expected_size(self, number: int) -> float:
        """That of a named class, counted from 0; NaN without probabilities."""
        return self.expected_sizes[number] if self.expected_sizes else math.nan


class CaseCounter:
    """Counts the probabilities of a case, which come slab by slab, and scores it in the end.

    A slab is any box of the grid. Slabs come in any order, and each voxel lies in one of them; the whole grid is one slab, too.

    Args:
        case: Its labels; its probabilities are not read.
        plan: What is measured.

    Attributes:
        counts: "after" calibration: the counts so far, for each population of the plan; empty before the first slab. "before"
            calibration: the same; empty if that was not given.

    Raises:
        ValueError: The labels do not share a grid, or hold an unknown value.
    """

    def __init__(self, case: CaseArrays, plan: EvaluationPlan) -> None:
        self.case, self.plan = case, plan
        self.grid = case.predicted.shape[-len(case.spacing) :]
        self.counts: dict[str, dict[str, ReliabilityCounts]] = {"after": {}, "before": {}}
        self._voxels = {"after": 0, "before": 0}
        valid = _valid(case, self.grid)
        self._truth, self._predicted = (
            plan.outputs.read(labels, plan.class_names, self.grid, f"{name} of case {case.case_id}", valid)
            for name, labels in (("truth", case.truth), ("prediction", case.predicted))
        )
        # A label map becomes a stack of one channel, so that the union of all classes is the same line for both kinds.
        foreground = np.asarray(self._predicted.reshape(-1, *self.grid).any(axis=0))
        # Populations are chosen by the prediction, never by the truth: see `populations`.
        self._populations = Populations(plan, foreground, case.spacing, valid)

    def add(self, slab: Box, probabilities: NDArray[Any], uncalibrated: NDArray[Any] | None = None) -> None:
        """Counts one slab.

        Args:
            slab: Where it lies, a slice for each axis of the grid.
            probabilities: Shape (C, ...) with the grid of the slab, 0 to 1, as `CaseArrays.probabilities`.
            uncalibrated: Same shape: before calibration; None in all slabs where that is not compared.

        Raises:
            ValueError: Another number of channels or another grid, or probabilities that are not between 0 and 1.
        """
        if len(probabilities) != self.plan.channels:
            raise ValueError(
                f"case {self.case.case_id} has {len(probabilities)} probability channels; {self.plan.channels} are needed: "
                f"{', '.join(self.plan.channel_names)}"
            )
        place: tuple[Any, ...] = (..., *slab)
        truth, within = self._truth[place], self._populations.within(slab, probabilities)
        # The same voxels before and after calibration, since the band lies around the labels that were delivered
        # (decision 10).
        for stage, p in (("after", probabilities), ("before", uncalibrated)):
            if p is not None:
                counts = count_populations(truth, p, within, outputs=self.plan.outputs, bins=self.plan.bins)
                self.counts[stage] = summed(self.counts[stage], counts)
                self._voxels[stage] += math.prod(p.shape[1:])

    def scores(self) -> CaseScores:
        """Every score of the case. Raises ValueError unless each voxel was counted, before calibration all of them or none."""
        case, plan = self.case, self.plan
        needed = math.prod(self.grid) if plan.probabilities else 0
        if self._voxels["after"] != needed or self._voxels["before"] not in (0, needed):
            raise ValueError(
                f"case {case.case_id} has probabilities of {self._voxels['after']} voxels, before calibration of "
                f"{self._voxels['before']}; {needed} are needed, each voxel in one slab"
            )
        after, before = self.counts["after"], self.counts["before"]
        sums = after[WHOLE].confidence.sum(axis=-1) if plan.probabilities else None
        return CaseScores(
            case.case_id,
            case.subject,
            score_masks(self._truth, self._predicted, case.spacing, case.voxel_size, plan, case.objects),
            {name: after[name].in_bins for name in plan.populations},
            _errors(after),
            _errors(before),
            _accuracy(self._truth, self._predicted, self._populations.valid),
            ()
            if sums is None
            else tuple(case.voxel_size * float(sums[plan.row_of(n)]) for n in range(len(plan.class_names))),
        )


def summed(total: Counts, more: Counts) -> dict[str, ReliabilityCounts]:
    """The counts of each population of `more`, added to those of `total`, which may be empty."""
    return {name: total[name] + counts if total else counts for name, counts in more.items()}


def _errors(counts: Counts) -> dict[str, Errors]:
    return {
        name: {key: error(entry, TOP_LABEL) for key, error in CALIBRATION_ERRORS.items()}
        for name, entry in counts.items()
    }


def _accuracy(truth: NDArray[Any], predicted: NDArray[Any], valid: overlap.Mask | None) -> float:
    right = truth == predicted
    return float(right.mean() if valid is None else right[..., valid].mean())


def score_masks(
    truth: NDArray[Any],
    predicted: NDArray[Any],
    spacing: boundary.Spacing,
    voxel_size: float,
    plan: EvaluationPlan,
    objects: tuple[NDArray[Any], NDArray[Any]] | None = None,
) -> tuple[ClassScores, ...]:
    """The scores of every class, each in the box that holds it; several classes at a time, as far as the memory allows.

    Args:
        truth: Shape (I, J, K) of class numbers, or (C, I, J, K) boolean; one axis fewer for pictures.
        predicted: Same shape.
        spacing: Distance of neighbouring voxels along each axis, in the unit of the plan.
        voxel_size: Size of one voxel, in the unit of the plan.
        plan: The classes and the lengths.
        objects: As in `CaseArrays`.
    """
    regions = (regions_of(labels, len(spacing), len(plan.class_names)) for labels in (truth, predicted))
    pairs = list(zip(*regions, strict=True))
    # Voxels beyond the box of both masks change no score, so each class is measured in its box.
    boxes = [_union(*(region.box for region in pair)) for pair in pairs]
    largest = max((math.prod(side.stop - side.start for side in box) for box in boxes), default=1)
    workers = max(1, min(os.cpu_count() or 1, _WORK_BYTES // (_BYTES_A_VOXEL * largest)))

    def score(n: int) -> ClassScores:
        # The masks are cut inside the thread, so that only the classes at hand take memory.
        true_mask, predicted_mask = (region.labels[boxes[n]] == region.value for region in pairs[n])
        scores = _score_class(plan.class_names[n], true_mask, predicted_mask, spacing, voxel_size, plan)
        if objects is None:
            return scores
        return replace(scores, components=match_components(*(numbers[n][boxes[n]] for numbers in objects)))

    with ThreadPoolExecutor(max_workers=workers) as pool:
        return tuple(pool.map(score, range(len(boxes))))


def _valid(case: CaseArrays, grid: tuple[int, ...]) -> overlap.Mask | None:
    """The voxels that count, shape (*grid); None for all."""
    if case.valid is None:
        return None
    if case.valid.dtype != np.bool_ or case.valid.shape != grid:
        raise ValueError(
            f"valid voxels of case {case.case_id} are {case.valid.dtype} {case.valid.shape}; a boolean mask of {grid} is "
            "needed, True where a voxel counts"
        )
    if not case.valid.any():
        raise ValueError(f"case {case.case_id} has 0 valid voxels; 1 or more are needed; leave the case out")
    return case.valid


def _union(first: Box | None, second: Box | None) -> Box:
    """The box around both; a box of one voxel, which belongs to neither, if there are none."""
    boxes = [box for box in (first, second) if box is not None]
    if not boxes:
        return (slice(0, 1),)
    return tuple(slice(min(p.start for p in parts), max(p.stop for p in parts)) for parts in zip(*boxes, strict=True))


def _score_class(
    name: str,
    truth: overlap.Mask,
    predicted: overlap.Mask,
    spacing: boundary.Spacing,
    voxel_size: float,
    plan: EvaluationPlan,
) -> ClassScores:
    surfaces = boundary.SurfacePair(truth, predicted, spacing)
    distances = surfaces.distances()

    def surface_dice(tolerance: float) -> float:
        return boundary.normalised_surface_dice(distances, tolerance_mm=tolerance)

    return ClassScores(
        name=name,
        dice=overlap.dice(truth, predicted),
        iou=overlap.iou(truth, predicted),
        boundary_iou=surfaces.boundary_iou(plan.boundary_width),
        precision=overlap.precision(truth, predicted),
        recall=overlap.recall(truth, predicted),
        surface_dice=surface_dice(plan.surface_tolerance),
        surface_dice_at=tuple(map(surface_dice, plan.tolerances)),
        hd=boundary.hausdorff_distance(distances, percentile=100),
        hd95=boundary.hausdorff_distance(distances),
        assd=boundary.average_surface_distance(distances),
        truth_size=np.count_nonzero(truth) * voxel_size,
        predicted_size=np.count_nonzero(predicted) * voxel_size,
        components=match_components(surfaces.truth, surfaces.predicted),
        centreline_dice=centreline_dice(surfaces.truth, surfaces.predicted) if plan.centreline else None,
    )
