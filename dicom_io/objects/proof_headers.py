"""The statements of a written object, for the proofs: its patient and study, its references, the meaning of its segments.

The attributes come from the file, through `raw_parser`. They are compared with the headers of the source and with the
segments of the result. Two things come from the same source as in the writers: the bytes of patient and study
(`patient_and_study`), and highdicom's conversion of colours to CIELab.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import highdicom as hd
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_io.coding import Segment
from dicom_io.errors import DicomIoError, GeometryProofError
from dicom_io.objects.encoding import encoded
from dicom_io.objects.patient_and_study import OWN_ENCODINGS, UTF_8, carry_over
from dicom_io.objects.raw_parser import Attributes, attributes_of, items, parse_file, text
from dicom_io.reading.headers import shown
from dicom_io.reading.instances import READ_ERRORS

OWNER_KEYWORDS = "PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID AccessionNumber"
# What a broken file makes readers and codecs raise; imagecodecs and jpeg_ls raise RuntimeError and ValueError. Errors of the
# disk stay what they are.
FAULTS: tuple[type[Exception], ...] = (DicomIoError, *(fault for fault in READ_ERRORS if fault is not OSError))
FRAME_OF_REFERENCE, _SERIES, _CHARACTER_SET = 0x00200052, 0x0020000E, 0x00080005
_CLASS, INSTANCE = 0x00081150, 0x00081155
Meaning = Mapping[str, object]
"""The properties of a segment, each under a name for messages."""


@contextmanager
def deleting(path: Path, kind: str) -> Iterator[Attributes]:
    """The attributes of a written file; whatever a wrong or broken file raises becomes a GeometryProofError, and the file is
    deleted.

    Args:
        path: The written file.
        kind: The kind of object, for the message.
    """
    try:
        yield parse_file(path)
    except FAULTS as error:
        Path(path).unlink(missing_ok=True)
        reason = str(error)
        if not isinstance(error, DicomIoError):
            reason = f"it cannot be read back ({type(error).__name__}: {shown(reason[:160])})"
        raise GeometryProofError(f"the {kind} was deleted: {reason}") from error


def check_owner(written: Attributes, header: Dataset, *, has_frame: bool = True) -> None:
    """Pass if an object is of the patient and the study of its source, and in its frame of reference.

    Their text is compared byte for byte, in the source's character set or, where the object is in it, in UTF-8.

    Args:
        written: The object.
        header: Of the first slice, from `identity.source_headers`.
        has_frame: Whether an object of this kind names a frame of reference; it names none if the source has none.
    """
    for tag, value in _owner_of(header, in_utf8=text(written, _CHARACTER_SET) == UTF_8).items():
        if _bare(written.get(tag)) != _bare(value):
            raise GeometryProofError(f"its {keyword_for_tag(tag)} is not that of the source")
    if has_frame:
        check_frame(text(written, FRAME_OF_REFERENCE), header)


def encoding_of(written: Attributes) -> str:
    """Python's name of the encoding that texts of our own must have in an object."""
    return OWN_ENCODINGS.get(text(written, _CHARACTER_SET), "ascii")


def _owner_of(header: Dataset, *, in_utf8: bool) -> Attributes:
    """The identifying attributes of the source as the bytes that stand in a file; empty where it has none."""
    carried, own = Dataset(), Dataset()
    carry_over(carried, header, in_utf8=in_utf8)
    # Names are encoded in the character set that stands beside them.
    for keyword in f"{OWNER_KEYWORDS} SpecificCharacterSet".split():
        if keyword in carried:
            own[keyword] = carried[keyword]
    attributes = attributes_of(encoded(own))
    return {tag: attributes.get(tag, b"") for tag in map(tag_for_keyword, OWNER_KEYWORDS.split()) if tag is not None}


def _bare(value: bytes | None) -> bytes:
    # Spaces and null bytes at the end only pad a value to an even length (PS3.5 6.2).
    return (value or b"").rstrip(b" \0")


def check_frame(frame_of_reference_uid: str, header: Dataset) -> None:
    """Pass if an object names the frame of reference of its source."""
    needed = str(header.get("FrameOfReferenceUID") or "")
    if frame_of_reference_uid != needed:
        raise GeometryProofError(
            f"it has the frame of reference {shown(frame_of_reference_uid) or 'none'}; that of the source, "
            f"{needed or 'none'}, is needed"
        )


def check_images(series: Sequence[Attributes], images_tag: int, headers: Sequence[Dataset]) -> None:
    """Pass if references name the source's series and all its instances, each with its class, and nothing else.

    Args:
        series: Items that name a series.
        images_tag: Of the sequence of instances in each.
        headers: Of the source, from `identity.source_headers`, and of its further channels.
    """
    references = [
        (text(item, _SERIES), text(image, _CLASS), text(image, INSTANCE))
        for item in series
        for image in items(item, images_tag)
    ]
    needed = {
        (str(header.SeriesInstanceUID), str(header.SOPClassUID), str(header.SOPInstanceUID)) for header in headers
    }
    if sorted(references) != sorted(needed):
        names = ", ".join(sorted({shown(uid) for uid, _, _ in references})) or "none"
        raise GeometryProofError(
            f"it refers to {len(references)} images of the series {names}, not to the {len(needed)} of the source's series "
            f"{', '.join(sorted({uid for uid, _, _ in needed}))}"
        )


def compare(noun: str, described: Sequence[tuple[int, Meaning]], needed: Mapping[int, Meaning]) -> None:
    """Pass if each number of `needed` is described once, with the same meaning, and no other number is.

    Args:
        noun: Names a part of the object in a message, such as "segment".
        described: Number and meaning of each part that the object describes.
        needed: The meaning that each number must have.
    """
    # A list and not a set, because a number that is described twice is an error, too.
    numbers = sorted(number for number, _ in described)
    if numbers != sorted(needed):
        raise GeometryProofError(f"it describes a {noun} for each of {numbers}; {sorted(needed)} are needed, each once")
    for number, meaning in described:
        for name, value in meaning.items():
            if value != needed[number][name]:
                raise GeometryProofError(
                    f"the {noun} of number {number} has the {name} {shown(str(value)[:80])}; {needed[number][name]} is needed"
                )


def coded(holder: Attributes, tag: int) -> str:
    """Scheme and value of the coded concept in a sequence of one item; empty where there is none."""
    codes = items(holder, tag)
    if not codes:
        return ""
    if len(codes) > 1:
        raise GeometryProofError(f"the sequence {tag:08X} has {len(codes)} codes; one is needed")
    # PS3.3 8.8: Code Value, Long Code Value or URN Code Value
    value = next((text(codes[0], place) for place in (0x00080100, 0x00080119, 0x00080120) if place in codes[0]), "")
    return f"{text(codes[0], 0x00080102)} {value}"


def code_text(code: Code | None) -> str:
    """Scheme and value of a code; empty for None."""
    return f"{code.scheme_designator} {code.value}" if code else ""


def cielab(item: Attributes, tag: int) -> tuple[int, ...]:
    value = item.get(tag, b"")
    return struct.unpack(f"<{len(value) // 2}H", value)


def cielab_of(segment: Segment) -> tuple[int, ...]:
    return tuple(int(value) for value in hd.color.CIELabColor.from_rgb(*segment.rgb).value)
