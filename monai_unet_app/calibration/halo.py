"""How far around a voxel its calibrated probability looks: what a part of an image needs beside it to be calibrated alone."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from monai.transforms import Spacingd
from numpy.typing import NDArray

from monai_unet_app.bundle import Bundle
from monai_unet_app.errors import BundleError

_LARGEST_FIELD = 300_000
"""Voxels of the largest field in which an impulse is followed."""
_FELT = 1e-12
"""Least change of a probability that is no rounding of float64."""


def halo_mm(bundle: Bundle, spacing_mm: Sequence[float] | None = None) -> tuple[float, ...]:
    """How far, along each axis of the working grid, a calibrated probability of a bundle depends on logits around it.

    Measured on the bundle's own `calibrate` with its numbers as they stand; what a part of an image needs around itself to be
    calibrated as in the whole.

    Args:
        bundle: Whose `calibrate` is measured.
        spacing_mm: Of the working grid; None for what its preprocessing resamples to.

    Returns:
        In mm; pixels for pictures. 0 where each voxel stands alone, infinite where it reaches too far to be measured.

    Raises:
        BundleError: The preprocessing keeps the spacing of each image, and none was given.
    """
    voxels = halo_voxels(
        bundle.part("calibrate"), len(bundle.labels), exclusive=bundle.exclusive, spatial_dims=spatial_dims(bundle)
    )
    return in_mm(voxels, spacing_mm or working_spacing_mm(bundle))


def spatial_dims(bundle: Bundle) -> int:
    """Axes of a bundle's logits: 3, also where a 2D network walks through volumes; 2 for pictures."""
    return 2 if bundle.rules.planar else 3


def in_mm(voxels: Sequence[float], spacing_mm: Sequence[float]) -> tuple[float, ...]:
    """A number of voxels along each axis as lengths."""
    return tuple(float(n * step) for n, step in zip(voxels, spacing_mm, strict=True))


def working_spacing_mm(bundle: Bundle) -> tuple[float, ...]:
    """Distance of voxel centres along each axis of the grid that the network works on; 1 pixel for pictures.

    Raises:
        BundleError: It differs from image to image.
    """
    if bundle.rules.planar:
        return (1.0, 1.0)
    resampled = [step for step in bundle.preprocessing.transforms if isinstance(step, Spacingd)]
    steps = (
        np.broadcast_to(np.asarray(resampled[-1].spacing_transform.pixdim, float), (3,)) if resampled else np.zeros(3)
    )
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        raise BundleError(
            f"{bundle.name}: preprocessing does not resample every axis, so each image keeps a spacing of its own; "
            "one is needed for lengths in mm; pass spacing_mm"
        )
    return tuple(map(float, steps))


def halo_voxels(
    calibrate: Callable[[torch.Tensor], torch.Tensor], channels: int, *, exclusive: bool, spatial_dims: int
) -> tuple[float, ...]:
    """How many voxels away along each axis an impulse in the logits moves a calibrated probability.

    The logits are noise, in float64, and in the middle one voxel's are others. The field grows until what has moved lies
    inside it.

    Args:
        calibrate: Logits (C, *spatial) to logits of the same shape.
        channels: C.
        exclusive: Whether probabilities are a softmax over the channels, or the sigmoid of each.
        spatial_dims: How many axes there are.

    Returns:
        A whole number for each axis; infinite where it reaches the edge of the largest field that is tried.
    """
    for half in _half_fields(spatial_dims):
        reached = np.max(
            [_moved(calibrate, channels, half, spatial_dims, seed, exclusive) for seed in range(3)], axis=0
        )
        if (reached < half).all():
            break
    return tuple(float(n) if n < half else math.inf for n in reached)


def _half_fields(dims: int) -> Iterator[int]:
    """How many voxels there are on each side of the middle of a field, from small to large."""
    half = 4
    while (2 * half + 1) ** dims <= _LARGEST_FIELD:
        yield half
        half *= 2


def _moved(
    calibrate: Callable[[torch.Tensor], torch.Tensor], channels: int, half: int, dims: int, seed: int, exclusive: bool
) -> NDArray[np.int64]:
    """Shape (dims,): the largest distance in voxels along each axis at which an impulse is felt, `half` at the most.

    A field that is too small for `calibrate`, which pooling refuses with a RuntimeError, counts as felt all over.
    """
    noise = torch.Generator().manual_seed(seed)
    logits = torch.randn((channels, *[2 * half + 1] * dims), generator=noise, dtype=torch.float64)
    struck = logits.clone()
    middle = struck.view(channels, -1)[:, logits[0].numel() // 2]
    middle.copy_(3 * torch.randn(channels, generator=noise, dtype=torch.float64))
    try:
        before, after = (_probabilities(calibrate(z), exclusive) for z in (logits, struck))
    except RuntimeError:
        return np.full(dims, half)
    felt = ((before - after).abs() > _FELT).any(0).nonzero()
    return (felt - half).abs().amax(0).numpy() if len(felt) else np.zeros(dims, np.int64)


def _probabilities(logits: torch.Tensor, exclusive: bool) -> torch.Tensor:
    return torch.softmax(logits, 0) if exclusive else torch.sigmoid(logits)
