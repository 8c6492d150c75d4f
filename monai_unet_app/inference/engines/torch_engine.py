"""The plain engine: the network as torch runs it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from monai_unet_app.errors import InputRefusedError

from . import Answer, answer_of

_LARGE_BYTES = 1 << 27  # of a layer's output


class MeanOfNetworks(nn.ModuleList):
    """An ensemble: its answer is the mean of those of its networks, which `model.pt` holds one after the other.

    In training it gives the answer of each, so that each learns by itself.

    Attributes:
        apart: Engines ask each network for its answer, and their mean is made of the sums of windows, as nnU-Net makes it.
    """

    apart = False

    def forward(self, windows: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, C_out, *window) of windows (B, C_in, *window); in training a list of them."""
        if self.training:
            return [network(windows) for network in self]
        networks = iter(self)
        mean: Tensor = next(networks)(windows)
        for network in networks:  # one answer at a time beside the sum
            mean = mean + network(windows)
        return mean / len(self)


def statistics_of(output: Tensor) -> Tensor:
    """`Answer.layer`, means and deviations, of the values that a layer gives, shape (B, C, *spatial)."""
    flat = output.float().flatten(2)
    return torch.cat([flat.mean(2), flat.std(2)], 1)


class TorchEngine:
    """Calls the network in eval mode.

    Args:
        network: Already on `device`.
        device: CUDA, MPS or CPU.
        slice_axis: Spatial axis along which a 2D network takes one slice at a time; None for a network with as many spatial
            axes as the image.
        feature_layer: Name of the submodule whose output, shape (B, C, *spatial), is summed up in each answer; None for none.
        may_leave: A window for which `device` has no memory runs on the CPU.
        precision: float32, or what torch computes convolutions in by itself (autocast): bfloat16 or float16.
    """

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        slice_axis: int | None = None,
        feature_layer: str | None = None,
        *,
        may_leave: bool = False,
        precision: str = "float32",
    ) -> None:
        self.network, self.precision = network.eval(), getattr(torch, precision)
        self.device, self.may_leave = device, may_leave
        self.slice_axis = slice_axis
        self.networks = list(network) if isinstance(network, MeanOfNetworks) and network.apart else [network]
        self.heads = [
            part
            for part in network.modules()
            if isinstance(part, nn.Conv2d | nn.Conv3d) and max(part.kernel_size) == max(part.stride) == 1
        ]
        self.layer = None if feature_layer is None else network.get_submodule(feature_layer)

    def __call__(self, windows: Tensor) -> Answer:
        """The answer; where the device has no memory for it, window by window, or from the CPU.

        Raises:
            InputRefusedError: The device has no memory for one window, and the CPU may not take its place.
        """
        try:
            return self._answer(windows)
        except torch.OutOfMemoryError:
            if len(windows) > 1:
                answers = [self(window) for window in torch.split(windows, 1)]
                layers = [answer.layer for answer in answers if answer.layer is not None]
                logits = torch.cat([answer.logits for answer in answers])
                return Answer(logits, torch.cat(layers) if layers else None, len(self.networks))
            if not self.may_leave:
                raise InputRefusedError(
                    f"{self.device} has no memory for one window of {' x '.join(map(str, windows.shape[2:]))}; free memory "
                    "there, take --device cpu, or a bundle with a smaller window"
                ) from None
        try:
            self.network.cpu()
            return self._answer(windows.cpu())
        finally:
            self.network.to(self.device)

    # Not inference_mode: its tensors could not be changed in place afterwards, and their sums are
    @torch.no_grad()
    def _answer(self, windows: Tensor) -> Answer:
        return replace(answer_of(self._run, windows, self.slice_axis), networks=len(self.networks))

    def _run(self, windows: Tensor) -> tuple[Tensor, Tensor | None]:
        seen: list[Tensor] = []

        def see(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen.append(statistics_of(output).cpu())

        # Only for this call, so that the network is the same as before for whoever else runs it
        hooks = [] if self.layer is None else [self.layer.register_forward_hook(see)]
        hooks += [hook for head in self.heads for hook in _in_plain_layout(head)]
        fewer_bits = torch.autocast(windows.device.type, self.precision, enabled=self.precision != torch.float32)
        try:
            with fewer_bits:
                answers = [network(windows) for network in self.networks]
                logits = answers[0] if len(answers) == 1 else torch.cat(answers, 1)  # joining one would copy it
        finally:
            for hook in hooks:
                hook.remove()
        return logits.float(), seen[-1] if seen else None


def _in_plain_layout(head: Any) -> Iterator[RemovableHandle]:
    """Hooks by which oneDNN leaves out a layer whose output is large: it would hold that output in two layouts at once."""
    switch: Any = torch.backends.mkldnn.set_flags
    enabled = torch.backends.mkldnn.enabled

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].numel() // head.in_channels * head.out_channels
        if 4 * values >= _LARGE_BYTES and inputs[0].device.type == "cpu":
            switch(False)

    def after(*_: object) -> None:
        switch(enabled)

    yield head.register_forward_pre_hook(before)
    yield head.register_forward_hook(after, always_call=True)
