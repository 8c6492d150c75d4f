"""The errors of this package.

The CLI exits with 3 for `InputRefusedError` and `UntrainedError`, 2 for `UsageError`, 1 for all others.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def of_surroundings(error: BaseException | None) -> str | None:
    """The sentence about a machine that lacks shared memory or disk space, if that is why an error came; None if not."""
    while error is not None:
        text = str(error)
        if "shared memory" in text.lower() or "/torch_" in text or "Bus error" in text:
            return (
                "shared memory (/dev/shm) is too small for the processes that prepare data; give --workers 0, or more of it "
                "(docker run --shm-size 1g)"
            )
        if getattr(error, "errno", None) == errno.ENOSPC or "PytorchStreamWriter failed" in text:
            return (
                "the disk is full; free space and give the same command again, which goes on after the last whole epoch"
            )
        error = error.__cause__ or error.__context__
    return None


def first_line(error: Exception) -> str:
    """Of the text of an error of other software, or its kind where it has none; at most 200 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def without_folders(text: str, *roots: Path) -> str:
    """The message with the folders below these roots removed, so that only file names leave this machine."""
    for root in roots:
        text = re.sub(re.escape(f"{root}/") + r"(?:[^\s/]+/)*", "", text)
    return text
