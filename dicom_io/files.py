"""Files that are whole or absent: written under a temporary name, then renamed."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def replace_when_whole(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """A temporary path; the file that is written there replaces `path` at the end of the `with` block.

    The temporary path lies in a folder of its own beside `path` and has the same file name, because some writers choose the
    format by the suffix or write the name into the file. Several threads and processes may write the same `path`: the last
    rename wins. After an error `path` is as it was, and the temporary folder is gone.

    Args:
        path: The final name. Its folder must exist.
        sync: Force the file and its name to the disk, so that they survive a power failure.

    Raises:
        OSError: The file was not written, or cannot be renamed.
    """
    with suppress(FileNotFoundError):
        path.lstat()  # of a name that cannot be, the system gives the reason; some writers do not
    with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
        part = Path(folder) / path.name
        yield part
        # The content comes before the name: after a power failure the name must not stand for an empty file.
        if sync:
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
        os.replace(part, path)
    # The name is an entry of the folder, which has to reach the disk too.
    if sync:
        sync_folder(path.parent)


def write_whole(path: Path, content: str | bytes, *, sync: bool = False) -> None:
    """Writes a file as `replace_when_whole` does; a text in UTF-8, with its line ends as they are."""
    with replace_when_whole(path, sync=sync) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def replace_together(texts: Mapping[Path, str]) -> None:
    """Replaces the text of several files, in UTF-8: all of them, or none if one of them cannot be written.

    Args:
        texts: Path -> text, with its line ends as they are to be. The folders must exist.
    """
    with ExitStack() as whole:
        for path, text in texts.items():
            whole.enter_context(replace_when_whole(path)).write_bytes(text.encode())


def state_of(path: Path) -> tuple[int, int, int] | None:
    """Inode, size and time of modification of a file, by which a change is noticed; None for a file that is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def sync_folder(folder: Path) -> None:
    """Forces the names in a folder to the disk."""
    if os.name != "posix":  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
