"""One optimisation step and one validation step, in the fastest precision that the device computes rightly.

MONAI's trainer and evaluator hard-code CUDA's autocast, so that `amp: true` on a CPU stays float32 with a warning;
they take these as `iteration_update` instead.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys as Keys
from torch.optim.swa_utils import AveragedModel

from monai_unet_app.errors import AppError

PRECISIONS = ("auto", "bf16", "f32")


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "bf16" or "f32"; "auto" takes bf16 where the device has instructions for it.

    Raises:
        ValueError: `precision` is none of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; one of {PRECISIONS} is needed")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "f32"
    if device.type == "cpu":
        return "bf16" if _cpu_has_bf16() else "f32"
    return "f32"


def _cpu_has_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which the network runs."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def averaged_model(network: torch.nn.Module, decay: float = 0.999) -> AveragedModel:
    """An exponential moving average of the network's weights.

    The decay grows from 0.1 to its full value with the steps n as (1 + n) / (10 + n), so that a short run is not left with
    the weights it began with.
    """

    def update(averaged: Any, current: Any, steps: Any) -> None:
        now = min(decay, (1.0 + float(steps)) / (10.0 + float(steps)))
        torch._foreach_lerp_(averaged, current, 1.0 - now)

    return AveragedModel(network, multi_avg_fn=update)


class TrainingStep:
    """Forward, loss in float32, backward, clip, step, learning rate, moving average.

    Args:
        precision: "auto", "bf16" or "f32".
        scheduler: Stepped after every step, if given.
        averaged: Moving average to update, if given.
        max_gradient_norm: Gradients are clipped to this norm.
    """

    def __init__(
        self,
        precision: str = "auto",
        scheduler: Any = None,
        averaged: AveragedModel | None = None,
        max_gradient_norm: float = 12.0,
    ) -> None:
        self.precision = precision
        self.scheduler = scheduler
        self.averaged = averaged
        self.max_gradient_norm = max_gradient_norm

    def __call__(self, engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        trainer: Any = engine
        device = trainer.state.device
        inputs, targets = trainer.prepare_batch(batch, device, trainer.non_blocking)
        trainer.state.output = {Keys.IMAGE: inputs, Keys.LABEL: targets}
        trainer.network.train()
        trainer.optimizer.zero_grad(set_to_none=True)
        with autocast(resolve_precision(self.precision, device), device):
            pred = trainer.inferer(inputs, trainer.network)
        trainer.state.output[Keys.PRED] = pred
        loss = trainer.loss_function(pred.float(), targets).mean()
        trainer.state.output[Keys.LOSS] = loss
        if not torch.isfinite(loss):
            raise AppError(
                f"the loss is {loss.item()} at step {trainer.state.iteration}; a finite one is needed; "
                "lower the learning rate or train with --precision f32"
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainer.network.parameters(), self.max_gradient_norm)
        trainer.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self.averaged is not None:
            self.averaged.update_parameters(trainer.network)
        trainer.fire_event(IterationEvents.MODEL_COMPLETED)
        return trainer.state.output


class ValidationStep:
    """Sliding-window inference on one whole selection case, in the training's precision."""

    def __init__(self, precision: str = "auto") -> None:
        self.precision = precision

    def __call__(self, engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        evaluator: Any = engine
        device = evaluator.state.device
        inputs, targets = evaluator.prepare_batch(batch, device, evaluator.non_blocking)
        evaluator.state.output = {Keys.IMAGE: inputs, Keys.LABEL: targets}
        evaluator.network.eval()
        with torch.no_grad(), autocast(resolve_precision(self.precision, device), device):
            pred = evaluator.inferer(inputs, evaluator.network)
        evaluator.state.output[Keys.PRED] = pred.float()
        evaluator.fire_event(IterationEvents.FORWARD_COMPLETED)
        evaluator.fire_event(IterationEvents.MODEL_COMPLETED)
        return evaluator.state.output
