"""The random field is the sum over all pairs, and is refused where it does not fit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.ndimage
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from monai_unet_app.errors import InputRefusedError
from monai_unet_app.inference.mean_field_crf import Kernels, MeanFieldCRFd, bytes_for, mean_field
from monai_unet_app.machine_memory import taken_by
from monai_unet_app.metrics.outputs import EXCLUSIVE, OVERLAPPING

SPACING_MM = (1.0, 0.8, 2.5)


def case(shape: Sequence[int], channels: int, seed: int = 2) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities and a one-channel image, at random."""
    random = np.random.default_rng(seed)
    values = random.gamma(0.6, size=(channels, *shape)) + 1e-3
    return values / values.sum(0), random.normal(size=(1, *shape))


def brute_force(
    p: NDArray[np.float64], image: NDArray[np.float64], kernels: Kernels, iterations: int
) -> NDArray[np.float64]:
    """Equation 6 of Krähenbühl & Koltun with Potts' compatibility, over the matrix of all pairs of voxels."""
    shape = p.shape[1:]
    place = np.array(list(np.ndindex(*shape))) * np.array(kernels.spacing_mm)
    distance = place[:, None] - place[None]
    near = (np.abs(distance) <= kernels.reach_mm + 1e-9).all(-1) & ~np.eye(len(place), dtype=bool)
    squares = (distance**2).sum(-1)
    colour = image.reshape(len(image), -1).T
    alike = ((colour[:, None] - colour[None]) ** 2).sum(-1)
    box = [np.arange(-20, 21) * step for step in kernels.spacing_mm]
    offsets = np.array([d for d in itertools.product(*box) if 0 < max(map(abs, d)) <= kernels.reach_mm + 1e-9])
    matrix = np.zeros_like(squares)
    for (weight, width), also in (
        (kernels.appearance[:2], alike / kernels.appearance[2] ** 2),
        (kernels.smoothness, 0),
    ):
        total = np.exp(-(offsets**2).sum(-1) / (2 * width**2)).sum()
        matrix += weight * near * np.exp(-squares / (2 * width**2) - also / 2) / total
    unary = -np.log(p.reshape(len(p), -1))
    q = p.reshape(len(p), -1)
    for _ in range(iterations):
        others = np.stack([np.delete(q, n, 0).sum(0) for n in range(len(q))])  # the pairs with another label cost
        energy = unary + others @ matrix.T
        q = np.exp(-energy) / np.exp(-energy).sum(0)
    return q.reshape(p.shape)


def tensors(*arrays: NDArray[np.float64]) -> list[torch.Tensor]:
    return [torch.from_numpy(array.astype(np.float32)) for array in arrays]


@pytest.mark.parametrize("shape", [(5, 4, 3), (7, 6)])
@pytest.mark.parametrize("iterations", [1, 4])
def test_the_field_is_the_sum_over_all_pairs(shape: tuple[int, ...], iterations: int) -> None:
    p, image = case(shape, 3)
    kernels = Kernels((6.0, 1.5, 0.8), (4.0, 1.0), 2.5, SPACING_MM[: len(shape)])
    expected = brute_force(p, image, kernels, iterations)
    field = mean_field(*tensors(p, image), kernels, iterations, EXCLUSIVE)
    np.testing.assert_allclose(field.numpy(), expected, atol=2e-5)
    assert np.abs(expected - p).max() > 0.2


def test_a_label_that_may_overlap_is_a_field_of_two_classes() -> None:
    p, image = case((6, 5), 2)
    kernels = Kernels((2.0, 1.5, 0.8), (1.2, 1.0), 2.0, (1.0, 1.0))
    (alone, other), _ = case((6, 5), 2, seed=9)
    field = mean_field(*tensors(np.stack([p[1], alone]), image), kernels, 3, OVERLAPPING)
    np.testing.assert_allclose(field[0].numpy(), brute_force(p, image, kernels, 3)[1], atol=2e-5)
    np.testing.assert_allclose(field[1].numpy(), brute_force(np.stack([other, alone]), image, kernels, 3)[1], atol=2e-5)


def test_without_weights_nothing_changes() -> None:
    p, image = case((6, 5, 4), 3)
    field = mean_field(*tensors(p, image), Kernels((0, 1, 1), (0, 1), 2.0, (1, 1, 1)), 5, EXCLUSIVE)
    np.testing.assert_allclose(field.numpy(), p, atol=1e-6)


def test_in_a_uniform_image_the_appearance_only_smooths() -> None:
    p, _ = case((9, 8), 2)
    kernels = Kernels((1.7, 1.3, 0.2), (0.0, 1.0), 3.0, (1.0, 1.0))
    field = mean_field(*tensors(p, np.full((1, 9, 8), 4.0)), kernels, 1, EXCLUSIVE)
    # A Gaussian filter that stops at 3 voxels, without the voxel itself
    kernel = np.outer(*[np.exp(-(np.arange(-3, 4) ** 2) / (2 * 1.3**2))] * 2)
    kernel[3, 3] = 0
    message = np.stack([scipy.ndimage.convolve(q, 1.7 * kernel / kernel.sum(), mode="constant") for q in p])
    expected = p * np.exp(message)
    np.testing.assert_allclose(field.numpy(), expected / expected.sum(0), atol=1e-5)


def test_an_edge_of_the_image_keeps_a_border_that_smoothing_moves() -> None:
    p = np.full((2, 20, 21), 0.5)
    p[1, :8] += 0.35  # the network stops three rows before the edge, with doubt between
    p[1, 11:] -= 0.35
    p[1, 8:11] -= 0.05
    p[0] = 1 - p[1]
    image = np.zeros((1, 20, 21))
    image[0, :11] = 1
    (probabilities, grey), affine = tensors(p, image), torch.eye(4, dtype=torch.float64)
    item = {
        "pred": MetaTensor(torch.zeros(1, 20, 21), affine=affine),
        "prob": MetaTensor(probabilities, affine=affine),
        "image": MetaTensor(grey, affine=affine),
    }
    labels = MeanFieldCRFd("pred", (6.0, 3.0, 0.3), (0.0, 1.0), 5.0)(item)["pred"]
    np.testing.assert_array_equal(labels[0].numpy(), image[0])


def test_the_image_is_brought_onto_the_grid_of_the_labels() -> None:
    p, image = case((12, 10, 8), 2)
    affine = np.eye(4)
    matrix = np.eye(4)[[1, 0, 2, 3]]  # the first axis of the other image is y from 9 down to 0, the second x
    matrix[1, [0, 3]] = -1, 9
    same = MetaTensor(torch.from_numpy(image.astype(np.float32)), affine=torch.from_numpy(affine))
    rotated = np.transpose(image, (0, 2, 1, 3))[:, ::-1].copy()
    other = MetaTensor(torch.from_numpy(rotated.astype(np.float32)), affine=torch.from_numpy(matrix))
    item = {"pred": MetaTensor(torch.zeros(1, 12, 10, 8), affine=torch.from_numpy(affine)), "prob": tensors(p)[0]}
    step = MeanFieldCRFd("pred", (5.0, 2.0, 0.5), (1.0, 1.0), 2.0)
    expected, labels = (step({**item, "image": one})["pred"].numpy() for one in (same, other))
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(labels, expected)


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputRefusedError, match=r"3 classes of 512 x 512 x 800 voxels need 17\.6 GB .* crop the image"):
        MeanFieldCRFd("pred").check_size(3, (512, 512, 800))
    MeanFieldCRFd("pred").check_size(3, (256, 256, 256))


def test_it_takes_no_more_memory_than_it_says() -> None:
    p, image = tensors(*case((200, 180, 40), 3))
    step = MeanFieldCRFd("pred", reach_mm=1.0, iterations=2)
    item = {"pred": MetaTensor(torch.zeros(1, 200, 180, 40)), "prob": p, "image": MetaTensor(image)}
    taken = min(
        taken_by(lambda: step(item)) for _ in range(5)
    )  # a process grows by large pages and by what others do, too
    assert taken < bytes_for(3, (200, 180, 40))
