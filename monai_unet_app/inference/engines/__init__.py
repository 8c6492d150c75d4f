"""Engines: each runs one batch of windows through the network.

A new engine is a module here with what makes it of a bundle, its name in `config.EngineName`, and a row in `chooser.ENGINES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from monai_unet_app.data.rules import InputRules
from monai_unet_app.inference.windows import WindowSettings
from monai_unet_app.metrics.outputs import Outputs

from .certificate import BundleWithParity


@dataclass(frozen=True)
class Answer:
    """The answer of a network to a batch of windows.

    Attributes:
        logits: Shape (B, C_out, *window), float32, on the engine's device, or on the CPU.
        layer: Shape (B, 2 C), float32, on the CPU: mean, then deviation over the window of each channel of the bundle's
            `feature_layer`; None where the bundle names no layer.
        networks: How many networks answered apart; the logits of each lie behind those of the one before.
    """

    logits: torch.Tensor
    layer: torch.Tensor | None = None
    networks: int = 1


class Source(BundleWithParity, Protocol):
    """What engines are made of: a bundle, as `monai_unet_app.bundle.Bundle` describes it."""

    @property
    def device(self) -> torch.device: ...
    @property
    def may_leave_device(self) -> bool: ...
    @property
    def network(self) -> torch.nn.Module: ...
    @property
    def rules(self) -> InputRules: ...
    @property
    def outputs(self) -> Outputs: ...
    @property
    def windows(self) -> WindowSettings: ...
    @property
    def slice_axis(self) -> int | None: ...
    @property
    def feature_layer(self) -> str | None: ...


class Engine(Protocol):
    """Runs one batch of windows."""

    device: torch.device

    def __call__(self, windows: torch.Tensor) -> Answer:
        """The answer to windows of shape (B, C_in, *window), float32, on `device`."""
        ...


def answer_of(
    run: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]],
    windows: torch.Tensor,
    slice_axis: int | None,
) -> Answer:
    """The answer to windows of shape (B, C_in, *window).

    Args:
        run: Gives logits and layer as in `Answer`.
        windows: Of an image.
        slice_axis: Spatial axis, of size 1, that `run` does not know; None if it knows all.
    """
    if slice_axis is None:
        return Answer(*run(windows))
    axis = slice_axis + 2  # behind batch and channel
    logits, layer = run(windows.squeeze(axis))
    return Answer(logits.unsqueeze(axis), layer)
