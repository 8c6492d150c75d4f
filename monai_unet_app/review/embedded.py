"""Image, masks, contours and uncertainty as small NIfTI files inside the page, which may load nothing."""

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import nibabel
import numpy as np
from numpy.typing import NDArray

from dicom_io.segmentation import Structure
from monai_unet_app.metrics.boxes import bounding_box

from .display_window import shown_channel, slice_axis
from .reviewed_case import ReviewedCase

LayerKind = Literal["image", "mask", "contour", "uncertainty"]
ROOM_MM = 20.0
"""Margin around the structures where an image is too large to be embedded whole."""

COARSEST = 4
"""A large image is thinned out to every second, third or fourth voxel along the rows and columns of its slices, no further."""

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
        box: The part of the image that the layers hold, by array axes; with a step where voxels are left out.
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
    window = case.window[0] if case.window else None
    whole = (slice(None),) * 3
    layers = _layers_within(case, whole, most_mb)
    if layers is not None:
        return Embedded(layers, window)
    size = f"the images are larger than the {most_mb:g} MB that a page may hold"
    box = bounding_box(case.segmentation.covered, [int(np.ceil(ROOM_MM / step)) for step in case.image.spacing_mm])
    if box is not None:
        around = f"{size}: the viewer shows the structures and {ROOM_MM:g} mm around them, not the whole image"
        for step in range(1, COARSEST + 1):
            note = f"{around}, and of each slice every {_ORDINALS[step]} row and column" if step > 1 else around
            part = _thinned(box, step, slice_axis(case.image))
            layers = _layers_within(case, part, most_mb)
            if layers is not None:
                return Embedded(layers, window, f"{note}.", part)
    return Embedded(
        (), window, f"{size}: there is no viewer here; look at the key images, or at the case in a workstation."
    )


_ORDINALS = {2: "second", 3: "third", 4: "fourth"}


def _thinned(box: tuple[slice, ...], step: int, across: int) -> tuple[slice, ...]:
    """The box with one of `step` voxels along the axes of a slice, and with every slice."""
    return tuple(part if axis == across else slice(part.start, part.stop, step) for axis, part in enumerate(box))


class _TooLargeError(Exception):
    """The layers are larger than the page may hold."""


@dataclass
class _Room:
    """What is left of the bytes that the page may hold; nothing is compressed beyond them."""

    left: float

    def take(self, size: int) -> None:
        """Raises _TooLargeError if it is not enough."""
        self.left -= size
        if self.left < 0:
            raise _TooLargeError


def _layers_within(case: ReviewedCase, box: tuple[slice, ...], most_mb: float) -> tuple[Layer, ...] | None:
    """The layers of a box in at most `most_mb` megabytes of base64 (four bytes for three); None if they are larger."""
    try:
        return tuple(_layers(case, box, _Room(most_mb * 1e6 * 3 / 4)))
    except _TooLargeError:
        return None


def _layers(case: ReviewedCase, box: tuple[slice, ...], room: _Room) -> Iterator[Layer]:
    """The layers from bottom to top, so that the outlines lie on the uncertainty."""
    yield Layer("image", "image", _nifti(case, _image(shown_channel(case.image).array[box]), box, room))
    if case.uncertainty is not None:
        steps = np.rint(case.uncertainty[box] * UNCERTAINTY_STEPS).astype(np.uint8)
        yield Layer("uncertainty", "uncertainty", _nifti(case, steps, box, room))
    # A voxel of a label map holds one number, so structures that overlap are in layers of their own
    for held in case.segmentation.maps if case.has_labels else ():
        name = "-".join(str(structure.number) for structure in held.structures)
        labels = held.numbers_in(box)
        yield Layer(f"mask-{name}", "mask", _nifti(case, labels, box, room), held.structures)
        outlines = slice_border(labels, slice_axis(case.image))
        yield Layer(f"contour-{name}", "contour", _nifti(case, outlines, box, room), held.structures)


def slice_border(labels: NDArray[Any], across: int) -> NDArray[Any]:
    """The labels without the voxels inside: those whose four neighbours in the slice are equal. Beyond the image is outside.

    Args:
        labels: Shape (I, J, K): a mask, or the numbers of structures, 0 outside of them.
        across: The axis across which the slices lie: 0, 1 or 2.

    Returns:
        Same shape and type.
    """
    border = labels.copy()
    for plane, kept in zip(np.moveaxis(labels, across, 0), np.moveaxis(border, across, 0), strict=True):
        middle = plane[1:-1, 1:-1]
        inside = (middle == plane[:-2, 1:-1]) & (middle == plane[2:, 1:-1])
        inside &= (middle == plane[1:-1, :-2]) & (middle == plane[1:-1, 2:])
        kept[1:-1, 1:-1][inside] = 0
    return border


def _image(array: NDArray[Any]) -> NDArray[Any]:
    """Colours as bytes, whole numbers that fit as int16, else the floats, which NIfTI then stores in 65536 steps."""
    if array.ndim == 4:
        colours = np.clip(np.rint(array), 0, 255).astype(np.uint8)
        # NIfTI's RGB24 is one voxel of three named bytes
        return np.ascontiguousarray(colours).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    low, high = float(array.min()), float(array.max())
    # Plane by plane: a rounded copy of a large image would be as large again
    whole = _INT16.min <= low and high <= _INT16.max and all(bool((plane == np.rint(plane)).all()) for plane in array)
    return array.astype(np.int16) if whole else array


def _nifti(case: ReviewedCase, array: NDArray[Any], box: tuple[slice, ...], room: _Room) -> bytes:
    affine_ras = case.image.affine_ras.copy()
    # The first voxel of the part is the origin of its own grid
    affine_ras[:, 3] = affine_ras @ np.array([part.start or 0 for part in box] + [1], dtype=np.float64)
    affine_ras[:, :3] *= [part.step or 1 for part in box]
    image = nibabel.Nifti1Image(array, affine_ras)
    if array.dtype.kind == "f":
        image.set_data_dtype(np.int16)
    # The sform alone: a qform cannot hold the shear of a tilted gantry
    image.set_sform(affine_ras, code=1)
    image.set_qform(None, code=0)
    packed = _Within(room)
    # Without a date: the same case gives the same bytes
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as stream:
        image.to_stream(stream)
    return packed.getvalue()


class _Within(io.BytesIO):
    """A file in memory that takes what it holds out of a room."""

    def __init__(self, room: _Room) -> None:
        super().__init__()
        self._room = room

    def write(self, data: Any) -> int:
        self._room.take(memoryview(data).nbytes)
        return super().write(data)
