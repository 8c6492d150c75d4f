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

from dicom_io.errors import DicomIoError
from dicom_io.objects import drawing
from dicom_io.objects.display import NOT_FITTING, Window, displays, percentile_window
from dicom_io.objects.source_images import images_of
from dicom_io.volume import Volume

from .reviewed_case import ReviewedCase

LEAST_SIDE, SHOWN_MM = 512, 80.0
"""Least number of pixels on the longer side of a key image, and least field of view in mm if the image is that large."""

COARSER = 1.1
"""Ratio of spacings. An axis that is coarser than the others by more is the axis across which the scanner made its slices."""

FILL, HEAT = 0.15, 0.8
"""Opacity of a structure inside of its outline, and of the highest uncertainty."""

PLANES = ("sagittal", "coronal", "axial")
_EDGES = (("A", "P", "S", "I"), ("R", "L", "S", "I"), ("R", "L", "A", "P"))  # of PLANES: left, right, upper, lower edge


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
    areas = view.turned(case.segmentation.foreground).sum(axis=view.in_plane)
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


def slice_axis(volume: Volume) -> int:
    """The axis of the array across which the slices lie: the coarsest axis, or that nearest to feet-head if none is coarser."""
    if volume.planar:
        return 2
    spacing = np.array(volume.spacing_mm)
    coarsest = int(spacing.argmax())
    if spacing[coarsest] > COARSER * np.delete(spacing, coarsest).max():
        return coarsest
    return int(np.argmax(io_orientation(volume.affine_ras)[:, 0] == 2))


def shown_window(volume: Volume) -> tuple[tuple[float, float], str]:
    """(black, white) of a grey image, and a note if the window of its header does not fit.

    The window is that of the middle slice's DICOM header if it fits the values, else it is made from percentiles.
    """
    window = _header_window(volume)
    if window is None:
        window = percentile_window(_sample(volume))
    # PS3.3 C.11.2.1.2.1: LINEAR is centred half a value lower and spans one value less than its width
    width = window.width - 1.0 if window.function == "LINEAR" else window.width
    centre = window.center - 0.5 if window.function == "LINEAR" else window.center
    # A LINEAR window of width 1 is a threshold and spans 0 here; the ends must differ, since grey values are divided
    # by their distance
    ends = centre - width / 2, centre + width / 2 if width > 0 else centre + 0.5
    return ends, window.explanation if window.explanation == NOT_FITTING else ""


def _sample(volume: Volume) -> NDArray[Any]:
    """The values of an image, or every eighth if there are many: percentiles stay nearly the same."""
    return volume.array[::2, ::2, ::2] if volume.array.size > 2**22 else volume.array


# name, centre, width in HU; as https://radiopaedia.org/articles/windowing-ct lists them
_CT_WINDOWS = (
    ("Brain", 40.0, 80.0),
    ("Lung", -600.0, 1500.0),
    ("Soft tissue", 50.0, 400.0),
    ("Liver", 30.0, 150.0),
    ("Bone", 400.0, 1800.0),
)


def window_presets(volume: Volume, modality: str | None) -> list[dict[str, Any]]:
    """Windows that a reader may choose from, the default window first; none for a picture in colour.

    Each is {"name", "low", "high"}: values up to `low` are black, values from `high` on are white.

    Args:
        volume: The image.
        modality: DICOM Modality. A CT gets the usual windows in HU, any other image windows by percentiles.
    """
    if volume.array.ndim == 4:
        return []
    ends, note = shown_window(volume)
    rows, values = [(note or "Default", *ends)], _sample(volume)
    if modality == "CT":
        rows += [(name, centre - width / 2, centre + width / 2) for name, centre, width in _CT_WINDOWS]
    else:
        for outside in (2, 10):
            low, high = (float(value) for value in np.percentile(values, (outside, 100 - outside)))
            rows.append((f"{outside} to {100 - outside} %", low, high))
    rows.append(("Whole range", float(values.min()), float(values.max())))
    return [{"name": name, "low": low, "high": high} for name, low, high in rows if high > low]


def anatomical_slices(volume: Volume, box: tuple[slice, ...]) -> tuple[list[int], list[int]]:
    """How sagittal, coronal and axial slices are numbered, as in the captions of key images.

    Args:
        volume: The image.
        box: A part of the image, by array axes.

    Returns:
        (first, count), each for sagittal slices (counted from the right), coronal slices (from the front) and axial slices
        (from the feet): the number, from 0, of the first slice in the box, and the number of slices in the whole image.
    """
    first, count = [0, 0, 0], [0, 0, 0]
    turn = ornt_transform(io_orientation(volume.affine_ras), axcodes2ornt(("L", "P", "S")))
    for axis, (target, direction) in enumerate(turn):
        size, part = volume.shape[axis], box[axis]
        start, stop = part.start or 0, size if part.stop is None else part.stop
        # An axis that runs against L, P or S is numbered from its other end
        first[int(target)] = int(start if direction > 0 else size - stop)
        count[int(target)] = int(size)
    return first, count


def _header_window(volume: Volume) -> Window | None:
    if volume.provenance.kind != "dicom" or volume.provenance.resampled or volume.array.ndim == 4:
        return None
    try:
        slices = displays(images_of(volume))
    except (DicomIoError, ValueError, AttributeError):  # a header that lacks attributes of a display
        return None
    # Low values are bright in a MONOCHROME1 image; its window is not for a picture with bright high values
    middle = slices[len(slices) // 2]
    return None if middle.inverted or middle.mirror is not None else middle.window


@dataclass(frozen=True)
class _View:
    """A case seen along one of its axes.

    Attributes:
        case: The case.
        turn: Turns the axes of an array to L, P, S, as nibabel's `apply_orientation` takes it; None for a picture.
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
            window, note = ((0.0, 255.0), "") if volume.array.ndim == 4 else shown_window(volume)
            return cls(case, None, 2, window, note)
        own = io_orientation(volume.affine_ras)
        turn = ornt_transform(own, axcodes2ornt(("L", "P", "S")))
        return cls(case, turn, int(own[slice_axis(volume), 0]), *shown_window(shown_channel(volume)))

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
        return self._upright(self.turned(array).take(index, axis=self.across))

    def _upright(self, section: NDArray[Any]) -> NDArray[Any]:
        """Columns to the right, rows down; rows that run to the head are reversed."""
        # Axes run to L, P, S: columns to the patient's left and rows to the back, as radiologists look at axial slices
        rows = np.moveaxis(section, 0, 1)
        return rows[::-1] if self.turn is not None and self.across != 2 else rows

    def section(self, index: int, title: str, *, heat: bool) -> KeySection:
        """The picture of a section; `heat` paints the uncertainty on it."""
        box = self._box()
        picture, legend = self._painted(index, box, heat=heat)
        letters = None if self.turn is None else _EDGES[self.across]
        count = self.turned(self.case.segmentation.foreground).shape[self.across]
        caption = "picture" if self.turn is None else f"{PLANES[self.across]} {index + 1} of {count}"
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
            (structure.label, structure.segment.rgb, self.plane(structure.mask_on_grid, index)[box])
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
        volume, (right, down) = self.case.image, self.in_plane
        # io_orientation gives the patient axis of each array axis; argsort gives the array axis of each patient axis
        own_axes = range(3) if self.turn is None else np.argsort(io_orientation(volume.affine_ras)[:, 0])
        return volume.spacing_mm[own_axes[right]], volume.spacing_mm[own_axes[down]]

    def _box(self) -> tuple[slice, slice]:
        """(rows, columns) around the structures of all sections: twice their extent, at least SHOWN_MM."""
        projection = self._upright(np.asarray(self.turned(self.case.segmentation.foreground).any(axis=self.across)))
        if self.turn is None or not projection.any():
            return slice(None), slice(None)
        rows, columns = (
            _around(np.asarray(projection.any(axis=1 - axis)), SHOWN_MM / step)
            for axis, step in enumerate(self._pixel()[::-1])
        )
        return rows, columns

    def _place(self, index: int) -> tuple[float, float, float]:
        """RAS mm of the middle of the structures in a section; of the middle of the section if it has none."""
        mask = self.turned(self.case.segmentation.foreground).take(index, axis=self.across)
        centre = np.argwhere(mask).mean(axis=0) if mask.any() else (np.array(mask.shape) - 1) / 2
        voxel = np.ones(4)
        voxel[[*self.in_plane, self.across]] = *centre, index
        if self.turn is not None:
            # From an index of the turned array to an index of the image's own array, then to millimetres
            voxel = inv_ornt_aff(self.turn, self.case.image.shape) @ voxel
        x, y, z = (float(value) for value in (self.case.image.affine_ras @ voxel)[:3])
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


def shown_channel(volume: Volume) -> Volume:
    """The first of several channels; a picture with three channels stays as it is, because they are its colours."""
    return volume if volume.planar and volume.array.shape[3:] == (3,) else volume.channel(0)


def _paint_uncertainty(picture: NDArray[np.float64], uncertainty: NDArray[np.float32]) -> None:
    """Paints on a picture, shape (rows, columns, 3), its uncertainty, shape (rows, columns), 0 to 1."""
    colours = mpl.colormaps["inferno"](uncertainty)[..., :3] * 255.0
    opacity = (HEAT * np.clip(uncertainty * 1.5, 0.0, 1.0))[..., None]  # full opacity from two thirds on
    picture += opacity * (colours - picture)
