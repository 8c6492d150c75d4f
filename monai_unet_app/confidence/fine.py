"""Predicts the Dice of results that look fine: which of them are a little worse, and by how much.

The gate of `quality` knows broken results from sound ones, and was shown broken images for it. Among sound images all results
lie close together, and what tells broken from sound says little of them. Here a ridge regression, fitted on sound images alone,
predicts how far a result's Dice lies from the mean of its structure. Its rank correlation with the truth, on subjects left out,
says whether the number is worth showing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .conformal import by_structure
from .features import Described
from .json_document import JsonDocument

if TYPE_CHECKING:
    from .quality import Sample

WORTH_SHOWING = 0.25
"""Least rank correlation with which a predicted Dice is shown."""

FEATURES = ("uncertainty",)
"""That tell better from worse among sound results (decision 47)."""

_RIDGE = 10.0
_FARTHEST = 3.0  # standard deviations; farther a feature says no more
_LEAST_SPREAD = 1e-6
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FineDice(JsonDocument):
    """A fitted prediction for sound images.

    Attributes:
        features: Names of the features that it looks at.
        centre: Structure number -> mean of each of these on sound images.
        spread: Structure number -> its standard deviation there.
        dice: Structure number -> mean Dice on sound images, 0 to 1.
        weights: Of the features in standard deviations; they give the difference from `dice`.
        rank_correlation: Spearman's, of predictions for subjects left out with the true Dice; mean over structures, -1 to 1.
        subjects: Number of subjects that it was fitted on.
    """

    features: tuple[str, ...]
    centre: Mapping[int, tuple[float, ...]]
    spread: Mapping[int, tuple[float, ...]]
    dice: Mapping[int, float]
    weights: tuple[float, ...]
    rank_correlation: float
    subjects: int

    @classmethod
    def fit(cls, sound: Sequence["Sample"], features: Sequence[str] = FEATURES) -> "FineDice":
        """The prediction fitted on results of sound images.

        Raises:
            ValueError: Fewer than two of a structure.
        """
        fitted = cls.fitted(sound, features)
        if not features:  # the mean of each structure, which orders nothing
            return fitted
        predicted = left_out(sound, lambda others: cls.fitted(others, features).predicted)
        structures, dice = np.array([(sample.structure, sample.dice) for sample in sound]).T
        own = [structures == number for number in fitted.dice]
        correlations = [rank_correlation(predicted[at], dice[at]) or 0.0 for at in own]
        return replace(fitted, rank_correlation=float(np.mean(correlations)))

    @classmethod
    def fitted(cls, sound: Sequence["Sample"], features: Sequence[str] = FEATURES) -> "FineDice":
        """As `fit`, without `rank_correlation`."""
        centre, spread, dice = {}, {}, {}
        for number, own in by_structure(sound).items():
            if len(own) < 2:
                raise ValueError(f"structure {number} is found on {len(own)} sound image(s); 2 are needed")
            table = np.array([sample.features.values(features) for sample in own])
            centre[number] = tuple(table.mean(axis=0).tolist())
            spread[number] = tuple(np.maximum(table.std(axis=0), _LEAST_SPREAD).tolist())
            dice[number] = float(np.mean([sample.dice for sample in own]))
        subjects = len({sample.subject for sample in sound})
        fitted = cls(tuple(features), centre, spread, dice, (0.0,) * len(features), 0.0, subjects)
        away = np.array([fitted._away(sample.structure, sample.features) for sample in sound])
        errors = np.array([sample.dice - dice[sample.structure] for sample in sound])
        weights = np.linalg.solve(away.T @ away + _RIDGE * np.eye(len(features)), away.T @ errors)
        return replace(fitted, weights=tuple(weights.tolist()))

    @property
    def is_worth_showing(self) -> bool:
        """Whether its order is near enough to that of the true Dice."""
        return self.rank_correlation >= WORTH_SHOWING

    def _away(self, structure: int, features: Described) -> Floats:
        """Shape (F,): how many standard deviations each feature lies from its mean on sound images."""
        away = (np.array(features.values(self.features)) - self.centre[structure]) / self.spread[structure]
        return np.clip(away, -_FARTHEST, _FARTHEST)

    def predicted(self, structure: int, features: Described) -> float:
        """The Dice expected of this structure, 0 to 1."""
        dice = self.dice[structure] + float(self._away(structure, features) @ np.array(self.weights))
        return min(1.0, max(0.0, dice))


def left_out(
    samples: Sequence["Sample"], fit: Callable[[Sequence["Sample"]], Callable[[int, Described], float]]
) -> Floats:
    """Shape (N,), 0 to 1: the Dice of each sample that a fit on all other subjects predicts; one number a sample."""
    predicted = np.empty(len(samples))
    for subject in sorted({sample.subject for sample in samples}):
        predict = fit([sample for sample in samples if sample.subject != subject])
        for n, sample in enumerate(samples):
            if sample.subject == subject:
                predicted[n] = predict(sample.structure, sample.features)
    return predicted


def rank_correlation(first: Floats, second: Floats) -> float | None:
    """Spearman's, -1 to 1, of values (N,) of the same results; None where it is not defined: fewer than three, or all alike."""
    if len(first) < 3 or not np.ptp(first) or not np.ptp(second):
        return None
    from scipy import stats  # takes a second, and most programs that read statements need no such figure

    return float(stats.spearmanr(first, second)[0])


def skill(predicted: Floats, dice: Floats, structures: Sequence[int], subjects: Sequence[str]) -> tuple[float, float]:
    """How well predictions order results, -1 to 1: the rank correlation, and the lower end of its 90 % interval.

    Args:
        predicted: Shape (N,), 0 to 1: for subjects left out of the fit.
        dice: Shape (N,), 0 to 1: the true Dice.
        structures: Of the N results; the correlation is Spearman's of each structure, and their mean.
        subjects: Of the N results; drawn with replacement for the interval, each with all its results.
    """
    people, owner = np.unique(subjects, return_inverse=True)
    drawn = np.random.default_rng(0).multinomial(len(people), [1 / len(people)] * len(people), size=1000)
    times = np.vstack([np.ones(len(people)), drawn])[:, owner]
    own = [np.asarray(structures) == number for number in sorted(set(structures))]
    correlations = np.mean([_correlations(predicted[at], dice[at], times[:, at]) for at in own], axis=0)
    return float(correlations[0]), float(np.quantile(correlations[1:], 0.05))


def _correlations(first: Floats, second: Floats, times: Floats) -> Floats:
    """Shape (D,): of the ranks of values (N,), each counted as often as a row of `times` (D, N) says; 0 where undefined."""
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(values) - (len(values) + 1) / 2 for values in (first, second)])
    number = np.maximum(times.sum(axis=1), 1)
    means = times @ ranks.T / number[:, None]
    spread = np.sqrt(np.maximum(times @ (ranks**2).T / number[:, None] - means**2, 0)).prod(axis=1)
    covariance = times @ ranks.prod(axis=0) / number - means.prod(axis=1)
    return np.where(spread > _LEAST_SPREAD, covariance / np.maximum(spread, _LEAST_SPREAD), 0.0)
