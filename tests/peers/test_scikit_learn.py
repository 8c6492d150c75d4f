"""scikit-learn: the same overlap, Brier score, likelihood and diagram. Known differences stand in docs/metrics.md."""

import numpy as np
import pytest
from mask_pairs import PAIRS, soft_labels
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, f1_score, jaccard_score, log_loss, precision_score, recall_score

from monai_unet_app.metrics import overlap, reliability
from monai_unet_app.metrics.outputs import EXCLUSIVE, OVERLAPPING
from monai_unet_app.metrics.reliability import count_reliability

SCORES = {
    overlap.dice: f1_score,
    overlap.iou: jaccard_score,
    overlap.precision: precision_score,
    overlap.recall: recall_score,
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("ours", SCORES, ids=lambda score: score.__name__)
def test_overlap_is_the_same(pair, ours):
    found = SCORES[ours](pair.truth.ravel(), pair.predicted.ravel())
    assert ours(pair.truth, pair.predicted) == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("case", ["003", "035"])
def test_brier_score_and_likelihood_of_exclusive_classes_are_the_same(case):
    labels, p = soft_labels(case)
    counts = count_reliability(labels, p, outputs=EXCLUSIVE)
    given = p.reshape(3, -1).T.astype(np.float64)
    given /= given.sum(axis=1, keepdims=True)
    brier = brier_score_loss(labels.ravel(), given, scale_by_half=False)
    assert reliability.brier_score(counts) == pytest.approx(brier, abs=1e-6)
    assert reliability.negative_log_likelihood(counts) == pytest.approx(log_loss(labels.ravel(), given), abs=1e-6)


@pytest.mark.parametrize("case", ["003", "035"])
def test_brier_score_likelihood_and_diagram_of_one_label_are_the_same(case):
    labels, p = soft_labels(case)
    truth = labels == 2
    counts = count_reliability(truth[None], p[2:], outputs=OVERLAPPING)
    assert reliability.brier_score(counts) == pytest.approx(brier_score_loss(truth.ravel(), p[2].ravel()), abs=1e-6)
    likelihood = log_loss(truth.ravel(), p[2].ravel().astype(np.float64))
    assert reliability.negative_log_likelihood(counts) == pytest.approx(likelihood, abs=1e-6)
    accuracy, confidence = calibration_curve(truth.ravel(), p[2].ravel(), n_bins=15)
    filled = counts.count[1] > 0
    np.testing.assert_allclose(counts.accuracy(1)[filled], accuracy, atol=1e-6)
    np.testing.assert_allclose(counts.mean_confidence(1)[filled], confidence, atol=1e-6)


# --- where they are known to differ


@pytest.mark.parametrize("ours", SCORES, ids=lambda score: score.__name__)
def test_two_empty_masks_score_nothing_unless_it_is_told_otherwise(ours):
    none = np.zeros(50, bool)
    with pytest.warns(UserWarning, match="ill-defined"):
        assert SCORES[ours](none, none) == 0.0
    assert SCORES[ours](none, none, zero_division=1.0) == ours(none, none) == 1.0


def test_a_certainty_that_was_wrong_costs_36_nats_there_and_17_here():
    truth, p = np.array([[False, True, True]]), np.array([[1.0, 1.0, 1.0]])
    counts = count_reliability(truth, p, outputs=OVERLAPPING)
    assert 3 * log_loss(truth[0], p[0], labels=[False, True]) == pytest.approx(52 * np.log(2), abs=1e-6)
    assert 3 * reliability.negative_log_likelihood(counts) == pytest.approx(24 * np.log(2), abs=1e-6)
