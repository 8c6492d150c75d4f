"""The two U-Nets of nnU-Net v2, with the names of weights and the order of arithmetic of its checkpoints.

Names and arguments are those of `architecture` in nnU-Net's plans.json, so that a checkpoint loads without a change.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_OF_AXES = {
    2: (nn.Conv2d, nn.ConvTranspose2d, nn.AvgPool2d),
    3: (nn.Conv3d, nn.ConvTranspose3d, nn.AvgPool3d),
}
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
        self._norm, self._dropout, self._nonlin = (
            (plan.get(name), plan.get(f"{name}_kwargs") or {}) for name in ("norm_op", "dropout_op", "nonlin")
        )

    def norm(self, channels: int) -> list[tuple[str, nn.Module]]:
        name, arguments = self._norm
        return [("norm", getattr(nn, _name(name))(channels, **arguments))] if name else []

    def dropout(self) -> list[tuple[str, nn.Module]]:
        name, arguments = self._dropout
        return [("dropout", getattr(nn, _name(name))(**arguments))] if name else []

    def nonlin(self) -> list[tuple[str, nn.Module]]:
        name, arguments = self._nonlin
        return [("nonlin", getattr(nn, _name(name))(**arguments))] if name else []

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
        after = [] if kind else layers.dropout()
        after += layers.norm(channels[1])
        last = [] if kind else layers.nonlin()
        if layers.nonlin_first and last and layers.norm(channels[1]):
            after[-1:] = [*last, after[-1]]
            last = []
        parts = [("conv", conv), *after, *last]
        for name, part in parts:
            self.add_module(name, part)
        self.all_modules = nn.Sequential(*(part for _, part in parts))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.all_modules(x)
        return out


class _Stack(nn.Module):
    """Convolutions one after the other; the first has the stride."""

    def __init__(self, layers: _Layers, count: int, channels: tuple[int, int], kernel: Steps, stride: Steps) -> None:
        super().__init__()
        inputs = [channels[0], *[channels[1]] * (count - 1)]
        strides = [stride, *[[1] * layers.axes] * (count - 1)]
        self.convs = nn.Sequential(
            *(_Conv(layers, (n, channels[1]), kernel, step) for n, step in zip(inputs, strides, strict=True))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convs(x)
        return out


class _Residual(nn.Module):
    """Two convolutions beside a skip, which is averaged where it must shrink and projected where channels change."""

    def __init__(self, layers: _Layers, channels: tuple[int, int], kernel: Steps, stride: Steps) -> None:
        super().__init__()
        self.conv1 = _Conv(layers, channels, kernel, stride)
        self.conv2 = _Conv(layers, (channels[1], channels[1]), kernel, [1] * layers.axes, kind="second")
        self.nonlin2 = nn.Sequential() if not (last := layers.nonlin()) else last[0][1]
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


class _Blocks(nn.Module):
    """Residual blocks one after the other; the first has the stride."""

    def __init__(self, layers: _Layers, count: int, channels: tuple[int, int], kernel: Steps, stride: Steps) -> None:
        super().__init__()
        first = _Residual(layers, channels, kernel, stride)
        ones = [1] * layers.axes
        others = (_Residual(layers, (channels[1], channels[1]), kernel, ones) for _ in range(count - 1))
        self.blocks = nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x)
        return out


class _Encoder(nn.Module):
    """The way down; gives what each stage leaves."""

    def __init__(self, stages: Sequence[nn.Module], stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.stem is not None:
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
        stages, transposed, heads = [], [], []
        for number, count in enumerate(sizes.decoder, 1):
            below, own = sizes.features[-number], sizes.features[-number - 1]
            stride = layers.each(sizes.strides[-number])
            transposed.append(layers.transposed(below, own, stride, stride, bias=layers.bias))  # type: ignore[arg-type]
            kernel = layers.each(sizes.kernels[-number - 1])
            stages.append(_Stack(layers, count, (2 * own, own), kernel, [1] * layers.axes))
            heads.append(layers.conv(own, classes, 1, 1, 0, bias=True))
        self.stages = nn.ModuleList(stages)
        self.transpconvs = nn.ModuleList(transposed)
        self.seg_layers = nn.ModuleList(heads)

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
        into = [inputs, *self.features[:-1]]
        for blocks, *channels, kernel, stride in zip(
            self.blocks, into, self.features, self.kernels, self.strides, strict=True
        ):
            yield blocks, (channels[0], channels[1]), layers.each(kernel), layers.each(stride)


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
        stages = [nn.Sequential(_Stack(layers, *stage)) for stage in sizes.stages(layers, input_channels)]
        self.encoder = _Encoder(stages)
        self.decoder = _Decoder(layers, self.encoder, sizes, num_classes)


class ResidualEncoderUNet(_UNet):
    """nnU-Net's U-Net with a residual encoder; arguments as of `PlainConvUNet`."""

    def __init__(self, input_channels: int, num_classes: int, **plan: Any) -> None:
        super().__init__()
        layers, sizes = _Layers(plan), _Sizes(plan, "n_blocks_per_stage")
        first = plan.get("stem_channels") or sizes.features[0]
        stem = _Stack(layers, 1, (input_channels, first), layers.each(sizes.kernels[0]), [1] * layers.axes)
        self.encoder = _Encoder([_Blocks(layers, *stage) for stage in sizes.stages(layers, first)], stem)
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
        self._flips = [[at for n, at in enumerate(places) if bits >> n & 1] for bits in _by_count(len(places))]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C, *window), in voxels as the windows (B, C_in, *window)."""
        total: Tensor = self.network(x)
        for flip in self._flips:
            total += torch.flip(self.network(torch.flip(x, flip)), flip)
        total /= len(self._flips) + 1
        return total


def _by_count(axes: int) -> list[int]:
    """Every combination but the empty one, as bits: single axes first, then pairs, each in the order of their axes."""
    every = [[n for n in range(axes) if bits >> n & 1] for bits in range(1, 1 << axes)]
    return [sum(1 << n for n in one) for one in sorted(every, key=lambda one: (len(one), one))]


def _for_each(value: Any, stages: int) -> list[Any]:
    """A value for each stage."""
    return [value] * stages if isinstance(value, int) else list(value)


def _name(name: str) -> str:
    """The last word of "torch.nn.modules.conv.Conv3d"."""
    return name.rpartition(".")[2]
