"""Key images of a case: the section with most of the structures and the most uncertain one, drawn to be seen at once."""

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
"""A picture's longer side has at least so many pixels, and shows at least so many millimetres where there are as many."""

COARSER = 1.1
"""Slices this much further apart than pixels are the planes that the scanner made."""

FILL, HEAT = 0.15, 0.8
"""Opacity of a structure inside its outline, and of full uncertainty."""

PLANES = ("sagittal", "coronal", "axial")
_EDGES = (("A", "P", "S", "I"), ("R", "L", "S", "I"), ("R", "L", "A", "P"))  # left, right, upper, lower, by axis across


@dataclass(frozen=True)
class KeySection:
    """A section with the structures on it.

    Attributes:
        title: Why it is shown.
        caption: Which section it is.
        pixels: Shape (rows, columns, 3), uint8, with research mark, directions and legend.
        place_mm: RAS millimetres in the middle of what it shows, for a viewer to go to.
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
    """The largest section of all structures together and, where uncertainty is known, the section that has most of it.

    Without a structure the first is the middle section.
    """
    view = _View.of(case)
    areas = view.turned(case.segmentation.foreground).sum(axis=view.in_plane)
    found = bool(areas.any())
    largest = int(areas.argmax()) if found else len(areas) // 2
    sections = [view.section(largest, "Largest section" if found else "Middle section", heat=False)]
    if case.uncertainty is not None:
        doubts = view.turned(case.uncertainty).sum(axis=view.in_plane, dtype=np.float64)
        sections.append(view.section(int(doubts.argmax()), "Most uncertain section", heat=True))
    return sections


def side_by_side(sections: Sequence[KeySection]) -> Figure:
    """The sections in one row, pixel for pixel, for a page of paper."""
    gap, height = 24, max(section.pixels.shape[0] for section in sections)
    parts = [np.pad(one.pixels, ((0, height - one.pixels.shape[0]), (0, gap), (0, 0))) for one in sections]
    pixels = np.concatenate(parts, axis=1)[:, :-gap]
    figure = Figure(figsize=(pixels.shape[1] / 100, height / 100), dpi=100)
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.set_axis_off()
    axis.imshow(pixels, interpolation="bilinear", aspect="auto")
    return figure


def slice_axis(volume: Volume) -> int:
    """The axis of the array across which the slices lie: the coarsest; the one nearest to the head where all are alike."""
    if volume.planar:
        return 2
    spacing = np.array(volume.spacing_mm)
    coarsest = int(spacing.argmax())
    if spacing[coarsest] > COARSER * np.delete(spacing, coarsest).max():
        return coarsest
    return int(np.argmax(io_orientation(volume.affine_ras)[:, 0] == 2))


def grey_window(volume: Volume) -> tuple[float, float]:
    """(black, white) of a grey image: as its DICOM header says of the middle slice and that fits, else by percentiles."""
    return _ends(_shown_window(volume))


def _shown_window(volume: Volume) -> Window:
    window = _header_window(volume)
    if window is None:
        values = volume.array[::2, ::2, ::2] if volume.array.size > 2**22 else volume.array
        window = percentile_window(values)
    return window


def _ends(window: Window) -> tuple[float, float]:
    width = window.width - 1.0 if window.function == "LINEAR" else window.width
    centre = window.center - 0.5 if window.function == "LINEAR" else window.center
    return centre - width / 2, centre + width / 2 if width > 0 else centre + 0.5


# name, centre, width in HU; as https://radiopaedia.org/articles/windowing-ct lists them
_CT_WINDOWS = (
    ("Brain", 40.0, 80.0),
    ("Lung", -600.0, 1500.0),
    ("Soft tissue", 50.0, 400.0),
    ("Liver", 30.0, 150.0),
    ("Bone", 400.0, 1800.0),
)


@dataclass(frozen=True)
class Preset:
    """A window with a name: values up to `low` are black, from `high` on white."""

    name: str
    low: float
    high: float


def window_presets(volume: Volume, modality: str | None) -> list[Preset]:
    """Windows that a reader may choose from, the default one first; none of a picture in colour.

    Args:
        volume: The image.
        modality: DICOM's word for what made it: for CT there are the usual windows in HU, else windows by percentiles.
    """
    if volume.array.ndim == 4:
        return []
    window = _shown_window(volume)
    found = [Preset(NOT_FITTING if window.explanation == NOT_FITTING else "Default", *_ends(window))]
    values = volume.array[::2, ::2, ::2] if volume.array.size > 2**22 else volume.array
    if modality == "CT":
        found += [Preset(name, centre - width / 2, centre + width / 2) for name, centre, width in _CT_WINDOWS]
    else:
        for outside in (2, 10):
            low, high = (float(value) for value in np.percentile(values, (outside, 100 - outside)))
            found.append(Preset(f"{outside} to {100 - outside} %", low, high))
    found.append(Preset("Whole range", float(values.min()), float(values.max())))
    return [one for one in found if one.high > one.low]


def anatomical_slices(volume: Volume, box: tuple[slice, ...]) -> tuple[list[int], list[int]]:
    """How sagittal, coronal and axial slices are numbered, as in the captions of key images.

    Args:
        volume: The image.
        box: The part of it that is meant, by array axes.

    Returns:
        (first, count): for sagittal slices from the right, coronal from the front and axial from the feet, the number from 0 of
        the first slice in the box, and how many slices the whole image has.
    """
    first, count = [0, 0, 0], [0, 0, 0]
    turn = ornt_transform(io_orientation(volume.affine_ras), axcodes2ornt(("L", "P", "S")))
    for axis, (target, direction) in enumerate(turn):
        size, part = volume.shape[axis], box[axis]
        start, stop = part.start or 0, size if part.stop is None else part.stop
        first[int(target)] = int(start if direction > 0 else size - stop)
        count[int(target)] = int(size)
    return first, count


def _header_window(volume: Volume) -> Window | None:
    if volume.provenance.kind != "dicom" or volume.provenance.resampled or volume.array.ndim == 4:
        return None
    try:
        shown = displays(images_of(volume))
    except (DicomIoError, ValueError, AttributeError):  # a header without what a display needs
        return None
    middle = shown[len(shown) // 2]
    return None if middle.inverted or middle.mirror is not None else middle.window


def _told(volume: Volume) -> tuple[tuple[float, float], str]:
    """(black, white), and what is to be said of them."""
    window = _shown_window(volume)
    return _ends(window), window.explanation if window.explanation == NOT_FITTING else ""


@dataclass(frozen=True)
class _View:
    """A case with its axes turned to L, P, S (a picture's left as they are), and which of them its sections lie across."""

    case: ReviewedCase
    turn: NDArray[Any] | None
    across: int
    window: tuple[float, float]
    note: str = ""

    @classmethod
    def of(cls, case: ReviewedCase) -> "_View":
        volume = case.image
        if volume.planar:
            return cls(case, None, 2, (0.0, 255.0)) if volume.array.ndim == 4 else cls(case, None, 2, *_told(volume))
        own = io_orientation(volume.affine_ras)
        turn = ornt_transform(own, axcodes2ornt(("L", "P", "S")))
        return cls(case, turn, int(own[slice_axis(volume), 0]), *_told(shown_channel(volume)))

    @property
    def in_plane(self) -> tuple[int, int]:
        """The axes of a section: to the right, and downwards (or upwards where that is to the head)."""
        right, down = (axis for axis in range(3) if axis != self.across)
        return right, down

    def turned(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array with the axes of the view."""
        return array if self.turn is None else apply_orientation(array, self.turn)

    def plane(self, array: NDArray[Any], index: int) -> NDArray[Any]:
        """Shape (rows, columns): a section as it is looked at."""
        return self._upright(self.turned(array).take(index, axis=self.across))

    def _upright(self, cut: NDArray[Any]) -> NDArray[Any]:
        """Columns to the right, rows down; rows that run to the head are turned around."""
        rows = np.moveaxis(cut, 0, 1)
        return rows[::-1] if self.turn is not None and self.across != 2 else rows

    def section(self, index: int, title: str, *, heat: bool) -> KeySection:
        """The picture of a section; `heat` paints the uncertainty on it."""
        box = self._box()
        picture, legend = self._painted(index, box, heat=heat)
        letters = None if self.turn is None else _EDGES[self.across]
        count = self.turned(self.case.segmentation.foreground).shape[self.across]
        kind = "picture" if self.turn is None else f"{PLANES[self.across]} {index + 1} of {count}"
        told = ["colour: uncertainty, dark to bright"] if heat else []
        framed = drawing.framed(picture, letters, told, legend)
        kind += f"; grey: {self.note}" if self.note else ""
        return KeySection(title, kind, framed.pixels, self._place(index))

    def _painted(
        self, index: int, box: tuple[slice, slice], *, heat: bool
    ) -> tuple[drawing.Pixels, list[tuple[str, drawing.Rgb]]]:
        image = self.plane(shown_channel(self.case.image).array, index)[box]
        size = drawing.picture_size(image.shape[1::-1], self._pixel(), LEAST_SIDE)
        picture = self._grey(image, size)
        if heat and self.case.uncertainty is not None:
            _warm(picture, drawing.smooth(np.ascontiguousarray(self.plane(self.case.uncertainty, index)[box]), size))
        legend = []
        for structure in self.case.structures:
            mask = self.plane(structure.mask_on_grid, index)[box]
            if mask.any():
                rgb = structure.segment.rgb
                legend.append((structure.label, rgb))
                drawing.paint(picture, drawing.enlarged(mask, size), rgb, 0.0 if heat else FILL, outline=True)
        return np.rint(picture).astype(np.uint8), legend

    def _grey(self, image: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
        """Shape (rows, columns, 3), 0 to 255."""
        if image.ndim == 3:
            return drawing.smooth(np.clip(np.rint(image), 0, 255).astype(np.uint8), size).astype(np.float64)
        low, high = self.window
        values = drawing.smooth(np.ascontiguousarray(image, dtype=np.float32), size)
        grey = np.clip((values - low) / (high - low), 0.0, 1.0) * 255.0
        return np.repeat(grey[..., None].astype(np.float64), 3, axis=2)

    def _spacing(self) -> tuple[float, float, float]:
        """Along the axes of the view."""
        spacing = self.case.image.spacing_mm
        if self.turn is None:
            return spacing
        own = io_orientation(self.case.image.affine_ras)[:, 0].astype(int)
        a, b, c = (spacing[int(np.argmax(own == axis))] for axis in range(3))
        return a, b, c

    def _pixel(self) -> tuple[float, float]:
        right, down = self.in_plane
        spacing = self._spacing()
        return spacing[right], spacing[down]

    def _box(self) -> tuple[slice, slice]:
        """(rows, columns) around the structures of all sections: twice their extent, at least SHOWN_MM."""
        shadow = self._upright(np.asarray(self.turned(self.case.segmentation.foreground).any(axis=self.across)))
        if self.turn is None or not shadow.any():
            return slice(None), slice(None)
        rows, columns = (
            _around(np.asarray(shadow.any(axis=1 - axis)), SHOWN_MM / step)
            for axis, step in enumerate(self._pixel()[::-1])
        )
        return rows, columns

    def _place(self, index: int) -> tuple[float, float, float]:
        """RAS millimetres of the middle of the structures in a section, else of the section."""
        mask = self.turned(self.case.segmentation.foreground).take(index, axis=self.across)
        here = np.argwhere(mask).mean(axis=0) if mask.any() else (np.array(mask.shape) - 1) / 2
        right, down = self.in_plane
        at = np.zeros(4)
        at[[right, down, self.across]], at[3] = (*here, index), 1.0
        if self.turn is not None:
            at = inv_ornt_aff(self.turn, self.case.image.shape) @ at
        x, y, z = (float(value) for value in (self.case.image.affine_ras @ at)[:3])
        return x, y, z


def _around(here: NDArray[np.bool_], least: float) -> slice:
    """Twice the extent of what is here, at least `least`, as far as there is room."""
    where = np.flatnonzero(here)
    low, high = int(where[0]), int(where[-1]) + 1
    side, middle = max(2.0 * (high - low), least), (low + high) / 2
    return slice(max(0, int(middle - side / 2)), min(len(here), int(middle + side / 2 + 1)))


def shown_channel(volume: Volume) -> Volume:
    """Of several channels the first, but for the colours of a picture."""
    several = volume.array.ndim == 4 and not (volume.planar and volume.array.shape[3] == 3)
    return volume.with_array(volume.array[..., 0]) if several else volume


def _warm(picture: NDArray[np.float64], uncertainty: NDArray[np.float32]) -> None:
    """Paints uncertainty, shape (rows, columns), 0 to 1, on the picture."""
    colours = mpl.colormaps["inferno"](uncertainty)[..., :3] * 255.0
    opacity = (HEAT * np.clip(uncertainty * 1.5, 0.0, 1.0))[..., None]
    picture += opacity * (colours - picture)
