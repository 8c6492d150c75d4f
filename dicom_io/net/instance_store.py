"""Keeps received instances: when success is answered, the bytes are on the disk under their name.

An instance goes to `folder/<study>/<series>/<sop>.dcm`. It is written under another name first (in `folder/.incoming`),
forced to the disk, and then linked to its name, which never replaces a file. Its UIDs make the path, so they are checked to be
UIDs. Nothing in an instance is followed: URLs and file names in it are only data.
"""

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

from dicom_io.files import sync_folder
from dicom_io.net.instance_file import DUPLICATE_INSTANCE, Allowance, InstanceRefusedError, has_same_data_set, read_uids

INCOMING = ".incoming"
OUT_OF_RESOURCES = 0xA700  # PS3.4 B.2.3
NOT_AUTHORISED = 0x0124  # PS3.7 C.5.23

_PIECE_BYTES = 2**20
_TRIES = 20  # to make a file in a folder that other processes may be removing

_logger = logging.getLogger(__name__)
_making = threading.RLock()  # held to make or remove the folder of unfinished files


class Readable(Protocol):
    """A source of bytes, piece by piece."""

    def read(self, size: int, /) -> bytes:
        """At most `size` of the following bytes; empty at the end."""


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


class InstanceStore:
    """A folder of received instances; several threads and processes may put instances into it."""

    def __init__(
        self,
        folder: Path,
        *,
        studies: frozenset[str] | None = None,
        series: str = "",
        stored: Callable[[Stored], None] = lambda stored: None,
        most_bytes: float = math.inf,
    ) -> None:
        """Names the folder; it is made with the first instance.

        Args:
            folder: Gets the instances.
            studies: StudyInstanceUIDs that were asked for; other studies are refused. None: any study.
            series: The SeriesInstanceUID that was asked for; other series are refused. Empty: any series.
            stored: Called for each instance that is on the disk, before the sender is answered. An error in it is logged.
            most_bytes: Most bytes that a data set may have once it is inflated. The size of the file is not limited here.
        """
        self.folder, self.studies, self.series = Path(folder), studies, series
        self._stored, self._most_bytes = stored, most_bytes
        self._lock = threading.Lock()

    def put(
        self, content: bytes | Readable, sop_instance_uid: str | None = None, allowance: Allowance | None = None
    ) -> Stored:
        """Keeps one instance.

        Args:
            content: A whole DICOM file with preamble and file meta information, or a source of its bytes.
            sop_instance_uid: The UID under which the instance was announced, if it was announced.
            allowance: Limits the reading further; the cost is subtracted from it.

        Returns:
            Where the instance is; only once it is on the disk.

        Raises:
            InstanceRefusedError: The instance cannot be read, a UID is invalid, other content is kept under its UID, or the
                disk is full. Nothing of the instance is left.
        """
        try:
            with self.unfinished(content) as part:
                stored = self._keep(part, sop_instance_uid, allowance)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "unknown")
            raise InstanceRefusedError(OUT_OF_RESOURCES, f"an instance cannot be written ({name})") from error
        try:
            self._stored(stored)
        except Exception as error:
            _logger.error("the callback for %s failed (%s)", stored.sop_instance_uid, type(error).__name__)
        return stored

    def find(self, sop_instance_uids: Iterable[str]) -> dict[str, tuple[Path, ...]]:
        """The files of instances, from one listing of the folder; a UID may occur in several studies.

        Only file names are read, see `instance_file.read_uids`. An instance that is not there is not in the result.
        """
        uids, files = set(sop_instance_uids), dict[str, tuple[Path, ...]]()
        for series in _folders_of(self.folder, 2):
            for entry in _entries(series):
                uid, suffix = os.path.splitext(entry.name)
                if suffix == ".dcm" and uid in uids:
                    files[uid] = (*files.get(uid, ()), Path(entry.path))
        return files

    def tidy(self) -> None:
        """Removes the folder of unfinished files if it is empty; `put` makes it again."""
        with _making, contextlib.suppress(OSError):
            (self.folder / INCOMING).rmdir()

    @contextlib.contextmanager
    def unfinished(self, content: bytes | Readable) -> Iterator[Path]:
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
        """A new file, open for writing. Not by `mkstemp`: only the owner may read its files, even if the umask allows more."""
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
        uids = read_uids(part, announced, self._most_bytes, allowance)
        if self.studies is not None and uids.study not in self.studies:
            raise InstanceRefusedError(NOT_AUTHORISED, f"an instance of study {uids.study} was not asked for")
        if self.series not in ("", uids.series):
            raise InstanceRefusedError(NOT_AUTHORISED, f"an instance of series {uids.series} was not asked for")
        folder = self.folder / uids.study / uids.series
        path = folder / f"{uids.instance}.dcm"
        # A new folder lasts through a crash only if its entry in the folder above is forced to the disk too.
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder)
            sync_folder(folder.parent)
        is_new = self.name(part, path)
        if not is_new and not has_same_data_set(path, part):
            raise InstanceRefusedError(DUPLICATE_INSTANCE, f"other content is kept under the UID {uids.instance}")
        # Also where the file was there: the thread that linked it may not have come to this line yet.
        sync_folder(folder)
        return Stored(path, *uids, is_new)

    def name(self, part: Path, path: Path) -> bool:
        """Gives the file its name; False if the name is taken."""
        # The lock is for file systems without hard links, where the look at the name and the rename are two steps.
        with self._lock:
            try:
                os.link(part, path)  # unlike a rename, a link never replaces a file
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise
                if path.exists():  # a file system without hard links
                    return False
                os.rename(part, path)
        return True


def _folders_of(folder: Path, depth: int) -> Iterator[Path]:
    """The folders `depth` levels below a folder, except those with a name that begins with a dot."""
    if not depth:
        yield folder
        return
    for entry in _entries(folder):
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from _folders_of(Path(entry.path), depth - 1)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted; empty if another process has removed the folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
