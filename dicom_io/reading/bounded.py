"""Bytes of a file -> a pydicom data set, at a cost that the size of the file bounds.

pydicom takes a header at its word: a length of 4 GiB is allocated before a byte is read, a deflated data set is inflated
whatever it becomes, and an empty item of 8 bytes costs a hundred times its size. A small file must cost neither gigabytes
nor minutes, so a file is read through `BoundedFile`, inflated here, and its items are counted before they are made.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_partial, read_preamble
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian
from pydicom.valuerep import VR

MAX_ITEMS = 250_000
"""The most items of sequences in one file, enough for a segmentation of 30,000 frames; pydicom takes some seconds for them."""

MAX_PIECES = 10 * MAX_ITEMS
"""The most pieces (tag, length, value) that a header is read in."""

PIECES_PER_BYTE = 4
"""The most of them for each byte of a file: without deflation there cannot be one for each, and the header of a segmentation
of 600 frames, deflated as far as it can be, has 1.1."""

FEW_PIECES = 100_000
"""As many as any file may have, however small it is."""

MAX_INFLATED_BYTES = 2**30
"""The most bytes that a deflated data set may become."""

MAX_UID_BYTES = 128
"""The longest UID; the standard has 64."""

_SOME = _HEAD_BYTES = 1 << 16
_INFLATED_AT_ONCE = 1 << 20
_INFLATED_IN_MEMORY = 1 << 24  # what is more lies on the disk
_ITEMS = (b"\xff\xfe\xe0\x00", b"\xfe\xff\x00\xe0")  # in big and in little endian
_ITEM_BYTES = 8  # tag and length
_LONGEST_TAG = 12  # with VR and length
_META_GROUP, _TRANSFER_SYNTAX, _PIXEL_GROUP = 0x0002, 0x0010, 0x7FE0
_META_UIDS = (0x0002, 0x0003, _TRANSFER_SYNTAX, 0x0012, 0x0100)
_PREAMBLE_BYTES, _MARK = 128, b"DICM"
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV")  # PS3.5 7.1.2
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_MAY_HOLD_ITEMS = (None, "SQ", "UN")
_KNOWN_VRS = frozenset([None, *VR])
Stop = Callable[[BaseTag, str | None, int], bool]


class _Counted:
    """Counts what pydicom reads of a header, one piece at a time; ValueError once it is too much."""

    pieces_left, items_left = MAX_PIECES, MAX_ITEMS

    def counted(self, piece: bytes) -> bytes:
        """The piece itself."""
        self.pieces_left -= 1
        if len(piece) == _ITEM_BYTES and piece[:4] in _ITEMS:
            self.items_left -= 1
        if self.pieces_left < 0 or self.items_left < 0:
            raise ValueError("its header has more items or pieces than a file of its size may have")
        return piece


class NoRegularFileError(OSError):
    """A pipe, a socket, a device or a folder: reading it may never end, or wait for ever."""


class InflatedTooLargeError(ValueError):
    """A deflated data set becomes more than may be inflated."""


class BoundedFile(_Counted, io.BufferedReader):
    """A regular file that sets aside no more memory than it has bytes. Raises NoRegularFileError for anything else.

    Attributes:
        size: In bytes.
        pieces_left: How many more pieces may be read of it, or of what is inflated of it.
        inflated_bytes: How much has been inflated of it so far.
    """

    def __init__(self, path: Path) -> None:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise NoRegularFileError("not a regular file")
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size
        self.pieces_left = min(self.pieces_left, max(FEW_PIECES, PIECES_PER_BYTE * self.size))
        self.inflated_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes. Raises ValueError for all that is left: pydicom asks for that only to inflate it."""
        if size is None or size < 0:
            raise ValueError("its file meta information does not name its transfer syntax as it should")
        return self.counted(super().read(size if size < _SOME else min(size, max(self.size - self.tell(), 0))))

    def rest(self) -> bytes:
        """All that is left."""
        return super().read()

    def some(self, size: int) -> bytes:
        """At most so many bytes, which are not counted as a piece of a header."""
        return super().read(size)


class _BoundedBytes(io.BytesIO):
    """What was inflated of a file, whose count goes on."""

    def __init__(self, content: bytes, file: BoundedFile) -> None:
        super().__init__(content)
        self._counted = file.counted

    def read(self, size: int | None = -1, /) -> bytes:
        return self._counted(super().read(size))


class _Inflating(io.BufferedIOBase):
    """A deflated data set, inflated as far as it is read; what is more than some megabytes lies in a file without a name.
    Its pieces are counted with those of its file.

    Attributes:
        size: Of the whole when inflated, in bytes; found out first.
    """

    def __init__(self, file: BoundedFile, most_bytes: float, folder: Path) -> None:
        """From where the file stands. Raises as `inflated`."""
        begin, self._counted = file.tell(), file.counted
        for piece in _pieces(file.some, most_bytes):
            file.inflated_bytes += len(piece)
        self.size = file.inflated_bytes
        file.seek(begin)
        self._pieces, self._count, self._at = _pieces(file.some, most_bytes), 0, 0
        place = str(folder) if os.access(folder, os.W_OK) else None
        self._kept = tempfile.SpooledTemporaryFile(_INFLATED_IN_MEMORY, dir=place)  # noqa: SIM115 - `close` closes it

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self.size - self._at, 0)
        size = left if size is None or size < 0 else min(size, left)
        if self._count < self._at + size:
            self._kept.seek(self._count)
            while self._count < self._at + size:
                self._count += self._kept.write(next(self._pieces))
        self._kept.seek(self._at)
        found = self._kept.read(size)
        self._at += len(found)
        return self._counted(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._kept.close()
        super().close()


def parse(
    path: Path,
    file: BoundedFile,
    *,
    with_pixels: bool,
    tags: Sequence[BaseTag] | None = None,
    last: int | None = None,
    most_inflated: float | None = None,
) -> tuple[FileDataset, BinaryIO]:
    """The data set of a file with or without preamble and file meta information.

    Args:
        path: Of the file.
        file: Open, anywhere.
        with_pixels: Read on to its end.
        tags: Only these attributes; None for all.
        last: No attribute after this tag.
        most_inflated: Bytes that a deflated data set may become; None: MAX_INFLATED_BYTES.

    Returns:
        The data set, and what stands where its reading ended: the file, or its inflated data set.

    Raises:
        ValueError: Too many items or pieces, or too large when inflated; see also `instances.READ_ERRORS`.
    """
    stop = _stop(with_pixels, last)
    only: list[BaseTag | int] | None = None if tags is None else list(tags)
    stream: BinaryIO = file
    if transfer_syntax(file) == DeflatedExplicitVRLittleEndian:
        dataset, stream = _deflated(path, file, stop, only, most_inflated)
    else:
        small = None if with_pixels else _from_head(file, stop, only)
        file.seek(0 if small is None else small[1])
        dataset = read_partial(file, stop, force=True, specific_tags=only) if small is None else small[0]
    _check_items(dataset.values())
    _name_representations(dataset)
    return dataset, stream


def _from_head(
    file: BoundedFile, stop: Stop | None, tags: list[BaseTag | int] | None
) -> tuple[FileDataset, int] | None:
    """The data set, and the byte where its reading ended, if that lies within the file's first bytes; else None.

    So few bytes cannot cost much, so nothing of them is counted, which takes a third of the time of most headers.
    """
    file.seek(0)
    head = io.BytesIO(file.read(_HEAD_BYTES))
    try:
        dataset = read_partial(head, stop, force=True, specific_tags=tags)
    except Exception:  # whatever it is, it comes again when the file is read
        return None
    end = head.tell()
    is_inside = end + _LONGEST_TAG <= len(head.getbuffer())
    dataset.buffer = None
    return (dataset, end) if is_inside or end == file.size else None


def transfer_syntax(file: BoundedFile) -> str:
    """The transfer syntax that the file meta information names; empty where it names none (PS3.10 7.1).

    Raises:
        ValueError: A UID there is none by its length: pydicom would take whatever follows for a part of it.
    """
    file.seek(0)
    if file.read(_PREAMBLE_BYTES + len(_MARK))[_PREAMBLE_BYTES:] != _MARK:
        file.seek(0)
    found = ""
    while len(head := file.read(8)) == 8:
        group, element, vr, length = struct.unpack("<HH2sH", head)
        if group != _META_GROUP:
            break
        if vr in _LONG_VRS:
            length = int.from_bytes(file.read(4), "little")
        elif not b"AA" <= vr <= b"ZZ":  # implicit VR, which some writers use here too
            length = int.from_bytes(head[4:], "little")
        if (vr == b"UI" or element in _META_UIDS) and length > MAX_UID_BYTES:
            raise ValueError(f"its file meta information has a UID of {length} bytes")
        if element == _TRANSFER_SYNTAX:
            found = file.read(length).decode("latin-1").rstrip("\0 ")
        else:
            file.seek(length, os.SEEK_CUR)
    return found


def _stop(with_pixels: bool, last: int | None) -> Stop | None:
    if last is not None:
        return lambda tag, vr, length: tag > last
    return None if with_pixels else lambda tag, vr, length: tag in _PIXELS


def _deflated(
    path: Path, file: BoundedFile, stop: Stop | None, tags: list[BaseTag | int] | None, most: float | None
) -> tuple[FileDataset, BinaryIO]:
    """The data set of a file whose transfer syntax is the deflated one (PS3.5 A.5); all of it is in memory only if `stop` is
    None."""
    file.seek(0)
    preamble = read_preamble(file, force=True)
    meta = FileMetaDataset(read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != _META_GROUP))
    stream: BinaryIO
    if stop is None:
        stream = _BoundedBytes(inflated(file.rest()), file)
    else:
        stream = cast(BinaryIO, _Inflating(file, MAX_INFLATED_BYTES if most is None else most, path.parent))
    dataset = read_dataset(stream, False, True, stop_when=stop, specific_tags=tags)
    whole = FileDataset(str(path), dataset, preamble, meta, is_implicit_VR=False, is_little_endian=True)
    whole.set_original_encoding(False, True, dataset.original_character_set)
    return whole, stream


def inflated(content: bytes) -> bytes:
    """What was deflated (RFC 1951). Its size is found out first, so that too much is refused before it takes memory.

    Bytes behind its end are not looked at.

    Raises:
        InflatedTooLargeError: It becomes more than MAX_INFLATED_BYTES.
        zlib.error: It is broken or ends early.
    """
    size = sum(map(len, _pieces(io.BytesIO(content).read, MAX_INFLATED_BYTES)))
    return zlib.decompress(content, -zlib.MAX_WBITS, bufsize=max(size, 1))


def _pieces(read: Callable[[int], bytes], most_bytes: float) -> Iterator[bytes]:
    """What was deflated, of which `read` gives the next bytes, in pieces of at most a megabyte. Raises as `inflated`."""
    machine, size, taken = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    while not machine.eof:
        piece, is_full = read(_SOME), True
        taken += len(piece)
        if not piece:
            raise zlib.error("the deflated data set ends early")
        while (piece or is_full) and not machine.eof:  # full: there may be more of what it has been given
            found = machine.decompress(piece, _INFLATED_AT_ONCE)
            piece, is_full = machine.unconsumed_tail, len(found) == _INFLATED_AT_ONCE
            size += len(found)
            if size > most_bytes:
                raise InflatedTooLargeError(
                    f"its {taken} or more deflated bytes become more than {most_bytes:.0f}, the most that are inflated"
                )
            yield found


def _name_representations(dataset: FileDataset) -> None:
    """Gives attributes whose two letters are no value representation that of the dictionary, or UN: pydicom reads none else."""
    for tag in dataset.keys():  # noqa: SIM118 - to take the elements would convert them
        element = dataset.get_item(tag)
        if isinstance(element, RawDataElement) and element.VR not in _KNOWN_VRS:
            known = dictionary_VR(tag) if dictionary_has_tag(tag) else "UN"
            dataset[tag] = element._replace(VR=known)


def _check_items(elements: Iterable[object]) -> None:
    """Passes sequences, not yet taken apart, of no more than MAX_ITEMS items in all; else ValueError."""
    count = 0
    for element in elements:
        if isinstance(element, RawDataElement) and element.VR in _MAY_HOLD_ITEMS and element.value:
            count += element.value.count(_ITEMS[element.is_little_endian]) if element.tag.group != _PIXEL_GROUP else 0
    if count > MAX_ITEMS:
        raise ValueError(f"its sequences have more than {MAX_ITEMS} items")
