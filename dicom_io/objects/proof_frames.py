"""The frames of a DICOM Segmentation or a Parametric Map of our own, each placed by its own headers, for the proofs.

They are read through `raw_parser`, which shares nothing with the writer. Of an older reader there is only what unpacks
single bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import imagecodecs
import jpeg_ls
import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import GeometryProofError
from dicom_io.objects.raw_parser import (
    Attributes,
    decimals,
    first_item,
    instance_key,
    integer,
    items,
    needed,
    text,
    whole,
)
from dicom_io.objects.seg_frames import SegFrame, unpacked
from dicom_io.objects.slice_positions import Plane
from dicom_io.reading.instances import LABEL_MAP_STORAGE

_SHARED, _PER_FRAME = 0x52009229, 0x52009230
_POSITION, _ORIENTATION, _MEASURES, _SEGMENT = 0x00209113, 0x00209116, 0x00289110, 0x0062000A
_DERIVATION, _SOURCE_IMAGE = 0x00089124, 0x00082112
_ROWS, _COLUMNS, _FRAME_COUNT, _PIXELS = 0x00280010, 0x00280011, 0x00280008, 0x7FE00010
_ALLOCATED, _STORED, _HIGH_BIT, _PADDING = 0x00280100, 0x00280101, 0x00280102, 0x00280120
_CLASS, _TYPE, _SEGMENT_NUMBER, _IMAGE_POSITION = 0x00080016, 0x00620001, 0x0062000B, 0x00200032
_DIMENSIONS, _DIMENSION, _CONTENT, _DIMENSION_VALUES = 0x00209222, 0x00209165, 0x00209111, 0x00209157
_FORMS = {  # by SegmentationType: SOP class and bits allocated (PS3.3 C.8.20.2)
    "BINARY": ("1.2.840.10008.5.1.4.1.1.66.4", (1,)),
    "FRACTIONAL": ("1.2.840.10008.5.1.4.1.1.66.4", (8,)),
    "LABELMAP": (LABEL_MAP_STORAGE, (8, 16)),
}
_RLE, _JPEG_LS = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"


def seg_frames(written: Attributes) -> Iterator[SegFrame]:
    """Every frame of a SEG of our own, by `raw_parser`.

    Raises:
        GeometryProofError: Something is missing, its pixels are not of the form that its type has, or they are too few or
            too many.
    """
    kind = _checked_form(written)
    shared, groups = (items(written, _SHARED) or [{}])[0], items(written, _PER_FRAME)
    placed = any(items(group, _POSITION) for group in (shared, *groups[:1]))
    if len(groups) != integer(written, _FRAME_COUNT):
        raise GeometryProofError(f"{len(groups)} functional groups describe {integer(written, _FRAME_COUNT)} frames")
    for own, pixels in zip(groups, _pixels_by_walk(written), strict=True):
        segment = 0 if kind == "LABELMAP" else whole(first_item(own, _SEGMENT), _SEGMENT_NUMBER)
        if segment == 0 and kind != "LABELMAP":
            raise GeometryProofError(f"a frame of a {kind} segmentation names the segment 0; 1 or more is needed")
        yield SegFrame(segment, plane_by_walk(own, shared) if placed else None, source_by_walk(own), pixels)


def _checked_form(written: Attributes) -> str:
    """The SegmentationType of a SEG whose class and pixels are as that type has them, in grey, 0 as black."""
    kind = text(written, _TYPE)
    sop_class, bits = _FORMS.get(kind, ("", ()))
    allocated = whole(written, _ALLOCATED)
    wanted = {
        _CLASS: (text(written, _CLASS), sop_class),
        0x00020002: (text(written, 0x00020002), sop_class),
        0x00020003: (text(written, 0x00020003), text(written, 0x00080018)),
        0x00280004: (text(written, 0x00280004), "MONOCHROME2"),
        0x00280002: (whole(written, 0x00280002), 1),
        0x00280103: (whole(written, 0x00280103), 0),
        _ALLOCATED: (allocated if allocated in bits else 0, allocated),
        _STORED: (whole(written, _STORED), allocated),
        _HIGH_BIT: (whole(written, _HIGH_BIT), allocated - 1),
        _PADDING: (whole(written, _PADDING) if _PADDING in written else 0, 0),  # the background of a label map
    }
    for tag, (found, meant) in wanted.items():
        if found != meant:
            raise GeometryProofError(
                f"of a {kind or 'missing'} segmentation type the attribute {tag:08X} is {found}; {meant or 'none'} is needed"
            )
    return kind


def check_groups(written: Attributes) -> None:
    """Pass if no functional group is both shared and of single frames (PS3.3 C.7.6.16.1.1): readers differ in which they take.

    Raises:
        GeometryProofError: A group stands in both places.
    """
    shared = (items(written, _SHARED) or [{}])[0]
    twice = {tag for own in items(written, _PER_FRAME) for tag in own} & set(shared)
    if twice:
        raise GeometryProofError(
            f"the functional groups {', '.join(f'{tag:08X}' for tag in sorted(twice))} are shared and of single frames"
        )


def check_dimensions(written: Attributes, shown: Sequence[tuple[int, int]]) -> None:
    """Pass if the DimensionIndexValues of the frames count their segments and slices up, or slices down (PS3.3 C.7.6.17).

    Args:
        written: A SEG or a parametric map.
        shown: Segment and slice of each frame, in the order of the file.

    Raises:
        GeometryProofError: Two segments or slices have one number, one has two, or they are out of order.
    """
    pointers = [_tag(needed(item, _DIMENSION)) for item in items(written, _DIMENSIONS)]
    found = [needed(first_item(group, _CONTENT), _DIMENSION_VALUES) for group in items(written, _PER_FRAME)]
    values = np.array([struct.unpack(f"<{len(pointers)}L", value) for value in found])
    for number, pointer in enumerate(pointers):
        if pointer in (_SEGMENT_NUMBER, _IMAGE_POSITION):
            pairs = np.unique(
                np.column_stack([np.array(shown)[:, int(pointer == _IMAGE_POSITION)], values[:, number]]), axis=0
            )
            steps = np.diff(pairs, axis=0)
            down = pointer == _IMAGE_POSITION and bool((steps[:, 1] < 0).all())
            if values[:, number].min() < 1 or not (steps[:, 0] > 0).all() or not (down or (steps[:, 1] > 0).all()):
                raise GeometryProofError(
                    f"the dimension index values of the attribute {pointer:08X} do not count what the frames show"
                )


def _tag(value: bytes) -> int:
    group, element = struct.unpack("<HH", value)
    return int(group << 16 | element)


def plane_by_walk(own: Attributes, shared: Attributes) -> Plane:
    """Where a frame lies, by its own functional groups or the shared ones. Raises GeometryProofError if they do not say."""

    def group(tag: int) -> Attributes:
        return (items(own, tag) or items(shared, tag) or [{}])[0]

    cosines = decimals(group(_ORIENTATION), 0x00200037)
    between_rows, between_columns = decimals(group(_MEASURES), 0x00280030)  # PS3.3 10.7.1.3: first between rows
    origin = decimals(group(_POSITION), _IMAGE_POSITION)
    return Plane(origin, cosines[:3] * between_columns, cosines[3:] * between_rows)


def source_by_walk(own: Attributes) -> str | None:
    """The slice that the functional groups of a frame name, as `Slice.key`; None where they name none."""
    found = items(own, _DERIVATION, _SOURCE_IMAGE)
    return instance_key(found[0]) if found else None


def _pixels_by_walk(written: Attributes) -> Iterator[NDArray]:
    rows, columns, bits = (whole(written, tag) for tag in (_ROWS, _COLUMNS, _ALLOCATED))
    count, content = integer(written, _FRAME_COUNT), written.get(_PIXELS)
    if content is None:
        raise GeometryProofError("the written file has no pixel data")
    kind, syntax = np.dtype("<u2" if bits == 16 else "u1"), text(written, 0x00020010)
    if isinstance(content, list):
        if len(content) != count + 1:
            raise GeometryProofError(f"the written file has {len(content) - 1} compressed frames, {count} are needed")
        yield from (_decoded(part, syntax, kind).reshape(rows, columns) for part in content[1:])
        return
    needed = -(-rows * columns * count * bits // 8)
    if len(content) != needed + needed % 2:
        raise GeometryProofError(
            f"the written file has {len(content)} bytes of pixels, {needed + needed % 2} are needed"
        )
    if bits == 1:
        yield from unpacked(content, rows, columns, count)
    else:
        yield from np.frombuffer(content, kind, count * rows * columns).reshape(count, rows, columns)


def _decoded(part: bytes, syntax: str, kind: np.dtype) -> NDArray:
    """One compressed frame, by another codec than the one that wrote it where there is one."""
    if syntax == _RLE:
        return np.frombuffer(imagecodecs.dicomrle_decode(part, kind), kind)
    if syntax == _JPEG_LS:
        return np.frombuffer(jpeg_ls.decode_buffer(part)[0], kind)
    raise GeometryProofError(f"the written file has the transfer syntax {syntax}, which the proof does not read")
