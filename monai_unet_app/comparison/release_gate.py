"""Decides whether a new bundle may replace an old bundle.

It may not if a score got worse, or if there are too few subjects to tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from monai_unet_app.errors import UsageError
from monai_unet_app.metrics.bootstrap import finite_or_none
from monai_unet_app.report.stored_evaluation import MEAN

from .differences import TOP_LABEL, Comparison, Difference

GATED_SCORES = {"dice": MEAN, "boundary_iou": MEAN, "ece_whole": TOP_LABEL, "ece_band": TOP_LABEL}
"""Column of cases.csv -> the row that decides."""

State = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True)
class GatedScore:
    """The outcome of the gate for one score.

    Attributes:
        difference: The new bundle (second) against the old bundle (first).
        margin: The score passes only if a loss of more than this can be excluded. None: it passes unless a loss is shown.
        state: Outcome.
        reason: The outcome in words.
    """

    difference: Difference
    margin: float | None
    state: State
    reason: str


@dataclass(frozen=True)
class ReleaseOutcome:
    """The outcome of the gate.

    It is "failed" if a score failed, else "undecided" if a score is undecided or a case is missing, else "passed".

    Attributes:
        scores: One entry for each of `GATED_SCORES`.
        unmeasured: Cases that should have been compared and could not be measured.
    """

    scores: tuple[GatedScore, ...]
    unmeasured: int = 0

    @property
    def state(self) -> State:
        """The outcome on all scores."""
        states = {score.state for score in self.scores} | ({"undecided"} if self.unmeasured else set())
        return next((state for state in ("failed", "undecided") if state in states), "passed")

    @property
    def reason(self) -> str:
        """The reasons of the scores that decided, and the number of cases that are missing."""
        names: dict[str, list[str]] = {}
        for score in self.scores:
            if score.state == self.state:
                names.setdefault(score.reason, []).append(score.difference.score)
        reasons = [f"{', '.join(scores)} {reason}" for reason, scores in names.items()]
        return "; ".join([*reasons, *([f"{self.unmeasured} case(s) could not be measured"] if self.unmeasured else [])])

    def as_dict(self) -> dict[str, Any]:
        """The outcome, ready for JSON."""
        return {"outcome": self.state, "reason": self.reason, "figures": [_entry(score) for score in self.scores]}


def _entry(score: GatedScore) -> dict[str, Any]:
    difference, estimate = score.difference, score.difference.estimate
    return {
        "score": difference.score,
        "class": difference.class_name,
        "old": finite_or_none(difference.first),
        "new": finite_or_none(difference.second),
        "difference": finite_or_none(estimate.value),
        "interval": [finite_or_none(estimate.low), finite_or_none(estimate.high)],
        "subjects": estimate.subjects,
        "margin": score.margin,
        "outcome": score.state,
        "reason": score.reason,
    }


def gate(comparison: Comparison, margins: Mapping[str, float] | None = None, unmeasured: int = 0) -> ReleaseOutcome:
    """Whether the second bundle may take the place of the first.

    Without a margin a score fails where the interval of its difference lies wholly on the bad side of 0. With a margin the
    score is tested for non-inferiority: it fails unless the interval lies wholly on the good side of "worse by the margin". A
    score with too few subjects for an interval is undecided in any case.

    Args:
        comparison: The old bundle is the first, the new bundle the second.
        margins: Name in `GATED_SCORES` -> tolerated loss in the scale of the score, from 0 to below 1.
        unmeasured: Cases that could not be measured; with any of them nothing passes.

    Raises:
        UsageError: A margin is below 0, or for another score.
    """
    margins = margins or {}
    wrong = [
        f"{name}={margin:g}" for name, margin in margins.items() if name not in GATED_SCORES or not 0 <= margin < 1
    ]
    if wrong:
        raise UsageError(
            f"--margin {', '.join(wrong)}: numbers from 0 to below 1 for some of {', '.join(GATED_SCORES)} are needed"
        )
    return ReleaseOutcome(tuple(_gated(comparison, name, margins.get(name)) for name in GATED_SCORES), unmeasured)


def _gated(comparison: Comparison, name: str, margin: float | None) -> GatedScore:
    difference = comparison.of(name, GATED_SCORES[name])
    return GatedScore(difference, margin, *_judged(difference, margin, comparison.fewest))


def _judged(difference: Difference, margin: float | None, fewest: int) -> tuple[State, str]:
    """State and reason of a score."""
    low, high = difference.gain
    if difference.word == "too few":
        return "undecided", f"has {difference.estimate.subjects} subject(s), at least {fewest} are needed"
    if margin is None and high < 0:
        return "failed", "got worse"
    if margin is None:
        return "passed", "got better" if low > 0 else "is not shown to be worse"
    # Non-inferiority: the worse end of the interval decides, so a wide interval fails even where the mean is unchanged.
    if low >= -margin:
        return "passed", f"is not worse by more than {margin:g}"
    return "failed", f"{'got' if high < -margin else 'may be'} worse by more than {margin:g}"
