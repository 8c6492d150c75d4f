"""The proof of an RTSTRUCT: its contours are read through `raw_parser`, rasterised and compared with the result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.coding import Segment
from dicom_io.errors import GeometryProofError
from dicom_io.objects import identity, proof_headers
from dicom_io.objects.proof_headers import Meaning, code_text, coded, compare, encoding_of
from dicom_io.objects.raster import even_odd, off_half_way, painted
from dicom_io.objects.raw_parser import Attributes, instance_key, integer, items, text
from dicom_io.objects.slice_positions import Slice, slices_of
from dicom_io.proof import ComparedFrame, SliceComparison
from dicom_io.rtstruct.parse import CLOSED
from dicom_io.volume import Volume

ROUNDING_MM, ROUNDING_PIXELS = 0.001, 0.01
"""Largest distance of a point of a contour from its place: half a unit of the third decimal on each of three axes, and some
thousandths of a pixel because headers are rounded too."""
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_REFERENCED_ROI, _CONTOURS, _IMAGES = 0x30060084, 0x30060040, 0x30060016
_KIND, _COUNT, _DATA = 0x30060042, 0x30060046, 0x30060050
_ROIS, _ROI_NUMBER, _ROI_FRAME, _ROI_NAME = 0x30060020, 0x30060022, 0x30060024, 0x30060026
_OBSERVATIONS, _ROI_CODE, _OBSERVATION_LABEL = 0x30060080, 0x30060086, 0x30060085
_ROI_CONTOURS, _ROI_COLOUR = 0x30060039, 0x3006002A
_ROI_FRAMES, _ROI_STUDIES, _ROI_SERIES = 0x30060010, 0x30060012, 0x30060014


def prove_rtstruct(
    path: Path,
    labels: Volume,
    source: Volume,
    segments: Sequence[Segment] | None = None,
    headers: tuple[Dataset, ...] | None = None,
) -> None:
    """Pass if the contours, rasterised anew in the planes of the source files, enclose exactly the labelled voxels and run
    half-way between voxels, and if the structure set describes their segments and their patient.

    Args and errors are those of `prove_seg`; the file is deleted on failure.
    """
    with proof_headers.deleting(path, "RTSTRUCT") as written:
        headers = headers or identity.source_headers(source, of_each=False)
        check = SliceComparison(labels, source, slices_of(source, headers))
        for uid, drawn in contours_by_slice(written).items():
            for frame in _drawn_frames(uid, drawn, check):
                check.frame(frame)
        check.finish()
        proof_headers.check_owner(written, headers[0])
        check_regions(written, segments, headers)


def _drawn_frames(uid: str, drawn: "SliceContours", check: SliceComparison) -> Iterator[ComparedFrame]:
    """The contours on one slice as pixels: a map of all regions, or a frame for each region where regions may overlap."""
    source_slice = check.slice_named(uid)
    points = _half_way_points(drawn.points_mm, source_slice, check.tolerance_mm)
    if check.result.array.ndim == 4:
        # Regions that may share voxels are compared one by one.
        loops = np.split(points, np.cumsum(drawn.counts)[:-1])
        for roi in np.unique(drawn.rois).tolist():
            own = [loop for loop, number in zip(loops, drawn.rois, strict=True) if number == roi]
            yield ComparedFrame(roi, source_slice.plane, uid, even_odd(own, source_slice.shape))
        return
    plane, shared = painted(points, drawn.counts, drawn.rois, source_slice.shape)
    # `painted` takes the smallest type for the numbers; a larger type than the result's holds a number that no label has.
    if drawn.rois.min() < 1 or plane.dtype.itemsize > check.result.array.dtype.itemsize:
        raise GeometryProofError(
            f"the file has regions {drawn.rois.min()} to {drawn.rois.max()}, not all labels of the result"
        )
    if shared:
        raise GeometryProofError(
            f"{shared} voxels of the slice {uid} are in several regions; the result has one a voxel"
        )
    yield ComparedFrame(0, source_slice.plane, uid, plane)


def _half_way_points(points_mm: Floats, source_slice: Slice, tolerance_mm: float) -> Floats:
    """Shape (n, 2): column and row of the points of contours, which must lie in the plane of a slice, half-way between
    its pixels.
    """
    plane, key = source_slice.plane, source_slice.key
    if plane is None:
        raise GeometryProofError(f"a part names the instance {key}, which has no place in patient space")
    pixels = plane.pixels(points_mm)
    away = float(np.abs(pixels[:, 2]).max())
    if away > tolerance_mm:
        raise GeometryProofError(f"a part names the instance {key} but lies {away:.2f} mm off its plane")
    sizes = np.array([np.linalg.norm(plane.column_step_mm), np.linalg.norm(plane.row_step_mm)])
    off = off_half_way(pixels[:, :2])
    if (off > ROUNDING_PIXELS + ROUNDING_MM / sizes).any():
        raise GeometryProofError(
            f"a contour on the slice {key} has a point {off.max():.2f} pixels away from the middle between pixels"
        )
    return pixels[:, :2]


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


def contours_by_slice(written: Attributes) -> dict[str, SliceContours]:
    """The contours of an RTSTRUCT of our own by the slice that they name (as `Slice.key`), by `raw_parser`.

    Raises:
        GeometryProofError: A contour is not CLOSED_PLANAR, has an incomplete point, or another number of points than it states.
    """
    by_slice: dict[str, list[tuple[int, Floats]]] = {}
    for region in items(written, _ROI_CONTOURS):
        roi, contours = integer(region, _REFERENCED_ROI), items(region, _CONTOURS)
        for contour in contours:
            key = instance_key((items(contour, _IMAGES) or [{}])[0])
            by_slice.setdefault(key, []).append((roi, _points_of(contour)))
    return {key: _joined(drawn) for key, drawn in by_slice.items()}


def _joined(drawn: list[tuple[int, Floats]]) -> SliceContours:
    rois, counts = np.array([roi for roi, _ in drawn]), np.array([len(points_mm) for _, points_mm in drawn])
    return SliceContours(rois, counts, np.concatenate([points_mm for _, points_mm in drawn]))


def _points_of(contour: Attributes) -> Floats:
    """Shape (n, 3), LPS mm.

    Raises:
        GeometryProofError: See `contours_by_slice`, or a coordinate is no finite number.
    """
    count, numbers = integer(contour, _COUNT), contour.get(_DATA, b"").rstrip(b" \0").split(b"\\")
    if text(contour, _KIND) != CLOSED[0] or count < 1 or len(numbers) != 3 * count:
        raise GeometryProofError(
            f"a contour of type {text(contour, _KIND)!r} that says it has {count} points holds {len(numbers)} numbers"
        )
    try:
        points_mm = np.array([float(number) for number in numbers]).reshape(-1, 3)
    except ValueError as error:
        raise GeometryProofError(f"the coordinates of a contour are not numbers ({error})") from error
    if not np.isfinite(points_mm).all():
        raise GeometryProofError("the coordinates of a contour are not finite")
    return points_mm


def check_regions(written: Attributes, segments: Sequence[Segment] | None, headers: Sequence[Dataset]) -> None:
    """Pass if regions, observations and contours of an RTSTRUCT have the same numbers, if names, codes and colours are those of
    the result where its segments are known, and if the references are those of the source.
    """
    encoding = encoding_of(written)
    rois = [(integer(item, _ROI_NUMBER), {"name": text(item, _ROI_NAME, encoding)}) for item in items(written, _ROIS)]
    observations = [
        (
            integer(item, _REFERENCED_ROI),
            {"label": text(item, _OBSERVATION_LABEL, encoding), "type": coded(item, _ROI_CODE)},
        )
        for item in items(written, _OBSERVATIONS)
    ]
    drawn = [
        (integer(item, _REFERENCED_ROI), {"colour": text(item, _ROI_COLOUR)}) for item in items(written, _ROI_CONTOURS)
    ]
    if not sorted(n for n, _ in rois) == sorted(n for n, _ in observations) == sorted(n for n, _ in drawn):
        raise GeometryProofError("its regions, observations and contours do not have the same ROI numbers, each once")
    if segments is not None:
        compare("region", rois, {segment.number: {"name": segment.label.strip()} for segment in segments})
        compare("observation", observations, {segment.number: _observation(segment) for segment in segments})
        colours = {segment.number: {"colour": "\\".join(map(str, segment.rgb))} for segment in segments}
        compare("colour", drawn, colours)
    for item in items(written, _ROIS):
        proof_headers.check_frame(text(item, _ROI_FRAME), headers[0])
    frames = items(written, _ROI_FRAMES)
    for frame in frames:
        proof_headers.check_frame(text(frame, proof_headers.FRAME_OF_REFERENCE), headers[0])
    studies = [study for frame in frames for study in items(frame, _ROI_STUDIES)]
    if [text(study, proof_headers.INSTANCE) for study in studies] != [str(headers[0].StudyInstanceUID)]:
        raise GeometryProofError("its contours refer to another study than that of the source")
    proof_headers.check_images([series for study in studies for series in items(study, _ROI_SERIES)], _IMAGES, headers)


def _observation(segment: Segment) -> Meaning:
    return {"label": segment.short_label, "type": code_text(segment.type)}
