"""Checks of header values: of the kind that the standard names, and of a size and form that messages can show.

Messages name an attribute by its keyword and do not show its value: one wrong bit in a length can turn the patient's name into
a UID.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydicom import config
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

# pydicom would show invalid values in its log and its warnings, and a wrong byte can make a patient's name such a value
config.settings.reading_validation_mode = config.IGNORE

LONGEST_UID = 64  # PS3.5 9.1

MAX_TEXT = 128
"""The most characters of a UID or code; the standard has 64 and 16, and some writers exceed them."""

_UIDS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ConcatenationUID",
    "TransferSyntaxUID", "MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID",
)  # fmt: skip
_CODES = ("Modality", "PhotometricInterpretation")
_WHOLE_NUMBERS = (
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "InConcatenationNumber", "InConcatenationTotalNumber",
)  # fmt: skip
_NAMES = ("PatientName", "PatientID")
LONGEST_NAME = 64  # PN: PS3.5 table 6.2-1

_ONE_VALUE = {Tag(keyword): keyword for keyword in (*_UIDS, *_CODES, *_WHOLE_NUMBERS, *_NAMES)}
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LIKE_A_UID = re.compile(r"[\w. -]*", re.ASCII)  # some writers put letters and hyphens into UIDs, none puts slashes
_PRINTABLE = re.compile(rb"[ -~]*")
# PS3.5 table 6.2-1: these are ASCII in every character set, so other bytes come from a damaged header.
_IN_ASCII = frozenset({"UI", "CS", "DS", "IS"})
_CHECKED_BY_PYDICOM = frozenset({"AE", "AS", "CS", "DA", "DT", "TM", "UI", "UR"})  # it shows their invalid values
_PADDING = b"\0 \t\r\n"
_NUMBERS = frozenset({"US", "SS", "UL", "SL", "UV", "SV", "IS", "DS", "FL", "FD", "AT"})
_TEXTS = frozenset({"AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})


def shown(text: Path | str) -> str:
    """A path or value for a message: in one line, with escapes for characters that cannot be printed."""
    return str(text) if str(text).isprintable() else ascii(str(text))[1:-1]


def shown_uid(uid: object) -> str:
    """A UID for a message; a value that is no UID is not shown, since it may be anything, a name too."""
    return str(uid) if _LIKE_A_UID.fullmatch(str(uid)) and len(str(uid)) <= MAX_TEXT else "(no UID)"


def is_uid(text: str) -> bool:
    """True for digits in components joined by points, at most 64 characters (PS3.5 9.1)."""
    return len(text) <= LONGEST_UID and bool(_UID.fullmatch(text))


def fault_of(header: Dataset) -> str:
    """What is wrong with the attributes of a header that reading uses, its file meta information included; "" if nothing is."""
    datasets = (getattr(header, "file_meta", None) or Dataset(), header)
    # The raw bytes come first: pydicom converts a value when it is asked for, and logs the value if it does not fit.
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
    """What is wrong with an attribute that pydicom has not converted yet: then it would show the value in its log."""
    keyword, standard_vr = _keyword_and_vr(element.tag)
    vr = vr_of(element)
    if (standard_vr in _TEXTS and vr in _NUMBERS) or (keyword in _NAMES and vr in _CHECKED_BY_PYDICOM):
        return f"its {keyword} has the VR {vr}, {standard_vr} is needed"
    if vr in _IN_ASCII and element.value and not _PRINTABLE.fullmatch(element.value.strip(_PADDING)):
        return f"its {keyword or element.tag} holds {len(element.value)} bytes that are not a {vr}"
    return ""


def vr_of(element: RawDataElement) -> str:
    """The value representation of an attribute in its file, or by the standard if the file does not say it."""
    return _keyword_and_vr(element.tag)[1] if element.VR in (None, "UN") else str(element.VR)


def whole_number(header: Dataset, keyword: str) -> int | None:
    """The number of an IS attribute; None if it is absent or holds anything else."""
    text = stored_text(header, keyword)
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,12}", text) else None


def stored_text(header: Dataset, keyword: str) -> str:
    """An attribute as its bytes stand in the file, without padding; "" if it is absent. An invalid value raises no error."""
    element = header.get_item(keyword)
    stored = "" if element is None or element.value is None else element.value
    # Latin-1 has a letter for every byte, so no value fails to be decoded.
    return (stored.decode("latin-1") if isinstance(stored, bytes) else str(stored)).strip(" \0")


@cache
def _keyword_and_vr(tag: BaseTag) -> tuple[str, str]:
    """Keyword and (first) VR of an attribute by the standard; "" and UN if it is not in the standard."""
    keyword = "" if tag.is_private else keyword_for_tag(tag)
    return keyword, dictionary_VR(tag).split(" or ")[0] if keyword else "UN"


def _fault_of_value(value: Any, keyword: str) -> str:
    """What is wrong with the value of an attribute that may hold one value or be empty; "" if nothing is."""
    if value is None or value == "":
        return ""
    if keyword in _NAMES:
        str(value)  # raises an error if the text cannot be decoded
        return ""
    if keyword in _WHOLE_NUMBERS:
        return "" if _is_whole(value) else f"its {keyword} is {_described(value)}; one whole number is needed"
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        return f"its {keyword} is {_described(value)}; one of at most {MAX_TEXT} characters is needed"
    kind, fits = ("code", value.isprintable()) if keyword in _CODES else ("UID", _LIKE_A_UID.fullmatch(value))
    return "" if fits else f"its {keyword} has characters that are not allowed in a {kind}"


def _is_whole(value: Any) -> bool:
    try:
        # int() cuts a float such as 1.5 without an error.
        return int(value) == (value if isinstance(value, float) else int(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _described(value: Any) -> str:
    """A value for a message, by its type and length: a text may be anybody's name."""
    if isinstance(value, float):
        return f"{value:g}"
    return f"a {type(value).__name__}" + (f" of length {len(value)}" if hasattr(value, "__len__") else "")


def is_person_name(text: str) -> bool:
    """Whether a text names a person as DICOM does (PS3.5 6.2.1): at least Family^Given, both with a letter."""
    parts = text.split("^")
    is_plain = text.isprintable() and not set("\\=") & set(text) and len(text) <= LONGEST_NAME
    return is_plain and 2 <= len(parts) <= 5 and all(any(map(str.isalpha, part)) for part in parts[:2])


def referenced_series(header: Dataset) -> list[tuple[str, Sequence[Dataset]]]:
    """The UID of every series that the header refers to, with the instances of that series; of an RTSTRUCT the UIDs alone."""
    # References stand in the Common Instance Reference Module (PS3.3 C.12.2), in reports in the SR Document General
    # Module (C.17.2), which names the instances by another sequence, and in a structure set below its frames of
    # reference (C.8.8.5).
    rows = list(header.get("ReferencedSeriesSequence") or [])
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "StudiesContainingOtherReferencedInstancesSequence"):
        rows += [row for study in header.get(keyword) or [] for row in study.get("ReferencedSeriesSequence") or []]
    for frame in header.get("ReferencedFrameOfReferenceSequence") or []:
        studies = frame.get("RTReferencedStudySequence") or []
        rows += [row for study in studies for row in study.get("RTReferencedSeriesSequence") or []]
    return [
        (
            str(row.get("SeriesInstanceUID") or ""),
            row.get("ReferencedInstanceSequence") or row.get("ReferencedSOPSequence") or [],
        )
        for row in rows
    ]


def patient_digest(header: Dataset, *keywords: str) -> str:
    """sha256 of PatientID and IssuerOfPatientID, or of these attributes, without padding; "" if all are empty.

    The ID can be found from it only by trying all IDs. It is one of many parts from which UIDs are made.
    """
    # PS3.5 6.2: no LO holds a backslash, so two different pairs of IDs never become one text.
    ids = [str(header.get(keyword) or "").strip("\0 ") for keyword in keywords or ("PatientID", "IssuerOfPatientID")]
    return hashlib.sha256("\\".join(ids).encode("utf-8", "surrogatepass")).hexdigest() if any(ids) else ""
