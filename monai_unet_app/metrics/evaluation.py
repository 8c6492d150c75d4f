"""Cases in, one summary out: every score of this package, per class and mean, with intervals by subject.

Nothing of a case is kept but its scores and its reliability counts (some kilobytes), so a data set of any
size streams through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import reliability
from .cases import WHOLE, CaseArrays, CaseScores, Counts, EvaluationPlan, score_case
from .reliability import TOP_LABEL, ReliabilityCounts, expected_gap
from .statistics import Bootstrap, Estimate, bootstrap_mean, bootstrap_sums


class Evaluation:
    """Takes cases one at a time and sums them up.

    Example:
        evaluation = Evaluation(EvaluationPlan(("Anterior", "Posterior")))
        for arrays in cases:
            evaluation.add(arrays)
        evaluation.summary()["dice"]["mean"]
    """

    def __init__(self, plan: EvaluationPlan, cases: Iterable[CaseScores] = ()) -> None:
        """`cases`: scores that were taken before or elsewhere, so that evaluations can be merged."""
        self.plan = plan
        self.cases: list[CaseScores] = list(cases)

    def add(self, case: CaseArrays) -> CaseScores:
        """Scores of a case, which is counted from now on.

        Raises:
            ValueError: The case was added before, its arrays do not share a grid, it has an unknown label
            value, or its
                probabilities are none.
        """
        if any(case.case_id == known.case_id for known in self.cases):
            raise ValueError(f"case {case.case_id} was added before; each case counts once; give it a name of its own")
        scores = score_case(case, self.plan)
        self.cases.append(scores)
        return scores

    def pooled(self) -> dict[str, ReliabilityCounts]:
        """Reliability counts over all cases, for each population."""
        return pooled_counts(self.plan, [case.reliability for case in self.cases])

    def pooled_before(self) -> dict[str, ReliabilityCounts] | None:
        """The same before calibration; None unless every case brought its uncalibrated probabilities."""
        if not self.cases or not all(case.reliability_before for case in self.cases):
            return None
        return pooled_counts(self.plan, [case.reliability_before for case in self.cases])

    def summary(self, how: Bootstrap | None = None) -> dict[str, Any]:
        """All figures, ready for JSON (what is undefined is None). See `summarise`."""
        return summarise(self.plan, self.cases, how or Bootstrap())


def pooled_counts(plan: EvaluationPlan, cases: Iterable[Counts]) -> dict[str, ReliabilityCounts]:
    """The counts of all cases added up, for each population."""
    total = {name: ReliabilityCounts.empty(plan.channels, plan.bins) for name in plan.populations}
    for counts in cases:
        total = {name: total[name] + counts[name] for name in plan.populations}
    return total


def summarise(plan: EvaluationPlan, cases: Iterable[CaseScores], how: Bootstrap) -> dict[str, Any]:
    """Means over cases, pooled calibration and their intervals, ready for JSON.

    Every score is `{"mean", "mean_interval", "per_class", "per_class_interval"}`; lengths and sizes carry
    their unit in the name (`hd95_mm`, or `hd95_px` where planar). `mean` is the mean over cases of the mean
    over classes. `ece` and `ece_band` hold `top_label` beside them (the project's headline: top label, equal
    bins, pooled); their `per_class` is one class against the rest, pooled. Intervals are None with fewer than
    two subjects.
    """
    cases = list(cases)
    summary: dict[str, Any] = {key: _score_block(score, plan, cases, how) for score, key in score_keys(plan).items()}
    for key, population in (("ece", WHOLE), ("ece_band", plan.band)):
        summary[key] = _ece_block(population, plan, cases, how)
    summary["calibration"] = calibration_table(plan, [case.reliability for case in cases])
    before = [case.reliability_before for case in cases]
    if before and all(before):
        summary["calibration_before"] = calibration_table(plan, before)
    return summary


def score_keys(plan: EvaluationPlan) -> dict[str, str]:
    """Attribute of `ClassScores` -> its name in summaries and tables, with the unit where it has one."""
    plain = ("dice", "iou", "boundary_iou", "iou_boundary_min", "precision", "recall", "surface_dice")
    units = {"hd95": plan.unit, "assd": plan.unit, "size_difference": plan.size_unit}
    return {score: score for score in plain} | {score: f"{score}_{unit}" for score, unit in units.items()}


def calibration_table(plan: EvaluationPlan, cases: Iterable[Counts]) -> dict[str, Any]:
    """Every calibration figure of each population, with the bins of its diagram, ready for JSON."""
    cases = list(cases)
    return {
        name: _calibration_block(counts, [case[name] for case in cases], plan)
        for name, counts in pooled_counts(plan, cases).items()
    }


def definitions(plan: EvaluationPlan) -> dict[str, str]:
    """One sentence for each figure: what it is, in which unit, with which policy."""
    unit, d = plan.unit, plan.boundary_width
    decision = "voxel" if plan.exclusive else "voxel and label"
    return {
        "level": "Scores are means over cases; calibration is pooled over all cases unless it says per case.",
        "interval": "Percentile bootstrap that draws subjects again, each with all of its cases.",
        "empty": "Both masks empty: 1. One empty: 0. Distances: both empty 0, one empty undefined and counted apart.",
        "boundary_iou": f"IoU of the voxels of each mask within {d:g} {unit} (centre to centre) of its "
        "border voxels; border: the mask minus its face-connected erosion, with the image's edge as outside.",
        "iou_boundary_min": "The smaller of IoU and boundary IoU, case by case.",
        "surface_dice": f"Part of the border voxels of both masks within "
        f"{plan.surface_tolerance:g} {unit} of the other's.",
        "hd95": f"Larger of the two 95th percentiles of border-to-border distances, {unit}.",
        "assd": f"Mean border-to-border distance, both directions pooled, {unit}.",
        "size_difference": f"Predicted minus true size, {'pixels' if plan.planar else 'mL'}.",
        "ece": f"Top label, {plan.bins} equal-width bins, pooled over every {decision} of the source grid; "
        "per_class is one class against the rest.",
        "ece_band": f"As ece, over voxels whose centre lies within {plan.band_width:g} {unit} of the centre "
        "of a face of the predicted foreground, on either side; the image's edge is no face.",
        "ace": "Plain mean of the gaps of the equal-width bins that are not empty (as MONAI and Barfoot).",
        "mce": "Largest gap of a bin that is not empty.",
        "brier": "Mean squared error of the probabilities"
        + (", summed over the channels." if plan.exclusive else ", a mean over labels."),
        "nll": "Mean -log of the probability given to what was true, in nats, floored at 2^-24.",
    }


def _score_block(score: str, plan: EvaluationPlan, cases: list[CaseScores], how: Bootstrap) -> dict[str, Any]:
    subjects = [case.subject for case in cases]
    mean = bootstrap_mean([case.mean(score) for case in cases], subjects, how)
    values = {
        name: [float(getattr(case.classes[n], score)) for case in cases] for n, name in enumerate(plan.class_names)
    }
    block = _block(mean, {name: bootstrap_mean(row, subjects, how) for name, row in values.items()})
    if score in ("hd95", "assd"):
        block["undefined_cases"] = {name: int((~np.isfinite(row)).sum()) for name, row in values.items()}
    return block


def _ece_block(population: str, plan: EvaluationPlan, cases: list[CaseScores], how: Bootstrap) -> dict[str, Any]:
    rows = [plan.row_of(n) for n in range(len(plan.class_names))]
    estimate = {row: _pooled_ece(population, [row], plan, cases, how) for row in (TOP_LABEL, *rows)}
    mean = _pooled_ece(population, rows, plan, cases, how)
    top = estimate[TOP_LABEL]
    block = _block(mean, {name: estimate[row] for name, row in zip(plan.class_names, rows, strict=True)})
    return {
        "population": population,
        "top_label": number(top.value),
        "top_label_interval": _interval(top),
        **block,
    }


def _pooled_ece(
    population: str, rows: list[int], plan: EvaluationPlan, cases: list[CaseScores], how: Bootstrap
) -> Estimate:
    """Mean over rows of the ECE of counts pooled over cases; the interval pools resampled subjects."""
    parts = [
        np.stack([c.count[rows], c.correct[rows], c.confidence[rows]]).ravel()
        for c in (case.reliability[population] for case in cases)
    ]
    shape = (-1, 3, len(rows), plan.bins)

    def mean_ece(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        count, correct, confidence = np.moveaxis(sums.reshape(shape), 1, 0)
        return expected_gap(count, correct, confidence).mean(axis=-1)

    table = np.array(parts, dtype=np.float64).reshape(len(cases), 3 * len(rows) * plan.bins)
    return bootstrap_sums(table, [case.subject for case in cases], mean_ece, how)


def _calibration_block(
    pooled: ReliabilityCounts, cases: list[ReliabilityCounts], plan: EvaluationPlan
) -> dict[str, Any]:
    figures: dict[str, Callable[[ReliabilityCounts, int], float]] = {
        "ece": reliability.expected_calibration_error,
        "mce": reliability.maximum_calibration_error,
        "ace": reliability.average_calibration_error,
    }
    rows = {name: plan.row_of(n) for n, name in enumerate(plan.class_names)}
    return {
        "decisions": pooled.decisions,
        "top_label": {key: number(figure(pooled, TOP_LABEL)) for key, figure in figures.items()},
        "per_class": {
            name: {key: number(figure(pooled, row)) for key, figure in figures.items()} for name, row in rows.items()
        },
        "per_case": {
            key: number(_finite_mean([figure(case, TOP_LABEL) for case in cases])) for key, figure in figures.items()
        },
        "brier": number(reliability.brier_score(pooled)),
        "nll": number(reliability.negative_log_likelihood(pooled)),
        "bins": _bins(pooled),
    }


def _bins(counts: ReliabilityCounts) -> list[dict[str, Any]]:
    """The bins of the top label's reliability diagram."""
    edges = np.linspace(0, 1, counts.bins + 1)
    accuracy, confidence = counts.accuracy(), counts.mean_confidence()
    return [
        {
            "low": round(float(edges[b]), 6),
            "high": round(float(edges[b + 1]), 6),
            "count": int(counts.count[TOP_LABEL, b]),
            "confidence": number(confidence[b]),
            "accuracy": number(accuracy[b]),
        }
        for b in range(counts.bins)
    ]


def _block(mean: Estimate, per_class: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        "mean": number(mean.value),
        "mean_interval": _interval(mean),
        "per_class": {name: number(estimate.value) for name, estimate in per_class.items()},
        "per_class_interval": {name: _interval(estimate) for name, estimate in per_class.items()},
    }


def _interval(estimate: Estimate) -> list[float] | None:
    return [estimate.low, estimate.high] if np.isfinite(estimate.low) else None


def number(value: float) -> float | None:
    """A finite float, or None for what is undefined: JSON knows neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None


def _finite_mean(values: list[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")
