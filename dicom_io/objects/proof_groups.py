"""The functional groups of a SEG or a Parametric Map of our own, through `raw_parser`, for the proofs."""

import struct
from collections.abc import Sequence

import numpy as np

from dicom_io.errors import GeometryProofError
from dicom_io.objects.raw_parser import Attributes, decimals, first_item, instance_key, items, needed
from dicom_io.objects.slice_positions import Plane

SHARED, PER_FRAME = 0x52009229, 0x52009230
POSITION, _ORIENTATION, _MEASURES, SEGMENT = 0x00209113, 0x00209116, 0x00289110, 0x0062000A
REFERENCED_SEGMENT, IMAGE_POSITION = 0x0062000B, 0x00200032
_DERIVATION, _SOURCE_IMAGE = 0x00089124, 0x00082112
_DIMENSIONS, _DIMENSION, _CONTENT, _DIMENSION_VALUES = 0x00209222, 0x00209165, 0x00209111, 0x00209157


def check_groups(written: Attributes) -> None:
    """Pass if no functional group is both shared and of single frames (PS3.3 C.7.6.16.1.1): readers differ in which they take.

    Raises:
        GeometryProofError: A group stands in both places.
    """
    shared = (items(written, SHARED) or [{}])[0]
    twice = {tag for own in items(written, PER_FRAME) for tag in own} & set(shared)
    if twice:
        raise GeometryProofError(
            f"the functional groups {', '.join(f'{tag:08X}' for tag in sorted(twice))} are shared and of single frames"
        )


def check_dimensions(written: Attributes, frames: Sequence[tuple[int, int]]) -> None:
    """Pass if the DimensionIndexValues of the frames count their segments and slices up, or slices down (PS3.3 C.7.6.17).

    Args:
        written: A SEG or a parametric map.
        frames: Segment and slice of each frame, in the order of the file.

    Raises:
        GeometryProofError: Two segments or slices have the same number, one of them has two, or they are out of order.
    """
    pointers = [_tag(needed(item, _DIMENSION)) for item in items(written, _DIMENSIONS)]
    # Each frame has one UL for each dimension, in the order of the DimensionIndexSequence (PS3.3 C.7.6.17).
    stored = [needed(first_item(group, _CONTENT), _DIMENSION_VALUES) for group in items(written, PER_FRAME)]
    values = np.array([struct.unpack(f"<{len(pointers)}L", value) for value in stored])
    for number, pointer in enumerate(pointers):
        if pointer in (REFERENCED_SEGMENT, IMAGE_POSITION):
            # Sorted pairs of what a frame shows and its number: a pair that grows in only one of the two is an
            # ambiguous number.
            pairs = np.unique(
                np.column_stack([np.array(frames)[:, int(pointer == IMAGE_POSITION)], values[:, number]]), axis=0
            )
            steps = np.diff(pairs, axis=0)
            down = pointer == IMAGE_POSITION and bool((steps[:, 1] < 0).all())
            if values[:, number].min() < 1 or not (steps[:, 0] > 0).all() or not (down or (steps[:, 1] > 0).all()):
                raise GeometryProofError(
                    f"the dimension index values of the attribute {pointer:08X} do not count what the frames show"
                )


def _tag(value: bytes) -> int:
    group, element = struct.unpack("<HH", value)
    return int(group << 16 | element)


def parsed_plane(own: Attributes, shared: Attributes) -> Plane:
    """Where a frame lies, by its own functional groups or the shared ones. Raises GeometryProofError if they do not say."""

    def group(tag: int) -> Attributes:
        return (items(own, tag) or items(shared, tag) or [{}])[0]

    cosines = decimals(group(_ORIENTATION), 0x00200037)
    between_rows, between_columns = decimals(group(_MEASURES), 0x00280030)  # PS3.3 10.7.1.3: first between rows
    origin = decimals(group(POSITION), IMAGE_POSITION)
    return Plane(origin, cosines[:3] * between_columns, cosines[3:] * between_rows)


def parsed_source(own: Attributes) -> str | None:
    """The slice that the functional groups of a frame name, as `Slice.key`; None where they name none."""
    references = items(own, _DERIVATION, _SOURCE_IMAGE)
    return instance_key(references[0]) if references else None
