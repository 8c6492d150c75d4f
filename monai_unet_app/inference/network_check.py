"""A trial of a network before data are read: does it take the bundle's windows and give one logit a channel and voxel?

Shapes are found on torch's "meta" device, which computes no numbers and costs milliseconds whatever the window. Only one small
window of zeros is really computed. The network and the random numbers are left as they were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from typing import Any

import torch

_MULTIPLES = (2, 4, 8, 16, 32, 64, 128)
_SMALL = (16, 32, 64, 128)
_ANY_SIZE = 64
"""Stands for a window that takes the whole image along an axis."""
_MOST_CHANNELS = 8
Size = tuple[int, ...]


class UnfitNetworkError(Exception):
    """Why the network cannot be used in this bundle: one sentence with a remedy, without the bundle's name."""


@dataclass(frozen=True)
class Demands:
    """What a bundle needs of its network.

    Attributes:
        channels: Of an image.
        window: Spatial size of a window of the network's own dimensions; 0 or less takes the whole image.
        labels: Names of the channels that it gives.
        layer: Name of the submodule that is watched, or None.
    """

    channels: int
    window: Size
    labels: tuple[str, ...]
    layer: str | None = None


def check_network(network: torch.nn.Module, demands: Demands, *, weights: bool = True) -> None:
    """Raises UnfitNetworkError if the network cannot be what the bundle needs.

    Args:
        network: In eval mode.
        demands: What is needed.
        weights: Whether its weights are trained, so that it must give finite numbers.
    """
    _check_layer_name(network, demands.layer)
    size = tuple(n if n > 0 else _ANY_SIZE for n in demands.window)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        checked = _CheckedNetwork(network, demands.channels, size)
        checked.check_answer(demands.labels)
        if demands.layer is not None:
            checked.check_layer(demands.layer)
        if weights:
            checked.check_finite()


def _check_layer_name(network: torch.nn.Module, name: str | None) -> None:
    there = [known for known, _ in network.named_modules() if known]
    if name is None or name in there:
        return
    near = get_close_matches(name, there, n=3, cutoff=0.4) or [known for known in there if "." not in known][:5]
    raise UnfitNetworkError(
        f"`feature_layer` is {name!r}, and the network has no layer of that name; name one of its layers ({', '.join(near)}) "
        "or leave `feature_layer` out"
    )


class _CheckedNetwork:
    """One network, the windows that it is to take, and what it makes of them.

    Args:
        network: In eval mode.
        channels: Of an image, by the input rules. Preprocessing may make several of one: where the network fails with this
            number, it is tried with others.
        size: Of a window.
    """

    def __init__(self, network: torch.nn.Module, channels: int, size: Size) -> None:
        self.network, self.size = network, size
        self.twin = _without_numbers(network)
        self.known: dict[tuple[Size, int], Any] = {}
        self.channels = self._channels(channels)
        found = self._shapes(size)
        self.answer = self._computed(size) if isinstance(found, Exception) else found

    def check_answer(self, labels: Sequence[str]) -> None:
        """One tensor, of the window's size, with a channel for each label."""
        answer, size = self.answer, self.size
        if isinstance(answer, Exception):
            near = _nearest(self._fits, size)
            if near:
                raise UnfitNetworkError(
                    f"`window` is {_by(size)}, which the network cannot halve as often as it has levels; "
                    f"{' or '.join(map(_by, near))} would do; change `window`"
                )
            raise UnfitNetworkError(
                f"the network fails on a window of {_by(size)} and {self.channels} channel(s): {_first_line(answer)}; correct "
                "`network_def`, `window` or `input_rules`"
            )
        if not isinstance(answer, torch.Tensor):
            count = f" of {len(answer)}" if isinstance(answer, Sized) else ""
            raise UnfitNetworkError(
                f"the network gives a {type(answer).__name__}{count} where one tensor of logits is needed; switch deep "
                "supervision off in `network_def`, or take a network that gives one tensor in eval mode"
            )
        if tuple(answer.shape[2:]) != size:
            near = _nearest(self._fits, size)
            advice = f"{' or '.join(map(_by, near))} would do; change `window`" if near else "correct `network_def`"
            raise UnfitNetworkError(
                f"the network makes logits of {_by(answer.shape[2:])} of a window of {_by(size)}; the same size is needed; "
                f"{advice}"
            )
        if answer.shape[1] != len(labels):
            raise UnfitNetworkError(
                f"the network gives {answer.shape[1]} channel(s), `labels` names {len(labels)} ({', '.join(labels)}); one for "
                'each is needed; set out_channels to "$len(@labels)" and train again, or correct `labels`'
            )

    def check_layer(self, name: str) -> None:
        """The layer that is watched gives one tensor with channels and space."""
        empty = torch.zeros(1, self.channels, *self.size, device="meta")
        found = _output_of(self.twin, name, lambda: _called(self.twin, empty))
        if found is None:  # shapes alone cannot be had of this network
            found = _output_of(self.network, name, lambda: self._computed(self.size))
        if not (isinstance(found, torch.Tensor) and found.ndim > 2):
            what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else "no tensor"
            raise UnfitNetworkError(
                f"`feature_layer` {name!r} gives {what}; one with channels and space, (B, C, ...), is needed; name another "
                "layer of the network"
            )

    def check_finite(self) -> None:
        """Its weights, and its answer to zeros, as outside a body: one window, as small as the network takes it."""
        values = self.network.state_dict().values()
        broken = sum(not bool(torch.isfinite(value).all()) for value in values)
        if broken:
            raise UnfitNetworkError(
                f"models/model.pt holds values that are not finite, in {broken} of its {len(values)} tensors; the training "
                "diverged; train again with a lower learning rate"
            )
        small = next((one for one in _smaller(self.size) if self._fits(one)), self.size)
        answer = self._computed(small)
        if isinstance(answer, Exception):
            raise UnfitNetworkError(
                f"the network fails on a window of zeros, {_by(small)}: {_first_line(answer)}; correct `network_def`"
            )
        if not bool(torch.isfinite(answer).all()):
            raise UnfitNetworkError(
                "the network's answer to a window of zeros is not finite, and images have such windows outside the body; look "
                "for a division by a deviation of 0 in `network_def`, or train again"
            )

    def _channels(self, first: int) -> int:
        for size in (self.size, *_multiples(self.size)):
            for count in (first, *(n for n in range(1, _MOST_CHANNELS + 1) if n != first)):
                if not isinstance(self._shapes(size, count), Exception):
                    return count
        return first

    def _fits(self, size: Size) -> bool:
        answer = self._shapes(size)
        return isinstance(answer, torch.Tensor) and tuple(answer.shape[2:]) == size

    def _shapes(self, size: Size, channels: int | None = None) -> Any:
        """What the network gives, as a tensor without numbers, or the exception that it raises."""
        wanted = size, channels or self.channels
        if wanted not in self.known:
            self.known[wanted] = _called(self.twin, torch.zeros(1, wanted[1], *size, device="meta"))
        return self.known[wanted]

    def _computed(self, size: Size) -> Any:
        device = next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))
        return _called(self.network, torch.zeros(1, self.channels, *size, device=device))


def _without_numbers(network: torch.nn.Module) -> torch.nn.Module:
    """A copy of the network whose tensors have shapes and no numbers."""
    memo: dict[int, Any] = {}
    for tensor in chain(network.parameters(), network.buffers()):
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = torch.nn.Parameter(empty, False) if isinstance(tensor, torch.nn.Parameter) else empty
    return copy.deepcopy(network, memo)


def _called(network: torch.nn.Module, image: torch.Tensor) -> Any:
    """What the network gives, or the exception that it raises."""
    try:
        return network(image)
    except Exception as error:  # a network may fail in any way
        return error


def _output_of(network: torch.nn.Module, layer: str, call: Callable[[], object]) -> Any:
    """What a layer gives while the network is called; None where it is not reached."""
    seen: list[Any] = []
    hook = network.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        call()
    finally:
        hook.remove()
    return seen[-1] if seen else None


def _nearest(works: Callable[[Size], bool], size: Size) -> list[Size]:
    """The next smaller and the next larger size that work, each axis left as it is where that works; found by trying."""
    found: list[Size] = []
    for candidates in (_multiples(size, up=False), _multiples(size)):
        one = next((candidate for candidate in candidates if works(candidate)), None)
        if one is None:
            continue
        for axis, original in enumerate(size):
            kept = (*one[:axis], original, *one[axis + 1 :])
            one = kept if works(kept) else one
        if one not in found:
            found.append(one)
    return found


def _smaller(size: Size) -> Iterator[Size]:
    """Sizes to try, the smallest first; then with a longer first axis, since some norms need two voxels at the lowest level."""
    for most in _SMALL:
        yield tuple(min(n, most) for n in size)
        yield (min(size[0], 2 * most), *(min(n, most) for n in size[1:]))


def _multiples(size: Sequence[int], *, up: bool = True) -> list[Size]:
    """The size rounded to multiples of 2, 4, 8, ..., each axis at least one of them."""
    return [tuple(max(1, -(-n // by) if up else n // by) * by for n in size) for by in _MULTIPLES]


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
