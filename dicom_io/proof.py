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
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.errors import GeometryProofError, LabelError
from dicom_io.objects.places import TOLERANCE_MM, Plane, Slice, slices_of, values_at
from dicom_io.objects.raster import even_odd, painted
from dicom_io.objects.rt_contours import SliceContours, contours_by_slice
from dicom_io.objects.seg_frames import SegFrame, seg_frames
from dicom_io.objects.walk import text, walk_file, whole
from dicom_io.volume import Volume

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


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
    try:
        check = _SliceBySlice(labels, source, slices_of(source) if slices is None else slices)
        for uid, drawn in contours_by_slice(walk_file(path)).items():
            for frame in _drawn_frames(uid, drawn, check):
                check.frame(frame)
        check.finish()
    except (GeometryProofError, LabelError) as error:
        Path(path).unlink(missing_ok=True)
        raise GeometryProofError(f"the RTSTRUCT was deleted: {error}") from error


def _drawn_frames(uid: str, drawn: SliceContours, check: _SliceBySlice) -> Iterator[SegFrame]:
    """The contours on one slice as pixels: a map of all regions, or a frame for each where these may overlap."""
    one = check.slice_named(uid)
    points = _pixels(drawn.points_mm, one)[:, :2]
    if check.result.array.ndim == 4:
        loops = np.split(points, np.cumsum(drawn.counts)[:-1])
        for roi in np.unique(drawn.rois).tolist():
            mine = [loop for loop, number in zip(loops, drawn.rois, strict=True) if number == roi]
            yield SegFrame(roi, one.plane, uid, even_odd(mine, one.shape))
        return
    plane, shared = painted(points, drawn.counts, drawn.rois, one.shape)
    if drawn.rois.min() < 1 or plane.dtype.itemsize > check.result.array.dtype.itemsize:
        raise GeometryProofError(
            f"the file has regions {drawn.rois.min()} to {drawn.rois.max()}, not all labels of the result"
        )
    if shared:
        raise GeometryProofError(
            f"{shared} voxels of the slice {uid} are in several regions; the result has one a voxel"
        )
    yield SegFrame(0, one.plane, uid, plane)


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


def _pixels(points_mm: Floats, one: Slice) -> Floats:
    """Shape (n, 3): column, row and distance in mm of points that must lie in the plane of a slice."""
    if one.plane is None:
        raise GeometryProofError(f"a part names the instance {one.key}, which has no place in patient space")
    pixels = one.plane.pixels(points_mm)
    away = float(np.abs(pixels[:, 2]).max())
    if away > TOLERANCE_MM:
        raise GeometryProofError(f"a part names the instance {one.key} but lies {away:.2f} mm off its plane")
    return pixels


class _SliceBySlice:
    """Compares frames with what the result holds at their place, and notes which are still missing.

    The result is looked up through the patient space, from the frame's own plane; the named slice must lie there too.
    """

    def __init__(self, result: Volume, source: Volume, slices: Sequence[Slice], steps: int = 0) -> None:
        self.result, self.source, self.slices, self.steps = result, source, slices, steps
        self.numbers = {one.key: k for k, one in enumerate(slices)}
        self.seen: set[tuple[int, int]] = set()
        self.held: dict[int, int] = {}

    def slice_named(self, key: str | None) -> Slice:
        """The slice of the source that a part names. Raises GeometryProofError if there is none."""
        k = self.numbers.get(key or "")
        if k is None:
            raise GeometryProofError(f"a part names the instance {key}, which is not a slice of the source")
        return self.slices[k]

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
        one = self.slice_named(frame.source_uid)
        k = self.numbers[one.key]
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
