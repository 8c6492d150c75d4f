"""panoptica: the same masks, borders and components, other means. Known differences stand in docs/metrics.md."""

import numpy as np
import pytest
from mask_pairs import BLOCK, PAIRS, islands
from panoptica import (
    ConnectedComponentsInstanceApproximator,
    InputType,
    Metric,
    NaiveThresholdMatching,
    Panoptica_Evaluator,
    disable_citation_reminder,
)
from scipy import ndimage
from skimage.morphology import skeletonize

from monai_unet_app.metrics import boundary, overlap
from monai_unet_app.metrics.boundary import normalised_surface_dice, surface_distances
from monai_unet_app.metrics.centreline import centreline_dice
from monai_unet_app.metrics.components import match_components

disable_citation_reminder()
each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def theirs(metric, pair, **more):
    return float(metric(pair.truth, pair.predicted, voxelspacing=pair.spacing_mm, **more))


def instances(truth, predicted, *, least_iou=0.5, strict=True):
    """What panoptica says of the components of two masks."""
    matcher = NaiveThresholdMatching(matching_threshold=least_iou, strict_threshold=strict)
    evaluator = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(),
        instance_matcher=matcher,
        instance_metrics=[Metric.IOU],
        global_metrics=[],
    )
    return evaluator.evaluate(predicted.astype(np.uint8), truth.astype(np.uint8))["ungrouped"]


def about(value):
    return pytest.approx(value, abs=1e-6)


@each_pair
def test_overlap_and_largest_distance_are_the_same(pair):
    assert overlap.dice(pair.truth, pair.predicted) == about(theirs(Metric.DSC, pair))
    assert overlap.iou(pair.truth, pair.predicted) == about(theirs(Metric.IOU, pair))
    distances = surface_distances(pair.truth, pair.predicted, pair.spacing_mm)
    assert boundary.hausdorff_distance(distances, percentile=100) == about(theirs(Metric.HD, pair))


@each_pair
def test_the_other_distances_are_the_same_but_for_how_the_two_directions_are_joined(pair):
    distances = surface_distances(pair.truth, pair.predicted, pair.spacing_mm)
    directed = [distances.truth_to_predicted, distances.predicted_to_truth]
    means = [float(part.mean(dtype=np.float64)) for part in directed]
    within = [float(np.mean(part <= 1.0)) for part in directed]
    assert theirs(Metric.ASSD, pair) == about(np.mean(means))
    assert theirs(Metric.NSD, pair, threshold=1.0) == about(np.mean(within))
    assert theirs(Metric.HD95, pair) == about(float(np.percentile(distances.both, 95)))


@each_pair
def test_centre_lines_are_the_same_where_thinning_leaves_something_of_every_part(pair):
    masks = pair.truth, pair.predicted
    agree = centreline_dice(*masks) == about(theirs(Metric.clDSC, pair))
    assert agree == all(every_part_has_a_line(mask) for mask in masks)


def every_part_has_a_line(mask):
    parts, count = ndimage.label(mask, BLOCK[3])
    return len(np.unique(parts[skeletonize(mask).astype(bool)])) == count


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_components_and_their_quality_are_the_same_if_half_is_not_enough(seed):
    truth, predicted = islands(seed)
    scores, found = match_components(truth, predicted), instances(truth, predicted)
    assert (scores.truth, scores.predicted) == (found.n_ref_instances, found.n_pred_instances)
    assert (scores.found, scores.invented, scores.missed) == (found.tp, found.fp, found.fn)
    assert (scores.f1, scores.panoptic_quality, scores.sensitivity) == about((found.rq, found.pq, found.rec))


# --- where they are known to differ


def test_two_directions_are_joined_by_their_means_and_percentiles_pooled():
    pair = PAIRS["dilated"]
    found = [theirs(Metric.HD95, pair), theirs(Metric.ASSD, pair), theirs(Metric.NSD, pair, threshold=1.0)]
    distances = surface_distances(pair.truth, pair.predicted, pair.spacing_mm)
    ours = [
        boundary.hausdorff_distance(distances),
        boundary.average_surface_distance(distances),
        normalised_surface_dice(distances, tolerance_mm=1.0),
    ]
    assert found == pytest.approx([2.5, 1.0380, 0.5452], abs=1e-4)
    assert ours == pytest.approx([2.6249, 1.0448, 0.5418], abs=1e-4)


def test_an_iou_of_one_half_is_a_match_unless_strict():
    truth, predicted = np.zeros((2, 12, 6, 6), bool)
    truth[:4, :2, :2] = predicted[:2, :2, :2] = True
    assert (instances(truth, predicted, strict=False).tp, instances(truth, predicted).tp) == (1, 0)
    assert match_components(truth, predicted).found == 0
    usual = instances(*islands(1), strict=False)
    assert (usual.tp, usual.pq) == pytest.approx((29, 0.39418), abs=1e-5)
    assert match_components(*islands(1)).panoptic_quality == pytest.approx(0.34264, abs=1e-5)


def test_below_one_half_one_part_finds_one_other_where_ours_finds_all_that_it_holds():
    truth, predicted = np.zeros((2, 14, 6, 6), bool)
    truth[1:5, 1:5, 1:5] = truth[7:11, 1:5, 1:5] = predicted[1:11, 1:5, 1:5] = True
    assert instances(truth, predicted, least_iou=0.1).tp == 1
    assert match_components(truth, predicted, least_iou=0.1).found == 2


def test_pixels_that_touch_by_a_corner_are_two_parts_in_pictures():
    mask = np.zeros((12, 12), bool)
    mask[2:5, 2:5] = mask[5:8, 5:8] = True
    assert instances(mask, mask).n_ref_instances == 2
    assert match_components(mask, mask).truth == 1


def test_an_invented_part_without_a_centre_line_costs_nothing():
    truth = np.zeros((20, 12, 12), bool)
    truth[2:14, 5:8, 5:8] = True
    predicted = truth.copy()
    predicted[16:18, 2:4, 2:4] = True  # thinning leaves nothing of 2 x 2 x 2
    assert Metric.clDSC(truth, predicted) == 1.0
    assert centreline_dice(truth, predicted) == pytest.approx(0.75)


def test_a_distance_that_equals_the_tolerance_is_missed_by_a_rounding():
    truth = np.pad(np.ones((12, 10, 9), bool), ((3, 15), (4, 6), (5, 6)))
    predicted, spacing = np.roll(truth, 3, axis=0), (0.1, 0.1, 0.1)
    assert Metric.NSD(truth, predicted, voxelspacing=spacing, threshold=0.3) == pytest.approx(0.8038, abs=1e-4)
    assert normalised_surface_dice(surface_distances(truth, predicted, spacing), tolerance_mm=0.3) == 1.0


def test_two_empty_masks_have_a_dice_of_nothing_and_no_quality():
    none = np.zeros((8, 7, 6), bool)
    assert Metric.DSC(none, none) == 0.0
    assert np.isnan(instances(none, none).pq)
    assert overlap.dice(none, none) == match_components(none, none).panoptic_quality == 1.0
