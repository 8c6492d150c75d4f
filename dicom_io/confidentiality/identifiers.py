"""What identifies somebody in an object, wherever it stands, and whether a short text holds it.

Looked for are the names of all persons, the numbers that Table E.1-1 removes, and birth dates in their usual spellings. Texts
are read in the character set that holds where they stand, and compared without case and accents.
"""

import contextlib
import re
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from dicom_io.confidentiality.table import table
from dicom_io.reading.instances import listed

SHORTEST_NAME, SHORTEST_NUMBER, SHORTEST_PART = 2, 4, 5
"""Fewest letters of a name, characters of a number that is a word of a text, and of a number within a word."""

_NUMBER = re.compile(r"IDs?$|Identifi(er|cation)$|Number|Locator$")
"""Keywords of attributes whose value is the number of a person, an order, a device, a specimen."""
_BIRTH_DATE = Tag("PatientBirthDate")
_DELIMITERS = set(b"\\^=")  # each ends the effect of an escape sequence (PS3.5 6.1.2.5.3)
_BETWEEN_WORDS = re.compile(r"[\W_]+")
# of scripts that leave no space between words: kana, Chinese characters, Hangul
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u1100-\u11ff]")
_DIGITS = re.compile(r"(?<!\d)(\d{8}|\d{6})(?!\d)")
_PARTS = re.compile(r"\d+|[^\W\d_]+")
# The first letters of months in English, German, French, Spanish and Italian, without accents.
_MONTHS = {
    letters: number
    for number, forms in enumerate(
        ("jan gen ene", "feb fev", "mar", "apr avr abr", "may mai mag", "jun giu juin", "jul lug juil", "aug aou ago",
         "sep set", "oct okt ott", "nov", "dec dez dic"),
        start=1,
    )
    for letters in forms.split()
}  # fmt: skip
YearMonthDay = tuple[int, int, int]


@dataclass(frozen=True)
class Identifiers:
    """What identifies the people of an object, folded.

    Attributes:
        names: Words of names.
        numbers: Whole numbers.
        birth_dates: As (year, month, day).
    """

    names: frozenset[str]
    numbers: frozenset[str]
    birth_dates: frozenset[YearMonthDay]

    def are_in(self, text: str, shortest: int = SHORTEST_NUMBER) -> bool:
        """Whether a folded text holds one of them; of numbers those of at least `shortest` characters."""
        words: set[str] = set(_BETWEEN_WORDS.split(text))
        return bool(
            self.names & words
            or any(_IDEOGRAPH.search(name) and name in text for name in self.names)
            or {number for number in self.numbers if len(number) >= shortest}
            & words.union(text.split(), (text.strip(),))
            or any(len(number) >= SHORTEST_PART and number in text for number in self.numbers)
            or (
                self.birth_dates
                and any(_spells(triple, date) for triple in _triples(text) for date in self.birth_dates)
            )
        )


def identifiers_of(dataset: Dataset, options: frozenset[str]) -> Identifiers:
    """What identifies people in a data set and in all its items, private ones too.

    Args:
        dataset: Its values are not decoded; sequences are read.
        options: From `checked_options`; a number that one of them keeps is not looked for.
    """
    names: set[str] = set()
    numbers: set[str] = set()
    dates: set[YearMonthDay] = set()
    sought = _number_tags(options)
    # A list of what is still to be read: items in each other without end would exhaust recursion.
    ahead: list[tuple[Dataset, list[str] | None]] = [(dataset, None)]
    while ahead:
        holder, outer = ahead.pop()
        encodings = encodings_of(holder, outer)
        for tag in list(holder.keys()):
            vrs = _vrs(holder, tag)
            if "SQ" in vrs:
                items = holder[tag].value
                ahead += [(item, encodings) for item in items or [] if isinstance(item, Dataset)]
            elif "PN" in vrs:
                for text in readings(holder.get_item(tag), encodings):
                    names.update(word for word in _BETWEEN_WORDS.split(text) if len(word) >= SHORTEST_NAME)
            elif tag == _BIRTH_DATE:
                dates.update(filter(None, map(_date_of, readings(holder.get_item(tag), encodings))))
            elif tag in sought:
                for text in readings(holder.get_item(tag), encodings):
                    numbers.update(part for part in map(str.strip, text.split("\\")) if len(part) >= SHORTEST_NUMBER)
    return Identifiers(frozenset(names), frozenset(numbers), frozenset(dates))


def _vrs(dataset: Dataset, tag: BaseTag) -> set[str]:
    """The VR of an attribute in the file, and that by the standard."""
    vrs = {str(dataset.get_item(tag).VR)}
    if keyword_for_tag(tag) and not tag.is_private:
        vrs.add(dictionary_VR(tag))
    return vrs


@cache
def _number_tags(options: frozenset[str]) -> frozenset[int]:
    """Attributes of Table E.1-1 that hold a number, without those that an option keeps."""
    return frozenset(
        tag
        for tag, row in table().rows.items()
        if _NUMBER.search(keyword_for_tag(tag))
        and dictionary_VR(tag) in ("SH", "LO", "UC", "UT")
        and all(row.options.get(option) != "K" for option in options)
    )


def _date_of(text: str) -> YearMonthDay | None:
    """A date of DICOM, YYYYMMDD or YYYY.MM.DD; None for a part of a date and for anything else."""
    digits = text.strip("\0 ").replace(".", "")
    return (int(digits[:4]), int(digits[4:6]), int(digits[6:])) if re.fullmatch(r"[0-9]{8}", digits) else None


def _triples(text: str) -> Iterator[tuple[str, ...]]:
    """Each three parts of a folded text that may spell a date: figures, and months as "m1" to "m12" for their names."""
    parts = [part for part in map(_part_of_date, _PARTS.findall(text)) if part]
    yield from zip(parts, parts[1:], parts[2:], strict=False)
    for run in _DIGITS.findall(text):
        yield run[:2], run[2:4], run[4:]
        yield run[:-4], run[-4:-2], run[-2:]


def _part_of_date(part: str) -> str:
    if part.isdecimal():
        return part
    month = _MONTHS.get(part[:4]) or _MONTHS.get(part[:3])
    return f"m{month}" if month else ""


def _spells(triple: tuple[str, ...], date: YearMonthDay) -> bool:
    """Whether three parts of a text spell a date: 1958-12-03, 03.12.58, 12/3/1958, 3 Dec 1958, Dec 3, 1958."""
    year, month, day = date
    years, days = {f"{year:04}", f"{year % 100:02}"}, {f"{day}", f"{day:02}"}
    months = {f"{month}", f"{month:02}", f"m{month}"}
    first, second, third = triple
    if second in months:
        return (first in years and third in days) or (first in days and third in years)
    return first in months and second in days and third in years


def texts_of(value: Any) -> list[str]:
    """The values of an attribute as texts; none of bytes."""
    return [] if isinstance(value, (bytes, bytearray)) else list(map(str, listed(value)))


def encodings_of(dataset: Dataset, outer: list[str] | None = None) -> list[str]:
    """The character encodings of a data set or item; `outer`, those around it, where it names none (PS3.5 6.1.2.5)."""
    named = dataset.get("SpecificCharacterSet")
    if not named and outer is not None:
        return outer
    with warnings.catch_warnings(action="ignore"):
        try:
            return convert_encodings(named or "ISO_IR 6")
        except (LookupError, ValueError):
            # An unknown character set: Latin-1 has a letter for every byte, so every text can be compared.
            return ["iso8859"]


def readings(element: DataElement | RawDataElement, encodings: list[str]) -> set[str]:
    """The texts of a value as they are compared: in the declared character set, and in UTF-8, which is often undeclared."""
    value = element.value
    if not isinstance(value, bytes):
        return {_folded("\\".join(texts_of(value)))}
    with warnings.catch_warnings(action="ignore"):
        try:
            # pydicom's warnings are ignored, since they may quote the text.
            texts = {_folded(decode_bytes(value, encodings, _DELIMITERS))}
        except (LookupError, ValueError):
            texts = {_folded(value.decode("latin-1"))}
    with contextlib.suppress(UnicodeDecodeError):
        texts.add(_folded(value.decode("utf-8")))
    return texts


def _folded(text: str) -> str:
    """A text without case and accents, in one normal form of Unicode."""
    # Unicode 3.13, caseless matching: casefold may give letters that are not decomposed, so they are decomposed again.
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))
