"""A TID 1500 measurement report of any software -> its groups, measurements and references, as plain values.

The tree of content items is read with pydicom alone, because highdicom refuses reports that break a rule of their template.
Source: DICOM PS3.16, TID 1500, 1501, 1410, 1411, 1419 and 300; PS3.3 C.17.3 and C.18.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage, ExtensibleSRStorage

from dicom_io.errors import LabelError
from dicom_io.reading.headers import shown, shown_uid, stored_text, vr_of
from dicom_io.reading.instances import ends_early, instance_of, load_object, refusing
from dicom_io.reading.titles import text_values

CLASSES = (EnhancedSRStorage, ComprehensiveSRStorage, Comprehensive3DSRStorage, ExtensibleSRStorage)
TEMPLATE = "1500"
_FINDING_CATEGORY = Code("276214006", "SCT", "Finding category")
_FINDING = Code("121071", "DCM", "Finding")
# Questions with attributes of their own in `MeasurementGroup` and `Measurement`; all others are evaluations and qualifiers.
_OWN_OF_GROUP = (_FINDING, _FINDING_CATEGORY, codes.SCT.FindingSite, codes.SCT.MeasurementMethod)
_OWN_OF_MEASUREMENT = (codes.DCM.Derivation, codes.SCT.MeasurementMethod)
_SEGMENTS = (codes.DCM.ReferencedSegment, codes.DCM.ReferencedSegmentationFrame)
_MEASUREMENTS = (codes.DCM.ImagingMeasurements, codes.DCM.MeasurementGroup)
_KINDS: dict[Code | None, str] = {codes.DCM.Person: "person", codes.DCM.Device: "device"}
_DEVICE = {
    "uid": codes.DCM.DeviceObserverUID,
    "name": codes.DCM.DeviceObserverName,
    "manufacturer": codes.DCM.DeviceObserverManufacturer,
    "model": codes.DCM.DeviceObserverModelName,
    "serial_number": codes.DCM.DeviceObserverSerialNumber,
}
Coded = tuple[Code, Code]
"""A question and its answer, both coded."""


@dataclass(frozen=True)
class Reference:
    """An instance that a report refers to.

    Attributes:
        sop_class_uid: Empty where the report does not state it.
        sop_instance_uid: Of the instance.
        frames: Its frames, from 1; empty for the whole.
        segments: Its segments, where it is a segmentation.
    """

    sop_class_uid: str
    sop_instance_uid: str
    frames: tuple[int, ...] = ()
    segments: tuple[int, ...] = ()


@dataclass(frozen=True)
class Region:
    """A drawn region.

    Attributes:
        graphic_type: POINT, POLYLINE, CIRCLE and so on (PS3.3 C.18.6 and C.18.9).
        points: (column, row) in pixels of `image`, as DICOM counts them; or (x, y, z) in LPS mm.
        image: Where it is drawn; None in patient space.
        frame_of_reference_uid: Of the patient space; empty for pixels.
    """

    graphic_type: str
    points: tuple[tuple[float, ...], ...]
    image: Reference | None = None
    frame_of_reference_uid: str = ""


@dataclass(frozen=True)
class FindingSite:
    """A place in the body; side and topographical modifier are None where the report does not state them."""

    place: Code
    laterality: Code | None = None
    modifier: Code | None = None


@dataclass(frozen=True)
class Measurement:
    """One number. Test a code for None before comparing it with `==`: pydicom's codes raise for None.

    Attributes:
        name: What was measured.
        value: None where the report holds no finite number.
        unit: None where the report does not name it; the number then has no known meaning.
        derivation: How the number was made of several: mean, maximum.
        method: How it was measured.
        missing: Why there is no value.
        qualifiers: Further codes of the measurement: site, normality, significance.
        properties: Numbers that belong to it: its uncertainty, a range of normal values.
    """

    name: Code
    value: float | None
    unit: Code | None
    derivation: Code | None = None
    method: Code | None = None
    missing: Code | None = None
    qualifiers: tuple[Coded, ...] = ()
    properties: "tuple[Measurement, ...]" = ()


@dataclass(frozen=True)
class MeasurementGroup:
    """The measurements of one finding, and its place.

    Attributes:
        tracking_id: Its name; may be empty.
        tracking_uid: Equal in all reports and segmentations of the same finding.
        category: The kind of finding.
        finding: Its type.
        sites: Its places in the body.
        method: The method of all measurements.
        segments: The segments that were measured.
        regions: The drawn regions that were measured.
        source_images: The images from which segments, regions or measurements were made.
        source_series: Series Instance UIDs of such images.
        algorithm_name: The algorithm that measured or segmented it; empty where the group does not name it.
        algorithm_version: Its version.
        algorithm_parameters: Its settings, as text.
        measurements: The numbers.
        evaluations: The answers that are no numbers.
    """

    tracking_id: str
    tracking_uid: str
    category: Code | None
    finding: Code | None
    sites: tuple[FindingSite, ...]
    method: Code | None
    segments: tuple[Reference, ...]
    regions: tuple[Region, ...]
    source_images: tuple[Reference, ...]
    source_series: tuple[str, ...]
    algorithm_name: str
    algorithm_version: str
    algorithm_parameters: tuple[str, ...]
    measurements: tuple[Measurement, ...]
    evaluations: tuple[Coded, ...]


@dataclass(frozen=True)
class Observer:
    """The author of a report: a person, of whom only the name is read, or a device.

    Attributes:
        kind: "person", "device", or "" where the report does not state it.
        name: The person's as DICOM has it, or the device's.
        uid: Of the device.
        manufacturer: Of the device.
        model: Of the device.
        serial_number: Of the device.
    """

    kind: str
    name: str = ""
    uid: str = ""
    manufacturer: str = ""
    model: str = ""
    serial_number: str = ""


@dataclass(frozen=True)
class MeasurementReport:
    """A measurement report without the patient. Where the report does not state something, its text is empty or its code None.

    Attributes:
        sop_class_uid: Enhanced, Comprehensive, Comprehensive 3D or Extensible SR.
        sop_instance_uid: Of the report.
        series_instance_uid: Of its series.
        study_instance_uid: Of its study.
        title: Of the document.
        completion: COMPLETE or PARTIAL.
        preliminary: PRELIMINARY or FINAL.
        verification: VERIFIED or UNVERIFIED.
        content_date: YYYYMMDD.
        content_time: HHMMSS, with or without a fraction.
        predecessors: SOP Instance UIDs of the reports that it replaces.
        procedures: The imaging procedures that it reports on.
        language: Of the content.
        observers: Its authors.
        groups: The measurement groups, in the report's order.
    """

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    title: Code | None
    completion: str
    preliminary: str
    verification: str
    content_date: str
    content_time: str
    predecessors: tuple[str, ...]
    procedures: tuple[Code, ...]
    language: Code | None
    observers: tuple[Observer, ...]
    groups: tuple[MeasurementGroup, ...]


def read_sr(source: Path | Dataset) -> MeasurementReport:
    """The content of a TID 1500 measurement report of any software.

    Measurement groups are read wherever they stand in the tree. These are left out: the image library, numbers outside of
    groups, references from one content item to another by its place in the tree, and free text, except for names of findings
    and name, version and settings of an algorithm. Nothing about the patient is read.

    Args:
        source: A file, or a data set in memory.

    Raises:
        UnreadableFileError: Not a whole DICOM file; a value that is no number, a number without a name, or a reference
            without a UID.
        LabelError: An object of another class, or an SR without measurements by TID 1500.
    """
    name = "a data set in memory" if isinstance(source, Dataset) else shown(source)
    if not isinstance(source, Dataset):
        source = load_object(source, "a measurement report (SR)", CLASSES)
    elif (sop_class := instance_of(source).sop_class_uid) not in CLASSES:
        raise LabelError(
            f"{name} has SOP class {shown_uid(sop_class)}; a measurement report (SR) is needed; check which file it is"
        )
    with refusing(name):
        root = _Item(source)
        containers = [item for item in _walk(root) if item.kind == "CONTAINER"]
        templates = [stored_text(item, "TemplateIdentifier") for item in _items(source, "ContentTemplateSequence")]
        # Not every software names the template (PS3.3 C.18.8), so containers with the names of TID 1500 are enough.
        if TEMPLATE not in templates and not any(item.named(*_MEASUREMENTS) for item in containers):
            raise LabelError(
                f"{name} is an SR without imaging measurements{_by(templates)}; a measurement report by TID 1500 is needed; "
                "check which report it is"
            )
        return _report(source, root, [item for item in containers if item.named(codes.DCM.MeasurementGroup)])


class _Item:
    """A content item: its data set, kind and name, and the items below it. Raises ValueError for an item that is cut short."""

    def __init__(self, dataset: Dataset) -> None:
        # pydicom accepts a value that ends early; a number that is cut short would be read as another number.
        if any(map(ends_early, dataset.values())):
            raise ValueError("a content item ends within an attribute")
        self.dataset = dataset
        self.kind = stored_text(dataset, "ValueType")
        self.relation = stored_text(dataset, "RelationshipType")
        self.name = _code(dataset, "ConceptNameCodeSequence")
        self.below = [_Item(item) for item in _items(dataset, "ContentSequence")]

    def all(self, kind: str, *names: Code) -> "list[_Item]":
        """The items below it of a kind; with `names` only items that have one of these names."""
        return [item for item in self.below if item.kind == kind and (not names or item.named(*names))]

    def named(self, *names: Code) -> bool:
        """Whether it has one of these names. Codes in the older form of SNOMED (SRT) equal codes in the newer form (SCT)."""
        return self.name is not None and self.name in names

    def code(self, name: Code) -> Code | None:
        """The first coded answer below it to a question; None without an answer."""
        return next(iter(self.codes(name)), None)

    def codes(self, name: Code) -> list[Code]:
        """All coded answers below it to a question."""
        answers = (_code(item.dataset, "ConceptCodeSequence") for item in self.all("CODE", name))
        return [code for code in answers if code is not None]

    def coded_but(self, *names: Code) -> tuple[Coded, ...]:
        """The questions below it and their coded answers, except for `names`."""
        answers = ((item.name, _code(item.dataset, "ConceptCodeSequence")) for item in self.all("CODE"))
        return tuple(
            (name, code) for name, code in answers if name is not None and code is not None and name not in names
        )

    def text(self, name: Code) -> str:
        """The first text or UID below it with a name; "" without such an item."""
        return next(iter(self.texts(name)), "")

    def texts(self, name: Code) -> list[str]:
        """All texts and UIDs below it with a name."""
        return [item.value for item in self.below if item.named(name)]

    @property
    def value(self) -> str:
        """Its text, person's name or UID; "" for any other kind."""
        if self.kind == "UIDREF":
            return _uid(self.dataset, "UID")
        return _text(self.dataset, "PersonName" if self.kind == "PNAME" else "TextValue")


def _walk(root: _Item) -> Iterator[_Item]:
    """All content items below an item, in the order of the report."""
    for item in root.below:
        yield item
        yield from _walk(item)


def _report(dataset: Dataset, root: _Item, groups: list[_Item]) -> MeasurementReport:
    return MeasurementReport(
        sop_class_uid=_uid(dataset, "SOPClassUID"),
        sop_instance_uid=_uid(dataset, "SOPInstanceUID"),
        series_instance_uid=_uid(dataset, "SeriesInstanceUID"),
        study_instance_uid=_uid(dataset, "StudyInstanceUID"),
        title=root.name,
        completion=stored_text(dataset, "CompletionFlag"),
        preliminary=stored_text(dataset, "PreliminaryFlag"),
        verification=stored_text(dataset, "VerificationFlag"),
        content_date=stored_text(dataset, "ContentDate"),
        content_time=stored_text(dataset, "ContentTime"),
        predecessors=tuple(
            _uid(instance, "ReferencedSOPInstanceUID")
            for study in _items(dataset, "PredecessorDocumentsSequence")
            for series in _items(study, "ReferencedSeriesSequence")
            for instance in _items(series, "ReferencedSOPSequence")
        ),
        procedures=tuple(root.codes(codes.DCM.ProcedureReported)),
        language=root.code(codes.DCM.LanguageOfContentItemAndDescendants),
        observers=tuple(_observers(root)),
        groups=tuple(map(_group, groups)),
    )


def _observers(root: _Item) -> Iterator[Observer]:
    """Each observer begins with its type (TID 1002). Without a type, the first attribute tells a person from a device."""
    observers: list[dict[str, str]] = []
    names = {**_DEVICE, "person": codes.DCM.PersonObserverName}
    for item in root.below:
        if item.named(codes.DCM.ObserverType):
            observers.append({"kind": _KINDS.get(_code(item.dataset, "ConceptCodeSequence"), "")})
        for key, name in names.items():
            if item.named(name):
                observers = observers or [{"kind": "person" if key == "person" else "device"}]
                observers[-1]["name" if key == "person" else key] = item.value
    return (Observer(**observer) for observer in observers)


def _group(group: _Item) -> MeasurementGroup:
    named = [(item, _reference(item.dataset)) for item in group.all("IMAGE")]
    # A reference with segment numbers is a segment, whatever it is called.
    images = [(item.named(*_SEGMENTS) or bool(reference.segments), reference) for item, reference in named]
    return MeasurementGroup(
        tracking_id=group.text(codes.DCM.TrackingIdentifier),
        tracking_uid=group.text(codes.DCM.TrackingUniqueIdentifier),
        category=group.code(_FINDING_CATEGORY),
        finding=group.code(_FINDING),
        sites=tuple(_sites(group)),
        method=group.code(codes.SCT.MeasurementMethod),
        segments=tuple(reference for is_segment, reference in images if is_segment),
        regions=tuple(map(_region, [*group.all("SCOORD"), *group.all("SCOORD3D")])),
        source_images=tuple(reference for is_segment, reference in images if not is_segment),
        source_series=tuple(group.texts(codes.DCM.SourceSeriesForSegmentation)),
        algorithm_name=group.text(codes.DCM.AlgorithmName),
        algorithm_version=group.text(codes.DCM.AlgorithmVersion),
        algorithm_parameters=tuple(group.texts(codes.DCM.AlgorithmParameters)),
        measurements=tuple(map(_measurement, group.all("NUM"))),
        evaluations=group.coded_but(*_OWN_OF_GROUP),
    )


def _sites(group: _Item) -> Iterator[FindingSite]:
    for item in group.all("CODE", codes.SCT.FindingSite):
        place = _code(item.dataset, "ConceptCodeSequence")
        if place is not None:
            yield FindingSite(place, item.code(codes.SCT.Laterality), item.code(codes.SCT.TopographicalModifier))


def _measurement(item: _Item) -> Measurement:
    if item.name is None:
        raise ValueError("a number of a measurement group has no name")
    measured = _items(item.dataset, "MeasuredValueSequence")
    # MeasuredValueSequence has no item or one (PS3.3 C.18.1).
    if len(measured) > 1:
        raise ValueError(f"a number of a measurement group has {len(measured)} values")
    return Measurement(
        name=item.name,
        value=_number(measured[0]) if measured else None,
        unit=_code(measured[0], "MeasurementUnitsCodeSequence") if measured else None,
        derivation=item.code(codes.DCM.Derivation),
        method=item.code(codes.SCT.MeasurementMethod),
        missing=_code(item.dataset, "NumericValueQualifierCodeSequence"),
        qualifiers=item.coded_but(*_OWN_OF_MEASUREMENT),
        properties=tuple(map(_measurement, item.all("NUM"))),
    )


def _number(measured: Dataset) -> float | None:
    """The value as written; None where it is absent or not finite. Raises ValueError for text that is no number."""
    digits = stored_text(measured, "NumericValue")
    try:
        # Python also reads "nan" and "inf" as numbers; they count as absent.
        number = float(digits) if digits else math.nan
    except ValueError:
        # Without its cause, whose message repeats the text: it may name the patient.
        raise ValueError("the NumericValue of a measurement is not a number") from None
    return number if math.isfinite(number) else None


def _region(item: _Item) -> Region:
    is_flat = item.kind == "SCOORD"
    size = 2 if is_flat else 3
    # SCOORD has columns and rows of an image (PS3.3 C.18.6), SCOORD3D millimetres of the patient (C.18.9).
    numbers = [float(number) for number in _numbers(item.dataset, "GraphicData", "FL")]
    if len(numbers) % size:
        raise ValueError(f"a region has {len(numbers)} coordinates, a multiple of {size} is needed")
    images = item.all("IMAGE")
    return Region(
        graphic_type=stored_text(item.dataset, "GraphicType"),
        points=tuple(tuple(numbers[at : at + size]) for at in range(0, len(numbers), size)),
        image=_reference(images[0].dataset) if is_flat and images else None,
        frame_of_reference_uid="" if is_flat else _uid(item.dataset, "ReferencedFrameOfReferenceUID"),
    )


def _reference(dataset: Dataset) -> Reference:
    instances = _items(dataset, "ReferencedSOPSequence")
    if len(instances) != 1 or not _uid(instances[0], "ReferencedSOPInstanceUID"):
        raise ValueError(
            f"a reference of a measurement group names {len(instances)} instances, one with its UID is needed"
        )
    return Reference(
        _uid(instances[0], "ReferencedSOPClassUID"),
        _uid(instances[0], "ReferencedSOPInstanceUID"),
        tuple(map(int, _numbers(instances[0], "ReferencedFrameNumber", "US", "IS"))),
        tuple(map(int, _numbers(instances[0], "ReferencedSegmentNumber", "US", "IS"))),
    )


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; empty where it is absent. Raises ValueError if the attribute is no sequence."""
    if keyword not in dataset:
        return []
    _check_kind(dataset, keyword, "SQ")
    items = dataset.get(keyword)
    if items is not None and not isinstance(items, Items):
        raise ValueError(f"its {keyword} is not a sequence")
    return list(items or [])


def _check_kind(dataset: Dataset, keyword: str, *representations: str) -> None:
    """Pass if an attribute has one of some value representations.

    pydicom would raise an error that repeats the value, which may name the patient.
    """
    stored = dataset.get_item(keyword)
    if isinstance(stored, RawDataElement) and vr_of(stored) not in representations:
        raise ValueError(f"its {keyword} has the VR {vr_of(stored)}, {representations[0]} is needed")


def _code(holder: Dataset, keyword: str) -> Code | None:
    """The first code of a sequence; None where it is absent or has no value or scheme."""
    for item in _items(holder, keyword)[:1]:
        # A code stands in one of three attributes, by its length and form; only a URN needs no scheme (PS3.3 table 8.8-1a).
        value = _text(item, "CodeValue") or _text(item, "LongCodeValue") or stored_text(item, "URNCodeValue")
        scheme = _text(item, "CodingSchemeDesignator")
        if value and (scheme or "URNCodeValue" in item):
            return Code(value, scheme, _text(item, "CodeMeaning"))
    return None


def _text(dataset: Dataset, keyword: str) -> str:
    return "\\".join(text_values(dataset, keyword))


def _uid(dataset: Dataset, keyword: str) -> str:
    uid = stored_text(dataset, keyword)
    if shown_uid(uid) != uid:
        raise ValueError(f"its {keyword} has characters that are not allowed in a UID")
    return uid


def _numbers(dataset: Dataset, keyword: str, *representations: str) -> list[Any]:
    """The values of an attribute with one of some value representations, as numbers or as the text of numbers."""
    if keyword not in dataset:
        return []
    _check_kind(dataset, keyword, *representations)
    stored = dataset.get_item(keyword)
    if isinstance(stored, RawDataElement) and vr_of(stored) == "IS":
        return list(filter(None, stored_text(dataset, keyword).split("\\")))
    value = dataset.get(keyword)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (MultiValue, list)) else [value]


def _by(templates: list[str]) -> str:
    return f" (template {shown(templates[0][:16])})" if templates and templates[0] else ""
