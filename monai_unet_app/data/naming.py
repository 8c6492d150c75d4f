"""Whether a name of `labels` and a segment of `segments.json` can mean the same structure, and which segments have a side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from dicom_io.coding import Segment

_SIDES = {"left": "left", "l": "left", "lt": "left", "right": "right", "r": "right", "rt": "right"}
_SIDE_CODES = {"7771000": "left", "24028007": "right"}  # SNOMED CT: Left, Right
_NO_MEANING = frozenset(("a", "and", "by", "in", "of", "on", "or", "the", "with"))
_PLACEHOLDERS = frozenset(("class", "channel", "foreground", "label", "mask", "object", "roi", "segment", "structure"))
_LEAST_STEM = 3
_MOST_ENDING = 3
_LONGEST_ACRONYM = 5


def contradiction(names: Sequence[str], segments: Sequence[Segment]) -> str | None:
    """The first name that cannot mean the segment of its place; None where there is none.

    A name fits its segment if they share a word, the beginning of a word or an acronym: "kidney_left" and "Left kidney", "ant"
    and "Anterior hippocampus", "pz" and "Peripheral zone". It does not fit if another segment shares more with it, by its
    SegmentLabel alone or with its codes, or if one says left and the other right: people read the label, machines the codes. A
    name without a meaning of its own ("class_3") fits everything.

    Args:
        names: Of the structures, without background.
        segments: As many, in the order of their numbers.
    """
    for place, (name, own) in enumerate(zip(names, segments, strict=True)):
        if not any(word.isalpha() for word in _words(name) - _PLACEHOLDERS):
            continue
        by_label = [_same_words(name, segment.label) for segment in segments]
        by_label[place] = _shared(name, own.label)
        with_codes = [_shared(name, _text(segment)) for segment in segments]
        for scores in (by_label, with_codes):
            better = max(range(len(segments)), key=scores.__getitem__)
            if scores[better] <= scores[place]:
                continue
            there = f"segment {place + 1} is {own.label!r} and segment {better + 1} is {segments[better].label!r}"
            return f"calls structure {place + 1} {name!r}, but {there}"
        sides = {"left", "right"}
        other_side = sides in ({_sides(name), side_of(own)}, {_sides(name), _sides(own.label)})
        if other_side or not _shared(name, f"{_text(own)} {own.description}"):
            return f"calls structure {place + 1} {name!r}, but segment {place + 1} is {own.label!r}"
    return None


def side_of(segment: Segment) -> str | None:
    """ "left" or "right" where the segment's codes or its label say so; None for no side or both."""
    codes = (segment.type_modifier, segment.anatomic_region_modifier)
    coded = {_SIDE_CODES[code.value] for code in codes if code is not None and code.value in _SIDE_CODES}
    return coded.pop() if len(coded) == 1 else _sides(f"{segment.label} {segment.type.meaning}")


def _sides(text: str) -> str | None:
    found = {_SIDES[word] for word in _words(text) if word in _SIDES}
    return found.pop() if len(found) == 1 else None


def _text(segment: Segment) -> str:
    codes = (segment.type, segment.type_modifier, segment.anatomic_region, segment.anatomic_region_modifier)
    return " ".join([segment.label, *(code.meaning for code in codes if code is not None)])


def _in_order(text: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)  # leftKidney
    words = (_SIDES.get(word, word) for word in re.findall(r"[^\W_]+", apart.lower()))
    return [word for word in words if word not in _NO_MEANING]


def _words(text: str) -> set[str]:
    return set(_in_order(text))


def _same_words(name: str, text: str) -> int:
    """How many words of the name are found in the text."""
    there = _in_order(text)
    joined = {first + second for first, second in pairwise(there)}
    return sum(any(_alike(word, other) for other in (*there, *joined)) for word in _words(name))


def _shared(name: str, text: str) -> int:
    """As `_same_words`; 1 where no word is found, but the name is an acronym of the text."""
    there, found = _in_order(text), _same_words(name, text)
    whole = "".join(_in_order(name))
    if not found and (whole in there or any(_abbreviates(word, there) for word in _words(name) if word not in _SIDES)):
        return 1
    return found


def _alike(word: str, other: str) -> bool:
    """Equal, or the same but for the ending: vessel and vessels, tumor and tumour, ant and anterior."""
    if word == other or not (word + other).isalpha():
        return word == other
    common = next((n for n, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    if common < _LEAST_STEM:
        return False
    return common == len(word) or max(len(word), len(other)) - common <= min(_MOST_ENDING, common - 2)


def _abbreviates(word: str, there: Sequence[str]) -> bool:
    """Whether a short word is made of letters of these words in order, beginning with the first letter of one."""
    if len(word) > _LONGEST_ACRONYM:
        return False
    texts = ["".join(there[first:]) for first in range(len(there))]
    return any(text[:1] == word[0] and _letters_in_order(word, text) for text in texts)


def _letters_in_order(word: str, text: str) -> bool:
    rest = iter(text)
    return all(letter in rest for letter in word)
