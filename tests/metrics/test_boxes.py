"""Boxes around masks."""

import numpy as np
import pytest

from monai_unet_app.metrics.boxes import bounding_box, boxes_of


def test_there_is_no_box_around_nothing():
    assert bounding_box(np.zeros((3, 4, 5), bool), margin=[1, 1, 1]) is None


@pytest.mark.parametrize("turned", [False, True])
def test_a_margin_widens_the_box_of_a_mask_and_ends_at_the_images_first_voxel(turned):
    mask = np.zeros((9, 8, 7), bool)
    mask[2, 3:5, 1], mask[4, 3, 5] = True, True
    mask = np.asfortranarray(mask) if turned else mask
    assert bounding_box(mask, margin=[0, 0, 0]) == (slice(2, 5), slice(3, 5), slice(1, 6))
    assert bounding_box(mask, margin=[1, 2, 3]) == (slice(1, 6), slice(1, 7), slice(0, 9))


@pytest.mark.parametrize("order", ["C", "F"])
def test_each_value_of_a_label_map_has_its_box_whatever_the_order_in_memory(order):
    labels = np.zeros((9, 8, 7), np.uint8, order=order)
    labels[2:4, 3, 5], labels[8, 0:2, 1:6] = 1, 3
    first, third = (slice(2, 4), slice(3, 4), slice(5, 6)), (slice(8, 9), slice(0, 2), slice(1, 6))
    assert boxes_of(labels, 4) == [first, None, third, None]
    assert boxes_of(labels[::-1], 1) == [(slice(5, 7), *first[1:])]
