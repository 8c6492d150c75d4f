"""Pieces of a DICOM file: small data sets, and bytes (explicit VR, little endian) for what would be too many data sets.

Source: DICOM PS3.5, 7.1.2 and 7.5.
"""

import struct
from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset


def data_set(**attributes: object) -> Dataset:
    """A data set with some attributes, by their keywords."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def encoded(dataset: Dataset, character_set: str | Sequence[str] = "iso8859") -> bytes:
    """The attributes as the bytes that stand in a file.

    Args:
        dataset: Without file meta information.
        character_set: Of its text, where it names none itself.
    """
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset, character_set)  # type: ignore[arg-type]
    return buffer.getvalue()


def element(tag: int, kind: bytes, value: bytes) -> bytes:
    """An attribute of a text or sequence VR; a value that is too long for its representation becomes UN (PS3.5 6.2.2)."""
    # Values have an even number of bytes: text is padded with a space, a UID with a null byte (PS3.5 6.2).
    value += (b"\0" if kind == b"UI" else b" ") * (len(value) % 2)
    # PS3.5 7.1.2: text has 16 bits of length; SQ and UN have two reserved bytes, then 32 bits.
    if kind != b"SQ" and len(value) <= 0xFFFF:
        return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, kind, len(value)) + value
    return struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, b"SQ" if kind == b"SQ" else b"UN", 0, len(value)) + value


def item(content: bytes) -> bytes:
    """An item of a sequence with its length."""
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content
