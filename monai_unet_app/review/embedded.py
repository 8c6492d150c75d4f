"""Image, masks, contours and uncertainty as small NIfTI files inside the page, which may load nothing."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, generate_binary_structure

from dicom_io.segmentation import Structure
from monai_unet_app.metrics.boxes import bounding_box

from .key_images import shown_channel, shown_window, slice_axis
from .reviewed_case import Mask, ReviewedCase

LayerKind = Literal["image", "mask", "contour", "uncertainty"]
ROOM_MM = 20.0
"""Margin around the structures where an image is too large to be embedded whole."""

UNCERTAINTY_STEPS = 250
"""Number of steps from 0 to 1 in which the page stores uncertainty, so that a voxel is one byte."""

_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Layer:
    """One file of the page.

    Attributes:
        name: Its name in the page.
        kind: The kind of its values.
        content: The bytes of a `.nii.gz`.
        structures: The structures whose numbers are the values of a mask or contour.
    """

    name: str
    kind: LayerKind
    content: bytes
    structures: tuple[Structure, ...] = ()


@dataclass(frozen=True)
class Embedded:
    """The layers of the viewer in the page.

    Attributes:
        layers: The image first; empty if the page has no viewer.
        window: (black, white) of the image; None in colour.
        note: A sentence about the parts that are left out, and why; empty if nothing is left out.
        box: The part of the image that the layers hold, by array axes.
    """

    layers: tuple[Layer, ...]
    window: tuple[float, float] | None
    note: str = ""
    box: tuple[slice, ...] = (slice(None),) * 3

    @property
    def megabytes(self) -> float:
        """Size in the page, where base64 takes four bytes for three."""
        return sum(len(layer.content) for layer in self.layers) * 4 / 3 / 1e6


def embed(case: ReviewedCase, most_mb: float) -> Embedded:
    """The layers of a case in at most `most_mb` megabytes of base64: whole, else around the structures, else none."""
    volume = shown_channel(case.image)
    window = None if volume.array.ndim == 4 else shown_window(volume)[0]
    whole = (slice(None),) * 3
    complete = Embedded(tuple(_layers(case, whole)), window)
    if complete.megabytes <= most_mb:
        return complete
    size = f"{complete.megabytes:.0f} MB of images are more than the {most_mb:g} MB that a page may hold"
    box = bounding_box(case.segmentation.foreground, [int(np.ceil(ROOM_MM / step)) for step in case.image.spacing_mm])
    if box is not None:
        part = Embedded(
            tuple(_layers(case, box)),
            window,
            f"{size}: the viewer shows the structures and {ROOM_MM:g} mm around them, not the whole image.",
            box,
        )
        if part.megabytes <= most_mb:
            return part
    return Embedded(
        (), window, f"{size}: there is no viewer here; look at the key images, or at the case in a workstation."
    )


def _layers(case: ReviewedCase, box: tuple[slice, ...]) -> Iterator[Layer]:
    """The layers from bottom to top, so that the outlines lie on the uncertainty."""
    yield Layer("image", "image", _nifti(case, _image(shown_channel(case.image).array[box]), box))
    if case.uncertainty is not None:
        steps = np.rint(case.uncertainty[box] * UNCERTAINTY_STEPS).astype(np.uint8)
        yield Layer("uncertainty", "uncertainty", _nifti(case, steps, box))
    # A voxel of a label map holds one number, so structures that overlap are in layers of their own
    for group in case.segmentation.disjoint_groups if case.has_labels else ():
        name = "-".join(str(structure.number) for structure in group)
        yield Layer(f"mask-{name}", "mask", _nifti(case, _label_image(group)[box], box), group)
        outlines = _label_image(group, across=slice_axis(case.image))[box]
        yield Layer(f"contour-{name}", "contour", _nifti(case, outlines, box), group)


def _label_image(group: tuple[Structure, ...], across: int | None = None) -> NDArray[np.uint8 | np.uint16]:
    """Shape (I, J, K): the number of the structure at each voxel; with `across`, of its border in the slices only."""
    largest = max(structure.number for structure in group)
    labels = np.zeros(group[0].grid.shape, np.uint8 if largest < 256 else np.uint16)
    for structure in group:
        mask = structure.mask_on_grid
        labels[mask if across is None else slice_border(mask, across)] = structure.number
    return labels


def slice_border(mask: Mask, across: int) -> Mask:
    """The voxels of a mask that share a side with a voxel outside of it in the same slice. Beyond the image is outside.

    Args:
        mask: Shape (I, J, K).
        across: The axis across which the slices lie: 0, 1 or 2.

    Returns:
        Same shape.
    """
    border = np.zeros_like(mask)
    box = bounding_box(mask, (0, 0, 0))
    if box is not None:
        cross = np.expand_dims(generate_binary_structure(2, 1), across)
        # border_value=0: what is beyond the image counts as outside
        border[box] = mask[box] & ~binary_erosion(mask[box], cross, border_value=0)
    return border


def _image(array: NDArray[Any]) -> NDArray[Any]:
    """Colours as bytes, whole numbers that fit as int16, else the floats, which NIfTI then stores in 65536 steps."""
    if array.ndim == 4:
        colours = np.clip(np.rint(array), 0, 255).astype(np.uint8)
        # NIfTI's RGB24 is one voxel of three named bytes
        return np.ascontiguousarray(colours).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    low, high = float(array.min()), float(array.max())
    whole = _INT16.min <= low and high <= _INT16.max and bool((array == np.rint(array)).all())
    return array.astype(np.int16) if whole else array


def _nifti(case: ReviewedCase, array: NDArray[Any], box: tuple[slice, ...]) -> bytes:
    start = np.array([part.start or 0 for part in box] + [1], dtype=np.float64)
    affine_ras = case.image.affine_ras.copy()
    # The first voxel of the part is the origin of its own grid
    affine_ras[:, 3] = affine_ras @ start
    image = nibabel.Nifti1Image(array, affine_ras)
    if array.dtype.kind == "f":
        image.set_data_dtype(np.int16)
    # The sform alone: a qform cannot hold the shear of a tilted gantry
    image.set_sform(affine_ras, code=1)
    image.set_qform(None, code=0)
    # mtime=0: the same case gives the same bytes
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)
