"""Types of flag values: each has the function that checks the text of a value and converts it."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated


def nonempty(text: str) -> str:
    """A text that is not empty: an unset variable of the shell is no name."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the value is empty; a name or path is needed")
    return text


def path(text: str) -> Path:
    """A path; the empty text is refused."""
    return Path(nonempty(text))


def at_least(least: int) -> Callable[[str], int]:
    """A type of whole numbers that are not smaller than this."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is too small; at least {least} is needed")
        return int(text)

    return number


def share(text: str) -> float:
    """A number between 0 and 1."""
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share; a number between 0 and 1 is needed")
    return float(text)


def share_from_zero(text: str) -> float:
    """A number from 0 to less than 1."""
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not possible; a number from 0 to below 1 is needed")
    return float(text)


def above_zero(text: str) -> float:
    """A finite number above 0."""
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not possible; a finite number above 0 is needed")
    return float(text)


def size(text: str) -> float:
    """Bytes, of a number with MB, GB, MiB or GiB behind it."""
    match = re.fullmatch(r"([0-9.]+) ?([MG])(i?)B", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is not a size; a number with MB or GB is needed, such as 4GB")
    number, unit, binary = match.groups()
    return above_zero(number) * (2**10 if binary else 10**3) ** (2 if unit.upper() == "M" else 3)


def seconds(text: str) -> float:
    """Seconds, of a number with ms, s, min or h behind it."""
    match = re.fullmatch(r"([0-9.]+) ?(ms|s|min|h)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text} is not a time; a number with ms, s, min or h is needed, such as 90min"
        )
    return above_zero(match[1]) * {"ms": 0.001, "s": 1, "min": 60, "h": 3600}[match[2]]


def box(text: str) -> tuple[tuple[int, int], ...]:
    """First voxel and end along each axis, of a text such as 10:45,0:60,5:40."""
    match = re.fullmatch(r"\d+:\d+(,\d+:\d+){1,2}", text.replace(" ", ""))
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text} is not a box; the first voxel and the end along each axis are needed, such as 10:45,0:60,5:40"
        )
    sides = (side.split(":") for side in match[0].split(","))
    return tuple((int(first), int(end)) for first, end in sides)


Text = Annotated[str, nonempty]
Place = Annotated[Path, path]
Share = Annotated[float, share]
ShareFromZero = Annotated[float, share_from_zero]
BoxSides = Annotated[tuple[tuple[int, int], ...], box]
Bytes = Annotated[float, size]
Seconds = Annotated[float, seconds]
AboveZero = Annotated[float, above_zero]
FromZero = Annotated[int, at_least(0)]
FromOne = Annotated[int, at_least(1)]
FromTwo = Annotated[int, at_least(2)]
