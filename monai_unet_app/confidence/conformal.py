"""Statements that hold for new subjects with a stated frequency, whatever the model: pure arithmetic on scores.

Cases of a person resemble each other, so persons are exchangeable and cases are not: each subject has the same weight, which
its cases share.

Sources: Lee, Barber and Willett, Distribution-free inference with hierarchical data, arXiv:2306.06342 (several cases a
subject); Angelopoulos et al., Conformal Risk Control, arXiv:2208.02814 (masks of a bounded risk).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Row = TypeVar("Row")


def conformal_quantile(scores: ArrayLike, subjects: Sequence[str], coverage: float) -> float:
    """The bound that the score of a new case stays below with at least this probability.

    Args:
        scores: Shape (N,). The error of each known case; larger is worse. NaN is refused.
        subjects: N names: the subject of each case. The new case is of a new subject.
        coverage: Between 0 and 1.

    Returns:
        The least score whose weights reach the coverage. Infinity if there are too few subjects: J subjects are enough if
        J / (J + 1) >= coverage.

    Raises:
        ValueError: Lengths differ, a score is NaN, or the coverage is not between 0 and 1.
    """
    values = _checked(scores, subjects)
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is {coverage}; a number between 0 and 1 is needed")
    weights = _weights(subjects)
    # The weight of the new subject counts as if its score were infinite: the known scores must reach the coverage by
    # themselves.
    order = np.argsort(values, kind="stable")
    reached = np.flatnonzero(np.cumsum(weights[order]) >= coverage - 1e-12)  # less the rounding of the sum
    return float(values[order][reached[0]]) if reached.size else math.inf


def subjects_needed(coverage: float) -> int:
    """The fewest subjects with which a statement of this coverage can be made."""
    # J / (J + 1) >= coverage, solved for J. In binary 0.9 / (1 - 0.9) is a little more than 9, and 9 subjects are
    # enough.
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def least_threshold_of_risk(
    losses: ArrayLike, thresholds: Sequence[float], subjects: Sequence[str], risk: float
) -> float | None:
    """The highest threshold whose expected loss on a new subject is at most `risk` (conformal risk control).

    Args:
        losses: Shape (N, T), 0 to 1. Loss of each case at each threshold; it does not fall as the threshold rises.
        thresholds: T, rising.
        subjects: N names: the subject of each case.
        risk: Between 0 and 1.

    Returns:
        One of the thresholds; None if even the lowest is too risky, or there are too few subjects.

    Raises:
        ValueError: Shapes differ, thresholds do not rise, or losses fall.
    """
    table = np.asarray(losses, dtype=np.float64)
    if table.shape != (len(subjects), len(thresholds)):
        raise ValueError(
            f"losses have shape {table.shape}; ({len(subjects)}, {len(thresholds)}) is needed, cases by thresholds"
        )
    if np.any(np.diff(np.asarray(thresholds)) <= 0) or np.any(np.diff(table, axis=1) < -1e-12):
        raise ValueError("thresholds must rise, and losses with them; sort both")
    # The new subject has a weight, too, and its loss is at most 1: so the expected loss is at most this bound.
    bound = _weights(subjects) @ table + 1 / (len(set(subjects)) + 1)
    within = np.flatnonzero(bound <= risk + 1e-12)
    return float(thresholds[within[-1]]) if within.size else None


@dataclass(frozen=True)
class Coverage:
    """How often a statement came true, as metrics.json says it; every subject weighs the same.

    Attributes:
        wanted: The coverage that was promised.
        observed: Mean over subjects of the part of their cases that were covered; None without a subject.
        interval: The two ends of the 95 % Clopper-Pearson interval, for so many successes among the subjects; None as above.
        subjects: Number of subjects.
        cases: Number of cases.
    """

    wanted: float
    observed: float | None
    interval: list[float] | None
    subjects: int
    cases: int


def observed_coverage(covered: ArrayLike, subjects: Sequence[str], promised: float) -> Coverage:
    """How often cases were covered, (N,) of 0 and 1, as a mean over their subjects, with its binomial interval."""
    values = _checked(np.asarray(covered, dtype=np.float64), subjects)
    names = sorted(set(subjects))
    if not names:
        return Coverage(promised, None, None, 0, 0)
    at = np.array([names.index(subject) for subject in subjects])
    observed = float(np.mean(np.bincount(at, weights=values) / np.bincount(at)))
    # The binomial law counts whole subjects, so the sum over subjects that are covered in part is rounded.
    from scipy import stats  # takes a second, and most programs that read statements need no such figure

    interval = stats.binomtest(round(observed * len(names)), len(names)).proportion_ci(method="exact")
    return Coverage(promised, observed, [float(interval.low), float(interval.high)], len(names), len(values))


def by_structure(rows: Iterable[Row]) -> dict[int, list[Row]]:
    """The rows of each structure, by their attribute `structure`; numbers rise, and rows stay in their order."""
    number = attrgetter("structure")
    return {structure: list(own) for structure, own in groupby(sorted(rows, key=number), number)}


def _weights(subjects: Sequence[str]) -> Floats:
    """Shape (N,): each of J subjects has the weight 1 / (J + 1), shared by its cases; the new subject has the same weight."""
    _, member, cases = np.unique(np.asarray(subjects, dtype=str), return_inverse=True, return_counts=True)
    return 1.0 / ((len(cases) + 1) * cases[member])


def _checked(scores: ArrayLike, subjects: Sequence[str]) -> Floats:
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != (len(subjects),):
        raise ValueError(
            f"scores have shape {values.shape} and {len(subjects)} subjects were given; one for each case is needed"
        )
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum())} score(s) are NaN; leave out cases without a score, and say so")
    return values
