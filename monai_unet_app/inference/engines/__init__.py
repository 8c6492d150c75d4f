"""Engines: each runs one batch of windows through the network. A new engine is a module here with the same call."""

from typing import Protocol

import torch


class Engine(Protocol):
    """Runs one batch of windows."""

    device: torch.device

    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        """Logits of a batch.

        Args:
            windows: Shape (B, C_in, *window), float32, on `device`.

        Returns:
            Shape (B, C_out, *window), float32, on `device`.
        """
        ...
