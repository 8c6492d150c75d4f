"""The quality gate: predicts the Dice of a result that nobody has checked, with a bound that holds 9 times in 10.

A result is described by how far its features lie from those that the same structure has on sound images, and a ridge regression
on these distances and their squares predicts the Dice. It is fitted on sound and on corrupted images of calibration subjects
(`corruptions`), since a model seldom fails on sound images. The bound is conformal, from predictions for subjects left out,
separately for results that look fine and for the other results. The verdict here is on one structure; the final verdict on a
result is `assessment.Assessment.verdict`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from .conformal import by_structure, conformal_quantile, subjects_needed
from .features import FACTS, FEATURES, Described
from .fine import FEATURES as FINE_FEATURES
from .fine import FineDice, left_out, skill
from .json_document import JsonDocument
from .label_features import EDGE_FEATURES, LABEL_FEATURES

SOUND = "sound"
"""The kind of an image as it came; any other kind is the name of a corruption."""

FINE, USELESS = 0.65, 0.5
"""Predicted Dice from which on a result is accepted, and below which it is rejected."""

KEPT = 0.95
"""Part of the people whose sound label files are accepted, unless a useless Dice is predicted. Gates of networks take FINE."""

LEAST_SKILL = 0.1
"""Of a gate: the lower end of the 90 % interval of its rank correlation with the true Dice, on subjects left out, is above."""

NEAR = 0.05
"""A result is taken for one of a sound image if its predicted Dice is no farther below the mean of sound images."""

_RIDGE = 10.0
_FARTHEST = 3  # features of a label file that also count without their names
_LEAST_LOGIT = 0.02  # the logarithm of the odds of 0 and 1 is infinite
Floats = NDArray[np.float64]
GateVerdict = Literal["accept", "review", "reject"]


@dataclass(frozen=True)
class Sample:
    """One structure of one result whose truth is known.

    Attributes:
        subject: The person that the image is of.
        kind: SOUND, or the name of the corruption.
        structure: Number of the structure.
        features: Of the result.
        dice: The true Dice, 0 to 1.
    """

    subject: str
    kind: str
    structure: int
    features: Described
    dice: float


@dataclass(frozen=True)
class Grade:
    """The judgement of the gate on one structure of a result.

    Attributes:
        dice: Predicted Dice, 0 to 1.
        is_shown: Whether `dice` tells better from worse; where it does not, `at_least` holds all the same.
        at_least: The true Dice is at least this with the gate's coverage.
        verdict: accept: `dice` is the gate's `accept_from` or more; reject: it is below USELESS; review: between.
        reasons: In words, why the structure is not accepted; empty where it is.
    """

    dice: float
    at_least: float
    verdict: GateVerdict
    reasons: tuple[str, ...]
    is_shown: bool = True


@dataclass(frozen=True)
class QualityGate(JsonDocument):
    """A fitted gate.

    Attributes:
        centre: Structure number -> mean of each feature on sound images.
        spread: Structure number -> its standard deviation there.
        weights: Of the distances, of their squares, and a constant; predicts the logit of the Dice. Of label files: of the
            distances on the wrong side, of the largest of them, and a constant; none but the constant is above 0.
        margins: The true Dice is at least predicted - margin with the coverage; the first where FINE or more is predicted,
            the second where less is.
        coverage: For instance 0.9.
        subjects: Number of subjects that it was fitted on.
        samples: Number of results that it was fitted on.
        fine: Predicts the Dice of results of sound images; None in a gate that predicts all by `weights`.
        features: Names of the features that it looks at.
        accept_from: Predicted Dice from which on a label file is accepted; None for FINE.
        skill: Its rank correlation with the true Dice of subjects left out, and the lower end of the 90 % interval, -1 to 1.
        left_out: Number of subjects whose sound results it accepts, reviews and rejects when they are left out of its fit.
    """

    centre: Mapping[int, tuple[float, ...]]
    spread: Mapping[int, tuple[float, ...]]
    weights: tuple[float, ...]
    margins: tuple[float, float]
    coverage: float
    subjects: int
    samples: int
    fine: FineDice | None = None
    features: tuple[str, ...] = FEATURES
    accept_from: float | None = None
    skill: tuple[float, float] | None = None
    left_out: tuple[int, int, int] | None = None

    @classmethod
    def fit(
        cls,
        samples: Sequence[Sample],
        coverage: float = 0.9,
        features: tuple[str, ...] = FEATURES,
        fine_features: Sequence[str] = FINE_FEATURES,
    ) -> "QualityGate":
        """The gate fitted on these results. The bound comes from predictions for subjects left out in turn.

        Args:
            samples: The results; those of sound images are of kind SOUND.
            coverage: Of its bound.
            features: Names of the features that it looks at.
            fine_features: Of these, those that tell better from worse among sound results.

        Raises:
            ValueError: Too few subjects for a bound of this coverage, a structure that no sound image has twice, or predictions
                without skill.
        """
        subjects = sorted({sample.subject for sample in samples})
        if len(subjects) < subjects_needed(coverage):
            raise ValueError(
                f"{len(subjects)} subject(s); a bound that holds {coverage:.0%} of the time needs {subjects_needed(coverage)}"
            )
        # The error of a prediction must be that for a new subject: on subjects of the fit it would be too small.
        empty = cls({}, {}, (), (1.0, 1.0), coverage, 0, 0, features=features)
        dice = left_out(samples, lambda others: empty._fitted(others, fine_features).predicted_dice)
        predicted = list(zip(samples, dice.tolist(), strict=True))
        order = _checked_skill(predicted)
        whole = replace(empty._fitted(samples, fine_features), fine=FineDice.fit(_sound(samples), fine_features))
        # Two margins, since a single margin would be that of the worse kind (decision 18).
        fine, other = (
            _margin([pair for pair in predicted if (pair[1] >= FINE) == is_fine], coverage) for is_fine in (True, False)
        )
        line = _accept_from(predicted) if whole.is_of_labels else None
        worst = np.array(list(_worst_of_each(predicted).values()))
        accepted, rejected = int((worst >= (line or FINE)).sum()), int((worst < USELESS).sum())
        return replace(
            whole, margins=(fine, other), subjects=len(subjects), samples=len(samples), accept_from=line,
            skill=order, left_out=(accepted, len(worst) - accepted - rejected, rejected),
        )  # fmt: skip

    def _fitted(self, samples: Sequence[Sample], fine_features: Sequence[str]) -> "QualityGate":
        centre, spread = {}, {}
        least = [FACTS[name].spread for name in self.features]
        for number, own in by_structure(samples).items():
            sound = [sample.features.values(self.features) for sample in _sound(own)]
            if len(sound) < 2:
                raise ValueError(f"structure {number} is found on {len(sound)} sound image(s); 2 are needed")
            centre[number] = tuple(np.mean(sound, axis=0).tolist())
            spread[number] = tuple(np.maximum(np.std(sound, axis=0), least).tolist())
        gate = replace(self, centre=centre, spread=spread, fine=FineDice.fitted(_sound(samples), fine_features))
        table = np.array([gate._inputs(s.structure, s.features) for s in samples])
        # The logit of the Dice has no bounds, so a linear model of it cannot predict a Dice outside 0 to 1.
        odds = np.clip([s.dice for s in samples], _LEAST_LOGIT, 1 - _LEAST_LOGIT)
        # The ridge leaves the constant alone; otherwise it would pull every prediction towards a Dice of 0.5.
        penalty = np.diag([_RIDGE] * (table.shape[1] - 1) + [0.0])
        wanted = np.log(odds / (1 - odds))
        if self.is_of_labels:
            weights = _never_above_zero(np.vstack([table, np.sqrt(penalty)]), np.append(wanted, np.zeros(len(penalty))))
        else:
            weights = np.linalg.solve(table.T @ table + penalty, table.T @ wanted)
        return replace(gate, weights=tuple(weights.tolist()))

    @property
    def is_of_labels(self) -> bool:
        """Whether it judges label files. It was shown few of the faults that there are: no distance may speak for a result."""
        return self.features != FEATURES

    def distances(self, structure: int, features: Described) -> Floats:
        """Shape (F,): how many standard deviations each feature lies from its mean on sound images.

        Of features whose wrong side is either the absolute number.
        """
        away = (np.array(features.values(self.features)) - self.centre[structure]) / self.spread[structure]
        either = [FACTS[name].wrong == 0 for name in self.features]
        return np.where(either, np.abs(away), away)

    def _inputs(self, structure: int, features: Described) -> Floats:
        # arcsinh is linear near 0 and logarithmic far away, so that no single distance outweighs all others.
        away = self.distances(structure, features)
        if not self.is_of_labels:
            tamed = np.arcsinh(away)
            return np.concatenate([tamed, tamed**2, [1.0]])
        wrong = np.arcsinh(np.maximum(away * [FACTS[name].wrong or 1 for name in self.features], 0.0))
        # Those that lie farthest away, whichever they are: a fault that was never shown moves other features
        return np.concatenate([wrong, np.sort(wrong)[: -_FARTHEST - 1 : -1], [1.0]])

    def predicted_dice(self, structure: int, features: Described) -> float:
        """The Dice expected of this structure, 0 to 1."""
        return self._predicted(structure, features)[0]

    def _predicted(self, structure: int, features: Described) -> tuple[float, bool]:
        """The Dice expected of this structure, and whether the number tells better from worse."""
        if self.fine and self.looks_fine(structure, features):
            return self.fine.predicted(structure, features), self.fine.is_worth_showing
        return self._dice_of_any(structure, features), True

    def looks_fine(self, structure: int, features: Described) -> bool:
        """Whether nothing tells the result from those of sound images."""
        usual = self.fine.dice[structure] if self.fine else 1.0
        return self._dice_of_any(structure, features) >= max(FINE, usual - NEAR)

    def _dice_of_any(self, structure: int, features: Described) -> float:
        """As the gate was shown it, of sound and broken images alike."""
        return float(1 / (1 + np.exp(-self._inputs(structure, features) @ np.array(self.weights))))

    def grade(self, structure: int, features: Described | None) -> Grade:
        """The judgement on one structure of a result. A structure that was not found (None) is to be reviewed."""
        if features is None:
            return Grade(0.0, 0.0, "review", ("nothing was found",))
        if structure not in self.centre:
            return Grade(0.0, 0.0, "review", ("too few results that the gate was fitted to have it",))
        dice, is_shown = self._predicted(structure, features)
        at_least = max(0.0, dice - self.margins[0 if dice >= FINE else 1])
        if dice >= (self.accept_from or FINE):
            return Grade(dice, at_least, "accept", (), is_shown)
        verdict: GateVerdict = "reject" if dice < USELESS else "review"
        return Grade(dice, at_least, verdict, self._reasons(structure, features), is_shown)

    def _reasons(self, structure: int, features: Described) -> tuple[str, ...]:
        """The features that lie farthest on the wrong side, at most three, in words."""
        values, usual = features.values(self.features), self.centre[structure]
        away = dict(
            zip(self.features, zip(self.distances(structure, features), values, usual, strict=True), strict=True)
        )
        wrong = {name: away[name][0] * (FACTS[name].wrong or 1) for name in away if FACTS[name].words}
        worst = sorted(wrong, key=lambda name: -wrong[name])[:3]
        # 2 standard deviations: 1 in 20 sound images lies farther away.
        return tuple(
            FACTS[name].words.format(*(_text(name, value) for value in away[name][1:]))
            for name in worst
            if wrong[name] > 2
        )

    def document(self) -> dict[str, Any]:
        """The fields, with the names of the features first."""
        return {"features": list(self.features), **super().document()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "QualityGate":
        """As `JsonDocument.from_document`; raises ValueError for a gate of other features, too."""
        if tuple(document["features"]) not in (FEATURES, LABEL_FEATURES, EDGE_FEATURES):
            raise ValueError(
                f"the gate has the features {document['features']}; {list(FEATURES)} are needed; calibrate again"
            )
        return super().from_document(document)


def _never_above_zero(table: Floats, wanted: Floats) -> Floats:
    """Shape (F,): the least squares weights of a table (N, F) of which none but the last, a constant, is above 0."""
    most = np.append(np.zeros(table.shape[1] - 1), np.inf)
    return np.asarray(lsq_linear(table, wanted, (np.full(table.shape[1], -np.inf), most)).x)


def _sound(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.kind == SOUND]


def _margin(predicted: Sequence[tuple[Sample, float]], coverage: float) -> float:
    """The most by which predictions for subjects left out were too high, with the coverage; 1 with too few such subjects."""
    excesses = [dice - sample.dice for sample, dice in predicted]
    return min(1.0, max(0.0, conformal_quantile(excesses, [sample.subject for sample, _ in predicted], coverage)))


def _checked_skill(predicted: Sequence[tuple[Sample, float]]) -> tuple[float, float]:
    """As `fine.skill`; ValueError for predictions that do not tell better from worse, or that reject most good results."""
    samples, dice = zip(*predicted, strict=True)
    true, people = np.array([sample.dice for sample in samples]), [sample.subject for sample in samples]
    order, least = skill(np.array(dice), true, [sample.structure for sample in samples], people)
    if least <= LEAST_SKILL:
        raise ValueError(
            f"on subjects left out, predicted and true Dice have a rank correlation of {order:.2f} (90 % interval from "
            f"{least:.2f}, more than {LEAST_SKILL} is needed); calibrate with more subjects"
        )
    good = [seen for sample, seen in predicted if sample.kind == SOUND and sample.dice >= FINE]
    rejected = sum(seen < USELESS for seen in good)
    if 2 * rejected > len(good):
        raise ValueError(
            f"on subjects left out, it would reject {rejected} of {len(good)} results with a true Dice of {FINE} or more; "
            "calibrate with more subjects"
        )
    return order, least


def _accept_from(predicted: Sequence[tuple[Sample, float]]) -> float:
    """The predicted Dice that the worst structure of a new person's sound result reaches with the probability KEPT.

    Never above FINE or below USELESS. With too few people for KEPT: as many as their number allows, all of them.
    """
    worst = _worst_of_each(predicted)
    part = min(KEPT, len(worst) / (len(worst) + 1))
    line = -conformal_quantile([-dice for dice in worst.values()], list(worst), part)
    return float(np.clip(line, USELESS, FINE))


def _worst_of_each(predicted: Sequence[tuple[Sample, float]]) -> dict[str, float]:
    """Subject -> the least Dice that is predicted for its sound results."""
    worst: dict[str, float] = {}
    for sample, dice in predicted:
        if sample.kind == SOUND:
            worst[sample.subject] = min(dice, worst.get(sample.subject, 1.0))
    return worst


def _text(name: str, value: float) -> str:
    """The value of a feature, in words."""
    return f"{np.exp(value):.3g}" if name.startswith("log_") else f"{value:.2f}"
