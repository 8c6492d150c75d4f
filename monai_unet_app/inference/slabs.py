"""MONAI's resampling of a large image, slab by slab.

`Spacingd` computes the position of every voxel of its output at once, twice, in float64, which is 30 bytes for a voxel of a CT.
Here the positions exist for one slab at a time. The arithmetic is MONAI's own: every voxel is equal to the bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F  # noqa: N812
from monai.networks.layers import AffineTransform

from monai_unet_app.inference.way_back import Interpolated

_SLAB_VOXELS = 1 << 19  # of the output; an output that is smaller is left to MONAI


@contextmanager
def resampling_in_slabs() -> Iterator[None]:
    """Inside it MONAI's transforms resample large images slab by slab."""
    # MONAI has no hook between the transform, which records what it did, and the layer, which does it
    with patch("monai.transforms.spatial.functional.AffineTransform", AffineInSlabs):
        yield


class AffineInSlabs(AffineTransform):
    """`AffineTransform` with the memory of one slab beside input and output, for one image at a time."""

    def forward(self, src: torch.Tensor, theta: torch.Tensor, spatial_size: Sequence[int] | Any = None) -> torch.Tensor:
        """Shape (1, C, *spatial_size), float32, from (1, C, *spatial) in float64, as `AffineTransform` gives it.

        Args:
            src: The image, with values of any unit.
            theta: Shape (R + 1, R + 1): voxel of the output -> position on the image, in voxels.
            spatial_size: Shape of the output, in voxels.
        """
        size = tuple(map(int, () if spatial_size is None else spatial_size))
        plane = int(torch.tensor(size[1:]).prod())
        if src.dtype != torch.float64 or len(size) != src.dim() - 2 or size[0] * plane <= _SLAB_VOXELS:
            whole: torch.Tensor = super().forward(src, theta, spatial_size)
            return whole
        way = Interpolated(size, tuple(src.shape[2:]), theta.numpy(force=True), bool(self.align_corners))
        out = src.new_empty((*src.shape[:2], *size), dtype=torch.float32)  # what MONAI makes of it next
        height = max(1, _SLAB_VOXELS // plane)
        for first in range(0, size[0], height):
            slab = slice(first, min(first + height, size[0]))
            grid = way.positions((slab, *(slice(0, n) for n in size[1:]))).to(src.device)
            out[:, :, slab] = F.grid_sample(src, grid, self.mode, self.padding_mode, self.align_corners)
        return out
