"""Components by hand, by walking from voxel to voxel, and by geometry's counts."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from monai_unet_app.metrics import components as components_module
from monai_unet_app.metrics.components import components, largest_component, match_components


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


@pytest.mark.parametrize("shape", [(25, 31, 17), (60, 43), (1, 40), (40, 1), (1, 1, 40), (1, 30, 20)])
@pytest.mark.parametrize("density", [0.05, 0.3])
def test_components_are_what_can_be_walked_to(shape, density):
    noise = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=shape), 0.6)
    mask = noise > np.quantile(noise, 1 - density)
    labels, count = components(mask)
    parts = walked(mask)
    assert count == len(parts) > 1
    assert np.array_equal(labels > 0, mask)
    assert all(len({labels[voxel] for voxel in part}) == 1 for part in parts)


@pytest.mark.parametrize("shape", [(25, 31, 17), (60, 43), (1, 40), (40, 1), (1, 1, 40), (1, 30, 20)])
@pytest.mark.parametrize("density", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("voxels", [1, 400, 1 << 20])
def test_the_largest_component_is_the_same_whether_it_is_cut_into_slabs_or_not(shape, density, voxels, monkeypatch):
    monkeypatch.setattr(components_module, "_SLAB", voxels)
    noise = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=shape), 0.6)
    mask = noise > np.quantile(noise, 1 - density)
    assert largest_component(mask) == max(map(len, walked(mask)))
    assert largest_component(np.zeros(shape, bool)) == 0
    assert largest_component(np.ones(shape, bool)) == mask.size


def test_parts_that_touch_across_a_slab_by_a_corner_are_one(monkeypatch):
    monkeypatch.setattr(components_module, "_SLAB", 1)
    stairs = boxes(*(((n, n % 20, n % 12), (1, 1, 1)) for n in range(12)), ((14, 0, 0), (2, 2, 2)))
    assert largest_component(stairs) == 12


def walked(mask):
    """Sets of voxels that touch by faces, edges or corners, found one step at a time."""
    steps = list(itertools.product((-1, 0, 1), repeat=mask.ndim))
    left, parts = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}, []
    while left:
        part, ahead = set(), [left.pop()]
        while ahead:
            voxel = ahead.pop()
            part.add(voxel)
            near = {tuple(np.add(voxel, step).tolist()) for step in steps} & left
            left -= near
            ahead += near
        parts.append(part)
    return parts


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


@pytest.mark.parametrize("shape", [(12, 10, 8), (30, 20), (0, 4, 4)])
def test_piece_by_piece_every_pair_of_parts_is_compared(shape, monkeypatch):
    monkeypatch.setattr("monai_unet_app.metrics.components._PIECE", 17)
    generator = np.random.default_rng(3)
    truth = generator.random(shape) < 0.08
    predicted = truth & (generator.random(shape) < 0.8) | (generator.random(shape) < 0.03)
    parts = [[labels == n + 1 for n in range(count)] for labels, count in map(components, (truth, predicted))]
    ious = [[(a & b).sum() / (a | b).sum() for b in parts[1]] for a in parts[0]]
    matched = np.array(ious).reshape(len(parts[0]), len(parts[1])) > 0.4
    scores = match_components(truth, predicted, least_iou=0.4)
    assert (scores.truth, scores.predicted) == matched.shape
    assert (scores.found, scores.right) == (matched.any(axis=1).sum(), matched.any(axis=0).sum())
    assert scores.iou_sum == pytest.approx(sum(max(row) for row in ious if max(row) > 0.4))
