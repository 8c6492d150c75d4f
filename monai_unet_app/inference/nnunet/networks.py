"""The two U-Nets of nnU-Net v2, with the names of weights and the order of arithmetic of its checkpoints.

Names and arguments are those of `architecture` in nnU-Net's plans.json, so that a checkpoint loads without a change.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import torch
from torch import Tensor, nn

_OF_AXES = {2: (nn.Conv2d, nn.ConvTranspose2d, nn.AvgPool2d), 3: (nn.Conv3d, nn.ConvTranspose3d, nn.AvgPool3d)}
Steps = Sequence[int]


class _Layers:
    """What makes the layers of a network: of 2 or 3 axes, with its normalisation, dropout and nonlinearity.

    Args:
        plan: `arch_kwargs` of plans.json: names in `torch.nn` of the convolution, the normalisation, the dropout and the
            nonlinearity, or None, with their arguments.
    """

    def __init__(self, plan: Mapping[str, Any]) -> None:
        self.axes = 3 if _name(plan["conv_op"]) == "Conv3d" else 2
        self.conv, self.transposed, self.pool = _OF_AXES[self.axes]
        self.bias, self.nonlin_first = bool(plan.get("conv_bias")), bool(plan.get("nonlin_first"))
        self._plan = plan

    def part(self, key: str, *channels: int) -> list[tuple[str, nn.Module]]:
        """The layer that the plan names at "norm_op", "dropout_op" or "nonlin", with its name among the weights; or none."""
        name, arguments = self._plan.get(key), self._plan.get(f"{key}_kwargs") or {}
        return [(key.removesuffix("_op"), getattr(nn, _name(name))(*channels, **arguments))] if name else []

    def each(self, value: int | Steps) -> list[int]:
        """A number for each axis."""
        return [value] * self.axes if isinstance(value, int) else list(value)


class _Conv(nn.Module):
    """A convolution with what follows it. A checkpoint has its weights twice: by name, and in `all_modules`."""

    def __init__(
        self, layers: _Layers, channels: tuple[int, int], kernel: Steps, stride: Steps, kind: str = ""
    ) -> None:
        super().__init__()
        bias = layers.bias and kind != "skip"
        conv = layers.conv(*channels, kernel, stride, [(n - 1) // 2 for n in kernel], bias=bias)  # type: ignore[arg-type]
        dropout, nonlin = ([], []) if kind else (layers.part("dropout_op"), layers.part("nonlin"))
        norm = layers.part("norm_op", channels[1])
        parts = [("conv", conv), *dropout, *([*nonlin, *norm] if layers.nonlin_first else [*norm, *nonlin])]
        for name, part in parts:
            self.add_module(name, part)
        self.all_modules = nn.Sequential(*(part for _, part in parts))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.all_modules(x)
        return out


class _Residual(nn.Module):
    """Two convolutions beside a skip, which is averaged where it must shrink and projected where channels change."""

    def __init__(self, layers: _Layers, channels: tuple[int, int], kernel: Steps, stride: Steps) -> None:
        super().__init__()
        self.conv1 = _Conv(layers, channels, kernel, stride)
        self.conv2 = _Conv(layers, (channels[1], channels[1]), kernel, [1] * layers.axes, kind="second")
        self.nonlin2 = nn.Sequential() if not (last := layers.part("nonlin")) else last[0][1]
        ones, skip = [1] * layers.axes, list[nn.Module]()
        if max(stride) > 1:
            skip.append(layers.pool(stride, stride))  # type: ignore[arg-type]
        if channels[0] != channels[1]:
            skip.append(_Conv(layers, channels, ones, ones, kind="skip"))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.skip(x)
        out: Tensor = self.conv2(self.conv1(x))
        out += residual
        done: Tensor = self.nonlin2(out)
        return done


def _stack(
    layers: _Layers, count: int, channels: tuple[int, int], kernel: Steps, stride: Steps, *, residual: bool = False
) -> nn.Sequential:
    """Convolutions, or residual blocks, one after the other; the first has the stride."""
    kind, name = (_Residual, "blocks") if residual else (_Conv, "convs")
    ones, same = [1] * layers.axes, (channels[1], channels[1])
    others = (kind(layers, same, kernel, ones) for _ in range(count - 1))
    return nn.Sequential(OrderedDict({name: nn.Sequential(kind(layers, channels, kernel, stride), *others)}))


class _Encoder(nn.Module):
    """The way down; gives what each stage leaves."""

    def __init__(self, stages: Sequence[nn.Module], stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.stages = stem or nn.Identity(), nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        left = []
        for stage in self.stages:
            x = stage(x)
            left.append(x)
        return left


class _Decoder(nn.Module):
    """The way up. A checkpoint has the weights of the encoder a second time, under the decoder."""

    def __init__(self, layers: _Layers, encoder: _Encoder, sizes: "_Sizes", classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.stages, self.transpconvs, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for number, count in enumerate(sizes.decoder, 1):
            below, own = sizes.features[-number], sizes.features[-number - 1]
            stride = layers.each(sizes.strides[-number])
            self.transpconvs.append(layers.transposed(below, own, stride, stride, bias=layers.bias))  # type: ignore[arg-type]
            kernel = layers.each(sizes.kernels[-number - 1])
            self.stages.append(_stack(layers, count, (2 * own, own), kernel, [1] * layers.axes))
            self.seg_layers.append(layers.conv(own, classes, 1, 1, 0, bias=True))

    def forward(self, left: Sequence[Tensor]) -> Tensor:
        x = left[-1]
        for stage, up, beside in zip(self.stages, self.transpconvs, reversed(left[:-1]), strict=True):
            x = stage(torch.cat((up(x), beside), 1))
        logits: Tensor = self.seg_layers[-1](x)
        return logits


class _Sizes:
    """Features, kernels, strides and numbers of blocks of the stages, from the finest down."""

    def __init__(self, plan: Mapping[str, Any], blocks: str) -> None:
        count = plan["n_stages"]
        names = ("features_per_stage", "kernel_sizes", "strides", blocks)
        self.features, self.kernels, self.strides, self.blocks = (_for_each(plan[name], count) for name in names)
        self.decoder = _for_each(plan["n_conv_per_stage_decoder"], count - 1)

    def stages(self, layers: _Layers, inputs: int) -> Iterator[tuple[int, tuple[int, int], list[int], list[int]]]:
        """Of each stage: blocks, channels in and out, kernel and stride."""
        stages = zip(self.blocks, pairwise([inputs, *self.features]), self.kernels, self.strides, strict=True)
        return (
            (count, channels, layers.each(kernel), layers.each(stride)) for count, channels, kernel, stride in stages
        )


class _UNet(nn.Module):
    """An encoder and a decoder."""

    encoder: _Encoder
    decoder: _Decoder

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, *window), in voxels as the windows (B, input_channels, *window)."""
        logits: Tensor = self.decoder(self.encoder(x))
        return logits


class PlainConvUNet(_UNet):
    """nnU-Net's U-Net of plain convolutions.

    Args:
        input_channels: Of a window.
        num_classes: Of the logits.
        plan: `arch_kwargs` of plans.json.
    """

    def __init__(self, input_channels: int, num_classes: int, **plan: Any) -> None:
        super().__init__()
        layers, sizes = _Layers(plan), _Sizes(plan, "n_conv_per_stage")
        stages = [nn.Sequential(_stack(layers, *stage)) for stage in sizes.stages(layers, input_channels)]
        self.encoder = _Encoder(stages)
        self.decoder = _Decoder(layers, self.encoder, sizes, num_classes)


class ResidualEncoderUNet(_UNet):
    """nnU-Net's U-Net with a residual encoder; arguments as of `PlainConvUNet`."""

    def __init__(self, input_channels: int, num_classes: int, **plan: Any) -> None:
        super().__init__()
        layers, sizes = _Layers(plan), _Sizes(plan, "n_blocks_per_stage")
        first = plan.get("stem_channels") or sizes.features[0]
        stem = _stack(layers, 1, (input_channels, first), layers.each(sizes.kernels[0]), [1] * layers.axes)
        self.encoder = _Encoder([_stack(layers, *stage, residual=True) for stage in sizes.stages(layers, first)], stem)
        self.decoder = _Decoder(layers, self.encoder, sizes, num_classes)


class Mirrored(nn.Module):
    """The mean of a network's answers to a window and to its mirror images along every combination of these axes.

    Args:
        network: Gives logits (B, C, *window).
        axes: Spatial axes of a window, counted from 0.
    """

    def __init__(self, network: nn.Module, axes: Steps) -> None:
        super().__init__()
        self.network = network
        places = [axis + 2 for axis in axes]
        self._flips = [flip for count in range(1, len(places) + 1) for flip in combinations(places, count)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C, *window), in voxels as the windows (B, C_in, *window)."""
        total: Tensor = self.network(x)
        for flip in self._flips:
            total += torch.flip(self.network(torch.flip(x, flip)), flip)
        total /= len(self._flips) + 1
        return total


def _for_each(value: Any, stages: int) -> list[Any]:
    """A value for each stage."""
    return [value] * stages if isinstance(value, int) else list(value)


def _name(name: str) -> str:
    """The last word of "torch.nn.modules.conv.Conv3d"."""
    return name.rpartition(".")[2]
