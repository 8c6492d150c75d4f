"""MONAI's resampling of a large image, slab by slab and without a copy of the image.

`Spacingd` copies the whole image to float64 and computes the position of every voxel of its output at once, twice: 38 bytes for
a voxel of a CT. Here the copy and the positions exist for one slab at a time. The arithmetic is MONAI's own: every voxel is
equal to the bit.
"""

import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F  # noqa: N812
from monai.config import USE_COMPILED
from monai.data import MetaTensor
from monai.networks.layers import AffineTransform
from monai.transforms import Compose, EnsureChannelFirstd, Orientationd, Spacingd
from monai.transforms.spatial.functional import spatial_resample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from monai_unet_app.inference.way_back import Interpolated
from monai_unet_app.inference.windows import whole_box

_SLAB_VOXELS = 1 << 19  # of the output; an output that is smaller is left to MONAI


@contextmanager
def resampling_in_slabs() -> Iterator[None]:
    """Inside it MONAI's transforms resample large images slab by slab."""
    # MONAI has no hook between the transform, which records what it did, and the layer, which does it
    layer, resample = (
        "monai.transforms.spatial.functional.AffineTransform",
        "monai.transforms.spatial.array.spatial_resample",
    )
    with patch(layer, AffineInSlabs), patch(resample, _spatial_resample):
        yield


def resampled(compose: Compose, item: dict[str, MetaTensor]) -> tuple[dict[str, MetaTensor], int] | None:
    """The item after the transforms up to the first that resamples, and the number of the one after it.

    The order of an image's axes in memory does not matter to a resampled image, and to every other computed one it may, in the
    last bit. So an image that shares the memory of its volume may come here, and nowhere else.

    Returns:
        None if the image was not resampled, or another transform computes before.
    """
    for number, step in enumerate(compose.transforms[1:], 1):  # the first loads
        if compose.lazy or type(step) not in (EnsureChannelFirstd, Orientationd, Spacingd):
            return None
        before, item = item["image"], compose(item, start=number, end=number + 1)
        if isinstance(step, Spacingd):
            image = item["image"]
            is_left_alone = image.shape == before.shape and torch.equal(image.affine, before.affine)
            return None if is_left_alone else (item, number + 1)
    return None


def _spatial_resample(
    img: Tensor, dst_affine: Any, spatial_size: Any, mode: str | int, *others: Any, **named: Any
) -> Any:
    """`spatial_resample`, which leaves it to `AffineInSlabs` to make the image float64."""
    by_layer = not isinstance(mode, int) and not USE_COMPILED and img.dtype == torch.float32
    with _Float64Later() if by_layer else nullcontext():
        return spatial_resample(img, dst_affine, spatial_size, mode, *others, **named)


class _Float64Later(TorchFunctionMode):
    """Within it an image in float32 that shall be float64 stays what it is, and what takes its type gets float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.to and len(args) == 2:
            values, like = args
            if like is torch.float64 and values.dtype == torch.float32 and values.dim() > 2:
                self._later = values
                return values
            if like is getattr(self, "_later", None):
                return values.to(torch.float64)
        return func(*args, **(kwargs or {}))


class AffineInSlabs(AffineTransform):
    """`AffineTransform` with the memory of one slab beside input and output, for one image at a time."""

    def forward(self, src: Tensor, theta: Tensor, spatial_size: Sequence[int] | Any = None) -> Tensor:
        """Shape (1, C, *spatial_size), float32, from (1, C, *spatial), computed in float64, as `AffineTransform` gives it.

        Args:
            src: The image, with values of any unit.
            theta: Shape (R + 1, R + 1), float64: voxel of the output -> position on the image, in voxels.
            spatial_size: Shape of the output, in voxels.
        """
        size = tuple(map(int, () if spatial_size is None else spatial_size))
        plane = math.prod(size[1:])
        if theta.dtype != torch.float64 or len(size) != src.dim() - 2 or size[0] * plane <= _SLAB_VOXELS:
            whole: Tensor = super().forward(src.double() if theta.dtype == torch.float64 else src, theta, spatial_size)
            return whole
        way = Interpolated(size, tuple(src.shape[2:]), theta.numpy(force=True), bool(self.align_corners))
        out = src.new_empty((*src.shape[:2], *size), dtype=torch.float32)  # what MONAI makes of it next
        rows = None if self.padding_mode == "reflection" else _RowsInFloat64(src)
        height = max(1, _SLAB_VOXELS // plane)
        for first in range(0, size[0], height):
            box = (slice(first, min(first + height, size[0])), *whole_box(size[1:]))
            values = src.double() if rows is None else rows(way.needed(box)[0])
            grid = way.positions(box).to(src.device)
            out[:, :, box[0]] = F.grid_sample(values, grid, self.mode, self.padding_mode, self.align_corners)
        return out


class _RowsInFloat64:
    """An image (1, C, *spatial) in float64, of which only the rows that were asked for last take memory.

    The others are pages of zeros that nobody touches: `grid_sample` computes a position from the size of the whole image, and
    only so every voxel is equal to the bit.
    """

    def __init__(self, image: Tensor) -> None:
        self._image = image
        self._pages = mmap.mmap(-1, 8 * image.numel(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._values = torch.frombuffer(self._pages, dtype=torch.float64).view(image.shape)

    def __call__(self, rows: slice) -> Tensor:
        """The image, with these positions along its first spatial axis."""
        self._pages.madvise(mmap.MADV_DONTNEED)
        self._values[:, :, rows] = self._image[:, :, rows]
        return self._values
