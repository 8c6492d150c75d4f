"""Read what was written a second time and compare it, in patient millimetres, with the result and its source.

The proof is independent of the writers in three ways. Files are read by `raw_parser`, which shares no code with pydicom,
highdicom and the encoders here. Compressed frames are decoded by other codecs where there are any. Contours are filled by
`raster`, which does not know how they were drawn. Every frame or contour is placed by its own headers, and the slice that it
names by SOP Instance UID must lie in the same plane: a shuffled list of source images passes every validator and is caught
here. The places of the source's slices are not independent: they come from the headers that the writer has read. ITK gives a
second opinion on them before writing (`source_grid.check_grid`); it gets the values of three headers, not the files.

Patient, study, frame of reference, the references to the source, and the names, codes and colours of the segments are
compared, too.

Sub-voxel rule of contours: a contour runs half-way between the centre of a voxel inside and the centre of its neighbour
outside; a voxel belongs to a region if its centre is inside by the even-odd rule over all contours of that region in the
slice. Holes may therefore be drawn as a keyhole (as `write_rtstruct` does) or as a second contour. A point may be off its place
by the rounding to three decimals of a millimetre and no more, so contours that were moved and still enclose the same voxels
are caught.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.errors import GeometryProofError
from dicom_io.files import replace_when_whole
from dicom_io.objects.slice_positions import Plane, Slice, apart_mm, tolerance_mm, values_at
from dicom_io.segmentation import SliceLabels
from dicom_io.volume import Volume


def save_proved(content: Dataset | Callable[[Path], None], path: Path, prove: Callable[[Path], None] | None) -> Path:
    """Write a file under a temporary name, prove it, then rename it. A file that the proof refuses never gets its name.

    Args:
        content: A data set, or a function that writes the file.
        path: The name of the file.
        prove: Raises GeometryProofError for a file that does not hold the result; None: no proof.
    """
    path = Path(path)
    with replace_when_whole(path) as part:
        if isinstance(content, Dataset):
            content.save_as(part, enforce_file_format=True)
        else:
            content(part)
        if prove is not None:
            prove(part)
    return path


@dataclass(frozen=True)
class ComparedFrame:
    """One frame of a written object, or the contours of one slice as pixels.

    Attributes:
        segment: Its number; 0 where the pixels are segment numbers.
        plane: Where it lies; None without patient space.
        source_key: The slice that it names, as `Slice.key`; None where it names none.
        pixels: Shape (rows, columns), as stored: 0 and 1, segment numbers, or steps of a fraction.
    """

    segment: int
    plane: Plane | None
    source_key: str | None
    pixels: NDArray[Any]


class SliceComparison:
    """Compares frames with the values of the result at their place, and notes which frames it has compared.

    The result is looked up through the patient space, from the frame's own plane; the named slice must lie there too.
    """

    def __init__(self, result: Volume, source: Volume, slices: Sequence[Slice]) -> None:
        self.result, self.source, self.slices = result, source, slices
        self.tolerance_mm = tolerance_mm(*source.spacing_mm)
        self.numbers = {source_slice.key: k for k, source_slice in enumerate(slices)}
        self.frames: dict[tuple[int, int], None] = {}
        self.held: dict[int, int] = {}

    def slice_named(self, key: str | None) -> Slice:
        """The slice of the source with this key. Raises GeometryProofError if the source has no such slice."""
        k = self.numbers.get(key or "")
        if k is None:
            raise GeometryProofError(f"a part names the instance {key}, which is not a slice of the source")
        return self.slices[k]

    def frame(self, frame: ComparedFrame) -> None:
        """Compare one frame: (rows, columns) of one segment, or of all where its segment is 0."""
        k = self._slice_of(frame)
        if (frame.segment, k) in self.frames:
            raise GeometryProofError(f"segment {frame.segment} has slice {k + 1} twice")
        self.frames[frame.segment, k] = None
        expected, pixels = self._expected(frame, k), frame.pixels
        self.held[k] = self.held.get(k, 0) + int(np.count_nonzero(pixels))
        differing = self._differing(pixels, expected)
        if differing.any():
            raise GeometryProofError(
                f"segment {frame.segment or 'map'} on slice {k + 1}: the file holds {np.count_nonzero(pixels)} labelled "
                f"voxels, the result {np.count_nonzero(expected)}, and {np.count_nonzero(differing)} differ"
            )

    def finish(self) -> None:
        """Check that every slice has shown as many labelled voxels as the result holds there, and that none lies elsewhere."""
        # A frame that the file lacks is compared nowhere; the counts of its slice show it.
        on_slices, everywhere = self._labelled()
        for k, expected in enumerate(on_slices):
            if expected != self.held.get(k, 0):
                raise GeometryProofError(
                    f"slice {k + 1} holds {expected} labelled voxels in the result, {self.held.get(k, 0)} in the file"
                )
        total = sum(on_slices)
        # A resampled volume has voxels between the slices, which no frame can hold (decision 16).
        if total != everywhere and not self.source.provenance.resampled:
            raise GeometryProofError(
                f"the result has {everywhere} labelled voxels, {total} of them on slices of the source"
            )

    def are_described(self, described: set[int]) -> None:
        """Every segment of a frame or a label of the result must be among those that the file describes."""
        segments = {segment for segment, _ in self.frames}
        # Frames of segment 0 hold segment numbers, so the values of the result say which segments they show.
        if 0 in segments and not described.issuperset(range(1, int(self.result.array.max()) + 1)):
            segments |= set(np.unique(self.result.array.ravel(order="K")).tolist())
        if not segments - {0} <= described:
            raise GeometryProofError(
                f"the file describes the segments {sorted(described)} and shows {sorted(segments - {0})}"
            )

    def _labelled(self) -> tuple[list[int], int]:
        """The number of labelled voxels of the result on each slice, and everywhere, in all channels together."""
        on_slices = [np.count_nonzero(self._at(self.result, own, k)) for k, own in enumerate(self.slices)]
        return [int(n) for n in on_slices], int(np.count_nonzero(self.result.array))

    def _differing(self, pixels: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.bool_]:
        """Where stored pixels are not those of the result."""
        # as bytes where the mask is boolean: the stored values are not narrowed, so a 2 is no 1
        return np.asarray(pixels != (expected.view(np.uint8) if expected.dtype == bool else expected))

    def _slice_of(self, frame: ComparedFrame) -> int:
        source_slice = self.slice_named(frame.source_key)
        k = self.numbers[source_slice.key]
        if frame.pixels.shape != source_slice.shape:
            raise GeometryProofError(
                f"a frame has {frame.pixels.shape} pixels, the slice that it names {source_slice.shape}"
            )
        if frame.plane is not None and source_slice.plane is not None:
            away = apart_mm(frame.plane, source_slice.plane, source_slice.shape)
            if away > self.tolerance_mm:
                raise GeometryProofError(
                    f"a part names the instance {frame.source_key} but lies {away:.2f} mm off its plane"
                )
        elif frame.plane is not None or source_slice.plane is not None:
            raise GeometryProofError(
                f"of a frame and the slice {source_slice.key} only one has a place in patient space"
            )
        return k

    def _expected(self, frame: ComparedFrame, k: int) -> NDArray[Any]:
        here = self._at(self.result, self._place(frame, k), k)
        expected = SliceLabels(here).frame(frame.segment)
        if expected is None:
            raise GeometryProofError(f"the file has a segment {frame.segment}, the result has {here.shape[2]}")
        return expected

    def _place(self, frame: ComparedFrame, k: int) -> Slice:
        return self.slices[k] if frame.plane is None else replace(self.slices[k], plane=frame.plane)

    @staticmethod
    def _at(result: Volume, source_slice: Slice, k: int) -> NDArray[Any]:
        if source_slice.plane is None:
            return np.swapaxes(result.array[:, :, k], 0, 1)
        return values_at(source_slice.plane, source_slice.shape, result)
