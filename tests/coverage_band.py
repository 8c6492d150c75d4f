"""The band in which the coverage of a valid conformal statement lies: the law that its observed coverage is tested against."""

from __future__ import annotations

import math

from scipy import stats


def coverage_band(promised: float, fitted_on: int, tested_on: int, level: float = 0.95) -> tuple[float, float]:
    """Between which fractions of `tested_on` subjects the coverage of a valid statement lies, with probability `level`.

    Split-conformal coverage, given the subjects it was fitted on, is Beta distributed; of those tested a BetaBinomial number is
    covered. One case a subject is assumed, which is the widest.

    Source: Angelopoulos and Bates, A Gentle Introduction to Conformal Prediction, arXiv:2107.07511, appendix C.
    """
    rank = math.ceil((fitted_on + 1) * promised - 1e-9)
    if rank > fitted_on:
        return 1.0, 1.0  # an infinite interval covers everybody
    law = stats.betabinom(tested_on, rank, fitted_on + 1 - rank)
    low, high = law.ppf([(1 - level) / 2, (1 + level) / 2]) / tested_on
    return float(low), float(high)
