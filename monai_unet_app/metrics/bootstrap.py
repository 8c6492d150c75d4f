"""Uncertainty of a figure: bootstrap by subject.

Cases of one person (two hippocampi, four slices, a follow-up) resemble each other, so persons are drawn again, each with all of
their cases. Intervals are percentile intervals; a seed fixes them.

Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: The figure on the cases at hand; NaN where no case defines it.
        low: Lower end of the interval; NaN with fewer than `fewest_subjects`.
        high: Upper end.
        subjects: Number of subjects that it is computed from.
        cases: Number of cases that it is computed from.
    """

    value: float
    low: float
    high: float
    subjects: int
    cases: int

    @property
    def interval(self) -> list[float] | None:
        """Both ends, ready for JSON; None where there is no interval."""
        return [self.low, self.high] if math.isfinite(self.low) else None


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn.

    Attributes:
        level: Coverage of the intervals, between 0 and 1.
        resamples: Number of draws.
        seed: Seed of numpy's PCG64 generator.
    """

    level: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0 < self.level < 1:
            raise ValueError(
                f"resamples={self.resamples}, level={self.level}; at least 1, and between 0 and 1, are needed"
            )

    def document(self) -> dict[str, Any]:
        """The entry `interval` of metrics.json, comparison.json and subgroups.json."""
        return {"method": "bootstrap by subject", **asdict(self)}


def fewest_subjects(level: float) -> int:
    """The least number of subjects with which an interval between their own values can have this coverage.

    The range of n independent values misses their median with probability 2^(1-n): by 0.0625 at five, and 0.03125 at six.
    A percentile bootstrap of a mean lies within that range. Six is also where the smallest p of a signed-rank test comes
    below 0.05.
    """
    return math.ceil(1 - math.log2(1 - level))  # the least n with 2^(1-n) <= 1 - level


def finite_mean(values: Iterable[float]) -> float:
    """The mean of the finite values; NaN without any."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def finite_or_none(value: float) -> float | None:
    """A finite float, or None: JSON has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def bootstrap_mean(values: ArrayLike, subjects: Sequence[str], how: Bootstrap) -> Estimate:
    """Mean over cases, with an interval that resamples subjects.

    Args:
        values: Shape (N,). A value for each case; NaN and infinite values (undefined there) are left out.
        subjects: N names: the subject of each case. Cases of the same name are drawn together.
        how: Seed, number of resamples, level.

    Returns:
        The mean and its interval. `cases` counts the values used.

    Raises:
        ValueError: The lengths differ.
    """
    values = np.asarray(values, dtype=np.float64)
    used = np.isfinite(values)
    _check_lengths(values, subjects)
    names = [name for name, keep in zip(subjects, used, strict=True) if keep]
    # A mean is a ratio of two sums. Both change with a draw, since subjects have unequal numbers of cases.
    rows = np.stack([values[used], np.ones(len(names))], axis=1)
    return bootstrap_sums(rows, names, _ratio_of_sums, how)


def bootstrap_paired_difference(
    first: ArrayLike, second: ArrayLike, subjects: Sequence[str], how: Bootstrap
) -> Estimate:
    """Mean of `first - second`, scores of shape (N,) of the same cases, with an interval that resamples subjects.

    The two are subtracted case by case before subjects are drawn, so the difficulty of a case cancels out. An interval above 0
    means that `first` is larger. Arguments and errors as in `bootstrap_mean`.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired values have shapes {first.shape} and {second.shape}; the same cases are needed")
    # Infinity minus infinity is NaN: neither evaluation has a distance in this case, so it is left out.
    with np.errstate(invalid="ignore"):
        return bootstrap_mean(first - second, subjects, how)


def bootstrap_sums(
    rows: Floats, subjects: Sequence[str], statistic: Callable[[Floats], Floats], how: Bootstrap
) -> Estimate:
    """Any figure that is a function of sums over cases (a mean, a pooled calibration error), with its interval.

    Args:
        rows: Shape (N, F). The summands of each case for the F sums.
        subjects: N names: the subject of each case.
        statistic: Sums of shape (R, F) to R figures.
        how: Seed, number of resamples, level.

    Raises:
        ValueError: The lengths differ.
    """
    rows = np.asarray(rows, dtype=np.float64)
    _check_lengths(rows, subjects)
    names, member = np.unique(np.asarray(subjects, dtype=str), return_inverse=True)
    if not len(rows):
        return Estimate(float("nan"), float("nan"), float("nan"), 0, 0)
    # Sums by subject are enough, since a subject is always drawn with all of its cases.
    totals = np.zeros((len(names), rows.shape[1]))
    np.add.at(totals, member, rows)
    value = float(statistic(rows.sum(axis=0, keepdims=True))[0])
    low, high = _interval(totals, statistic, how)
    return Estimate(value, low, high, len(names), len(rows))


def _interval(totals: Floats, statistic: Callable[[Floats], Floats], how: Bootstrap) -> tuple[float, float]:
    """Percentile interval of the statistic; the S subjects of `totals` (S, F) are drawn again S at a time."""
    number = len(totals)
    if number < fewest_subjects(how.level):
        return float("nan"), float("nan")
    figures = statistic(_draws(number, how) @ totals)
    # A draw may hold no subject that defines the figure; its 0 / 0 is no value.
    figures = figures[np.isfinite(figures)]
    if not len(figures):
        return float("nan"), float("nan")
    # The percentile interval of chapter 13: quantiles of the figures of the draws.
    low, high = np.quantile(figures, [(1 - how.level) / 2, (1 + how.level) / 2])
    return float(low), float(high)


@lru_cache(maxsize=4)  # the scores of all classes are mostly of the same subjects
def _draws(number: int, how: Bootstrap) -> Floats:
    """Shape (resamples, number): how many times each subject comes in each draw of `number` subjects with replacement."""
    times = np.random.default_rng(how.seed).multinomial(number, np.full(number, 1 / number), size=how.resamples)
    draws = times.astype(np.float64)
    draws.setflags(write=False)
    return draws


def _ratio_of_sums(sums: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[:, 0] / sums[:, 1]


def _check_lengths(rows: Floats, subjects: Sequence[str]) -> None:
    if len(rows) != len(subjects):
        raise ValueError(f"{len(rows)} cases came with {len(subjects)} subject names; one name a case is needed")
