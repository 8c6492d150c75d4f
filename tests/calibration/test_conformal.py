"""Statements with a stated frequency keep it: against order statistics, simulated subjects and the beta-binomial law."""

from __future__ import annotations

import math

import numpy as np
import pytest
from coverage_band import coverage_band

from monai_unet_app.confidence.conformal import (
    conformal_quantile,
    least_threshold_of_risk,
    observed_coverage,
    subjects_needed,
)


def names(count: int) -> list[str]:
    return [f"s{n}" for n in range(count)]


@pytest.mark.parametrize(
    ("count", "coverage", "rank"), [(9, 0.9, 9), (10, 0.9, 10), (19, 0.9, 18), (99, 0.9, 90), (4, 0.5, 3)]
)
def test_with_one_case_a_subject_the_quantile_is_the_order_statistic_of_split_conformal(
    count: int, coverage: float, rank: int
) -> None:
    scores = np.random.default_rng(0).permutation(count) + 1.0
    assert conformal_quantile(scores, names(count), coverage) == rank == math.ceil((count + 1) * coverage)


def test_too_few_subjects_give_no_finite_bound() -> None:
    assert conformal_quantile(np.arange(8.0), names(8), 0.9) == math.inf
    assert subjects_needed(0.9) == 9
    assert subjects_needed(0.95) == 19
    assert conformal_quantile(np.arange(9.0), names(9), 0.9) == 8.0


def test_a_subject_with_many_cases_weighs_no_more_than_another() -> None:
    many = [100.0] * 50 + list(range(9))
    subjects = ["often"] * 50 + names(9)
    assert conformal_quantile(many, subjects, 0.8) == 8.0  # 9 of 11 weights lie at 8 or below, "often" has 1 of 11


def test_new_subjects_are_covered_as_often_as_promised() -> None:
    generator, covered = np.random.default_rng(1), []
    for _ in range(4000):
        cases = generator.integers(1, 4, size=20)
        shift = generator.normal(size=20)  # cases of one subject resemble each other
        subjects = np.repeat(np.arange(20), cases)
        scores = np.abs(shift[subjects] + generator.normal(size=len(subjects)))
        bound = conformal_quantile(scores, [str(s) for s in subjects], 0.9)
        covered.append(abs(generator.normal() + generator.normal()) <= bound)
    assert 0.895 <= np.mean(covered) <= 0.96


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")]])
def test_scores_that_do_not_fit_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match=r"one for each case is needed|NaN"):
        conformal_quantile(scores, ["a", "b"], 0.9)


def test_the_threshold_of_a_bounded_risk_counts_the_new_subject_as_lost() -> None:
    losses = np.tile([0.0, 0.05, 0.2, 0.6], (9, 1))  # bound: (9 loss + 1) / 10
    assert least_threshold_of_risk(losses, [0.1, 0.2, 0.3, 0.4], names(9), 0.15) == 0.2
    assert least_threshold_of_risk(losses, [0.1, 0.2, 0.3, 0.4], names(9), 0.1) == 0.1
    assert least_threshold_of_risk(losses, [0.1, 0.2, 0.3, 0.4], names(9), 0.09) is None


def test_the_expected_loss_of_new_subjects_stays_below_the_risk() -> None:
    generator, grid, lost = np.random.default_rng(2), np.linspace(0.02, 0.98, 49), []
    for _ in range(2000):
        centres = generator.beta(4, 2, size=31)  # a subject's loss jumps to 1 at its own threshold, smoothly
        losses = 1 / (1 + np.exp(-(grid[None] - centres[:, None]) / 0.05))
        chosen = least_threshold_of_risk(losses[:30], grid.tolist(), names(30), 0.1)
        lost.append(losses[30][np.searchsorted(grid, chosen)] if chosen is not None else 0.0)
    assert 0.05 < np.mean(lost) <= 0.102


def test_losses_that_fall_are_refused() -> None:
    with pytest.raises(ValueError, match="must rise"):
        least_threshold_of_risk([[0.5, 0.1]], [0.1, 0.2], ["a"], 0.1)


def test_observed_coverage_counts_subjects_and_has_the_exact_binomial_interval() -> None:
    found = observed_coverage([1, 1, 0, 1], ["a", "a", "a", "b"], 0.9)
    assert found.observed == pytest.approx((2 / 3 + 1) / 2)
    assert (found.subjects, found.cases) == (2, 4)
    nine = observed_coverage([1] * 9 + [0], names(10), 0.9)
    assert nine.interval == pytest.approx([0.5549839, 0.9974714])  # Clopper-Pearson tables, 9 of 10


def test_the_band_of_a_valid_coverage_is_what_simulated_subjects_give() -> None:
    generator = np.random.default_rng(3)
    fitted, tested = 13, 28
    seen = []
    for _ in range(4000):
        bound = conformal_quantile(generator.random(fitted), names(fitted), 0.9)
        seen.append(np.mean(generator.random(tested) <= bound))
    low, high = coverage_band(0.9, fitted, tested)
    assert low == pytest.approx(np.quantile(seen, 0.025), abs=0.04)
    assert high == pytest.approx(np.quantile(seen, 0.975), abs=0.04)
    assert coverage_band(0.9, 5, tested) == (1.0, 1.0)
