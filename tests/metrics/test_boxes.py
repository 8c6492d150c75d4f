"""Boxes around masks."""

import numpy as np
import pytest

from monai_unet_app.metrics.boxes import bounding_box


def test_there_is_no_box_around_nothing():
    assert bounding_box(np.zeros((3, 4, 5), bool), margin=[1, 1, 1]) is None


@pytest.mark.parametrize("turned", [False, True])
def test_a_margin_widens_the_box_of_a_mask_and_ends_at_the_images_first_voxel(turned):
    mask = np.zeros((9, 8, 7), bool)
    mask[2, 3:5, 1], mask[4, 3, 5] = True, True
    mask = np.asfortranarray(mask) if turned else mask
    assert bounding_box(mask, margin=[0, 0, 0]) == (slice(2, 5), slice(3, 5), slice(1, 6))
    assert bounding_box(mask, margin=[1, 2, 3]) == (slice(1, 6), slice(1, 7), slice(0, 9))
