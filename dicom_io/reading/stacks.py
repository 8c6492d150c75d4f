"""Slices dealt out to stacks that hold each position exactly once, by what their headers say.

What the slices show (echo time, b-value, magnitude or phase, ...) parts them first and is the same within each stack;
what is left at a position is parted by a time or a count of which each value fills a stack. Where no value does, the
slices at a position are counted in order of time, and where there is none, of InstanceNumber. A series that was broken off
has stacks that lack positions beside whole ones: they are dealt out too, and say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import SeriesGeometryError
from dicom_io.reading.frame_attributes import Mark
from dicom_io.reading.geometry import ImagePlane, angle_degrees, even_grid, same_positions
from dicom_io.reading.kept_attributes import CLOCKS, COUNTS, RUNNING_NUMBER, SETTINGS, TIMES

_PARALLEL_DEGREES = 0.5
_Members = tuple[int, ...]


@dataclass(frozen=True)
class Stack:
    """Slices that fill every position once, or some of them where it lacks the others.

    Attributes:
        members: Indices of frames.
        values: What tells it from the others, as (keyword, value).
        place: Its place among them, by its values.
        ranked_by: The time or number in whose order its slices were counted, where no value is shared by a stack; else "".
        lacking: How many positions it leaves out.
    """

    members: _Members
    values: tuple[tuple[str, str], ...] = ()
    place: tuple[int, ...] = ()
    ranked_by: str = ""
    lacking: int = 0


@dataclass(frozen=True)
class _Places:
    """The positions of a set of frames: `of[index]` counts from 0 along the normal, `count` of them."""

    of: dict[int, int]
    count: int

    def times_used(self, members: Sequence[int]) -> int:
        """How often these frames use each position; 0 where that differs or one is left out."""
        used = self._used(members)
        return int(used[0]) if (used == used[0]).all() else 0

    def most_used(self, members: Sequence[int]) -> int:
        """How often these frames use the position that they use most."""
        return int(self._used(members).max())

    def _used(self, members: Sequence[int]) -> NDArray[np.intp]:
        return np.bincount([self.of[index] for index in members], minlength=self.count)


def stacks_of(planes: Sequence[ImagePlane], marks: Sequence[Mark]) -> list[Stack]:
    """How the frames are dealt out to stacks that use each position once, in order; none if nothing tells them apart.

    One stack holds them all where no position is used twice. Where an enhanced object places several stacks (StackID,
    PS3.3 C.7.6.16.2.2) that are no even volume together, each is dealt out by itself.
    """
    everything, ids = tuple(range(len(planes))), next((mark for mark in marks if mark.keyword == "StackID"), None)
    parallel = are_parallel(planes)
    together = _dealt(everything, planes, marks) if parallel else []
    if ids is None:
        return together if parallel else [Stack(everything)]  # the geometry gate refuses what is mixed
    if together and all(_is_even([planes[index] for index in stack.members]) for stack in together):
        return together
    groups = _parted(everything, [ids])
    if parallel and max(map(len, groups)) == 1:
        return together
    return _dealt_by_stack(groups, ids, planes, marks) or together


def _dealt_by_stack(
    groups: Sequence[_Members], ids: Mark, planes: Sequence[ImagePlane], marks: Sequence[Mark]
) -> list[Stack]:
    """The stacks of each StackID, dealt out by the other attributes; none where one cannot be."""
    found: list[Stack] = []
    for number, group in enumerate(groups):
        parallel = are_parallel([planes[index] for index in group])
        dealt = _dealt(group, planes, [mark for mark in marks if mark is not ids]) if parallel else []
        if not dealt:
            return []
        named = ("StackID", ids.told(group))
        found += [replace(one, values=(named, *one.values), place=(number, *one.place)) for one in dealt]
    return found


def _dealt(members: Sequence[int], planes: Sequence[ImagePlane], marks: Sequence[Mark]) -> list[Stack]:
    """Parallel frames dealt out by what they show, then by time or count; none where they cannot be, or where a count, which
    means nothing by itself, and the order of times contradict each other.
    """
    places = _places(members, planes)
    if places.times_used(members) == 1:
        return [Stack(tuple(members))]
    telling = [mark for mark in marks if _tells_apart(mark, members, places)]
    settings = _needed([mark for mark in telling if mark.keyword in SETTINGS], members)
    groups = _parted(members, settings)
    counts = [mark for mark in telling if mark.keyword in (*TIMES, *COUNTS)]
    if not all(map(places.times_used, groups)):
        return _broken_off(groups, counts, settings, places) or _by_number(members, telling, settings, places)
    ranked = [found for mark in counts if (found := _ranked(groups, mark, settings, places))]
    most = places.times_used(members)
    shared = [mark for mark in counts if len({mark.labels[index] for index in members}) <= most]
    for keys in ((), *((mark,) for mark in shared), *combinations(shared, 2)):
        found = _by_value(groups, keys, settings, places)
        if found:
            meaningless = bool(keys) and all(mark.keyword in COUNTS for mark in keys)
            return [] if meaningless and not _agree([found, *ranked]) else found
    if ranked:
        return ranked[0] if _agree(ranked) else []
    return _by_number(members, telling, settings, places)


def _broken_off(
    groups: Sequence[_Members], counts: Sequence[Mark], settings: Sequence[Mark], places: _Places
) -> list[Stack]:
    """Stacks of one value each, of which some lack positions beside whole ones; none where no value parts them so, or where a
    time runs against a count.
    """
    for keys in ((), *((mark,) for mark in counts)):
        told = (*keys, *settings)
        found = [_stack(part, told, told, places) for group in groups for part in _parted(group, keys)]
        if max(places.most_used(stack.members) for stack in found) == 1 and not all(one.lacking for one in found):
            found.sort(key=lambda stack: stack.place)
            by_count = bool(keys) and keys[0].keyword in COUNTS
            return [] if by_count and not _goes_with_time(found, counts, places) else found
    return []


def _by_number(
    members: Sequence[int], telling: Sequence[Mark], settings: Sequence[Mark], places: _Places
) -> list[Stack]:
    """Stacks in order of InstanceNumber, one after another or each position after another; none where they lie otherwise, where
    a stack would show several things or where a time says something else.
    """
    number = next((mark for mark in telling if mark.keyword == RUNNING_NUMBER), None)
    if number is None or len({number.labels[index] for index in members if number.numbers[index]}) < len(members):
        return []
    found = _one_after_another(members, number, settings, places) or _position_by_position(
        _parted(members, settings), telling, number, settings, places
    )
    return found if _goes_with_time(found, telling, places) else []


def _one_after_another(members: Sequence[int], number: Mark, settings: Sequence[Mark], places: _Places) -> list[Stack]:
    """As many slices as there are positions each, one at each. Fewer in the last stack only where numbers run from 1 without
    a gap: else it could be any slice that is not here.
    """
    ordered = sorted(members, key=lambda index: number.numbers[index])
    parts = [tuple(ordered[first : first + places.count]) for first in range(0, len(ordered), places.count)]
    without_gap = [number.numbers[index][0] for index in ordered] == list(range(1, len(ordered) + 1))
    if len(parts[0]) < places.count or (len(parts[-1]) < places.count and not without_gap):
        return []
    alike = all(len({mark.labels[index] for index in part}) == 1 for part in parts for mark in settings)
    if not alike or any(places.most_used(part) > 1 for part in parts):
        return []
    stacks = [_stack(part, [number, *settings], [number], places) for part in parts]
    return [replace(stack, ranked_by=RUNNING_NUMBER) for stack in stacks]


def _position_by_position(
    groups: Sequence[_Members], telling: Sequence[Mark], number: Mark, settings: Sequence[Mark], places: _Places
) -> list[Stack]:
    """The n-th slices at each position, where numbers run from one to the next by the same steps at every position, and nothing
    but clocks tells of time.
    """
    if any(mark.keyword in TIMES and mark.keyword not in CLOCKS for mark in telling):
        return []
    tables = [_in_order(group, number, places) for group in groups if places.times_used(group)]
    numbers = [np.array([[number.numbers[index][0] for index in row] for row in table]) for table in tables]
    if len(tables) < len(groups) or not all((one - one[:, :1] == one[0] - one[0, 0]).all() for one in numbers):
        return []
    found = [
        replace(_stack(part, [number, *settings], [], places), place=(n, group), ranked_by=RUNNING_NUMBER)
        for group, table in enumerate(tables)
        for n, part in enumerate(zip(*table, strict=True))
    ]
    return sorted(found, key=lambda stack: stack.place)


def _goes_with_time(stacks: Sequence[Stack], marks: Sequence[Mark], places: _Places) -> bool:
    """Whether no time that every slice has runs backwards at a position from one stack to the next. ContentTime is that of a
    picture's making (PS3.3 C.7.6.1): reconstructed side by side, later pictures may be made before earlier ones.
    """
    order = [(places.of[index], n, index) for n, stack in enumerate(stacks) for index in stack.members]
    times = [mark for mark in marks if mark.keyword in TIMES and mark.keyword != "ContentTime"]
    times = [mark for mark in times if all(mark.numbers[index] for _, _, index in order)]
    pairs = [(one[2], other[2]) for one, other in pairwise(sorted(order)) if one[0] == other[0]]
    return all(mark.numbers[one] <= mark.numbers[other] for mark in times for one, other in pairs)


def _by_value(
    groups: Sequence[_Members], keys: Sequence[Mark], settings: Sequence[Mark], places: _Places
) -> list[Stack]:
    """Stacks of one value of each key; none where a value does not fill each position once."""
    found = []
    for group in groups:
        parts = [group] if places.times_used(group) == 1 else _parted(group, keys)
        if any(places.times_used(part) != 1 for part in parts):
            return []
        told = [*(keys if len(parts) > 1 else ()), *settings]
        found += [_stack(part, told, (*keys, *settings), places) for part in parts]
    return sorted(found, key=lambda stack: stack.place)


def _stack(part: _Members, told: Sequence[Mark], placed_by: Sequence[Mark], places: _Places) -> Stack:
    values = tuple((mark.keyword, mark.told(part)) for mark in told)
    place = tuple(min(mark.labels[index] for index in part) for mark in placed_by)
    return Stack(part, values, place, lacking=places.count - len({places.of[index] for index in part}))


def _ranked(groups: Sequence[_Members], time: Mark, settings: Sequence[Mark], places: _Places) -> list[Stack]:
    """The n-th slices in time at each position, for each n; none where they have no order or the stacks overlap."""
    found = []
    if time.keyword not in TIMES or not all(time.numbers[index] for group in groups for index in group):
        return []
    for group in groups:
        table = _in_order(group, time, places)  # shape (positions, slices at each)
        if not _are_apart(np.array([[time.numbers[index][0] for index in row] for row in table]), time.keyword):
            return []
        for number, part in enumerate(zip(*table, strict=True)):
            values = [*([time] if len(table[0]) > 1 else []), *settings]
            place = (number, *(mark.labels[part[0]] for mark in settings))
            how = time.keyword if len(table[0]) > 1 else ""
            found.append(Stack(part, tuple((mark.keyword, mark.told(part)) for mark in values), place, how))
    return sorted(found, key=lambda stack: stack.place)


def _in_order(group: _Members, time: Mark, places: _Places) -> list[list[int]]:
    """The frames at each position in order of time."""
    rows: list[list[int]] = [[] for _ in range(places.count)]
    for index in group:
        rows[places.of[index]].append(index)
    return [sorted(row, key=lambda index: time.numbers[index]) for row in rows]


def _are_apart(times: np.ndarray, keyword: str) -> bool:
    """Whether the latest slice of each stack is earlier than the first of the next, by shape (positions, stacks).

    A clock may also count from the first slice at each position: it runs on where one position is imaged after another.
    """
    from_first = [times - times[:, :1]] if keyword in CLOCKS else []
    return any(bool((one[:, :-1].max(axis=0) < one[:, 1:].min(axis=0)).all()) for one in (times, *from_first))


def _places(members: Sequence[int], planes: Sequence[ImagePlane]) -> _Places:
    shared = same_positions([planes[index] for index in members])
    of = {members[at]: number for number, group in enumerate(shared) for at in group}
    alone = [index for index in members if index not in of]
    of |= {index: len(shared) + number for number, index in enumerate(alone)}
    return _Places(of, len(shared) + len(alone))


def _tells_apart(mark: Mark, members: Sequence[int], places: _Places) -> bool:
    """Whether an attribute differs at one position at least."""
    return len({(places.of[index], mark.labels[index]) for index in members}) > places.count


def _needed(settings: Sequence[Mark], members: Sequence[int]) -> list[Mark]:
    """Without those that say again what the others say."""
    kept = list(settings)
    for mark in reversed(settings):
        others = [other for other in kept if other is not mark]
        if len(_parted(members, others)) == len(_parted(members, kept)):
            kept = others
    return kept


def _parted(members: Iterable[int], keys: Sequence[Mark]) -> list[_Members]:
    """Groups of equal values of all keys, in their order."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in members:
        groups.setdefault(tuple(mark.labels[index] for mark in keys), []).append(index)
    return [tuple(groups[labels]) for labels in sorted(groups)]


def _agree(dealings: Sequence[Sequence[Stack]]) -> bool:
    """Whether all deal out the same stacks, in whichever order."""
    return len({frozenset(frozenset(stack.members) for stack in stacks) for stacks in dealings}) <= 1


def are_parallel(planes: Sequence[ImagePlane]) -> bool:
    """Whether all planes have one normal, so that their positions along it can be compared."""
    normals = [np.cross(cosines[:3], cosines[3:]) for cosines in {plane.orientation: None for plane in planes}]
    return all(angle_degrees(normals[0], normal) <= _PARALLEL_DEGREES for normal in normals)


def _is_even(planes: Sequence[ImagePlane]) -> bool:
    try:
        even_grid(planes)
    except SeriesGeometryError:
        return False
    return True
