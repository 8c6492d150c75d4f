"""How an image was acquired, by its header: the device and its settings, in words that name no patient."""

import hashlib
from collections.abc import Iterator

from pydicom.dataset import Dataset

from dicom_io.reading.instances import READ_ERRORS

KEYWORDS = (
    "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "MagneticFieldStrength", "KVP",
    "ConvolutionKernel", "SliceThickness", "PixelSpacing", "SequenceName", "EchoTime", "RepetitionTime", "InversionTime",
    "FlipAngle", "ReceiveCoilName", "PatientPosition", "ContrastBolusAgent", "ProtocolName",
)  # fmt: skip
"""The attributes that are read."""

_TYPED = ("ContrastBolusAgent", "ProtocolName")
"""People type these, and may type a name: only a digest is told."""

_LONGEST = 64


def acquisition_of(header: Dataset) -> dict[str, str]:
    """Keyword -> value of each of `KEYWORDS` that a header has, at its top or in the functional groups that its frames share.

    Numbers have three digits, several values a backslash between them. Values that people type are told as # and eight
    hexadecimal digits of their sha256: equal values look equal, and nobody can be read from them.
    """
    found: dict[str, str] = {}
    for item in _items(header):
        for keyword in KEYWORDS:
            if keyword not in found and (text := _text(item, keyword)):
                found[keyword] = f"#{hashlib.sha256(text.encode()).hexdigest()[:8]}" if keyword in _TYPED else text
    return {keyword: found[keyword] for keyword in KEYWORDS if keyword in found}


def _items(header: Dataset) -> Iterator[Dataset]:
    """The header, and the macros of its shared functional groups, which enhanced objects have (PS3.3 C.7.6.16)."""
    yield header
    try:
        for groups in header.get("SharedFunctionalGroupsSequence") or ():
            for element in groups:
                if element.VR == "SQ":
                    yield from element.value
    except READ_ERRORS:  # a damaged header tells less
        return


def _text(item: Dataset, keyword: str) -> str:
    try:
        value = item.get(keyword)
    except READ_ERRORS:
        return ""
    values = [] if value is None else [value] if isinstance(value, str | int | float) else list(value)
    return "\\".join(_word(one) for one in values)[:_LONGEST].strip()


def _word(value: object) -> str:
    return f"{float(value):.3g}" if isinstance(value, int | float) else str(value).strip("\0 ")
