"""Where calibration is counted: labels drawn from the probabilities are the judge of every population."""

import numpy as np
import pytest
from scipy import ndimage

from monai_unet_app.metrics.case_scores import CaseArrays
from monai_unet_app.metrics.outputs import EXCLUSIVE, OVERLAPPING
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.populations import Populations, box_around
from monai_unet_app.metrics.reliability import ReliabilityCounts, count_reliability, expected_calibration_error
from monai_unet_app.metrics.summary import Evaluation

SPACING = (0.7, 1.1, 2.5)
SPACE = EvaluationPlan(("Head", "Tail"), box_margin=3.0)
PLANE = EvaluationPlan(("Vessel",), outputs=OVERLAPPING, planar=True, box_margin=6.0)


def lopsided_softmax(shape=(64, 52, 24)):
    """A head and a tail, both slanted, off the middle and with soft edges; float32 (3, I, J, K)."""
    i, j, k = (n * step for n, step in zip(np.indices(shape), SPACING, strict=True))
    head = 9 - np.sqrt((i - 17) ** 2 + (0.8 * (j - 20) + 0.3 * (k - 20)) ** 2 + (k - 24) ** 2)
    tail = 6 - np.sqrt((0.6 * (i - 30) + 0.2 * j) ** 2 + (j - 35) ** 2 + (0.7 * (k - 32)) ** 2)
    wobble = 8 * ndimage.gaussian_filter(np.random.default_rng(2).normal(size=shape), (3, 2, 1))
    power = np.exp(0.8 * np.stack([np.zeros(shape), head + wobble, tail - wobble]))
    return (power / power.sum(axis=0)).astype(np.float32)


def lopsided_sigmoid(shape=(300, 230)):
    """A bent vessel of uneven width with soft edges; float32 (1, I, J)."""
    i, j = np.indices(shape)
    away = np.abs(j - 70 - 40 * np.sin(i / 45)) - 4 - i / 50
    return (1 / (1 + np.exp(0.5 * np.clip(away, -20, 40)))).astype(np.float32)[None]


def drawn_from(probabilities, seed, exclusive):
    """Labels drawn voxel by voxel from the probabilities: calibrated by construction."""
    rng = np.random.default_rng(seed)
    if not exclusive:
        return rng.random(probabilities.shape) < probabilities
    level = rng.random(probabilities.shape[1:])
    return np.minimum((level > np.cumsum(probabilities.astype(np.float64), axis=0)).sum(axis=0), len(probabilities) - 1)


@pytest.mark.parametrize(
    ("plan", "probabilities"), [(SPACE, lopsided_softmax()), (PLANE, lopsided_sigmoid())], ids=["space", "plane"]
)
def test_every_population_is_calibrated_where_labels_are_drawn_from_the_probabilities(plan, probabilities):
    predicted = probabilities.argmax(axis=0) if plan.outputs.one_map else probabilities >= 0.5
    spacing = SPACING if plan is SPACE else (1.0, 1.0)
    evaluation, outcomes = Evaluation(plan), ReliabilityCounts.empty(plan.channels)
    for seed in range(8):
        truth = drawn_from(probabilities, seed, plan.outputs.one_map)
        evaluation.add(CaseArrays(f"{seed}", "s", truth, predicted, probabilities, spacing, 0.001))
        by_outcome = ((truth > 0) | (predicted > 0)).reshape(-1, *probabilities.shape[1:]).any(axis=0)
        outcomes += count_reliability(truth, probabilities, outputs=plan.outputs, within=by_outcome)
    assert tuple(evaluation.counts) == plan.every_population
    pooled = {**evaluation.counts, "by outcome": outcomes}
    error = {name: expected_calibration_error(counts) for name, counts in pooled.items()}
    sizes = [counts.decisions / pooled["whole"].decisions for counts in pooled.values()]
    assert len(set(sizes)) == len(sizes)
    assert min(sizes) > 0.02
    assert error.pop("by outcome") > 0.1
    assert max(error.values()) < 0.01, error


def test_the_populations_of_a_plan_are_named_by_their_lengths_and_units():
    assert EvaluationPlan(("A",)).every_population == ("whole", "band_2mm", "likely_0.01", "box_10mm")
    planar = EvaluationPlan(("A",), planar=True, band_width=3, likely_above=1e-4, box_margin=2.5)
    assert planar.every_population == ("whole", "band_3px", "likely_0.0001", "box_2.5px")
    assert planar.populations == ("whole", "band_3px")


@pytest.mark.parametrize(
    ("margin", "first", "last"),
    [
        (0.0, (4, 3, 2), (6, 4, 2)),
        (2.5, (1, 1, 1), (9, 6, 3)),
        (2.1, (1, 2, 2), (9, 5, 2)),
        (99.0, (0, 0, 0), (11, 9, 5)),
    ],
)
def test_the_box_reaches_its_margin_in_millimetres_beyond_the_foreground_along_each_axis(margin, first, last):
    foreground = np.zeros((12, 10, 6), bool)
    foreground[4, 3, 2] = foreground[6, 4, 2] = True
    expected = np.zeros_like(foreground)
    expected[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = True
    assert np.array_equal(box_around(foreground, SPACING, margin), expected)


def test_around_nothing_there_is_no_box():
    assert not box_around(np.zeros((4, 5), bool), (1, 1), 3.0).any()


def test_foreground_is_likely_where_the_background_leaves_enough_or_one_label_has_enough():
    softmax = np.array([[0.995, 0.98, 0.2], [0.003, 0.008, 0.5], [0.002, 0.012, 0.3]])
    assert EXCLUSIVE.likely(softmax, 0.01).tolist() == [False, True, True]
    assert OVERLAPPING.likely(softmax[1:], 0.01).tolist() == [False, True, True]
    assert OVERLAPPING.likely(softmax[1:], 0.3).tolist() == [False, False, True]


def test_before_and_after_calibration_are_counted_in_the_same_voxels():
    after, before = lopsided_softmax((30, 26, 12)), lopsided_softmax((30, 26, 12)) ** 2
    before /= before.sum(axis=0)
    truth = drawn_from(after, 0, True)
    evaluation = Evaluation(SPACE)
    evaluation.add(CaseArrays("a", "s", truth, after.argmax(axis=0), after, SPACING, 0.001, before))
    for name, counts in evaluation.counts.items():
        assert counts.decisions == evaluation.counts_before[name].decisions > 0
    assert expected_calibration_error(evaluation.counts_before["likely_0.01"]) > 0.01


def test_no_population_reaches_beyond_the_valid_voxels():
    p = lopsided_softmax((30, 26, 12))
    valid = np.random.default_rng(0).random(p.shape[1:]) > 0.4
    slab = (slice(4, 21), slice(None), slice(None))
    for mask in Populations(SPACE, (p.argmax(axis=0) > 0) & valid, SPACING, valid).within(slab, p[:, 4:21]).values():
        assert mask.any()
        assert not (mask & ~valid[slab]).any()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"likely_above": 1.0}, "likely_above is 1.0"),
        ({"likely_above": float("nan")}, "likely_above is nan"),
        ({"box_margin": -1.0}, "box_margin is -1.0"),
        ({"tolerances": (1.0, float("inf"))}, "tolerances"),
        ({"tolerances": (1.0, 1.0)}, "each once"),
    ],
)
def test_a_plan_of_lengths_that_mean_nothing_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        EvaluationPlan(("A",), **settings)
