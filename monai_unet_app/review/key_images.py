"""Key images of a case: the section that shows most of the structures, and the most uncertain section."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from PIL import Image

from dicom_io.objects import drawing
from dicom_io.volume import Volume
from monai_unet_app.report.case_pictures import PATIENT_VIEWS

from .display_window import shown_channel, slice_axis
from .reviewed_case import ReviewedCase

LEAST_SIDE, SHOWN_MM = 512, 80.0
"""Least number of pixels on the longer side of a key image, and least field of view in mm if the image is that large."""

FILL, HEAT = 0.15, 0.8
"""Opacity of a structure inside of its outline, and of the highest uncertainty."""


@dataclass(frozen=True)
class KeySection:
    """A section with the structures on it.

    Attributes:
        title: Why it is shown.
        caption: Which section it is.
        pixels: Shape (rows, columns, 3), uint8, with research mark, directions and legend.
        place_mm: Middle of the structures in it, RAS mm, to which a viewer can go.
    """

    title: str
    caption: str
    pixels: NDArray[np.uint8]
    place_mm: tuple[float, float, float]

    def png(self) -> bytes:
        """As a PNG."""
        stream = io.BytesIO()
        Image.fromarray(self.pixels).save(stream, format="png", optimize=True)
        return stream.getvalue()


def key_sections(case: ReviewedCase) -> list[KeySection]:
    """The section with the largest area of structures, then the section with the highest sum of uncertainty if it is known.

    Without any structure, the first is the middle section.
    """
    view = _View.of(case)
    areas = np.count_nonzero(view.turned(case.segmentation.covered), axis=view.in_plane)
    if areas.any():
        sections = [view.section(int(areas.argmax()), "Largest section", heat=False)]
    else:
        sections = [view.section(len(areas) // 2, "Middle section", heat=False)]
    if case.uncertainty is not None:
        sums = view.turned(case.uncertainty).sum(axis=view.in_plane, dtype=np.float64)
        sections.append(view.section(int(sums.argmax()), "Most uncertain section", heat=True))
    return sections


def side_by_side(sections: Sequence[KeySection]) -> Figure:
    """The sections in one row, pixel for pixel, for a page of paper."""
    pictures = [section.pixels for section in sections]
    gap, height = 24, max(picture.shape[0] for picture in pictures)
    padded = [np.pad(picture, ((0, height - picture.shape[0]), (0, gap), (0, 0))) for picture in pictures]
    pixels = np.concatenate(padded, axis=1)[:, :-gap]
    # At 100 dots per inch each dot is a pixel
    figure = Figure(figsize=(pixels.shape[1] / 100, height / 100), dpi=100)
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set_axis_off()
    axis.imshow(pixels, interpolation="bilinear", aspect="auto")
    return figure


def anatomical_slices(volume: Volume, box: tuple[slice, ...]) -> tuple[list[int], list[int], list[int]]:
    """How sagittal, coronal and axial slices are numbered, as in the captions of key images.

    Args:
        volume: The image.
        box: A part of the image, by array axes.

    Returns:
        (first, count, step), each for sagittal slices (counted from the right), coronal (from the front) and axial slices
        (from the feet): the number, from 0, of the first slice in the box, the number of slices in the whole image, and the
        distance of two slices of the box.
    """
    first, count, steps = [0, 0, 0], [0, 0, 0], [1, 1, 1]
    for axis, (target, direction) in enumerate(_turn(volume)):
        size = volume.shape[axis]
        held = range(size)[box[axis]]
        # An axis that runs against L, P or S is numbered from its other end
        first[int(target)] = held[0] if direction > 0 else size - 1 - held[-1]
        count[int(target)], steps[int(target)] = size, held.step
    return first, count, steps


def _turn(volume: Volume) -> NDArray[Any]:
    """Turns the axes of an array to L, P, S, as nibabel's `apply_orientation` takes it."""
    return np.asarray(ornt_transform(io_orientation(volume.affine_ras), axcodes2ornt("LPS")))


@dataclass(frozen=True)
class _View:
    """A case seen along one of its axes.

    Attributes:
        case: The case.
        turn: The `_turn` of the image; None for a picture.
        across: The turned axis across which the sections lie.
        window: (black, white) of the image.
        note: A remark about the window for the caption; may be empty.
    """

    case: ReviewedCase
    turn: NDArray[Any] | None
    across: int
    window: tuple[float, float]
    note: str

    @classmethod
    def of(cls, case: ReviewedCase) -> "_View":
        volume = case.image
        if volume.planar:
            return cls(case, None, 2, *(case.window or ((0.0, 255.0), "")))
        turn = _turn(volume)
        assert case.window is not None  # in a volume, channels are no colours
        return cls(case, turn, int(turn[slice_axis(volume), 0]), *case.window)

    @property
    def in_plane(self) -> tuple[int, int]:
        """The axes of a section: to the right, then downwards (upwards if the axis runs to the head)."""
        right, down = (axis for axis in range(3) if axis != self.across)
        return right, down

    def turned(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array with the axes of the view."""
        return array if self.turn is None else apply_orientation(array, self.turn)

    def plane(self, array: NDArray[Any], index: int) -> NDArray[Any]:
        """Shape (rows, columns): a section with the head or the front at the top."""
        return self._upright(self._section(array, index))

    def _section(self, array: NDArray[Any], index: int) -> NDArray[Any]:
        """Shape (columns, rows): a view, where `take` would copy the whole turned array."""
        return np.asarray(np.moveaxis(self.turned(array), self.across, 0)[index])

    def _upright(self, section: NDArray[Any]) -> NDArray[Any]:
        """Columns to the right, rows down; rows that run to the head are reversed."""
        # Axes run to L, P, S: columns to the patient's left and rows to the back, as radiologists look at axial slices
        rows = np.moveaxis(section, 0, 1)
        return rows[::-1] if self.turn is not None and self.across != 2 else rows

    def section(self, index: int, title: str, *, heat: bool) -> KeySection:
        """The picture of a section; `heat` paints the uncertainty on it."""
        box = self._box()
        picture, legend = self._painted(index, box, heat=heat)
        caption, letters = "picture", None
        if self.turn is not None:
            plane, letters = PATIENT_VIEWS[self.across]
            caption = f"{plane} {index + 1} of {self.turned(self.case.segmentation.covered).shape[self.across]}"
        caption += f"; grey: {self.note}" if self.note else ""
        framed = drawing.framed(picture, letters, ["colour: uncertainty, dark to bright"] if heat else [], legend)
        return KeySection(title, caption, framed.pixels, self._place(index))

    def _painted(
        self, index: int, box: tuple[slice, slice], *, heat: bool
    ) -> tuple[drawing.Pixels, list[tuple[str, drawing.Rgb]]]:
        image = self.plane(shown_channel(self.case.image).array, index)[box]
        size = drawing.picture_size(image.shape[1::-1], self._pixel(), LEAST_SIDE)
        picture = self._grey(image, size)
        if heat and self.case.uncertainty is not None:
            values = np.ascontiguousarray(self.plane(self.case.uncertainty, index)[box])
            _paint_uncertainty(picture, drawing.smooth(values, size))
        masks = (
            (
                structure.segment.drawn_label,
                structure.segment.rgb,
                structure.drawn_within(self.plane(structure.labels, index)[box]),
            )
            for structure in self.case.structures
        )
        return drawing.with_masks(picture, masks, 0.0 if heat else FILL)

    def _grey(self, image: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
        """Shape (rows, columns, 3), 0 to 255."""
        if image.ndim == 3:
            return drawing.smooth(np.clip(np.rint(image), 0, 255).astype(np.uint8), size).astype(np.float64)
        low, high = self.window
        values = drawing.smooth(np.ascontiguousarray(image, dtype=np.float32), size)
        grey = np.clip((values - low) / (high - low), 0.0, 1.0) * 255.0
        return np.repeat(grey[..., None].astype(np.float64), 3, axis=2)

    def _pixel(self) -> tuple[float, float]:
        """Distance of neighbouring pixels of a section to the right and downwards, in mm; 1 for a picture."""
        spacing_mm, (right, down) = self.case.image.spacing_mm, self.in_plane
        # The turn gives the patient axis of each array axis; argsort gives the array axis of each patient axis
        own_axes = range(3) if self.turn is None else np.argsort(self.turn[:, 0])
        return spacing_mm[own_axes[right]], spacing_mm[own_axes[down]]

    def _box(self) -> tuple[slice, slice]:
        """(rows, columns) around the structures of all sections: twice their extent, at least SHOWN_MM."""
        projection = self._upright(np.asarray(self.turned(self.case.segmentation.covered).any(axis=self.across)))
        if self.turn is None or not projection.any():
            return slice(None), slice(None)
        rows, columns = (
            _around(np.asarray(projection.any(axis=1 - axis)), SHOWN_MM / step)
            for axis, step in enumerate(self._pixel()[::-1])
        )
        return rows, columns

    def _place(self, index: int) -> tuple[float, float, float]:
        """RAS mm of the middle of the structures in a section; of the middle of the section if it has none."""
        mask = self._section(self.case.segmentation.covered, index)
        centre = np.argwhere(mask).mean(axis=0) if mask.any() else (np.array(mask.shape) - 1) / 2
        voxel = np.ones(4)
        voxel[[*self.in_plane, self.across]] = *centre, index
        if self.turn is not None:
            # From an index of the turned array to an index of the image's own array, then to millimetres
            voxel = inv_ornt_aff(self.turn, self.case.image.shape) @ voxel
        x, y, z = (self.case.image.affine_ras @ voxel)[:3].tolist()
        return x, y, z


def _around(occupied: NDArray[np.bool_], least: float) -> slice:
    """Twice the extent of the occupied indices, at least `least` indices long, within the array.

    Args:
        occupied: Shape (N,); at least one element is true.
        least: Any number above 0.
    """
    indices = np.flatnonzero(occupied)
    low, high = int(indices[0]), int(indices[-1]) + 1
    side, middle = max(2.0 * (high - low), least), (low + high) / 2
    return slice(max(0, int(middle - side / 2)), min(len(occupied), int(middle + side / 2 + 1)))


def _paint_uncertainty(picture: NDArray[np.float64], uncertainty: NDArray[np.float32]) -> None:
    """Paints on a picture, shape (rows, columns, 3), its uncertainty, shape (rows, columns), 0 to 1."""
    colours = mpl.colormaps["inferno"](uncertainty)[..., :3] * 255.0
    opacity = (HEAT * np.clip(uncertainty * 1.5, 0.0, 1.0))[..., None]  # full opacity from two thirds on
    picture += opacity * (colours - picture)
