"""Components by hand, against scipy's labels, and against MONAI's and geometry's counts."""

import numpy as np
import pytest
from scipy import ndimage

from monai_unet_app.metrics.components import components, match_components


def boxes(*places, shape=(30, 20, 12)):
    """A mask of boxes, each (start, size)."""
    mask = np.zeros(shape, bool)
    for start, size in places:
        mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def test_parts_that_touch_by_a_corner_are_one():
    touching = boxes(((0, 0, 0), (2, 2, 2)), ((2, 2, 2), (3, 3, 3)), ((10, 10, 5), (1, 1, 1)))
    assert components(touching)[1] == 2
    assert components(touching[..., 0])[1] == 1


@pytest.mark.parametrize("seed", range(4))
def test_components_are_those_of_scipy(seed):
    mask = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(25, 31, 17)), 1.2) > 0.12
    labels, count = components(mask)
    expected, number = ndimage.label(mask, np.ones((3, 3, 3)))
    assert count == number > 5
    pairs = {(int(a), int(b)) for a, b in zip(labels.ravel(), expected.ravel(), strict=True)}
    assert len(pairs) == count + 1


def test_found_missed_and_invented_parts_are_counted():
    truth = boxes(((1, 1, 1), (4, 4, 4)), ((10, 1, 1), (4, 4, 4)), ((20, 1, 1), (4, 4, 4)))
    predicted = boxes(
        ((1, 1, 1), (4, 4, 4)), ((11, 1, 1), (4, 4, 4)), ((20, 10, 1), (2, 2, 2)), ((28, 1, 8), (1, 1, 1))
    )
    scores = match_components(truth, predicted)
    assert (scores.truth, scores.predicted) == (3, 4)
    assert (scores.found, scores.missed, scores.right, scores.invented) == (2, 1, 2, 2)
    assert scores.sensitivity == pytest.approx(2 / 3)
    assert scores.f1 == pytest.approx(2 * 2 / 7)
    iou = 48 / 80  # shifted by one of four voxels
    assert scores.panoptic_quality == pytest.approx((1 + iou) / 2 * 4 / 7)


def test_one_large_part_does_not_match_two_small_ones_unless_a_touch_is_enough():
    truth = boxes(((1, 1, 1), (4, 4, 4)), ((7, 1, 1), (4, 4, 4)))
    predicted = boxes(((1, 1, 1), (10, 4, 4)))
    assert match_components(truth, predicted).found == 0
    loose = match_components(truth, predicted, least_iou=0)
    assert (loose.found, loose.right, loose.missed, loose.invented) == (2, 1, 0, 0)


def test_empty_masks_follow_the_stated_policy():
    none, some = np.zeros((5, 5, 5), bool), boxes(((0, 0, 0), (2, 2, 2)), shape=(5, 5, 5))
    both = match_components(none, none)
    assert (both.sensitivity, both.f1, both.panoptic_quality) == (1.0, 1.0, 1.0)
    missed, invented = match_components(some, none), match_components(none, some)
    assert (missed.sensitivity, missed.f1, missed.panoptic_quality, missed.missed) == (0.0, 0.0, 0.0, 1)
    assert (invented.sensitivity, invented.f1, invented.panoptic_quality, invented.invented) == (1.0, 0.0, 0.0, 1)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_that_is_none_is_refused(threshold):
    mask = np.zeros((3, 3), bool)
    with pytest.raises(ValueError, match="least_iou"):
        match_components(mask, mask, least_iou=threshold)
