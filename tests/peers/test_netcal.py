"""netcal: the same calibration errors in bins of equal width. Known differences stand in docs/metrics.md."""

import numpy as np
import pytest
from mask_pairs import soft_labels
from netcal.metrics import ACE, ECE, MCE

from monai_unet_app.metrics.outputs import EXCLUSIVE
from monai_unet_app.metrics.reliability import (
    average_calibration_error,
    count_reliability,
    equal_mass_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
)

FIGURES = {ECE: expected_calibration_error, MCE: maximum_calibration_error, ACE: average_calibration_error}
each_case = pytest.mark.parametrize("case", ["003", "035"])


def flat(case):
    """(probabilities (N, 3), labels (N,), our counts)."""
    labels, p = soft_labels(case)
    return p.reshape(3, -1).T.copy(), labels.ravel().astype(int), count_reliability(labels, p, outputs=EXCLUSIVE)


@each_case
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.__name__)
def test_errors_of_the_top_label_and_of_each_class_are_the_same(case, figure):
    p, labels, counts = flat(case)
    assert FIGURES[figure](counts) == pytest.approx(figure(15).measure(p, labels), abs=1e-6)
    for channel in range(3):
        one = figure(15).measure(p[:, channel].copy(), (labels == channel).astype(int))
        assert FIGURES[figure](counts, channel + 1) == pytest.approx(one, abs=1e-6)
        assert one > 1e-3


# --- where they are known to differ


@each_case
def test_bins_of_equal_mass_are_cut_from_narrow_counts_and_lie_within_half_a_percent(case):
    p, labels, counts = flat(case)
    for channel in range(3):
        confidence, right = p[:, channel].astype(np.float64), labels == channel
        exact = by_sorting(confidence, right, 15)
        theirs = ACE(15, equal_intervals=False).measure(p[:, channel].copy(), right.astype(int))
        assert theirs == pytest.approx(exact, rel=5e-4)
        assert equal_mass_calibration_error(counts, channel + 1) == pytest.approx(exact, rel=5e-3)


def by_sorting(confidence, right, bins):
    """Mean gap of equal shares of all decisions, a decision on a cut being shared out."""
    order = np.argsort(confidence, kind="stable")
    gap = np.concatenate([[0], np.cumsum(right[order] - confidence[order])])
    shares = np.diff(np.interp(np.linspace(0, len(order), bins + 1), np.arange(len(order) + 1), gap))
    return np.abs(shares).sum() / len(order)


def test_the_figures_of_equal_mass_that_the_documentation_names():
    p, labels, counts = flat("003")
    theirs = ACE(15, equal_intervals=False).measure(p[:, 1].copy(), (labels == 1).astype(int))
    assert theirs == pytest.approx(0.0038203, abs=1e-6)
    assert equal_mass_calibration_error(counts, 2) == pytest.approx(0.0038358, abs=1e-6)


def test_three_classes_of_which_a_case_holds_two_are_refused():
    p, labels, _ = flat("003")
    there = labels < 2
    with pytest.raises(RuntimeError, match="more than 2 confidence dims"):
        ECE(15).measure(p[there], labels[there])


def test_of_two_channels_the_second_is_judged_not_the_answer():
    labels, p = soft_labels()
    two = np.stack([1 - p[1], p[1]]).reshape(2, -1)
    counts = count_reliability((labels == 1).astype(int).reshape(-1), two, outputs=EXCLUSIVE)
    theirs = ECE(15).measure(two.T.copy(), (labels == 1).astype(int).ravel())
    assert expected_calibration_error(counts, 2) == pytest.approx(theirs, abs=1e-6)
    assert expected_calibration_error(counts) == pytest.approx(0.00513, abs=1e-5)
    assert theirs == pytest.approx(0.00589, abs=1e-5)
