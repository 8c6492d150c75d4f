"""May a new bundle replace an old one? Not if a figure that matters got worse, and never for want of people to tell by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from monai_unet_app.errors import UsageError

from .differences import TOP_LABEL, Comparison, Difference
from .paired_evaluations import MEAN
from .rank_tests import finite

FIGURES = {"dice": MEAN, "boundary_iou": MEAN, "ece_whole": TOP_LABEL, "ece_band": TOP_LABEL}
State = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True)
class Judged:
    """One figure of the gate.

    Attributes:
        difference: The new bundle (second) against the old one (first).
        margin: How much worse it must be shown not to be; None: it must only not be shown to be worse.
        state: Outcome.
        reason: In words.
    """

    difference: Difference
    margin: float | None
    state: State
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What the gate says: failed if one figure failed, else undecided if one is or a case is missing, else passed.

    Attributes:
        figures: One entry for each of `FIGURES`.
        unmeasured: Cases that should have been compared and could not be measured.
    """

    figures: tuple[Judged, ...]
    unmeasured: int = 0

    @property
    def state(self) -> State:
        """The verdict on all figures."""
        states = {figure.state for figure in self.figures} | ({"undecided"} if self.unmeasured else set())
        return next((state for state in ("failed", "undecided") if state in states), "passed")

    @property
    def reason(self) -> str:
        """What decided: figures by their reasons, and cases that are missing."""
        reasons: dict[str, list[str]] = {}
        for figure in self.figures:
            if figure.state == self.state:
                reasons.setdefault(figure.reason, []).append(figure.difference.score)
        told = [f"{', '.join(names)} {reason}" for reason, names in reasons.items()]
        return "; ".join([*told, *([f"{self.unmeasured} case(s) could not be measured"] if self.unmeasured else [])])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "verdict": self.state,
            "reason": self.reason,
            "figures": [
                {
                    "score": figure.difference.score,
                    "class": figure.difference.class_name,
                    "old": finite(figure.difference.first),
                    "new": finite(figure.difference.second),
                    "difference": finite(figure.difference.estimate.value),
                    "interval": [finite(figure.difference.estimate.low), finite(figure.difference.estimate.high)],
                    "subjects": figure.difference.estimate.subjects,
                    "margin": figure.margin,
                    "verdict": figure.state,
                    "reason": figure.reason,
                }
                for figure in self.figures
            ],
        }


def gate(comparison: Comparison, margins: Mapping[str, float] | None = None, unmeasured: int = 0) -> Verdict:
    """Whether the second bundle may take the first one's place.

    A figure fails without a margin where the interval of its difference lies wholly on the bad side of 0. With a margin it
    is a test of non-inferiority: it fails unless the interval lies wholly on the good side of "worse by the margin". A figure
    with too few subjects for an interval is undecided, whatever it is.

    Args:
        comparison: The old bundle is the first, the new one the second.
        margins: Figure of `FIGURES` to the loss that may be borne, in the figure's own scale, at least 0.
        unmeasured: Cases that could not be measured; with any of them nothing passes.

    Raises:
        UsageError: A margin below 0, or for another figure.
    """
    margins = margins or {}
    wrong = [
        f"{name}={margin:g}"
        for name, margin in margins.items()
        if name not in FIGURES or not 0 <= margin < float("inf")
    ]
    if wrong:
        raise UsageError(f"--margin {', '.join(wrong)}: numbers from 0 for some of {', '.join(FIGURES)} are needed")
    return Verdict(tuple(_judged(comparison, score, margins.get(score)) for score in FIGURES), unmeasured)


def _judged(comparison: Comparison, score: str, margin: float | None) -> Judged:
    difference = comparison.of(score, FIGURES[score])
    low, high = difference.gain
    if difference.word == "too few":
        found, needed = difference.estimate.subjects, comparison.fewest
        return Judged(difference, margin, "undecided", f"has {found} subject(s), at least {needed} are needed")
    if margin is None and high < 0:
        return Judged(difference, margin, "failed", "got worse")
    if margin is None:
        return Judged(difference, margin, "passed", "got better" if low > 0 else "is not shown to be worse")
    if low >= -margin:
        return Judged(difference, margin, "passed", f"is not worse by more than {margin:g}")
    beyond = f"got worse by more than {margin:g}" if high < -margin else f"may be worse by more than {margin:g}"
    return Judged(difference, margin, "failed", beyond)
