"""A drift is found soon, dated and named; while nothing changes an alarm is as rare as was said."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from monai_unet_app.lifecycle.drift import ALARM, compare_windows, find_drift
from monai_unet_app.lifecycle.expected_dice import BIAS, Graded, expected_dice

REFERENCE = 60


def seen(studies: int, seed: int, numbers: int = 8) -> dict[str, list[float | str | None]]:
    """Correlated numbers of any distribution, and three tags, of studies among which nothing changes."""
    chance = np.random.default_rng(seed)
    common = chance.normal(size=(studies, 3)) @ np.random.default_rng(0).normal(size=(3, numbers))
    values = np.exp(common + chance.normal(size=(studies, numbers)))
    return {
        "scanner": chance.choice(["A", "B"], p=[0.7, 0.3], size=studies).tolist(),
        "kernel": ["H30"] * studies,
        "coil": chance.choice(list("abcdefgh"), size=studies).tolist(),
        **{f"number {n}": values[:, n].tolist() for n in range(numbers)},
    }


def test_an_alarm_is_as_rare_as_was_said() -> None:
    alarms = studies = 0
    for seed in range(12):
        values, begin = seen(600, seed), 0
        while begin + REFERENCE < 600:
            found = find_drift({name: row[begin:] for name, row in values.items()}, REFERENCE, f"{seed} {begin}")
            studies += len(found.scores)
            if found.alarm is None:
                break
            alarms, begin = alarms + 1, begin + found.alarm + 1
    assert studies > 5000
    # At most one in ALARM on average: as many as 12 of so few studies are seen once in 100 times
    assert alarms <= stats.poisson.ppf(0.99, studies / ALARM)


@pytest.mark.parametrize("deviations", [2.0, -2.0])
def test_a_number_that_moves_is_found_soon_and_dated(deviations: float) -> None:
    late, off = [], []
    for seed in range(10):
        values, place = seen(200, seed), 90
        spread = float(np.std(np.log(values["number 3"])))
        values["number 3"][place:] = [one * math.exp(deviations * spread) for one in values["number 3"][place:]]
        found = find_drift(values, REFERENCE)
        assert found.alarm is not None
        assert found.quantity == "number 3"
        assert found.since is not None
        assert found.changes[0].name == "number 3"
        assert (found.changes[0].since / found.changes[0].before < 1) == (deviations < 0)
        late.append(found.alarm - place + 1)
        off.append(abs(found.since - place))
    assert np.median(late) <= 20
    assert max(late) <= 50
    assert np.median(off) <= 1
    assert max(off) <= 6


def test_a_tag_that_changes_alone_is_found_by_the_lots_of_each_site() -> None:
    scores = set()
    for site in ("a", "b", "c", "d"):
        values, place = seen(140, 3), 80
        for study in range(place, 140, 2):
            values["kernel"][study] = "B60"
        found = find_drift(values, REFERENCE, site)
        assert found.alarm is not None
        assert 0 < found.alarm - place <= 50
        assert (found.quantity, found.changes[0].name, found.changes[0].word) == ("kernel", "kernel", "B60")
        scores.add(float(found.scores[10]))
    assert len(scores) == 4


def test_a_new_scanner_in_every_second_study_is_named_with_its_other_tags() -> None:
    for seed in range(5):
        values, place = seen(200, seed), 80
        for study in range(place, 200, 2):
            values["scanner"][study], values["kernel"][study] = "C", "B60"
            values["number 0"][study] *= 3
        found = find_drift(values, REFERENCE)
        assert found.alarm is not None
        assert found.alarm - place <= 50
        told = {change.name: change for change in found.changes}
        assert told["scanner"].word == "C"
        assert told["kernel"].word == "B60"
        assert told["kernel"].before < 0.05
        assert "kernel is B60 in" in told["kernel"].sentence
        assert "coil" not in told  # that did not change
        assert [bool(change.word) for change in found.changes] == sorted(
            (bool(c.word) for c in found.changes), reverse=True
        )


def test_more_studies_do_not_change_what_was_said_before() -> None:
    values = seen(150, 1)
    short = find_drift({name: row[:100] for name, row in values.items()}, REFERENCE)
    assert np.array_equal(find_drift(values, REFERENCE).scores[:40], short.scores)


def test_a_study_without_a_number_says_nothing_about_it() -> None:
    values = seen(120, 2, numbers=1)
    del values["coil"], values["scanner"], values["kernel"]
    gaps = {"number 0": [None if n % 2 and n > 60 else one for n, one in enumerate(values["number 0"])]}
    kept = {"number 0": [one for one in gaps["number 0"] if one is not None]}
    # the same values in the same order of lots are needed for equal scores: none is tied, so lots hardly matter
    assert len(find_drift(gaps, REFERENCE).scores) == 60
    assert len(find_drift(kept, REFERENCE).scores) == 30
    late = {"new": [None] * 80 + [1.0] * 40}
    assert find_drift(late, REFERENCE).scores.tolist() == [0.0] * 60  # nothing in the reference to hold it against


def test_texts_that_are_many_numbers_count_as_numbers() -> None:
    chance = np.random.default_rng(0)
    times: list[float | str | None] = [f"{value:.4g}" for value in chance.normal(90, 2, 150)]
    times[80:] = [f"{float(value or 0) + 8:.4g}" for value in times[80:]]
    found = find_drift({"EchoTime": times}, REFERENCE)
    assert found.alarm is not None
    assert found.alarm < 100
    assert found.changes[0].word == ""


def test_a_text_that_is_no_number_later_changes_nothing_that_was_said_before() -> None:
    chance = np.random.default_rng(0)
    times: list[float | str | None] = [f"{value:.4g}" for value in chance.normal(90, 2, 150)]
    before = find_drift({"EchoTime": times[:100]}, REFERENCE).scores
    times[120], times[121] = "90\\100", ""
    assert np.array_equal(find_drift({"EchoTime": times}, REFERENCE).scores[:40], before)


def test_too_few_studies_are_no_reference() -> None:
    with pytest.raises(ValueError, match="29 studies; at least 30"):
        find_drift(seen(100, 0), 29)
    assert find_drift(seen(60, 0), 60).scores.size == 0


def test_windows_are_compared_by_known_tests() -> None:
    chance = np.random.default_rng(3)
    moved: Sequence[float] = [*chance.normal(size=60), *chance.normal(1.0, 1.0, 30)]
    words = ["a", "b", "c"] * 20 + ["a", "b", "c"] * 10
    by_name = {test.name: test for test in compare_windows({"moved": list(moved), "words": list(words)}, 60)}
    assert by_name["moved"].p == pytest.approx(stats.ks_2samp(moved[:60], moved[60:], method="asymp").pvalue)
    assert by_name["words"].psi == pytest.approx(0.0, abs=1e-3)
    assert by_name["words"].p == pytest.approx(1.0)
    low, high = by_name["moved"].psi_interval
    assert 0.1 < low < by_name["moved"].psi < high
    assert compare_windows({"moved": list(moved[:80])}, 60) == []  # a window of 30 is needed


def test_the_dice_that_nobody_measured_is_predicted_and_corrected_by_what_was_reviewed() -> None:
    alone = expected_dice([Graded(0.8)] * 30)
    assert alone is not None
    assert alone.mean == pytest.approx(0.8)
    assert alone.reviewed == 0
    assert alone.high - alone.low == pytest.approx(2 * 1.645 * BIAS, rel=0.01)
    # Ten of thirty were looked at and are 0.2 worse: the estimate goes most of the way, and is surer
    seen_too = expected_dice([Graded(0.8)] * 20 + [Graded(0.8, 0.6, 0.3)] * 10)
    assert seen_too is not None
    assert 0.6 < seen_too.mean < 0.66
    assert seen_too.high - seen_too.low < alone.high - alone.low
    assert expected_dice([]) is None


def test_results_that_were_held_do_not_speak_for_those_that_were_accepted() -> None:
    # 20 were held, all bad; of 80 accepted ones a tenth was drawn, all good
    held, drawn = [Graded(0.5, 0.3, 1.0)] * 20, [Graded(0.9, 0.9, 0.1)] * 8
    weighted = expected_dice([*held, *drawn, *[Graded(0.9)] * 72])
    unweighted = expected_dice([*held, *[Graded(0.9, 0.9, 1.0)] * 8, *[Graded(0.9)] * 72])
    truth = 0.2 * 0.3 + 0.8 * 0.9
    assert weighted is not None
    assert unweighted is not None
    assert abs(weighted.mean - truth) < 0.02 < abs(unweighted.mean - truth)
