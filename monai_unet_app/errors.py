"""The errors of this package.

The CLI exits with 3 for `InputRefusedError` and `UntrainedError`, 2 for `UsageError`, 1 for all others.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import format_tb

from dicom_io.errors import DicomIoError


class AppError(Exception):
    """Base of all errors that this package raises on purpose; the text is meant for a user."""


class UsageError(AppError):
    """The flags or arguments of a command contradict each other or are not possible."""


class InputRefusedError(AppError):
    """The data cannot be used. The message states what was found, what is needed and what to do."""


class NoRoomError(InputRefusedError):
    """Memory or disk do not hold what the data need; they may, once others leave them."""


class BundleError(AppError):
    """A bundle is incomplete or contradicts itself."""


class SidesError(InputRefusedError):
    """Label and codes of a structure have opposite sides."""


class ConsentError(BundleError):
    """A bundle holds code, and nobody has agreed to run it."""


class UntrainedError(BundleError):
    """A bundle without trained weights is asked for what only weights can give."""


@contextmanager
def refusing_as(name: str, kind: type[AppError] = InputRefusedError) -> Iterator[None]:
    """Turns an error of `dicom_io` in the `with` block into an error of this package that begins with a name.

    Args:
        name: The thing that is refused, such as the name of a file or of a case.
        kind: The class of the new error.
    """
    try:
        yield
    except DicomIoError as error:
        raise kind(f"{name}: {error}") from error


def refusal_in(error: BaseException | None) -> AppError | None:
    """The first AppError among an error, such as one of MONAI, and its causes; None if there is none."""
    while error is not None and not isinstance(error, AppError):
        error = error.__cause__
    return error


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of torch, OpenVINO and SQLite, and of `shutil.Error`, which has no errno
_SAID_OF_FULL = ("No space left", "PytorchStreamWriter failed", "unexpected pos", "iostream error", "disk is full")
_SAID_OF_SHARED_MEMORY = ("shared memory", "</torch_", "Bus error")


def of_surroundings(error: BaseException | None) -> str | None:
    """The sentence about shared memory, the disk, permissions, a link or a package, if one is why an error came; or None."""
    while error is not None:
        text, number, file = str(error), getattr(error, "errno", None), getattr(error, "filename", None)
        about = f"{getattr(error, 'strerror', None)}: {file}" if file else text
        # A semaphore lies in shared memory, too
        is_of_processes = number == errno.ENOSPC and "multiprocessing" in str(format_tb(error.__traceback__)[-1:])
        if is_of_processes or any(words in text for words in _SAID_OF_SHARED_MEMORY):
            return (
                "shared memory (/dev/shm) is too small for the processes that prepare data; give --workers 0, or more of it "
                "(docker run --shm-size 1g)"
            )
        if number in _FULL or any(words in text for words in _SAID_OF_FULL):
            where = f" ({about})" if file else ""
            return f"the disk is full{where}; free space, or choose another place, and give the same command again"
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{about}; permission is needed; change the permissions (chmod), or choose another place"
        if number == errno.ELOOP or text.startswith("Symlink loop"):
            place = file or text.removeprefix("Symlink loop from ")
            return f"{place} is a symbolic link to itself; a file or folder is needed; correct the link"
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("monai_unet_app"):
            return f"the package {error.name} is not installed; it is needed for this; pip install {error.name}"
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Turns an import that fails in the `with` block into a UsageError with the extra that contains the package."""
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"{what} needs {error.name}, which is absent; pip install 'monai-unet-app[{extra}]'"
        ) from error


def absence(path: Path) -> str:
    """What is the matter with a path at which there is nothing, for a message."""
    return "is a symbolic link that leads to no file" if path.is_symlink() else "does not exist"


def first_line(error: Exception) -> str:
    """Of the text of an error of other software, or its kind where it has none; at most 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def innermost(error: BaseException) -> str:
    """The first line of what an error came from, with its kind: other software wraps errors in others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip() or 'no text').splitlines()[0][:200]}"


def without_folders(text: str, *roots: Path) -> str:
    """The message with the folders below these roots removed, so that only file names leave this machine."""
    for root in roots:
        text = re.sub(re.escape(f"{root}/") + r"(?:[^\s/]+/)*", "", text)
    return text
