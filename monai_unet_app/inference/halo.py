"""How far around a voxel its calibrated probability looks: the margin with which a part of an image can be calibrated alone."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

_LARGEST_FIELD = 300_000
"""Voxels of the largest field in which an impulse is followed."""
_LEAST_CHANGE = 1e-12
"""Of a probability: the rounding of float64 stays below it."""

Function = Callable[[torch.Tensor], torch.Tensor]


def halo_voxels(probabilities: Function, channels: int, spatial_dims: int) -> tuple[float, ...]:
    """How many voxels away along each axis an impulse in the logits changes a probability.

    The logits are noise in float64; the impulse replaces those of the voxel in the middle. The field grows until the change
    lies inside it.

    Args:
        probabilities: The measured function, from logits (C, *spatial) to probabilities of the same shape.
        channels: C.
        spatial_dims: Number of spatial axes.

    Returns:
        A whole number for each axis; infinite where the change reaches the edge of the largest field.
    """
    for half in _half_fields(spatial_dims):
        # Three fields of noise, since in a single field a dependence may vanish by chance.
        reach = np.max([_reach(probabilities, channels, half, spatial_dims, seed) for seed in range(3)], axis=0)
        if (reach < half).all():
            break
    return tuple(float(n) if n < half else math.inf for n in reach)


def _half_fields(dims: int) -> Iterator[int]:
    """How many voxels there are on each side of the middle of a field, from small to large."""
    half = 4
    while (2 * half + 1) ** dims <= _LARGEST_FIELD:
        yield half
        half *= 2


def _reach(probabilities: Function, channels: int, half: int, dims: int, seed: int) -> NDArray[np.int64]:
    """Shape (dims,): the largest distance in voxels along each axis at which an impulse changes a probability, up to `half`.

    Pooling refuses a field that is too small for it with a RuntimeError; the distance is then `half`.
    """
    noise = torch.Generator().manual_seed(seed)
    logits = torch.randn((channels, *[2 * half + 1] * dims), generator=noise, dtype=torch.float64)
    changed_logits = logits.clone()
    middle = changed_logits.view(channels, -1)[:, logits[0].numel() // 2]
    middle.copy_(3 * torch.randn(channels, generator=noise, dtype=torch.float64))
    try:
        change = (probabilities(logits) - probabilities(changed_logits)).abs()
    except RuntimeError:
        return np.full(dims, half)
    places = (change > _LEAST_CHANGE).any(0).nonzero()
    return (places - half).abs().amax(0).numpy() if len(places) else np.zeros(dims, np.int64)
