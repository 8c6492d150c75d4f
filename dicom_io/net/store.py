"""Keeps received instances, so that "stored" is true when it is said: the bytes are on the disk under their name.

An instance goes to `folder/<study>/<series>/<sop>.dcm`. It is written under another name first (in `folder/.incoming`),
forced to the disk, and then given its name, never over another file. Its UIDs make the path, so they are checked to be
UIDs. Nothing in an instance is obeyed: URLs and file names in it are data. What it costs to look at one is bounded as in
`reading.bounded`: items are counted. A deflated data set may become MOST_RATIO times its size (a small one SMALL_BYTES), and no
more than an instance may have; it is inflated piece by piece, and neither it nor any other whole instance lies in memory.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import uuid4

from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.filereader import data_element_generator
from pydicom.tag import Tag
from pydicom.uid import UID

from dicom_io.errors import UnreadableFileError
from dicom_io.files import sync_folder
from dicom_io.net.outcome import DUPLICATE_INSTANCE, RefusedError
from dicom_io.reading.bounded import MAX_INFLATED_BYTES, BoundedFile, InflatedTooLargeError, parse, transfer_syntax
from dicom_io.reading.headers import is_uid
from dicom_io.reading.instances import READ_ERRORS, load_dataset

MOST_RATIO = 100
"""How many times its size a deflated data set may become."""

SMALL_BYTES = 2**28
"""What any deflated data set may become, however small it is: a mask shrinks to a thousandth."""

INCOMING = ".incoming"
OUT_OF_RESOURCES = 0xA700  # PS3.4 B.2.3
CANNOT_UNDERSTAND = 0xC000
NOT_AUTHORISED = 0x0124  # PS3.7 C.5.23

# Stricter readers forbid leading zeros (PS3.5 9.1); they occur, and cannot leave the folder.
_UNDEFINED_LENGTH = 0xFFFFFFFF
_PATH = {0x0020000D: "StudyInstanceUID", 0x0020000E: "SeriesInstanceUID", 0x00080018: "SOPInstanceUID"}
_SOP_CLASS = 0x00080016
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_MARK_AT, _MARK = 128, b"DICM"
_PIECE_BYTES = 2**20
_LARGEST_HEADER = 2**26  # of two instances that are compared attribute by attribute
_LONG_VRS = (b"OB", b"OW", b"OF", b"OD", b"OV", b"UN")  # of pixels; PS3.5 7.1.2
_TRIES = 20  # to make a file in a folder that others may be tidying away

_logger = logging.getLogger(__name__)
_making = threading.RLock()  # of the folder of unfinished files: none removes it while another makes it
_looking = threading.Lock()  # one data set is looked at a time, because its items may fill much memory


class Readable(Protocol):
    """What gives bytes piece by piece."""

    def read(self, size: int, /) -> bytes:
        """At most so many of those that follow; empty at the end."""


@dataclass(frozen=True)
class Stored:
    """An instance that is on the disk.

    Attributes:
        is_new: False if the same instance was there already.
    """

    path: Path
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    is_new: bool


@dataclass
class Allowance:
    """What may still be spent on looking at objects that came together, such as the members of an archive.

    Attributes:
        inflated_bytes: That their deflated data sets may become.
        pieces: That may be read of their headers; as `BoundedFile.pieces_left`.
    """

    inflated_bytes: float
    pieces: int


class InstanceRefusedError(RefusedError):
    """An instance was not kept."""


class InstanceStore:
    """A folder of received instances; several threads and processes may put into it."""

    def __init__(
        self,
        folder: Path,
        *,
        studies: frozenset[str] | None = None,
        stored: Callable[[Stored], None] | None = None,
        most_bytes: float = math.inf,
    ) -> None:
        """Opens the folder, making it if need be.

        Args:
            folder: Gets the instances.
            studies: StudyInstanceUIDs that were asked for; others are refused. None: any.
            stored: Called for each instance that is on the disk, before the sender is told. What it raises is logged.
            most_bytes: That a deflated data set may become; who receives counts the bytes of what comes.
        """
        self._most_bytes = most_bytes
        self.folder, self.studies = Path(folder), studies
        self._stored = stored
        self._lock = threading.Lock()

    def put(
        self, content: bytes | Readable, sop_instance_uid: str | None = None, allowance: Allowance | None = None
    ) -> Stored:
        """Keeps one instance.

        Args:
            content: A whole DICOM file with preamble and file meta information, or what gives it piece by piece.
            sop_instance_uid: The UID under which it was announced, if it was.
            allowance: What may be spent on it, beside what any instance may cost; what it costs is taken off.

        Returns:
            Where it is; only once it is on the disk.

        Raises:
            InstanceRefusedError: It cannot be read, its UIDs are none, other content is kept under its UID, or the disk
                is full. Nothing of it is left.
        """
        try:
            with self._unfinished(content) as part:
                kept = self._keep(part, sop_instance_uid, allowance)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "unknown")
            raise InstanceRefusedError(OUT_OF_RESOURCES, f"an instance cannot be written ({name})") from error
        self._tell(kept)
        return kept

    def find(self, sop_instance_uids: Iterable[str]) -> dict[str, tuple[Path, ...]]:
        """The files that instances are kept in, from one walk over the folder; one UID may occur in several studies.

        Only names are looked at, see `uids_of`. What is not there is not in the answer.
        """
        wanted, found = set(sop_instance_uids), dict[str, tuple[Path, ...]]()
        for series in _folders_of(self.folder, 2):
            for entry in _entries(series):
                uid, suffix = os.path.splitext(entry.name)
                if suffix == ".dcm" and uid in wanted:
                    found[uid] = (*found.get(uid, ()), Path(entry.path))
        return found

    def tidy(self) -> None:
        """Removes the folder of unfinished files if it is empty; whoever needs it makes it again."""
        with _making, contextlib.suppress(OSError):
            (self.folder / INCOMING).rmdir()

    @contextlib.contextmanager
    def _unfinished(self, content: bytes | Readable) -> Iterator[Path]:
        """A file with the content, forced to the disk, under a name that no other process or earlier run has."""
        part, file = self._new_part()
        try:
            with file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    while piece := content.read(_PIECE_BYTES):
                        file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            yield part
        finally:
            part.unlink(missing_ok=True)

    def _new_part(self, tries: int = _TRIES) -> tuple[Path, BinaryIO]:
        """A new file, made by us alone. Not by `mkstemp`, which lets only its owner read, whatever the umask says."""
        part = self.folder / INCOMING / f"{uuid4().hex}.part"
        try:
            with _making:
                part.parent.mkdir(parents=True, exist_ok=True)
                return part, part.open("xb")
        except (FileNotFoundError, FileExistsError):  # another process has tidied in between
            if tries == 1:
                raise
        return self._new_part(tries - 1)

    def _keep(self, part: Path, announced: str | None, allowance: Allowance | None) -> Stored:
        study, series, sop, sop_class = uids_of(part, announced, self._most_bytes, allowance)
        if self.studies is not None and study not in self.studies:
            raise InstanceRefusedError(NOT_AUTHORISED, f"an instance of study {study} was not asked for")
        place = self.folder / study / series
        path = place / f"{sop}.dcm"
        if not place.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder)
            sync_folder(place.parent)
        is_new = self._name(part, path)
        if not is_new and not _same_instance(path, part):
            raise InstanceRefusedError(DUPLICATE_INSTANCE, f"other content is kept under the UID {sop}")
        sync_folder(place)
        return Stored(path, study, series, sop, sop_class, is_new)

    def _name(self, part: Path, path: Path) -> bool:
        """Gives the file its name; False if the name is taken."""
        with self._lock:
            try:
                os.link(part, path)  # unlike a rename it never replaces a file
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise
                if path.exists():  # a file system without hard links
                    return False
                os.rename(part, path)
        return True

    def _tell(self, kept: Stored) -> None:
        if self._stored is None:
            return
        try:
            self._stored(kept)
        except Exception as error:
            _logger.error("the callback for %s failed (%s)", kept.sop_instance_uid, type(error).__name__)


def _folders_of(folder: Path, depth: int) -> Iterator[Path]:
    """The folders so many levels below one, except those whose name begins with a point."""
    if not depth:
        yield folder
        return
    for entry in _entries(folder):
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from _folders_of(Path(entry.path), depth - 1)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where it is gone meanwhile."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def uids_of(
    file: Path,
    announced: str | None = None,
    most_bytes: float = math.inf,
    allowance: Allowance | None = None,
) -> tuple[str, str, str, str]:
    """UIDs of study, series, instance and SOP class of a whole file, which is read to its end.

    Args:
        file: An instance.
        announced: The SOPInstanceUID that it must have; None for any.
        most_bytes: That a deflated data set may become.
        allowance: What may be spent on it; what it costs is taken off.

    Raises:
        InstanceRefusedError: It is not whole, or one of them is no UID. What stands there instead may be anything, so it
            is not repeated.
    """
    try:
        with BoundedFile(file) as opened, _looking, _paid(opened, allowance):
            most = most_bytes if allowance is None else min(most_bytes, max(allowance.inflated_bytes, 0))
            found = _uids_to_the_end(file, opened, most)
    except InflatedTooLargeError as error:
        raise InstanceRefusedError(CANNOT_UNDERSTAND, f"the data set is refused: {error}") from error
    except READ_ERRORS as error:
        raise InstanceRefusedError(
            CANNOT_UNDERSTAND, f"the data set cannot be read ({type(error).__name__})"
        ) from error
    for tag, keyword in (*_PATH.items(), (_SOP_CLASS, "SOPClassUID")):
        if not is_uid(found.get(tag, "")):
            raise InstanceRefusedError(CANNOT_UNDERSTAND, f"{keyword} is no UID")
    study, series, sop = (found[tag] for tag in _PATH)
    if announced not in (None, sop):
        raise InstanceRefusedError(CANNOT_UNDERSTAND, "the data set has another SOPInstanceUID than the request")
    return study, series, sop, found[_SOP_CLASS]


@contextlib.contextmanager
def _paid(file: BoundedFile, allowance: Allowance | None) -> Iterator[None]:
    """Lets no more pieces be read of a file than an allowance has, and takes off what was spent, whatever came of it."""
    if allowance is None:
        yield
        return
    begin = file.pieces_left = max(min(file.pieces_left, allowance.pieces), 0)
    try:
        yield
    finally:
        allowance.pieces -= begin - file.pieces_left
        allowance.inflated_bytes -= file.inflated_bytes


def _uids_to_the_end(path: Path, file: BoundedFile, most_bytes: float) -> dict[int, str]:
    """The UIDs that matter, as they stand in the bytes, from a walk over all elements.

    pydicom passes over a data set that is cut short, which a receiver must not, and logs a UID that is none.

    Raises:
        EOFError: The last element does not end where the bytes end, or an image has no pixels. Others of `READ_ERRORS`
            where the bytes make no sense, or cost more than is allowed.
    """
    header, stream = _opened(path, file, most_bytes)
    syntax, size = header.file_meta.TransferSyntaxUID, stream.seek(0, os.SEEK_END)
    stream.seek(data_set_start(header) if stream is file else 0)
    end, tags, found = 0, set[int](), dict[int, str]()
    for element in data_element_generator(stream, syntax.is_implicit_VR, syntax.is_little_endian, defer_size=1024):
        measured = isinstance(element, RawDataElement) and element.length != _UNDEFINED_LENGTH
        end = element.value_tell + element.length if measured else stream.tell()  # type: ignore[union-attr]
        tags.add(int(element.tag))
        if int(element.tag) in (*_PATH, _SOP_CLASS) and isinstance(element.value, bytes):
            found[int(element.tag)] = element.value.decode("ascii").rstrip("\0 ")
    is_image = UID(found.get(_SOP_CLASS, "")).name.endswith("Image Storage")
    if end != size or (is_image and not tags & _PIXELS):
        raise EOFError(f"the last element ends at byte {end} of {size}, or pixels are missing")
    return found


def _opened(path: Path, file: BoundedFile, most_bytes: float = math.inf) -> tuple[FileDataset, BinaryIO]:
    """The first attributes of a file and what holds its data set: the file itself, or what is inflated as it is read.

    Raises:
        ValueError: Not a file of PS3.10, or its data set becomes too large; others of `READ_ERRORS`.
    """
    file.seek(_MARK_AT)
    if file.read(len(_MARK)) != _MARK:
        raise ValueError("no DICM mark")
    if not transfer_syntax(file):  # else whatever follows would be read, piece by small piece
        raise ValueError("no transfer syntax")
    most = min(most_bytes, MAX_INFLATED_BYTES, max(SMALL_BYTES, MOST_RATIO * file.size))
    return parse(path, file, with_pixels=False, tags=[Tag(_SOP_CLASS)], last=_SOP_CLASS, max_inflated=most)


def data_set_start(header: FileDataset) -> int:
    """Where the data set begins in a file: behind the preamble, the mark and the file meta information (PS3.10 7.1)."""
    return 132 + 12 + int(header.file_meta.FileMetaInformationGroupLength)


def _same_instance(kept: Path, new: Path) -> bool:
    """Whether two files hold the same data set; the file meta information may differ, and so may the encoding.

    Only what stands before the pixels is taken into memory, and only where it is of a header's size.
    """
    try:
        with BoundedFile(kept) as kept_file, BoundedFile(new) as new_file:
            with _looking:
                first, second = _Content.of(kept, kept_file), _Content.of(new, new_file)
            if _has_same_bytes(first.stream, first.start, second.stream, second.start):
                return True
            with _looking:
                if max(one.pixels - one.start for one in (first, second)) > _LARGEST_HEADER:
                    return False
                if load_dataset(kept, with_pixels=False) != load_dataset(new, with_pixels=False):
                    return False
            return _has_same_bytes(first.stream, first.values, second.stream, second.values)
    except (UnreadableFileError, *READ_ERRORS):  # type: ignore[misc]  # what is kept there was not written by this module
        return False


@dataclass(frozen=True)
class _Content:
    """Where the parts of a data set stand in a stream, in bytes: its start, its pixels' element and that element's values."""

    stream: BinaryIO
    start: int
    pixels: int
    values: int

    @classmethod
    def of(cls, path: Path, file: BoundedFile) -> _Content:
        header, stream = _opened(path, file)
        syntax, start = header.file_meta.TransferSyntaxUID, data_set_start(header) if stream is file else 0
        stream.seek(start)
        for _ in data_element_generator(
            stream, syntax.is_implicit_VR, syntax.is_little_endian, lambda tag, *_: tag in _PIXELS, defer_size=1024
        ):
            pass
        pixels = stream.tell()
        is_long = not syntax.is_implicit_VR and stream.read(6)[4:] in _LONG_VRS
        return cls(stream, start, pixels, pixels + (12 if is_long else 8))


def _has_same_bytes(first: BinaryIO, start: int, second: BinaryIO, begin: int) -> bool:
    """Whether two streams have the same bytes from these places on; read piece by piece."""
    if first.seek(0, os.SEEK_END) - start != second.seek(0, os.SEEK_END) - begin:
        return False
    first.seek(start)
    second.seek(begin)
    while piece := first.read(_PIECE_BYTES):
        if piece != second.read(_PIECE_BYTES):
            return False
    return True
