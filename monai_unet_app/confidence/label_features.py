"""Features of a label file of another program: of its masks alone, and with its image of the edges and the brightness there."""

from dataclasses import dataclass, fields

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from dicom_io.segmentation import Segmentation, Structure
from dicom_io.volume import Volume
from monai_unet_app.data.digest import turned_to_ras
from monai_unet_app.data.sketch import FARTHEST, Fit, fit_of

from .features import Described, form_of
from .shift import image_features

_SHELL = 2  # voxels around a mask that its brightness is compared with
_NO_EDGES = 1.0  # of `agreement` and `nearest`, where the surface is too small: what a label of another image has
_TINY = 1e-6


@dataclass(frozen=True)
class LabelFeatures(Described):
    """Features of one structure of a label map.

    Attributes:
        log_size, roughness, largest_part, border: As of `Features`.
        log_share: Natural logarithm of its part of the size of all structures.
        left, back, up: From the centre of all structures to its own, divided by their root mean square radius, along the axes
            of LPS; along I, J, K without a place in a patient. 0 where there is no other structure.
        agreement: `Fit.ratio` of its surface on the image: how much better it follows edges there than some voxels away.
        nearest: `Fit.nearest` of its surface.
        contrast: Its mean intensity less that of the voxels around it, divided by the deviation of both.
    """

    log_size: float
    roughness: float
    largest_part: float
    border: float
    log_share: float
    left: float
    back: float
    up: float
    agreement: float
    nearest: float
    contrast: float


EDGE_FEATURES = tuple(field.name for field in fields(LabelFeatures))
"""All; they need the image."""

LABEL_FEATURES = EDGE_FEATURES[: EDGE_FEATURES.index("agreement")]
"""Those that need the labels alone."""


def describe_labels(segmentation: Segmentation, *, edges: bool) -> list[LabelFeatures | None]:
    """The features of each structure, in the order of their numbers; None for a structure without voxels.

    Args:
        segmentation: Labels, on their image.
        edges: Whether its image holds intensities; otherwise the three features of edges are those of an even image.
    """
    present = [structure for structure in segmentation.structures if structure.voxels]
    grid = segmentation.image
    centres = dict(zip([one.number for one in present], _centres(present, grid), strict=True))
    together = sum(structure.voxels for structure in present)
    return [
        LabelFeatures(
            **form_of(structure),
            log_share=float(np.log(structure.voxels / together)),
            **dict(zip(("left", "back", "up"), centres[structure.number].tolist(), strict=True)),
            **(_edges(structure, grid) if edges else {"agreement": _NO_EDGES, "nearest": _NO_EDGES, "contrast": 0.0}),
        )
        if structure.voxels
        else None
        for structure in segmentation.structures
    ]


def features_of_image(image: Volume) -> NDArray[np.float64]:
    """Shape (F,): `shift.image_features` along the axes of the patient: the same of a NIfTI file and of its DICOM series."""
    array = turned_to_ras(image.array, image)
    if image.planar:
        return image_features(array, image.axis_spacing)
    order = np.argsort(io_orientation(image.affine_ras)[:, 0])
    return image_features(array, [image.spacing_mm[axis] for axis in order])


def _centres(present: list[Structure], grid: Volume) -> NDArray[np.float64]:
    """Shape (S, 3): where each structure is beside the others, in units of the radius of all."""
    steps = grid.affine_lps[:3, :3] if grid.has_patient_space else np.diag([*grid.axis_spacing, 1.0][:3])
    if not present:
        return np.empty((0, 3))
    # One structure at a time, since the places of all voxels would fill the memory
    places = ((steps @ (np.array(np.nonzero(one.mask)) + [[side.start] for side in one.box])).T for one in present)
    voxels, means, squares = map(np.array, zip(*((len(p), p.mean(axis=0), (p**2).sum()) for p in places), strict=True))
    middle = np.average(means, axis=0, weights=voxels)
    radius = np.sqrt(max(squares.sum() / voxels.sum() - float(middle @ middle), 0.0))
    return np.asarray((means - middle) / max(float(radius), _TINY))


def _edges(structure: Structure, grid: Volume) -> dict[str, float]:
    """What the image says of the surface and of the inside of a structure with voxels."""
    margin = FARTHEST + 3
    i, j, k = (slice(max(0, side.start - margin), side.stop + margin) for side in structure.box)
    image = np.asarray(grid.channel(0).array[i, j, k], dtype=np.float32)
    mask = structure.mask_in((i, j, k))
    fit = fit_of(image, mask) or Fit(_NO_EDGES, _NO_EDGES)
    near = binary_dilation(mask, iterations=_SHELL) & ~mask
    inside, outside = image[mask], image[near]
    contrast = 0.0
    if outside.size:
        deviation = max(
            float(np.sqrt((inside.var() + outside.var()) / 2)), _TINY * max(1.0, float(np.abs(inside).max()))
        )
        contrast = float(inside.mean() - outside.mean()) / deviation
    return {"agreement": fit.ratio, "nearest": fit.nearest, "contrast": contrast}
