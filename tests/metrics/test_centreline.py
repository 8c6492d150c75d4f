"""Centre-lines of tubes, whose course geometry knows."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from monai_unet_app.metrics.centreline import centreline, centreline_dice


def tube(course, shape, radius):
    """Voxels within `radius` of the points of a course."""
    line = np.zeros(shape, bool)
    line[tuple(np.round(course).astype(int))] = True
    return ndimage.distance_transform_edt(~line) <= radius


def straight(start, end, rows=12, columns=14, at=(6, 7)):
    """A tube along the first axis in space."""
    i = np.arange(start, end)
    return tube((i, np.full_like(i, at[0]), np.full_like(i, at[1])), (60, rows, columns), 2)


def test_a_vessel_too_wide_costs_nothing_and_the_same_vessel_moved_by_its_width_costs_all():
    i = np.linspace(5, 94, 400)
    course = (i, 40 + 20 * np.sin(i / 15))
    thin, wide = tube(course, (100, 90), 2), tube(course, (100, 90), 5)
    assert 2 * (thin & wide).sum() / (thin.sum() + wide.sum()) < 0.65
    assert centreline_dice(thin, wide) > 0.97
    assert centreline_dice(thin, np.roll(thin, 12, axis=1)) < 0.1


def test_half_of_a_straight_vessel_is_half_found_and_nothing_of_it_is_invented():
    whole, half = straight(4, 56), straight(4, 30)
    # Thinning takes up to the radius from either end: 48 to 52 voxels, and 22 to 26 in the other.
    sensitivity = np.count_nonzero(centreline(whole) & half) / np.count_nonzero(centreline(whole))
    assert sensitivity == pytest.approx(0.5, abs=0.06)
    assert centreline_dice(whole, half) == pytest.approx(2 * sensitivity / (1 + sensitivity))
    assert centreline_dice(half, whole) == centreline_dice(whole, half)


def test_an_invented_branch_counts_by_its_length_not_by_its_volume():
    truth = straight(4, 56, columns=30)
    branched = truth | tube((np.arange(4, 56), np.full(52, 6), np.full(52, 22)), truth.shape, 1)
    assert centreline_dice(truth, branched) == pytest.approx(2 / 3, abs=0.03)  # half of what is predicted is true


def test_the_centre_line_of_a_tube_is_its_axis():
    line = centreline(straight(4, 56))
    assert set(map(tuple, np.argwhere(line)[:, 1:])) == {(6, 7)}
    assert 46 <= line.sum() <= 56


@pytest.mark.parametrize("shape", [(3, 4), (2, 2, 3)])
def test_every_part_keeps_a_centre_line_whatever_its_form(shape):
    for bits in itertools.islice(itertools.product((False, True), repeat=int(np.prod(shape))), 0, None, 3):
        mask = np.array(bits).reshape(shape)
        parts, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
        line = centreline(mask)
        assert not (line & ~mask).any()
        assert len(np.unique(parts[line])) == count


def test_where_a_line_lies_in_the_picture_does_not_matter():
    mask = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(30, 26, 20)), 1.5) > 0.03
    moved = np.pad(mask, ((3, 0), (1, 2), (0, 4)))
    assert np.array_equal(centreline(moved)[3:, 1:-2, :-4], centreline(mask))


def test_empty_masks_follow_the_stated_policy():
    none, some, other = np.zeros((60, 12, 14), bool), straight(4, 20), straight(40, 50)
    assert centreline_dice(none, none) == 1.0
    assert centreline_dice(some, none) == centreline_dice(none, some) == 0.0
    assert centreline_dice(some, other) == 0.0


def test_what_is_no_pair_of_masks_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        centreline_dice(np.ones((4, 4), np.uint8), np.ones((4, 4), bool))
    with pytest.raises(ValueError, match="4 dimensions"):
        centreline_dice(np.ones((4, 4, 4, 4), bool), np.ones((4, 4, 4, 4), bool))
