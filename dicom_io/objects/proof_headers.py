"""What a written object says of itself, for the proofs: whose it is, which images it refers to, what its segments mean.

The attributes come from the file, through `raw_parser`. They are compared with the headers of the source and with the
segments of the result. Not independent of the writers is what both take from there: the bytes of patient and study
(`patient_and_study`), and highdicom's conversion of colours to CIELab.
"""

from __future__ import annotations

import struct
import zlib
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
from dicom_io.objects.patient_and_study import carry_over
from dicom_io.objects.raw_parser import Attributes, attributes_of, integer, items, text, whole
from dicom_io.reading.headers import shown

OWNER_KEYWORDS = "PatientName PatientID PatientBirthDate PatientSex StudyInstanceUID AccessionNumber"
LAYER_PREFIX = "SEGMENT "

# What a broken file makes readers and codecs raise; imagecodecs and jpeg_ls raise RuntimeError and ValueError.
FAULTS = (
    DicomIoError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_FRAME_OF_REFERENCE, _SERIES = 0x00200052, 0x0020000E
_CLASS, _INSTANCE = 0x00081150, 0x00081155
_SEGMENTS, _SEGMENT_NUMBER, _SEGMENT_LABEL, _SEGMENT_COLOUR = 0x00620002, 0x00620004, 0x00620005, 0x0062000D
_CATEGORY, _TYPE, _TYPE_MODIFIER = 0x00620003, 0x0062000F, 0x00620011
_REGION, _REGION_MODIFIER = 0x00082218, 0x00082220
_ROIS, _ROI_NUMBER, _ROI_FRAME, _ROI_NAME = 0x30060020, 0x30060022, 0x30060024, 0x30060026
_OBSERVATIONS, _ROI_CODE, _OBSERVATION_LABEL = 0x30060080, 0x30060086, 0x30060085
_ROI_CONTOURS, _REFERENCED_ROI, _ROI_COLOUR = 0x30060039, 0x30060084, 0x3006002A
_ROI_FRAMES, _ROI_STUDIES, _ROI_SERIES, _ROI_IMAGES = 0x30060010, 0x30060012, 0x30060014, 0x30060016
_LAYERS, _LAYER, _LAYER_TEXT, _LAYER_COLOUR = 0x00700060, 0x00700002, 0x00700068, 0x00700401
_ANNOTATIONS, _TEXTS, _TEXT = 0x00700001, 0x00700008, 0x00700006

Meaning = Mapping[str, object]
"""What is said of a segment, by a name for messages."""


@contextmanager
def deleting(path: Path, what: str) -> Iterator[None]:
    """Turns whatever a wrong or broken file raises into a GeometryProofError, and deletes the file.

    Args:
        path: The written file.
        what: What it is, for the message.
    """
    try:
        yield
    except FAULTS as error:
        Path(path).unlink(missing_ok=True)
        told = f"it cannot be read back ({type(error).__name__}: {shown(str(error)[:160])})"
        told = str(error) if isinstance(error, DicomIoError) else told
        raise GeometryProofError(f"the {what} was deleted: {told}") from error


def check_owner(written: Attributes, header: Dataset, *, has_frame: bool = True) -> None:
    """Pass if an object is of the patient and the study of its source, byte for byte, and in its frame of reference.

    Args:
        written: The object.
        header: Of the first slice, from `identity.source_headers`.
        has_frame: Whether an object of this kind names a frame of reference; one on a source without names none.
    """
    for tag, value in _owner_of(header).items():
        if _bare(written.get(tag)) != _bare(value):
            raise GeometryProofError(f"its {keyword_for_tag(tag)} is not that of the source")
    if has_frame:
        _check_frame(text(written, _FRAME_OF_REFERENCE), header)


def _owner_of(header: Dataset) -> Attributes:
    """The identifying attributes of the source as the bytes that stand in a file; empty where it has none."""
    carried, own = Dataset(), Dataset()
    carry_over(carried, header)
    for keyword in f"{OWNER_KEYWORDS} SpecificCharacterSet".split():
        if keyword in carried:
            own[keyword] = carried[keyword]
    found = attributes_of(encoded(own))
    return {tag: found.get(tag, b"") for tag in map(tag_for_keyword, OWNER_KEYWORDS.split()) if tag is not None}


def _bare(value: bytes | None) -> bytes:
    return (value or b"").rstrip(b" \0")


def _check_frame(found: str, header: Dataset) -> None:
    needed = str(header.get("FrameOfReferenceUID") or "")
    if found != needed:
        raise GeometryProofError(
            f"it has the frame of reference {shown(found) or 'none'}; that of the source, {needed or 'none'}, is needed"
        )


def check_images(series: Sequence[Attributes], images_tag: int, headers: Sequence[Dataset]) -> None:
    """Pass if references name the source's series and all its instances, each with its class, and nothing else.

    Args:
        series: Items that name a series.
        images_tag: Of the sequence of instances in each.
        headers: Of the source, from `identity.source_headers`.
    """
    found = [
        (text(one, _SERIES), text(image, _CLASS), text(image, _INSTANCE))
        for one in series
        for image in items(one, images_tag)
    ]
    name = str(headers[0].SeriesInstanceUID)
    needed = {(name, str(header.SOPClassUID), str(header.SOPInstanceUID)) for header in headers}
    if sorted(found) != sorted(needed):
        raise GeometryProofError(
            f"it refers to {len(found)} images of the series {', '.join(sorted({shown(one[0]) for one in found})) or 'none'}, "
            f"not to the {len(needed)} of the source's series {name}"
        )


def check_segments(written: Attributes, segments: Sequence[Segment] | None, *, label_map: bool) -> set[int]:
    """The numbers of the segments that a SEG describes, each once; as the result has them, where its segments are known.

    Args:
        written: The SEG.
        segments: Of the result; None where they are not known.
        label_map: It may describe the background, number 0.
    """
    described = [(whole(item, _SEGMENT_NUMBER), item) for item in items(written, _SEGMENTS)]
    found = [(number, _meaning_of(item)) for number, item in described if number or not label_map]
    if segments is not None:
        _compare("segment", found, {segment.number: _segment_meaning(segment) for segment in segments})
    return {number for number, _ in found}


def _meaning_of(item: Attributes) -> Meaning:
    kind, region = ((items(item, tag) or [{}])[0] for tag in (_TYPE, _REGION))
    return {
        "label": text(item, _SEGMENT_LABEL),
        "category": coded(item, _CATEGORY),
        "type": coded(item, _TYPE),
        "type modifier": coded(kind, _TYPE_MODIFIER),
        "region": coded(item, _REGION),
        "region modifier": coded(region, _REGION_MODIFIER),
        "colour": _colour(item, _SEGMENT_COLOUR),
    }


def _segment_meaning(segment: Segment) -> Meaning:
    modifier = segment.anatomic_region_modifier if segment.anatomic_region else None
    return {
        "label": segment.label.strip(),
        "category": code_text(segment.category),
        "type": code_text(segment.type),
        "type modifier": code_text(segment.type_modifier),
        "region": code_text(segment.anatomic_region),
        "region modifier": code_text(modifier),
        "colour": _cielab(segment),
    }


def check_regions(written: Attributes, segments: Sequence[Segment] | None, headers: Sequence[Dataset]) -> None:
    """Pass if the regions of an RTSTRUCT, their observations and their contours have the same numbers, as the result has
    them where its segments are known, and if its references are those of the source.
    """
    rois = [(integer(item, _ROI_NUMBER), {"name": text(item, _ROI_NAME)}) for item in items(written, _ROIS)]
    observations = [
        (integer(item, _REFERENCED_ROI), {"label": text(item, _OBSERVATION_LABEL), "type": coded(item, _ROI_CODE)})
        for item in items(written, _OBSERVATIONS)
    ]
    drawn = [
        (integer(item, _REFERENCED_ROI), {"colour": text(item, _ROI_COLOUR)}) for item in items(written, _ROI_CONTOURS)
    ]
    if not sorted(n for n, _ in rois) == sorted(n for n, _ in observations) == sorted(n for n, _ in drawn):
        raise GeometryProofError("its regions, observations and contours are not of the same ROI numbers, each once")
    if segments is not None:
        _compare("region", rois, {one.number: {"name": one.label.strip()} for one in segments})
        _compare("observation", observations, {one.number: _observation(one) for one in segments})
        _compare("colour", drawn, {one.number: {"colour": "\\".join(map(str, one.rgb))} for one in segments})
    for item in items(written, _ROIS):
        _check_frame(text(item, _ROI_FRAME), headers[0])
    frames = items(written, _ROI_FRAMES)
    for frame in frames:
        _check_frame(text(frame, _FRAME_OF_REFERENCE), headers[0])
    studies = [study for frame in frames for study in items(frame, _ROI_STUDIES)]
    if [text(study, _INSTANCE) for study in studies] != [str(headers[0].StudyInstanceUID)]:
        raise GeometryProofError("its contours refer to another study than that of the source")
    check_images([series for study in studies for series in items(study, _ROI_SERIES)], _ROI_IMAGES, headers)


def _observation(segment: Segment) -> Meaning:
    return {"label": segment.label[:16].strip(), "type": code_text(segment.type)}


def check_layers(written: Attributes, segments: Sequence[Segment] | None) -> None:
    """Pass if a presentation state has one layer for each segment, in its colour, and no text on it but the segment's label."""
    layers = [item for item in items(written, _LAYERS) if text(item, _LAYER).startswith(LAYER_PREFIX)]
    found = [
        (segment_of_layer(item), {"label": text(item, _LAYER_TEXT), "colour": _colour(item, _LAYER_COLOUR)})
        for item in layers
    ]
    if segments is None:
        return
    _compare("layer", found, {one.number: {"label": one.label.strip(), "colour": _cielab(one)} for one in segments})
    labels = {one.number: one.label.strip() for one in segments}
    for item in items(written, _ANNOTATIONS):
        number = segment_of_layer(item)
        if number and any(text(line, _TEXT) != labels.get(number) for line in items(item, _TEXTS)):
            raise GeometryProofError(f"the layer of segment {number} shows a text that is not the segment's label")


def segment_of_layer(item: Attributes) -> int:
    """The segment of the graphic layer that an item names; 0 for a layer that is of none."""
    name = text(item, _LAYER)
    return int(name[len(LAYER_PREFIX) :]) if name.startswith(LAYER_PREFIX) else 0


def _compare(what: str, found: Sequence[tuple[int, Meaning]], needed: Mapping[int, Meaning]) -> None:
    """Pass if each number of `needed` stands once in `found`, with the same meaning, and no other."""
    if sorted(number for number, _ in found) != sorted(needed):
        numbers = sorted(number for number, _ in found)
        raise GeometryProofError(f"it describes a {what} for each of {numbers}; {sorted(needed)} are needed, each once")
    for number, meaning in found:
        for name, value in meaning.items():
            if value != needed[number][name]:
                raise GeometryProofError(
                    f"the {what} of number {number} has the {name} {shown(str(value)[:80])}; {needed[number][name]} is needed"
                )


def coded(holder: Attributes, tag: int) -> str:
    """Scheme and value of the coded concept in a sequence of one item; empty where there is none."""
    found = items(holder, tag)
    if not found:
        return ""
    if len(found) > 1:
        raise GeometryProofError(f"the sequence {tag:08X} has {len(found)} codes; one is needed")
    value = next((text(found[0], one) for one in (0x00080100, 0x00080119, 0x00080120) if one in found[0]), "")
    return f"{text(found[0], 0x00080102)} {value}"


def code_text(code: Code | None) -> str:
    """Scheme and value of a code; empty for None."""
    return f"{code.scheme_designator} {code.value}" if code else ""


def _colour(item: Attributes, tag: int) -> tuple[int, ...]:
    value = item.get(tag, b"")
    return struct.unpack(f"<{len(value) // 2}H", value)


def _cielab(segment: Segment) -> tuple[int, ...]:
    return tuple(int(value) for value in hd.color.CIELabColor.from_rgb(*segment.rgb).value)
