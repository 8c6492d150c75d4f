"""Slices at repeated positions -> stacks that hold each position exactly once, by what the headers say.

What the slices show (echo time, b-value, magnitude or phase, ...) separates them first and is the same within each stack. The
slices that remain at one position are separated by a time or a count, if each of its values fills a stack. Otherwise they are
taken in order of time, and if there is no time, in order of InstanceNumber. In a series whose transfer broke off, some
stacks lack positions and others are whole: they are separated too, and `Stack.missing` counts what they lack.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import SeriesGeometryError
from dicom_io.reading.frame_attributes import FrameAttribute
from dicom_io.reading.geometry import ImagePlane, angle_degrees, even_grid, same_positions
from dicom_io.reading.kept_attributes import CLOCKS, COUNTS, RUNNING_NUMBER, SETTINGS, TIMES

_PARALLEL_DEGREES = 0.5
_Members = tuple[int, ...]
_Attributes = Sequence[FrameAttribute]


@dataclass(frozen=True)
class Stack:
    """Slices that use every position once, or fewer positions if `missing` is not 0.

    Attributes:
        members: Indices of frames.
        values: (keyword, value) of the attributes that distinguish the stack from the others.
        sort_key: Orders the stacks, by their values.
        ordered_by: The time or number in whose order the slices at each position were taken, if the stacks share no value;
            else "".
        missing: How many positions the stack lacks.
    """

    members: _Members
    values: tuple[tuple[str, str], ...] = ()
    sort_key: tuple[int, ...] = ()
    ordered_by: str = ""
    missing: int = 0


@dataclass(frozen=True)
class _Positions:
    """The positions of a set of frames: `of[index]` numbers a frame's position, 0 to `count` - 1, in any order."""

    of: dict[int, int]
    count: int

    def times_used(self, members: Sequence[int]) -> int:
        """How often these frames use each position; 0 if that differs or a position is not used."""
        used = self._used(members)
        return int(used[0]) if (used == used[0]).all() else 0

    def most_used(self, members: Sequence[int]) -> int:
        """How often these frames use the position that they use most."""
        return int(self._used(members).max())

    def _used(self, members: Sequence[int]) -> NDArray[np.intp]:
        return np.bincount([self.of[index] for index in members], minlength=self.count)


def separate_stacks(planes: Sequence[ImagePlane], attributes: _Attributes) -> list[Stack]:
    """Stacks that use each position once, in order; empty if no attribute separates the frames so.

    One stack holds all frames if no position is used twice. Where an enhanced object has several stacks (StackID,
    PS3.3 C.7.6.16.2.2) that are no even volume together, each of them is separated by itself.
    """
    everything = tuple(range(len(planes)))
    stack_ids = next((attribute for attribute in attributes if attribute.keyword == "StackID"), None)
    parallel = are_parallel(planes)
    together = _separate(everything, planes, attributes) if parallel else []
    if stack_ids is None:
        return together if parallel else [Stack(everything)]  # `even_grid` refuses mixed orientations
    if together and all(_is_even([planes[index] for index in stack.members]) for stack in together):
        return together
    groups = _grouped_by([stack_ids], everything)
    # A StackID of its own for each slice says nothing about stacks.
    if parallel and max(map(len, groups)) == 1:
        return together
    return _separate_by_stack_id(groups, stack_ids, planes, attributes) or together


def _separate_by_stack_id(
    groups: Sequence[_Members], stack_ids: FrameAttribute, planes: Sequence[ImagePlane], attributes: _Attributes
) -> list[Stack]:
    """The stacks of each StackID, separated by the other attributes; empty if that fails for a StackID."""
    stacks: list[Stack] = []
    others = [attribute for attribute in attributes if attribute is not stack_ids]
    for number, group in enumerate(groups):
        parallel = are_parallel([planes[index] for index in group])
        parts = _separate(group, planes, others) if parallel else []
        if not parts:
            return []
        own = ("StackID", stack_ids.range_text(group))
        stacks += [replace(part, values=(own, *part.values), sort_key=(number, *part.sort_key)) for part in parts]
    return stacks


def _separate(members: Sequence[int], planes: Sequence[ImagePlane], attributes: _Attributes) -> list[Stack]:
    """Stacks of parallel frames, by what they show, then by time or count; empty if that is impossible, or if a count, which
    means nothing by itself, contradicts the order of times.
    """
    positions = _positions_of(members, planes)
    if positions.times_used(members) == 1:
        return [Stack(tuple(members))]
    telling = [attribute for attribute in attributes if _distinguishes(attribute, members, positions)]
    # Settings separate first: slices of different contrast are never one volume, whatever their times say.
    settings = _without_redundant([attribute for attribute in telling if attribute.keyword in SETTINGS], members)
    groups = _grouped_by(settings, members)
    counts = [attribute for attribute in telling if attribute.keyword in (*TIMES, *COUNTS)]
    by_number = (members, telling, settings, positions)
    if not all(map(positions.times_used, groups)):
        return _incomplete_stacks(groups, counts, settings, positions) or _by_instance_number(*by_number)
    by_time = [stacks for time in counts if (stacks := _by_time(groups, time, settings, positions))]
    # The slices of a group are separated by time or count, with as few attributes as possible: none, one or two. Each
    # value has to fill a stack, so an attribute with more values than a position has slices cannot separate them.
    repeats = positions.times_used(members)
    shared = [count for count in counts if len({count.labels[index] for index in members}) <= repeats]
    for keys in ((), *((count,) for count in shared), *combinations(shared, 2)):
        stacks = _by_value(groups, keys, settings, positions)
        if stacks:
            only_counts = bool(keys) and all(key.keyword in COUNTS for key in keys)
            return [] if only_counts and not _are_same_stacks([stacks, *by_time]) else stacks
    # No value is shared by a whole stack. The times order the slices, if all of them give the same stacks.
    if by_time:
        return by_time[0] if _are_same_stacks(by_time) else []
    return _by_instance_number(*by_number)


def _incomplete_stacks(
    groups: Sequence[_Members], counts: _Attributes, settings: _Attributes, positions: _Positions
) -> list[Stack]:
    """Stacks of one value each, some whole and some lacking positions; empty if no attribute separates the frames so, or if a
    time runs against a count.
    """
    for keys in ((), *((count,) for count in counts)):
        named = (*keys, *settings)
        stacks = [_stack(part, named, named, positions) for group in groups for part in _grouped_by(keys, group)]
        is_once = max(positions.most_used(stack.members) for stack in stacks) == 1
        # A whole stack is the evidence that the attribute is the right one and the other stacks were cut off.
        if is_once and not all(stack.missing for stack in stacks):
            stacks.sort(key=attrgetter("sort_key"))
            by_count = bool(keys) and keys[0].keyword in COUNTS
            return [] if by_count and not _agrees_with_time(stacks, counts, positions) else stacks
    return []


def _by_instance_number(
    members: Sequence[int], telling: _Attributes, settings: _Attributes, positions: _Positions
) -> list[Stack]:
    """Stacks in order of InstanceNumber, whole stacks one after another or position by position; empty if the numbers run
    otherwise, if a stack would show several things, or if a time contradicts the order.
    """
    number = next((attribute for attribute in telling if attribute.keyword == RUNNING_NUMBER), None)
    if number is None or len({number.labels[index] for index in members if number.numbers[index]}) < len(members):
        return []
    stacks = _one_after_another(members, number, settings, positions)
    if not stacks and all(attribute.keyword in CLOCKS for attribute in telling if attribute.keyword in TIMES):
        stacks = _position_by_position(_grouped_by(settings, members), number, settings, positions)
    return stacks if _agrees_with_time(stacks, telling, positions) else []


def _one_after_another(
    members: Sequence[int], number: FrameAttribute, settings: _Attributes, positions: _Positions
) -> list[Stack]:
    """Stacks of as many slices as there are positions, one at each. The last stack may have fewer, but only if the numbers run
    from 1 without a gap: else any slice could be missing.
    """
    ordered = sorted(members, key=lambda index: number.numbers[index])
    parts = [tuple(ordered[first : first + positions.count]) for first in range(0, len(ordered), positions.count)]
    without_gap = [number.numbers[index][0] for index in ordered] == list(range(1, len(ordered) + 1))
    if len(parts[0]) < positions.count or (len(parts[-1]) < positions.count and not without_gap):
        return []
    alike = all(len({setting.labels[index] for index in part}) == 1 for part in parts for setting in settings)
    if not alike or any(positions.most_used(part) > 1 for part in parts):
        return []
    return [
        replace(_stack(part, [number, *settings], [number], positions), ordered_by=RUNNING_NUMBER) for part in parts
    ]


def _position_by_position(
    groups: Sequence[_Members], number: FrameAttribute, settings: _Attributes, positions: _Positions
) -> list[Stack]:
    """The n-th slices at each position, for each n; empty if the steps between their numbers differ between positions."""
    tables = [_ordered_by(number, group, positions) for group in groups if positions.times_used(group)]
    numbers = [np.array([[number.numbers[index][0] for index in row] for row in table]) for table in tables]
    same_steps = all((table - table[:, :1] == table[0] - table[0, 0]).all() for table in numbers)
    if len(tables) < len(groups) or not same_steps:
        return []
    stacks = [
        replace(_stack(part, [number, *settings], [], positions), sort_key=(n, group), ordered_by=RUNNING_NUMBER)
        for group, table in enumerate(tables)
        for n, part in enumerate(zip(*table, strict=True))
    ]
    return sorted(stacks, key=attrgetter("sort_key"))


def _agrees_with_time(stacks: Sequence[Stack], attributes: _Attributes, positions: _Positions) -> bool:
    """Whether no time that every slice has runs backwards at a position from one stack to the next. ContentTime does not count:
    it is the time when a picture was made (PS3.3 C.7.6.1), and later pictures may be reconstructed before earlier ones.
    """
    order = [(positions.of[index], n, index) for n, stack in enumerate(stacks) for index in stack.members]
    times = [time for time in attributes if time.keyword in TIMES and time.keyword != "ContentTime"]
    times = [time for time in times if all(time.numbers[index] for _, _, index in order)]
    # Sorted by position and stack: neighbours are the slices of two stacks in turn at one position.
    pairs = [(first[2], second[2]) for first, second in pairwise(sorted(order)) if first[0] == second[0]]
    return all(time.numbers[first] <= time.numbers[second] for time in times for first, second in pairs)


def _by_value(
    groups: Sequence[_Members], keys: _Attributes, settings: _Attributes, positions: _Positions
) -> list[Stack]:
    """Stacks of one value of each key; empty if a value does not fill each position once."""
    stacks = []
    for group in groups:
        parts = [group] if positions.times_used(group) == 1 else _grouped_by(keys, group)
        if any(positions.times_used(part) != 1 for part in parts):
            return []
        named = [*(keys if len(parts) > 1 else ()), *settings]
        stacks += [_stack(part, named, (*keys, *settings), positions) for part in parts]
    return sorted(stacks, key=attrgetter("sort_key"))


def _stack(part: _Members, named: _Attributes, sorted_by: _Attributes, positions: _Positions) -> Stack:
    values = tuple((attribute.keyword, attribute.range_text(part)) for attribute in named)
    sort_key = tuple(min(attribute.labels[index] for index in part) for attribute in sorted_by)
    return Stack(part, values, sort_key, missing=positions.count - len({positions.of[index] for index in part}))


def _by_time(
    groups: Sequence[_Members], time: FrameAttribute, settings: _Attributes, positions: _Positions
) -> list[Stack]:
    """The n-th slices in time at each position, for each n; empty if they have no order or the stacks overlap in time."""
    stacks = []
    if time.keyword not in TIMES or not all(time.numbers[index] for group in groups for index in group):
        return []
    for group in groups:
        table = _ordered_by(time, group, positions)
        if not _are_apart(np.array([[time.numbers[index][0] for index in row] for row in table]), time.keyword):
            return []
        keys = [time] if len(table[0]) > 1 else []
        for number, part in enumerate(zip(*table, strict=True)):
            stack = _stack(part, [*keys, *settings], settings, positions)
            ordered_by = time.keyword if keys else ""
            stacks.append(replace(stack, sort_key=(number, *stack.sort_key), ordered_by=ordered_by))
    return sorted(stacks, key=attrgetter("sort_key"))


def _ordered_by(attribute: FrameAttribute, group: _Members, positions: _Positions) -> list[list[int]]:
    """The frames at each position in order of an attribute: one row a position."""
    rows: list[list[int]] = [[] for _ in range(positions.count)]
    for index in group:
        rows[positions.of[index]].append(index)
    return [sorted(row, key=lambda index: attribute.numbers[index]) for row in rows]


def _are_apart(times: NDArray[np.float64], keyword: str) -> bool:
    """Whether the latest slice of each stack is earlier than the first of the next.

    A clock may also count from the first slice at each position: it runs on if one position is imaged after another.

    Args:
        times: Shape (positions, stacks).
        keyword: The attribute that they come from.
    """
    from_first = [times - times[:, :1]] if keyword in CLOCKS else []
    return any(bool((table[:, :-1].max(axis=0) < table[:, 1:].min(axis=0)).all()) for table in (times, *from_first))


def _positions_of(members: Sequence[int], planes: Sequence[ImagePlane]) -> _Positions:
    shared = same_positions([planes[index] for index in members])
    of = {members[at]: number for number, group in enumerate(shared) for at in group}
    alone = [index for index in members if index not in of]
    of |= {index: len(shared) + number for number, index in enumerate(alone)}
    return _Positions(of, len(shared) + len(alone))


def _distinguishes(attribute: FrameAttribute, members: Sequence[int], positions: _Positions) -> bool:
    """Whether an attribute differs at one position at least."""
    return len({(positions.of[index], attribute.labels[index]) for index in members}) > positions.count


def _without_redundant(settings: _Attributes, members: Sequence[int]) -> _Attributes:
    """The settings without those that separate nothing that the others do not separate."""
    needed = list(settings)
    # From the last setting to the first: of two that separate alike, the first of SETTINGS stays and names the stacks.
    for setting in reversed(settings):
        others = [other for other in needed if other is not setting]
        if len(_grouped_by(others, members)) == len(_grouped_by(needed, members)):
            needed = others
    return needed


def _grouped_by(keys: _Attributes, members: Iterable[int]) -> list[_Members]:
    """Groups of equal values of all keys, in order of the values."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in members:
        groups.setdefault(tuple(key.labels[index] for key in keys), []).append(index)
    return [tuple(groups[labels]) for labels in sorted(groups)]


def _are_same_stacks(alternatives: Sequence[Sequence[Stack]]) -> bool:
    """Whether all alternatives have the same stacks, in whichever order."""
    return len({frozenset(frozenset(stack.members) for stack in stacks) for stacks in alternatives}) <= 1


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
