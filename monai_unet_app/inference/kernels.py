"""What a bundle asks of torch, answered where torch refuses (averages over more voxels than a thin image has) or is slow."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

Sizes = int | tuple[int, ...]
Known = Callable[[Tensor, object, Callable[[], Tensor]], Tensor]
"""Averages of an image with these arguments, from memory or from the function that takes them."""


class OurKernels(TorchFunctionMode):
    """Within it, `avg_pool3d` without counted padding takes thin images, too: the average is that of the voxels that there are.

    `argmax` over channels gives the same answer in a tenth of the time on the CPU: torch looks at one voxel after the other,
    and `max`, which also names the first of equal ones, at many.

    The calibration of a bundle is an expression of torch alone, which `monai.bundle run` evaluates as well; there torch ends
    with "input image smaller than kernel size".

    Args:
        quick: Average along one axis after the other: with 125 neighbours a sixth of torch's time, and another last bit.
            Without it images that torch accepts get torch's own values, to the bit.
        known: Asked for averages of what no gradient is wanted for.
    """

    def __init__(self, *, quick: bool = False, known: Known | None = None) -> None:
        super().__init__()
        self.quick, self.known = quick, known

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.avg_pool3d and args:  # else the image is named, which is left to torch
            take = partial(_averages, *args, quick=self.quick, **(kwargs or {}))
            if self.known is None or args[0].requires_grad:
                return take()
            return self.known(args[0], (*args[1:], *sorted((kwargs or {}).items())), take)
        if func in (torch.argmax, Tensor.argmax):
            return _argmax(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _argmax(values: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """`torch.argmax`, arguments and all."""
    if dim is None or type(values) is not Tensor or values.device.type != "cpu":
        return torch.argmax(values, dim, keepdim)
    return torch.max(values, dim, keepdim).indices


def _averages(
    image: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    *others: Any,
    quick: bool,
    **named: Any,
) -> Tensor:
    """`avg_pool3d`, arguments and all; image (B, C, I, J, K)."""
    kernel, margin = _three(kernel_size), _three(padding)
    is_thin = any(k > n for k, n in zip(kernel, image.shape[2:], strict=True))
    steps = _three(kernel_size if stride is None else stride)
    in_place = steps == (1, 1, 1) and kernel == tuple(2 * m + 1 for m in margin)
    if not (quick or is_thin) or not in_place or others or named != {"count_include_pad": False}:
        return F.avg_pool3d(image, kernel_size, stride, padding, *others, **named)
    for axis, reach in enumerate(margin, 2):
        image = _along(image, axis, reach)
    return image


def _along(image: Tensor, axis: int, reach: int) -> Tensor:
    """Each voxel's average with those at most `reach` beside it along an axis."""
    size = image.shape[axis]
    total, present = image.clone(), torch.ones(size, dtype=image.dtype)
    for away in range(1, min(reach, size - 1) + 1):
        rest = size - away
        total.narrow(axis, away, rest).add_(image.narrow(axis, 0, rest))
        total.narrow(axis, 0, rest).add_(image.narrow(axis, away, rest))
        present[away:] += 1
        present[:rest] += 1
    return total.div_(present.view([-1 if n == axis else 1 for n in range(image.dim())]).to(image.device))


def _three(sizes: Sizes) -> tuple[int, ...]:
    return (sizes,) * 3 if isinstance(sizes, int) else sizes
