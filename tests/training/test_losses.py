"""Losses for calibration: closed forms, the project's own ACE, gradients, and what MONAI's own losses do."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss, NACLLoss
from torch import Tensor, nn

from monai_unet_app.metrics.outputs import outputs_of
from monai_unet_app.metrics.reliability import average_calibration_error, count_reliability
from monai_unet_app.training.losses import HardL1ACELoss, MarginLoss, OfLabelled, OnClassIndices, SoftL1ACELoss, Sum

GRIDS = {"2D": (9, 7), "3D": (6, 5, 4)}
each_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
each_ace = pytest.mark.parametrize("loss", [HardL1ACELoss, SoftL1ACELoss])


def logits_of(probabilities: list[float]) -> Tensor:
    """One image with one row of voxels of these sigmoid probabilities, shape (1, 1, N)."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.log(p / (1 - p)).reshape(1, 1, -1).requires_grad_()


def row(*truth: int) -> Tensor:
    return torch.tensor(truth).reshape(1, 1, -1)


def case(grid: tuple[int, ...], channels: int = 3, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that say something of the truth, and class indices (B, 1, *grid), every class in every image."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, channels, (batch, 1, *grid), generator=generator)
    truth.flatten(1)[:, :channels] = torch.arange(channels)
    right = torch.nn.functional.one_hot(truth[:, 0], channels).movedim(-1, 1)
    return torch.randn(batch, channels, *grid, generator=generator) * 2 + 1.5 * right, truth


def in_channels(truth: Tensor, channels: int) -> Tensor:
    return torch.cat([truth == c for c in range(channels)], dim=1).float()


def own_ace(p: Tensor, truth: Tensor, exclusive: bool, first: int, bins: int) -> float:
    """Mean over images and classes of the ACE of each class against the rest, by the project's counts."""
    errors = []
    for image, hits in zip(p.numpy(), truth.numpy().astype(bool), strict=True):
        counts = count_reliability(hits, image, outputs=outputs_of(exclusive), bins=bins)
        errors += [average_calibration_error(counts, c + 1) for c in range(first, len(image))]
    return float(np.mean(errors))


# --- average calibration error


def test_hard_bins_average_the_gap_of_mean_confidence_and_truth() -> None:
    truth = row(0, 1, 1, 1)  # bin 0.1 to 0.2: |0.125 - 1/2|; bin 0.8 to 0.9: |0.875 - 1|
    loss = HardL1ACELoss(num_bins=10, sigmoid=True)(logits_of([0.12, 0.13, 0.87, 0.88]), truth)
    assert float(loss) == pytest.approx((0.375 + 0.125) / 2)


def test_the_gradient_of_hard_bins_goes_through_the_confidences_only() -> None:
    p = np.array([0.12, 0.13, 0.87, 0.88, 0.845])
    logits = logits_of(list(p))
    HardL1ACELoss(num_bins=10, sigmoid=True)(logits, row(0, 1, 1, 1, 1)).backward()
    # |sum of confidence - truth| / n of each of two bins; too low a confidence everywhere
    by_confidence = -np.array([1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3]) / 2
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.flatten(), by_confidence * p * (1 - p))


@each_grid
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("bins", [15, 20])
def test_hard_l1_ace_is_the_ace_of_the_metrics(grid: tuple[int, ...], background: bool, bins: int) -> None:
    logits, truth = case(grid)
    loss = HardL1ACELoss(bins, background, softmax=True)(logits, truth)
    expected = own_ace(logits.softmax(1), in_channels(truth, 3), True, 0 if background else 1, bins)
    assert expected > 0.05
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@each_grid
def test_hard_l1_ace_of_overlapping_labels_is_the_ace_of_the_metrics(grid: tuple[int, ...]) -> None:
    logits = case(grid)[0]
    truth = (torch.rand(2, 3, *grid, generator=torch.Generator().manual_seed(5)) < 0.3).float()
    loss = HardL1ACELoss(sigmoid=True)(logits, truth)
    assert float(loss) == pytest.approx(own_ace(logits.sigmoid(), truth, False, 0, 20), rel=1e-6)


@pytest.mark.parametrize("bins", [7, 15, 20])
def test_a_confidence_on_the_edge_of_a_bin_falls_where_the_metrics_put_it(bins: int) -> None:
    logits = torch.logit(torch.linspace(0, 1, bins * 4 + 1)).reshape(1, 1, 1, -1)  # 0, 1 and all edges among them
    truth = torch.zeros_like(logits)
    truth[..., ::3] = 1
    p = logits.sigmoid()
    assert int(((p * bins) == (p * bins).round()).sum()) > bins / 2
    loss = HardL1ACELoss(bins, sigmoid=True)(logits, truth)
    assert float(loss) == pytest.approx(own_ace(p, truth, False, 0, bins), rel=1e-6)


@each_ace
def test_indices_and_one_channel_a_class_are_the_same_truth(loss: Any) -> None:
    logits, truth = case((6, 5))
    one = loss(softmax=True)(logits, truth.float())
    torch.testing.assert_close(loss(softmax=True)(logits, in_channels(truth, 3)), one)
    torch.testing.assert_close(loss(softmax=True)(logits, in_channels(truth, 3).bool()), one)


@each_ace
def test_a_class_that_an_image_lacks_adds_nothing_or_its_whole_confidence(loss: Any) -> None:
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    logits = p.log().reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    truth = torch.zeros(1, 1, 4, 4)
    truth[..., 0] = 1  # 12 of 16 voxels are background, 4 of class 1, none of class 2
    ignoring = loss(num_bins=2, softmax=True)(logits, truth)
    counting = loss(num_bins=2, softmax=True, ignore_empty_classes=False)(logits, truth)
    assert float(ignoring) == pytest.approx((0.25 + 0 + 0) / 3)
    assert float(counting) == pytest.approx((0.25 + 0 + 0.25) / 3)


def test_without_the_background_channel_0_does_not_count() -> None:
    p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    logits = p.log().reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    truth = torch.tensor([0, 0, 1, 2]).repeat(4, 1).reshape(1, 1, 4, 4)  # each class as often as it is believed
    assert float(HardL1ACELoss(softmax=True, include_background=False)(logits, truth)) == pytest.approx(0, abs=1e-12)
    truth[truth == 0] = 1
    kept, left = (HardL1ACELoss(softmax=True, include_background=b)(logits, truth) for b in (True, False))
    assert float(kept) == pytest.approx((0 + 0.5 + 0) / 3)  # the background is absent and adds nothing
    assert float(left) == pytest.approx((0.5 + 0) / 2)


@each_ace
def test_probabilities_that_come_true_as_often_as_they_say_cost_nothing(loss: Any) -> None:
    centres = [0.125, 0.375, 0.625, 0.875]
    voxels = [p for p in centres for _ in range(8)]
    truth = row(*(int(n < 8 * p) for p in centres for n in range(8)))
    assert float(loss(num_bins=4, sigmoid=True)(logits_of(voxels), truth)) == pytest.approx(0, abs=1e-9)
    assert float(loss(num_bins=4, sigmoid=True)(logits_of(voxels), 1 - truth)) > 0.2


def drawn(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from their own probabilities: calibrated by construction."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(1, 3, size, size, generator=generator)
    p = logits.softmax(1)[0].flatten(1).T
    return logits, torch.multinomial(p, 1, generator=generator).reshape(1, 1, size, size)


@each_ace
def test_labels_drawn_from_the_probabilities_cost_little_and_too_sure_ones_much(loss: Any) -> None:
    logits, truth = drawn(400, seed=1)
    assert float(loss(softmax=True)(logits, truth)) < 0.01
    assert float(loss(softmax=True)(3 * logits, truth)) > 0.1


@each_ace
def test_training_with_the_loss_lowers_the_ace_of_labels_it_has_not_seen(loss: Any) -> None:
    torch.manual_seed(0)
    logits, truth = drawn(64, seed=2)
    unseen, unseen_truth = drawn(200, seed=3)
    scale = nn.Parameter(torch.tensor(4.0))
    optimizer = torch.optim.Adam([scale], lr=0.1)

    def ace() -> float:
        return own_ace((scale.detach() * unseen).softmax(1), in_channels(unseen_truth, 3), True, 0, 20)

    before = ace()
    for _ in range(80):
        optimizer.zero_grad()
        loss(softmax=True)(scale * logits, truth).backward()
        optimizer.step()
    assert before > 0.15
    assert ace() < 0.25 * before
    assert float(scale) == pytest.approx(1, abs=0.25)


def test_soft_bins_share_a_voxel_between_the_two_nearest_centres() -> None:
    # centres 0.25 and 0.75; the first voxel is half in either, the second in the lower one alone
    loss = SoftL1ACELoss(num_bins=2, sigmoid=True)(logits_of([0.5, 0.25]), row(1, 1))
    lower, upper = (0.5 * -0.5 + 1 * -0.75) / 1.5, 0.5 * -0.5 / 0.5
    assert float(loss) == pytest.approx((abs(lower) + abs(upper)) / 2)


def test_soft_membership_falls_linearly_from_1_at_a_centre_to_0_at_its_neighbours() -> None:
    random = np.random.default_rng(3)
    p, truth = random.uniform(0.02, 0.98, 40), random.integers(0, 2, 40)
    centres = (np.arange(6) + 0.5) / 6
    member = np.clip(1 - 6 * np.abs(np.clip(p, centres[0], centres[-1])[:, None] - centres), 0, None)
    expected = np.abs((member * (p - truth)[:, None]).sum(0) / member.sum(0)).mean()
    loss = SoftL1ACELoss(num_bins=6, sigmoid=True)(logits_of(list(p)), row(*truth))
    assert float(loss) == pytest.approx(expected)


def test_the_gradient_of_soft_bins_goes_through_the_membership_as_well() -> None:
    logits = logits_of([0.5, 0.25])
    SoftL1ACELoss(num_bins=2, sigmoid=True)(logits, row(1, 1)).backward()
    # lower bin: g / w with g = -1, w = 1.5; moving the first voxel up by d takes 2 d out of it
    lower = -((0.5 + 2 * 0.5) * 1.5 - (-1) * (-2)) / 1.5**2
    upper = -1.0  # |p - 1|, whatever the weight
    assert logits.grad is not None
    assert float(logits.grad[0, 0, 0]) == pytest.approx((lower + upper) / 2 * 0.5 * 0.5)


def test_soft_bins_are_hard_bins_for_confidences_on_the_centres_and_beyond_the_outer_ones() -> None:
    voxels, truth = [0.02, 0.1, 0.3, 0.3, 0.7, 0.97], row(0, 1, 0, 1, 1, 0)
    soft, hard = (loss(num_bins=5, sigmoid=True)(logits_of(voxels), truth) for loss in (SoftL1ACELoss, HardL1ACELoss))
    assert float(soft) == pytest.approx(float(hard))


def test_a_soft_bin_that_holds_next_to_nothing_counts_as_empty() -> None:
    voxels, truth = [0.25 + 0.5 * 0.001, 0.25], row(1, 0)  # the first is a thousandth in the upper bin
    strict = SoftL1ACELoss(num_bins=2, sigmoid=True)(logits_of(voxels), truth)
    lax = SoftL1ACELoss(num_bins=2, sigmoid=True, least_weight=1e-6)(logits_of(voxels), truth)
    assert float(strict) == pytest.approx(abs((0.999 * -0.7495 + 0.25) / 1.999))
    assert float(lax) == pytest.approx((float(strict) + 0.7495) / 2)


@pytest.mark.parametrize("loss", [HardL1ACELoss, SoftL1ACELoss, MarginLoss])
@each_grid
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_gradients_are_the_slopes_of_the_loss(loss: Any, grid: tuple[int, ...], kind: str) -> None:
    small = grid[:1] + (2,) * (len(grid) - 1)
    logits, truth = case(small, seed=11)
    logits = logits.double().requires_grad_()
    if loss is MarginLoss:
        function = MarginLoss(margin=1.5, **{kind: True})
    else:
        p = logits.softmax(1) if kind == "softmax" else logits.sigmoid()
        to_edge = ((p * 8) - (p * 8).round()).abs().min()
        assert float(to_edge) > 1e-4  # far from an edge for steps of 1e-6
        function = loss(num_bins=4, **{kind: True})
    hits = truth if kind == "softmax" else in_channels(truth, 3)
    assert torch.autograd.gradcheck(lambda z: function(z, hits), (logits,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", [HardL1ACELoss, SoftL1ACELoss, MarginLoss])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_bf16_autocast_gives_a_finite_float32_loss_and_finite_gradients(loss: Any, size: float) -> None:
    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 3, padding=1)
    image, truth = size * torch.randn(2, 1, 6, 6, 6), torch.randint(0, 3, (2, 1, 6, 6, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(image)
        value = loss(softmax=True)(logits, truth)
    assert logits.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    value.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@each_ace
def test_logits_that_are_no_numbers_give_a_loss_that_is_none_for_the_training_step_to_refuse(loss: Any) -> None:
    logits, truth = case((6, 5))
    logits[0, 0, 0, 0] = math.nan
    assert torch.isnan(loss(softmax=True)(logits, truth))


@each_ace
def test_millions_of_voxels_in_one_bin_lose_nothing_to_rounding(loss: Any) -> None:
    logits = torch.full((1, 1, 2048, 2048), math.log(0.3 / 0.7))
    truth = torch.zeros_like(logits)
    truth[0, 0, 0, 0] = 1  # a float32 sum of 4 million terms of 0.3 is wrong in the second digit
    error = float(loss(num_bins=5, sigmoid=True)(logits, truth))
    assert error == pytest.approx(0.3 - 1 / truth.numel(), rel=1e-5)


# --- margin


def test_the_margin_penalty_is_the_distance_to_the_largest_logit_above_the_margin() -> None:
    logits = torch.tensor([12.0, 1.0, 0.0]).reshape(1, 3, 1, 1)
    penalty = MarginLoss(margin=10, softmax=True)(logits, torch.zeros(1, 1, 1, 1))
    assert float(penalty) == pytest.approx((0 + 1 + 2) / 3)


def test_the_margin_penalty_of_overlapping_labels_is_that_of_their_two_answers() -> None:
    logits = torch.tensor([13.0, -11.0, 5.0]).reshape(1, 3, 1, 1)
    penalty = MarginLoss(margin=10, sigmoid=True)(logits, torch.zeros(1, 3, 1, 1))
    assert float(penalty) == pytest.approx((3 + 1 + 0) / 3)
    answers = [torch.cat([z.reshape(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)], 1) for z in logits.flatten()]
    by_softmax = [float(MarginLoss(10, softmax=True)(pair, torch.zeros(1, 1, 1, 1))) for pair in answers]
    assert float(penalty) == pytest.approx(2 * np.mean(by_softmax))  # a mean over two answers, one of which is free


def test_logits_within_the_margin_are_left_alone() -> None:
    logits = torch.tensor([9.0, 0.0, 1.0]).reshape(1, 3, 1, 1).requires_grad_()
    penalty = MarginLoss(margin=10, softmax=True)(logits, torch.zeros(1, 1, 1, 1))
    penalty.backward()
    assert float(penalty) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_penalty_keeps_the_distance_of_logits_near_the_margin_where_cross_entropy_alone_does_not() -> None:
    def distance_after_training(loss: nn.Module) -> float:
        logits = torch.zeros(1, 2, 1, 1, requires_grad=True)
        optimizer = torch.optim.SGD([logits], lr=0.1)
        for _ in range(2000):
            optimizer.zero_grad()
            loss(logits, torch.ones(1, 1, 1, 1)).backward()
            optimizer.step()
        return float((logits[0, 1] - logits[0, 0]).detach())

    entropy = OnClassIndices(nn.CrossEntropyLoss())
    assert distance_after_training(entropy) > 5
    assert distance_after_training(Sum([entropy, MarginLoss(3, softmax=True)])) == pytest.approx(3, abs=0.15)


# --- what MONAI has


def neighbourhood_shares(truth: np.ndarray, classes: int) -> np.ndarray:
    """Shape (classes, *grid): the part of the 3 x 3 (x 3) neighbourhood that each class fills, outside being nothing."""
    shares = np.zeros((classes, *truth.shape))
    steps = list(product((-1, 0, 1), repeat=truth.ndim))
    for voxel in np.ndindex(truth.shape):
        for step in steps:
            place = tuple(np.add(voxel, step))
            if all(0 <= n < size for n, size in zip(place, truth.shape, strict=True)):
                shares[(truth[place], *voxel)] += 1 / len(steps)
    return shares


@each_grid
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_monai_s_nacl_is_cross_entropy_and_the_distance_of_logits_to_the_neighbours_shares(
    grid: tuple[int, ...], distance: str
) -> None:
    logits, truth = case(grid, batch=1)
    loss = OnClassIndices(NACLLoss(classes=3, dim=len(grid), distance_type=distance, alpha=0.25))(logits, truth.float())
    z, shares = logits[0].double().numpy(), neighbourhood_shares(truth[0, 0].numpy(), 3)
    inner = (slice(None), *(slice(1, -1) for _ in grid))
    np.testing.assert_allclose(shares[inner].sum(0), 1)
    assert shares.sum(0).min() == pytest.approx((2 / 3) ** len(grid))  # a corner: beyond the image there is no class
    entropy = np.log(np.exp(z).sum(0)) - np.take_along_axis(z, truth[0].numpy(), 0)[0]
    penalty = np.abs(shares - z) if distance == "l1" else (shares - z) ** 2
    assert float(loss) == pytest.approx(entropy.mean() + 0.25 * penalty.mean(), rel=1e-5)


def test_nacl_takes_either_form_of_the_truth_and_trains() -> None:
    logits, truth = case((5, 6))
    logits.requires_grad_()
    loss = OnClassIndices(NACLLoss(classes=3, dim=2))
    torch.testing.assert_close(loss(logits, truth), loss(logits, in_channels(truth, 3)))
    loss(logits, truth).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@each_grid
def test_label_smoothing_is_in_monai_s_dice_and_cross_entropy(grid: tuple[int, ...]) -> None:
    logits, truth = case(grid)
    plain, smooth = (
        DiceCELoss(to_onehot_y=True, softmax=True, label_smoothing=s)(logits, truth.float()) for s in (0, 0.1)
    )
    nll = -logits.double().log_softmax(1)
    to_truth = nll.gather(1, truth).mean()
    assert float(smooth - plain) == pytest.approx(0.1 * float(nll.mean() - to_truth), rel=1e-4)


def test_monai_passes_over_label_smoothing_where_there_is_one_channel() -> None:
    logits, truth = case((6, 5), channels=2)
    one, hits = logits[:, :1], truth.float()
    values = [float(DiceCELoss(sigmoid=True, label_smoothing=s)(one, hits)) for s in (0.0, 0.3)]
    assert values[0] == values[1]


# --- the sum, and what is refused


def test_a_sum_adds_its_weighted_losses_and_their_gradients() -> None:
    logits, truth = case((6, 5))
    logits.requires_grad_()
    parts = [DiceCELoss(to_onehot_y=True, softmax=True), HardL1ACELoss(softmax=True), MarginLoss(1, softmax=True)]
    weights = [1.0, 0.5, 0.1]
    values = [part(logits, truth) for part in parts]
    gradients = [torch.autograd.grad(value, logits)[0] for value in values]
    total = Sum(parts, weights)(logits, truth)
    assert float(total) == pytest.approx(sum(w * float(v) for w, v in zip(weights, values, strict=True)))
    total.backward()
    torch.testing.assert_close(logits.grad, sum(w * g for w, g in zip(weights, gradients, strict=True)))
    assert float(Sum(parts)(logits, truth)) == pytest.approx(sum(float(v) for v in values))


def test_the_parts_of_a_sum_move_with_it() -> None:
    loss = Sum([OnClassIndices(nn.CrossEntropyLoss(weight=torch.ones(3)))])
    assert next(loss.double().buffers()).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sum([]), r"0 loss\(es\)"),
        (lambda: Sum([nn.MSELoss()], [1, 2]), r"weights \[1.0, 2.0\]"),
        (lambda: Sum([nn.MSELoss()], [-1]), "0 or more"),
        (lambda: Sum([nn.MSELoss()], [math.nan]), "finite"),
        (lambda: HardL1ACELoss(), "exactly one"),
        (lambda: MarginLoss(softmax=True, sigmoid=True), "exactly one"),
        (lambda: MarginLoss(-1, softmax=True), "margin is -1"),
        (lambda: HardL1ACELoss(0, softmax=True), "num_bins is 0; at least 1"),
        (lambda: SoftL1ACELoss(num_bins=1, softmax=True), "num_bins is 1; at least 2"),
        (lambda: SoftL1ACELoss(softmax=True, least_weight=0), "least_weight is 0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_in_words(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "logits", "truth", "message"),
    [
        (HardL1ACELoss(softmax=True), (2, 1, 4, 4), (2, 1, 4, 4), "2 channels or more"),
        (MarginLoss(softmax=True), (2, 3), (2, 1), r"\(B, C, \*spatial\) is needed"),
        (HardL1ACELoss(softmax=True), (2, 3, 4, 4), (2, 2, 4, 4), r"truth has shape \(2, 2, 4, 4\)"),
        (HardL1ACELoss(softmax=True), (2, 3, 4, 4), (2, 1, 4, 5), r"\(2, 1, 4, 4\) or \(2, 3, 4, 4\) is needed"),
        (HardL1ACELoss(softmax=True), (2, 3, 4, 4), (2, 4, 4), r"truth has shape \(2, 4, 4\)"),
        (SoftL1ACELoss(sigmoid=True), (2, 3, 4, 4), (2, 1, 4, 4), r"\(2, 3, 4, 4\) is needed"),
        (HardL1ACELoss(sigmoid=True, include_background=False), (2, 1, 4, 4), (2, 1, 4, 4), "no class is left"),
        (OnClassIndices(nn.CrossEntropyLoss()), (2, 1, 4, 4), (2, 1, 4, 4), "2 channels or more"),
    ],
)
def test_logits_and_truth_that_do_not_fit_are_refused_in_words(
    loss: Any, logits: tuple[int, ...], truth: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(logits), torch.zeros(truth))


@pytest.mark.parametrize("batch", [True, False])
def test_voxels_without_a_class_change_no_loss(batch: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((2, 3, 6, 8, 4), generator=generator, requires_grad=True)
    truth = torch.randint(0, 3, (2, 1, 6, 8, 4), generator=generator).float()
    inner = DiceCELoss(to_onehot_y=True, softmax=True, batch=batch)
    marked = truth.clone()
    marked[:, :, 4:] = 255
    loss = OfLabelled(inner, 255, batch)(logits, marked)
    torch.testing.assert_close(loss, inner(logits[:, :, :4], truth[:, :, :4]))
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, 4:].any()
    assert logits.grad[:, :, :4].any()
    with torch.no_grad():
        torch.testing.assert_close(OfLabelled(inner, 255, batch)(logits, truth), inner(logits, truth))
    nothing = OfLabelled(inner, 255, batch)(logits, torch.full_like(truth, 255))
    assert (float(nothing), nothing.requires_grad) == (0.0, True)


def test_the_cross_entropy_of_labelled_voxels_is_that_of_torch_with_an_ignored_index() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn((2, 4, 9, 7), generator=generator)
    truth = torch.randint(0, 4, (2, 1, 9, 7), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.3] = 255
    ours = OfLabelled(OnClassIndices(torch.nn.CrossEntropyLoss()), 255)(logits, truth.float())
    theirs = torch.nn.CrossEntropyLoss(ignore_index=255)(logits, truth[:, 0])
    torch.testing.assert_close(ours, theirs)
