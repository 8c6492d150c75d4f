"""torchmetrics: the same overlap and bins, of single precision. Known differences stand in docs/metrics.md."""

import numpy as np
import pytest
import torch
from mask_pairs import PAIRS, noise_pair, soft_labels
from torchmetrics.classification import BinaryCalibrationError
from torchmetrics.functional.classification import (
    binary_calibration_error,
    binary_precision,
    binary_recall,
    multiclass_calibration_error,
)
from torchmetrics.functional.segmentation import dice_score, hausdorff_distance, mean_iou

from monai_unet_app.metrics import boundary, overlap, reliability
from monai_unet_app.metrics.boundary import surface_distances
from monai_unet_app.metrics.outputs import EXCLUSIVE, OVERLAPPING
from monai_unet_app.metrics.reliability import count_reliability, expected_calibration_error

each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def tensors(truth, predicted):
    return [torch.from_numpy(mask)[None, None] for mask in (predicted, truth)]


@each_pair
def test_overlap_is_the_same(pair):
    masks = pair.truth, pair.predicted
    counted = [mask.int() for mask in tensors(*masks)]
    assert overlap.dice(*masks) == pytest.approx(float(dice_score(*counted, num_classes=1, average=None)), abs=1e-6)
    assert overlap.iou(*masks) == pytest.approx(float(mean_iou(*counted, num_classes=1)), abs=1e-6)
    assert overlap.precision(*masks) == pytest.approx(float(binary_precision(*counted)), abs=1e-6)
    assert overlap.recall(*masks) == pytest.approx(float(binary_recall(*counted)), abs=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.8, 1.5)])
def test_the_largest_distance_in_a_square_picture_is_the_same(spacing):
    masks = noise_pair(8, (40, 40))
    found = hausdorff_distance(*tensors(*masks), num_classes=1, include_background=True, spacing=list(spacing))
    ours = boundary.hausdorff_distance(surface_distances(*masks, spacing), percentile=100)
    assert ours == pytest.approx(float(found), abs=1e-6)


@pytest.mark.parametrize("bins", [10, 15])
def test_calibration_errors_of_some_thousand_decisions_are_the_same(bins):
    labels, p = (part[..., 12:14, 18:20] for part in soft_labels())
    labels, p = labels.ravel().astype(np.int64), p.reshape(3, -1)
    top = count_reliability(labels, p, outputs=EXCLUSIVE, bins=bins)
    given = torch.from_numpy(np.ascontiguousarray(p.T)), torch.from_numpy(labels)
    for norm, figure in (("l1", expected_calibration_error), ("max", reliability.maximum_calibration_error)):
        found = multiclass_calibration_error(*given, num_classes=3, n_bins=bins, norm=norm)
        assert figure(top) == pytest.approx(float(found), abs=1e-6)
        one = binary_calibration_error(torch.from_numpy(p[1]), torch.from_numpy(labels == 1).long(), bins, norm)
        assert figure(top, 2) == pytest.approx(float(one), abs=1e-6)
        assert found > 1e-3


# --- where they are known to differ


def test_the_error_of_a_binary_task_is_that_of_the_class_not_of_the_answer():
    labels, p = soft_labels()
    counts = count_reliability((labels == 1)[None], p[1:2], outputs=OVERLAPPING)
    found = binary_calibration_error(torch.from_numpy(p[1].ravel()), torch.from_numpy(labels.ravel() == 1).long(), 15)
    assert float(found) == pytest.approx(0.00589, abs=1e-5)
    assert expected_calibration_error(counts, 1) == pytest.approx(0.00589, abs=1e-5)  # the class against the rest
    assert expected_calibration_error(counts) == pytest.approx(0.00513, abs=1e-5)  # the headline: max(p, 1 - p)


def test_single_precision_shows_in_the_sixth_digit_after_60_thousand_voxels():
    labels, p = soft_labels()
    given = torch.from_numpy(p.reshape(3, -1).T.copy()), torch.from_numpy(labels.ravel()).long()
    found = float(multiclass_calibration_error(*given, num_classes=3, n_bins=15))
    ours = expected_calibration_error(count_reliability(labels, p, outputs=EXCLUSIVE))
    assert 1e-6 < abs(found - ours) < 1e-5


def test_a_confidence_of_one_has_a_bin_of_its_own():
    p = np.array([[1.0, 1.0, 1.0, 0.95, 0.95, 0.95]], np.float32)
    truth = np.array([[True, True, False, True, True, True]])
    given = torch.from_numpy(p[0]), torch.from_numpy(truth[0]).long()
    found = [float(binary_calibration_error(*given, n_bins=10, norm=norm)) for norm in ("l1", "max")]
    assert found == pytest.approx([0.19167, 0.33333], abs=1e-5)
    counts = count_reliability(truth, p, outputs=OVERLAPPING, bins=10)
    assert expected_calibration_error(counts, 1) == pytest.approx(0.14167, abs=1e-5)
    assert reliability.maximum_calibration_error(counts, 1) == pytest.approx(0.14167, abs=1e-5)


def test_every_decision_is_kept():
    metric = BinaryCalibrationError(n_bins=15)
    for _ in range(3):
        metric.update(torch.full((1000,), 0.7), torch.ones(1000, dtype=torch.long))
    kept = sum(part.nbytes for part in (*metric.confidences, *metric.accuracies))
    assert kept == 3 * 1000 * 12  # a float32 and an int64 each
    one, many = (
        count_reliability(np.ones((1, n), bool), np.full((1, n), 0.7), outputs=OVERLAPPING) for n in (10, 10000)
    )
    assert one.narrow_count.nbytes == many.narrow_count.nbytes


def test_the_largest_distance_fails_where_a_picture_is_no_square():
    tall, wide = noise_pair(8, (40, 30)), noise_pair(8, (30, 40))
    how = {"num_classes": 1, "include_background": True}
    with pytest.raises(IndexError, match="out of bounds"):
        hausdorff_distance(*tensors(*tall), **how)
    assert float(hausdorff_distance(*tensors(*wide), **how)) == pytest.approx(6.0828, abs=1e-4)
    ours = boundary.hausdorff_distance(surface_distances(*wide, (1, 1)), percentile=100)
    assert ours == pytest.approx(np.sqrt(20), abs=1e-6)


def test_distances_in_volumes_are_refused():
    pair = PAIRS["moved"]
    with pytest.raises(ValueError, match="rank 2"):
        hausdorff_distance(*tensors(pair.truth, pair.predicted), num_classes=1, include_background=True)


def test_two_empty_masks_have_no_overlap():
    none = torch.zeros((1, 1, 6, 6, 6), dtype=torch.int32)
    assert dice_score(none, none, num_classes=1, average=None).isnan().all()
    assert mean_iou(none, none, num_classes=1).isnan().all()
    assert overlap.dice(none.numpy() > 0, none.numpy() > 0) == 1.0
