"""The contours of an RT Structure Set.

Two ways in: `walk_rtstruct` reads anybody's through pydicom; `contours_by_slice` reads what we wrote through `raw_parser`,
a reader that shares nothing with the writer, for the proof.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.errors import GeometryProofError, LabelError
from dicom_io.objects.raw_parser import Attributes, instance_key, integer, items, text
from dicom_io.objects.seg_frames import reference_keys
from dicom_io.reading.headers import shown

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

EXCLUSIVE = "CLOSEDPLANAR_XOR"
CLOSED = ("CLOSED_PLANAR", EXCLUSIVE)
WITHOUT_AREA = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")
_ROI_CONTOURS, _ROI, _CONTOURS, _IMAGES = 0x30060039, 0x30060084, 0x30060040, 0x30060016
_KIND, _COUNT, _DATA = 0x30060042, 0x30060046, 0x30060050
_AT_ONCE = 100  # contours whose numbers are read together


@dataclass(frozen=True)
class Contour:
    """One closed contour of an RTSTRUCT.

    Attributes:
        roi: The region.
        points_mm: Shape (n, 3), LPS.
        named: The slices that it names, as `Slice.key`.
        exclusive: It is a CLOSEDPLANAR_XOR one.
    """

    roi: int
    points_mm: Floats
    named: tuple[str, ...]
    exclusive: bool


@dataclass(frozen=True)
class SliceContours:
    """All contours that name one slice.

    Attributes:
        rois: Shape (n,): the region of each.
        counts: Shape (n,): the number of points of each.
        points_mm: Shape (sum of `counts`, 3), LPS.
    """

    rois: Integers
    counts: Integers
    points_mm: Floats


def walk_rtstruct(dataset: Dataset) -> Iterator[Contour]:
    """Every closed contour of an RTSTRUCT, by pydicom; points and open lines enclose nothing and are passed by.

    Raises:
        LabelError: A contour is of a type that the standard does not have, or its coordinates are no points.
    """
    for roi in dataset.get("ROIContourSequence") or []:
        for item in roi.get("ContourSequence") or []:
            kind = item.get("ContourGeometricType")
            if kind in WITHOUT_AREA:
                continue
            if kind not in CLOSED:
                raise LabelError(
                    f"region {int(roi.ReferencedROINumber)} has a contour of type {shown(str(kind)[:16])}; CLOSED_PLANAR is "
                    "needed; export the structure set again"
                )
            images = item.get("ContourImageSequence") or []
            named = tuple(key for image in images for key in reference_keys(image))
            number = int(roi.ReferencedROINumber)
            yield Contour(number, _points(item, number), named, kind == EXCLUSIVE)


def without_area(dataset: Dataset) -> dict[int, int]:
    """How many points and open lines a region has, by ROINumber."""
    found: dict[int, int] = {}
    for roi in dataset.get("ROIContourSequence") or []:
        kinds = [item.get("ContourGeometricType") for item in roi.get("ContourSequence") or []]
        if count := sum(kind in WITHOUT_AREA for kind in kinds):
            found[int(roi.ReferencedROINumber)] = count
    return found


def without_repeats(loops: Sequence[Floats]) -> list[Floats]:
    """The contours of which none has the same edges as one before it, wherever it begins and whichever way it goes.

    Args:
        loops: Closed polygons of shape (n, 2); the last point joins the first, which may stand there again.
    """
    return list({_edges(loop): loop for loop in reversed(loops)}.values())[::-1]


def _edges(loop: Floats) -> bytes:
    """What a closed contour encloses is told by its edges, whatever their order and direction."""
    loop = np.round(loop, 6) + 0.0  # the same millimetres, far below their digits; no negative zeros
    following = np.roll(loop, -1, axis=0)
    moves = (loop != following).any(axis=1)
    here, there = loop[moves], following[moves]
    turned = (here[:, 0] > there[:, 0]) | ((here[:, 0] == there[:, 0]) & (here[:, 1] > there[:, 1]))
    edges = np.where(turned[:, None], np.hstack([there, here]), np.hstack([here, there]))
    return edges[np.lexsort(edges.T)].tobytes() or loop[0].tobytes()


def _points(contour: Dataset, roi: int) -> Floats:
    """Shape (n, 3), LPS mm."""
    element = contour.get_item("ContourData") if "ContourData" in contour else None
    data = element.value if element else None  # bytes as in the file: pydicom takes its time to make numbers of them
    values = data.rstrip(b" \0").split(b"\\") if isinstance(data, bytes) else data or []
    try:
        points_mm = np.array([float(value) for value in values]).reshape(-1, 3)
    except (TypeError, ValueError):
        points_mm = np.full((1, 3), np.nan)
    if not len(points_mm) or not np.isfinite(points_mm).all():
        raise LabelError(
            f"region {roi} has a contour whose coordinates are not finite numbers, three for each point; these are needed; "
            "export the structure set again"
        )
    return points_mm


def contours_by_slice(written: Attributes) -> dict[str, SliceContours]:
    """The contours of an RTSTRUCT of our own by the slice that they name (as `Slice.key`), by `raw_parser`.

    Raises:
        GeometryProofError: A contour is not CLOSED_PLANAR, not of whole points, or has another number of them than it says.
    """
    found: dict[str, list[tuple[int, Floats]]] = {}
    for region in items(written, _ROI_CONTOURS):
        roi, contours = integer(region, _ROI), items(region, _CONTOURS)
        for start in range(0, len(contours), _AT_ONCE):
            some = contours[start : start + _AT_ONCE]
            for contour, points_mm in zip(some, _points_of(some), strict=True):
                found.setdefault(instance_key((items(contour, _IMAGES) or [{}])[0]), []).append((roi, points_mm))
    return {key: _joined(drawn) for key, drawn in found.items()}


def _joined(drawn: list[tuple[int, Floats]]) -> SliceContours:
    rois, counts = np.array([roi for roi, _ in drawn]), np.array([len(points_mm) for _, points_mm in drawn])
    return SliceContours(rois, counts, np.concatenate([points_mm for _, points_mm in drawn]))


def _points_of(contours: list[Attributes]) -> list[Floats]:
    """Shape (n, 3) each, LPS mm."""
    counts = [integer(one, _COUNT) for one in contours]
    data = [one.get(_DATA, b"").rstrip(b" \0") for one in contours]
    for one, count, numbers in zip(contours, counts, data, strict=True):
        if text(one, _KIND) != CLOSED[0] or count < 1 or numbers.count(b"\\") + 1 != 3 * count:
            raise GeometryProofError(
                f"a contour of type {text(one, _KIND)!r} that says it has {count} points holds {numbers.count(92) + 1} numbers"
            )
    return np.split(_decimals(b"\\".join(data)).reshape(-1, 3), np.cumsum(counts)[:-1])


def off_half_way(points: Floats) -> Floats:
    """How far points lie from the nearest middle between the centres of two pixels, or of four, along columns and rows.

    Args:
        points: Shape (n, 2): (column, row), pixel centres at whole numbers.

    Returns:
        Shape (n, 2), in pixels. Half a pixel for a point that is nearest to a centre.
    """
    halves = np.rint(2 * points)
    away = np.abs(points - halves / 2)
    away[(np.mod(halves, 2) == 0).all(axis=1)] = 0.5
    return away


def _decimals(data: bytes) -> Floats:
    """Numbers with backslashes between; those of three decimals, as we write them, all at once.

    Raises:
        GeometryProofError: Something is no finite number.
    """
    text = np.frombuffer(data, np.uint8)
    ends = np.append(np.flatnonzero(text == ord("\\")), len(text))
    starts = np.append(0, ends[:-1] + 1)
    negative = text[np.minimum(starts, len(text) - 1)] == ord("-")
    starts = starts + negative
    if not _are_thousandths(text, starts, ends):
        return _any_decimals(data)
    value, scale = np.zeros(len(ends), dtype=np.int64), 1
    for back in range(1, int((ends - starts).max()) + 1):
        if back != 4:
            digit = text[ends - back].astype(np.int64) - ord("0")
            value += np.where(ends - back >= starts, digit, 0) * scale
            scale *= 10
    return np.where(negative, -value, value) / 1000.0


def _are_thousandths(text: NDArray[np.uint8], starts: Integers, ends: Integers) -> bool:
    """Whether between `starts`, behind a sign, and `ends` there are at most 15 digits, the last three behind a point."""
    lengths = ends - starts
    if lengths.min() < 5 or lengths.max() > 16 or not (text[ends - 4] == ord(".")).all():
        return False
    digits = np.count_nonzero((text >= ord("0")) & (text <= ord("9")))
    return bool(digits == lengths.sum() - len(lengths))


def _any_decimals(data: bytes) -> Floats:
    try:
        values = np.array([float(value) for value in data.split(b"\\")])
    except ValueError as error:
        raise GeometryProofError(f"the coordinates of a contour are no numbers ({error})") from error
    if not np.isfinite(values).all():
        raise GeometryProofError("the coordinates of a contour are not finite")
    return values
