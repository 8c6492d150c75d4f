"""The summary of all cases: every score of this package, per class and as a mean, with intervals by subject.

Of a case only its `CaseScores` are kept (some two kilobytes for each class, whatever the size of the case), so a data set may
be of any size. The reliability counts, which are much larger, are added up over the cases as they come.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import reliability, score_registry
from .bootstrap import Bootstrap, Estimate, bootstrap_mean, bootstrap_sums, finite_mean, finite_or_none
from .case_scores import CaseArrays, CaseCounter, CaseScores, Errors, summed
from .plan import EvaluationPlan
from .reliability import CALIBRATION_ERRORS, TOP_LABEL, ReliabilityCounts, expected_gap
from .score_registry import Floats, Read, means_of_rows, score_table

NOWHERE = "no case has a voxel of it, true or predicted"
"""Why the scores of a class are not defined."""


class Evaluation:
    """Scores cases one at a time and sums them up.

    Example:
        evaluation = Evaluation(EvaluationPlan(("Anterior", "Posterior")))
        for arrays in cases:
            evaluation.add(arrays)
        evaluation.summary()["dice"]["mean"]

    Attributes:
        plan: What is measured.
        cases: The scores of each case.
        counts: Reliability counts over all cases, for every population of the plan.
    """

    def __init__(self, plan: EvaluationPlan) -> None:
        self.plan = plan
        self.cases: list[CaseScores] = []
        self.counts = {name: ReliabilityCounts.empty(plan.channels, plan.bins) for name in plan.every_population}
        self._before: dict[str, ReliabilityCounts] | None = dict(self.counts)

    @property
    def counts_before(self) -> dict[str, ReliabilityCounts] | None:
        """The counts before calibration; None unless every case has uncalibrated probabilities."""
        return self._before if self.cases else None

    def add(self, case: CaseArrays) -> CaseScores:
        """Scores of a case that is whole in memory, which is counted from now on.

        Raises:
            ValueError: The case was added before, its arrays do not share a grid, a label value is unknown, or its
                probabilities are not between 0 and 1.
        """
        counter = CaseCounter(case, self.plan)
        assert case.probabilities is not None
        counter.add((slice(None),) * len(counter.grid), case.probabilities, case.uncalibrated)
        return self.add_counted(counter)

    def add_counted(self, counter: CaseCounter) -> CaseScores:
        """Scores of a case whose slabs have all been counted; it is counted from now on. Raises ValueError as `add`."""
        if any(counter.case.case_id == known.case_id for known in self.cases):
            raise ValueError(
                f"case {counter.case.case_id} was already added; each case counts once; give it another name"
            )
        scores = counter.scores()
        self.cases.append(scores)
        after, before = counter.counts["after"], counter.counts["before"]
        self.counts = summed(self.counts, after)
        # Errors before and after are comparable only if both count the same cases.
        self._before = summed(self._before, before) if self._before and before else None
        return scores

    def summary(self, how: Bootstrap | None = None) -> dict[str, Any]:
        """Means over cases, pooled calibration and their intervals, ready for JSON; what is undefined is None.

        Every score is `{"mean", "mean_interval", "per_class", "per_class_interval"}`; lengths and sizes carry
        their unit in the name (`hd95_mm`, or `hd95_px` where planar). `mean` is the mean over cases of the mean
        over classes. `surface_dice_at` holds a score for each tolerance, `components` a score for each of its figures.

        A class without a voxel in any case, true or predicted, is in `undefined` with the reason: its scores are None and no
        part of any mean. `absent_cases` counts for each class the cases without a voxel of it; these score 1, as two empty
        masks do. If there are any, `present_only` in `dice` is the score without them.

        Without probabilities there is no `ece`, `ece_band` and `calibration`. `ece` and `ece_band` also hold `top_label` (the
        headline: top label, equal bins, pooled); their `per_class` is one class against the rest, pooled. Intervals are None
        with fewer than `fewest_subjects` subjects.
        """
        plan, cases, how = self.plan, self.cases, how or Bootstrap()
        summary = _score_summary(plan, cases, how)
        accuracy = bootstrap_mean([case.pixel_accuracy for case in cases], [case.subject for case in cases], how)
        summary["pixel_accuracy"] = {"mean": finite_or_none(accuracy.value), "mean_interval": accuracy.interval}
        if not plan.probabilities:
            return summary
        for key, population in zip(("ece", "ece_band"), plan.populations, strict=True):
            summary[key] = _ece_block(population, plan, cases, how)
        summary["calibration"] = _calibration_table(plan, self.counts, [case.errors for case in cases])
        if self.counts_before:
            earlier = [case.errors_before for case in cases]
            summary["calibration_before"] = _calibration_table(plan, self.counts_before, earlier)
        return summary


def _score_summary(plan: EvaluationPlan, cases: list[CaseScores], how: Bootstrap) -> dict[str, Any]:
    subjects, present = [case.subject for case in cases], score_registry.presence(cases, plan)
    # A class that no case holds would score 1 everywhere, as two empty masks do, and raise every mean.
    somewhere: NDArray[np.bool_] = np.asarray(present.any(axis=0))

    def block(read: Read, counting: NDArray[np.bool_] = somewhere) -> dict[str, Any]:
        table = np.where(counting, score_table(read, cases, plan), np.nan)
        return _table_block(table, plan, subjects, how)

    scores = score_registry.scores_of(plan)
    summary: dict[str, Any] = {key: block(score.read) for key, score in scores.items()}
    for key, score in scores.items():
        if score.unit == "length":
            # A distance to an empty mask is infinite and no part of a mean, so the number of such cases stands beside
            # the mean.
            lost = ~np.isfinite(score_table(score.read, cases, plan))
            summary[key]["undefined_cases"] = _counted(lost, plan)
    # The two means differ only where a class that occurs in some case is absent from another.
    if (present != somewhere).any():
        summary["dice"]["present_only"] = block(scores["dice"].read, present)
    summary["surface_dice_at"] = {name: block(read) for name, read in score_registry.tolerance_readers(plan).items()}
    summary["components"] = {score.name: block(score.read) for score in score_registry.COMPONENT_SCORES}
    summary["absent_cases"] = _counted(~present, plan)
    summary["undefined"] = {name: NOWHERE for name, there in zip(plan.class_names, somewhere, strict=True) if not there}
    return summary


def _counted(cells: NDArray[np.bool_], plan: EvaluationPlan) -> dict[str, int]:
    """Shape (cases, classes): how many cases of each class are True."""
    return {name: int(number) for name, number in zip(plan.class_names, cells.sum(axis=0), strict=True)}


def _calibration_table(
    plan: EvaluationPlan, pooled: Mapping[str, ReliabilityCounts], cases: Sequence[Mapping[str, Errors]]
) -> dict[str, Any]:
    """Every calibration figure of each population, with the bins of its diagram, ready for JSON."""
    return {
        name: _calibration_block(pooled[name], [case[name] for case in cases], plan) for name in plan.every_population
    }


def _table_block(table: Floats, plan: EvaluationPlan, subjects: list[str], how: Bootstrap) -> dict[str, Any]:
    """Means over cases of a table (cases, classes); values that are NaN or infinite do not count."""
    per_class = {name: bootstrap_mean(table[:, n], subjects, how) for n, name in enumerate(plan.class_names)}
    # First a mean over the classes of each case, then over cases: the draw of subjects needs a figure for each case.
    return _block(bootstrap_mean(means_of_rows(table), subjects, how), per_class)


def _ece_block(population: str, plan: EvaluationPlan, cases: list[CaseScores], how: Bootstrap) -> dict[str, Any]:
    rows = [plan.row_of(n) for n in range(len(plan.class_names))]
    estimate = {row: _pooled_ece(population, [row], plan, cases, how) for row in (TOP_LABEL, *rows)}
    mean = _pooled_ece(population, rows, plan, cases, how)
    top = estimate[TOP_LABEL]
    block = _block(mean, {name: estimate[row] for name, row in zip(plan.class_names, rows, strict=True)})
    return {
        "population": population,
        "top_label": finite_or_none(top.value),
        "top_label_interval": top.interval,
        **block,
    }


def _pooled_ece(
    population: str, rows: list[int], plan: EvaluationPlan, cases: list[CaseScores], how: Bootstrap
) -> Estimate:
    """Mean over rows of the ECE of counts pooled over cases; the interval pools resampled subjects."""
    # The bin counts of a case are its summands, so that a resample of subjects pools the counts of its cases.
    parts = [
        np.stack([c.count[rows], c.correct[rows], c.confidence[rows]]).ravel()
        for c in (case.bins[population] for case in cases)
    ]
    shape = (-1, 3, len(rows), plan.bins)

    def mean_ece(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        # ECE of a draw is computed after its counts are added up: a mean of the errors of cases would be another
        # figure.
        count, correct, confidence = np.moveaxis(sums.reshape(shape), 1, 0)
        return np.asarray(expected_gap(count, correct, confidence).mean(axis=-1))

    table = np.array(parts, dtype=np.float64).reshape(len(cases), 3 * len(rows) * plan.bins)
    return bootstrap_sums(table, [case.subject for case in cases], mean_ece, how)


def _calibration_block(pooled: ReliabilityCounts, cases: Sequence[Errors], plan: EvaluationPlan) -> dict[str, Any]:
    figures = CALIBRATION_ERRORS
    rows = {name: plan.row_of(n) for n, name in enumerate(plan.class_names)}
    return {
        "decisions": pooled.decisions,
        "top_label": {key: finite_or_none(figure(pooled, TOP_LABEL)) for key, figure in figures.items()},
        "per_class": {
            name: {key: finite_or_none(figure(pooled, row)) for key, figure in figures.items()}
            for name, row in rows.items()
        },
        "per_case": {key: finite_or_none(finite_mean([errors[key] for errors in cases])) for key in figures},
        "brier": finite_or_none(reliability.brier_score(pooled)),
        "nll": finite_or_none(reliability.negative_log_likelihood(pooled)),
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
            "confidence": finite_or_none(confidence[b]),
            "accuracy": finite_or_none(accuracy[b]),
        }
        for b in range(counts.bins)
    ]


def _block(mean: Estimate, per_class: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        "mean": finite_or_none(mean.value),
        "mean_interval": mean.interval,
        "per_class": {name: finite_or_none(estimate.value) for name, estimate in per_class.items()},
        "per_class_interval": {name: estimate.interval for name, estimate in per_class.items()},
    }
