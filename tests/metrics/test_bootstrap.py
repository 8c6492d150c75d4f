"""Bootstrap by subject against normal theory, enumeration and its own promises."""

import itertools

import numpy as np
import pytest

from monai_unet_app.metrics.bootstrap import (
    Bootstrap,
    bootstrap_mean,
    bootstrap_paired_difference,
    bootstrap_sums,
)


def test_the_interval_of_many_independent_cases_is_that_of_normal_theory():
    values = np.random.default_rng(0).normal(0.88, 0.05, size=200)
    found = bootstrap_mean(values, [str(n) for n in range(200)], Bootstrap(seed=1, resamples=5000))
    half = 1.96 * values.std() / np.sqrt(200)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_with_three_subjects_the_interval_equals_that_of_all_27_draws():
    values, subjects = [0.2, 0.5, 0.9], ["a", "b", "c"]
    means = np.sort([np.mean(draw) for draw in itertools.product(values, repeat=3)])
    found = bootstrap_mean(values, subjects, Bootstrap(seed=3, resamples=20000, level=0.75))
    # 12.5 % of 27 draws lie at or below the fourth smallest mean, by symmetry at the other end too.
    assert found.low == pytest.approx(means[3])
    assert found.high == pytest.approx(means[-4])


def test_repeating_each_case_of_a_subject_adds_no_certainty():
    rng = np.random.default_rng(2)
    values, names = rng.normal(size=30), [f"s{n}" for n in range(30)]
    once = bootstrap_mean(values, names, Bootstrap(seed=5))
    twice = bootstrap_mean(np.repeat(values, 2), [name for name in names for _ in range(2)], Bootstrap(seed=5))
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    assert (twice.subjects, twice.cases) == (30, 60)
    alone = bootstrap_mean(np.repeat(values, 2), [str(n) for n in range(60)], Bootstrap(seed=5))
    assert alone.high - alone.low < 0.8 * (once.high - once.low)


def test_a_subject_with_more_cases_weighs_more():
    found = bootstrap_mean([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"], Bootstrap(level=0.5))
    assert found.value == 0.75
    assert (found.low, found.high) == (0.0, 1.0)


@pytest.mark.parametrize(("subjects", "cases"), [(5, 5), (5, 40), (1, 9), (6, 6)])
def test_fewer_than_six_people_have_no_interval_however_many_cases_they_have(subjects, cases):
    found = bootstrap_mean(np.linspace(0, 1, cases), [str(n % subjects) for n in range(cases)], Bootstrap())
    assert found.value == pytest.approx(0.5)
    assert (np.isfinite(found.low), np.isfinite(found.high)) == (subjects == 6, subjects == 6)


def test_a_seed_fixes_the_interval_and_the_order_of_cases_does_not_matter():
    rng = np.random.default_rng(6)
    values, names = rng.normal(size=40), [f"s{n // 2}" for n in range(40)]
    order = rng.permutation(40)
    first = bootstrap_mean(values, names, Bootstrap(seed=9))
    again = bootstrap_mean(values[order], [names[n] for n in order], Bootstrap(seed=9))
    assert (first.low, first.high) == pytest.approx((again.low, again.high), rel=1e-12)
    assert bootstrap_mean(values, names, Bootstrap(seed=10)).low != first.low


def test_paired_differences_cancel_what_makes_a_case_hard():
    rng = np.random.default_rng(7)
    hardness, names = rng.normal(0, 0.2, size=50), [str(n) for n in range(50)]
    better, worse = 0.9 + hardness, 0.88 + hardness + rng.normal(0, 0.005, size=50)
    paired = bootstrap_paired_difference(better, worse, names, Bootstrap(seed=1))
    assert 0.015 < paired.low < paired.value < paired.high < 0.025
    assert bootstrap_mean(better, names, Bootstrap(seed=1)).low < bootstrap_mean(worse, names, Bootstrap(seed=1)).high


def test_undefined_values_are_left_out_and_counted():
    found = bootstrap_mean([1.0, np.inf, 3.0, np.nan], ["a", "b", "c", "c"], Bootstrap(seed=0))
    assert (found.value, found.subjects, found.cases) == (2.0, 2, 2)


def test_one_subject_gives_a_mean_without_an_interval_and_none_gives_nothing():
    one = bootstrap_mean([0.4, 0.6], ["a", "a"], Bootstrap(seed=0))
    assert one.value == 0.5
    assert np.isnan([one.low, one.high]).all()
    assert np.isnan(bootstrap_mean([], [], Bootstrap(seed=0)).value)


def test_a_figure_of_sums_is_drawn_like_the_mean_it_is():
    values, names = np.random.default_rng(1).random(20), [f"s{n // 2}" for n in range(20)]
    rows = np.stack([values, np.ones(20)], axis=1)
    found = bootstrap_sums(rows, names, lambda sums: sums[:, 0] / sums[:, 1], Bootstrap(seed=4))
    assert found == bootstrap_mean(values, names, Bootstrap(seed=4))


def test_values_without_a_subject_are_refused():
    with pytest.raises(ValueError, match="3 cases came with 2"):
        bootstrap_mean([1, 2, 3], ["a", "b"], Bootstrap(seed=0))
    with pytest.raises(ValueError, match="same cases"):
        bootstrap_paired_difference([1, 2], [1, 2, 3], ["a", "b"], Bootstrap(seed=0))
    with pytest.raises(ValueError, match="level=95"):
        Bootstrap(level=95)
