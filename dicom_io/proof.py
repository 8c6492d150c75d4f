"""Read what was written a second time and compare it, in patient millimetres, with the result and its source.

What is independent of what: files are read by `raw_parser`, which shares no code with their writers (pydicom, highdicom and the
encoders here), compressed frames by other codecs where there are any, and contours are filled by `raster`, which does not know
how they were drawn. Every frame or contour is placed by its own headers, and the slice that it names by SOP Instance UID must
lie in the same plane. A shuffled list of source images passes every validator and is caught here. Where the slices of the
source lie is not independent: it comes from the headers that the writer has read. A second opinion on these, by ITK, is asked
before writing (`slice_positions.check_grid`): of the values of three headers, not of how a file is taken apart.

Compared too: patient, study and frame of reference, the references to the source, and what the segments are called, mean and
look like.

Sub-voxel rule of contours: a contour runs half-way between the centre of a voxel inside and the centre of its neighbour
outside; a voxel belongs to a region if its centre is inside by the even-odd rule over all contours of that region in the
slice. So holes may be drawn as a keyhole (as `write_rtstruct` does) or as a second contour. A point may be off its place by
what three decimals of a millimetre take, and no more: so contours that are moved and enclose the same voxels are caught.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.coding import Segment
from dicom_io.errors import GeometryProofError
from dicom_io.objects import identity, proof_headers
from dicom_io.objects.proof_frames import check_dimensions, check_groups, seg_frames
from dicom_io.objects.raster import even_odd, painted
from dicom_io.objects.raw_parser import items, text, walk_file, whole
from dicom_io.objects.rt_contours import SliceContours, contours_by_slice, off_half_way
from dicom_io.objects.seg_frames import SegFrame
from dicom_io.objects.slice_positions import Slice, apart_mm, slices_of, tolerance_mm, values_at
from dicom_io.volume import Volume

Floats = NDArray[np.float64]

ROUNDING_MM, ROUNDING_PIXELS = 0.001, 0.01
"""How far a point of a contour may be off its place: half a unit of the third decimal on each of three axes, and some
thousandths of a pixel because headers round too."""

_TYPE, _STEPS = 0x00620001, 0x0062000E
_REFERENCED_SERIES, _REFERENCED_INSTANCES = 0x00081115, 0x0008114A


def prove_seg(
    path: Path,
    result: Volume,
    source: Volume,
    segments: Sequence[Segment] | None = None,
    headers: tuple[Dataset, ...] | None = None,
) -> None:
    """Pass if every voxel of a result, and none else, is in the SEG at the same place in millimetres, and the SEG says what
    it holds and whose it is.

    Args:
        path: The written SEG (explicit VR); deleted on failure.
        result: Shape (I, J, K) with label values, or (I, J, K, C) with channel c as segment c + 1: labels, or
            probabilities 0 to 1 for a FRACTIONAL one, compared within half a step of its stored values.
        source: The image that the SEG refers to.
        segments: What the labels mean; None: only their numbers are compared.
        headers: Of the source, from `identity.source_headers`; from its files where they are not given.

    Raises:
        GeometryProofError: A voxel is missing, added or misplaced, a frame lies off the slice that it names, or something
            that the SEG says is not so.
    """
    with proof_headers.deleting(path, "SEG"):
        written = walk_file(path)
        headers = headers or identity.source_headers(source, of_each=False)
        steps = whole(written, _STEPS) if text(written, _TYPE) == "FRACTIONAL" else 0
        check = _SliceBySlice(result, source, slices_of(source, headers), steps)
        for frame in seg_frames(written):
            check.frame(frame)
        check.finish()
        check_groups(written)
        check_dimensions(written, check.shown)
        proof_headers.check_owner(written, headers[0])
        proof_headers.check_images(items(written, _REFERENCED_SERIES), _REFERENCED_INSTANCES, headers)
        described = proof_headers.check_segments(written, segments, label_map=text(written, _TYPE) == "LABELMAP")
        check.are_described(described)


def prove_rtstruct(
    path: Path,
    labels: Volume,
    source: Volume,
    segments: Sequence[Segment] | None = None,
    headers: tuple[Dataset, ...] | None = None,
) -> None:
    """Pass if the contours, rasterised anew in the planes of the source files, enclose exactly the labelled voxels, run
    half-way between voxels, and the structure set says what they are and whose.

    Args and errors are those of `prove_seg`; the file is deleted.
    """
    with proof_headers.deleting(path, "RTSTRUCT"):
        written = walk_file(path)
        headers = headers or identity.source_headers(source, of_each=False)
        check = _SliceBySlice(labels, source, slices_of(source, headers))
        for uid, drawn in contours_by_slice(written).items():
            for frame in _drawn_frames(uid, drawn, check):
                check.frame(frame)
        check.finish()
        proof_headers.check_owner(written, headers[0])
        proof_headers.check_regions(written, segments, headers)


def _drawn_frames(uid: str, drawn: SliceContours, check: _SliceBySlice) -> Iterator[SegFrame]:
    """The contours on one slice as pixels: a map of all regions, or a frame for each where these may overlap."""
    one = check.slice_named(uid)
    points = check.half_way_points(drawn.points_mm, one)
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
    with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:  # no two threads have the same
        part = Path(folder) / "written.dcm"
        if isinstance(what, Dataset):
            what.save_as(part, enforce_file_format=True)
        else:
            what(part)
        if prove is not None:
            prove(part)
        os.replace(part, path)
    return path


class _SliceBySlice:
    """Compares frames with what the result holds at their place, and notes which are still missing.

    The result is looked up through the patient space, from the frame's own plane; the named slice must lie there too.
    """

    def __init__(self, result: Volume, source: Volume, slices: Sequence[Slice], steps: int = 0) -> None:
        if steps and result.array.ndim != 4:
            raise GeometryProofError("the file is a FRACTIONAL segmentation; the result has labels, not probabilities")
        self.result, self.source, self.slices, self.steps = result, source, slices, steps
        self.tolerance_mm = tolerance_mm(*source.spacing_mm)
        self.numbers = {one.key: k for k, one in enumerate(slices)}
        self.shown: list[tuple[int, int]] = []
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
        self.shown.append((frame.segment, k))
        wanted, found = self._wanted(frame, k), frame.pixels
        self.held[k] = self.held.get(k, 0) + int(np.count_nonzero(found))
        if self.steps:
            differing = np.abs(found / self.steps - wanted) > 0.5 / self.steps + 1e-6
        else:
            differing = found != (wanted.view(np.uint8) if wanted.dtype == bool else wanted)  # nothing is narrowed
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

    def are_described(self, described: set[int]) -> None:
        """Every segment of a frame or a label of the result must be among those that the file describes."""
        shown = {segment for segment, _ in self.shown}
        if 0 in shown and not described.issuperset(range(1, int(self.result.array.max()) + 1)):
            shown |= set(np.unique(self.result.array).tolist())
        if not shown - {0} <= described:
            raise GeometryProofError(
                f"the file describes the segments {sorted(described)} and shows {sorted(shown - {0})}"
            )

    def half_way_points(self, points_mm: Floats, one: Slice) -> Floats:
        """Shape (n, 2): column and row of the points of contours, which must lie in the plane of a slice, half-way between
        its pixels.
        """
        if one.plane is None:
            raise GeometryProofError(f"a part names the instance {one.key}, which has no place in patient space")
        pixels = one.plane.pixels(points_mm)
        away = float(np.abs(pixels[:, 2]).max())
        if away > self.tolerance_mm:
            raise GeometryProofError(f"a part names the instance {one.key} but lies {away:.2f} mm off its plane")
        sizes = np.array([np.linalg.norm(one.plane.column_step_mm), np.linalg.norm(one.plane.row_step_mm)])
        off = off_half_way(pixels[:, :2])
        if (off > ROUNDING_PIXELS + ROUNDING_MM / sizes).any():
            raise GeometryProofError(
                f"a contour on the slice {one.key} has a point {off.max():.2f} pixels away from the middle between pixels"
            )
        return pixels[:, :2]

    def _count(self, array: NDArray) -> int:
        """Labelled voxels (of each channel); a probability that is stored as 0 is none."""
        return int(np.count_nonzero(np.rint(array * self.steps) if self.steps else array))

    def _slice_of(self, frame: SegFrame) -> int:
        one = self.slice_named(frame.source_uid)
        k = self.numbers[one.key]
        if frame.pixels.shape != one.shape:
            raise GeometryProofError(f"a frame has {frame.pixels.shape} pixels, the slice that it names {one.shape}")
        if frame.plane is not None and one.plane is not None:
            away = apart_mm(frame.plane, one.plane, one.shape)
            if away > self.tolerance_mm:
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
