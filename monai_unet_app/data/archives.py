"""Zip archives of anybody: what may be in one, and how it is opened, so that a small one takes neither memory nor disk."""

from __future__ import annotations

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
"""How members may be packed. Others are unpacked by zipfile at once, whatever they become."""

BROKEN = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError, ValueError,
    OverflowError, IndexError, struct.error,
)  # fmt: skip
"""What zipfile raises for an archive that is broken, has a password, or is packed otherwise."""

_LARGEST_LIST = 2**24  # of members, in bytes


class Archive(io.BufferedReader):
    """An archive's file. zipfile reads the whole list of its members at once, whatever size that is said to have."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > _LARGEST_LIST:
            raise zipfile.BadZipFile("its list of members is too long")
        return super().read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except OSError as error:  # of a place before its start, which a broken list may name
            if error.errno != errno.EINVAL:
                raise
            raise zipfile.BadZipFile("a member lies outside of it") from error


def unpack(path: Path, folder: Path, *, most_members: int, most_ratio: int, small_bytes: int) -> None:
    """Unpacks an archive into a folder, after a look at what its list of members says; zipfile gives no more of a member.

    Args:
        path: The archive.
        folder: Gets the files; made if need be.
        most_members: That may be in it.
        most_ratio: How many times its size it may become.
        small_bytes: What any archive may become, however small it is.

    Raises:
        InputRefusedError: It is broken, or too much is in it.
        OSError: It cannot be read, or a file cannot be written.
    """
    size = path.stat().st_size
    most = max(small_bytes, most_ratio * size)
    try:
        with Archive(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            becomes = sum(member.file_size for member in members)
            if len(members) > most_members:
                raise InputRefusedError(f"it has {len(members)} files; at most {most_members} are taken")
            if becomes > most:
                raise InputRefusedError(
                    f"its {size / 1e6:.3g} MB become {becomes / 1e6:.3g} MB; at most {most / 1e6:.3g} MB are taken"
                )
            if any(member.compress_type not in METHODS for member in members):
                raise InputRefusedError("its files are packed otherwise than by deflate")
            archive.extractall(folder)
    except BROKEN as error:
        raise InputRefusedError(
            f"it is broken, or has a password ({type(error).__name__}); a whole one is needed"
        ) from error
