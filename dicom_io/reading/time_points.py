"""Several slices at one position -> the time points, echoes or acquisitions that they belong to.

`stacks` deals them out; here one is chosen, or refused with what there is to choose. A stack of which the slices show
different things is no volume, and is refused too.
"""

from __future__ import annotations

from collections.abc import Sequence

from dicom_io.errors import SeriesGeometryError, SeriesSelectionError
from dicom_io.reading.frame_attributes import SETTINGS, Mark, component, listed_values, marks_of
from dicom_io.reading.frames import Frame
from dicom_io.reading.geometry import ImagePlane, same_positions
from dicom_io.reading.headers import shown
from dicom_io.reading.stacks import Stack, are_parallel, stacks_of

MOST_KEYWORDS = 4
"""How many attributes a message lists."""

MOST_WANDER = 0.05
"""What part of the largest value the values of one stack may span: scanners adjust a time from slice to slice by less, and a
time or b-value that somebody chose for its contrast lies further off. What is tolerated is noted.
"""

_ALIKE = (
    "EchoTime",
    "EffectiveEchoTime",
    "InversionTime",
    "InversionTimes",
    "DiffusionBValue",
    "ComplexImageComponent",
)


def choose_time_point(
    frames: Sequence[Frame], planes: Sequence[ImagePlane], name: str, wanted: int | None
) -> tuple[list[Frame], tuple[str, ...]]:
    """The frames of one time point, and what there is to note; all frames where each position is used once.

    Raises:
        SeriesGeometryError: Positions are used several times and it was not said which to read, or nothing known here
            tells the slices apart.
        SeriesSelectionError: There is no time point of that number; or the slices of an MR stack show different things.
    """
    marks = marks_of(frames)
    stacks = stacks_of(planes, marks)
    if not stacks:
        raise _inseparable(frames, planes, marks, name)
    if wanted is None and len(stacks) > 1:
        raise _several(stacks, planes, name)
    if wanted is not None and not 1 <= wanted <= len(stacks):
        raise _no_such(stacks, name, wanted)
    stack = stacks[(wanted or 1) - 1]
    if stack.lacking:
        raise _broken_off(stacks, stack, name, wanted or 1)
    chosen = [frames[index] for index in stack.members]
    choice = [_note(stack, wanted, stacks)] if wanted and len(stacks) > 1 else []
    return chosen, (*choice, *_check_alike(chosen, name))


def _check_alike(frames: Sequence[Frame], name: str) -> list[str]:
    """What wanders from slice to slice of an MR stack. Raises SeriesSelectionError where slices show different things."""
    if str(frames[0].instance.header.get("Modality")) != "MR":
        return []
    notes = []
    for mark in marks_of(frames):
        values, spread = _shown_things(mark)
        told = f"{mark.keyword} ({listed_values(values)})"
        if len(values) > 1 and spread > MOST_WANDER:
            raise SeriesSelectionError(
                f"{name} has slices of different {told} in one stack, so they do not show the same thing; one value is "
                f"needed; pass the files of one {mark.keyword} only"
            )
        notes += [f"the slices differ a little in {told}"] if len(values) > 1 else []
    return notes


def _shown_things(mark: Mark) -> tuple[list[str], float]:
    """The values of an attribute that make slices incomparable, and what part of the largest they span (1 for words); no
    values of other attributes.
    """
    if mark.keyword in ("ImageType", "FrameType"):
        return sorted({component(text) for text in mark.texts} - {""}), 1.0
    if mark.keyword not in _ALIKE:
        return [], 0.0
    is_b_value = (
        mark.keyword == "DiffusionBValue"
    )  # a slice without one has b = 0; other attributes may be lost on the way
    known = [n for n, text in enumerate(mark.texts) if text != "none" or is_b_value]
    numbers = [mark.numbers[n] or (0.0,) * is_b_value for n in known]
    if any(len(value) != 1 for value in numbers):
        return mark.values(known), 1.0
    least, largest = min(numbers)[0], max(numbers)[0]
    return mark.values(known), (largest - least) / max(abs(least), abs(largest), 1e-9)


def _note(stack: Stack, wanted: int, stacks: Sequence[Stack]) -> str:
    told = " ".join(f"{keyword} {listed_values([value])}" for keyword, value in stack.values)
    how = f"; the slices at each position were counted in order of {stack.ranked_by}" if stack.ranked_by else ""
    broken_off = sum(bool(one.lacking) for one in stacks)
    lacking = f"; {broken_off} of the others lack slices" if broken_off else ""
    return f"time point {wanted} of {len(stacks)} was asked for: {told}{how}{lacking}"


def _several(stacks: Sequence[Stack], planes: Sequence[ImagePlane], name: str) -> SeriesGeometryError:
    groups = same_positions(planes) if are_parallel(planes) else []
    shared = f"{max(map(len, groups))} slices at the same position, at {len(groups)} positions: " if groups else ""
    sizes = sorted({len(stack.members) for stack in stacks})
    size = f"{sizes[0]} slices each" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} slices"
    keywords = list(dict.fromkeys(keyword for stack in stacks for keyword, _ in stack.values))
    order = f", numbered by {', then '.join(keywords)}" if len(keywords) > 1 else ""
    return SeriesGeometryError(
        f"{name} has {shared}{len(stacks)} {_noun(stacks)} of {size}, which differ in {_told(stacks)}{order}; "
        f"one slice a position is needed; choose with --time-point {_whole(stacks)}"
    )


def _whole(stacks: Sequence[Stack]) -> str:
    """The numbers of the stacks that lack no position."""
    whole = [n for n, stack in enumerate(stacks, 1) if not stack.lacking]
    if whole == list(range(1, len(whole) + 1)):
        return f"1 to {len(whole)}" if len(whole) > 1 else "1"
    return listed_values([str(n) for n in whole])


def _broken_off(stacks: Sequence[Stack], stack: Stack, name: str, wanted: int) -> SeriesGeometryError:
    positions = len(stack.members) + stack.lacking
    return SeriesGeometryError(
        f"{name} has {len(stack.members)} slices of time point {wanted}, at {len(stack.members)} of {positions} positions; one "
        f"slice at each is needed; fetch the missing ones, or choose with --time-point {_whole(stacks)}"
    )


def _no_such(stacks: Sequence[Stack], name: str, wanted: int) -> SeriesSelectionError:
    if len(stacks) == 1:
        return SeriesSelectionError(f"{name} has 1 time point; number {wanted} was asked for; leave the number out")
    return SeriesSelectionError(
        f"{name} has {len(stacks)} time points ({_told(stacks)}); number {wanted} was asked for; choose 1 to {len(stacks)}"
    )


def _noun(stacks: Sequence[Stack]) -> str:
    return "stacks" if stacks[0].values[0][0] == "StackID" else "time points or the like"


def _told(stacks: Sequence[Stack]) -> str:
    values: dict[str, dict[str, None]] = {}
    for keyword, value in (pair for stack in stacks for pair in stack.values):
        values.setdefault(keyword, {})[value] = None
    return " and ".join(f"{keyword} ({listed_values(list(found))})" for keyword, found in values.items())


def _inseparable(
    frames: Sequence[Frame], planes: Sequence[ImagePlane], marks: Sequence[Mark], name: str
) -> SeriesGeometryError:
    if not are_parallel(planes):
        ids = next(mark for mark in marks if mark.keyword == "StackID")
        return SeriesGeometryError(
            f"{name} holds stacks of several orientations, StackID ({listed_values(ids.values(range(len(frames))))}), and "
            "within one of them nothing tells the slices at the same position apart; one stack with one slice a position is "
            "needed; split the object by StackID"
        )
    groups = same_positions(planes)
    telling = [mark for mark in marks if len({mark.labels[index] for index in groups[0]}) > 1]
    telling.sort(key=lambda mark: mark.keyword not in SETTINGS)
    told = ", ".join(f"{mark.keyword} ({listed_values(mark.values(groups[0]))})" for mark in telling[:MOST_KEYWORDS])
    count = len(planes) - sum(len(group) - 1 for group in groups)
    files = ", ".join(sorted({_file(frames[index]) for index in groups[0]})[:4])
    return SeriesGeometryError(
        f"{name} has up to {max(map(len, groups))} slices at the same position, at {len(groups)} of "
        f"{count} positions; they differ in {told or 'no attribute known here'} (first: {files}), which deals "
        "out no stacks that hold each position once; one slice a position is needed; pass the files of one time point, echo or "
        "copy only"
    )


def _file(frame: Frame) -> str:
    return shown(frame.instance.path.name) if frame.instance.path else frame.instance.name
