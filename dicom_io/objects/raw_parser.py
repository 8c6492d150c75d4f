"""A second, small reader of DICOM files, for proofs: explicit VR, little endian, plain or deflated; nothing else.

What a writer made with pydicom is not read back with pydicom. The attributes come as the bytes of the file, in
dictionaries by tag; sequences as lists of such dictionaries. Source: DICOM PS3.5, 7.1.2, 7.5 and A.4; PS3.10, 7.1.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import GeometryProofError

Attributes = dict[int, Any]
"""Tag -> bytes, or a list of `Attributes` for a sequence. Pixels are a view of the file, which is not copied; encapsulated
pixels are a list of bytes."""

# Explicit VRs with 32 bits of length (PS3.5 table 7.1-1).
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV"))
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_TRANSFER_SYNTAX = 0x00020010
_PIXEL_DATA = 0x7FE00010
_REFERENCED_INSTANCE, _REFERENCED_FRAME = 0x00081155, 0x00081160
_UNDEFINED = 0xFFFFFFFF
_DEFLATED, _IMPLICIT, _BIG = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_HEAD, _SHORT, _WIDE = struct.Struct("<HH2s"), struct.Struct("<H"), struct.Struct("<L")


def parse_file(path: Path) -> Attributes:
    """All attributes of a file, group 0002 among them. Raises GeometryProofError for what this reader cannot read."""
    content = Path(path).read_bytes()
    # PS3.10 7.1: a preamble of 128 bytes, then the prefix DICM.
    if content[128:132] != b"DICM":
        raise GeometryProofError("the written file has no DICM prefix")
    try:
        meta, at = _data_set(content, 132, len(content), only_group=2)  # PS3.10 7.1: never deflated
        syntax = text(meta, _TRANSFER_SYNTAX)
        if syntax in (_IMPLICIT, _BIG):
            raise GeometryProofError(
                f"the written file has the transfer syntax {syntax}; explicit little endian is needed"
            )
        # A negative number of bits means the bare stream of RFC 1951, as PS3.5 A.5 has it, without zlib's header.
        body = zlib.decompress(content[at:], -zlib.MAX_WBITS) if syntax == _DEFLATED else content
        attributes, _ = _data_set(body, 0 if syntax == _DEFLATED else at, len(body))
    except (struct.error, zlib.error, ValueError) as error:
        raise GeometryProofError(f"the written file cannot be read back ({error})") from error
    return {**meta, **attributes}


def attributes_of(content: bytes) -> Attributes:
    """The attributes of a bare data set, as it stands in a file."""
    return _data_set(content, 0, len(content))[0]


def text(attributes: Attributes, tag: int, encoding: str = "latin-1") -> str:
    """A value as text without padding; empty where it is absent. Raises UnicodeDecodeError for bytes of another encoding."""
    return str(attributes.get(tag, b"").decode(encoding).strip("\0 "))


def decimals(attributes: Attributes, tag: int) -> NDArray[np.float64]:
    """Shape (n,): the numbers of a decimal or integer string. Raises GeometryProofError where it is absent."""
    return np.array([float(part) for part in needed(attributes, tag).split(b"\\")])


def whole(attributes: Attributes, tag: int) -> int:
    """The number of a US. Raises GeometryProofError where it is absent."""
    return int(_SHORT.unpack(needed(attributes, tag)[:2])[0])


def integer(attributes: Attributes, tag: int) -> int:
    """The number of an integer string. Raises GeometryProofError where it is absent."""
    return int(needed(attributes, tag).strip(b" \0"))


def first_item(attributes: Attributes, tag: int) -> Attributes:
    """The first item of a sequence. Raises GeometryProofError where there is none."""
    sequence = items(attributes, tag)
    if not sequence:
        raise GeometryProofError(f"the attribute {tag:08X} is missing in the written file")
    return sequence[0]


def instance_key(item: Attributes) -> str:
    """The key of the image that a reference names (PS3.3 10-3), as `Slice.key`: SOP Instance UID, then "#frame" if any."""
    frame = text(item, _REFERENCED_FRAME)
    return text(item, _REFERENCED_INSTANCE) + (f"#{int(frame)}" if frame else "")


def items(attributes: Attributes, *tags: int) -> list[Attributes]:
    """The items of a sequence, below the first items of others; none where it is absent."""
    level = [attributes]
    for tag in tags:
        level = level[0].get(tag, []) if level else []
    return level


def needed(attributes: Attributes, tag: int) -> bytes:
    """A value as its bytes. Raises GeometryProofError where it is absent or empty."""
    if not attributes.get(tag):
        raise GeometryProofError(f"the attribute {tag:08X} is missing in the written file")
    return bytes(attributes[tag])


def _data_set(content: bytes, at: int, end: int, only_group: int | None = None) -> tuple[Attributes, int]:
    """The attributes from a byte on, and the byte after them: the end, a delimiter, or another group."""
    attributes: Attributes = {}
    while at + 8 <= end:
        group, element, kind = _HEAD.unpack_from(content, at)
        tag = group << 16 | element
        if tag == _ITEM_END:
            return attributes, at + 8
        if only_group is not None and group != only_group:
            return attributes, at
        if kind in _LONG:  # PS3.5 table 7.1-1: two reserved bytes, then 32 bits of length
            length, at = _WIDE.unpack_from(content, at + 8)[0], at + 12
        else:
            length, at = _SHORT.unpack_from(content, at + 6)[0], at + 8
        if kind == b"SQ":
            attributes[tag], at = _sequence(content, at, length)
        # Of our own files only encapsulated pixels have an undefined length beside sequences (PS3.5 A.4).
        elif length == _UNDEFINED:
            attributes[tag], at = _fragments(content, at)
        else:
            value = memoryview(content) if tag == _PIXEL_DATA else content
            attributes[tag], at = value[at : at + length], at + length
        if at > end:
            raise ValueError(f"the attribute {tag:08X} runs past the end")
    return attributes, at


def _sequence(content: bytes, at: int, length: int) -> tuple[list[Attributes], int]:
    sequence: list[Attributes] = []
    end = len(content) if length == _UNDEFINED else at + length
    while at + 8 <= end:
        tag, size = _item_head(content, at)
        at += 8
        if tag == _SEQUENCE_END:
            return sequence, at
        if tag != _ITEM:
            raise ValueError(f"no item at byte {at - 8}")
        item, after = _data_set(content, at, end if size == _UNDEFINED else at + size)
        sequence.append(item)
        at = after if size == _UNDEFINED else at + size
    return sequence, at


def _item_head(content: bytes, at: int) -> tuple[int, int]:
    """Tag and length of an item or of a delimiter."""
    group, element, size = struct.unpack_from("<HHL", content, at)
    return group << 16 | element, size


def _fragments(content: bytes, at: int) -> tuple[list[bytes], int]:
    """The pieces of encapsulated pixels, the offset table first."""
    fragments: list[bytes] = []
    while True:
        tag, size = _item_head(content, at)
        if tag == _SEQUENCE_END:
            return fragments, at + 8
        fragments.append(content[at + 8 : at + 8 + size])
        at += 8 + size


def referenced_uids(attributes: Attributes) -> Iterator[str]:
    """Every ReferencedSOPInstanceUID below."""
    for tag, value in attributes.items():
        if tag == _REFERENCED_INSTANCE:
            yield text(attributes, tag)
        elif isinstance(value, list):
            for item in value:
                if isinstance(item, dict):
                    yield from referenced_uids(item)
