"""Bytes of a file -> a pydicom data set, with time and memory bounded by the size of the file.

pydicom believes a header: it allocates a length of 4 GiB before it reads a byte, it inflates a deflated data set whatever its
size becomes, and an empty item of 8 bytes costs a hundred times its size. A small file must cost neither gigabytes nor minutes.
So a file is read through `BoundedFile`, it is inflated here, and its items are counted before pydicom makes them.
"""

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
"""The most pieces of a header (tag, length, value), each of which pydicom reads by itself."""

PIECES_PER_BYTE = 4
"""The most pieces for each byte of a file. Without deflation there is less than one for each byte, and in the header of a
segmentation of 600 frames at the highest deflation there are 1.1."""

FEW_PIECES = 100_000
"""The number of pieces that a file of any size may have."""

MAX_INFLATED_BYTES = 2**30
"""The most bytes that a deflated data set may become."""

MAX_UID_BYTES = 128
"""The longest UID that is read; the standard has 64."""

_CHUNK_BYTES = _HEAD_BYTES = 1 << 16
_INFLATED_CHUNK_BYTES = 1 << 20
_INFLATED_IN_MEMORY = 1 << 24  # larger data sets are kept on the disk
_ITEMS = (b"\xff\xfe\xe0\x00", b"\xfe\xff\x00\xe0")  # in big and in little endian
_ITEM_BYTES = 8  # tag and length
_LONGEST_TAG = 12  # with VR and length
_META_GROUP, _TRANSFER_SYNTAX, _PIXEL_GROUP = 0x0002, 0x0010, 0x7FE0
_META_UIDS = (0x0002, 0x0003, _TRANSFER_SYNTAX, 0x0012, 0x0100)
_PREAMBLE_BYTES, _PREFIX = 128, b"DICM"
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV")  # PS3.5 7.1.2
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_MAY_HOLD_ITEMS = (None, "SQ", "UN")
_KNOWN_VRS = frozenset([None, *VR])
StopRule = Callable[[BaseTag, str | None, int], bool]


class NoRegularFileError(OSError):
    """A pipe, a socket, a device or a folder: to read it could take for ever."""


class InflatedTooLargeError(ValueError):
    """A deflated data set becomes larger than is allowed."""


class BoundedFile(io.BufferedReader):
    """A regular file that allocates no more memory than it has bytes, and counts the pieces that pydicom reads of its header.
    Raises NoRegularFileError for anything else.

    Attributes:
        size: In bytes.
        pieces_left: How many more pieces may be read, from the file or from its inflated data set.
        inflated_bytes: How many bytes have been inflated so far.
    """

    items_left = MAX_ITEMS

    def __init__(self, path: Path) -> None:
        # This is asked before the file is opened: to open a pipe waits until some program writes into it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise NoRegularFileError("not a regular file")
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size
        self.pieces_left = min(MAX_PIECES, max(FEW_PIECES, PIECES_PER_BYTE * self.size))
        self.inflated_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes. Raises ValueError without a size: pydicom asks for the whole file only to inflate it."""
        if size is None or size < 0:
            raise ValueError("its file meta information does not name its transfer syntax correctly")
        # Python allocates the stated size before it reads. Less than a chunk costs little; `tell` takes time.
        return self.count_piece(
            super().read(size if size < _CHUNK_BYTES else min(size, max(self.size - self.tell(), 0)))
        )

    def count_piece(self, piece: bytes) -> bytes:
        """The piece itself. Raises ValueError once there are too many pieces or items."""
        self.pieces_left -= 1
        if len(piece) == _ITEM_BYTES and piece[:4] in _ITEMS:
            self.items_left -= 1
        if self.pieces_left < 0 or self.items_left < 0:
            raise ValueError("its header has more items or pieces than a file of its size may have")
        return piece

    def read_uncounted(self, size: int) -> bytes:
        """At most `size` bytes, without counting them as a piece of a header."""
        return super().read(size)


class _BoundedBytes(io.BytesIO):
    """The inflated data set of a file, whose pieces are counted with those of the file."""

    def __init__(self, content: bytes, file: BoundedFile) -> None:
        super().__init__(content)
        self._count_piece = file.count_piece

    def read(self, size: int | None = -1, /) -> bytes:
        return self._count_piece(super().read(size))


class _Inflating(io.BufferedIOBase):
    """A deflated data set that is inflated as far as it is read, in memory up to some megabytes, then in a temporary file.
    Its pieces are counted with those of its file.

    Attributes:
        size: Of the whole inflated data set, in bytes.
    """

    def __init__(self, file: BoundedFile, max_bytes: float, folder: Path) -> None:
        """Inflates from the file's position on, once to learn the size. Raises as `inflate`."""
        begin, self._count_piece = file.tell(), file.count_piece
        for chunk in _inflated_chunks(file.read_uncounted, max_bytes):
            file.inflated_bytes += len(chunk)
        self.size = file.inflated_bytes
        file.seek(begin)
        self._chunks, self._count, self._at = _inflated_chunks(file.read_uncounted, max_bytes), 0, 0
        writable = str(folder) if os.access(folder, os.W_OK) else None
        self._kept = tempfile.SpooledTemporaryFile(_INFLATED_IN_MEMORY, dir=writable)  # noqa: SIM115 - `close` closes it

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self.size - self._at, 0)
        size = left if size is None or size < 0 else min(size, left)
        # The temporary file has one position for reading and writing, so it is set before each of them.
        if self._count < self._at + size:
            self._kept.seek(self._count)
            while self._count < self._at + size:
                self._count += self._kept.write(next(self._chunks))
        self._kept.seek(self._at)
        piece = self._kept.read(size)
        self._at += len(piece)
        return self._count_piece(piece)

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
    with_pixels: bool = False,
    tags: Sequence[BaseTag] | None = None,
    last: int | None = None,
    max_inflated: float | None = None,
) -> tuple[FileDataset, BinaryIO]:
    """The data set of a file with or without preamble and file meta information.

    Args:
        path: Of the file.
        file: The open file, at any position.
        with_pixels: Read to the end, pixels included.
        tags: Only these attributes; None for all.
        last: No attribute after this tag; None for all.
        max_inflated: Bytes that a deflated data set may become; None for MAX_INFLATED_BYTES.

    Returns:
        The data set, and the stream at the byte where reading ended: the file, or its inflated data set.

    Raises:
        ValueError: Too many items or pieces, or too large when inflated; see also `instances.READ_ERRORS`.
    """
    stop = _stop_rule(with_pixels, last)
    only: list[BaseTag | int] | None = None if tags is None else list(tags)
    stream: BinaryIO = file
    # pydicom would inflate a deflated data set at once, whatever its size becomes, so the syntax is asked for before.
    if transfer_syntax(file) == DeflatedExplicitVRLittleEndian:
        dataset, stream = _parse_deflated(path, file, stop, only, max_inflated)
    elif not with_pixels and (from_head := _parse_head(file, stop, only)):
        dataset, end = from_head
        file.seek(end)
    else:
        file.seek(0)
        dataset = read_partial(file, stop, force=True, specific_tags=only)
    # Sequences of a stated length are still bytes here; the items of the others were counted when pydicom read them.
    _check_items(dataset.values())
    _name_representations(dataset)
    return dataset, stream


def _parse_head(
    file: BoundedFile, stop: StopRule | None, tags: list[BaseTag | int] | None
) -> tuple[FileDataset, int] | None:
    """The data set, and the byte where reading ended, if that is within the first bytes of the file; else None.

    So few bytes cannot cost much, so their pieces are not counted: counting takes a third of the time of most headers.
    """
    file.seek(0)
    head = io.BytesIO(file.read(_HEAD_BYTES))
    try:
        dataset = read_partial(head, stop, force=True, specific_tags=tags)
    except Exception:  # it is raised again when the whole file is read
        return None
    end = head.tell()
    # Nearer to the end of the head, the next tag may be cut, and pydicom takes that for the end of the file.
    is_inside = end + _LONGEST_TAG <= len(head.getbuffer())
    # Otherwise the data set keeps the head in memory.
    dataset.buffer = None
    return (dataset, end) if is_inside or end == file.size else None


def transfer_syntax(file: BoundedFile) -> str:
    """The transfer syntax that the file meta information names; empty if it names none (PS3.10 7.1).

    Raises:
        ValueError: A UID there is too long: pydicom would read the attributes after it as a part of it.
    """
    file.seek(0)
    if file.read(_PREAMBLE_BYTES + len(_PREFIX))[_PREAMBLE_BYTES:] != _PREFIX:
        file.seek(0)
    syntax = ""
    while len(head := file.read(8)) == 8:
        group, element, vr, length = struct.unpack("<HH2sH", head)
        if group != _META_GROUP:
            break
        # PS3.5 7.1.2: the two bytes read as a length are reserved, and the length of four bytes follows.
        if vr in _LONG_VRS:
            length = int.from_bytes(file.read(4), "little")
        elif not b"AA" <= vr <= b"ZZ":  # implicit VR, which some writers use here too
            length = int.from_bytes(head[4:], "little")
        if (vr == b"UI" or element in _META_UIDS) and length > MAX_UID_BYTES:
            raise ValueError(f"its file meta information has a UID of {length} bytes")
        if element == _TRANSFER_SYNTAX:
            syntax = file.read(length).decode("latin-1").rstrip("\0 ")
        else:
            file.seek(length, os.SEEK_CUR)
    return syntax


def _stop_rule(with_pixels: bool, last: int | None) -> StopRule | None:
    if last is not None:
        return lambda tag, vr, length: tag > last
    return None if with_pixels else lambda tag, vr, length: tag in _PIXELS


def _parse_deflated(
    path: Path, file: BoundedFile, stop: StopRule | None, tags: list[BaseTag | int] | None, max_bytes: float | None
) -> tuple[FileDataset, BinaryIO]:
    """The data set of a file in the deflated transfer syntax (PS3.5 A.5); the whole of it is in memory only without `stop`."""
    file.seek(0)
    preamble = read_preamble(file, force=True)
    meta = FileMetaDataset(read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != _META_GROUP))
    stream: BinaryIO
    if stop is None:
        stream = _BoundedBytes(inflate(file.read_uncounted(file.size)), file)
    else:
        stream = cast(BinaryIO, _Inflating(file, MAX_INFLATED_BYTES if max_bytes is None else max_bytes, path.parent))
    dataset = read_dataset(stream, False, True, stop_when=stop, specific_tags=tags)
    whole = FileDataset(str(path), dataset, preamble, meta, is_implicit_VR=False, is_little_endian=True)
    whole.set_original_encoding(False, True, dataset.original_character_set)
    return whole, stream


def inflate(content: bytes) -> bytes:
    """The bytes that were deflated (RFC 1951); bytes behind the end of the deflated stream are ignored.

    The content is inflated twice, first for its size, so that a content that is too large is refused before it takes memory.

    Raises:
        InflatedTooLargeError: It becomes more than MAX_INFLATED_BYTES.
        zlib.error: It is broken or ends early.
    """
    size = sum(map(len, _inflated_chunks(io.BytesIO(content).read, MAX_INFLATED_BYTES)))
    # With the size known, the buffer never grows: a buffer that grows is copied.
    return zlib.decompress(content, -zlib.MAX_WBITS, bufsize=max(size, 1))


def _inflated_chunks(read: Callable[[int], bytes], max_bytes: float) -> Iterator[bytes]:
    """Inflated bytes in chunks of at most a megabyte; `read` gives the next deflated bytes. Raises as `inflate`."""
    # A negative size of the window: the bytes are deflated without the header and checksum of zlib (RFC 1951).
    inflater, size, taken = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0
    while not inflater.eof:
        deflated, is_full = read(_CHUNK_BYTES), True
        taken += len(deflated)
        if not deflated:
            raise zlib.error("the deflated data set ends early")
        while (deflated or is_full) and not inflater.eof:  # after a full chunk the inflater may hold more bytes
            chunk = inflater.decompress(deflated, _INFLATED_CHUNK_BYTES)
            deflated, is_full = inflater.unconsumed_tail, len(chunk) == _INFLATED_CHUNK_BYTES
            size += len(chunk)
            if size > max_bytes:
                raise InflatedTooLargeError(
                    f"its {taken} or more deflated bytes become more than {max_bytes:.0f}, the most that are inflated"
                )
            yield chunk


def _name_representations(dataset: FileDataset) -> None:
    """Replaces value representations that do not exist by that of the dictionary, or UN: pydicom fails at others."""
    for tag in dataset.keys():  # noqa: SIM118 - to take the elements would convert them
        element = dataset.get_item(tag)
        if isinstance(element, RawDataElement) and element.VR not in _KNOWN_VRS:
            known = dictionary_VR(tag) if dictionary_has_tag(tag) else "UN"
            dataset[tag] = element._replace(VR=known)


def _check_items(elements: Iterable[object]) -> None:
    """Raises ValueError if the sequences, which are still bytes, have more than MAX_ITEMS items together."""
    count = 0
    for element in elements:
        if isinstance(element, RawDataElement) and element.VR in _MAY_HOLD_ITEMS and element.value:
            # Bytes of a value that look like an item are counted too, so the count is never too small.
            count += element.value.count(_ITEMS[element.is_little_endian]) if element.tag.group != _PIXEL_GROUP else 0
    if count > MAX_ITEMS:
        raise ValueError(f"its sequences have more than {MAX_ITEMS} items")
