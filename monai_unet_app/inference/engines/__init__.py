"""Engines: each runs one batch of windows through the network.

A new engine is a module here with a class that is made and called as `TorchEngine` is, and a row in `chooser.ENGINES`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Answer:
    """The answer of a network to a batch of windows.

    Attributes:
        logits: Shape (B, C_out, *window), float32, on the engine's device, or on the CPU.
        layer: Shape (B, 2 C), float32, on the CPU: mean, then deviation over the window of each channel of the bundle's
            `feature_layer`; None where the bundle names no layer.
    """

    logits: torch.Tensor
    layer: torch.Tensor | None = None


class Engine(Protocol):
    """Runs one batch of windows."""

    device: torch.device

    def __call__(self, windows: torch.Tensor) -> Answer:
        """The answer to windows of shape (B, C_in, *window), float32, on `device`."""
        ...
