"""The training step: precision, gradient, moving average, and what happens when the loss is no number."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.inferers import SimpleInferer

from monai_unet_app.errors import AppError
from monai_unet_app.training.checkpoints import half_weights, save_atomically
from monai_unet_app.training.update import (
    TrainingStep,
    ValidationStep,
    _window_losses,
    autocast,
    averaged_model,
    loss_of,
    resolve_precision,
    together,
)

CPU = torch.device("cpu")


def trainer(network: torch.nn.Module, step: TrainingStep, loss: Any, rate: float = 0.1) -> SupervisedTrainer:
    torch.manual_seed(1)
    batches = [{"image": torch.randn(2, 1, 6, 6), "label": torch.randn(2, 1, 6, 6)} for _ in range(4)]
    return SupervisedTrainer(
        device=CPU,
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=rate),
        loss_function=loss,
        inferer=SimpleInferer(),
        decollate=False,
        iteration_update=step,
    )


def convolution() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv2d(1, 1, 3, padding=1)


def test_precision_auto_is_what_the_processor_has_instructions_for() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        pytest.skip("this system has no /proc/cpuinfo to compare with")
    flags = set(cpuinfo.read_text().split())
    expected = "bf16" if flags & {"avx512_bf16", "amx_bf16"} else "f32"
    assert resolve_precision("auto", CPU) == expected


def test_a_processor_computes_convolutions_of_single_channels_in_f32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    light = torch.nn.Sequential(torch.nn.Conv3d(4, 4, 3, groups=4), torch.nn.ConvTranspose3d(4, 2, 1))
    assert resolve_precision("auto", CPU, light) == "f32"
    assert resolve_precision("auto", torch.device("cuda"), light) == "bf16"
    assert resolve_precision("bf16", CPU, light) == "bf16"
    assert resolve_precision("auto", CPU, torch.nn.Conv3d(4, 4, 3)) == resolve_precision("auto", CPU)


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16"), (False, "f32")])
def test_precision_auto_on_cuda_asks_the_card(monkeypatch: pytest.MonkeyPatch, bf16: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    assert resolve_precision("auto", torch.device("cuda")) == expected


def test_a_precision_that_is_given_is_taken_and_an_unknown_one_refused() -> None:
    assert resolve_precision("f32", CPU) == "f32"
    assert resolve_precision("bf16", CPU) == "bf16"
    assert resolve_precision("auto", torch.device("mps")) == "f32"
    with pytest.raises(ValueError, match="'fp8'"):
        resolve_precision("fp8", CPU)


@pytest.mark.parametrize(("precision", "kind"), [("f32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_network_runs_in_the_precision_and_the_loss_in_float32(precision: str, kind: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    def loss(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        seen.append(pred.dtype)
        return torch.nn.functional.mse_loss(pred, label)

    network = convolution()
    run = trainer(network, TrainingStep(precision), loss)
    run.run()
    output: Any = run.state.output
    assert output["pred"].dtype == kind
    assert set(seen) == {torch.float32}
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_training_step_is_gradient_descent_by_hand() -> None:
    network, twin = convolution(), convolution()
    run = trainer(network, TrainingStep("f32", max_gradient_norm=1e9), torch.nn.MSELoss())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for batch in run.data_loader:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(twin(batch["image"]), batch["label"]).backward()
        optimizer.step()
    run.run()
    assert torch.equal(network.weight, twin.weight)  # type: ignore[arg-type]


def test_gradients_are_clipped_to_the_given_norm() -> None:
    network = convolution()
    before = [p.detach().clone() for p in network.parameters()]
    run = trainer(network, TrainingStep("f32", max_gradient_norm=1e-3), torch.nn.MSELoss(), rate=1.0)
    run.data_loader = run.data_loader[:1]
    run.state.epoch_length = 1
    run.run()
    moved = torch.cat([(p.detach() - old).flatten() for p, old in zip(network.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_answers_in_a_list_count_alike_and_heads_half_as_much_as_the_one_before() -> None:
    label, one, two = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 1.0), torch.full((1, 1, 2, 2), 2.0)
    square = torch.nn.MSELoss()
    assert loss_of(square, one, label) == 1
    assert loss_of(square, [one, two], label) == (1 + 4) / 2
    heads = torch.stack([one, two], dim=1)
    assert float(loss_of(square, heads, label)) == pytest.approx((1 + 4 / 2) / 1.5)
    assert float(loss_of(square, [heads, two], label)) == pytest.approx((2 + 4) / 2)


def test_a_coarser_head_is_compared_with_the_nearest_voxels_and_counts_by_its_grid() -> None:
    label = torch.zeros(1, 1, 4, 8)
    label[..., :2, :4] = 1  # a quarter, which a coarser grid holds exactly
    square = torch.nn.MSELoss()
    small = torch.zeros(1, 1, 2, 4)
    small[..., :1, :2] = 1
    flat = torch.zeros(1, 1, 4, 2)  # a quarter of the columns, all rows
    flat[..., :2, :1] = 1
    assert float(loss_of(square, [label, small, flat], label)) == 0
    right = loss_of(square, [label + 1, small, flat], label)
    assert float(right) == pytest.approx(1 / (1 + 0.5 + 0.25))
    assert float(loss_of(square, (label, small + 2, flat), label)) == pytest.approx(0.5 * 4 / 1.75)
    both = [[label, small + 2], [label + 1, small]]  # of two networks, which count alike
    assert float(loss_of(square, both, label)) == pytest.approx((0.5 * 4 / 1.5 + 1 / 1.5) / 2)


def test_each_window_has_a_loss_of_its_own_whatever_the_network_answers() -> None:
    square, label = torch.nn.MSELoss(), torch.zeros(3, 1, 4, 4)
    wrong = torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1) + label
    for answers in (wrong, [wrong, wrong], (wrong, wrong[..., ::2, ::2]), torch.stack([wrong, wrong], 1)):
        assert _window_losses(square, answers, label) == [0, 1, 4]
        assert float(loss_of(square, answers, label)) == pytest.approx(5 / 3)


def test_a_label_of_whole_numbers_gives_the_loss_of_the_same_label_in_floating_point() -> None:
    from monai.losses import SoftclDiceLoss

    logits, label = torch.randn(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    label[..., 2:7, 3:5] = 1
    loss = SoftclDiceLoss(sigmoid=True)
    assert float(loss_of(loss, logits, label.to(torch.uint8))) == float(loss_of(loss, logits, label))


def test_networks_that_are_trained_together_learn_as_each_alone() -> None:
    torch.manual_seed(4)
    members = [torch.nn.Conv2d(1, 1, 3, padding=1) for _ in range(2)]
    alone = [copy.deepcopy(member) for member in members]
    both = together(torch.nn.ModuleList(members), "cpu")
    # Adam's steps do not depend on the size of a loss, which is halved here
    for network in (both, *alone):
        run = trainer(network, TrainingStep("f32", max_gradient_norm=1e9), torch.nn.MSELoss())
        run.optimizer = torch.optim.Adam(network.parameters(), lr=0.01, eps=1e-12)
        run.run()
    for member, other in zip(members, alone, strict=True):
        assert torch.allclose(member.weight, other.weight, atol=1e-5)
    image = torch.randn(1, 1, 6, 6)
    with torch.no_grad():
        assert torch.allclose(both.eval()(image), (alone[0](image) + alone[1](image)) / 2, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_training_in_words_before_the_weights_are_spoilt(value: float) -> None:
    network = convolution()
    before = network.weight.detach().clone()  # type: ignore[union-attr, operator]

    def loss(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return pred.mean() * value

    with pytest.raises(AppError, match=r"the loss is (-?inf|nan) at step 1; .* learning rate"):
        trainer(network, TrainingStep("f32"), loss).run()
    assert torch.equal(network.weight, before)  # type: ignore[arg-type]


def test_the_scheduler_steps_and_the_average_follows_with_every_step() -> None:
    network = convolution()
    averaged = averaged_model(network)
    steps: list[int] = []
    scheduler = SimpleNamespace(step=lambda: steps.append(1))
    trainer(network, TrainingStep("f32", scheduler=scheduler, averaged=averaged), torch.nn.MSELoss()).run()
    assert len(steps) == 4
    assert int(averaged.n_averaged) == 4
    assert not torch.equal(averaged.module.weight, network.weight)  # type: ignore[arg-type, union-attr]


def test_the_moving_average_warms_up_so_that_a_short_run_forgets_where_it_began() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    averaged = averaged_model(network, decay=0.999)
    values = [5.0, 1.0, 2.0, -3.0, 4.0, 0.5]
    expected = values[0]
    for step, value in enumerate(values):
        with torch.no_grad():
            network.weight.fill_(value)
        averaged.update_parameters(network)
        if step:
            decay = (1 + step) / (10 + step)
            expected = decay * expected + (1 - decay) * value
        assert float(averaged.module.weight) == pytest.approx(expected, rel=1e-5)
    # a plain average with decay 0.999 would still stand at 0.999 ** 5 of the first value
    assert abs(expected - values[0]) > 2


def test_the_moving_average_ends_at_its_full_decay() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    averaged = averaged_model(network, decay=0.5)
    for value in [0.0] * 30 + [1.0]:
        with torch.no_grad():
            network.weight.fill_(value)
        averaged.update_parameters(network)
    assert float(averaged.module.weight) == pytest.approx(0.5)


def test_a_validation_step_runs_in_eval_mode_and_hands_out_float32() -> None:
    network = torch.nn.Sequential(convolution(), torch.nn.Dropout(0.9)).train()
    image = torch.randn(1, 1, 6, 6)
    evaluator = SupervisedEvaluator(
        device=CPU,
        val_data_loader=[{"image": image, "label": image}],
        network=network,
        inferer=SimpleInferer(),
        decollate=False,
        iteration_update=ValidationStep("bf16"),
    )
    evaluator.run()
    output: Any = evaluator.state.output
    assert output["pred"].dtype == torch.float32
    assert not output["pred"].requires_grad
    assert not network.training
    with torch.no_grad():
        torch.testing.assert_close(output["pred"], network[0](image), atol=0.05, rtol=0.05)


def test_half_weights_load_back_within_half_precision_and_shared_ones_are_stored_once(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(400, 400), torch.nn.BatchNorm1d(400))
    network.add_module("again", network[0])
    halved = half_weights(network)
    save_atomically(halved, tmp_path / "model.pt")
    assert halved["0.weight"].dtype == torch.float16
    assert halved["1.num_batches_tracked"].dtype == torch.int64
    assert (tmp_path / "model.pt").stat().st_size < 1.2 * 2 * 400 * 400
    twin = torch.nn.Sequential(torch.nn.Linear(400, 400), torch.nn.BatchNorm1d(400))
    twin.add_module("again", twin[0])
    twin.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    torch.testing.assert_close(twin[0].weight, network[0].weight, atol=1e-4, rtol=1e-3)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_atomically({"epoch": 1}, path)
    with pytest.raises(Exception, match=re.compile("pickle|lambda|local", re.IGNORECASE)):
        save_atomically({"epoch": 2, "cannot": lambda: None}, path)
    assert torch.load(path) == {"epoch": 1}


@pytest.mark.parametrize(("depth", "kernel"), [(2, 3), (1, 3), (4, 5), (2, (3, 1, 1)), (3, 3)])
def test_gradients_of_shallow_convolutions_in_bf16_are_those_of_float32(
    depth: int, kernel: int | tuple[int, ...]
) -> None:
    """Without the guard torch reads memory that nobody wrote: NaN, or numbers of any size."""
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(8, 16, kernel, padding="same")
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 1), layer)
    image = torch.randn(2, 1, depth, 5, 4)
    (network(image).square().mean()).backward()
    expected = layer.weight.grad.clone()
    for value in (float("nan"), 1e6) * 3:
        old = [torch.full((1 << size,), value) for size in (22, 20, 18, 16, 14)]
        del old  # what comes next may get this memory
        network.zero_grad()
        with autocast("bf16", torch.device("cpu"), network):
            answer = network(image)
        answer.float().square().mean().backward()
        assert (layer.weight.grad - expected).abs().max() < 0.03 * expected.abs().max()
    assert answer.dtype == (torch.bfloat16 if depth >= layer.kernel_size[0] else torch.float32)


def test_only_shallow_convolutions_leave_the_autocast_also_in_copies_and_after_an_error() -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.Conv3d(4, 4, 3, padding=1))
    device = torch.device("cpu")
    with autocast("bf16", device, network):
        assert network(torch.zeros(1, 1, 3, 4, 4)).dtype == torch.bfloat16
        assert network(torch.zeros(1, 1, 2, 4, 4)).dtype == torch.float32
        with pytest.raises(RuntimeError):
            network(torch.zeros(1, 2, 2, 4, 4))  # two channels for one
        assert torch.is_autocast_enabled("cpu")
    copied = copy.deepcopy(network)
    with autocast("bf16", device, copied):
        assert copied(torch.zeros(1, 1, 3, 4, 4)).dtype == torch.bfloat16
        assert copied(torch.zeros(1, 1, 2, 4, 4)).dtype == torch.float32
    assert all(len(layer._forward_hooks) == 1 for layer in copied)
    assert (
        network.state_dict().keys()
        == torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.Conv3d(4, 4, 3)).state_dict().keys()
    )
