"""Files or folders of DICOM objects -> the same objects without the identity of anyone (PS3.15 Annex E).

`confidentiality` treats the attributes; this module treats the files. An object is written whole under its new UIDs or not at
all, existing files are not changed, and no message, name or report holds a value of the source: files are named by their number
in the order of their paths.
"""

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID

from dicom_io.confidentiality.actions import protect
from dicom_io.confidentiality.pseudonyms import DeidentificationError, Pseudonyms
from dicom_io.confidentiality.table import OPTIONS, PROFILE, checked_options, table
from dicom_io.errors import SeriesSelectionError, UnreadableFileError
from dicom_io.files import write_whole
from dicom_io.reading.frames import stored_samples
from dicom_io.reading.headers import is_uid, shown
from dicom_io.reading.instances import READ_ERRORS, listed, load_dataset, read_instance
from dicom_io.reading.series import files_at

REPORT = "deidentified.json"
SCHEMA_VERSION = "1.0"

STORAGE = "1.2.840.10008.5.1.4.1.1."
_SUSPECT_CLASSES = {
    "ultrasound": "3 3.1 6 6.1 6.2",
    "a secondary capture": "7 7.1 7.2 7.3 7.4",
    "sound": "9.4.1 9.4.2",
    "endoscopy": "77.1.1 77.1.1.1",
    "a video": "77.1.2.1",
    "a photograph": "77.1.4 77.1.4.1 77.1.7",
    "a photograph of the eye": "77.1.5.1 77.1.5.2 77.1.5.5 77.1.5.6",
    "an encapsulated document": "104.1 104.2 104.3 104.4 104.5",
}
SUSPECTS = {STORAGE + number: kind for kind, numbers in _SUSPECT_CLASSES.items() for number in numbers.split()}
"""SOP classes whose pixels, sound or document usually hold the patient's name, and what they are."""

UNREADABLE: tuple[type[Exception], ...] = (UnreadableFileError, *READ_ERRORS)
OTHER_CONTENT = (
    "an object with its new UID and different content is already in the output folder; one object for each UID is needed; "
    "use an empty folder, or leave out one of the two objects"
)
GREY_CLASSES = """1 1.1 1.1.1 1.2 1.2.1 1.3 1.3.1 2 2.1 2.2 4 4.1 4.4 12.1 12.1.1 12.2 12.2.1 13.1.3 20 128 128.1 130"""
GREY = frozenset(STORAGE + number for number in GREY_CLASSES.split())
"""Scanners and detectors, whose images are grey (PS3.3 A): CR, DX, MG, IO, CT, MR, XA, RF, tomosynthesis, NM, PET."""

WHOLE_SLIDE, NUCLEAR_MEDICINE = STORAGE + "77.1.6", STORAGE + "20"
SCREEN_WORDS = re.compile(r"SCREEN|CAPTUR|SNAPSHOT|DOSE|REPORT")  # of an ImageType
SCREEN_NAMES = re.compile(
    r"(?<![A-Z])SCREENS?(?![A-Z])|SCREEN ?(SAVE|SHOT)|CAPTUR|SNAPSHOT|BILDSCHIRM"
    r"|(?<![A-Z])DOSE ?(REPORT|INFO|RECORD|SUMMARY|SHEET|PAGE)|DOSISBERICHT|PATIENT(EN)? ?PROTO[CK]OL|(?<![A-Z])REPORT(?![A-Z])"
)
"""Of a SeriesDescription: saved screens and dose reports, and neither "low dose" nor "screening"."""
NM_KINDS = frozenset(
    ("STATIC", "DYNAMIC", "GATED", "WHOLE BODY", "TOMO", "GATED TOMO", "RECON TOMO", "RECON GATED TOMO")
)
"""The third word of an NM image's ImageType (PS3.3 C.8.4.9.1.1); saved screens of a workstation have none of them."""
FILM_WORDS = re.compile(r"FILM|DIGITI[SZ]")
NO_SCAN = frozenset({"WSD", "SYN", "DRW"})  # ConversionType: a workstation's picture, a drawing
DIGITISED = frozenset({"DF", "DV", "SD", "SI"})  # film, video, a document, a picture


OTHER_PATIENT = (
    "its study is already in the output folder under another pseudonym, since only one of both runs knew the issuer of the "
    "PatientID; process all objects of a study together, or state the issuer in them"
)


@dataclass(frozen=True)
class Deidentified:
    """The result of a run.

    Attributes:
        report: The content of deidentified.json.
        problems: One sentence for each refused file, without any value of the source.
    """

    report: dict[str, Any]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Protected:
    """An object without identity, encoded as a file, and how often each (keyword, action) was applied."""

    name: str
    content: bytes
    counts: Counter[tuple[str, str]]
    patient: str


class _Persons:
    """Who the studies are of: PatientID with its issuer (PS3.3 C.7.1.1), which some objects of a study may leave out.

    Args:
        files: All that are processed.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.found: dict[str, tuple[set[str], ...]] = {}
        self.same: dict[str, str] = {}
        for path in files:
            with suppress(*UNREADABLE):  # processing the file gives the reason
                if (instance := read_instance(path)) is not None:
                    header = instance.header
                    told = self.found.setdefault(str(header.get("StudyInstanceUID")), tuple(set() for _ in range(5)))
                    more = (header.get("IssuerOfPatientIDQualifiersSequence") or [Dataset()])[0]
                    stated = [header.get("PatientID"), header.get("IssuerOfPatientID"), more.get("UniversalEntityID")]
                    stated += [header.get("PatientBirthDate"), header.get("PatientSex")]
                    texts = [str(value or "").strip("\0 ") for value in stated]
                    for text, values in zip(texts, told, strict=True):
                        values.update(filter(None, [text]))
                    if texts[1] and texts[2]:
                        self.same[texts[2]] = texts[1]

    def of(self, study: str) -> str:
        """A text that only objects of the same person share; "" where nothing names the person of a study.

        Raises:
            DeidentificationError: The study names several persons.
        """
        ids, issuers, universal = self.found.get(study, (set(),) * 5)[:3]
        # One object may state both, and the others the universal one alone
        issuers = issuers or {self.same.get(one, one) for one in universal}
        if len(ids) > 1 or len(issuers) > 1:
            raise DeidentificationError(
                f"its study names {len(ids)} PatientID(s) and {len(issuers)} IssuerOfPatientID(s); one person is needed, since "
                "all objects of a study get one pseudonym; correct them, or leave the study out"
            )
        return "\\".join([*ids, *issuers]) if ids else ""

    def _key(self, study: str) -> str:
        with suppress(DeidentificationError):  # the study is refused
            return self.of(study)
        return ""

    @property
    def notes(self) -> list[str]:
        """A sentence, without values, of PatientIDs that may be of two persons, or one person with two pseudonyms."""
        facts: dict[str, tuple[set[str], set[str]]] = {}
        by_issuer: dict[bool, set[str]] = {True: set(), False: set()}
        for study, (ids, issuers, universal, births, sexes) in self.found.items():
            by_issuer[bool(issuers or universal)] |= ids
            for known, more in zip(facts.setdefault(self._key(study), (set(), set())), (births, sexes), strict=True):
                known.update(more)
        several = sum(key != "" and max(map(len, known)) > 1 for key, known in facts.items())
        parted = len(by_issuer[True] & by_issuer[False])
        told = {
            f"{several} PatientID(s) have several birth dates or sexes: two persons under one ID get one pseudonym": several,
            f"{parted} PatientID(s) have an issuer in some studies and none in others, which get different pseudonyms: an "
            "absent issuer is unknown; state it in all of them first if they are of one person": parted,
        }
        return [note for note, count in told.items() if count]


@dataclass
class _Run:
    output: Path
    pseudonyms: Pseudonyms
    options: frozenset[str]
    allow_burned_in: bool
    persons: _Persons
    written: set[str] = field(default_factory=set)
    refused: list[tuple[int, str]] = field(default_factory=list)
    not_dicom: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    before: dict[str, str] = field(default_factory=dict)
    """Study -> the PatientID that it has in the output folder from an earlier run; empty without one."""

    def keep(self, number: int, protected: _Protected | None) -> None:
        """Writes an object. An object that is there already must be the same, byte for byte."""
        if protected is None:
            self.not_dicom += 1
            return
        path = self.output / protected.name
        study = path.parts[-3]
        if study not in self.before:
            self.before[study] = _patient_in(self.output / study)
        if self.before[study] not in ("", protected.patient):
            self.refused.append((number, OTHER_PATIENT))
            return
        # One key gives the same bytes for the same object, so other content comes from another object with that UID.
        if path.exists() and path.read_bytes() != protected.content:
            self.refused.append((number, OTHER_CONTENT))
            return
        if not path.exists():
            _write(protected.content, path)
        self.written.add(protected.name)
        self.counts.update(protected.counts)


def files_of(sources: Iterable[Path], output: Path) -> list[Path]:
    """All files of the sources and of the folders below them, in order of their paths, each once.

    Raises:
        DeidentificationError: Source and output are one folder, or one folder lies in the other.
        SeriesSelectionError: A source does not exist, or a folder holds no file.
    """
    target, files = Path(os.path.realpath(output)), set()
    for source in sources:
        origin = Path(os.path.realpath(source))  # Path.resolve fails on links in a circle
        if target in (origin, *origin.parents) or origin in target.parents:
            raise DeidentificationError(
                "the output folder is the source, lies in it or contains it; files with and without an identity must never "
                "be mixed; name a folder elsewhere"
            )
        if not os.path.exists(source):
            raise SeriesSelectionError(f"{shown(source)} does not exist; a DICOM file or a folder of them is needed")
        files.update(files_at(source))
    return sorted(files)


def deidentify(
    files: Iterable[Path],
    output: Path,
    key: bytes,
    *,
    options: Iterable[str] = (),
    allow_burned_in: bool = False,
    step: Callable[[], None] = lambda: None,
) -> Deidentified:
    """Writes every DICOM object of `files` without identity to output/<study>/<series>/<instance>.dcm.

    Args:
        files: From `files_of`. Files that are no DICOM objects (also a DICOMDIR) are skipped and counted.
        output: Folder; made where absent. Files in it stay; `deidentified.json` is of the last run.
        key: From `pseudonyms.key_from` or `new_key`. The same key gives the same UIDs, dummies and bytes.
        options: Names of `confidentiality.table.OPTIONS`.
        allow_burned_in: Also write objects whose pixels, sound or document may name the patient, because a person has checked
            them.
        step: Called after each file.

    Returns:
        The written objects, and the refused files with the reasons.

    Raises:
        DeidentificationError: The options or the key cannot be used.
    """
    files = list(files)
    run = _Run(output, Pseudonyms(key), checked_options(options), allow_burned_in, _Persons(files))
    for number, path in enumerate(files, start=1):
        try:
            protected = _protect_file(path, run)
        except DeidentificationError as error:
            run.refused.append((number, str(error)))
        except UNREADABLE as error:  # their texts hold paths and values
            run.refused.append(
                (number, f"it cannot be read completely ({type(error).__name__}); fetch it again or leave it out")
            )
        else:
            run.keep(number, protected)
        step()
    report = _report(run)
    _write(json.dumps(report, indent=2).encode() + b"\n", output / REPORT)
    return Deidentified(report, tuple(f"file {number}: {reason}" for number, reason in run.refused))


def _patient_in(study: Path) -> str:
    """The PatientID of a study in the output folder; empty without one."""
    first = next(study.glob("*/*.dcm"), None)
    return str(pydicom.dcmread(first, specific_tags=["PatientID"]).get("PatientID") or "") if first else ""


def _protect_file(path: Path, run: _Run) -> _Protected | None:
    """The object of a file without identity; None if the file is no DICOM object."""
    if read_instance(path) is None:  # also refuses a file that is cut short
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings show values
        dataset = load_dataset(path, with_pixels=True)
        _complete(dataset)
        suspicion = burned_in(dataset)
        if suspicion and not run.allow_burned_in:
            raise DeidentificationError(
                f"{suspicion}, and may hold the patient's name where no program can remove it; an object that someone has "
                "looked through is needed; look, then pass --allow-burned-in"
            )
        _cut_behind_pixels(dataset)
        counts = protect(dataset, run.pseudonyms, run.options, run.persons.of(str(dataset.StudyInstanceUID)))
        content = _encoded(dataset)
    # The UIDs are the new ones by now.
    name = f"{dataset.StudyInstanceUID}/{dataset.SeriesInstanceUID}/{dataset.SOPInstanceUID}.dcm"
    return _Protected(name, content, counts, str(dataset.get("PatientID") or ""))


def _complete(dataset: FileDataset) -> None:
    """Takes SOP Class and Instance UID from the file meta information where the data set lacks them.

    Raises:
        DeidentificationError: A UID that names the object is absent or invalid.
    """
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if not dataset.get(keyword):
            setattr(dataset, keyword, dataset.file_meta.get(f"MediaStorage{keyword}", ""))
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        uid = str(dataset.get(keyword) or "")
        if not is_uid(uid):  # SOPInstanceUID becomes the name of a file
            raise DeidentificationError(f"it has no {keyword}; objects are named by their UIDs; repair it first")


def burned_in(dataset: Dataset) -> str | None:
    """Why pixels, sound or a document may hold a name; None if nothing suggests it.

    BurnedInAnnotation NO is no proof: captures and ultrasound are suspected in spite of it.
    """
    flag = _word(dataset, "BurnedInAnnotation")
    if flag == "YES":
        return "its BurnedInAnnotation is YES"
    sop_class = str(dataset.SOPClassUID)
    image_type = [str(word).strip().upper() for word in listed(dataset.get("ImageType"))]
    if kind := SUSPECTS.get(sop_class):
        annotation = "NO" if flag == "NO" else "not given"
        return f"it is {kind} ({UID(sop_class).name}, BurnedInAnnotation {annotation})"
    conversion, label = str(dataset.get("ConversionType") or ""), _word(dataset, "SpecimenLabelInImage")
    pixels = "PixelData" in dataset
    is_overview = sop_class == WHOLE_SLIDE and "OVERVIEW" in image_type
    suspicions = (
        (any(map(SCREEN_WORDS.search, image_type)), "its ImageType says that it is a picture of a screen"),
        (
            bool(pixels and SCREEN_NAMES.search(re.sub(r"[\W_]+", " ", _word(dataset, "SeriesDescription")))),
            "its SeriesDescription says that it is a picture of a screen or of a dose report",
        ),
        (
            sop_class == NUCLEAR_MEDICINE and not NM_KINDS.intersection(image_type[2:3]),
            "its ImageType does not name a kind of NM image, as on saved screens",
        ),
        (
            sop_class in GREY and (dataset.get("SamplesPerPixel") or 1) != 1,
            f"it is a colour picture of a class of grey images ({UID(sop_class).name}), as saved screens are",
        ),
        (conversion in NO_SCAN, "its ConversionType says that a workstation drew it"),
        ("EncapsulatedDocument" in dataset, "it holds a document"),
        # A film has its label in the picture.
        (str(dataset.get("DetectorType") or "") == "FILM", "its DetectorType says that it was digitised from film"),
        (conversion in DIGITISED, "its ConversionType says that it was digitised from film, paper or video"),
        (any(map(FILM_WORDS.search, image_type)), "its ImageType says that it was digitised from film"),
        # The label of a slide is an image of its own, or stands in the picture of the whole glass (PS3.3 C.8.12.4).
        (label == "YES", "its SpecimenLabelInImage is YES"),
        ("LABEL" in image_type, "its ImageType says that it shows a label"),
        (
            is_overview and label != "NO",
            "its ImageType says that it is the overview of a slide, and nothing says that its label is not in it",
        ),
        (_has_overlay_in_pixels(dataset), "it has an overlay in spare bits of its pixels"),
    )
    return next((text for is_suspect, text in suspicions if is_suspect), None)


def _word(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip().upper()


def _has_overlay_in_pixels(dataset: Dataset) -> bool:
    """An overlay in spare bits of the pixels (retired, PS3.3-2004 C.9.2) stays with them, whatever it spells."""
    return any(
        # Such an overlay has OverlayRows (60xx,0010) and no OverlayData (60xx,3000).
        Tag(group, 0x0010) in dataset and Tag(group, 0x3000) not in dataset
        for group in range(0x6000, 0x6020, 2)
    )


def _cut_behind_pixels(dataset: FileDataset) -> None:
    """Removes bytes after the native pixels, which no attribute describes; a byte that makes the length even is 0."""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        if keyword not in dataset:
            continue
        try:
            length = _pixel_bytes(dataset)
        except (AttributeError, TypeError, ValueError):  # the number of pixels is not given
            raise DeidentificationError(
                "it does not say how many pixels it has, so data after its pixels cannot be distinguished from them; Rows, "
                "Columns, SamplesPerPixel and BitsAllocated are needed; repair it first, or leave it out"
            ) from None
        content = dataset[keyword].value or b""
        if len(content) > length:
            dataset[keyword].value = content[:length] + b"\0" * (length % 2)


def _pixel_bytes(dataset: Dataset) -> int:
    """Number of bytes of native pixels (PS3.5 8.1.1). Raises AttributeError, TypeError or ValueError where it is not given."""
    pixels = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames") or 1)
    # Pixels of one bit are packed (PS3.5 8.1.1), so the number of bytes is rounded up.
    return (pixels * stored_samples(dataset) * int(dataset.BitsAllocated) + 7) // 8


def _encoded(dataset: FileDataset) -> bytes:
    """The bytes of a file with a new file meta information and an empty preamble (PS3.15 E.1.1); pixels stay as they are."""
    # PS3.10 7.1: the old information may name the sender (SourceApplicationEntityTitle) and hold private information.
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    dataset.file_meta, dataset.preamble = meta, b"\0" * 128
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _write(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def _report(run: _Run) -> dict[str, Any]:
    """Everything that was done, without any value of the source: new UIDs, counts, reasons."""
    actions: dict[str, dict[str, int]] = {}
    for (keyword, action), count in sorted(run.counts.items()):
        actions.setdefault(keyword, {})[action] = count
    chosen = [name for name in OPTIONS if name in run.options]
    return {
        "schema_version": SCHEMA_VERSION,
        "profile": PROFILE.meaning,
        "table": f"DICOM PS3.15 Table E.1-1, {table().edition}, and rows added until {table().later_edition}",
        "options": chosen,
        "codes": [PROFILE.value, *(OPTIONS[name].value for name in chosen)],
        "allow_burned_in": run.allow_burned_in,
        "written": sorted(run.written),
        "refused": [{"file": number, "reason": reason} for number, reason in run.refused],
        "not_dicom": run.not_dicom,
        "actions": actions,
        "notes": run.persons.notes,
    }
