"""What a result looks like from outside, in numbers that tell good ones from bad ones without the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from monai_unet_app.metrics.boundary import border, surface_band
from monai_unet_app.metrics.components import components

BAND = 2.0
"""Half width of the band around the predicted surface, in mm; pixels of a picture."""

_LEAST = 1e-7  # of a probability whose logarithm is taken


@dataclass(frozen=True)
class Features:
    """One structure of one result; all of them are taken from the probabilities and the mask, none from the truth.

    Attributes:
        confidence: Mean probability of the structure inside its mask, 0 to 1.
        band_confidence: Mean probability of the winning answer within BAND of the predicted surface, 0 to 1.
        uncertainty: Sum of p (1 - p) over the sum of p, 0 to 1: the part of the structure's size that is in doubt.
        entropy: Mean entropy inside the mask of all structures, in nats.
        log_size: Natural logarithm of the mask's size in mL; in pixels for a picture.
        roughness: Border voxels / voxels ** (1 - 1 / dimensions): small for a ball, large for shreds.
        largest_part: Part of the mask's voxels that its largest component holds, 0 to 1.
        border: Part of the mask's surface that lies on the border of the image, 0 to 1; see `on_border`.
    """

    confidence: float
    band_confidence: float
    uncertainty: float
    entropy: float
    log_size: float
    roughness: float
    largest_part: float
    border: float

    def values(self) -> tuple[float, ...]:
        """The numbers, in the order of `FEATURES`."""
        return astuple(self)


FEATURES = tuple(field.name for field in fields(Features))


@dataclass(frozen=True)
class Structure:
    """One structure of a result, ready to be described.

    Attributes:
        mask: Shape (I, J, K), or (I, J) of a picture; boolean.
        probability: Of the structure, same shape, 0 to 1.
    """

    mask: NDArray[np.bool_]
    probability: NDArray


def describe(
    structures: list[Structure], spacing_mm: tuple[float, ...], size: float, *, exclusive: bool
) -> list[Features | None]:
    """The features of each structure; None where its mask is empty, which has none.

    Args:
        structures: All structures of one result, on one grid.
        spacing_mm: Voxel size along each axis; 1 for pictures, whose unit is the pixel.
        size: Volume of a voxel in mL; 1 for pictures.
        exclusive: Whether the structures share the voxels out with a background (softmax).
    """
    everything = np.logical_or.reduce([one.mask for one in structures])
    if not everything.any():
        return [None] * len(structures)
    shared = _Shared.of(structures, everything, spacing_mm) if exclusive else None
    return [
        _describe(one, shared or _Shared.of([one], one.mask, spacing_mm), spacing_mm, size) if one.mask.any() else None
        for one in structures
    ]


@dataclass(frozen=True)
class _Shared:
    """What all structures of a softmax have in common; a sigmoid's has each its own."""

    band_confidence: float
    entropy: float

    @classmethod
    def of(cls, structures: list[Structure], mask: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> _Shared:
        band = surface_band(mask, spacing_mm, BAND)
        likely = np.stack([one.probability[band] for one in structures]).astype(np.float64)
        inside = np.stack([one.probability[mask] for one in structures]).astype(np.float64)
        return cls(
            band_confidence=float(_with_background(likely).max(axis=0).mean()) if band.any() else 1.0,
            entropy=float(_entropy(_with_background(inside)).mean()),
        )


def _describe(one: Structure, shared: _Shared, spacing_mm: tuple[float, ...], size: float) -> Features:
    voxels = int(np.count_nonzero(one.mask))
    numbers, count = components(one.mask)
    largest = int(np.bincount(numbers.ravel(), minlength=count + 1)[1:].max())
    p = one.probability.astype(np.float64)
    return Features(
        confidence=float(p[one.mask].mean()),
        band_confidence=shared.band_confidence,
        uncertainty=float((p * (1 - p)).sum() / max(p.sum(), _LEAST)),
        entropy=shared.entropy,
        log_size=float(np.log(voxels * size)),
        roughness=float(np.count_nonzero(border(one.mask)) / voxels ** (1 - 1 / one.mask.ndim)),
        largest_part=largest / voxels,
        border=float(on_border(one.mask, spacing_mm).sum()),
    )


def on_border(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Part of a mask's surface that lies on each side of the image's border: what a cut through the structure leaves there.

    The surface is made of voxel faces: those between a voxel of the mask and one outside it, and those of the mask's voxels
    that lie on the border itself.

    Args:
        mask: Shape (I, J, K), or (I, J) of a picture.
        spacing_mm: Voxel size along each axis; 1 for pictures.

    Returns:
        Shape (axes, 2): for each axis the part on its first and on its last layer. All 0 for an empty mask.
    """
    faces = np.prod(spacing_mm) / np.asarray(spacing_mm, dtype=np.float64)
    ends = [[np.count_nonzero(mask.take(layer, axis)) for layer in (0, -1)] for axis in range(mask.ndim)]
    within = [np.count_nonzero(np.diff(mask, axis=axis)) for axis in range(mask.ndim)]
    touching = np.array(ends, dtype=np.float64) * faces[:, None]
    whole = touching.sum() + (np.array(within) * faces).sum()
    return touching / whole if whole else touching


def _with_background(p: NDArray) -> NDArray:
    """Shape (C + 1, N): the probabilities and what they leave to 1."""
    return np.concatenate([np.clip(1 - p.sum(axis=0, keepdims=True), 0, 1), p])


def _entropy(p: NDArray) -> NDArray:
    return -(p * np.log(np.maximum(p, _LEAST))).sum(axis=0)
