"""Names of structures: whether a name of `labels` and a segment of `segments.json` match, which segments have a side, and how
text of the data stands in files that MONAI's parser reads.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any

from dicom_io.coding import Segment, snomed_ct
from monai_unet_app.errors import SidesError

_WORDS = {
    "left": "left l lt links linke linker gauche izquierdo izquierda esquerdo esquerda sinister sinistra sinistro sin",
    "right": "right r rt rechts rechte rechter droit droite derecho derecha direito direita dexter dextra destra destro dext",
}
_SIDES = {word: side for side, words in _WORDS.items() for word in words.split()}
_SIDE_CODES = {"7771000": "left", "24028007": "right"}  # SNOMED CT: Left, Right
_NO_MEANING = frozenset(("a", "and", "by", "in", "of", "on", "or", "the", "with"))
_PLACEHOLDERS = frozenset(("class", "channel", "foreground", "label", "mask", "object", "roi", "segment", "structure"))
_LEAST_STEM = 3
_MOST_ENDING = 3
_LONGEST_ACRONYM = 5


def contradiction(names: Sequence[str], segments: Sequence[Segment]) -> str | None:
    """The first name that does not match the segment with its number, as part of a sentence; None if all names match.

    A name matches its segment if they share a word, the beginning of a word or an acronym: "kidney_left" and "Left kidney",
    "ant" and "Anterior hippocampus", "pz" and "Peripheral zone". A name does not match if another segment shares more words
    with it, by its SegmentLabel alone or with its codes, or if the name and the segment have opposite sides. Both texts
    count, because people read the label and machines read the codes. A name without a meaning ("class_3") matches everything.

    Args:
        names: Names of the structures, without background.
        segments: One segment for each name, in the order of their numbers.
    """
    for index, (name, own) in enumerate(zip(names, segments, strict=True)):
        if says_nothing(name):  # which no segment could contradict
            continue
        by_label = [_same_words(name, segment.label) for segment in segments]
        by_label[index] = _shared(name, own.label)
        with_codes = [_shared(name, _text(segment)) for segment in segments]
        codes = [_shared(name, _text(segment).removeprefix(segment.label)) for segment in segments]
        # Each text by itself: the words of the codes would hide that two labels are exchanged
        for scores in (by_label, with_codes, codes):
            better = max(range(len(segments)), key=scores.__getitem__)
            if scores[better] > scores[index]:
                other = f"segment {better + 1} is {segments[better].label!r}"
                return f"calls structure {index + 1} {name!r}, but segment {index + 1} is {own.label!r} and {other}"
        # A side weighs more than shared words: "kidney_left" shares a word with "Right kidney"
        sides = {"left", "right"}
        other_side = sides in ({side_in(name), side_of(own)}, {side_in(name), side_in(own.label)})
        if other_side or not _shared(name, f"{_text(own)} {own.description}"):
            return f"calls structure {index + 1} {name!r}, but segment {index + 1} is {own.label!r}"
    return None


def same_name(name: str, other: str) -> bool:
    """Whether two names have the same words, whatever their order, case and signs, and the same side."""
    return sorted(_word_list(name)) == sorted(_word_list(other))


def one_line(text: str) -> str:
    """The text without line breaks and control characters, which become spaces: YAML, HTML and terminals obey them."""
    return "".join(" " if unicodedata.category(sign) in ("Cc", "Zl", "Zp") else sign for sign in text)


def harmless(value: Any) -> Any:
    """Text, or every text in lists and mappings, of which MONAI's parser evaluates, resolves and loads nothing.

    Its signs `$` (expression), `@` (reference) and `%` (another file) become "_" where it obeys them: at the beginning of a
    text, and before "#" and "::"; so do "#" and "::" in keys, of which none is "_target_" or another word of the parser.
    """
    if isinstance(value, str):
        return _OBEYED.sub(lambda found: "_" * len(found[0]), value)
    if isinstance(value, dict):
        return {_OF_KEYS.sub("", re.sub("::|#", "_", harmless(str(key)))): harmless(one) for key, one in value.items()}
    return [harmless(one) for one in value] if isinstance(value, list | tuple) else value


def obeyed(value: Any) -> str | None:
    """The first text in lists and mappings that `harmless` changes; None if there is none."""
    if isinstance(value, dict):
        keys = (key for key in map(str, value) if harmless({key: 0}) != {key: 0})
        return next(chain(keys, filter(None, map(obeyed, value.values()))), None)
    if isinstance(value, list | tuple):
        return next(filter(None, map(obeyed, value)), None)
    return value if isinstance(value, str) and harmless(value) != value else None


_OBEYED = re.compile(r"^\s*[$@%]+|[@%](?=#|::)")
_OF_KEYS = re.compile("^_(?=(target|mode|requires|disabled|desc)_$)")


def says_nothing(name: str) -> bool:
    """Whether a name only stands for one: "class_3", "label", "structure_1"."""
    return not any(word.isalpha() for word in _words(name) - _PLACEHOLDERS)


def side_of(segment: Segment) -> str | None:
    """ "left" or "right" by the segment's codes, else by its label; None for no side or both sides."""
    coded = _coded_sides(segment)
    return coded.pop() if len(coded) == 1 else side_in(f"{segment.label} {segment.type.meaning}")


def _coded_sides(segment: Segment) -> set[str]:
    modifiers = (segment.type_modifier, segment.anatomic_region_modifier)
    codes = [snomed_ct(code) or code for code in modifiers if code is not None]
    return {_SIDE_CODES[code.value] for code in codes if code.value in _SIDE_CODES}


def check_side(segment: Segment) -> None:
    """Raises SidesError if the label, the codes and their meanings do not all have the same side, where they have one."""
    codes = (segment.type, segment.type_modifier, segment.anatomic_region, segment.anatomic_region_modifier)
    told = {side_in(text) for text in (segment.label, *(code.meaning for code in codes if code is not None))}
    if len((told | _coded_sides(segment)) - {None}) > 1:
        raise SidesError(
            f"segment {segment.number} is called {segment.label!r}, and its label and codes name both left and right; they "
            "have to agree; correct one of them in the file"
        )


def side_in(text: str) -> str | None:
    """ "left" or "right" if the text has one of the words; None for neither or both."""
    sides = {_SIDES[word] for word in _words(text) if word in _SIDES}
    return sides.pop() if len(sides) == 1 else None


def _text(segment: Segment) -> str:
    codes = (segment.type, segment.type_modifier, segment.anatomic_region, segment.anatomic_region_modifier)
    return " ".join([segment.label, *(code.meaning for code in codes if code is not None)])


@lru_cache(1 << 12)
def _word_list(text: str) -> tuple[str, ...]:
    separated = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=\b[LR])(?=[A-Z][a-z])", " ", text)  # leftKidney, LKidney
    words = (_SIDES.get(word, word) for word in re.findall(r"[^\W_]+", separated.lower()))
    return tuple(word for word in words if word not in _NO_MEANING)


def _words(text: str) -> set[str]:
    return set(_word_list(text))


def _same_words(name: str, text: str) -> int:
    """How many words of the name are in the text; two words of the text may be one word of the name."""
    words = _word_list(text)
    joined = {first + second for first, second in pairwise(words)}
    return sum(any(_alike(word, other) for other in (*words, *joined)) for word in _words(name))


def _shared(name: str, text: str) -> int:
    """As `_same_words`, but 1 for a name without a common word that is an acronym of the text."""
    words, count = _word_list(text), _same_words(name, text)
    joined = "".join(_word_list(name))
    if not count and (joined in words or any(_abbreviates(word, words) for word in _words(name) if word not in _SIDES)):
        return 1
    return count


@lru_cache(1 << 16)
def _alike(word: str, other: str) -> bool:
    """Equal, or different only in the ending: vessel and vessels, tumor and tumour, ant and anterior."""
    if word == other or not (word + other).isalpha():
        return word == other
    common = next((n for n, (a, b) in enumerate(zip(word, other, strict=False)) if a != b), min(len(word), len(other)))
    if common < _LEAST_STEM:
        return False
    # Either the name's word is the beginning of the other ("ant"), or only short endings differ. A longer stem permits
    # a longer ending.
    return common == len(word) or max(len(word), len(other)) - common <= min(_MOST_ENDING, common - 2)


def _abbreviates(word: str, words: Sequence[str]) -> bool:
    """Whether a short word consists of letters of these words in order, beginning with the first letter of one of them."""
    if len(word) > _LONGEST_ACRONYM:
        return False
    # An acronym may begin at any of the words, not only at the first
    texts = ["".join(words[first:]) for first in range(len(words))]
    return any(text[:1] == word[0] and _letters_in_order(word, text) for text in texts)


def _letters_in_order(word: str, text: str) -> bool:
    rest = iter(text)
    # `in` consumes the iterator, so every letter is searched behind the one before
    return all(letter in rest for letter in word)
