"""How good are results for which nobody has drawn the truth? Their predicted Dice, corrected by what reviewers have found.

The quality gate predicts the Dice of each result. On images that it was not fitted for its mean may be off by a bias, which is
taken to be normally distributed around 0 (`BIAS`). Reviewed results tell of the bias, each weighted by the inverse of the
probability with which it was chosen for review, so that results drawn at random speak for all that were accepted unseen, and
results that the gate held speak for themselves. What is stated is the mean of the posterior, with its interval.

Sources: Angelopoulos et al., Prediction-powered inference, Science 382 (2023); Horvitz, Thompson, JASA 47 (1952).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

COVERAGE = 0.9
BIAS = 0.1
"""Standard deviation of the bias of mean predicted Dice between kinds of images; `benchmarks/expected_dice.py` measures it."""

_LEAST_DEVIATION = 0.1  # of a residual, where few were reviewed


@dataclass(frozen=True)
class Graded:
    """A result with the Dice that the gate predicts.

    Attributes:
        predicted: Mean over its structures, 0 to 1.
        found: Dice with the mask that a reviewer left; None without a review.
        chance: Probability with which it was chosen for review, above 0 if it was reviewed.
    """

    predicted: float
    found: float | None = None
    chance: float = 1.0


@dataclass(frozen=True)
class ExpectedDice:
    """The mean Dice of some results.

    Attributes:
        mean: 0 to 1.
        low, high: Interval that holds the true mean with `COVERAGE`.
        results: How many there are.
        reviewed: How many of them a reviewer has seen.
        bias: How much better they are than the gate predicts, as far as reviewers tell.
    """

    mean: float
    low: float
    high: float
    results: int
    reviewed: int
    bias: float = 0.0


def expected_dice(graded: Sequence[Graded]) -> ExpectedDice | None:
    """The mean Dice of results; None of none."""
    if not graded:
        return None
    predicted = np.array([one.predicted for one in graded])
    seen = [one for one in graded if one.found is not None]
    bias, of_bias = 0.0, BIAS**2
    if seen:
        weights = np.array([1 / one.chance for one in seen])
        weights /= weights.sum()
        residuals = np.array([(one.found or 0.0) - one.predicted for one in seen])
        found = float(weights @ residuals)
        deviation = max(float(np.sqrt(weights @ (residuals - found) ** 2)), _LEAST_DEVIATION)
        of_found = deviation**2 * float(weights @ weights)
        bias, of_bias = found * BIAS**2 / (BIAS**2 + of_found), 1 / (1 / BIAS**2 + 1 / of_found)
    spread = np.sqrt(of_bias + predicted.var() / len(graded)) * stats.norm.ppf((1 + COVERAGE) / 2)
    mean = float(np.clip(predicted.mean() + bias, 0, 1))
    return ExpectedDice(mean, max(0.0, mean - spread), min(1.0, mean + spread), len(graded), len(seen), bias)
