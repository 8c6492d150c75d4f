"""Averages over the neighbourhood of a voxel in images that are thinner than this neighbourhood, which torch refuses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

Sizes = int | tuple[int, ...]


class AveragesOfThinImages(TorchFunctionMode):
    """Within it, `avg_pool3d` without counted padding takes thin images, too: the average is that of the voxels that there are.

    The calibration of a bundle is an expression of torch alone, which `monai.bundle run` evaluates as well; there torch ends
    with "input image smaller than kernel size". Images that torch accepts get torch's own values, to the bit.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (_averages if func is F.avg_pool3d else func)(*args, **(kwargs or {}))


def _averages(
    image: torch.Tensor, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0, *others: Any, **named: Any
) -> torch.Tensor:
    """`avg_pool3d`, arguments and all; image (B, C, I, J, K)."""
    kernel, margin = _three(kernel_size), _three(padding)
    lacking = [max(0, k - n) for k, n in zip(kernel, image.shape[2:], strict=True)]
    plain = _three(kernel_size if stride is None else stride) == (1, 1, 1) and not others
    if not any(lacking) or not plain or named != {"count_include_pad": False}:
        return F.avg_pool3d(image, kernel_size, stride, padding, *others, **named)
    # Sums over the neighbourhood, of an image made larger by zeros, over the numbers of its true voxels
    zeros = [n for more in reversed(lacking) for n in (0, more)]
    total, present = (
        F.avg_pool3d(F.pad(values, zeros), kernel, 1, margin) for values in (image, torch.ones_like(image[:1, :1]))
    )
    i, j, k = (n + 2 * m - edge + 1 for n, m, edge in zip(image.shape[2:], margin, kernel, strict=True))
    return (total / present)[..., :i, :j, :k]


def _three(sizes: Sizes) -> tuple[int, ...]:
    return (sizes,) * 3 if isinstance(sizes, int) else sizes
