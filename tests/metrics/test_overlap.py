"""Overlap scores against counting by hand and against MONAI."""

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, MeanIoU

from monai_unet_app.metrics import overlap


def box(shape, start, size):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


TRUTH = box((20, 18, 16), (3, 4, 5), (8, 6, 4))
SHIFTED = box((20, 18, 16), (5, 4, 5), (8, 6, 4))  # two voxels along I: 6 of 8 layers in common
EMPTY = np.zeros((20, 18, 16), dtype=bool)


def test_a_box_shifted_by_a_quarter_of_its_length_has_the_overlap_that_counting_gives():
    assert overlap.dice(TRUTH, SHIFTED) == pytest.approx(6 / 8)
    assert overlap.iou(TRUTH, SHIFTED) == pytest.approx(6 / 10)
    assert overlap.precision(TRUTH, SHIFTED) == pytest.approx(6 / 8)
    assert overlap.recall(TRUTH, SHIFTED) == pytest.approx(6 / 8)


def test_precision_and_recall_tell_too_much_from_too_little():
    large = box((20, 18, 16), (3, 4, 5), (8, 6, 8))
    assert (overlap.precision(TRUTH, large), overlap.recall(TRUTH, large)) == (0.5, 1.0)
    assert (overlap.precision(large, TRUTH), overlap.recall(large, TRUTH)) == (1.0, 0.5)


@pytest.mark.parametrize("score", [overlap.dice, overlap.iou, overlap.precision, overlap.recall])
def test_two_empty_masks_agree_and_one_empty_mask_scores_nothing(score):
    assert score(EMPTY, EMPTY) == 1.0
    assert score(TRUTH, EMPTY) == 0.0
    assert score(EMPTY, TRUTH) == 0.0


def test_dice_and_iou_equal_those_of_monai():
    rng = np.random.default_rng(4)
    truth, predicted = rng.random((2, 9, 11, 7)) > 0.6
    tensors = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (predicted, truth)]
    assert overlap.dice(truth, predicted) == pytest.approx(float(DiceMetric()(*tensors)), abs=1e-6)
    assert overlap.iou(truth, predicted) == pytest.approx(float(MeanIoU()(*tensors)), abs=1e-6)


def test_masks_of_another_shape_or_of_label_values_are_refused():
    with pytest.raises(ValueError, match=r"\(20, 18, 16\).*\(20, 18, 15\)"):
        overlap.dice(TRUTH, TRUTH[..., :-1])
    with pytest.raises(ValueError, match="uint8"):
        overlap.dice(TRUTH.astype(np.uint8), TRUTH)
