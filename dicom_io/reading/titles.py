"""The title that a scanner gave a series, for people: its number, description, protocol and time.

Description and protocol are free text. Parts of the patient's name or ID in them are replaced by "...", as far as the header
names them in PatientName, PatientID and OtherPatientIDs; a nickname would stay.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_io.errors import DicomIoError, LabelError
from dicom_io.reading.instances import READ_ERRORS, Instance, load_dataset

_TITLE = ("SeriesNumber", "SeriesDescription", "ProtocolName", "SeriesTime")
_OF_THE_PATIENT = ("PatientName", "PatientID", "OtherPatientIDs")
_LONGEST = 64  # LO: PS3.5 6.2
_MOST_NAMED = 20  # in a message


@dataclass(frozen=True)
class SeriesTitle:
    """The title of a series; each part is empty if the header has none that can be read.

    Attributes:
        number: SeriesNumber.
        description: SeriesDescription.
        protocol: ProtocolName.
        time: SeriesTime as HH:MM.
    """

    number: str = ""
    description: str = ""
    protocol: str = ""
    time: str = ""

    @property
    def line(self) -> str:
        """The title in one line; empty if nothing is known."""
        protocol = f"protocol {self.protocol}" if self.protocol not in ("", self.description) else ""
        return ", ".join(
            filter(None, [f"no. {self.number}" if self.number else "", self.description, protocol, self.time])
        )


def title_of(instance: Instance) -> SeriesTitle:
    """The title of the series of an instance; empty if the file can no longer be read."""
    try:
        # Without the character set, a name beyond ASCII would not be recognised in the title.
        keywords = (*_TITLE, *_OF_THE_PATIENT, "SpecificCharacterSet")
        header = instance.dataset or load_dataset(instance.path, keywords=keywords)  # type: ignore[arg-type]
    except DicomIoError:
        return SeriesTitle()
    number, description, protocol, time = (
        without_patient(header, " ".join(text_values(header, keyword)[:1])) for keyword in _TITLE
    )
    clock = re.match(r"([01]\d|2[0-3])([0-5]\d)", time)
    return SeriesTitle(
        number if number.isdecimal() else "", description, protocol, f"{clock[1]}:{clock[2]}" if clock else ""
    )


def text_values(header: Dataset, keyword: str) -> list[str]:
    """The values of a text attribute, each in one line; empty if it is absent or cannot be decoded."""
    try:
        value = header.get(keyword)
        values = value if isinstance(value, MultiValue) else [] if value is None else [value]
        return [" ".join(str(value).split()) for value in values]
    except READ_ERRORS:
        return []


def numbers_called(header: Dataset, named: Iterable[tuple[int, str]], names: Sequence[str], what: str) -> list[int]:
    """The numbers of regions or segments by their names, in the order of `names`.

    Args:
        header: Names the patient, who is named in no message.
        named: Number and name of each region or segment.
        names: Those that are wanted, each once; white space counts as one space, as tables show it.
        what: "region" or "segment".

    Raises:
        LabelError: A name is of none, of several, or wanted twice.
    """
    by_name: dict[str, list[int]] = {}
    for number, name in named:
        by_name.setdefault(" ".join(name.split()), []).append(number)
    wanted = [" ".join(name.split()) for name in names]
    for name in wanted:
        numbers = by_name.get(name, [])
        if len(numbers) != 1 or wanted.count(name) > 1:
            known = ", ".join(without_patient(header, known_name) for known_name in sorted(by_name)[:_MOST_NAMED])
            raise LabelError(
                f"{len(numbers)} {what}(s) are called {name!r}, which is requested {wanted.count(name)} time(s); one {what} "
                f"for each name is needed; the file has {known}"
            )
    return [by_name[name][0] for name in wanted]


def without_patient(header: Dataset, text: str) -> str:
    """A text of at most 64 printable characters; words that are part of the patient's name or ID are replaced by "..."."""
    texts = [text for keyword in _OF_THE_PATIENT for text in text_values(header, keyword)]
    hidden = {part for value in texts for part in re.split(r"[\s^=,;_-]+", value) if len(part) > 1}
    text = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    # The longest part comes first: a short part may lie within it and would leave the rest.
    for part in sorted(hidden, key=len, reverse=True):
        text = re.sub(rf"(?<![^\W_]){re.escape(part)}(?![^\W_])", "...", text, flags=re.IGNORECASE)
    return text[:_LONGEST].strip()  # cut last: half a name is not found
