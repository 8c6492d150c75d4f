"""A check of a network before data are read: it must take the bundle's windows and give one logit for each label and voxel.

Shapes are computed on torch's "meta" device, which computes no values and takes milliseconds for any window. Only one small
window of zeros is really computed. The network and the state of the random numbers do not change.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from monai_unet_app.errors import first_line

_MULTIPLES = (2, 4, 8, 16, 32, 64, 128)  # a U-Net with n halvings needs a multiple of 2**n
_SMALL = (16, 32, 64, 128)
_WHOLE_AXIS = 64  # tried for an axis along which a window takes the whole image
_MOST_CHANNELS = 8
_ACTIVATIONS = (F.relu, F.leaky_relu, F.prelu, torch.relu, torch.prelu)
_ELEMENTWISE = (Tensor.add, Tensor.add_, Tensor.mul, Tensor.mul_, Tensor.div, Tensor.div_)
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
Size = tuple[int, ...]


class UnfitNetworkError(Exception):
    """The network cannot be used in this bundle. The message is one sentence with a remedy, without the bundle's name."""


@dataclass(frozen=True)
class Demands:
    """The demands of a bundle on its network.

    Attributes:
        channels: Channels of an image.
        window: Spatial size of a window, one number for each axis of the network; 0 or less takes the whole image.
        labels: Names of the output channels.
        layer: Name of the submodule whose features are used, or None.
    """

    channels: int
    window: Size
    labels: tuple[str, ...]
    layer: str | None = None


def check_network(network: nn.Module, demands: Demands, *, trained: bool = True) -> None:
    """Raises UnfitNetworkError if the network does not fit the bundle.

    Args:
        network: In eval mode.
        demands: The demands of the bundle.
        trained: Whether the weights are trained; trained weights must be finite and give finite logits.
    """
    _check_layer_name(network, demands.layer)
    size = tuple(n if n > 0 else _WHOLE_AXIS for n in demands.window)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        checked = _CheckedNetwork(network, demands.channels, size, demands.layer)
        checked.check_output(demands.labels)
        if demands.layer is not None:
            checked.check_layer(demands.layer)
        if trained:
            checked.check_finite()


def _check_layer_name(network: nn.Module, name: str | None) -> None:
    layers = [layer for layer, _ in network.named_modules() if layer]
    if name is None or name in layers:
        return
    near = get_close_matches(name, layers, n=3, cutoff=0.4) or [layer for layer in layers if "." not in layer][:5]
    raise UnfitNetworkError(
        f"`feature_layer` is {name!r}, and the network has no layer of that name; name one of its layers ({', '.join(near)}) "
        "or leave `feature_layer` out"
    )


class _CheckedNetwork:
    """A network and its output for windows of the bundle.

    Args:
        network: In eval mode.
        channels: Channels of an image, by the input rules. Preprocessing may change their number: if the network fails
            with this number, others are tried.
        size: Size of a window.
        layer: As in `Demands`.
    """

    def __init__(self, network: nn.Module, channels: int, size: Size, layer: str | None) -> None:
        self.network, self.size, self.layer = network, size, layer
        self.features: Any = None  # what the layer gave last on the meta device
        self.meta_network = _on_meta_device(network)
        self.meta_outputs: dict[tuple[Size, int], Any] = {}
        self.channels = self._channels(channels)
        output = self._meta_output(size)
        # A network whose shapes depend on values cannot run on the meta device; a real window then decides
        self.output = self._output(size) if isinstance(output, Exception) else output

    def check_output(self, labels: Sequence[str]) -> None:
        """The output must be one tensor, of the window's size, with a channel for each label."""
        output, size = self.output, self.size
        if isinstance(output, Exception):
            if advice := _other_windows(self._fits, size):
                raise UnfitNetworkError(
                    f"`window` is {_by(size)}, which the network cannot halve as often as it has levels; {advice}"
                )
            raise UnfitNetworkError(
                f"the network fails on a window of {_by(size)} and {self.channels} channel(s): {first_line(output)}; correct "
                "`network_def`, `window` or `input_rules`"
            )
        if not isinstance(output, Tensor):
            count = f" of {len(output)}" if isinstance(output, Sized) else ""
            raise UnfitNetworkError(
                f"the network gives a {type(output).__name__}{count} where one tensor of logits is needed; switch deep "
                "supervision off in `network_def`, or take a network that gives one tensor in eval mode"
            )
        if tuple(output.shape[2:]) != size:
            advice = _other_windows(self._fits, size) or "correct `network_def`"
            raise UnfitNetworkError(
                f"the network gives logits of {_by(output.shape[2:])} for a window of {_by(size)}; the same size is needed; "
                f"{advice}"
            )
        if output.shape[1] != len(labels):
            raise UnfitNetworkError(
                f"the network gives {output.shape[1]} channel(s), `labels` names {len(labels)} ({', '.join(labels)}); one for "
                'each is needed; set out_channels to "$len(@labels)" and train again, or correct `labels`'
            )

    def check_layer(self, name: str) -> None:
        """The layer must give one tensor with channels and spatial axes."""
        features = self.features
        if features is None:  # the network does not run on the meta device
            _, features = _output_and_features(self.network, name, lambda: self._output(self.size))
        if not (isinstance(features, Tensor) and features.ndim > 2):
            kind = f"a tensor of shape {tuple(features.shape)}" if isinstance(features, Tensor) else "no tensor"
            raise UnfitNetworkError(
                f"`feature_layer` {name!r} gives {kind}; one with channels and space, (B, C, ...), is needed; name another "
                "layer of the network"
            )

    def check_finite(self) -> None:
        """Weights must be finite, and so must the logits of the smallest window of zeros (air) that the network takes."""
        # The weights first: one NaN in them makes every logit NaN, and the reason is the training
        values = self.network.state_dict().values()
        broken = sum(not bool(torch.isfinite(value).all()) for value in values)
        if broken:
            raise UnfitNetworkError(
                f"models/model.pt holds values that are not finite, in {broken} of its {len(values)} tensors; the training "
                "diverged; train again with a lower learning rate"
            )
        # Values are needed here, so the meta device does not do; the smallest window is enough and the fastest
        small = next((size for size in _smaller_sizes(self.size) if self._fits(size)), self.size)
        output = self._output(small)
        if isinstance(output, Exception):
            raise UnfitNetworkError(
                f"the network fails on a window of zeros, {_by(small)}: {first_line(output)}; correct `network_def`"
            )
        if not bool(torch.isfinite(output).all()):
            raise UnfitNetworkError(
                "the network's answer to a window of zeros is not finite, and images have such windows outside the body; look "
                "for a division by a deviation of 0 in `network_def`, or train again"
            )

    def _channels(self, first: int) -> int:
        for size in (self.size, *_multiples(self.size)):
            # Other sizes are tried too: where the window itself does not fit, its failure says nothing about the count
            for count in (first, *(n for n in range(1, _MOST_CHANNELS + 1) if n != first)):
                if not isinstance(self._meta_output(size, count), Exception):
                    return count
        return first

    def _fits(self, size: Size) -> bool:
        output = self._meta_output(size)
        return isinstance(output, Tensor) and tuple(output.shape[2:]) == size

    def _meta_output(self, size: Size, channels: int | None = None) -> Any:
        """The output as a tensor without values, or the exception that the network raises."""
        key = size, channels or self.channels
        if key not in self.meta_outputs:
            image = torch.zeros(1, key[1], *size, device="meta")
            with _ShapesOnly():
                self.meta_outputs[key], features = _output_and_features(
                    self.meta_network, self.layer, lambda: _output_or_error(self.meta_network, image)
                )
            self.features = self.features if features is None else features
        return self.meta_outputs[key]

    def _output(self, size: Size) -> Any:
        device = next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))
        return _output_or_error(self.network, torch.zeros(1, self.channels, *size, device=device))


class _ShapesOnly(TorchFunctionMode):
    """Within it, the usual layers give shapes at once. torch takes a millisecond or more for each, and at the first of them it
    imports its compiler and sympy, which takes seconds.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        shape = _plain_shape(func, args, kwargs or {})
        return func(*args, **(kwargs or {})) if shape is None else torch.empty(shape, device="meta")


def _plain_shape(func: Callable[..., Any], args: Sequence[Any], more: Mapping[str, Any]) -> Size | None:
    """The shape that a layer gives; None where torch should compute it, or refuse to."""
    match args:
        case [Tensor() as image, *_] if func in _ACTIVATIONS:
            return tuple(image.shape)
        case [Tensor() as image, Tensor() | float() | int() as other] if func in _ELEMENTWISE and not more:
            return tuple(image.shape) if not isinstance(other, Tensor) or other.shape == image.shape else None
        # One voxel has no deviation, with which torch refuses to norm
        case [Tensor() as image, *_] if func is F.instance_norm and image.dim() > 2 and image.shape[2:].numel() > 1:
            return tuple(image.shape)
        case [[Tensor() as first, *_] as tensors, *_] if func is torch.cat and more == {"dim": 1} and first.dim() > 1:
            if len({(len(tensor), *tensor.shape[2:]) for tensor in tensors}) == 1:
                return (len(first), sum(tensor.shape[1] for tensor in tensors), *first.shape[2:])
        case [Tensor() as image, weight, _, tuple(), tuple(), tuple(), int()] if func in _CONVOLUTIONS:
            return _after_convolution(image, weight, args[3:])
        case [Tensor() as image, weight, _, tuple(), tuple(), tuple(), int(), tuple()] if func in _TRANSPOSED:
            return _after_transposed(image, weight, args[3:])
    return None


def _after_convolution(image: Tensor, weight: Tensor, how: Sequence[Any]) -> Size | None:
    stride, padding, dilation, groups = how
    if image.dim() != weight.dim() or image.shape[1] != weight.shape[1] * groups:
        return None
    each = zip(image.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in each]
    return (len(image), len(weight), *size) if min(size) > 0 else None


def _after_transposed(image: Tensor, weight: Tensor, how: Sequence[Any]) -> Size | None:
    stride, padding, added, groups, dilation = how
    if image.dim() != weight.dim() or image.shape[1] != len(weight):
        return None
    each = zip(image.shape[2:], weight.shape[2:], stride, padding, added, dilation, strict=True)
    size = [(n - 1) * s - 2 * p + d * (k - 1) + a + 1 for n, k, s, p, a, d in each]
    return (len(image), weight.shape[1] * groups, *size) if min(size) > 0 else None


def _on_meta_device(network: nn.Module) -> nn.Module:
    """A copy of the network whose tensors have shapes and no values."""
    memo: dict[int, Any] = {}
    for tensor in chain(network.parameters(), network.buffers()):
        empty = tensor.detach().to("meta")
        # deepcopy takes an entry of the memo for a copy that exists already, so that no weight is copied
        memo[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(network, memo)


def _output_or_error(network: nn.Module, image: Tensor) -> Any:
    """The output of the network, or the exception that it raises."""
    try:
        return network(image)
    except Exception as error:  # a network may fail in any way
        return error


def _output_and_features(network: nn.Module, layer: str | None, run: Callable[[], Any]) -> tuple[Any, Any]:
    """What `run` of a network gives, and the output of the layer meanwhile; None if that is not reached."""
    if layer is None:
        return run(), None
    outputs: list[Any] = []
    hook = network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        return run(), outputs[-1] if outputs else None
    finally:
        hook.remove()


def _other_windows(fits: Callable[[Size], bool], size: Size) -> str:
    """Advice to take the next smaller or larger window that fits; empty if none fits.

    An axis keeps its length if the network takes it.
    """
    nearest: list[Size] = []
    for candidates in (_multiples(size, up=False), _multiples(size)):
        near = next((candidate for candidate in candidates if fits(candidate)), None)
        if near is None:
            continue
        for axis, length in enumerate(size):
            candidate = (*near[:axis], length, *near[axis + 1 :])
            near = candidate if fits(candidate) else near
        if near not in nearest:
            nearest.append(near)
    return f"{' or '.join(map(_by, nearest))} would work; change `window`" if nearest else ""


def _smaller_sizes(size: Size) -> Iterator[Size]:
    """Sizes to try, the smallest first. Some have a longer first axis: some norms need two voxels at the lowest level."""
    for most in _SMALL:
        yield tuple(min(n, most) for n in size)
        yield (min(size[0], 2 * most), *(min(n, most) for n in size[1:]))


def _multiples(size: Sequence[int], *, up: bool = True) -> list[Size]:
    """The size rounded up or down to multiples of 2, 4, 8, ..., each axis at least one multiple long."""
    return [tuple(max(1, -(-n // step) if up else n // step) * step for n in size) for step in _MULTIPLES]


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
