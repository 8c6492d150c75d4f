"""Reads the UIDs of a received file to its last byte, and compares two files.

The cost of reading is bounded as in `reading.bounded`: items are counted. A deflated data set may become MOST_RATIO times its
size (a small data set SMALL_BYTES), and no more than an instance may have. It is inflated piece by piece; no whole instance
lies in memory.
"""

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.filereader import data_element_generator
from pydicom.tag import Tag
from pydicom.uid import UID

from dicom_io.errors import RefusedError, UnreadableFileError
from dicom_io.reading.bounded import MAX_INFLATED_BYTES, BoundedFile, InflatedTooLargeError, parse, transfer_syntax
from dicom_io.reading.headers import is_uid
from dicom_io.reading.instances import READ_ERRORS, load_dataset

MOST_RATIO = 100
"""How many times its size a deflated data set may become."""

SMALL_BYTES = 2**28
"""Bytes that any deflated data set may become, however small it is: a mask shrinks to a thousandth."""

CANNOT_UNDERSTAND = 0xC000  # PS3.4 B.2.3
DUPLICATE_INSTANCE = 0x0111  # PS3.7 C.5.6

_UNDEFINED_LENGTH = 0xFFFFFFFF
_SOP_CLASS = 0x00080016
_KEYWORDS = {
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
    0x00080018: "SOPInstanceUID",
    _SOP_CLASS: "SOPClassUID",
}
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_PREFIX_AT, _PREFIX = 128, b"DICM"
_PIECE_BYTES = 2**20
_LARGEST_HEADER = 2**26  # bytes; larger headers are not compared attribute by attribute
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"OV", b"UN")  # of pixels; PS3.5 7.1.2

_reading = threading.Lock()  # one data set is parsed at a time, because its items may fill much memory


@dataclass
class Allowance:
    """What reading may still cost for objects that came together, such as the members of an archive.

    Attributes:
        inflated_bytes: Bytes that their deflated data sets may become.
        pieces: Pieces that may be read of their headers; as `BoundedFile.pieces_left`.
    """

    inflated_bytes: float
    pieces: int


class InstanceRefusedError(RefusedError):
    """An instance was not kept."""


class InstanceUids(NamedTuple):
    """The UIDs of an instance."""

    study: str
    series: str
    instance: str
    sop_class: str


def read_uids(
    file: Path, announced: str | None = None, most_bytes: float = math.inf, allowance: Allowance | None = None
) -> InstanceUids:
    """The UIDs of a whole file, which is read to its end.

    Args:
        file: An instance.
        announced: The SOPInstanceUID that it must have; None for any.
        most_bytes: Most bytes that a deflated data set may become.
        allowance: Limits the reading further; the cost is subtracted from it.

    Raises:
        InstanceRefusedError: The file is not whole, or a UID is invalid. The message does not repeat the value, which may be
            anything.
    """
    try:
        with BoundedFile(file) as opened, _reading, _charged(opened, allowance):
            most = most_bytes if allowance is None else min(most_bytes, max(allowance.inflated_bytes, 0))
            values = _read_to_the_end(file, opened, most)
    except InflatedTooLargeError as error:
        raise InstanceRefusedError(CANNOT_UNDERSTAND, f"the data set is refused: {error}") from error
    except READ_ERRORS as error:
        raise InstanceRefusedError(
            CANNOT_UNDERSTAND, f"the data set cannot be read ({type(error).__name__})"
        ) from error
    for tag, keyword in _KEYWORDS.items():
        if not is_uid(values.get(tag, "")):
            raise InstanceRefusedError(CANNOT_UNDERSTAND, f"{keyword} is not a UID")
    uids = InstanceUids(*(values[tag] for tag in _KEYWORDS))
    if announced not in (None, uids.instance):
        raise InstanceRefusedError(CANNOT_UNDERSTAND, "the data set has another SOPInstanceUID than the request")
    return uids


@contextlib.contextmanager
def _charged(file: BoundedFile, allowance: Allowance | None) -> Iterator[None]:
    """Limits the pieces that are read of a file to an allowance, and subtracts the cost from it, also after an error."""
    if allowance is None:
        yield
        return
    begin = file.pieces_left = max(min(file.pieces_left, allowance.pieces), 0)
    try:
        yield
    finally:
        allowance.pieces -= begin - file.pieces_left
        allowance.inflated_bytes -= file.inflated_bytes


def _read_to_the_end(path: Path, file: BoundedFile, most_bytes: float) -> dict[int, str]:
    """Tag -> the UIDs as they stand in the bytes; every element is visited.

    pydicom accepts a data set that is cut short, and it logs an invalid UID; a receiver must do neither.

    Raises:
        EOFError: The last element does not end where the bytes end, or an image has no pixels. Others of `READ_ERRORS`
            where the bytes make no sense, or cost more than is allowed.
    """
    syntax, stream, start = _parsed(path, file, most_bytes)
    size = stream.seek(0, os.SEEK_END)
    stream.seek(start)
    end, tags, uids = 0, set[int](), dict[int, str]()
    for element in data_element_generator(stream, syntax.is_implicit_VR, syntax.is_little_endian, defer_size=1024):
        # pydicom steps over a long value (`defer_size`) even where the bytes end within it. So the end of an element
        # follows from its length, not from the position of the stream.
        measured = isinstance(element, RawDataElement) and element.length != _UNDEFINED_LENGTH
        end = element.value_tell + element.length if measured else stream.tell()  # type: ignore[union-attr]
        tags.add(int(element.tag))
        if int(element.tag) in _KEYWORDS and isinstance(element.value, bytes):
            uids[int(element.tag)] = element.value.decode("ascii").rstrip("\0 ")
    # Bytes that end between two elements look whole; an image without pixels shows that they were cut.
    is_image = UID(uids.get(_SOP_CLASS, "")).name.endswith("Image Storage")
    if end != size or (is_image and not tags & _PIXELS):
        raise EOFError(f"the last element ends at byte {end} of {size}, or pixels are missing")
    return uids


def _parsed(path: Path, file: BoundedFile, most_bytes: float = math.inf) -> tuple[UID, BinaryIO, int]:
    """The transfer syntax of a file, the stream of its data set (the file itself, or its inflated bytes), and where it begins.

    Raises:
        ValueError: Not a file of PS3.10, or its data set becomes too large; others of `READ_ERRORS`.
    """
    file.seek(_PREFIX_AT)
    if file.read(len(_PREFIX)) != _PREFIX:
        raise ValueError("no DICM prefix")
    if not transfer_syntax(file):  # else the rest would be read in very small pieces
        raise ValueError("no transfer syntax")
    most = min(most_bytes, MAX_INFLATED_BYTES, max(SMALL_BYTES, MOST_RATIO * file.size))
    header, stream = parse(path, file, tags=[Tag(_SOP_CLASS)], last=_SOP_CLASS, max_inflated=most)
    return header.file_meta.TransferSyntaxUID, stream, data_set_start(header) if stream is file else 0


def data_set_start(header: FileDataset) -> int:
    """Byte of a file at which the data set begins, after preamble, prefix and file meta information (PS3.10 7.1)."""
    # Preamble and prefix have 128 + 4 bytes. The group length is an element of 12 bytes (tag 4, VR 2, length 2, value
    # 4), and its value counts the bytes after itself.
    return 132 + 12 + int(header.file_meta.FileMetaInformationGroupLength)


def has_same_data_set(stored: Path, new: Path) -> bool:
    """Whether two files hold the same data set; the file meta information may differ, and so may the encoding.

    Only the elements before the pixels are read into memory, and only if they are as small as a header.
    """
    try:
        with BoundedFile(stored) as stored_file, BoundedFile(new) as new_file:
            with _reading:
                first, second = _Layout.of(stored, stored_file), _Layout.of(new, new_file)
            # Most duplicates have equal bytes, which are compared without decoding. Only for other bytes are the
            # elements compared, because the encoding may be another.
            if _has_same_bytes(first.stream, first.start, second.stream, second.start):
                return True
            with _reading:
                if max(layout.pixels - layout.start for layout in (first, second)) > _LARGEST_HEADER:
                    return False
                if load_dataset(stored) != load_dataset(new):
                    return False
            return _has_same_bytes(first.stream, first.values, second.stream, second.values)
    except (UnreadableFileError, *READ_ERRORS):  # type: ignore[misc]  # the kept file was not written by this package
        return False


@dataclass(frozen=True)
class _Layout:
    """Bytes of a stream at which the parts of a data set begin: the data set, the element of the pixels, and its value."""

    stream: BinaryIO
    start: int
    pixels: int
    values: int

    @classmethod
    def of(cls, path: Path, file: BoundedFile) -> "_Layout":
        syntax, stream, start = _parsed(path, file)
        stream.seek(start)
        for _ in data_element_generator(
            stream, syntax.is_implicit_VR, syntax.is_little_endian, lambda tag, *_: tag in _PIXELS, defer_size=1024
        ):
            pass
        pixels = stream.tell()
        is_long = not syntax.is_implicit_VR and stream.read(6)[4:] in _LONG_VRS
        # The header of an element has 12 bytes with a long explicit VR, else 8 (PS3.5 7.1.2 and 7.1.3).
        return cls(stream, start, pixels, pixels + (12 if is_long else 8))


def _has_same_bytes(first: BinaryIO, start: int, second: BinaryIO, begin: int) -> bool:
    """Whether `first` from `start` on and `second` from `begin` on hold the same bytes; read piece by piece."""
    if first.seek(0, os.SEEK_END) - start != second.seek(0, os.SEEK_END) - begin:
        return False
    first.seek(start)
    second.seek(begin)
    while piece := first.read(_PIECE_BYTES):
        if piece != second.read(_PIECE_BYTES):
            return False
    return True
