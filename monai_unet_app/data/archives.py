"""Zip archives from any source, opened so that a small malicious file can fill neither memory nor disk."""

import errno
import io
import lzma
import os
import struct
import zipfile
import zlib
from pathlib import Path

from monai_unet_app.errors import InputRefusedError

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Accepted compression methods. zipfile unpacks others in one piece, whatever their size."""

BROKEN = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError, ValueError,
    OverflowError, IndexError, struct.error,
)  # fmt: skip
"""Exceptions of zipfile for an archive that is broken, has a password, or uses another method."""

_LARGEST_DIRECTORY = 2**24  # bytes of the central directory, which lists the members


class Archive(io.BufferedReader):
    """The file of an archive with a limit on one read: zipfile reads the list of members in one piece of any stated size."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile("its list of members is too long")
        return super().read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:  # a position before the start, which a broken list may hold
            if error.errno != errno.EINVAL:
                raise
            raise zipfile.BadZipFile("a member lies outside of it") from error


def unpack(path: Path, folder: Path, *, most_members: int, most_ratio: int, small_bytes: int) -> None:
    """Unpacks an archive into a folder if the sizes in its list of members are acceptable; zipfile keeps to these sizes.

    Args:
        path: The archive.
        folder: Gets the files; made if need be.
        most_members: Largest number of members.
        most_ratio: Largest ratio of unpacked to packed size.
        small_bytes: Unpacked size that is accepted for any ratio.

    Raises:
        InputRefusedError: The archive is broken, or holds too much.
        OSError: The archive cannot be read, or a file cannot be written.
    """
    size = path.stat().st_size
    most = max(small_bytes, most_ratio * size)
    try:
        with Archive(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            # Decided from the stated sizes, before a byte is unpacked
            unpacked = sum(member.file_size for member in members)
            if len(members) > most_members:
                raise InputRefusedError(f"it has {len(members)} files; at most {most_members} are accepted")
            if unpacked > most:
                raise InputRefusedError(
                    f"its {size / 1e6:.3g} MB become {unpacked / 1e6:.3g} MB; at most {most / 1e6:.3g} MB are accepted"
                )
            if any(member.compress_type not in METHODS for member in members):
                raise InputRefusedError("its files are packed by another method than deflate")
            # zipfile removes "..", drive letters and leading slashes from names, and no member leaves the folder
            archive.extractall(folder)
    except BROKEN as error:
        raise InputRefusedError(
            f"it is broken, or has a password ({type(error).__name__}); a complete archive without a password is needed"
        ) from error
