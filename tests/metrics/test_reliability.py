"""Calibration counts against hand counting, MONAI, and labels drawn from the probabilities themselves."""

import tracemalloc

import numpy as np
import pytest
import torch
from monai.metrics import calibration_binning
from scipy import ndimage

from monai_unet_app.metrics import reliability
from monai_unet_app.metrics.boundary import surface_band
from monai_unet_app.metrics.outputs import EXCLUSIVE, OVERLAPPING, outputs_of
from monai_unet_app.metrics.reliability import (
    NarrowBins,
    ReliabilityCounts,
    count_reliability,
    equal_mass_calibration_error,
    expected_calibration_error,
)


def smooth_probabilities(seed, channels, shape=(40, 44, 36), sharpness=6.0):
    """A softmax field with blobs of each class, float32 (C, I, J, K)."""
    noise = np.random.default_rng(seed).normal(size=(channels, *shape))
    logits = ndimage.gaussian_filter(noise, (0, 4, 5, 3))
    logits = sharpness * logits / logits.std()
    logits[0] += 4
    power = np.exp(logits - logits.max(axis=0))
    return (power / power.sum(axis=0)).astype(np.float32)


def drawn_labels(probabilities, seed):
    """One-hot labels drawn voxel by voxel from the probabilities: calibrated by construction."""
    level = np.random.default_rng(seed).random(probabilities.shape[1:])
    label = (level > np.cumsum(probabilities.astype(np.float64), axis=0)).sum(axis=0)
    return np.arange(len(probabilities)).reshape(-1, 1, 1, 1) == np.minimum(label, len(probabilities) - 1)


def test_a_confidence_of_four_fifths_that_comes_true_half_the_time_errs_by_three_tenths():
    probabilities = np.array([[0.8] * 4, [0.2] * 4])
    truth = np.array([[True, True, False, False], [False, False, True, True]])
    counts = count_reliability(truth, probabilities, outputs=EXCLUSIVE)
    assert expected_calibration_error(counts) == pytest.approx(0.3)
    assert reliability.brier_score(counts) == pytest.approx((2 * 0.04 + 2 * 0.64) / 2)
    assert reliability.negative_log_likelihood(counts) == pytest.approx(-(np.log(0.8) + np.log(0.2)) / 2)


def test_expected_maximum_and_average_error_weigh_the_bins_differently():
    # 8 voxels at 0.95 of which 6 are right (gap 0.2), 2 voxels at 0.55 of which none is (gap 0.55).
    p = np.array([0.95] * 8 + [0.55] * 2)
    right = np.array([True] * 6 + [False] * 4)
    counts = count_reliability(np.stack([right, ~right]), np.stack([p, 1 - p]), outputs=EXCLUSIVE)
    assert expected_calibration_error(counts) == pytest.approx(0.8 * 0.2 + 0.2 * 0.55)
    assert reliability.maximum_calibration_error(counts) == pytest.approx(0.55)
    assert reliability.average_calibration_error(counts) == pytest.approx((0.2 + 0.55) / 2)


def test_certainty_falls_in_the_last_bin_and_impossibility_in_the_first():
    counts = count_reliability(np.array([[True, False]]), np.array([[1.0, 0.0]]), outputs=OVERLAPPING)
    assert counts.count.shape == (2, 15)
    assert counts.count[0].tolist() == [0] * 14 + [2]  # two certain decisions, "yes" and "no"
    assert counts.count[1].tolist() == [1] + [0] * 13 + [1]  # the probability of "yes" itself
    assert expected_calibration_error(counts) == 0.0


@pytest.mark.parametrize("bins", [10, 15, 20])
def test_class_wise_bins_equal_those_of_monai(bins):
    probabilities = smooth_probabilities(2, 3, (17, 13, 11))
    truth = drawn_labels(smooth_probabilities(7, 3, (17, 13, 11)), 1)
    counts = count_reliability(truth, probabilities, outputs=EXCLUSIVE, bins=bins)
    tensors = [torch.from_numpy(a[None].astype(np.float32)) for a in (probabilities, truth)]
    confidence, accuracy, count = (t[0].numpy() for t in calibration_binning(*tensors, num_bins=bins))
    assert np.array_equal(counts.count[1:], count)
    for c in range(3):
        np.testing.assert_allclose(counts.mean_confidence(c + 1), confidence[c], atol=1e-5)
        np.testing.assert_allclose(counts.accuracy(c + 1), accuracy[c], atol=1e-5)
        gap = np.abs(confidence[c] - accuracy[c])
        assert reliability.average_calibration_error(counts, c + 1) == pytest.approx(np.nanmean(gap), abs=1e-5)
        assert reliability.maximum_calibration_error(counts, c + 1) == pytest.approx(np.nanmax(gap), abs=1e-5)
        expected = np.nansum(gap * count[c]) / count[c].sum()
        assert expected_calibration_error(counts, c + 1) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("channels", [2, 3])
def test_labels_drawn_from_the_probabilities_are_calibrated_in_every_population(channels):
    p = smooth_probabilities(3, channels)
    predicted = p.argmax(axis=0) > 0
    spacing = (1.0, 0.8, 1.3)
    populations = {"whole": None, "band": surface_band(predicted, spacing, 2.0)}
    total = {name: ReliabilityCounts.empty(channels) for name in populations}
    for seed in range(4):
        truth = drawn_labels(p, seed)
        for name, within in populations.items():
            total[name] += count_reliability(truth, p, outputs=EXCLUSIVE, within=within)
    assert 0.05 < populations["band"].mean() < 0.8
    for name, counts in total.items():
        assert expected_calibration_error(counts) < 0.005, name


def test_a_population_that_looks_at_the_truth_is_not_calibrated():
    # Why populations are chosen by the prediction: the labels of the test above, in "truth or prediction".
    p = smooth_probabilities(3, 3)
    truth = drawn_labels(p, 0)
    picked_by_outcome = truth[1:].any(axis=0) | (p.argmax(axis=0) > 0)
    counts = count_reliability(truth, p, outputs=EXCLUSIVE, within=picked_by_outcome)
    assert expected_calibration_error(counts) > 0.05


def test_overlapping_labels_drawn_from_their_probabilities_are_calibrated():
    p = smooth_probabilities(5, 3)[1:]
    truth = np.random.default_rng(0).random(p.shape) < p
    counts = count_reliability(truth, p, outputs=OVERLAPPING)
    assert counts.decisions == p.size
    assert expected_calibration_error(counts) < 0.005
    overconfident = np.clip(p * 1.5, 0, 1)
    assert expected_calibration_error(count_reliability(truth, overconfident, outputs=OVERLAPPING)) > 0.01


def test_one_label_counts_as_two_exclusive_classes_would():
    p = smooth_probabilities(6, 2, (12, 10, 9))
    truth = drawn_labels(p, 3)
    two = count_reliability(truth, p, outputs=EXCLUSIVE)
    one = count_reliability(truth[1:], p[1:], outputs=OVERLAPPING)
    assert np.array_equal(one.count[0], two.count[0])
    assert np.array_equal(one.correct[0], two.correct[0])
    assert reliability.negative_log_likelihood(one) == pytest.approx(reliability.negative_log_likelihood(two), rel=1e-5)
    assert reliability.brier_score(one) == pytest.approx(reliability.brier_score(two) / 2, rel=1e-5)


def test_counting_goes_on_past_the_whole_numbers_of_float32():
    # float32 cannot count beyond 2**24: adding 1 changes nothing there.
    number = 2**24 + 5
    p = np.broadcast_to(np.float32(0.9), (1, number))
    truth = np.broadcast_to(np.True_, (1, number))
    counts = count_reliability(truth, p, outputs=OVERLAPPING)
    assert counts.decisions == number
    assert int(counts.correct[0].sum()) == number
    assert expected_calibration_error(counts) == pytest.approx(1 - float(np.float32(0.9)), abs=1e-9)


def test_two_to_the_26th_decisions_in_one_bin_are_all_counted():
    # By doubling: 2**20 voxels, merged with themselves six times, and one voxel more.
    number = 2**20
    truth = (np.arange(number) % 8 > 0)[None]  # seven of eight are true
    counts = count_reliability(truth, np.full((1, number), 0.875, np.float32), outputs=OVERLAPPING)
    for _ in range(6):
        counts = counts + counts
    counts = counts + count_reliability(np.array([[True]]), np.array([[0.875]]), outputs=OVERLAPPING)
    assert counts.decisions == counts.count[0].max() == 2**26 + 1
    assert counts.correct[0].max() == 7 * 2**23 + 1
    assert counts.confidence[0].max() == pytest.approx(0.875 * (2**26 + 1), rel=1e-15)
    assert expected_calibration_error(counts) == pytest.approx(0.125 / (2**26 + 1), rel=1e-6)
    assert equal_mass_calibration_error(counts) == pytest.approx(0.125 / (2**26 + 1), rel=1e-6)


@pytest.mark.slow
def test_two_to_the_26th_voxels_in_one_bin_are_all_counted_piece_by_piece():
    rng, counts, right = np.random.default_rng(0), ReliabilityCounts.empty(2), 0
    for _ in range(64):
        p = rng.uniform(0.94, 0.99, 2**20).astype(np.float32)
        truth = (rng.random(2**20) < 0.9).astype(np.uint8)
        counts = counts + count_reliability(truth, np.stack([1 - p, p]), outputs=EXCLUSIVE)
        right += int(truth.sum())
    assert counts.count[0].tolist() == counts.count[2].tolist() == [0] * 14 + [2**26]
    assert counts.correct[0, -1] == right
    assert expected_calibration_error(counts) == pytest.approx(0.965 - right / 2**26, abs=1e-4)


# --- narrow bins, and bins of equal mass


@pytest.mark.parametrize("bins", [1, 2, 10, 15, 16, 100])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_narrow_bins_grow_with_the_confidence_and_lie_each_within_one_bin(bins, kind):
    edges = np.arange(bins + 1) / bins
    small = np.geomspace(1e-9, 0.1, 3000)
    p = np.sort(np.concatenate([np.linspace(0, 1, 20001), edges, small, 1 - small]).astype(kind))
    narrow = NarrowBins(bins)
    index = narrow.index(p)
    assert (np.diff(index) >= 0).all()
    assert (index[0], index[-1]) == (0, narrow.number - 1)
    bin_of = np.minimum((p * kind(bins)).astype(int), bins - 1)
    ones = np.bincount(index, minlength=narrow.number)
    assert np.array_equal(narrow.summed(ones), np.bincount(bin_of, minlength=bins))
    assert np.ptp(p[index == index[len(p) // 2]]) <= 1 / (16 * bins) + 1e-6


def test_near_0_and_near_1_narrow_bins_are_a_quarter_of_a_halving_wide():
    narrow, away = NarrowBins(15), 2.0 ** -np.arange(8, 25)
    for below in (away, 1 - away):
        assert np.abs(np.diff(narrow.index(below.astype(np.float32)))).tolist() == [4] * (len(away) - 1)
    assert narrow.index(np.array([2.0**-25, 0.0, 1 - 2.0**-25, 1.0])).tolist() == [
        0,
        0,
        narrow.number - 1,
        narrow.number - 1,
    ]


def sorted_and_cut(confidence, right, bins):
    """ACE over equal shares by sorting every single decision."""
    order = np.argsort(confidence, kind="stable")
    gap = (right[order] - confidence[order].astype(np.float64)).reshape(bins, -1)
    return np.abs(gap.mean(axis=1)).mean()


@pytest.mark.parametrize("shape", [(1.0, 1.0), (0.02, 0.02), (30.0, 0.05), (0.004, 0.3), (4.0, 9.0)])
def test_equal_mass_bins_equal_sorting_and_cutting_every_decision(shape):
    rng = np.random.default_rng(1)
    p = rng.beta(*shape, size=15 * 4000).astype(np.float32)
    right = rng.random(p.size) < p**1.3  # too sure
    counts = count_reliability(right[None], p[None], outputs=OVERLAPPING)
    assert equal_mass_calibration_error(counts, 1) == pytest.approx(sorted_and_cut(p, right, 15), rel=0.02, abs=2e-5)
    surer = sorted_and_cut(np.maximum(p, 1 - p), right == (p >= 0.5), 15)
    assert equal_mass_calibration_error(counts) == pytest.approx(surer, rel=0.02, abs=2e-5)


def test_equal_mass_bins_find_an_error_that_equal_width_hides_in_its_last_bin():
    # All within the last of 15 equal bins: the surer half is right less often than the other.
    p = np.repeat([0.95, 0.999], 3000)
    right = np.concatenate([np.arange(3000) % 1000 < 999, np.arange(3000) % 1000 < 950])
    counts = count_reliability(right[None], p[None], outputs=OVERLAPPING)
    assert reliability.average_calibration_error(counts) == pytest.approx(0.0, abs=1e-9)
    assert equal_mass_calibration_error(counts, bins=2) == pytest.approx(0.049, abs=1e-9)
    # Of three shares the middle one has half of each: there the two errors cancel out.
    assert equal_mass_calibration_error(counts, bins=3) == pytest.approx(0.049 * 2 / 3, abs=1e-9)


def test_where_one_confidence_holds_more_than_a_share_the_shares_within_it_have_its_gap():
    p = np.array([0.98] * 95 + [0.6] * 5)
    right = np.array([True] * 76 + [False] * 19 + [True] * 5)
    counts = count_reliability(right[None], p[None], outputs=OVERLAPPING)
    # 19 of 20 shares lie within 0.98, of which 0.8 came true; one is what stands at 0.6.
    assert equal_mass_calibration_error(counts, bins=20) == pytest.approx((19 * 0.18 + 0.4) / 20)
    assert equal_mass_calibration_error(counts, bins=1) == pytest.approx((95 * 0.18 - 5 * 0.4) / 100)


def test_equal_mass_bins_of_merged_counts_are_those_of_all_decisions():
    p = smooth_probabilities(9, 3, (20, 12, 10))
    truth = drawn_labels(p, 5)
    whole = count_reliability(truth, p, outputs=EXCLUSIVE)
    parts = ReliabilityCounts.empty(3)
    for piece in (slice(0, 2), slice(2, 20)):
        parts += count_reliability(truth[:, piece], p[:, piece], outputs=EXCLUSIVE)
    for row in range(4):
        assert equal_mass_calibration_error(parts, row) == pytest.approx(equal_mass_calibration_error(whole, row))
        assert 0 < equal_mass_calibration_error(whole, row) < 1


def test_one_pass_equals_the_sum_of_its_parts():
    p = smooth_probabilities(9, 3, (20, 12, 10))
    truth = drawn_labels(p, 5)
    whole = count_reliability(truth, p, outputs=EXCLUSIVE)
    parts = ReliabilityCounts.empty(3)
    for piece in (slice(0, 3), slice(3, 14), slice(14, 20)):
        parts += count_reliability(truth[:, piece], p[:, piece], outputs=EXCLUSIVE)
    assert np.array_equal(parts.count, whole.count)
    assert np.array_equal(parts.correct, whole.correct)
    np.testing.assert_allclose(parts.confidence, whole.confidence, rtol=1e-12)
    assert parts.brier_sum == pytest.approx(whole.brier_sum, rel=1e-12)
    assert parts.nll_sum == pytest.approx(whole.nll_sum, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("exclusive", [True, False])
def test_populations_counted_in_one_pass_are_those_counted_voxel_by_voxel(monkeypatch, exclusive, dtype):
    """Voxels of no population hold NaN; some probabilities lie exactly where bins and rungs begin, and some are equal."""
    monkeypatch.setattr(reliability, "_VALUES", 1000)
    rng = np.random.default_rng(2)
    p = 10.0 ** rng.uniform(-14, 0, (4, 10, 9, 8))
    p[:, :2] = rng.choice([0, 2.0**-26, 2.0**-24, 2.0**-8, 1 / 240, 0.0041], (4, 2, 9, 8))
    p[:, 2] = 1e-9
    p[1, :3] += 0.5
    p[2, :1] += 0.5
    p = np.minimum(p, 1) if not exclusive else p / p.sum(axis=0)
    p = p.astype(dtype)
    truth = rng.integers(0, 4, (10, 9, 8)) if exclusive else rng.random((4, 10, 9, 8)) > 0.7
    most = rng.random((10, 9, 8)) > 0.1
    within = {"most": most, "few": most & (rng.random((10, 9, 8)) > 0.8), "some": most & (p[0] > 1e-4)}
    p[:, ~most] = np.nan
    found = reliability.count_populations(truth, p, within, outputs=outputs_of(exclusive))
    narrow = NarrowBins(15)
    for name, mask in within.items():
        q = p[:, mask].astype(np.promote_types(dtype, np.float32))
        hits = np.stack([truth[mask] == c for c in range(4)]) if exclusive else truth[:, mask]
        if exclusive:
            rows = [(q.max(axis=0), q.argmax(axis=0) == truth[mask])]
            likelihood = q[hits]
        else:
            rows = [(np.where(q >= 0.5, q, 1 - q).ravel(), ((q >= 0.5) == hits).ravel())]
            likelihood = np.where(hits, q, 1 - q)
        for n, (confidence, right) in enumerate([*rows, *zip(q, hits, strict=True)]):
            at = narrow.index(confidence)
            assert found[name].narrow_count[n].tolist() == np.bincount(at, minlength=narrow.number).tolist()
            assert found[name].narrow_correct[n].tolist() == np.bincount(at[right], minlength=narrow.number).tolist()
            expected = np.bincount(at, confidence, narrow.number)
            np.testing.assert_allclose(found[name].narrow_confidence[n], expected, rtol=1e-12, atol=0)
        squares = (q.astype(np.float64) - hits) ** 2
        nll = -np.log(np.maximum(likelihood, reliability.NLL_FLOOR).astype(np.float64))
        assert found[name].brier_sum == pytest.approx(squares.sum(), rel=1e-12)
        assert found[name].nll_sum == pytest.approx(nll.sum(), rel=1e-12)
    assert found["some"].decisions < found["most"].decisions


def test_a_case_longer_than_one_chunk_counts_the_same(monkeypatch):
    p = smooth_probabilities(9, 2, (20, 12, 10))
    truth, within = drawn_labels(p, 5), p[0] > 0.3
    whole = count_reliability(truth, p, outputs=EXCLUSIVE, within=within)
    monkeypatch.setattr(reliability, "_CHUNK", 101)
    pieces = count_reliability(truth, p, outputs=EXCLUSIVE, within=within)
    assert np.array_equal(pieces.count, whole.count)
    assert whole.decisions == within.sum()


@pytest.mark.parametrize("exclusive", [True, False])
def test_counting_takes_less_memory_than_the_probabilities(monkeypatch, exclusive):
    monkeypatch.setattr(reliability, "_VALUES", 1 << 18)
    p = np.random.default_rng(0).random((105, 8, 64, 100), dtype=np.float32)
    truth = p > 0.5
    if exclusive:
        p /= p.sum(axis=0)
        truth = p.argmax(axis=0).astype(np.uint8)
    tracemalloc.start()
    counts = count_reliability(truth, p, outputs=outputs_of(exclusive))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts.decisions == truth.size
    assert peak < p.nbytes


def test_an_empty_population_has_no_error_rather_than_none_at_all():
    p = smooth_probabilities(1, 2, (6, 5, 4))
    counts = count_reliability(p > 0.5, p, outputs=EXCLUSIVE, within=np.zeros((6, 5, 4), bool))
    assert counts.decisions == 0
    for figure in (
        expected_calibration_error,
        reliability.average_calibration_error,
        reliability.maximum_calibration_error,
        equal_mass_calibration_error,
        reliability.brier_score,
        reliability.negative_log_likelihood,
    ):
        assert np.isnan(figure(counts))


def test_a_single_impossible_truth_leaves_the_likelihood_finite():
    counts = count_reliability(np.array([[True], [False]]), np.array([[0.0], [1.0]]), outputs=EXCLUSIVE)
    assert reliability.negative_log_likelihood(counts) == pytest.approx(24 * np.log(2))


@pytest.mark.parametrize(
    ("probabilities", "says"),
    [
        (np.array([[3.0], [-2.0]]), "softmax"),
        (np.array([[np.nan], [0.5]]), "nan"),
        (np.array([[0.0], [0.0]]), "sum of 1"),
        (np.array([[0.5], [0.3], [0.2]]), "channel"),
    ],
)
def test_what_is_no_probability_is_refused(probabilities, says):
    with pytest.raises(ValueError, match=says):
        count_reliability(np.array([[True], [False]]), probabilities, outputs=EXCLUSIVE)


def test_counts_of_other_channels_or_bins_do_not_merge():
    with pytest.raises(ValueError, match=r"\(3, 15\).*\(4, 15\)"):
        ReliabilityCounts.empty(2) + ReliabilityCounts.empty(3)


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_the_top_label_is_the_first_of_the_likeliest_classes_and_right_where_it_is_true(channels):
    rng = np.random.default_rng(channels)
    # Eighths are exact and often tie.
    probabilities = np.moveaxis(rng.multinomial(8, np.full(channels, 1 / channels), size=(30, 40)) / 8, -1, 0)
    truth = rng.integers(0, channels, (30, 40))
    top, right = probabilities.max(axis=0), probabilities.argmax(axis=0) == truth
    assert np.count_nonzero((probabilities == top).sum(axis=0) > 1) > 200
    counts = count_reliability(truth, probabilities, outputs=EXCLUSIVE, bins=4)
    bin_of = np.minimum((4 * top).astype(int), 3)
    for bin_ in range(4):
        assert counts.count[0, bin_] == np.count_nonzero(bin_of == bin_)
        assert counts.correct[0, bin_] == np.count_nonzero(right & (bin_of == bin_))
        assert counts.confidence[0, bin_] == top[bin_of == bin_].sum()


def test_a_label_map_counts_as_its_one_hot_channels_do_in_any_order_of_memory():
    p = smooth_probabilities(3, 3, (13, 17, 11))
    truth = drawn_labels(p, 4)
    within = surface_band(p.argmax(0) > 0, (1.0, 1.2, 2.0), 3.0)
    expected = count_reliability(truth, p, outputs=EXCLUSIVE, within=within)
    numbers = truth.argmax(axis=0).astype(np.uint8)
    for order in ("C", "F"):
        for other in ("C", "F"):
            turned = np.moveaxis(np.array(np.moveaxis(p, 0, -1), order=order), -1, 0)
            found = count_reliability(np.array(numbers, order=other), turned, outputs=EXCLUSIVE, within=within)
            assert np.array_equal(found.count, expected.count)
            assert np.array_equal(found.correct, expected.correct)
            np.testing.assert_allclose(found.confidence, expected.confidence, rtol=1e-12)
            assert found.brier_sum == pytest.approx(expected.brier_sum)
            assert found.nll_sum == pytest.approx(expected.nll_sum)


@pytest.mark.parametrize("truth", [np.full((4, 5), 3), np.full((4, 5), -1)])
def test_a_label_map_of_classes_that_have_no_channel_is_refused(truth):
    with pytest.raises(ValueError, match="are needed; map them"):
        count_reliability(truth, np.full((3, 4, 5), 1 / 3), outputs=EXCLUSIVE)


def test_a_truth_of_no_class_or_two_is_refused_where_classes_exclude_each_other():
    p = np.full((2, 4), 0.5)
    for row in ([True] * 4, [False] * 4):
        with pytest.raises(ValueError, match="one each is needed"):
            count_reliability(np.array([row, row]), p, outputs=EXCLUSIVE)
