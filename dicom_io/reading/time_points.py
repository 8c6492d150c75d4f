"""Several slices at one position -> the time points, echoes or acquisitions that they belong to.

`stacks` separates the slices; here one stack is chosen, or all are refused with a list of what there is to choose from. A stack
of slices that show different things is no volume and is refused too.
"""

from collections.abc import Sequence
from itertools import pairwise

from dicom_io.errors import SeriesGeometryError, SeriesSelectionError
from dicom_io.reading.frame_attributes import FrameAttribute, component, differing_attributes, listed_values
from dicom_io.reading.frames import Frame
from dicom_io.reading.geometry import ImagePlane, same_positions, slice_order
from dicom_io.reading.headers import shown
from dicom_io.reading.kept_attributes import SETTINGS
from dicom_io.reading.stacks import Stack, are_parallel, separate_stacks

MAX_KEYWORDS = 4
"""How many attributes a message lists."""

MAX_SPREAD = 0.05
"""How much the values of one stack may differ, as a share of the largest. Scanners adjust a time by less from slice to slice; a
time or b-value that was chosen for its contrast differs by more. Differences below the limit are noted.
"""

_SAME_IN_A_STACK = (
    "EchoTime", "EffectiveEchoTime", "InversionTime", "InversionTimes", "DiffusionBValue", "ComplexImageComponent",
    "ConvolutionKernel", "KVP",
)  # fmt: skip


def choose_time_point(
    frames: Sequence[Frame], planes: Sequence[ImagePlane], name: str, number: int | None
) -> tuple[list[Frame], tuple[str, ...]]:
    """The frames of one time point, and notes; all frames if each position is used once.

    Args:
        frames: Of one series.
        planes: Where they lie, a plane for each frame.
        name: How a message calls the series.
        number: Number of the time point from 1; None if the caller named none.

    Raises:
        SeriesGeometryError: Positions are used several times and the caller named no time point, or nothing that is known
            here tells the slices apart.
        SeriesSelectionError: There is no time point of that number; or the slices of an MR stack show different things.
    """
    attributes = differing_attributes(frames)
    stacks = separate_stacks(planes, attributes)
    if not stacks:
        raise _inseparable(frames, planes, attributes, name)
    if number is None and len(stacks) > 1:
        raise _choice_needed(stacks, planes, name)
    if number is not None and not 1 <= number <= len(stacks):
        raise _no_such_time_point(stacks, name, number)
    stack = stacks[(number or 1) - 1]
    if stack.missing:
        raise _incomplete_time_point(stacks, stack, name, number or 1)
    chosen = [frames[index] for index in stack.members]
    choice = [_choice_note(stack, number, stacks)] if number and len(stacks) > 1 else []
    return chosen, (*choice, *_check_comparable(chosen, name))


def _check_comparable(frames: Sequence[Frame], name: str) -> list[str]:
    """Notes of small differences between the slices of a stack. Raises SeriesSelectionError for large ones."""
    notes, is_mr = [], str(frames[0].instance.header.get("Modality")) == "MR"
    for attribute in differing_attributes(frames):
        if not is_mr and attribute.keyword not in ("AcquisitionNumber", "ConvolutionKernel", "KVP"):
            continue  # echo time, inversion time, b-value and component are settings of MR
        if attribute.keyword == "AcquisitionNumber" and _alternate(frames, attribute):
            notes.append(
                "slices of several acquisitions (AcquisitionNumber) alternate; check that they show the same phase"
            )
        values, spread = _contrast_values(attribute)
        listed = f"{attribute.keyword} ({listed_values(values)})"
        if len(values) > 1 and spread > MAX_SPREAD:
            raise SeriesSelectionError(
                f"{name} has slices of different {listed} in one stack, so they do not show the same thing; one value is "
                f"needed; pass the files of one {attribute.keyword} only"
            )
        notes += [f"the slices differ a little in {listed}"] if len(values) > 1 else []
    return notes


def _alternate(frames: Sequence[Frame], attribute: FrameAttribute) -> bool:
    """Whether slices of one value lie among those of another one, and not beyond them."""
    planes = [frame.plane for frame in frames if frame.plane is not None]
    if len(planes) < len(frames) or not are_parallel(planes):
        return False
    along = [attribute.texts[index] for index in slice_order(planes)]
    return sum(one != other for one, other in pairwise(along)) >= len(set(along))


def _contrast_values(attribute: FrameAttribute) -> tuple[list[str], float]:
    """The values of an attribute that changes what slices show, and their spread as a share of the largest (1 for words);
    no values of other attributes.
    """
    if attribute.keyword in ("ImageType", "FrameType"):
        return sorted({component(text) for text in attribute.texts} - {""}), 1.0
    if attribute.keyword not in _SAME_IN_A_STACK:
        return [], 0.0
    # a slice without DiffusionBValue has b = 0; other attributes may be lost on the way
    is_b_value = attribute.keyword == "DiffusionBValue"
    known = [n for n, text in enumerate(attribute.texts) if text != "none" or is_b_value]
    numbers = [attribute.numbers[n] or (0.0,) * is_b_value for n in known]
    # InversionTimes may hold several values, which have no single spread.
    if any(len(value) != 1 for value in numbers):
        return attribute.values(known), 1.0
    least, largest = min(numbers)[0], max(numbers)[0]
    return attribute.values(known), (largest - least) / max(abs(least), abs(largest), 1e-9)


def _choice_note(stack: Stack, number: int, stacks: Sequence[Stack]) -> str:
    values = " ".join(f"{keyword} {listed_values([value])}" for keyword, value in stack.values)
    order = f"; the slices at each position were counted in order of {stack.ordered_by}" if stack.ordered_by else ""
    incomplete = sum(bool(other.missing) for other in stacks)
    others = f"; {incomplete} of the others lack slices" if incomplete else ""
    return f"time point {number} of {len(stacks)} was asked for: {values}{order}{others}"


def _choice_needed(stacks: Sequence[Stack], planes: Sequence[ImagePlane], name: str) -> SeriesGeometryError:
    groups = same_positions(planes) if are_parallel(planes) else []
    shared = f"{max(map(len, groups))} slices at the same position, at {len(groups)} positions: " if groups else ""
    sizes = sorted({len(stack.members) for stack in stacks})
    size = f"{sizes[0]} slices each" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} slices"
    keywords = list(dict.fromkeys(keyword for stack in stacks for keyword, _ in stack.values))
    order = f", numbered by {', then '.join(keywords)}" if len(keywords) > 1 else ""
    noun = "stacks" if stacks[0].values[0][0] == "StackID" else "time points or similar stacks"
    return SeriesGeometryError(
        f"{name} has {shared}{len(stacks)} {noun} of {size}, which differ in {_differences(stacks)}{order}; "
        f"one slice a position is needed; choose with --time-point {_complete_numbers(stacks)}"
    )


def _complete_numbers(stacks: Sequence[Stack]) -> str:
    """The numbers of the stacks that lack no position, as a message lists them."""
    numbers = [n for n, stack in enumerate(stacks, 1) if not stack.missing]
    if numbers == list(range(1, len(numbers) + 1)):
        return f"1 to {len(numbers)}" if len(numbers) > 1 else "1"
    return listed_values([str(n) for n in numbers])


def _incomplete_time_point(stacks: Sequence[Stack], stack: Stack, name: str, number: int) -> SeriesGeometryError:
    count = len(stack.members)
    return SeriesGeometryError(
        f"{name} has {count} slices of time point {number}, at {count} of {count + stack.missing} positions; one slice at "
        f"each is needed; fetch the missing ones, or choose with --time-point {_complete_numbers(stacks)}"
    )


def _no_such_time_point(stacks: Sequence[Stack], name: str, number: int) -> SeriesSelectionError:
    if len(stacks) == 1:
        return SeriesSelectionError(f"{name} has 1 time point; number {number} was asked for; leave the number out")
    return SeriesSelectionError(
        f"{name} has {len(stacks)} time points ({_differences(stacks)}); number {number} was asked for; choose 1 to "
        f"{len(stacks)}"
    )


def _differences(stacks: Sequence[Stack]) -> str:
    """The attributes in which stacks differ, each with its values."""
    values: dict[str, dict[str, None]] = {}
    for keyword, value in (pair for stack in stacks for pair in stack.values):
        values.setdefault(keyword, {})[value] = None
    return " and ".join(f"{keyword} ({listed_values(list(different))})" for keyword, different in values.items())


def _inseparable(
    frames: Sequence[Frame], planes: Sequence[ImagePlane], attributes: Sequence[FrameAttribute], name: str
) -> SeriesGeometryError:
    if not are_parallel(planes):
        stack_ids = next(attribute for attribute in attributes if attribute.keyword == "StackID")
        listed = listed_values(stack_ids.values(range(len(frames))))
        return SeriesGeometryError(
            f"{name} holds stacks of several orientations, StackID ({listed}), and within one of them nothing "
            "distinguishes the slices "
            "at the same position; one stack with one slice a position is needed; split the object by StackID"
        )
    groups = same_positions(planes)
    telling = [attribute for attribute in attributes if len({attribute.labels[index] for index in groups[0]}) > 1]
    telling.sort(key=lambda attribute: attribute.keyword not in SETTINGS)
    listed = ", ".join(
        f"{attribute.keyword} ({listed_values(attribute.values(groups[0]))})" for attribute in telling[:MAX_KEYWORDS]
    )
    count = len(planes) - sum(len(group) - 1 for group in groups)
    files = ", ".join(sorted({_file_name(frames[index]) for index in groups[0]})[:4])
    return SeriesGeometryError(
        f"{name} has up to {max(map(len, groups))} slices at the same position, at {len(groups)} of {count} positions; they "
        f"differ in {listed or 'no attribute known here'} (first: {files}), which does not separate them into stacks that hold "
        "each position once; one slice a position is needed; pass the files of one time point, echo or copy only"
    )


def _file_name(frame: Frame) -> str:
    return shown(frame.instance.path.name) if frame.instance.path else frame.instance.name
