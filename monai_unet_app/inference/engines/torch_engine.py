"""The plain engine: the network as torch runs it, in float32."""

import torch


class TorchEngine:
    """Calls the network in eval mode.

    Args:
        network: Already on `device`.
        device: CUDA, MPS or CPU.
        slice_axis: Spatial axis along which a 2D network takes one slice at a time; None for a network with as many spatial
            axes as the image.
    """

    def __init__(self, network: torch.nn.Module, device: torch.device, slice_axis: int | None = None) -> None:
        self.network = network.eval()
        self.device = device
        self.slice_axis = slice_axis

    @torch.inference_mode()
    def __call__(self, windows: torch.Tensor) -> torch.Tensor:
        axis = None if self.slice_axis is None else self.slice_axis + 2  # behind batch and channel
        logits: torch.Tensor = self.network(windows if axis is None else windows.squeeze(axis))
        return logits if axis is None else logits.unsqueeze(axis)
