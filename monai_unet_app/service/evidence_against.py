"""Is a challenger worse than the champion? A test that looks after every study and says in advance how often it is wrong.

Each way to be worse is a game of bets on the studies that both bundles segmented. While the challenger is not worse in this
way, what the bets have multiplied to is 1 on average, so it ever reaches `ALARM` with probability 1 / `ALARM` at most, however
long one looks; and so does the mean over all ways.

Sources: Ville, Etude critique de la notion de collectif, 1939; Shafer, Testing by betting, J. R. Stat. Soc. A 184 (2021).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

ALARM = 100.0
"""The score at which a challenger is rolled back: at most one challenger in so many that is not worse ever gets there."""

DICE_MARGIN = 0.002
"""A predicted Dice that is lower by less than this is not lower."""

TOLERATED = 0.1
"""Part of the studies that may take too long, and part that may agree too little."""

_SEVERITY = {"": 0, "accept": 0, "review": 1, "reject": 2}
_STAKES = (0.25, 0.5, 0.75)
_SHARES = (0.2, 0.4, 0.8)


@dataclass(frozen=True)
class Limits:
    """What a site tolerates of a challenger.

    Attributes:
        least_agreement: Dice between both results, of the structure that agrees least, below which they disagree.
        most_slower: How many times as long as the champion the challenger may take.
    """

    least_agreement: float = 0.7
    most_slower: float = 2.0


@dataclass(frozen=True)
class Way:
    """One way to be worse.

    Attributes:
        name: What is looked at.
        worse: In how many studies the challenger was worse.
        studies: How many studies count.
        score: What the bets have multiplied to.
    """

    name: str
    worse: int
    studies: int
    score: float


def ways(comparisons: Sequence[Mapping[str, Any]], limits: Limits) -> tuple[Way, ...]:
    """What the comparisons of a challenger with its champion say, for each way to be worse.

    Args:
        comparisons: One a study, see `combined`: pairs (champion, challenger) of "fault", "verdict", "dice" and "seconds", and
            the "agreement"; what a study does not have is None.
        limits: Of the site.
    """
    whole = [one for one in comparisons if not any(one["fault"])]
    dice = [one["dice"][0] - one["dice"][1] for one in whole if one["dice"]]
    return (
        _sign("faults", [bool(one["fault"][1]) - bool(one["fault"][0]) for one in comparisons]),
        _sign("verdicts", [_SEVERITY[one["verdict"][1]] - _SEVERITY[one["verdict"][0]] for one in whole]),
        _sign("predicted Dice", [1 if lower > DICE_MARGIN else -1 for lower in dice]),
        _share(
            "agreement", [one["agreement"] < limits.least_agreement for one in whole if one["agreement"] is not None]
        ),
        _share("time", [one["seconds"][1] > limits.most_slower * one["seconds"][0] for one in whole if one["seconds"]]),
    )


def score(found: Sequence[Way]) -> float:
    """The mean of the scores of all ways; `ALARM` is the alarm."""
    return fmean(way.score for way in found)


def combined(series: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The comparisons of the series of one study as one: the worst verdicts, the mean Dice, the time of all."""
    dice = [one["dice"] for one in series]
    seconds = [one["seconds"] for one in series if one["seconds"]]
    agreement = [one["agreement"] for one in series if one["agreement"] is not None]
    return {
        "fault": [max(one["fault"][side] for one in series) for side in (0, 1)],
        "verdict": [max((one["verdict"][side] for one in series), key=_SEVERITY.__getitem__) for side in (0, 1)],
        "dice": [fmean(one[side] for one in dice) for side in (0, 1)] if all(dice) else None,
        "agreement": min(agreement, default=None),
        "seconds": [round(sum(one[side] for one in seconds), 3) for side in (0, 1)] if seconds else None,
        "sizes": [one.get("sizes", {}) for one in series],
    }


def _sign(name: str, differences: Sequence[int]) -> Way:
    """Bets that of the studies that differ more than half are worse; above 0 is worse, and 0 does not count."""
    worse, better = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    logs = [worse * math.log1p(stake) + better * math.log1p(-stake) for stake in _STAKES]
    return Way(name, worse, len(differences), fmean(math.exp(min(log, 700.0)) for log in logs))


def _share(name: str, beyond: Sequence[bool]) -> Way:
    """Bets that more than `TOLERATED` of the studies are beyond a limit."""
    worse = sum(beyond)
    logs = [
        worse * math.log(share / TOLERATED) + (len(beyond) - worse) * math.log((1 - share) / (1 - TOLERATED))
        for share in _SHARES
    ]
    return Way(name, worse, len(beyond), fmean(math.exp(min(log, 700.0)) for log in logs))
