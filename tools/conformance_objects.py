"""Which attributes the written objects have, and where their values come from: tables for docs/conformance.md.

Each kind of object is written twice, from two sources and two results that differ in everything they can differ in. What is
the same in both is our own constant; what equals the source's attribute is copied; the rest depends on the input. Modules
and Types come from the tables that highdicom brings with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from phantoms import lopsided_array, oblique_affine, write_mr_series, write_picture  # noqa: E402

from dicom_io.capture import write_captures, write_notice  # noqa: E402
from dicom_io.coding import Segment  # noqa: E402
from dicom_io.kinds.encodings import SegEncoding  # noqa: E402
from dicom_io.objects import patient_and_study  # noqa: E402
from dicom_io.objects.identity import ResultInfo  # noqa: E402
from dicom_io.parametric import NO_UNIT, PROBABILITY, MapMeaning, write_parametric_map  # noqa: E402
from dicom_io.pdf import write_pdf  # noqa: E402
from dicom_io.presentation import write_gsps  # noqa: E402
from dicom_io.read import read_series  # noqa: E402
from dicom_io.rejection import Rejection, write_rejection_note  # noqa: E402
from dicom_io.rtstruct import write_rtstruct  # noqa: E402
from dicom_io.seg import write_seg  # noqa: E402
from dicom_io.sr import write_sr  # noqa: E402
from dicom_io.volume import Volume  # noqa: E402

CARRIED_MODULES = ("patient", "clinical-trial-subject", "general-study", "patient-study", "clinical-trial-study")
STRONGEST_FIRST = ("1", "1C", "2", "2C", "3")
HIDDEN = ("ContentSequence",)  # the tree of a report is described by its templates
PIXELS = ("PixelData", "FloatPixelData", "EncapsulatedDocument", "GraphicData", "ContourData", "ICCProfile")
DEEPEST = 4
MEANT = {
    "SeriesNumber": "see Series numbers",
    "SeriesDescription": "at most 64 characters, ends in the number of source images, the kind and RESEARCH",
    "Manufacturer": "maker of the software",
    "ManufacturerModelName": "algorithm name",
    "SoftwareVersions": "algorithm version",
    "DeviceSerialNumber": "SHA-256 of the bundle, hexadecimal",
    "ContributionDescription": "bundle digest, settings, quality verdict",
    "ContentDate": "latest date of the source",
    "ContentTime": "latest time of the source",
    "SeriesDate": "latest date of the source",
    "SeriesTime": "latest time of the source",
    "TrackingID": "segment number and label; the same in SEG and report",
    "TrackingUID": "derived; the same in SEG and report",
    "ImageComments": "what the picture says, in ASCII",
    "SegmentLabel": "from segments.json",
    "ROIName": "from segments.json",
    "ReferencedSOPClassUID": "of what is referred to",
    "NumberOfContourPoints": "from the input",
    "SegmentsOverlap": "NO, or YES where they do",
    "SegmentAlgorithmType": "AUTOMATIC, or as the result says",
    "ROIGenerationAlgorithm": "AUTOMATIC, or as the result says",
    "AlgorithmFamilyCodeSequence": "123110, DCM, Artificial Intelligence, or as the result says",
    "StructureSetDate": "latest date of the source",
    "StructureSetTime": "latest time of the source",
    "PresentationCreationDate": "latest date of the source",
    "PresentationCreationTime": "latest time of the source",
    "ICCProfile": "the source's, else sRGB",
}


@dataclass(frozen=True)
class Variant:
    """One variant of a kind of object: its heading, how an example is written, and values that mean something else than in
    MEANT.
    """

    title: str
    write: Callable[[_Case, Path], Path]
    in_colour: bool = False
    meant: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Case:
    source: Volume
    labels: Volume
    result: ResultInfo
    header: Dataset
    largest: np.float32

    def probabilities(self) -> Volume:
        parts = [(self.labels.array == number) * self.largest for number in (1, 2)]
        return self.source.with_array(np.stack(parts, axis=3))


def _seg(encoding: SegEncoding, case: _Case, folder: Path) -> Path:
    values = case.probabilities() if encoding == "fractional" else case.labels
    return write_seg(values, case.source, folder / f"{encoding}.dcm", case.result, encoding=encoding)


def _sr(case: _Case, folder: Path) -> Path:
    seg = write_seg(case.labels, case.source, folder / "s.dcm", case.result)
    return write_sr(case.labels, case.source, folder / "sr.dcm", case.result, seg=seg)


def _map(case: _Case, folder: Path) -> Path:
    values = case.source.with_array(case.probabilities().array[..., 0])
    meaning = MapMeaning(PROBABILITY, NO_UNIT, f"P({case.result.segments[0].label})")
    return write_parametric_map(values, case.source, folder / "pm.dcm", case.result, meaning)


def _pdf(case: _Case, folder: Path) -> Path:
    pages = b"%PDF-1.4\n" + case.result.algorithm_name.encode() + b"\n%%EOF\n"
    return write_pdf(pages, case.source, folder / "p.dcm", case.result, title=f"About {case.result.algorithm_name}")


def _notice(case: _Case, folder: Path) -> Path:
    files = [Path(file) for file in case.source.provenance.files]
    reason = " ".join(f"reason {n}" for n in range(10 * len(files)))
    return write_notice(files, reason, folder / "n.dcm", case.result)


_MEANT_OF_NOTE = {
    "SeriesDescription": "REJECTED, do not use: KO RESEARCH",
    "Manufacturer": "maker of the software; of the equipment highdicom's",
    "ManufacturerModelName": "algorithm name; of the equipment highdicom's",
    "SoftwareVersions": "algorithm version; of the equipment highdicom's",
    "ContributionDescription": "what highdicom says of itself",
    **dict.fromkeys(("ContentDate", "SeriesDate"), "date of the rejection"),
    **dict.fromkeys(("ContentTime", "SeriesTime"), "time of the rejection"),
}


def _note(case: _Case, folder: Path) -> Path:
    seg = write_seg(case.labels, case.source, folder / "s.dcm", case.result)
    which = case.result.algorithm_name
    moment = datetime(2026, 1, 2, 3, 4, 5 + len(which), tzinfo=UTC)
    rejection = Rejection(f"{which}^Anna", f"{which} clinic", moment, f"{which} is wrong")
    return write_rejection_note([seg], folder / "k.dcm", rejection)


VARIANTS = (
    Variant("Segmentation, BINARY", partial(_seg, "binary")),
    Variant("Segmentation, FRACTIONAL", partial(_seg, "fractional")),
    Variant("Label Map Segmentation", partial(_seg, "labelmap")),
    Variant("Comprehensive 3D SR", _sr),
    Variant("RT Structure Set", lambda case, to: write_rtstruct(case.labels, case.source, to / "r.dcm", case.result)),
    Variant(
        "Grayscale Softcopy Presentation State",
        lambda case, to: write_gsps(case.labels, case.source, to / "g.dcm", case.result),
    ),
    Variant(
        "Color Softcopy Presentation State",
        lambda case, to: write_gsps(case.labels, case.source, to / "c.dcm", case.result),
        in_colour=True,
    ),
    Variant(
        "Secondary Capture Image",
        lambda case, to: write_captures(case.labels, case.source, to, case.result, slices=[0])[0],
    ),
    Variant("Secondary Capture Image, notice that a series was not processed", _notice),
    Variant("Encapsulated PDF", _pdf),
    Variant("Parametric Map", _map),
    Variant("Key Object Selection Document, rejection note", _note, meant=_MEANT_OF_NOTE),
)


Line = tuple[str, str, str, str]


@dataclass(frozen=True)
class Example:
    """What two objects of one kind have in common and what not.

    Attributes:
        sop_class_uid: Of the kind.
        transfer_syntax_uid: In which it was written.
        rows: For each module (its name in PS3.3), lines of (attribute, tag, Type, value); attributes of an item carry a
            ">" for each level. The modules of patient and study are left out.
        absent: Mandatory modules of the IOD none of whose attributes is written.
    """

    title: str
    sop_class_uid: pydicom.uid.UID
    transfer_syntax_uid: pydicom.uid.UID
    rows: Mapping[str, list[Line]]
    absent: tuple[str, ...]


def examples() -> list[Example]:
    """One example for each of VARIANTS, in their order."""
    with TemporaryDirectory() as name:
        pairs = [
            [_case(Path(name) / f"{which}{in_colour:d}", which, in_colour) for which in (0, 1)]
            for in_colour in (False, True)
        ]
        return [_example(kind, pairs[kind.in_colour], Path(name)) for kind in VARIANTS]


_HEADERS: dict[str, tuple[Any, Any]] = {
    "PatientName": ("One^Phantom", "Two^Phantom"),
    "SeriesNumber": (3, 14),
    "StudyDate": ("20250102", "20260203"),
    "StudyTime": ("101112", "131415"),
    "BodyPartExamined": ("HAND", "KNEE"),
    "Laterality": ("L", "R"),
    "PositionReferenceIndicator": ("NASION", "ILIAC CREST"),
    "WindowCenter": (300, 250),
    "WindowWidth": (500, 400),
    "SpecificCharacterSet": ("ISO_IR 100", "ISO_IR 192"),
    "LossyImageCompression": ("00", "01"),
    "LossyImageCompressionRatio": (None, 10),
    "LossyImageCompressionMethod": (None, "ISO_10918_1"),
    "PixelAspectRatio": ([1, 1], [4, 3]),
}


def _case(folder: Path, which: int, in_colour: bool) -> _Case:
    """A source with labels: the first or the second of two that share nothing."""
    header = {keyword: values[which] for keyword, values in _HEADERS.items()}
    shape = ((11, 9, 7), (12, 10, 6))[which]
    if in_colour:
        pixels = np.stack([lopsided_array(shape)[:, :, k] % 251 for k in range(3)], axis=-1).astype(np.uint8)
        path = write_picture(folder / "picture.dcm", pixels, header)
        source, first = read_series(path), path
    else:
        affine = (oblique_affine(), oblique_affine((0.5, 0.625, 3.5), (5.5, 6.5, 7.5), (-9.0, 15.0, -21.0)))[which]
        rescale = {"slopes": [1.5 + which] * shape[2], "intercepts": [-3.0 - which] * shape[2]}
        first = write_mr_series(folder / "mr", lopsided_array(shape), affine, header=header, **rescale)[0]
        source = read_series(folder / "mr")
    array = np.zeros(source.shape, dtype=np.uint8)
    array[1:4, 1:4, : max(1, shape[2] - 2 - which) if not in_colour else 1] = 1
    array[5:7, 4 : 6 + which, :] = 2
    return _Case(
        source, source.with_array(array), _result(which), pydicom.dcmread(first), np.float32((0.75, 0.5)[which])
    )


def _result(which: int) -> ResultInfo:
    words = ("first", "second")[which]
    kinds = ((codes.SCT.Hippocampus, codes.SCT.BloodVessel), (codes.SCT.Liver, codes.SCT.Kidney))[which]
    category = (codes.SCT.AnatomicalStructure, codes.SCT.MorphologicallyAbnormalStructure)[which]
    colours = (((200, 10, 30), (20, 40, 60)), ((1, 2, 3), (90, 80, 70)))[which]
    segments = tuple(
        Segment(number, f"{words} {number}", category, kind, display_rgb=rgb)
        for number, kind, rgb in zip((1, 2), kinds, colours, strict=True)
    )
    return ResultInfo(
        segments,
        f"{words}_network",
        f"{which + 1}.0",
        ("ab", "cd")[which] * 32,
        settings=(("tta", words),),
        series_description=f"{words} result",
        quality=f"{words} verdict",
        manufacturer=f"{words} maker",
    )


def _example(kind: Variant, cases: Sequence[_Case], folder: Path) -> Example:
    written = []
    for number, case in enumerate(cases):
        place = folder / f"{kind.title} {number}"
        place.mkdir()
        written.append(pydicom.dcmread(kind.write(case, place)))
    one, two = written
    iod = _standard("iod_module_map")[_standard("sop_class_iod_map")[one.SOPClassUID]]
    rows: dict[str, list[Line]] = {}
    for tag in sorted({*one.keys(), *two.keys()}):
        keyword = keyword_for_tag(tag)
        module, type_ = _module_of(keyword, iod)
        if module in CARRIED_MODULES or keyword in _CARRIED:
            continue
        name = _title(module) if module else "Not in a module of the IOD"
        lines = _lines(one, two, keyword, (), module, type_, cases)
        rows.setdefault(name, []).extend(
            (mark, tag, kind_of, kind.meant.get(mark.lstrip(">"), value)) for mark, tag, kind_of, value in lines
        )
    order = [_title(part["key"]) for part in iod]
    absent = tuple(
        _title(part["key"])
        for part in iod
        if part["usage"] == "M" and part["key"] not in CARRIED_MODULES and not _stands(part["key"], one)
    )
    known = {name: rows[name] for name in dict.fromkeys([*order, *rows]) if name in rows}
    return Example(kind.title, one.SOPClassUID, one.file_meta.TransferSyntaxUID, known, absent)


_CARRIED = frozenset((*patient_and_study.PATIENT_KEYWORDS, *patient_and_study.STUDY_KEYWORDS))


def _stands(module: str, dataset: Dataset) -> bool:
    """Whether an attribute of a module is there, or it has none that must be."""
    top = [item for item in _attributes(module) if not item["path"]]
    return any(item["keyword"] in dataset for item in top) or not any(item["type"] in ("1", "2") for item in top)


@cache
def _standard(name: str) -> dict[str, Any]:
    """One of the tables of the standard that highdicom brings with it."""
    return dict(json.loads(files("highdicom").joinpath(f"_standard/{name}.json").read_text(encoding="utf-8")))


def _attributes(module: str) -> list[dict[str, Any]]:
    """The attributes of a module, those of its items too; none where the module is unknown."""
    return list(_standard("module_attribute_map").get(module, []))


def _module_of(keyword: str, iod: list[dict[str, str]]) -> tuple[str, str]:
    """The module of an IOD that gives an attribute its strongest Type, and that Type; empty where none lists it."""
    found = [
        (STRONGEST_FIRST.index(item["type"]), number, part["key"])
        for number, part in enumerate(iod)
        for item in _attributes(part["key"])
        if item["keyword"] == keyword and not item["path"]
    ]
    return (min(found)[2], STRONGEST_FIRST[min(found)[0]]) if found else ("", "")


def _title(module: str) -> str:
    short = ["sr", "sop", "sc", "rt", "roi", "lut", "voi", "icc"]
    return " ".join(word.upper() if word in short else word.capitalize() for word in module.split("-"))


def _lines(
    one: Dataset, two: Dataset, keyword: str, path: tuple[str, ...], module: str, type_: str, cases: Sequence[_Case]
) -> list[Line]:
    """The line of an attribute, and those of its first item's attributes."""
    first, second = (dataset.get(tag_for_keyword(keyword)) for dataset in (one, two))
    element = first if first is not None else second
    assert element is not None
    items = [list(found.value) if found is not None and found.VR == "SQ" else [] for found in (first, second)]
    whole = element.VR != "SQ" or not any(items) or _is_code(items) or keyword in HIDDEN or len(path) >= DEEPEST
    value = _value(first, second, keyword, cases) if whole else _count(items)
    lines = [(f"{'>' * len(path)}{keyword}", f"{element.tag.group:04X},{element.tag.element:04X}", type_, value)]
    if whole:
        return lines
    inner, place = [_telling(found) for found in items], (*path, keyword)
    for below in map(keyword_for_tag, sorted({*inner[0].keys(), *inner[1].keys()})):
        lines += _lines(*inner, below, place, module, _type_at(below, place, module), cases)
    return lines


def _telling(items: list[Dataset]) -> Dataset:
    """The item that is shown: the first, or of the contributing equipment our own."""
    ours = [item for item in items if str(item.get("ContributionDescription", "")).startswith("bundle sha256")]
    return [*ours, *items, Dataset()][0]


def _type_at(keyword: str, path: tuple[str, ...], module: str) -> str:
    found = (item for item in _attributes(module) if item["keyword"] == keyword and tuple(item["path"]) == path)
    return next(found, {"type": ""})["type"]


def _is_code(items: list[list[Dataset]]) -> bool:
    return all("CodeValue" in item for found in items for item in found)


def _count(items: list[list[Dataset]]) -> str:
    counts = {len(found) for found in items}
    if counts == {1}:
        return "1 item"
    which = "ours" if any(_telling(found) is not found[0] for found in items if found) else "the first"
    return f"items; {which}:"


def _value(first: DataElement | None, second: DataElement | None, keyword: str, cases: Sequence[_Case]) -> str:
    """Where a value comes from, or the value itself where it is ours."""
    if first is None or second is None:
        return "where the input needs it"
    if keyword in HIDDEN:
        return "see the templates"
    if first.VR == "SQ" and keyword not in MEANT:
        return _codes(first, second, keyword)
    if keyword in PIXELS:
        return "from the input"
    if keyword in MEANT:
        return MEANT[keyword]
    if first.value == second.value:
        return _shown(first)
    if all(element.value == case.header.get(keyword) for element, case in zip((first, second), cases, strict=True)):
        return "copied from the source"
    if first.VR == "UI":
        return "of the source" if all(map(_of_source, (first, second), cases)) else "derived"
    return "from the input"


def _of_source(element: DataElement, case: _Case) -> bool:
    told = case.source.provenance
    return str(element.value) in (
        told.study_instance_uid,
        told.series_instance_uid,
        told.frame_of_reference_uid,
        *told.sop_instance_uids,
    )


def _codes(first: DataElement, second: DataElement, keyword: str) -> str:
    if first.is_empty:
        return "(no item)"
    if first.value[0] == second.value[0]:
        item = first.value[0]
        return f'({item.CodeValue}, {item.CodingSchemeDesignator}, "{item.CodeMeaning}")'
    if "AnatomicRegion" in keyword:
        return "a code for the source's body part"
    return "a code from segments.json" if keyword.startswith("Segmented") or "RTROI" in keyword else "a code"


def _shown(element: DataElement) -> str:
    value = element.value
    if element.is_empty:
        return "(empty)"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return "\\".join(map(str, value)) if isinstance(value, pydicom.multival.MultiValue) else str(value)
