"""The contours of an RT Structure Set of any software, through pydicom."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.errors import LabelError
from dicom_io.objects.functional_groups import reference_keys
from dicom_io.reading.headers import shown

Floats = NDArray[np.float64]
EXCLUSIVE = "CLOSEDPLANAR_XOR"
CLOSED = ("CLOSED_PLANAR", EXCLUSIVE)
WITHOUT_AREA = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")


@dataclass(frozen=True)
class Contour:
    """One closed contour of an RTSTRUCT.

    Attributes:
        roi: The region.
        points_mm: Shape (n, 3), LPS; n is 0 where a program left an erased contour.
        named: The slices that it names, as `Slice.key`.
        exclusive: It is of the type CLOSEDPLANAR_XOR.
    """

    roi: int
    points_mm: Floats
    named: tuple[str, ...]
    exclusive: bool


def closed_contours(dataset: Dataset, wanted: Collection[int]) -> Iterator[Contour]:
    """Every closed contour of an RTSTRUCT, by pydicom; points and open lines enclose nothing and are left out.

    Args:
        dataset: The structure set.
        wanted: ROINumbers of the regions whose contours are read.

    Raises:
        LabelError: A contour is of a type that the standard does not have, or its coordinates are no points.
    """
    for roi in dataset.get("ROIContourSequence") or []:
        if int(roi.ReferencedROINumber) not in wanted:
            continue
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


def without_area(dataset: Dataset, wanted: Collection[int]) -> dict[int, int]:
    """How many points and open lines each wanted region has, by ROINumber."""
    counts: dict[int, int] = {}
    for roi in dataset.get("ROIContourSequence") or []:
        kinds = [item.get("ContourGeometricType") for item in roi.get("ContourSequence") or []]
        count, number = sum(kind in WITHOUT_AREA for kind in kinds), int(roi.ReferencedROINumber)
        if count and number in wanted:
            counts[number] = count
    return counts


def without_repeats(loops: Sequence[Floats]) -> list[Floats]:
    """The contours without repeats. A repeat has the same edges as an earlier contour, from any start and in any direction.

    Args:
        loops: Closed polygons of shape (n, 2); the last point joins the first, which may stand there again.
    """
    # The last entry of a key stays in a dictionary, so the first of equal contours is put in last.
    return list({_edges(loop): loop for loop in reversed(loops)}.values())[::-1]


def _edges(loop: Floats) -> bytes:
    """The edges of a contour as bytes, sorted and without direction: equal for contours that enclose the same area."""
    loop = np.round(loop, 6) + 0.0  # far below the digits of a file; adding 0.0 removes negative zeros
    following = np.roll(loop, -1, axis=0)
    moves = (loop != following).any(axis=1)
    here, there = loop[moves], following[moves]
    # Each edge from its smaller end to its larger: the direction of the contour does not count.
    turned = (here[:, 0] > there[:, 0]) | ((here[:, 0] == there[:, 0]) & (here[:, 1] > there[:, 1]))
    edges = np.where(turned[:, None], np.hstack([there, here]), np.hstack([here, there]))
    # In the order of their coordinates: the start does not count. A contour of a single point has no edges.
    return edges[np.lexsort(edges.T)].tobytes() or loop[0].tobytes()


def _points(contour: Dataset, roi: int) -> Floats:
    """Shape (n, 3), LPS mm."""
    element = contour.get_item("ContourData") if "ContourData" in contour else None
    data = element.value if element else None  # bytes as in the file, because pydicom converts them slowly
    data = data.rstrip(b" \0") if isinstance(data, bytes) else data
    values = data.split(b"\\") if isinstance(data, bytes) and data else data or []
    try:
        points_mm = np.array([float(value) for value in values]).reshape(-1, 3)
    except (TypeError, ValueError):
        points_mm = np.full((1, 3), np.nan)
    stated = contour.get("NumberOfContourPoints")
    if stated and int(stated) != len(points_mm) and np.isfinite(points_mm).all():
        raise LabelError(
            f"region {roi} has a contour with {len(points_mm)} of its {stated} points (NumberOfContourPoints); all are needed; "
            "export the structure set again"
        )
    if not np.isfinite(points_mm).all():
        raise LabelError(
            f"region {roi} has a contour whose coordinates are not finite numbers, three for each point; these are needed; "
            "export the structure set again"
        )
    return points_mm
