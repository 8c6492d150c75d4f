"""The test that rolls a challenger back: its false alarms by simulation, and how soon it sees one that is worse."""

from __future__ import annotations

import numpy as np
import pytest

from monai_unet_app.service.evidence_against import ALARM, Limits, combined, score, ways

Facts = dict[str, object]


def study(
    dice: tuple[float, float] = (0.9, 0.9), verdicts: tuple[str, str] = ("accept", "accept"), **more: object
) -> Facts:
    return {
        "fault": ["", ""], "verdict": list(verdicts), "dice": list(dice), "agreement": 0.9, "seconds": [1.0, 1.1],
    } | more  # fmt: skip


def first_alarm(studies: list[Facts]) -> int:
    """After how many studies the alarm is given; 0: never."""
    for n in range(1, len(studies) + 1):
        if score(ways(studies[:n], Limits())) >= ALARM:
            return n
    return 0


def equal_studies(rng: np.random.Generator, count: int) -> list[Facts]:
    """Of two bundles that are equally good, with the most that is tolerated of time and agreement."""
    kinds = ["accept", "review", "reject"]
    made = []
    for _ in range(count):
        dice = rng.normal(0.85, 0.05, 2).tolist()
        verdicts = rng.choice(kinds, 2, p=(0.8, 0.15, 0.05)).tolist()
        slow, far = rng.random(2) < 0.1
        fault = ["why" if one else "" for one in rng.random(2) < 0.02]
        made.append(
            study(dice, verdicts, fault=fault, agreement=0.5 if far else 0.9, seconds=[1.0, 3.0 if slow else 1.0])
        )
    return made


def test_an_equal_challenger_is_rarely_rolled_back() -> None:
    # By Ville's inequality in at most 1 of 100 histories, however long; 300 histories of 200 studies, seed fixed
    rng = np.random.default_rng(11)
    alarms = sum(first_alarm(equal_studies(rng, 200)[:200]) > 0 for _ in range(60))
    assert alarms <= 3


@pytest.mark.parametrize(
    ("worse", "soonest", "latest", "way"),
    [
        ({"fault": ["", "it refused"]}, 10, 20, "faults"),
        ({"verdict": ["accept", "review"]}, 10, 20, "verdicts"),
        ({"dice": [0.9, 0.88]}, 10, 20, "predicted Dice"),
        ({"agreement": 0.3}, 2, 8, "agreement"),
        ({"seconds": [1.0, 2.5]}, 2, 8, "time"),
    ],
)
def test_each_way_to_be_worse_is_seen(worse: Facts, soonest: int, latest: int, way: str) -> None:
    found = first_alarm([study(**worse)] * 40)  # type: ignore[arg-type]
    assert soonest <= found <= latest
    worst = max(ways([study(**worse)] * found, Limits()), key=lambda one: one.score)  # type: ignore[arg-type]
    assert (worst.name, worst.worse, worst.studies) == (way, found, found)


def test_a_better_challenger_and_a_hardly_lower_dice_give_no_alarm() -> None:
    assert first_alarm([study((0.88, 0.9), ("review", "accept"), seconds=[2.0, 1.0])] * 200) == 0
    assert first_alarm([study((0.9, 0.899))] * 200) == 0
    assert score(ways([], Limits())) == 1.0


def test_the_limits_are_the_sites() -> None:
    slow = [study(seconds=[1.0, 2.5])] * 40
    assert score(ways(slow, Limits(most_slower=3.0))) < 1
    assert score(ways(slow, Limits(most_slower=2.0))) > ALARM
    assert score(ways(slow, Limits(least_agreement=0.95))) > ALARM


def test_series_of_one_study_count_once() -> None:
    both = combined(
        [
            study((0.9, 0.8), ("accept", "review"), agreement=0.8),
            study((0.7, 0.9), ("accept", "reject"), fault=["", "why"], agreement=None, seconds=None),
        ]
    )
    assert both == {
        "fault": ["", "why"], "verdict": ["accept", "reject"], "dice": [pytest.approx(0.8), pytest.approx(0.85)],
        "agreement": 0.8, "seconds": [1.0, 1.1], "sizes": [{}, {}],
    }  # fmt: skip
    assert combined([{**study(), "dice": None}])["dice"] is None
