"""The frames of any DICOM Segmentation, each placed by its own headers, through pydicom.

The proof reads the frames of our own through `raw_parser` instead (`seg.proof`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.objects.functional_groups import gap_of, macro, named_sources
from dicom_io.objects.slice_positions import Plane, plane_of
from dicom_io.reading.codecs import decoder_of
from dicom_io.reading.headers import shown
from dicom_io.reading.instances import READ_ERRORS


@dataclass(frozen=True)
class SegFrame:
    """One frame of a SEG.

    Attributes:
        segment: Its number; 0 in a label map, whose pixels are segment numbers.
        plane: Its place; None without patient space.
        pixels: Shape (rows, columns), as stored: 0 and 1, segment numbers, or steps of a fraction.
        named: The slices that it names, as `Slice.key`.
        gap_mm: SpacingBetweenSlices; None where the frame does not state it.
        time: TemporalPositionIndex; None where the frame does not state it.
    """

    segment: int
    plane: Plane | None
    pixels: NDArray[Any]
    named: tuple[str, ...]
    gap_mm: float | None
    time: int | None = None


def seg_frames_of(dataset: Dataset) -> Iterator[SegFrame]:
    """Every frame of a SEG, by pydicom.

    Raises:
        UnreadableFileError: Its pixels are missing or broken.
        LabelError: A frame has no place, or is of segment 0, which only a label map has: its background.
    """
    label_map = dataset.get("SegmentationType") == "LABELMAP"
    changed = {number: own for number, own in numbering(dataset).items() if number != own}
    placed = _is_placed(dataset)
    groups, count = len(dataset.get("PerFrameFunctionalGroupsSequence") or []), int(dataset.get("NumberOfFrames") or 1)
    if groups and groups != count:
        raise LabelError(
            f"the SEG has {count} frame(s) (NumberOfFrames) and describes {groups}; as many are needed; export it again"
        )
    for number, frame in enumerate(_pixels_of(dataset), start=1):
        segment = 0 if label_map else _segment_of(dataset, number)
        pixels = frame
        if changed and label_map:
            pixels = frame.astype(np.int32)
            for value, own in changed.items():
                pixels[frame == value] = own
        plane, gap_mm = (plane_of(dataset, number), gap_of(dataset, number)) if placed else (None, None)
        content = macro(dataset, number, "FrameContentSequence")
        yield SegFrame(
            segment, plane, pixels, named_sources(dataset, number), gap_mm, content.get("TemporalPositionIndex")
        )


_BACKGROUND = ("125040", "DCM")


def padded(dataset: Dataset) -> dict[int, str]:
    """SegmentNumber -> label of what a label map describes as a structure, although it is its PixelPaddingValue."""
    return {
        int(item.SegmentNumber): str(item.get("SegmentLabel") or "")[:64]
        for item in dataset.get("SegmentSequence") or []
        if dataset.get("SegmentationType") == "LABELMAP"
        and item.SegmentNumber == dataset.get("PixelPaddingValue")
        and not _is_background(item)
    }


def _is_background(segment: Dataset) -> bool:
    kind = (segment.get("SegmentedPropertyTypeCodeSequence") or [Dataset()])[0]
    return (kind.get("CodeValue"), kind.get("CodingSchemeDesignator")) == _BACKGROUND


def numbering(dataset: Dataset) -> dict[int, int]:
    """SegmentNumber -> the number of the segment here, 0 for the background.

    In a label map the file says which number is its background: PixelPaddingValue belongs to no segment (PS3.3 C.8.20.2), nor
    does a number whose type is coded as background. If it describes a structure as 0, this gets the first free number.
    """
    label_map = dataset.get("SegmentationType") == "LABELMAP"
    padding, found = dataset.get("PixelPaddingValue") if label_map else None, dict[int, int]()
    for item in dataset.get("SegmentSequence") or []:
        number = int(item.SegmentNumber)
        if number in found:
            raise LabelError(
                f"the SEG describes segment {number} twice; one meaning of each number is needed; export it again"
            )
        found[number] = 0 if number == padding or (label_map and _is_background(item)) else number or -1
    if padding is not None:
        found[int(padding)] = 0
    return {number: max(found) + 1 if own < 0 else own for number, own in found.items() if number or label_map}


def _segment_of(dataset: Dataset, number: int) -> int:
    segment = int(macro(dataset, number, "SegmentIdentificationSequence").ReferencedSegmentNumber)
    if segment < 1:
        raise LabelError(
            f"frame {number} of the SEG is of segment {segment}; a number from 1 is needed in a BINARY or FRACTIONAL one; "
            "export the SEG again"
        )
    return segment


def _is_placed(dataset: Dataset) -> bool:
    """Whether frames have a place in patient space; frames on a picture have none, even if it names a frame of reference."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    return any("PlanePositionSequence" in group for group in (*shared[:1], *frames[:1]))


def _pixels_of(dataset: Dataset) -> Iterator[NDArray[Any]]:
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
        reason = shown(" ".join(str(error).split())[:160])
        raise UnreadableFileError(
            f"the pixels of the SEG cannot be decoded ({reason}); a whole file is needed; fetch it again"
        ) from error


def unpacked(packed: bytes | memoryview, rows: int, columns: int, count: int) -> Iterator[NDArray[Any]]:
    """Frames of single bits as arrays (rows, columns) of 0 and 1; the first bit is the lowest (PS3.5 8.1.1).

    A frame may begin within a byte.
    """
    content, size = np.frombuffer(packed, dtype=np.uint8), rows * columns
    if len(content) * 8 < size * count:
        raise ValueError(
            f"{count} frames of {rows} x {columns} bits need {-(-size * count // 8)} bytes, not {len(content)}"
        )
    for start in range(0, size * count, size):
        # The bytes that hold the bits of this frame; `-(-n // 8)` rounds up.
        bits = np.unpackbits(content[start // 8 : -(-(start + size) // 8)], bitorder="little")
        yield bits[start % 8 : start % 8 + size].reshape(rows, columns)
