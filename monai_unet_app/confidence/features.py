"""Features of a result that tell good results from bad results without the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dicom_io.boxes import values_in
from dicom_io.segmentation import LabelMap, Segmentation, Structure
from dicom_io.volume import Volume
from monai_unet_app.metrics.boundary import border, surface_band
from monai_unet_app.metrics.components import largest_component

BAND = 2.0
"""Half width of the band around the predicted surface, in mm; pixels of a picture."""


class Described:
    """Features of one structure of one result, by their names."""

    def values(self, names: Sequence[str]) -> tuple[float, ...]:
        """The features of these names."""
        return tuple(getattr(self, name) for name in names)


@dataclass(frozen=True)
class Features(Described):
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


FEATURES = tuple(field.name for field in fields(Features))


@dataclass(frozen=True)
class FeatureFacts:
    """What it means that a feature lies away from its mean on sound images.

    Attributes:
        spread: Its least standard deviation: below it a difference means nothing.
        wrong: The wrong side: -1 less, 1 more, 0 either.
        words: The reason, with places for the value and for what is usual; empty where another statement has the words.
    """

    spread: float
    wrong: int
    words: str = ""


FACTS: Mapping[str, FeatureFacts] = {
    "confidence": FeatureFacts(0.005, -1, "the structure's mean probability is {}, usually {}"),
    "band_confidence": FeatureFacts(0.005, -1, "the surface is uncertain: mean confidence next to it {}, usually {}"),
    "uncertainty": FeatureFacts(0.005, 1, "{} of its size is uncertain, usually {}"),
    "entropy": FeatureFacts(0.01, 1, "the entropy inside is {}, usually {}"),
    "log_size": FeatureFacts(0.1, 0, "its size is {}, usually {}"),
    "roughness": FeatureFacts(0.05, 1, "its outline is rough: {}, usually {}"),
    "largest_part": FeatureFacts(0.01, -1, "it is in several pieces: the largest has {} of it, usually {}"),
    "border": FeatureFacts(0.01, 1),
    "log_share": FeatureFacts(0.1, 0, "its part of all structures is {}, usually {}"),
    "left": FeatureFacts(0.05, 0, "it lies {} radii of all structures to the left of their middle, usually {}"),
    "back": FeatureFacts(0.05, 0, "it lies {} radii of all structures behind their middle, usually {}"),
    "up": FeatureFacts(0.05, 0, "it lies {} radii of all structures above their middle, usually {}"),
    "agreement": FeatureFacts(0.1, -1, "edges of the image follow its surface less: {}, usually {}"),
    "nearest": FeatureFacts(0.05, -1, "edges of the image lie elsewhere: {}, usually {}"),
    "contrast": FeatureFacts(0.1, 0, "its contrast to what is around it is {}, usually {}"),
}
"""Of every feature; the words for `border` are those of `BorderCut`."""


def describe_structures(segmentation: Segmentation) -> list[Features | None]:
    """The features of each structure, in the order of their numbers; None for a structure without voxels."""
    features: dict[int, Features] = {}
    for held in segmentation.maps:
        present = [structure for structure in held.structures if structure.voxels]
        if present:
            surroundings = _surroundings(held, segmentation.image)
            features |= {structure.number: _describe(structure, *surroundings) for structure in present}
    return [features.get(structure.number) for structure in segmentation.structures]


def _surroundings(held: LabelMap, grid: Volume) -> tuple[float, float]:
    """`band_confidence` and `entropy` of all structures of a label map together."""
    mask, winning, entropy = held.answers
    band = surface_band(grid.without_flat_axis(mask), grid.axis_spacing, BAND)
    near_surface = values_in(winning, band.reshape(mask.shape))
    # A mask that fills the image has no surface beside which anything could be uncertain.
    confidence = float(near_surface.mean(dtype=np.float64)) if near_surface.size else 1.0
    return confidence, float(entropy.mean(dtype=np.float64))


def _describe(structure: Structure, band_confidence: float, entropy: float) -> Features:
    confidence = structure.confidence
    assert confidence is not None  # it has voxels
    return Features(
        confidence=confidence,
        band_confidence=band_confidence,
        uncertainty=structure.doubtful_part,
        entropy=entropy,
        **form_of(structure),
    )


def form_of(structure: Structure) -> dict[str, float]:
    """What the mask of a structure with voxels looks like: `log_size`, `roughness`, `largest_part`, `border` of `Features`."""
    # The mask in its box: voxels beyond it are background, as beyond the image
    mask, voxels = structure.grid.without_flat_axis(structure.mask), structure.voxels
    return {
        "log_size": float(np.log(structure.size)),
        # The surface grows with the power 2/3 of the volume (in 2D, 1/2 of the area): the quotient does not depend on
        # the size.
        "roughness": float(np.count_nonzero(border(mask)) / voxels ** (1 - 1 / mask.ndim)),
        "largest_part": largest_component(mask) / voxels,
        "border": float(on_border(structure).sum()),
    }


def on_border(structure: Structure) -> NDArray[np.float64]:
    """Part of a structure's surface on each side of the image's border; it is large where this border cuts the structure off.

    The surface consists of voxel faces: those between a voxel of the structure and a voxel outside it, and those of its voxels
    that lie on the border itself.

    Returns:
        Shape (axes, 2): for each axis the part on its first and on its last layer. All 0 for a structure without voxels.
    """
    grid, mask = structure.grid, structure.grid.without_flat_axis(structure.mask)
    if not mask.size:
        return np.zeros((mask.ndim, 2))
    spacing_mm = grid.axis_spacing
    # The area of a face across an axis is the size of a voxel over its spacing along this axis.
    faces = np.prod(spacing_mm) / np.asarray(spacing_mm, dtype=np.float64)
    ends = np.array([[np.count_nonzero(mask.take(layer, axis)) for layer in (0, -1)] for axis in range(mask.ndim)])
    inside = [np.count_nonzero(np.diff(mask, axis=axis)) for axis in range(mask.ndim)]
    # The ends of the box lie on the border of the image, or have voxels outside the structure beyond them.
    sides = zip(structure.box, grid.shape, strict=True)
    at_border = np.array([[side.start == 0, side.stop == size] for side, size in sides])[: mask.ndim]
    touching = ends * at_border * faces[:, None]
    whole = touching.sum() + ((inside + (ends * ~at_border).sum(axis=1)) * faces).sum()
    return np.asarray(touching / whole)
