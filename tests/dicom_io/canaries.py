"""Data sets with a recognisable value in every attribute that could name someone, and short ways to process them."""

from __future__ import annotations

import json
import re
from datetime import date
from importlib.resources import files
from pathlib import Path

import pydicom
from pydicom.datadict import DicomDictionary, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian

from dicom_io.deidentify import Deidentified, deidentify, files_of

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
MR = "1.2.840.10008.5.1.4.1.1.4"
PRIVATE_CLASS = "1.3.12.2.1107.5.9.1"  # of Siemens; no IOD of the standard
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
GSPS = "1.2.840.10008.5.1.4.1.1.11.1"
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
TEXTS = ("AE", "LO", "SH", "ST", "LT", "UT", "UC", "PN", "CS")
ROWS = json.loads(files("dicom_io.confidentiality").joinpath("tables/confidentiality_profile.json").read_text())["rows"]


def canary(vr: str, number: int) -> object:
    """A value of a VR that stands nowhere else, number 0 to 9999."""
    days = date.fromordinal(date(1777, 1, 1).toordinal() + number)
    return {
        **dict.fromkeys(TEXTS, f"CANARY{number:05d}"),
        "DA": f"{days:%Y%m%d}", "TM": f"235907.77{number:04d}", "DT": f"{days:%Y%m%d}235907.77{number:04d}",
        "UI": f"1.2.777.{number}.424242.1", "UR": f"http://CANARY{number:05d}/", "AS": f"{number % 1000:03d}Y",
        "DS": f"777.77{number:05d}", "IS": f"77{number:05d}", "US": 0x7A7A, "UL": 0x7A7A7A7A,
        **dict.fromkeys(("OB", "OW", "UN"), b"CANARY%05d." % number),
    }[vr]  # fmt: skip


def filled(tags: list[int]) -> tuple[Dataset, dict[str, bytes]]:
    """A data set with a canary in each attribute, and the bytes of each canary by keyword (none for sequences and codes of
    two bytes).
    """
    dataset, found = Dataset(), {}
    for number, tag in enumerate(sorted(tags)):
        vr = dictionary_VR(tag).split(" or ")[0]
        if vr == "SQ":
            item = Dataset()
            item.ImageComments, item.PatientName = canary("LT", number), canary("PN", number)
            item.add(DataElement(Tag(0x00330010), "LO", "CANARY PRIVATE"))
            item.add(DataElement(Tag(0x00331001), "LT", "CANARY IN AN ITEM"))
            dataset[tag] = DataElement(tag, "SQ", Sequence([item]))
            continue
        value = canary(vr, number)
        dataset[tag] = DataElement(tag, vr, value)
        if vr not in ("US", "AS"):
            found[keyword_for_tag(tag)] = value if isinstance(value, bytes) else str(value).encode()
    return dataset, found


def table_tags() -> list[int]:
    """Every attribute of Table E.1-1 that can stand in a data set of its own and that pydicom knows."""
    tags = [int(row["tag"], 16) for row in ROWS if re.fullmatch("[0-9A-F]{8}", row["tag"])]
    return [tag for tag in tags if tag >> 16 >= 8 and keyword_for_tag(tag)]


def silent_tags() -> list[int]:
    """Names, dates, addresses, long texts and UIDs of things that the table does not list."""
    listed = set(table_tags())
    classes = (
        "ClassUID",
        "ClassesInStudy",
        "ClassesInSeries",
        "ClassesSupported",
        "TransferSyntaxUID",
        "CodingSchemeUID",
    )
    kept = ("ContextUID", "MappingResourceUID", "CodingSchemeURL", "URNCodeValue")
    return [
        tag
        for tag, (vr, *_, keyword) in DicomDictionary.items()
        if vr in ("PN", "DA", "TM", "DT", "AE", "UR", "LT", "ST", "UT", "UI")
        and keyword and tag >> 16 >= 8 and tag not in listed and not keyword.endswith(classes) and keyword not in kept
    ]  # fmt: skip


def full_of_canaries(sop_class: str = MR) -> tuple[Dataset, dict[str, bytes]]:
    """Every attribute of the table and what the table forgot, at the top, two items deep, private, in curves, overlays."""
    dataset, found = filled(table_tags() + silent_tags())
    dataset.SOPClassUID = sop_class
    inner, _ = filled([tag for tag in table_tags() if dictionary_VR(tag) != "SQ"] + silent_tags())
    item = Dataset()
    item.ReferencedSeriesSequence = [inner]
    dataset.DerivationImageSequence = [item]
    for holder in (dataset, inner):
        holder.add(DataElement(Tag(0x00310010), "LO", "CANARY CREATOR"))
        holder.add(DataElement(Tag(0x00311001), "LO", "CANARY PRIVATE"))
        holder.add(DataElement(Tag(0x00311002), "UN", b"CANARY PRIVATE."))
        nested = Dataset()
        nested.PatientName = "CANARY IN PRIVATE"
        holder.add(DataElement(Tag(0x00311003), "SQ", Sequence([nested])))
        holder.add(DataElement(Tag(0x00109FFE), "LO", "CANARY UNKNOWN"))  # no attribute of the standard
        for tag, vr in ((0x50000022, "LO"), (0x50003000, "OW"), (0x60000022, "LO"), (0x60001500, "LO"), (0x60003000, "OW"),
                        (0x60004000, "LT"), (0x601E0022, "LO")):  # fmt: skip
            holder.add(DataElement(Tag(tag), vr, b"CANARY.." if vr == "OW" else "CANARY"))
    return dataset, found


def saved(dataset: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """A file of a data set; what its header lacks and needs is supplied."""
    for keyword, value in (("SOPClassUID", MR), ("SOPInstanceUID", "1.2.3.4.5.6.1"), ("SeriesInstanceUID", "1.2.3.4.5.6.2"),
                           ("StudyInstanceUID", "1.2.3.4.5.6.3")):  # fmt: skip
        if keyword not in dataset:
            setattr(dataset, keyword, value)
    if dataset.SOPClassUID.name.endswith("Image Storage") and "PixelData" not in dataset:
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.BitsAllocated = 2, 2, 1, 16
        dataset.PixelRepresentation = 0
        dataset.PixelData = bytes(8)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = syntax
    meta.SourceApplicationEntityTitle = "CANARYAE"
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = "1.2.777.1", b"CANARY META."
    dataset.file_meta = meta
    dataset.preamble = b"CANARY PREAMBLE!" * 8
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def run(source: Path, output: Path, *options: str, key: bytes = KEY, allow_burned_in: bool = False) -> Deidentified:
    """De-identifies a file or folder."""
    return deidentify(files_of([source], output), output, key, options=options, allow_burned_in=allow_burned_in)


def only(output: Path) -> Path:
    """The one object in a folder."""
    (path,) = output.rglob("*.dcm")
    return path


def result_of(dataset: Dataset, folder: Path, *options: str, allow_burned_in: bool = False) -> Dataset:
    """The data set that one data set becomes."""
    outcome = run(saved(dataset, folder / "in" / "a.dcm"), folder / "out", *options, allow_burned_in=allow_burned_in)
    assert outcome.problems == ()
    return pydicom.dcmread(only(folder / "out"))
