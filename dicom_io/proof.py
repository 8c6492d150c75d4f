"""Read what was written, independently of the writer, and compare it in patient millimetres with the result.

Nothing here is told by the writer where a frame belongs: every frame or contour is placed by its own headers,
and the slice that it names by SOP Instance UID must lie in the same plane. A shuffled list of source images
passes every validator and is caught here.

Sub-voxel rule of contours: a contour runs half-way between the centre of a voxel inside and the centre of its
neighbour outside; a voxel belongs to a region if its centre is inside by the even-odd rule over all contours
of that region in the slice. So holes may be drawn as a keyhole (as `write_rtstruct` does) or as a second
contour.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.errors import GeometryProofError, LabelError, UnreadableFileError
from dicom_io.identity import source_headers
from dicom_io.volume import Volume

# Scanners write positions with 0.001 to 0.01 mm; an evenly spaced grid fitted to them may be off by the
# reader's 0.02.
TOLERANCE_MM = 0.05
TOLERANCE_VOXELS = 0.25

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plane:
    """Where the pixels of one slice or frame lie.

    Attributes:
        origin_mm: Shape (3,), LPS centre of the first pixel (PS3.3 C.7.6.2.1.1).
        column_step_mm: Shape (3,), from a pixel to the next in its row (array axis I).
        row_step_mm: Shape (3,), from a row to the next (array axis J).
    """

    origin_mm: Floats
    column_step_mm: Floats
    row_step_mm: Floats

    def points_mm(self, columns: NDArray, rows: NDArray) -> Floats:
        """Shape (n, 3): LPS positions of pixel coordinates, which may lie between pixel centres."""
        return self.origin_mm + np.outer(columns, self.column_step_mm) + np.outer(rows, self.row_step_mm)

    def pixels(self, points_mm: Floats) -> Floats:
        """Shape (n, 3): column, row and distance from the plane in mm, of LPS positions of shape (n, 3)."""
        normal = np.cross(self.column_step_mm, self.row_step_mm)
        basis = np.column_stack([self.column_step_mm, self.row_step_mm, normal / np.linalg.norm(normal)])
        return (points_mm - self.origin_mm) @ np.linalg.inv(basis).T


@dataclass(frozen=True)
class SegFrame:
    """One frame of a SEG: its segment (0 in a label map, whose pixels are segment numbers), place and named
    source.
    """

    segment: int
    plane: Plane
    source_uid: str | None
    pixels: NDArray


@dataclass(frozen=True)
class Contour:
    """One closed contour of an RTSTRUCT: region, LPS points of shape (n, 3) and the named source instance."""

    roi: int
    points_mm: Floats
    source_uid: str | None


def prove_seg(path: Path, labels: Volume, source: Volume) -> None:
    """Pass if every voxel of `labels`, and none else, is in the SEG at the same place in millimetres.

    Args:
        path: The written SEG; deleted on failure.
        labels: Shape (I, J, K) with label values, or (I, J, K, C) with channel c as segment c + 1.
        source: The image that the SEG refers to; its files are read again.

    Raises:
        GeometryProofError: A voxel is missing, added or misplaced, or a frame lies off the slice that it
            names.
    """
    planes = source_planes(source)
    proof = _Comparison(labels)
    try:
        for frame in walk_seg(pydicom.dcmread(path)):
            _same_plane(frame.plane.origin_mm[None], frame.source_uid, planes)
            rows, columns = np.nonzero(frame.pixels)
            proof.mark(frame.segment, frame.plane.points_mm(columns, rows))
        proof.finish()
    except (GeometryProofError, LabelError) as error:
        Path(path).unlink(missing_ok=True)
        raise GeometryProofError(f"the SEG was deleted: {error}") from error


def prove_rtstruct(path: Path, labels: Volume, source: Volume) -> None:
    """Pass if the contours, rasterised anew in the planes of the source files, enclose exactly the labelled
    voxels.

    Raises:
        GeometryProofError: As for `prove_seg`; the file is deleted.
    """
    planes = source_planes(source)
    proof = _Comparison(labels)
    size = (source.shape[1], source.shape[0])
    regions: dict[tuple[int, str], list[Floats]] = {}
    try:
        for contour in walk_rtstruct(pydicom.dcmread(path)):
            plane = _same_plane(contour.points_mm, contour.source_uid, planes)
            regions.setdefault((contour.roi, str(contour.source_uid)), []).append(plane.pixels(contour.points_mm))
        for (roi, uid), loops in regions.items():
            rows, columns = np.nonzero(even_odd([loop[:, :2] for loop in loops], size))
            proof.mark(roi, planes[uid].points_mm(columns, rows))
        proof.finish()
    except (GeometryProofError, LabelError) as error:
        Path(path).unlink(missing_ok=True)
        raise GeometryProofError(f"the RTSTRUCT was deleted: {error}") from error


def save_proved(dataset: Dataset, path: Path, prove: Callable[[Path], None] | None) -> Path:
    """Write under a temporary name, prove that file, then give it its name. A refused file is gone and never
    had it.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        dataset.save_as(part, enforce_file_format=True)
        if prove is not None:
            prove(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def source_planes(source: Volume) -> dict[str, Plane]:
    """The plane of every slice from its own header: key is `slice_key(source, k)`.

    Raises:
        LabelError: See `identity.source_headers`.
    """
    headers = {str(header.SOPInstanceUID): header for header in source_headers(source)}
    planes = {}
    for k, uid in enumerate(source.provenance.sop_instance_uids):
        frames = source.provenance.frame_numbers
        planes[slice_key(source, k)] = plane_of(headers[uid], frames[k] if frames else None)
    return planes


def slice_key(source: Volume, k: int) -> str:
    """What names slice k: its SOP Instance UID, with "#frame" behind it where an object holds several."""
    uid, frames = source.provenance.sop_instance_uids[k], source.provenance.frame_numbers
    return f"{uid}#{frames[k]}" if frames else uid


def check_grid(labels: Volume, source: Volume) -> None:
    """Pass if `labels` lie on the grid of `source`, and that grid on the slices as the files have them.

    Raises:
        LabelError: Another shape, another place, or a source that was resampled after reading.
    """
    if labels.shape != source.shape:
        raise LabelError(
            f"the labels have the shape {labels.shape}, the source {source.shape}; one grid is needed; "
            "resample the labels to the source first"
        )
    i, j, k = (n - 1 for n in source.shape)
    corners = np.array([(x, y, z, 1.0) for x in (0, i) for y in (0, j) for z in (0, k)])
    away = np.linalg.norm((corners @ (labels.affine_lps - source.affine_lps).T)[:, :3], axis=1).max()
    if away > TOLERANCE_MM:
        raise LabelError(
            f"the labels lie up to {away:.2f} mm away from the source's grid; at most {TOLERANCE_MM} mm is "
            "needed; resample the labels to the source first"
        )
    planes = source_planes(source)
    for number in range(source.shape[2]):
        _check_slice(source, number, planes[slice_key(source, number)])


def check_frame_of_reference(theirs: str | None, reference: Volume) -> None:
    """Pass unless a label object and the image name two different frames of reference.

    Raises:
        LabelError: They do; positions cannot be compared then.
    """
    ours = reference.provenance.frame_of_reference_uid
    if ours and theirs and ours != theirs:
        raise LabelError(
            f"the label file has the frame of reference {theirs}, the image {ours}; the same one is needed; "
            "use the file that was made for this image, or register them first"
        )


def _check_slice(source: Volume, k: int, plane: Plane) -> None:
    i, j = source.shape[0] - 1, source.shape[1] - 1
    corners = np.array([(0, 0), (i, 0), (0, j), (i, j)], dtype=np.float64)
    ours = np.column_stack([corners, np.full(4, k), np.ones(4)]) @ source.affine_lps.T
    away = np.linalg.norm(ours[:, :3] - plane.points_mm(corners[:, 0], corners[:, 1]), axis=1).max()
    if away > TOLERANCE_MM:
        raise LabelError(
            f"slice {k} lies {away:.2f} mm from where its file has it; at most {TOLERANCE_MM} mm is needed; "
            "results cannot be written on a resampled or rearranged series, bring the labels back to the "
            "original slices"
        )


def plane_of(header: Dataset, frame_number: int | None = None) -> Plane:
    """The plane of a single-frame image, or of one frame (from 1) of a multi-frame object.

    Raises:
        LabelError: Position, orientation or spacing is missing.
    """
    try:
        position, orientation, spacing = _plane_attributes(header, frame_number)
    except (AttributeError, IndexError, KeyError) as error:
        raise LabelError(
            f"position, orientation or pixel spacing is missing ({error}); all three are needed to place "
            "pixels; use a file that has them"
        ) from error
    cosines = np.array([float(v) for v in orientation])
    row_spacing, column_spacing = (float(v) for v in spacing)  # PS3.3 10.7.1.3: first between rows
    origin = np.array([float(v) for v in position])
    return Plane(origin, cosines[:3] * column_spacing, cosines[3:] * row_spacing)


def _plane_attributes(header: Dataset, frame_number: int | None) -> tuple:
    if frame_number is None:
        return header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing
    position = _group(header, frame_number, "PlanePositionSequence").ImagePositionPatient
    orientation = _group(header, frame_number, "PlaneOrientationSequence").ImageOrientationPatient
    return position, orientation, _group(header, frame_number, "PixelMeasuresSequence").PixelSpacing


def _group(header: Dataset, frame_number: int, keyword: str) -> Dataset:
    """A functional group item: the frame's own, else the shared one."""
    own = header.PerFrameFunctionalGroupsSequence[frame_number - 1]
    shared = header.SharedFunctionalGroupsSequence[0]
    return (own if keyword in own else shared)[keyword].value[0]


def walk_seg(dataset: Dataset) -> Iterator[SegFrame]:
    """Every frame of a SEG, placed by its own headers. Raises UnreadableFileError if pixels are missing."""
    try:
        pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    except (AttributeError, ValueError, NotImplementedError) as error:
        raise UnreadableFileError(
            f"the pixels of the SEG cannot be decoded ({error}); a whole file is needed; fetch it again"
        ) from error
    label_map = dataset.get("SegmentationType") == "LABELMAP"
    if label_map and dataset.get("PixelPaddingValue"):
        pixels = np.where(pixels == dataset.PixelPaddingValue, 0, pixels)  # PS3.3 C.8.20.2: no segment there
    for number, frame in enumerate(pixels, start=1):
        own = dataset.PerFrameFunctionalGroupsSequence[number - 1]
        segment = 0
        if not label_map:
            segment = int(_group(dataset, number, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        yield SegFrame(segment, plane_of(dataset, number), _named_source(own), frame)


def _named_source(group: Dataset) -> str | None:
    try:
        item = group.DerivationImageSequence[0].SourceImageSequence[0]
    except (AttributeError, IndexError):
        return None
    return _reference_key(item)


def _reference_key(item: Dataset) -> str:
    frame = item.get("ReferencedFrameNumber")
    return f"{item.ReferencedSOPInstanceUID}#{int(frame)}" if frame else str(item.ReferencedSOPInstanceUID)


def walk_rtstruct(dataset: Dataset) -> Iterator[Contour]:
    """Every contour of an RTSTRUCT.

    Raises:
        LabelError: A contour is of another type than a closed planar one.
    """
    for roi in dataset.get("ROIContourSequence") or []:
        for item in roi.get("ContourSequence") or []:
            kind = item.get("ContourGeometricType")
            if kind not in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
                raise LabelError(
                    f"region {roi.ReferencedROINumber} has a contour of type {kind}; CLOSED_PLANAR is "
                    "needed; leave points and open lines out"
                )
            named = item.get("ContourImageSequence")
            points = np.array([float(v) for v in item.ContourData]).reshape(-1, 3)
            yield Contour(int(roi.ReferencedROINumber), points, _reference_key(named[0]) if named else None)


def even_odd(loops: Sequence[Floats], shape: tuple[int, int]) -> Mask:
    """Pixels whose centre is inside by the even-odd rule.

    Args:
        loops: Closed polygons of shape (n, 2), (column, row) in pixel coordinates; the last point joins the
            first.
        shape: (rows, columns).

    Each edge is cut with the rows of pixel centres, its lower end included, its upper end not; a cut flips
    all pixels to its right. An edge walked forth and back (a keyhole's bridge) cuts twice at the same place
    and flips nothing.
    """
    rows, columns = shape
    flips = np.zeros((rows, columns + 1), dtype=np.int64)
    for loop in loops:
        ends = np.stack([loop, np.roll(loop, -1, axis=0)])
        lower_first = np.take_along_axis(ends, np.argsort(ends[:, :, 1], axis=0, kind="stable")[:, :, None], axis=0)
        (x0, y0), (x1, y1) = lower_first[0].T, lower_first[1].T
        first = np.clip(np.ceil(y0), 0, rows).astype(int)
        counts = np.maximum(np.clip(np.ceil(y1), 0, rows).astype(int) - first, 0)
        edge = np.repeat(np.arange(len(loop)), counts)
        row = first[edge] + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        cut = x0[edge] + (row - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
        np.add.at(flips, (row, np.clip(np.floor(cut) + 1, 0, columns).astype(int)), 1)
    return np.cumsum(flips, axis=1)[:, :columns] % 2 == 1


def _same_plane(points_mm: Floats, uid: str | None, planes: dict[str, Plane]) -> Plane:
    """The plane of the slice named by `uid`; the points, shape (n, 3), must lie in it."""
    if uid is None or uid not in planes:
        raise GeometryProofError(f"a part names the instance {uid}, which is not a slice of the source")
    plane = planes[uid]
    away = float(np.abs(plane.pixels(points_mm)[:, 2]).max())
    if away > TOLERANCE_MM:
        raise GeometryProofError(f"a part names the instance {uid} but lies {away:.2f} mm off its plane")
    return plane


class _Comparison:
    """Ticks off the voxels that were found, and complains about each that differs."""

    def __init__(self, labels: Volume) -> None:
        self.labels = labels
        self.to_index = np.linalg.inv(labels.affine_lps)
        self.found = np.zeros(labels.array.shape, dtype=np.uint16 if labels.array.ndim == 3 else bool)

    def mark(self, segment: int, points_mm: Floats) -> None:
        """Note that voxels of `segment` were found centred at `points_mm`, shape (n, 3)."""
        index = points_mm @ self.to_index[:3, :3].T + self.to_index[:3, 3]
        nearest = np.rint(index).astype(int)
        placed = nearest @ self.labels.affine_lps[:3, :3].T + self.labels.affine_lps[:3, 3]
        away = np.linalg.norm(placed - points_mm, axis=1).max(initial=0.0)
        if away > TOLERANCE_MM or np.abs(index - nearest).max(initial=0.0) > TOLERANCE_VOXELS:
            raise GeometryProofError(f"segment {segment} has a voxel {away:.3f} mm away from the result's grid")
        if (nearest < 0).any() or (nearest >= self.labels.shape).any():
            raise GeometryProofError(f"segment {segment} has voxels outside the result's grid {self.labels.shape}")
        where = tuple(nearest.T)
        if self.found.ndim == 4:
            where += (np.full(len(nearest), segment - 1),)
        if self.found[where].any():
            raise GeometryProofError(f"segment {segment} has a voxel that another frame holds already")
        self.found[where] = segment

    def finish(self) -> None:
        """Compare all that was found with the labels."""
        wanted = self.labels.array != 0 if self.found.ndim == 4 else self.labels.array
        differing = self.found != wanted
        if differing.any():
            raise GeometryProofError(
                f"the file holds {np.count_nonzero(self.found)} labelled voxels, the result "
                f"{np.count_nonzero(wanted)}, and {np.count_nonzero(differing)} differ"
            )


def mask_of(labels: Volume, number: int) -> Mask:
    """Shape (I, J, K): where segment `number` is, for exclusive labels (3D) or one channel a segment (4D)."""
    if labels.array.ndim == 3:
        return labels.array == number
    if number > labels.array.shape[3]:
        return np.zeros(labels.shape, dtype=bool)
    return labels.array[..., number - 1] != 0
