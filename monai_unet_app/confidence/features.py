"""Features of a result that tell good results from bad results without the truth."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.segmentation import Segmentation, Structure
from monai_unet_app.metrics.boundary import border, surface_band
from monai_unet_app.metrics.components import components

BAND = 2.0
"""Half width of the band around the predicted surface, in mm; pixels of a picture."""

_LEAST = 1e-7  # of a probability whose logarithm is taken


@dataclass(frozen=True)
class Features:
    """Features of one structure of one result, from its probabilities and its mask; none needs the truth.

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


def describe_structures(segmentation: Segmentation) -> list[Features | None]:
    """The features of each structure, in the order of their numbers; None for a structure without voxels."""
    features: dict[int, Features] = {}
    for group in segmentation.disjoint_groups:
        present = [structure for structure in group if structure.voxels]
        if present:
            surroundings = _surroundings(group)
            features |= {structure.number: _describe(structure, *surroundings) for structure in present}
    return [features.get(structure.number) for structure in segmentation.structures]


def _surroundings(structures: Sequence[Structure]) -> tuple[float, float]:
    """`band_confidence` and `entropy`: those of all structures of a softmax together, or of one label of a sigmoid."""
    mask = np.logical_or.reduce([_flat_mask(structure) for structure in structures])
    band = surface_band(mask, structures[0].grid.axis_spacing, BAND)
    probabilities = [_flat_probability(structure) for structure in structures]
    near_surface = np.stack([p[band] for p in probabilities]).astype(np.float64)
    inside = np.stack([p[mask] for p in probabilities]).astype(np.float64)
    # A mask that fills the image has no surface beside which anything could be uncertain.
    confidence = float(_with_background(near_surface).max(axis=0).mean()) if band.any() else 1.0
    return confidence, float(_entropy(_with_background(inside)).mean())


def _describe(structure: Structure, band_confidence: float, entropy: float) -> Features:
    mask, voxels = _flat_mask(structure), structure.voxels
    numbers, count = components(mask)
    # Component 0 is the background.
    largest = int(np.bincount(numbers.ravel(), minlength=count + 1)[1:].max())
    p = _flat_probability(structure).astype(np.float64)
    return Features(
        confidence=float(p[mask].mean()),
        band_confidence=band_confidence,
        uncertainty=float((p * (1 - p)).sum() / max(p.sum(), _LEAST)),
        entropy=entropy,
        log_size=float(np.log(structure.size)),
        # The surface grows with the power 2/3 of the volume (in 2D, 1/2 of the area): the quotient does not depend on
        # the size.
        roughness=float(np.count_nonzero(border(mask)) / voxels ** (1 - 1 / mask.ndim)),
        largest_part=largest / voxels,
        border=float(on_border(structure).sum()),
    )


def _flat_mask(structure: Structure) -> NDArray[np.bool_]:
    return structure.grid.without_flat_axis(structure.mask_on_grid)


def _flat_probability(structure: Structure) -> NDArray[np.float32]:
    return structure.grid.without_flat_axis(structure.probability_on_grid)


def on_border(structure: Structure) -> NDArray[np.float64]:
    """Part of a structure's surface on each side of the image's border; it is large where this border cuts the structure off.

    The surface consists of voxel faces: those between a voxel of the structure and a voxel outside it, and those of its voxels
    that lie on the border itself.

    Returns:
        Shape (axes, 2): for each axis the part on its first and on its last layer. All 0 for a structure without voxels.
    """
    mask, spacing_mm = _flat_mask(structure), structure.grid.axis_spacing
    # The area of a face across an axis is the size of a voxel over its spacing along this axis.
    faces = np.prod(spacing_mm) / np.asarray(spacing_mm, dtype=np.float64)
    ends = [[np.count_nonzero(mask.take(layer, axis)) for layer in (0, -1)] for axis in range(mask.ndim)]
    within = [np.count_nonzero(np.diff(mask, axis=axis)) for axis in range(mask.ndim)]
    touching = np.array(ends, dtype=np.float64) * faces[:, None]
    whole = touching.sum() + (np.array(within) * faces).sum()
    return touching / whole if whole else touching


def _with_background(p: NDArray[Any]) -> NDArray[Any]:
    """Shape (C + 1, N): the probability of the background, and the given probabilities."""
    # Rounding can carry the sum a little beyond 1.
    return np.concatenate([np.clip(1 - p.sum(axis=0, keepdims=True), 0, 1), p])


def _entropy(p: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(-(p * np.log(np.maximum(p, _LEAST))).sum(axis=0))
