"""The frames of a DICOM Segmentation, each placed by its own headers.

Two ways in: `walk_seg` reads anybody's SEG through pydicom; `seg_frames` reads what we wrote through `walk`, a reader
that shares nothing with the writer, for the proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import imagecodecs
import jpeg_ls
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.errors import GeometryProofError, UnreadableFileError
from dicom_io.objects.places import Plane, macro, plane_of
from dicom_io.objects.walk import Attributes, decimals, items, text, whole
from dicom_io.reading.codecs import decoder_of
from dicom_io.reading.headers import shown
from dicom_io.reading.instances import READ_ERRORS

_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_POSITION, _ORIENTATION, _MEASURES, _SEGMENT = 0x00209113, 0x00209116, 0x00289110, 0x0062000A
_DERIVATION, _SOURCE_IMAGE, _SOURCE_UID, _SOURCE_FRAME = 0x00089124, 0x00082112, 0x00081155, 0x00081160
_RLE, _JPEG_LS = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"


@dataclass(frozen=True)
class SegFrame:
    """One frame of a SEG.

    Attributes:
        segment: Its number; 0 in a label map, whose pixels are segment numbers.
        plane: Its place; None without patient space.
        source_uid: The slice that it names, as `Slice.key`; None where it names none.
        pixels: Shape (rows, columns), as stored: 0 and 1, segment numbers, or steps of a fraction.
    """

    segment: int
    plane: Plane | None
    source_uid: str | None
    pixels: NDArray


def walk_seg(dataset: Dataset) -> Iterator[SegFrame]:
    """Every frame of a SEG, by pydicom. Raises UnreadableFileError if its pixels are missing or broken."""
    label_map = dataset.get("SegmentationType") == "LABELMAP"
    padding = dataset.get("PixelPaddingValue") if label_map else None
    placed = _is_placed(dataset)
    for number, frame in enumerate(_pixels_of(dataset), start=1):
        own = dataset.PerFrameFunctionalGroupsSequence[number - 1]
        segment = 0
        if not label_map:
            segment = int(macro(dataset, number, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        pixels = np.where(frame == padding, 0, frame) if padding else frame  # PS3.3 C.8.20.2: no segment there
        yield SegFrame(segment, plane_of(dataset, number) if placed else None, _named_source(own), pixels)


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
            yield from _unpacked(dataset.PixelData, rows, columns, count)
            return
        decoder = decoder_of(syntax)
        for index in range(count):
            yield decoder.as_array(dataset, index=index)[0]
    except READ_ERRORS as error:
        told = shown(" ".join(str(error).split())[:160])
        raise UnreadableFileError(
            f"the pixels of the SEG cannot be decoded ({told}); a whole file is needed; fetch it again"
        ) from error


def _named_source(group: Dataset) -> str | None:
    try:
        item = group.DerivationImageSequence[0].SourceImageSequence[0]
    except (AttributeError, IndexError):
        return None
    return reference_key(item)


def reference_key(item: Dataset) -> str:
    """What names a slice in a reference: as `Slice.key`."""
    frame = item.get("ReferencedFrameNumber")
    return f"{item.ReferencedSOPInstanceUID}#{int(frame)}" if frame else str(item.ReferencedSOPInstanceUID)


def seg_frames(written: Attributes) -> Iterator[SegFrame]:
    """Every frame of a SEG of our own, by `walk`. Raises GeometryProofError for what is missing in it."""
    shared, groups = (items(written, _SHARED) or [{}])[0], items(written, _PER_FRAME)
    label_map = text(written, 0x00620001) == "LABELMAP"
    placed = any(items(group, _POSITION) for group in (shared, *groups[:1]))
    frames = _pixels_by_walk(written)
    if len(groups) != int(text(written, 0x00280008)):
        raise GeometryProofError(f"{len(groups)} functional groups describe {text(written, 0x00280008)} frames")
    for own, pixels in zip(groups, frames, strict=True):
        segment = 0 if label_map else whole(items(own, _SEGMENT)[0], 0x0062000B)
        yield SegFrame(segment, _plane(own, shared) if placed else None, _named(own), pixels)


def _plane(own: Attributes, shared: Attributes) -> Plane:
    def group(tag: int) -> Attributes:
        return (items(own, tag) or items(shared, tag) or [{}])[0]

    cosines = decimals(group(_ORIENTATION), 0x00200037)
    between_rows, between_columns = decimals(group(_MEASURES), 0x00280030)  # PS3.3 10.7.1.3: first between rows
    origin = decimals(group(_POSITION), 0x00200032)
    return Plane(origin, cosines[:3] * between_columns, cosines[3:] * between_rows)


def _named(own: Attributes) -> str | None:
    found = items(own, _DERIVATION, _SOURCE_IMAGE)
    if not found:
        return None
    frame = text(found[0], _SOURCE_FRAME)
    return text(found[0], _SOURCE_UID) + (f"#{int(frame)}" if frame else "")


def _pixels_by_walk(written: Attributes) -> Iterator[NDArray]:
    rows, columns, bits = (whole(written, tag) for tag in (0x00280010, 0x00280011, 0x00280100))
    count, content = int(text(written, 0x00280008)), written.get(0x7FE00010)
    if content is None:
        raise GeometryProofError("the written file has no pixel data")
    kind, syntax = np.dtype("<u2" if bits == 16 else "u1"), text(written, 0x00020010)
    if isinstance(content, list):
        if len(content) != count + 1:
            raise GeometryProofError(f"the written file has {len(content) - 1} compressed frames, {count} are needed")
        yield from (_decoded(part, syntax, kind).reshape(rows, columns) for part in content[1:])
    elif bits == 1:
        yield from _unpacked(content, rows, columns, count)
    else:
        yield from np.frombuffer(content, kind, count * rows * columns).reshape(count, rows, columns)


def _decoded(part: bytes, syntax: str, kind: np.dtype) -> NDArray:
    """One compressed frame, by another codec than the one that wrote it where there is one."""
    if syntax == _RLE:
        return np.frombuffer(imagecodecs.dicomrle_decode(part, kind), kind)
    if syntax == _JPEG_LS:
        return np.frombuffer(jpeg_ls.decode_buffer(part)[0], kind)
    raise GeometryProofError(f"the written file has the transfer syntax {syntax}, which the proof does not read")


def _unpacked(packed: bytes, rows: int, columns: int, count: int) -> Iterator[NDArray]:
    """Frames of single bits, the first in the lowest (PS3.5 8.1.1); a frame may begin within a byte."""
    content, size = np.frombuffer(packed, dtype=np.uint8), rows * columns
    if len(content) * 8 < size * count:
        raise ValueError(
            f"{count} frames of {rows} x {columns} bits need {-(-size * count // 8)} bytes, not {len(content)}"
        )
    for start in range(0, size * count, size):
        bits = np.unpackbits(content[start // 8 : -(-(start + size) // 8)], bitorder="little")
        yield bits[start % 8 : start % 8 + size].reshape(rows, columns)
