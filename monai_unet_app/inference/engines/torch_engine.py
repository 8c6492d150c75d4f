"""The plain engine: the network as torch runs it, in float32."""

from __future__ import annotations

import torch


class TorchEngine:
    """Calls the network in eval mode.

    Args:
        network: Already on `device`.
        device: CUDA, MPS or CPU.
        slice_axis: Spatial axis along which a 2D network sees one slice at a time; None for a network of the image's
            own dimension.
    """

    def __init__(self, network: torch.nn.Module, device: torch.device, slice_axis: int | None = None) -> None:
        self.network = network.eval()
        self.device = device
        self.slice_axis = slice_axis

    @torch.inference_mode()
    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        if self.slice_axis is None:
            return self.network(windows)
        axis = self.slice_axis + 2
        return self.network(windows.squeeze(axis)).unsqueeze(axis)
