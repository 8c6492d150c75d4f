"""The contours of an RT Structure Set.

Two ways in: `walk_rtstruct` reads anybody's through pydicom; `contours_by_slice` reads what we wrote through `walk`, a reader
that shares nothing with the writer, for the proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.errors import GeometryProofError, LabelError
from dicom_io.objects.seg_frames import reference_key
from dicom_io.objects.walk import Attributes, items, text
from dicom_io.reading.headers import shown

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
WITHOUT_AREA = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")
_ROI_CONTOURS, _ROI, _CONTOURS, _IMAGES = 0x30060039, 0x30060084, 0x30060040, 0x30060016
_KIND, _COUNT, _DATA = 0x30060042, 0x30060046, 0x30060050
_SOURCE_UID, _SOURCE_FRAME = 0x00081155, 0x00081160
_AT_ONCE = 100  # contours whose numbers are read together


@dataclass(frozen=True)
class Contour:
    """One closed contour of an RTSTRUCT: region, LPS points of shape (n, 3) and the named source instance."""

    roi: int
    points_mm: Floats
    source_uid: str | None


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
                    f"region {roi.ReferencedROINumber} has a contour of type {shown(str(kind)[:16])}; CLOSED_PLANAR is needed; "
                    "export the structure set again"
                )
            named = item.get("ContourImageSequence")
            number = int(roi.ReferencedROINumber)
            yield Contour(number, _points(item, number), reference_key(named[0]) if named else None)


def without_area(dataset: Dataset) -> dict[int, int]:
    """How many points and open lines a region has, by ROINumber."""
    found: dict[int, int] = {}
    for roi in dataset.get("ROIContourSequence") or []:
        kinds = [item.get("ContourGeometricType") for item in roi.get("ContourSequence") or []]
        if count := sum(kind in WITHOUT_AREA for kind in kinds):
            found[int(roi.ReferencedROINumber)] = count
    return found


def _points(contour: Dataset, roi: int) -> Floats:
    """Shape (n, 3), LPS mm."""
    data = contour.get("ContourData")  # bytes where it was too long for a DS and became UN (PS3.5 6.2.2)
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
    """The contours of an RTSTRUCT of our own by the slice that they name (as `Slice.key`), by `walk`.

    Raises:
        GeometryProofError: A contour is not closed, not of whole points, or has another number of them than it says.
    """
    found: dict[str, list[tuple[int, Floats]]] = {}
    for region in items(written, _ROI_CONTOURS):
        roi, contours = int(text(region, _ROI)), items(region, _CONTOURS)
        for start in range(0, len(contours), _AT_ONCE):
            some = contours[start : start + _AT_ONCE]
            for contour, points_mm in zip(some, _points_of(some), strict=True):
                found.setdefault(_named(contour), []).append((roi, points_mm))
    return {key: _joined(drawn) for key, drawn in found.items()}


def _joined(drawn: list[tuple[int, Floats]]) -> SliceContours:
    rois, counts = np.array([roi for roi, _ in drawn]), np.array([len(points_mm) for _, points_mm in drawn])
    return SliceContours(rois, counts, np.concatenate([points_mm for _, points_mm in drawn]))


def _points_of(contours: list[Attributes]) -> list[Floats]:
    """Shape (n, 3) each, LPS mm."""
    counts = [int(text(one, _COUNT)) for one in contours]
    data = [one.get(_DATA, b"").rstrip(b" \0") for one in contours]
    for one, count, numbers in zip(contours, counts, data, strict=True):
        if text(one, _KIND) not in CLOSED or count < 1 or numbers.count(b"\\") + 1 != 3 * count:
            raise GeometryProofError(
                f"a contour of type {text(one, _KIND)!r} that says it has {count} points holds {numbers.count(92) + 1} numbers"
            )
    return np.split(_decimals(b"\\".join(data)).reshape(-1, 3), np.cumsum(counts)[:-1])


def _named(contour: Attributes) -> str:
    image = (items(contour, _IMAGES) or [{}])[0]
    frame = text(image, _SOURCE_FRAME)
    return text(image, _SOURCE_UID) + (f"#{int(frame)}" if frame else "")


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
