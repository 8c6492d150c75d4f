"""Several slices at one position -> the time points, echoes or acquisitions that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from dicom_io.errors import SeriesGeometryError, SeriesSelectionError
from dicom_io.reading.frames import Frame
from dicom_io.reading.geometry import Plane, same_positions
from dicom_io.reading.headers import shown
from dicom_io.reading.instances import MARKS

MOST_VALUES, LONGEST_VALUE = 6, 64
"""How many values of an attribute a message lists, and how many characters of each."""


@dataclass(frozen=True)
class TimePoints:
    """A series dealt out to stacks that each use every position once.

    Attributes:
        keywords: The attributes that tell the stacks apart.
        values: Their values, one tuple a stack, in increasing order.
        stacks: Indices of frames, one tuple a stack.
    """

    keywords: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    stacks: tuple[tuple[int, ...], ...]


def choose_time_point(
    frames: Sequence[Frame], planes: Sequence[Plane], name: str, wanted: int | None
) -> tuple[list[Frame], tuple[str, ...]]:
    """The frames of one time point, and what there is to note; all frames where each position is used once.

    Raises:
        SeriesGeometryError: Positions are used several times and it was not said which to read, or nothing known here
            tells the slices apart.
        SeriesSelectionError: There is no time point of that number.
    """
    groups = same_positions(planes)
    if not groups:
        if wanted not in (None, 1):
            raise SeriesSelectionError(f"{name} has 1 time point; number {wanted} was asked for; leave the number out")
        return list(frames), ()
    found = time_points(frames, planes)
    if found is None:
        raise _inseparable(frames, planes, groups, name)
    told = _told(found)
    if wanted is None:
        raise SeriesGeometryError(
            f"{name} has {max(map(len, groups))} slices at the same position, at {len(groups)} positions: "
            f"{len(found.stacks)} time points or the like of {len(found.stacks[0])} slices each, which differ in {told}; "
            f"one slice a position is needed; choose with --time-point 1 to {len(found.stacks)}"
        )
    if not 1 <= wanted <= len(found.stacks):
        raise SeriesSelectionError(
            f"{name} has {len(found.stacks)} time points ({told}); number {wanted} was asked for; "
            f"choose 1 to {len(found.stacks)}"
        )
    value = " ".join(
        f"{key} {_some([value])}" for key, value in zip(found.keywords, found.values[wanted - 1], strict=True)
    )
    return [frames[index] for index in found.stacks[wanted - 1]], (
        f"time point {wanted} of {len(found.stacks)} was asked for: {value}",
    )


def time_points(frames: Sequence[Frame], planes: Sequence[Plane]) -> TimePoints | None:
    """How one attribute, or two, deal the frames out to equal stacks that use each position once; None if none does."""
    marks = [dict(frame.marks) for frame in frames]
    differing = [key for key in MARKS if len({mark.get(key) for mark in marks}) > 1]
    for keywords in (*((key,) for key in differing), *combinations(differing, 2)):
        stacks: dict[tuple[str, ...], list[int]] = {}
        for index, mark in enumerate(marks):
            stacks.setdefault(tuple(mark.get(key, "none") for key in keywords), []).append(index)
        if len(stacks) > 1 and _each_once(list(stacks.values()), planes):
            values = sorted(stacks, key=lambda value: [_number_or_text(part) for part in value])
            return TimePoints(keywords, tuple(values), tuple(tuple(stacks[value]) for value in values))
    return None


def _each_once(stacks: Sequence[Sequence[int]], planes: Sequence[Plane]) -> bool:
    if len({len(stack) for stack in stacks}) > 1:
        return False
    return not any(same_positions([planes[index] for index in stack]) for stack in stacks)


def _number_or_text(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


def _told(found: TimePoints) -> str:
    parts = []
    for number, keyword in enumerate(found.keywords):
        values = dict.fromkeys(value[number] for value in found.values)
        parts.append(f"{keyword} ({_some(values)})")
    return " and ".join(parts)


def _some(values: Iterable[str]) -> str:
    """The first of many values as a message may hold them."""
    found = [shown(value[:LONGEST_VALUE]) for value in values]
    return " / ".join(found[:MOST_VALUES]) + (
        f" / and {len(found) - MOST_VALUES} more" if len(found) > MOST_VALUES else ""
    )


def _inseparable(
    frames: Sequence[Frame], planes: Sequence[Plane], groups: Sequence[tuple[int, ...]], name: str
) -> SeriesGeometryError:
    marks = [dict(frames[index].marks) for index in groups[0]]
    differing = {
        key: sorted({mark.get(key, "none") for mark in marks})
        for key in MARKS
        if len({mark.get(key) for mark in marks}) > 1
    }
    told = ", ".join(f"{key} ({_some(values)})" for key, values in differing.items())
    places = len(planes) - sum(len(group) - 1 for group in groups)
    files = ", ".join(sorted({_file(frames[index]) for index in groups[0]})[:4])
    return SeriesGeometryError(
        f"{name} has up to {max(map(len, groups))} slices at the same position, at {len(groups)} of "
        f"{places} positions; they differ in {told or 'no attribute known here'} (first: {files}); "
        "one slice a position is needed; pass the files of one time point, echo or copy only"
    )


def _file(frame: Frame) -> str:
    return shown(frame.instance.path.name) if frame.instance.path else frame.instance.name
