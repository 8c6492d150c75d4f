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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.errors import GeometryProofError, LabelError
from dicom_io.places import TOLERANCE_MM, Plane, Slice, slices_of, values_at
from dicom_io.seg_frames import SegFrame, reference_key, seg_frames
from dicom_io.volume import Volume
from dicom_io.walk import Attributes, text, walk_file, whole

_REFERENCED_UID, _PREDECESSORS = 0x00081155, 0x0040A360

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Contour:
    """One closed contour of an RTSTRUCT: region, LPS points of shape (n, 3) and the named source instance."""

    roi: int
    points_mm: Floats
    source_uid: str | None


def prove_seg(path: Path, result: Volume, source: Volume, slices: Sequence[Slice] | None = None) -> None:
    """Pass if every voxel of a result, and none else, is in the SEG at the same place in millimetres.

    Args:
        path: The written SEG (explicit VR); deleted on failure.
        result: Shape (I, J, K) with label values, or (I, J, K, C) with channel c as segment c + 1: labels, or
            probabilities 0 to 1 for a FRACTIONAL one, compared within half a step of its stored values.
        source: The image that the SEG refers to.
        slices: Its slices by their own headers; from its files where they are not given.

    Raises:
        GeometryProofError: A voxel is missing, added or misplaced, or a frame lies off the slice that it
            names.
    """
    try:
        written = walk_file(path)
        steps = whole(written, 0x0062000E) if text(written, 0x00620001) == "FRACTIONAL" else 0
        check = _SliceBySlice(result, source, slices_of(source) if slices is None else slices, steps)
        for frame in seg_frames(written):
            check.frame(frame)
        check.finish()
    except (GeometryProofError, LabelError) as error:
        Path(path).unlink(missing_ok=True)
        raise GeometryProofError(f"the SEG was deleted: {error}") from error


def prove_rtstruct(path: Path, labels: Volume, source: Volume, slices: Sequence[Slice] | None = None) -> None:
    """Pass if the contours, rasterised anew in the planes of the source files, enclose exactly the labelled
    voxels.

    Raises:
        GeometryProofError: As for `prove_seg`; the file is deleted.
    """
    slices = slices_of(source) if slices is None else slices
    named = {one.key: one for one in slices}
    regions: dict[tuple[int, str], list[Floats]] = {}
    try:
        check = _SliceBySlice(labels, source, slices)
        for contour in walk_rtstruct(pydicom.dcmread(path)):
            plane = _same_plane(contour.points_mm, contour.source_uid, named)
            regions.setdefault((contour.roi, str(contour.source_uid)), []).append(plane.pixels(contour.points_mm))
        for (roi, uid), loops in regions.items():
            one = named[uid]
            inside = even_odd([loop[:, :2] for loop in loops], one.shape)
            check.frame(SegFrame(roi, one.plane, uid, inside))
        check.finish()
    except (GeometryProofError, LabelError) as error:
        Path(path).unlink(missing_ok=True)
        raise GeometryProofError(f"the RTSTRUCT was deleted: {error}") from error


def prove_sr(path: Path, source: Volume, segmentation: Dataset) -> None:
    """Pass if the report, read back, refers to its own segmentation and to nothing but that and slices of the source.

    Raises:
        GeometryProofError: It does not; the file is deleted.
    """
    try:
        written = walk_file(path)
        named = set(_referenced_uids(written))
        own, slices = str(segmentation.SOPInstanceUID), set(source.provenance.sop_instance_uids)
        strangers = named - slices - {own}
        if own not in named or strangers:
            raise GeometryProofError(
                f"it refers to {len(named)} instances, {len(strangers)} of them neither its segmentation nor a slice of "
                "the source"
            )
    except GeometryProofError as error:
        Path(path).unlink(missing_ok=True)
        raise GeometryProofError(f"the SR was deleted: {error}") from error


def _referenced_uids(attributes: Attributes) -> Iterator[str]:
    """Every ReferencedSOPInstanceUID below, but for predecessors, which are reports."""
    for tag, value in attributes.items():
        if tag == _REFERENCED_UID:
            yield text(attributes, tag)
        elif isinstance(value, list) and tag != _PREDECESSORS:
            for item in value:
                if isinstance(item, dict):
                    yield from _referenced_uids(item)


def save_proved(what: Dataset | Callable[[Path], None], path: Path, prove: Callable[[Path], None] | None) -> Path:
    """Write under a temporary name, prove that file, then give it its name. A refused file is gone and never
    had it.

    Args:
        what: A data set, or a function that writes the file.
        path: Its name.
        prove: Raises GeometryProofError for a file that is not what was meant.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if isinstance(what, Dataset):
            what.save_as(part, enforce_file_format=True)
        else:
            what(part)
        if prove is not None:
            prove(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


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
            yield Contour(int(roi.ReferencedROINumber), points, reference_key(named[0]) if named else None)


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


def _same_plane(points_mm: Floats, uid: str | None, named: Mapping[str, Slice]) -> Plane:
    """The plane of the slice named by `uid`; the points, shape (n, 3), must lie in it."""
    one = named.get(uid or "")
    if one is None or one.plane is None:
        raise GeometryProofError(f"a part names the instance {uid}, which is not a slice of the source")
    away = float(np.abs(one.plane.pixels(points_mm)[:, 2]).max())
    if away > TOLERANCE_MM:
        raise GeometryProofError(f"a part names the instance {uid} but lies {away:.2f} mm off its plane")
    return one.plane


class _SliceBySlice:
    """Compares frames with what the result holds at their place, and notes which are still missing.

    The result is looked up through the patient space, from the frame's own plane; the named slice must lie there too.
    """

    def __init__(self, result: Volume, source: Volume, slices: Sequence[Slice], steps: int = 0) -> None:
        self.result, self.source, self.slices, self.steps = result, source, slices, steps
        self.numbers = {one.key: k for k, one in enumerate(slices)}
        self.seen: set[tuple[int, int]] = set()
        self.held: dict[int, int] = {}

    def frame(self, frame: SegFrame) -> None:
        """Compare one frame: (rows, columns) of one segment, or of all where its segment is 0."""
        k = self._slice_of(frame)
        if (frame.segment, k) in self.seen:
            raise GeometryProofError(f"segment {frame.segment} has slice {k + 1} twice")
        self.seen.add((frame.segment, k))
        wanted, found = self._wanted(frame, k), frame.pixels
        self.held[k] = self.held.get(k, 0) + int(np.count_nonzero(found))
        if self.steps:
            differing = np.abs(found / self.steps - wanted) > 0.5 / self.steps + 1e-6
        else:
            differing = found.astype(wanted.dtype, copy=False) != wanted
        if differing.any():
            raise GeometryProofError(
                f"segment {frame.segment or 'map'} on slice {k + 1}: the file holds {np.count_nonzero(found)} labelled "
                f"voxels, the result {np.count_nonzero(wanted)}, and {np.count_nonzero(differing)} differ"
            )

    def finish(self) -> None:
        """Every slice must have shown as many labelled voxels as the result holds there, and no voxel lie elsewhere."""
        total = 0
        for k, one in enumerate(self.slices):
            wanted = self._count(self._at(one, k))
            if wanted != self.held.get(k, 0):
                raise GeometryProofError(
                    f"slice {k + 1} holds {wanted} labelled voxels in the result, {self.held.get(k, 0)} in the file"
                )
            total += wanted
        everywhere = self._count(self.result.array)
        if total != everywhere and not self.source.provenance.resampled:
            raise GeometryProofError(
                f"the result has {everywhere} labelled voxels, {total} of them on slices of the source"
            )

    def _count(self, array: NDArray) -> int:
        """Labelled voxels (of each channel); a probability that is stored as 0 is none."""
        return int(np.count_nonzero(np.rint(array * self.steps) if self.steps else array))

    def _slice_of(self, frame: SegFrame) -> int:
        k = self.numbers.get(frame.source_uid or "")
        if k is None:
            raise GeometryProofError(
                f"a part names the instance {frame.source_uid}, which is not a slice of the source"
            )
        one = self.slices[k]
        if frame.pixels.shape != one.shape:
            raise GeometryProofError(f"a frame has {frame.pixels.shape} pixels, the slice that it names {one.shape}")
        if frame.plane is not None and one.plane is not None:
            away = float(
                np.linalg.norm(_corners(frame.plane, one.shape) - _corners(one.plane, one.shape), axis=1).max()
            )
            if away > TOLERANCE_MM:
                raise GeometryProofError(
                    f"a part names the instance {frame.source_uid} but lies {away:.2f} mm off its plane"
                )
        elif frame.plane is not None or one.plane is not None:
            raise GeometryProofError(f"of a frame and the slice {one.key} only one has a place in patient space")
        return k

    def _wanted(self, frame: SegFrame, k: int) -> NDArray:
        one = self.slices[k]
        here = self._at(one if frame.plane is None else replace(one, plane=frame.plane), k)
        if here.ndim == 2:
            return here if frame.segment == 0 else here == frame.segment
        if not 1 <= frame.segment <= here.shape[2]:
            raise GeometryProofError(f"the file has a segment {frame.segment}, the result has {here.shape[2]}")
        return here[..., frame.segment - 1] if self.steps else here[..., frame.segment - 1] != 0

    def _at(self, one: Slice, k: int) -> NDArray:
        if one.plane is None:
            return np.swapaxes(self.result.array[:, :, k], 0, 1)
        return values_at(one.plane, one.shape, self.result)


def _corners(plane: Plane, shape: tuple[int, int]) -> Floats:
    """Shape (4, 3), LPS mm: the corner pixels of a plane."""
    rows, columns = shape[0] - 1.0, shape[1] - 1.0
    return plane.points_mm(np.array([0.0, columns, 0.0, columns]), np.array([0.0, 0.0, rows, rows]))


def mask_of(labels: Volume, number: int) -> Mask:
    """Shape (I, J, K): where segment `number` is, for exclusive labels (3D) or one channel a segment (4D)."""
    if labels.array.ndim == 3:
        return labels.array == number
    if number > labels.array.shape[3]:
        return np.zeros(labels.shape, dtype=bool)
    return labels.array[..., number - 1] != 0
