"""The differences between the slices of a series besides their position: values of each attribute, compared by their kind.

Numbers are compared as numbers: "4.60" equals 4.6, and values that differ by less than a tolerance from slice to slice count as
one value. Times of day are compared in seconds, words letter by letter.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np

from dicom_io.reading.frames import Frame
from dicom_io.reading.headers import shown
from dicom_io.reading.kept_attributes import CLOCKS, DISTINGUISHING, SETTINGS

WORDS = frozenset({"ComplexImageComponent", "ImageType", "FrameType", "ConvolutionKernel", "StackID"})

SAME_RELATIVE, SAME_ABSOLUTE = 0.01, 0.01
"""The largest difference of two neighbouring values of a setting that count as one value: 1 %, or 0.01 ms or s/mm2. Scanners
round to 0.001 and shift an echo by a few of those from slice to slice; the echoes of one train lie some percent apart even at
its end.
"""

SAME_DIRECTION = 1e-3
"""The same for each component of a gradient's unit vector, 0.06 degrees; directions of one scheme lie degrees apart."""

MAX_VALUES, LONGEST_VALUE = 6, 64
"""How many values of an attribute a message lists, and how many characters of each."""

_TIME = re.compile(r"(?P<hour>\d\d)(?P<minute>\d\d)?(?P<second>\d\d(\.\d{1,6})?)?([+-]\d{4})?")
_DAY_S = 86400.0
_MAX_COMPONENTS = 16  # of one value; a direction has 3, the inversions before one picture are one or two


@dataclass(frozen=True)
class FrameAttribute:
    """The values of one attribute for each of N frames.

    Attributes:
        keyword: The attribute.
        texts: N values as a message shows them; "none" where the attribute is absent or not of its kind.
        numbers: N tuples: the value of a number, the components of a vector, the seconds of a clock; empty for words and
            absent values.
        labels: N counts from 0, equal for equal values; they grow with the value, and absent values come first.
    """

    keyword: str
    texts: tuple[str, ...]
    numbers: tuple[tuple[float, ...], ...]
    labels: tuple[int, ...]

    def range_text(self, members: Sequence[int]) -> str:
        """The value that these frames share, or their range from least to greatest."""
        ordered = sorted(members, key=lambda index: (self.labels[index], self.numbers[index], self.texts[index]))
        first, last = ordered[0], ordered[-1]
        if self.numbers[first] == self.numbers[last] and self.labels[first] == self.labels[last]:
            return self.texts[first]
        return f"{self.texts[first]} to {self.texts[last]}"

    def values(self, members: Sequence[int]) -> list[str]:
        """The different values among these frames, in increasing order."""
        alike: dict[int, list[int]] = {}
        for index in members:
            alike.setdefault(self.labels[index], []).append(index)
        return [self.range_text(alike[label]) for label in sorted(alike)]


def differing_attributes(frames: Sequence[Frame]) -> list[FrameAttribute]:
    """The attributes in which the frames differ: times first, then counts, then settings."""
    headers = [dict(frame.distinguishing) for frame in frames]
    attributes = [_attribute(keyword, [header.get(keyword, "") for header in headers]) for keyword in DISTINGUISHING]
    return [attribute for attribute in attributes if len(set(attribute.labels)) > 1]


def component(image_type: str) -> str:
    """M, P, R or I if the third word of ImageType says so, or the fourth as Philips has it (PHASE MAP\\P); else ""."""
    words = [word.split("_")[0] for word in image_type.upper().split("\\")[2:4]]
    return next((word for word in words if word in ("M", "P", "R", "I")), "")


def listed_values(values: Sequence[str]) -> str:
    """The first MAX_VALUES of the values, as a message may show them."""
    texts = [shown(value[:LONGEST_VALUE])[:LONGEST_VALUE] for value in values[:MAX_VALUES]]
    return " / ".join(texts) + (f" / and {len(values) - MAX_VALUES} more" if len(values) > MAX_VALUES else "")


def _attribute(keyword: str, texts: Sequence[str]) -> FrameAttribute:
    if keyword in WORDS:
        # Words that are numbers, as many values of StackID, are sorted by value: 2, 3, 10.
        ordered = sorted(set(texts), key=lambda text: (_numbers(text) or (math.inf,), text))
        words = {text: label for label, text in enumerate(ordered)}
        return FrameAttribute(keyword, _or_none(texts), ((),) * len(texts), tuple(words[text] for text in texts))
    if keyword in CLOCKS:
        seconds = _past_midnight([_seconds(text, with_date="Date" in keyword) for text in texts])
        start = min((value[0] for value in seconds if value), default=0.0)
        since_start = [f"+{value[0] - start:.6g} s" if value else "" for value in seconds]
        return FrameAttribute(keyword, _or_none(since_start), tuple(seconds), _labels(seconds, 0.0, 0.0))
    numbers = [_numbers(text) for text in texts]
    valid = [text if value else "" for text, value in zip(texts, numbers, strict=True)]
    return FrameAttribute(keyword, _or_none(valid), tuple(numbers), _labels(numbers, *_tolerances(keyword)))


def _tolerances(keyword: str) -> tuple[float, float]:
    """Absolute and relative tolerance of an attribute's values; 0 for times and counts, which differ however close they lie."""
    if keyword == "DiffusionGradientOrientation":
        return SAME_DIRECTION, 0.0
    return (SAME_ABSOLUTE, SAME_RELATIVE) if keyword in SETTINGS else (0.0, 0.0)


def _or_none(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(text or "none" for text in texts)


def _numbers(text: str) -> tuple[float, ...]:
    """The finite numbers of a text in DICOM's form; empty if the text holds anything else."""
    try:
        numbers = tuple(float(part) for part in text.split("\\")[:_MAX_COMPONENTS])
    except ValueError:
        return ()
    return numbers if all(map(math.isfinite, numbers)) else ()


def _seconds(text: str, *, with_date: bool) -> tuple[float, ...]:
    """The seconds of a time of day, or since the year 1 (PS3.5 6.2, TM and DT; offsets from UTC are ignored)."""
    # PS3.5 table 6.2-1, TM: ACR-NEMA wrote colons between hours, minutes and seconds.
    day, text = (text[:8], text[8:]) if with_date else ("", text.replace(":", ""))
    time = _TIME.fullmatch(text.strip())
    try:
        days = date(int(day[:4]), int(day[4:6]), int(day[6:])).toordinal() if with_date else 0
    except ValueError:
        return ()
    if time is None:
        return ()
    hour, minute, second = (float(time[part] or 0) for part in ("hour", "minute", "second"))
    return (days * _DAY_S + hour * 3600 + minute * 60 + second,)


def _past_midnight(seconds: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Times of day of one series; where they lie more than half a day apart, the early ones are those of the next day."""
    known = [value[0] for value in seconds if value]
    if not known or max(known) > _DAY_S or max(known) - min(known) <= _DAY_S / 2:
        return list(seconds)
    return [(value[0] + _DAY_S,) if value and value[0] < _DAY_S / 2 else value for value in seconds]


def _labels(values: Sequence[tuple[float, ...]], absolute: float, relative: float) -> tuple[int, ...]:
    """A label for each value. Component by component, a new label begins where the next larger value is further off than the
    tolerance, so values that differ by small steps share a label.
    """
    keys: list[tuple[int, ...]] = [(len(value),) for value in values]
    for column in range(max(map(len, values), default=0)):
        present = [index for index, value in enumerate(values) if len(value) > column]
        numbers = np.array([values[index][column] for index in present])
        order = np.argsort(numbers, kind="stable")
        steps = np.diff(numbers[order]) > np.maximum(absolute, relative * np.abs(numbers[order][1:]))
        for place, label in zip(order, [0, *np.cumsum(steps)], strict=True):
            keys[present[place]] += (int(label),)
    dense = {key: label for label, key in enumerate(sorted(set(keys)))}
    return tuple(dense[key] for key in keys)
