"""Windows and networks that fit the spacing of images."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from monai.networks.nets import DynUNet

from monai_unet_app.planning.network import LEAST_EDGE, NetworkPlan, plan_network


def test_a_small_isotropic_image_is_seen_nearly_whole_by_four_levels() -> None:
    # The Decathlon's hippocampus: nnU-Net (Isensee 2021, supplement) halves three times, too, and pads to 40 x 56 x 40
    plan = plan_network((35, 50, 35), (1.0, 1.0, 1.0), 2**20, 32)
    assert plan.window == (32, 48, 32)
    assert plan_network((37, 52, 36), (1.0, 1.0, 1.0), 2**20, 32).window == (40, 56, 40)
    assert plan.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert set(plan.kernels) == {(3, 3, 3)}
    assert plan.filters == (32, 64, 128, 256)


def test_thick_slices_are_neither_halved_nor_convolved_across_until_the_plane_is_as_coarse() -> None:
    plan = plan_network((256, 256, 36), (1.25, 1.25, 7.7), 2**18, 16)
    # 1.25 mm, 2.5 mm: less than half of 7.7 mm. 5 mm: more than half, so the third level convolves across
    assert plan.kernels[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))
    assert plan.strides[:4] == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2))


def test_a_2d_network_for_pictures() -> None:
    plan = plan_network((713, 702), (1.0, 1.0), 2**16, 32)
    assert len(plan.window) == 2
    assert plan.filters == (32, 64, 128, 256, 512, 512)  # at most 512


@pytest.mark.parametrize("seed", range(60))
def test_every_window_can_be_halved_by_its_network_and_fits(seed: int) -> None:
    random = np.random.default_rng(seed)
    axes = int(random.integers(2, 4))
    shape, steps = random.integers(1, 900, axes).tolist(), random.uniform(0.3, 12, axes).tolist()
    power = int(random.integers(12, 20))
    plan = plan_network(shape, steps, 2**power, 16)
    assert plan.voxels <= 2**power
    assert all(size % divisor == 0 for size, divisor in zip(plan.window, plan.divisor, strict=True))
    halved = [divisor > 1 for divisor in plan.divisor]
    assert all(
        size // divisor >= LEAST_EDGE
        for size, divisor, may in zip(plan.window, plan.divisor, halved, strict=True)
        if may
    )
    smaller = plan.smaller_window(1)
    assert all(size % divisor == 0 for size, divisor in zip(smaller, plan.divisor, strict=True))
    assert len(plan.strides) == len(plan.kernels) == len(plan.filters)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((30, 26, 14), (1.1, 0.9, 3.6)), ((16, 18, 1), (1.0, 1.0, 9.0)), ((33, 47), (1.0, 1.0))]
)
def test_the_network_takes_its_window(shape: Sequence[int], spacing: Sequence[float]) -> None:
    plan = plan_network(shape, spacing, 2**14, 4)
    network = DynUNet(
        len(plan.window), 2, 3, plan.kernels, plan.strides, plan.strides[1:], filters=plan.filters
    ).eval()  # fmt: skip
    with torch.no_grad():
        assert network(torch.zeros(1, 2, *plan.window)).shape == (1, 3, *plan.window)


def test_a_smaller_window_keeps_to_the_network() -> None:
    plan = NetworkPlan((64, 48, 8), ((1, 1, 1), (2, 2, 1), (2, 2, 2)), ((3, 3, 3),) * 3, (8, 16, 32))
    assert plan.divisor == (4, 4, 2)
    assert math.prod(plan.smaller_window(3000)) <= 3000
    assert plan.smaller_window(2**20) == plan.window
