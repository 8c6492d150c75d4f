"""DeepMind's surface-distance: the same overlap, other surfaces. Known differences stand in docs/metrics.md."""

import numpy as np
import pytest
import surface_distance as peer
import torch
from mask_pairs import PAIRS
from monai.metrics import compute_surface_dice

from monai_unet_app.metrics import boundary, overlap
from monai_unet_app.metrics.boundary import normalised_surface_dice, surface_distances

each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
NONE = np.zeros((12, 11, 10), bool)
SOME = np.pad(np.ones((4, 5, 3), bool), ((2, 6), (3, 3), (4, 3)))


def theirs(truth, predicted, spacing):
    return peer.compute_surface_distances(truth, predicted, spacing)


@each_pair
def test_dice_is_the_same(pair):
    assert overlap.dice(pair.truth, pair.predicted) == pytest.approx(
        peer.compute_dice_coefficient(pair.truth, pair.predicted), abs=1e-6
    )


@pytest.mark.parametrize(("axis", "steps"), [(0, 3), (1, 2), (2, 1)])
def test_a_box_that_moved_along_an_axis_is_as_far_away_for_both(axis, steps):
    spacing = (0.8, 1.1, 2.5)
    predicted = np.roll(SOME, steps, axis)
    largest = peer.compute_robust_hausdorff(theirs(SOME, predicted, spacing), 100)
    ours = boundary.hausdorff_distance(surface_distances(SOME, predicted, spacing), percentile=100)
    assert ours == pytest.approx(largest, abs=1e-6) == pytest.approx(steps * spacing[axis])


# --- where they are known to differ


@each_pair
def test_their_surface_dice_is_monais_with_subvoxels(pair):
    masks = [torch.from_numpy(mask)[None, None] for mask in (pair.predicted, pair.truth)]
    how = {"class_thresholds": [1.0], "include_background": True, "spacing": pair.spacing_mm}
    found = peer.compute_surface_dice_at_tolerance(theirs(pair.truth, pair.predicted, pair.spacing_mm), 1.0)
    assert found == pytest.approx(float(compute_surface_dice(*masks, use_subvoxels=True, **how)), abs=1e-5)
    ours = normalised_surface_dice(surface_distances(pair.truth, pair.predicted, pair.spacing_mm), tolerance_mm=1.0)
    assert ours < found


def test_a_surface_of_weighed_corners_is_nearer_than_one_of_border_voxels():
    pair = PAIRS["dilated"]
    found = theirs(pair.truth, pair.predicted, pair.spacing_mm)
    ours = surface_distances(pair.truth, pair.predicted, pair.spacing_mm)
    assert peer.compute_surface_dice_at_tolerance(found, 1.0) == pytest.approx(0.7007, abs=1e-4)
    assert normalised_surface_dice(ours, tolerance_mm=1.0) == pytest.approx(0.5418, abs=1e-4)
    assert peer.compute_robust_hausdorff(found, 95) == pytest.approx(2.2)
    assert boundary.hausdorff_distance(ours) == pytest.approx(2.6249, abs=1e-4)
    assert peer.compute_average_surface_distance(found) == pytest.approx((0.5761, 0.7266), abs=1e-4)
    assert boundary.average_surface_distance(ours) == pytest.approx(1.0448, abs=1e-4)


def test_a_distance_that_equals_the_tolerance_is_missed_by_a_rounding():
    truth = np.pad(np.ones((12, 10, 9), bool), ((3, 15), (4, 6), (5, 6)))
    predicted, spacing = np.roll(truth, 3, axis=0), (0.1, 0.1, 0.1)
    found = peer.compute_surface_dice_at_tolerance(theirs(truth, predicted, spacing), 0.3)
    assert found == pytest.approx(0.8048, abs=1e-4)
    assert normalised_surface_dice(surface_distances(truth, predicted, spacing), tolerance_mm=0.3) == 1.0


@pytest.mark.parametrize(("truth", "predicted"), [(SOME, NONE), (NONE, SOME)], ids=["missed", "invented"])
def test_one_empty_mask_needs_a_numpy_before_2(truth, predicted, monkeypatch):
    monkeypatch.delattr(np, "Inf", raising=False)  # torchmetrics puts it back
    with pytest.raises(AttributeError, match="Inf"):
        theirs(truth, predicted, (1, 1, 1))
    assert boundary.hausdorff_distance(surface_distances(truth, predicted, (1, 1, 1))) == np.inf


def test_two_empty_masks_have_no_dice():
    with pytest.raises(AttributeError, match="NaN"):
        peer.compute_dice_coefficient(NONE, NONE)
    assert overlap.dice(NONE, NONE) == 1.0
