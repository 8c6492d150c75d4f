"""Agreement with MONAI, scipy and scikit-image on real masks, and where they are known to differ; see docs/metrics.md."""

import numpy as np
import pytest
import torch
from mask_pairs import PAIRS, REAL, border, islands, soft_labels
from monai.metrics import (
    CalibrationErrorMetric,
    DiceMetric,
    HausdorffDistanceMetric,
    SurfaceDiceMetric,
    SurfaceDistanceMetric,
    compute_average_surface_distance,
    compute_confusion_matrix_metric,
    compute_hausdorff_distance,
    compute_surface_dice,
    get_confusion_matrix,
)
from monai.metrics.panoptic_quality import compute_panoptic_quality
from scipy import ndimage
from scipy.spatial import KDTree
from scipy.spatial.distance import directed_hausdorff
from skimage.measure import label
from skimage.metrics import hausdorff_distance as distance_of_voxels

from monai_unet_app.metrics import boundary, overlap
from monai_unet_app.metrics.boundary import SurfacePair, normalised_surface_dice, surface_distances
from monai_unet_app.metrics.case_scores import CaseArrays
from monai_unet_app.metrics.components import components, match_components
from monai_unet_app.metrics.outputs import EXCLUSIVE, OVERLAPPING
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.reliability import count_reliability, expected_calibration_error
from monai_unet_app.metrics.summary import Evaluation

each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
each_real_pair = pytest.mark.parametrize("pair", REAL.values(), ids=REAL)


def tensors(pair):
    """(predicted, truth), each (1, 1, I, J, K): the order in which MONAI takes them."""
    return [torch.from_numpy(mask)[None, None] for mask in (pair.predicted, pair.truth)]


def about(value):
    return pytest.approx(float(value), abs=1e-6)


@each_real_pair
def test_distances_of_hippocampi_are_those_of_monai(pair):
    found = surface_distances(pair.truth, pair.predicted, pair.spacing_mm)
    how = {"include_background": True, "spacing": pair.spacing_mm}
    hd, hd95 = (compute_hausdorff_distance(*tensors(pair), percentile=part, **how) for part in (100, 95))
    assert boundary.hausdorff_distance(found, percentile=100) == about(hd)
    assert boundary.hausdorff_distance(found) == about(hd95)
    mean = compute_average_surface_distance(*tensors(pair), symmetric=True, **how)
    assert boundary.average_surface_distance(found) == about(mean)
    part = compute_surface_dice(*tensors(pair), class_thresholds=[1.0], **how)
    assert normalised_surface_dice(found, tolerance_mm=1.0) == about(part)
    assert 0 < part < 1


@each_pair
def test_distances_are_those_from_border_voxel_to_nearest_border_voxel_that_a_search_tree_finds(pair):
    points = [np.argwhere(border(mask)) * pair.spacing_mm for mask in (pair.truth, pair.predicted)]
    there, back = (KDTree(points[1 - n]).query(points[n])[0] for n in (0, 1))
    found = surface_distances(pair.truth, pair.predicted, pair.spacing_mm)
    assert boundary.hausdorff_distance(found) == about(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert boundary.average_surface_distance(found) == about(np.concatenate([there, back]).mean())
    largest = max(directed_hausdorff(*points)[0], directed_hausdorff(*reversed(points))[0])
    assert boundary.hausdorff_distance(found, percentile=100) == about(largest)


@each_pair
@pytest.mark.parametrize("width_mm", [1.0, 1.3])
def test_boundary_iou_is_that_of_the_bands_that_scipys_distances_cut_out(pair, width_mm):
    bands = [
        mask & (ndimage.distance_transform_edt(~border(mask), sampling=pair.spacing_mm) <= width_mm + 1e-9)
        for mask in (pair.truth, pair.predicted)
    ]
    expected = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
    assert SurfacePair(pair.truth, pair.predicted, pair.spacing_mm).boundary_iou(width_mm) == about(expected)
    assert bands[0].sum() < pair.truth.sum()


@each_pair
def test_precision_and_recall_are_those_of_monai(pair):
    matrix = get_confusion_matrix(*(mask.float() for mask in tensors(pair)))
    assert overlap.precision(pair.truth, pair.predicted) == about(compute_confusion_matrix_metric("precision", matrix))
    assert overlap.recall(pair.truth, pair.predicted) == about(compute_confusion_matrix_metric("recall", matrix))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_components_are_those_of_scikit_image_and_their_panoptic_quality_that_of_monai(seed):
    masks = islands(seed)
    scores = match_components(*masks)
    assert (scores.truth, scores.predicted) == tuple(label(mask, connectivity=3).max() for mask in masks)
    numbered = [torch.from_numpy(components(mask)[0].astype(np.int32)) for mask in reversed(masks)]
    assert scores.panoptic_quality == about(compute_panoptic_quality(*numbered, metric_name="pq"))
    assert scores.f1 == about(compute_panoptic_quality(*numbered, metric_name="rq"))
    assert 0 < scores.found < scores.truth


def test_voxels_that_do_not_count_are_left_out_as_by_monais_ignore_index():
    pair = REAL["dilated"]
    valid = np.ones_like(pair.truth)
    valid[:, 24:] = False
    # MONAI's sentinel: voxels of no class in a one-hot truth
    predicted, truth = (torch.from_numpy(np.stack([~m, m])[None]).float() for m in (pair.predicted, pair.truth))
    truth = truth * torch.from_numpy(valid)
    asked = {
        "dice": DiceMetric(include_background=False, ignore_index=-1)(predicted, truth),
        "hd95": HausdorffDistanceMetric(percentile=95, ignore_index=-1)(predicted, truth, spacing=pair.spacing_mm),
        "assd": SurfaceDistanceMetric(symmetric=True, ignore_index=-1)(predicted, truth, spacing=pair.spacing_mm),
        "surface_dice": SurfaceDiceMetric([1.0], ignore_index=-1)(predicted, truth, spacing=pair.spacing_mm),
    }
    labels = [mask.astype(np.uint8) for mask in (pair.truth, pair.predicted)]
    one_hot = np.stack([~pair.predicted, pair.predicted]).astype(np.float32)
    case = CaseArrays("a", "s", *labels, one_hot, pair.spacing_mm, 0.0022, valid=valid)
    found = Evaluation(EvaluationPlan(("Hippocampus",))).add(case).classes[0]
    for name, value in asked.items():
        assert getattr(found, name) == about(value), name


# --- where they are known to differ


def test_monai_finds_no_true_positive_in_boolean_masks():
    pair = PAIRS["moved"]
    hits = {
        kind: float(get_confusion_matrix(*(mask.to(kind) for mask in tensors(pair)))[0, 0, 0])
        for kind in (torch.bool, torch.uint8)
    }
    assert hits == {torch.bool: 0.0, torch.uint8: (pair.truth & pair.predicted).sum()}


def test_monai_with_subvoxels_weighs_surfaces_by_their_area_and_measures_from_the_corners_of_voxels():
    pair = REAL["dilated"]
    how = {"class_thresholds": [1.0], "include_background": True, "spacing": pair.spacing_mm}
    ours = normalised_surface_dice(surface_distances(pair.truth, pair.predicted, pair.spacing_mm), tolerance_mm=1.0)
    assert float(compute_surface_dice(*tensors(pair), use_subvoxels=True, **how)) == pytest.approx(0.7007, abs=1e-4)
    assert ours == pytest.approx(0.5418, abs=1e-4)


def test_scikit_image_measures_from_any_voxel_of_a_mask_and_knows_no_spacing():
    pair = REAL["dilated"]
    ours = boundary.hausdorff_distance(surface_distances(pair.truth, pair.predicted, (1, 1, 1)), percentile=100)
    assert distance_of_voxels(border(pair.truth), border(pair.predicted)) == about(ours) == about(np.sqrt(5))
    assert distance_of_voxels(pair.truth, pair.predicted) == 2.0


@pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class 0 is all 0")  # which is what is asked here
@pytest.mark.parametrize("absent", ["both", "predicted", "truth"])
def test_monai_leaves_out_what_is_empty_and_we_agree_on_a_number(absent):
    some, none = PAIRS["moved"].truth, np.zeros_like(PAIRS["moved"].truth)
    truth = none if absent in ("both", "truth") else some
    predicted = none if absent in ("both", "predicted") else some
    dice = DiceMetric()(*(torch.from_numpy(mask)[None, None].float() for mask in (predicted, truth)))
    how = {"include_background": True}
    masks = [torch.from_numpy(mask)[None, None] for mask in (predicted, truth)]
    hd, hd95 = (float(compute_hausdorff_distance(*masks, percentile=part, **how)) for part in (None, 95))
    part = float(compute_surface_dice(*masks, class_thresholds=[1.0], **how))
    found = surface_distances(truth, predicted, (1, 1, 1))
    ours = boundary.hausdorff_distance(found), normalised_surface_dice(found, tolerance_mm=1.0)
    if absent == "both":
        assert np.isnan([float(dice), hd, hd95, part]).all()
        assert (overlap.dice(truth, predicted), *ours) == (1.0, 0.0, 1.0)
    else:
        assert (hd, part) == ours == (np.inf, 0.0)
        assert np.isnan(hd95)
        assert np.isnan(float(dice)) == (absent == "truth")
        assert overlap.dice(truth, predicted) == 0.0


def test_monai_calls_two_empty_images_a_panoptic_quality_of_nothing():
    none = torch.zeros((6, 6, 6), dtype=torch.int32)
    assert float(compute_panoptic_quality(none, none)) == 0.0
    assert match_components(none.numpy() > 0, none.numpy() > 0).panoptic_quality == 1.0


def test_monai_takes_calibration_image_by_image_and_we_pool():
    metric, total, alone = CalibrationErrorMetric(num_bins=15, metric_reduction="none"), None, []
    for case in ("003", "035"):
        labels, p = soft_labels(case)
        truth = np.stack([labels == value for value in range(3)])
        metric(torch.from_numpy(p[None]), torch.from_numpy(truth[None]).float())
        counts = count_reliability(labels, p, outputs=EXCLUSIVE)
        alone.append([expected_calibration_error(counts, row) for row in (1, 2, 3)])
        total = counts if total is None else total + counts
    np.testing.assert_allclose(metric.aggregate().numpy(), alone, atol=1e-5)  # float32 sums of 60 thousand voxels
    pooled = [expected_calibration_error(total, row) for row in (1, 2, 3)]
    assert np.abs(pooled - np.mean(alone, axis=0)).max() > 1e-5


def test_monai_counts_in_float32_which_ends_at_16_million_voxels_a_bin():
    p, truth = torch.full((1, 1, 2**24), 0.9375), torch.zeros((1, 1, 2**24))
    truth[..., : 7 * 2**21] = 1  # 0.875 are true: an error of 0.0625
    assert float(CalibrationErrorMetric(num_bins=15)(p, truth)) == pytest.approx(0.1208, abs=1e-3)
    ours = count_reliability(truth[0, :, ::16].numpy() > 0, p[0, :, ::16].numpy(), outputs=OVERLAPPING)
    for _ in range(4):
        ours += ours
    assert ours.decisions == 2**24
    assert expected_calibration_error(ours) == 0.0625


def test_a_distance_that_equals_the_tolerance_is_within_it_for_us_and_for_monai():
    truth = np.zeros((30, 20, 20), bool)
    truth[3:15, 4:14, 5:14] = True
    predicted, spacing = np.roll(truth, 3, axis=0), (0.1, 0.1, 0.1)
    assert 3 * 0.1 > 0.3  # as binary fractions
    how = {"class_thresholds": [0.3], "include_background": True, "spacing": spacing}
    theirs = compute_surface_dice(*(torch.from_numpy(mask)[None, None] for mask in (predicted, truth)), **how)
    assert normalised_surface_dice(surface_distances(truth, predicted, spacing), tolerance_mm=0.3) == float(theirs) == 1
