"""Whether a header is fit to be used: values of the kind that the standard names, in a size and form that can be told.

What is at fault is called by its keyword, never by its value: a length that is wrong by one bit makes a UID of the
patient's name.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from pydicom import config
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

# pydicom would tell values that do not fit in its log and its warnings, and a wrong byte makes such a value of a patient's name
config.settings.reading_validation_mode = config.IGNORE

LONGEST_UID = 64  # PS3.5 9.1

MAX_TEXT = 128
"""The most characters of a UID or code; the standard has 64 and 16, and some writers exceed them."""

UIDS = frozenset(
    [
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "ConcatenationUID",
        "TransferSyntaxUID",
        "MediaStorageSOPClassUID",
        "MediaStorageSOPInstanceUID",
    ]
)
CODES = frozenset({"Modality", "PhotometricInterpretation"})
WHOLE = frozenset(
    [
        "NumberOfFrames",
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "SamplesPerPixel",
        "InConcatenationNumber",
        "InConcatenationTotalNumber",
    ]
)
NAMES = frozenset({"PatientName", "PatientID"})
LONGEST_NAME = 64  # PN: PS3.5 table 6.2-1

_ONE_VALUE = {Tag(keyword): keyword for keyword in UIDS | CODES | WHOLE | NAMES}
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LIKE_A_UID = re.compile(r"[\w. -]*", re.ASCII)  # some writers put letters and hyphens into UIDs, none puts slashes
_PRINTABLE = re.compile(rb"[ -~]*")
_IN_ASCII = frozenset({"UI", "CS", "DS", "IS"})
_CHECKED_BY_PYDICOM = frozenset({"AE", "AS", "CS", "DA", "DT", "TM", "UI", "UR"})  # which shows values that do not fit
_PADDING = b"\0 \t\r\n"
_NUMBERS = frozenset({"US", "SS", "UL", "SL", "UV", "SV", "IS", "DS", "FL", "FD", "AT"})
_TEXTS = frozenset({"AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})


def shown(text: Path | str) -> str:
    """A path or value as it may stand in a message: in one line, with escapes for what cannot be printed."""
    return str(text) if str(text).isprintable() else ascii(str(text))[1:-1]


def shown_uid(uid: object) -> str:
    """A UID as it may stand in a message; what is none may be anything, a name too, and is not shown."""
    return str(uid) if _LIKE_A_UID.fullmatch(str(uid)) and len(str(uid)) <= MAX_TEXT else "(no UID)"


def is_uid(text: str) -> bool:
    """True for digits in components joined by points, at most 64 characters (PS3.5 9.1)."""
    return len(text) <= LONGEST_UID and bool(_UID.fullmatch(text))


def fault_of(header: Dataset) -> str:
    """What is wrong with the attributes of a header that reading uses, its file meta information included; else ""."""
    datasets = (getattr(header, "file_meta", None) or Dataset(), header)
    for dataset in datasets:
        for element in dataset.values():
            fault = _fault_of_raw(element) if isinstance(element, RawDataElement) else ""
            if fault:
                return fault
    for dataset in datasets:
        for tag in _ONE_VALUE.keys() & dataset.keys():
            fault = _fault_of_value(dataset[tag].value, _ONE_VALUE[tag])
            if fault:
                return fault
    return ""


def _fault_of_raw(element: RawDataElement) -> str:
    """What is wrong with an attribute before pydicom makes a value of it: pydicom would tell the value in its log."""
    keyword, own = _known(element.tag)
    vr = vr_of(element)
    if (own in _TEXTS and vr in _NUMBERS) or (keyword in NAMES and vr in _CHECKED_BY_PYDICOM):
        return f"its {keyword} has the VR {vr}, {own} is needed"
    if vr in _IN_ASCII and element.value and not _PRINTABLE.fullmatch(element.value.strip(_PADDING)):
        return f"its {keyword or element.tag} holds {len(element.value)} bytes that are no {vr}"
    return ""


def vr_of(element: RawDataElement) -> str:
    """The value representation that an attribute has in its file, or by the standard where the file does not say."""
    return _known(element.tag)[1] if element.VR in (None, "UN") else str(element.VR)


def whole_number(header: Dataset, keyword: str) -> int | None:
    """The number of an IS attribute; None where it is absent, or holds anything else, which may be anybody's name."""
    told = stored_text(header, keyword)
    return int(told) if re.fullmatch(r"[+-]?[0-9]{1,12}", told) else None


def stored_text(header: Dataset, keyword: str) -> str:
    """An attribute as it stands in the file, "" where it is absent; no value that is none ends it."""
    found = header.get_item(keyword)
    stored = found.value if found is not None else None
    return (stored.decode("latin-1") if isinstance(stored, bytes) else "" if stored is None else str(stored)).strip(
        " \0"
    )


@cache
def _known(tag: BaseTag) -> tuple[str, str]:
    """Keyword and (first) VR of an attribute by the standard; "" and UN for others."""
    keyword = "" if tag.is_private else keyword_for_tag(tag)
    return keyword, dictionary_VR(tag).split(" or ")[0] if keyword else "UN"


def _fault_of_value(value: Any, keyword: str) -> str:
    """What is wrong with the value of an attribute that must hold one value, or none."""
    if value is None or value == "":
        return ""
    if keyword in NAMES:
        str(value)  # it is decoded here, or cannot be
        return ""
    if keyword in WHOLE:
        return "" if _is_whole(value) else f"its {keyword} is {_told(value)}; one whole number is needed"
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        return f"its {keyword} is {_told(value)}; one of at most {MAX_TEXT} characters is needed"
    kind, fits = ("code", value.isprintable()) if keyword in CODES else ("UID", _LIKE_A_UID.fullmatch(value))
    return "" if fits else f"its {keyword} has characters that stand in no {kind}"


def _is_whole(value: Any) -> bool:
    try:
        return int(value) == (value if isinstance(value, float) else int(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"a {type(value).__name__}" + (f" of length {len(value)}" if hasattr(value, "__len__") else "")


def is_person_name(text: str) -> bool:
    """Whether a text names a person as DICOM does (PS3.5 6.2.1): at least Family^Given, both with a letter."""
    parts = text.split("^")
    is_plain = text.isprintable() and not set("\\=") & set(text) and len(text) <= LONGEST_NAME
    return is_plain and 2 <= len(parts) <= 5 and all(any(map(str.isalpha, part)) for part in parts[:2])


def patient_digest(header: Dataset) -> str:
    """sha256 of whose a header is: PatientID and IssuerOfPatientID, without padding; "" where both are empty.

    Nobody can be named from it but by trying IDs; it goes into UIDs, of which it is one part of many.
    """
    told = [str(header.get(keyword) or "").strip("\0 ") for keyword in ("PatientID", "IssuerOfPatientID")]
    return hashlib.sha256("\\".join(told).encode("utf-8", "surrogatepass")).hexdigest() if any(told) else ""
