"""Boxes around masks and labels, against scipy's."""

import numpy as np
import pytest
from scipy import ndimage

from monai_unet_app.metrics import boxes
from monai_unet_app.metrics.boxes import bounding_box, label_boxes


def some_labels(shape, *, seed=0):
    """Values 0 to 7, half of the voxels 0, no voxel of 5."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 8, shape).astype(np.uint8)
    labels[(rng.random(shape) < 0.5) | (labels == 5)] = 0
    return labels


@pytest.mark.parametrize("shape", [(7, 5, 6), (9, 4), (1, 1, 6), (6, 1, 1)])
@pytest.mark.parametrize("slab", [1, 20, 1 << 18])
def test_label_boxes_are_those_of_scipy(monkeypatch, shape, slab):
    monkeypatch.setattr(boxes, "_SLAB", slab)
    for seed in range(5):
        labels = some_labels(shape, seed=seed)
        assert label_boxes(labels, 8) == ndimage.find_objects(labels, max_label=8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_label_boxes_do_not_hang_on_the_order_of_memory_or_the_kind_of_number(dtype):
    labels = some_labels((6, 7, 5)).astype(dtype)
    expected = ndimage.find_objects(labels, max_label=8)
    assert label_boxes(np.asfortranarray(labels), 8) == expected
    assert label_boxes(np.ascontiguousarray(labels.transpose(1, 2, 0)).transpose(2, 0, 1), 8) == expected
    assert label_boxes(np.ascontiguousarray(labels[::-1, :, ::-1])[::-1, :, ::-1], 8) == expected


def test_a_label_that_fills_lines_and_planes_from_end_to_end_keeps_its_box():
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1:3] = 1
    labels[3, 2:4] = 2
    assert label_boxes(labels, 2) == [
        (slice(1, 3), slice(0, 5), slice(0, 6)),
        (slice(3, 4), slice(2, 4), slice(0, 6)),
    ]


def test_there_is_no_box_around_nothing():
    assert label_boxes(np.zeros((3, 4, 5), np.uint8), 2) == [None, None]
    assert label_boxes(np.zeros((0, 4, 5), np.uint8), 1) == label_boxes(np.zeros((3, 4, 0), np.uint8), 1) == [None]
    assert bounding_box(np.zeros((3, 4, 5), bool), margin=[1, 1, 1]) is None


@pytest.mark.parametrize("turned", [False, True])
def test_a_margin_widens_the_box_of_a_mask_and_ends_at_the_images_first_voxel(turned):
    mask = np.zeros((9, 8, 7), bool)
    mask[2, 3:5, 1], mask[4, 3, 5] = True, True
    mask = np.asfortranarray(mask) if turned else mask
    assert bounding_box(mask, margin=[0, 0, 0]) == (slice(2, 5), slice(3, 5), slice(1, 6))
    assert bounding_box(mask, margin=[1, 2, 3]) == (slice(1, 6), slice(1, 7), slice(0, 9))
