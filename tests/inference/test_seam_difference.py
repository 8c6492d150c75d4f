"""Blended windows against a window without a seam there, in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from monai_unet_app.inference.engines import Answer
from monai_unet_app.inference.predict import predict_rows
from monai_unet_app.inference.seam_difference import SeamDifference, seam_difference
from monai_unet_app.inference.windows import WindowSettings
from monai_unet_app.metrics.outputs import outputs_of

SURE, UNSURE = math.log(0.9 / 0.1), math.log(0.6 / 0.4)  # logits of 0.9 and 0.6


class BorderBlind:
    """A network that is sure in the middle half of its window along the first axis, and unsure beside it."""

    device = torch.device("cpu")

    def __init__(self, *, exclusive: bool = False, unsure: float = UNSURE, sure: float = SURE) -> None:
        self.exclusive, self.unsure, self.sure = exclusive, unsure, sure

    def __call__(self, windows: torch.Tensor) -> Answer:
        logits = torch.full_like(windows[:, :1], self.unsure)
        size = logits.shape[2]
        logits[:, :, size // 4 : size - size // 4] = self.sure
        # Softmax of (0, x) is the sigmoid of x
        return Answer(torch.cat([torch.zeros_like(logits), logits], 1) if self.exclusive else logits)


def difference(engine: BorderBlind, shape: tuple[int, ...], window: tuple[int, ...]) -> SeamDifference:
    settings = WindowSettings(window, 0.5, 2, "constant", 0.125, "constant", 0.0)
    image = torch.zeros(1, *shape)
    rows = list(predict_rows(image, engine, settings))
    return seam_difference(rows, image, engine, settings, outputs_of(engine.exclusive))


@pytest.mark.parametrize("exclusive", [False, True])
def test_what_the_border_of_a_window_takes_away_is_measured_at_the_seams(exclusive: bool) -> None:
    # Windows of 8 begin at 0, 4 and 8; half way, at 2 and 6, one window sees the four voxels in its middle for certain.
    # There each voxel lies in the middle half of one of the two windows and beside it in the other: their logits are averaged.
    found = difference(BorderBlind(exclusive=exclusive), (16, 4, 3), (8, 4, 3))
    blended = 1 / (1 + math.exp(-(SURE + UNSURE) / 2))
    assert (found.places, found.voxels) == (2, 2 * 4 * 4 * 3)
    assert found.mean == pytest.approx(0.9 - blended, abs=1e-6)


def test_a_network_that_does_not_mind_its_border_has_no_seams() -> None:
    assert difference(BorderBlind(unsure=SURE), (16, 12, 9), (8, 6, 9)).mean == pytest.approx(0, abs=1e-7)


def test_at_most_four_places_are_looked_at_and_slices_of_a_2d_network_are_no_windows_that_meet() -> None:
    # Two places along each of two axes in each of six slices; their middles have 4 x 3 pixels
    found = difference(BorderBlind(), (16, 12, 6), (8, 6, 1))
    assert (found.places, found.voxels) == (4, 4 * 4 * 3)


@pytest.mark.parametrize(
    ("engine", "shape"),
    [(BorderBlind(), (7, 4, 3)), (BorderBlind(), (8, 4, 3)), (BorderBlind(sure=-SURE, unsure=-SURE), (16, 4, 3))],
    ids=["padded", "one window", "no foreground"],
)
def test_without_a_seam_in_a_structure_there_is_no_mean(engine: BorderBlind, shape: tuple[int, ...]) -> None:
    found = difference(engine, shape, (8, 4, 3))
    assert found == SeamDifference()
    assert found.mean is None


def test_differences_of_cases_add_up_by_voxels() -> None:
    assert (SeamDifference(1.0, 10, 1) + SeamDifference(0.5, 20, 2)).mean == pytest.approx(0.05)
