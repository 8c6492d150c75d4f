"""One case in, its scores out.

Exclusive classes (softmax) and overlapping labels (sigmoid) take one path: both become a stack of boolean
masks, one for each named class. Volumes speak in millimetres and millilitres, planar images in pixels.

Voxels that do not count (an ignore label, what lies outside the field of view) are cut out of both masks before
anything is measured, and no population holds them. What they hold changes no figure. Where a mask runs out of
the valid voxels it has a border, as at the image's edge, and both masks have it in the same place; the band
around the predicted surface does not: there the prediction was not asked.
"""

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import boundary, overlap
from .boxes import Box, bounding_box, label_boxes
from .centreline import centreline_dice
from .components import ComponentScores, match_components
from .plan import EvaluationPlan
from .populations import populations
from .reliability import TOP_LABEL, ReliabilityCounts, count_reliability, expected_calibration_error

_WORK_BYTES = 2**30  # for classes that are measured at once
_BYTES_A_VOXEL = 16  # of a class's box: its two masks, their borders and distances
Counts = Mapping[str, ReliabilityCounts]


@dataclass(frozen=True)
class CaseArrays:
    """One case, on the source grid.

    Attributes:
        case_id: Name of the case; no patient identity.
        subject: Name of the person; cases of one person share it.
        truth: Shape (I, J, K), whole numbers, 0 is background; or (C, I, J, K) boolean, one mask a named
            class.
        predicted: As `truth`: the labels that were delivered, after post-processing.
        probabilities: Shape (C, I, J, K), 0 to 1, calibrated if the bundle calibrates; with background if
            exclusive.
        spacing_mm: Voxel size along I, J, K; not read for planar images.
        voxel_ml: Volume of one voxel in millilitres (not the product of the spacing on a sheared grid).
        uncalibrated: Probabilities before calibration, same shape, or None.
        valid: Shape (I, J, K) boolean: voxels that count, or None for all. Chosen by who drew the truth or by the
            field of view, never by what came out.
    """

    case_id: str
    subject: str
    truth: NDArray[Any]
    predicted: NDArray[Any]
    probabilities: NDArray[Any]
    spacing_mm: tuple[float, float, float]
    voxel_ml: float
    uncalibrated: NDArray[Any] | None = None
    valid: NDArray[np.bool_] | None = None


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
    """All that is kept of a case.

    Attributes:
        case_id: Name of the case.
        subject: Name of the person.
        classes: One entry for each named class, in their order.
        reliability: Counts for each of the plan's populations.
        reliability_before: The same before calibration; empty if that was not given.
        pixel_accuracy: Part of the voxels that count whose label is right, 0 to 1; of overlapping labels, of all their answers.
    """

    case_id: str
    subject: str
    classes: tuple[ClassScores, ...]
    reliability: Counts
    reliability_before: Counts = field(default_factory=dict)
    pixel_accuracy: float = math.nan

    def mean(self, score: str) -> float:
        """Mean of a score (a name of `ClassScores`) over the classes that define it; NaN where none does."""
        values = np.array([getattr(entry, score) for entry in self.classes], dtype=np.float64)
        values = values[np.isfinite(values)]
        return float(values.mean()) if values.size else float("nan")

    def ece(self, population: str, row: int = TOP_LABEL) -> float:
        """Calibration error of this case alone; NaN where its population is empty."""
        return expected_calibration_error(self.reliability[population], row)


def score_case(case: CaseArrays, plan: EvaluationPlan) -> CaseScores:
    """Every score of one case. Pure; raises ValueError as `Evaluation.add` does."""
    probabilities = _on_grid(case.probabilities, plan)
    if len(probabilities) != plan.channels:
        raise ValueError(
            f"case {case.case_id} has {len(probabilities)} probability channels; {plan.channels} are needed "
            f"for {'background and ' if plan.exclusive else ''}{len(plan.class_names)} classes"
        )
    grid = probabilities.shape[1:]
    valid = _valid(case, plan, grid)
    truth = _labels(case.truth, plan, grid, f"truth of case {case.case_id}", valid)
    predicted = _labels(case.predicted, plan, grid, f"prediction of case {case.case_id}", valid)
    # Populations hang on what was predicted, never on what is true: see `populations`.
    within = populations(plan, _any(predicted, plan), probabilities, _spacing(case, plan), valid)
    after = _count(truth, probabilities, within, plan)
    before = {} if case.uncalibrated is None else _count(truth, _on_grid(case.uncalibrated, plan), within, plan)
    scores = score_masks(truth, predicted, case, plan)
    return CaseScores(case.case_id, case.subject, scores, after, before, _accuracy(truth, predicted, valid))


def _accuracy(truth: NDArray[Any], predicted: NDArray[Any], valid: overlap.Mask | None) -> float:
    right = truth == predicted
    return float(right.mean() if valid is None else right[..., valid].mean())


def score_masks(
    truth: NDArray[Any], predicted: NDArray[Any], case: CaseArrays, plan: EvaluationPlan
) -> tuple[ClassScores, ...]:
    """The scores of every class, each on the box that holds it; several at a time, as far as memory should bear.

    Args:
        truth: Shape (I, J, K) of class numbers, or (C, I, J, K) boolean; two axes less one for planar images.
        predicted: Same shape.
        case: Spacing and size of a voxel.
        plan: What is measured.
    """
    spacing, size = _spacing(case, plan), 1.0 if plan.planar else case.voxel_ml
    boxes = [_union(*pair) for pair in zip(_boxes(truth, plan), _boxes(predicted, plan), strict=True)]
    largest = max((math.prod(part.stop - part.start for part in box) for box in boxes), default=1)
    workers = max(1, min(os.cpu_count() or 1, _WORK_BYTES // (_BYTES_A_VOXEL * largest)))

    def score(n: int) -> ClassScores:
        true_mask, predicted_mask = (_mask(labels, n, boxes[n], plan) for labels in (truth, predicted))
        return _score_class(plan.class_names[n], true_mask, predicted_mask, spacing, size, plan)

    with ThreadPoolExecutor(max_workers=workers) as pool:
        return tuple(pool.map(score, range(len(boxes))))


def _valid(case: CaseArrays, plan: EvaluationPlan, grid: tuple[int, ...]) -> overlap.Mask | None:
    """The voxels that count, shape (*grid); None for all."""
    if case.valid is None:
        return None
    valid: overlap.Mask = _on_grid(case.valid[None], plan)[0]
    if valid.dtype != np.bool_ or valid.shape != grid:
        raise ValueError(
            f"valid voxels of case {case.case_id} are {valid.dtype} {valid.shape}; a boolean mask of {grid} is needed, "
            "True where a voxel counts"
        )
    if not valid.any():
        raise ValueError(f"case {case.case_id} has 0 valid voxels; 1 or more are needed; leave the case out")
    return valid


def _labels(
    labels: NDArray[Any], plan: EvaluationPlan, grid: tuple[int, ...], name: str, valid: overlap.Mask | None
) -> NDArray[Any]:
    """Label values of shape (*grid), or of overlapping labels one mask each, (C, *grid). Errors as `class_masks`."""
    if not plan.exclusive or labels.dtype == np.bool_:
        masks = class_masks(labels, plan, grid, name, valid)
        numbers = np.arange(1, len(masks) + 1, dtype=np.int32)
        return np.tensordot(numbers, masks, axes=1) if plan.exclusive else masks
    return _label_map(labels, plan, grid, name, valid)


def _boxes(labels: NDArray[Any], plan: EvaluationPlan) -> Sequence[Box | None]:
    """The smallest index box around each class; None where there is no voxel of it."""
    if plan.exclusive:
        return label_boxes(labels, len(plan.class_names))
    return [bounding_box(mask, margin=[0] * mask.ndim) for mask in labels]


def _union(first: Box | None, second: Box | None) -> Box:
    """The box around both; the first voxel, which is of neither, where neither exists."""
    boxes = [box for box in (first, second) if box is not None]
    if not boxes:
        return (slice(0, 1),)
    return tuple(slice(min(p.start for p in parts), max(p.stop for p in parts)) for parts in zip(*boxes, strict=True))


def _mask(labels: NDArray[Any], n: int, box: Box, plan: EvaluationPlan) -> overlap.Mask:
    return np.asarray(labels[box] == n + 1 if plan.exclusive else labels[n][box])


def _spacing(case: CaseArrays, plan: EvaluationPlan) -> tuple[float, ...]:
    return (1.0, 1.0) if plan.planar else case.spacing_mm


def class_masks(
    labels: NDArray[Any], plan: EvaluationPlan, grid: tuple[int, ...], name: str, valid: overlap.Mask | None = None
) -> NDArray[np.bool_]:
    """One boolean mask for each named class.

    Args:
        labels: Whole label values (I, J, K) of any dtype, or a boolean stack (C, I, J, K).
            Planar images may lack K.
        plan: Names the classes.
        grid: Shape that a mask must have: (I, J, K), or (I, J) where planar.
        name: What the message calls the labels.
        valid: Shape (*grid): voxels that count, or None for all. The others are in no mask, whatever value they have.

    Returns:
        Shape (C, *grid), without background.

    Raises:
        ValueError: Another grid, a value that names no class, or exclusive classes that overlap.
    """
    stacked = labels.dtype == np.bool_ and labels.ndim > 2 and labels.shape[0] == len(plan.class_names)
    if stacked and _on_grid(labels, plan).shape[1:] == grid:
        stack = _on_grid(labels, plan)
        return _checked_stack(stack if valid is None else stack & valid, plan, name)
    labels = _label_map(labels, plan, grid, name, valid)
    return np.stack([labels == n + 1 for n in range(len(plan.class_names))])


def _label_map(
    labels: NDArray[Any], plan: EvaluationPlan, grid: tuple[int, ...], name: str, valid: overlap.Mask | None
) -> NDArray[Any]:
    """Label values as whole numbers of shape (*grid), 0 where they do not count.

    Raises ValueError for another grid, or a value that names no class.
    """
    labels = _on_grid(labels[None], plan)[0]
    if labels.shape != grid:
        raise ValueError(
            f"{name} has shape {labels.shape}; {grid} is needed, the grid of the probabilities; resample it"
        )
    if valid is not None:
        labels = np.where(valid, labels, labels.dtype.type(0))
    most = len(plan.class_names)
    with np.errstate(invalid="ignore"):
        whole = labels if np.issubdtype(labels.dtype, np.integer) else labels.astype(np.int32)
    if labels.size and not (whole.min() >= 0 and whole.max() <= most and (whole is labels or (whole == labels).all())):
        unknown = [f"{value:g}" for value in np.unique(labels).astype(np.float64) if value not in range(most + 1)]
        raise ValueError(
            f"{name} holds the label values {', '.join(unknown[:5])}; whole numbers from 0 to {most} "
            f"are known ({', '.join(plan.class_names)}); map them first"
        )
    return whole


def _score_class(
    name: str,
    truth: overlap.Mask,
    predicted: overlap.Mask,
    spacing: tuple[float, ...],
    size: float,
    plan: EvaluationPlan,
) -> ClassScores:
    surfaces = boundary.SurfacePair.of(truth, predicted, spacing)
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
        truth_size=overlap.volume_ml(truth, size),
        predicted_size=overlap.volume_ml(predicted, size),
        components=match_components(surfaces.truth, surfaces.predicted),
        centreline_dice=centreline_dice(surfaces.truth, surfaces.predicted) if plan.centreline else None,
    )


def _count(
    truth: NDArray[Any], probabilities: NDArray[Any], within: Mapping[str, overlap.Mask | None], plan: EvaluationPlan
) -> dict[str, ReliabilityCounts]:
    return {
        name: count_reliability(truth, probabilities, exclusive=plan.exclusive, within=mask, bins=plan.bins)
        for name, mask in within.items()
    }


def _on_grid(stack: NDArray[Any], plan: EvaluationPlan) -> NDArray[Any]:
    """(C, I, J, 1) without its last axis where planar, anything else as it is."""
    return stack[..., 0] if plan.planar and stack.ndim == 4 and stack.shape[-1] == 1 else stack


def _checked_stack(stack: NDArray[np.bool_], plan: EvaluationPlan, name: str) -> NDArray[np.bool_]:
    shared = int(np.count_nonzero(stack.sum(axis=0) > 1)) if plan.exclusive else 0
    if shared:
        raise ValueError(f"{name} gives {shared} voxels to two classes; exclusive classes may not overlap")
    return stack


def _any(labels: NDArray[Any], plan: EvaluationPlan) -> NDArray[np.bool_]:
    """Voxels of any class, shape (*grid)."""
    return labels > 0 if plan.exclusive else np.logical_or.reduce(labels, axis=0)
