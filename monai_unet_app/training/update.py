"""One optimisation step and one validation step, in the fastest precision that the device computes correctly.

MONAI's trainer and evaluator hard-code the autocast of CUDA, so that `amp: true` on a CPU stays float32 with a warning.
They take the steps of this module as `iteration_update` instead.
"""

from dataclasses import dataclass
from typing import Any

import torch
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys as Keys
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from monai_unet_app.errors import AppError
from monai_unet_app.inference.engines.torch_engine import MeanOfNetworks
from monai_unet_app.training import ranks
from monai_unet_app.training.replay import CASE

PRECISIONS = ("auto", "bf16", "f32")


def resolve_precision(precision: str, device: torch.device, network: nn.Module | None = None) -> str:
    """ "bf16" or "f32"; "auto" takes bf16 if the device has instructions for bf16.

    On a CPU only if the network, where one is given, convolves no channel by itself: with these a step in bf16 took
    up to 1.8 times as long as in f32, and most other networks 0.6 to 0.9 times.

    Raises:
        ValueError: `precision` is not in `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; one of {PRECISIONS} is needed")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "f32"
    if device.type == "cpu":
        return "bf16" if _cpu_has_bf16() and not _is_depthwise(network) else "f32"
    return "f32"


def _cpu_has_bf16() -> bool:
    # CPUs without these instructions emulate bfloat16, which gains nothing over float32
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _is_depthwise(network: nn.Module | None) -> bool:
    return network is not None and any(getattr(layer, "groups", 1) > 1 for layer in network.modules())


def autocast(precision: str, device: torch.device, network: nn.Module) -> torch.autocast:
    """The context in which the network runs; from now on its shallow convolutions run in float32 there."""
    is_bf16 = precision == "bf16"
    if is_bf16 and device.type == "cpu":
        _run_shallow_in_f32(network)
    # bfloat16 has the range of float32: gradients do not underflow, so no gradient scaler is needed (unlike float16)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bf16)


_SHALLOW = "_runs_in_f32_where_shallow"


def _run_shallow_in_f32(network: nn.Module) -> None:
    """Lets 3D convolutions leave the autocast over images with fewer planes than their kernel.

    In bf16 on a CPU torch 2.13 gives these wrong gradients of their weights, from memory that nobody has written: NaN at times,
    and any other number (docs/decisions/0071-shallow-convolutions-in-float32.md). They are small and cost little.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d) and layer.kernel_size[0] > 1 and not hasattr(layer, _SHALLOW):
            setattr(layer, _SHALLOW, None)  # the context that it runs in
            layer.register_forward_pre_hook(_leave_autocast)
            layer.register_forward_hook(_enter_autocast, always_call=True)


def _leave_autocast(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    (image,) = inputs
    if not torch.is_autocast_enabled(image.device.type) or image.shape[2] >= layer.kernel_size[0]:  # type: ignore[index]
        return None
    context = torch.autocast(image.device.type, enabled=False)
    context.__enter__()  # type: ignore[no-untyped-call]
    setattr(layer, _SHALLOW, context)
    return (image.float(),)


def _enter_autocast(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    if (context := getattr(layer, _SHALLOW)) is not None:
        setattr(layer, _SHALLOW, None)
        context.__exit__(None, None, None)


def averaged_model(network: nn.Module, decay: float = 0.999) -> AveragedModel:
    """An exponential moving average of the network's weights.

    The decay grows with the step number n as (1 + n) / (10 + n), from 0.1 to its full value. Otherwise the average of a short
    run would stay near the initial weights.
    """

    def update(averaged: Any, current: Any, steps: Any) -> None:
        step_decay = min(decay, (1.0 + float(steps)) / (10.0 + float(steps)))
        # averaged + (1 - decay) * (current - averaged), in place for all tensors in one call
        torch._foreach_lerp_(averaged, current, 1.0 - step_decay)

    return AveragedModel(network, multi_avg_fn=update)


def together(networks: nn.Module, device: torch.device | str) -> nn.Module:
    """Networks of a `ModuleList`, which are trained at once, on the same windows, each by its own loss; in use their answer is
    the mean. One network alone is given back as it is.
    """
    return (MeanOfNetworks(networks) if isinstance(networks, nn.ModuleList) else networks).to(device)


@dataclass(eq=False)
class TrainingStep:
    """Forward pass, loss in float32, backward pass; then gradient clipping, optimizer step, learning rate, moving average.

    Args:
        precision: "auto", "bf16" or "f32".
        scheduler: Learning rate schedule that is advanced after every step of the optimizer; None keeps the learning rate.
        averaged: Moving average of the weights that is updated after every such step; None keeps no average.
        max_gradient_norm: Gradients are clipped to this norm.
        accumulate: Batches whose mean gradient makes one step of the optimizer; at the end of an epoch those that are left do.
    """

    precision: str = "auto"
    scheduler: Any = None
    averaged: AveragedModel | None = None
    max_gradient_norm: float = 12.0
    accumulate: int = 1

    def __call__(self, trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
        trainer.network.train()
        place, together = self._place(trainer.state)
        if place == 1:
            trainer.optimizer.zero_grad(set_to_none=True)
        output = _forward(trainer, batch, self.precision)
        loss = loss_of(trainer.loss_function, output[Keys.PRED], output[Keys.LABEL])
        output[Keys.LOSS] = loss
        # Before the backward pass, so that a broken gradient never reaches the weights
        if not torch.isfinite(loss):
            cases = f" on windows of {', '.join(batch['id'])}" if "id" in batch else ""
            raise AppError(
                f"the loss is {loss.item()} at step {trainer.state.iteration}{cases}; a finite loss is needed; check "
                "these images, lower the learning rate or train with --precision f32; the state after the last epoch is kept"
            )
        (loss / together).backward()  # type: ignore[no-untyped-call]
        if place == together:
            self._update(trainer)
        if (losses := getattr(trainer.data_loader, "losses", None)) is not None:
            own = _window_losses(trainer.loss_function, output[Keys.PRED], output[Keys.LABEL])
            pairs = ranks.gathered(list(zip(batch[CASE].tolist(), own, strict=True)))
            losses.add([case for case, _ in pairs], [value for _, value in pairs])
        return _model_completed(trainer)

    def _place(self, state: Any) -> tuple[int, int]:
        """The place of this batch among those of its step of the optimizer, from 1, and how many they are."""
        length = state.epoch_length or 1
        within = (state.iteration - 1) % length
        first = within - within % self.accumulate
        return within - first + 1, min(self.accumulate, length - first)

    def _update(self, trainer: Any) -> None:
        # Clipped to a norm of 12 by default, as in nnU-Net
        nn.utils.clip_grad_norm_(trainer.network.parameters(), self.max_gradient_norm)
        trainer.optimizer.step()
        if self.scheduler is not None:
            # After the optimizer, as torch demands; the schedule counts steps, not epochs
            self.scheduler.step()
        if self.averaged is not None:
            self.averaged.update_parameters(trainer.network)


def loss_of(loss_function: Any, answers: Any, label: Tensor) -> Tensor:
    """The loss of one answer, or the weighted mean over several.

    Args:
        loss_function: Takes logits (B, C, *spatial) and a label, both float32.
        answers: Logits (B, C, *window). Or a list or tuple of answers, each of which counts as much as its coarsest axis has of
            the window's voxels: full-size answers count alike, and heads of deep supervision half as much on half the grid. Or
            heads stacked as (B, heads, C, *window), each of which counts half as much as the one before.
        label: Shape (B, 1 or C, *window). It is sampled at the nearest voxels for an answer on a coarser grid.
    """
    if isinstance(answers, list | tuple):
        losses = torch.stack([loss_of(loss_function, answer, label) for answer in answers])
        return _weighted_mean(losses, [_share_of_grid(answer, label) for answer in answers])
    if answers.dim() > label.dim():
        losses = torch.stack([loss_of(loss_function, head, label) for head in answers.unbind(1)])
        return _weighted_mean(losses, [0.5**n for n in range(answers.shape[1])])
    # MONAI's clDice negates the label, and gives other values for uint8 than for float32
    label = label.float()
    if answers.shape[2:] != label.shape[2:]:
        label = torch.nn.functional.interpolate(label, answers.shape[2:], mode="nearest-exact")
    # bfloat16 has 8 bits of precision, too few for the sums over voxels in a loss
    loss: Tensor = loss_function(answers.float(), label).mean()
    return loss


@torch.no_grad()
def _window_losses(loss_function: Any, answers: Any, label: Tensor) -> list[float]:
    """The loss of each window of a batch by itself; arguments as of `loss_of`."""
    return [float(loss_of(loss_function, _window(answers, n), label[n : n + 1])) for n in range(len(label))]


def _window(answers: Any, n: int) -> Any:
    return [_window(answer, n) for answer in answers] if isinstance(answers, list | tuple) else answers[n : n + 1]


def _weighted_mean(losses: Tensor, weights: list[float]) -> Tensor:
    shares = losses.new_tensor(weights)
    return (losses * shares).sum() / shares.sum()


def _share_of_grid(answer: Any, label: Tensor) -> float:
    """Voxels of an answer along its coarsest axis, as a part of the label's; 1 for a group of answers."""
    if not isinstance(answer, Tensor) or answer.dim() != label.dim():
        return 1.0
    return min(own / full for own, full in zip(answer.shape[2:], label.shape[2:], strict=True))


@dataclass(eq=False)
class ValidationStep:
    """Sliding-window inference on one whole selection case, in the precision of the training.

    Args:
        precision: As of the training.
        ignored: Label value of voxels without a class; prediction and label both become background there. None: there are none.
    """

    precision: str = "auto"
    ignored: int | None = None

    def __call__(self, evaluator: Any, batch: dict[str, Any]) -> dict[str, Any]:
        evaluator.network.eval()
        with torch.no_grad():
            output = _forward(evaluator, batch, self.precision)
        output[Keys.PRED] = output[Keys.PRED].float()
        if self.ignored is not None:
            _make_background(output, output[Keys.LABEL] == self.ignored)
        evaluator.fire_event(IterationEvents.FORWARD_COMPLETED)
        return _model_completed(evaluator)


_SURE = 1e4  # a logit


def _make_background(output: dict[str, Any], where: Tensor) -> None:
    """Background in prediction, logits (B, C, *spatial), and label, (B, 1 or C, *spatial), at places of the label's shape."""
    logits, label = output[Keys.PRED], output[Keys.LABEL]
    output[Keys.LABEL] = label.masked_fill(where, 0)
    output[Keys.PRED] = logits.masked_fill(where.any(1, keepdim=True), -_SURE)
    if label.shape[1] < logits.shape[1]:  # exclusive classes, of which the first is the background
        output[Keys.PRED][:, :1].masked_fill_(where, _SURE)


def _forward(engine: Any, batch: dict[str, Any], precision: str) -> dict[str, Any]:
    """Runs the network on a batch; the state of the engine gets image, label and prediction as its output."""
    device = engine.state.device
    inputs, targets = engine.prepare_batch(batch, device, engine.non_blocking)
    output: dict[str, Any] = {Keys.IMAGE: inputs, Keys.LABEL: targets}
    engine.state.output = output
    with autocast(resolve_precision(precision, device, engine.network), device, engine.network):
        output[Keys.PRED] = engine.inferer(inputs, engine.network)
    return output


def _model_completed(engine: Any) -> dict[str, Any]:
    """Fires the event at which MONAI decollates the output and runs the post-processing; gives its output."""
    engine.fire_event(IterationEvents.MODEL_COMPLETED)
    output: dict[str, Any] = engine.state.output
    return output
