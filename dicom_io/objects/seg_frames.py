"""The frames of a DICOM Segmentation, each placed by its own headers.

`walk_seg` reads anybody's SEG through pydicom; what we wrote is read by `proof_frames` for the proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.objects.slice_positions import Plane, macro, plane_of
from dicom_io.reading.codecs import decoder_of
from dicom_io.reading.headers import shown
from dicom_io.reading.instances import READ_ERRORS


@dataclass(frozen=True)
class SegFrame:
    """One frame of a SEG.

    Attributes:
        segment: Its number; 0 in a label map, whose pixels are segment numbers.
        plane: Its place; None without patient space.
        source_uid: The slice that it names, as `Slice.key`; None where it names none.
        pixels: Shape (rows, columns), as stored: 0 and 1, segment numbers, or steps of a fraction.
        named: All slices that it names, where it is anybody's.
        gap_mm: SpacingBetweenSlices, where it says one and is anybody's.
    """

    segment: int
    plane: Plane | None
    source_uid: str | None
    pixels: NDArray
    named: tuple[str, ...] = ()
    gap_mm: float | None = None


def walk_seg(dataset: Dataset) -> Iterator[SegFrame]:
    """Every frame of a SEG, by pydicom.

    Raises:
        UnreadableFileError: Its pixels are missing or broken.
        LabelError: A frame has no place, or is of segment 0, which only a label map has: its background.
    """
    label_map = dataset.get("SegmentationType") == "LABELMAP"
    padding = dataset.get("PixelPaddingValue") if label_map else None
    placed = _is_placed(dataset)
    for number, frame in enumerate(_pixels_of(dataset), start=1):
        segment = 0 if label_map else _segment_of(dataset, number)
        pixels = np.where(frame == padding, 0, frame) if padding else frame  # PS3.3 C.8.20.2: no segment there
        plane, gap_mm = (plane_of(dataset, number), gap_of(dataset, number)) if placed else (None, None)
        named = named_sources(dataset, number)
        yield SegFrame(segment, plane, next(iter(named), None), pixels, named, gap_mm)


def _segment_of(dataset: Dataset, number: int) -> int:
    segment = int(macro(dataset, number, "SegmentIdentificationSequence").ReferencedSegmentNumber)
    if segment < 1:
        raise LabelError(
            f"frame {number} of the SEG is of segment {segment}; a number from 1 is needed in a BINARY or FRACTIONAL one; "
            "export the SEG again"
        )
    return segment


def _is_placed(dataset: Dataset) -> bool:
    """Whether frames have a place in patient space; those on a picture have none, whatever frame of reference it names."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    return any("PlanePositionSequence" in group for group in (*shared[:1], *frames[:1]))


def _pixels_of(dataset: Dataset) -> Iterator[NDArray]:
    try:
        rows, columns, count = int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)
        syntax = dataset.file_meta.TransferSyntaxUID
        if int(dataset.BitsAllocated) == 1 and not syntax.is_encapsulated:
            yield from unpacked(dataset.PixelData, rows, columns, count)
            return
        decoder = decoder_of(syntax)
        for index in range(count):
            yield decoder.as_array(dataset, index=index)[0]
    except READ_ERRORS as error:
        told = shown(" ".join(str(error).split())[:160])
        raise UnreadableFileError(
            f"the pixels of the SEG cannot be decoded ({told}); a whole file is needed; fetch it again"
        ) from error


def named_sources(dataset: Dataset, number: int) -> tuple[str, ...]:
    """All slices that a frame (from 1) says it was derived from, as `Slice.key`."""
    derivations = items_of(dataset, number, "DerivationImageSequence")
    images = [item for one in derivations for item in one.get("SourceImageSequence") or []]
    return tuple(key for item in images for key in reference_keys(item))


def reference_keys(item: Dataset) -> tuple[str, ...]:
    """What names the slices in a reference: as `Slice.key`; ReferencedFrameNumber may have several values."""
    frames = item.get("ReferencedFrameNumber")
    uid = str(item.ReferencedSOPInstanceUID)
    if not frames:
        return (uid,)
    return tuple(f"{uid}#{int(frame)}" for frame in (frames if isinstance(frames, MultiValue) else [frames]))


def items_of(dataset: Dataset, number: int, keyword: str) -> list[Dataset]:
    """All items of a functional group of a frame (from 1): its own, else the shared ones."""
    own = dataset.PerFrameFunctionalGroupsSequence[number - 1]
    for group in (own, *(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]):
        if group.get(keyword):
            return list(group[keyword].value)
    return []


def gap_of(dataset: Dataset, number: int) -> float | None:
    """SpacingBetweenSlices of a frame (from 1) in mm; None where it says none."""
    found = macro(dataset, number, "PixelMeasuresSequence").get("SpacingBetweenSlices")
    return abs(float(found)) or None if found else None


def unpacked(packed: bytes, rows: int, columns: int, count: int) -> Iterator[NDArray]:
    """Frames of single bits, the first in the lowest (PS3.5 8.1.1); a frame may begin within a byte."""
    content, size = np.frombuffer(packed, dtype=np.uint8), rows * columns
    if len(content) * 8 < size * count:
        raise ValueError(
            f"{count} frames of {rows} x {columns} bits need {-(-size * count // 8)} bytes, not {len(content)}"
        )
    for start in range(0, size * count, size):
        bits = np.unpackbits(content[start // 8 : -(-(start + size) // 8)], bitorder="little")
        yield bits[start % 8 : start % 8 + size].reshape(rows, columns)
