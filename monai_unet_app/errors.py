"""One error tree. The CLI turns `InputRefusedError` into exit 3, `UsageError` into exit 2, the rest into exit 1."""

import re
from pathlib import Path


class AppError(Exception):
    """Base of everything this package raises on purpose; its text is fit for a user's eyes."""


class UsageError(AppError):
    """The command does not make sense as it was given."""


class InputRefusedError(AppError):
    """The data cannot be used; the message says what was found, what is needed and what to do."""


class BundleError(AppError):
    """A bundle is incomplete or contradicts itself."""


def without_folders(text: str, *roots: Path) -> str:
    """A message in which files below some folders are called by their names alone, as readers of another machine may see it."""
    for root in roots:
        text = re.sub(re.escape(f"{root}/") + r"(?:[^\s/]+/)*", "", text)
    return text
