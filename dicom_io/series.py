"""Find the DICOM instances of a folder and group them into series, from headers alone.

A group is what could be one volume: one SeriesInstanceUID, one orientation, one kind. Localizers and captures
are never mixed in: they become groups of their own of kind "other", and `set_aside` says why.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.errors import BytesLengthException
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from .errors import SeriesSelectionError, UnreadableFileError
from .geometry import angle_degrees

SeriesKind = Literal["image", "seg", "rtstruct", "sr", "other"]

READ_ERRORS: tuple[type[Exception], ...] = (
    BytesLengthException,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
"""What pydicom and its decoders raise on broken bytes; there is no common base class."""

_logger = logging.getLogger(__name__)

_SCAN_KEYWORDS = (
    "SOPClassUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "ImageType",
    "Rows",
    "NumberOfFrames",
    "ImageOrientationPatient",
)
_MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
_KIND_BY_SOP_CLASS: dict[str, SeriesKind] = {
    "1.2.840.10008.5.1.4.1.1.66.4": "seg",
    "1.2.840.10008.5.1.4.1.1.66.7": "seg",  # Label Map Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.481.3": "rtstruct",
}
_STRUCTURED_REPORT = "1.2.840.10008.5.1.4.1.1.88."
_RADIOTHERAPY = "1.2.840.10008.5.1.4.1.1.481."
_RT_IMAGE = "1.2.840.10008.5.1.4.1.1.481.1"
_LOCALIZER_WORDS = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "REF_SURVIEW"})
_PROJECTION_WORDS = frozenset({"PROJECTION IMAGE", "MIP", "CSA MIP"})
_PIXEL_TAGS = frozenset({(0x7FE0, 0x0008), (0x7FE0, 0x0009), (0x7FE0, 0x0010)})
_UNDEFINED_LENGTH = 0xFFFFFFFF

_SHORTEST = 132  # bytes of preamble and mark
_SAME_COSINE = 1e-3
_STRAY_DEGREES = 30.0
_STRAY_SLICES = 3


@dataclass(frozen=True)
class SeriesRef:
    """The instances of one series that belong together, found by their headers; nothing of the patient.

    Attributes:
        study_instance_uid: Empty where the files lack it.
        series_instance_uid: Empty where the files lack it; such files are grouped by folder.
        modality: DICOM Modality such as "MR"; empty where the files lack it.
        kind: "image" for what could be read as a volume or picture; "other" also for what is set aside.
        files: Instances in order of their paths, one file each.
        frame_count: Slices in all: one a single-frame file, NumberOfFrames of a multi-frame one.
        orientation: ImageOrientationPatient (6 direction cosines, LPS), or None where the instances have none
            at their top level (pictures, multi-frame objects).
        set_aside: Why a volume reader passes by pixels that it could read ("localizer", ...); else empty.
        notes: What was found on the way, one sentence each.
    """

    study_instance_uid: str
    series_instance_uid: str
    modality: str
    kind: SeriesKind
    files: tuple[Path, ...]
    frame_count: int
    orientation: tuple[float, ...] | None = None
    set_aside: str = ""
    notes: tuple[str, ...] = ()

    @property
    def instance_count(self) -> int:
        """Number of files, each one SOP instance."""
        return len(self.files)

    @property
    def line(self) -> str:
        """One line for a message: UID, modality, what and how many."""
        uid, modality = self.series_instance_uid or "(no SeriesInstanceUID)", self.modality or "?"
        count = _counted(self.instance_count, "file")
        if self.frame_count > self.instance_count:
            count += ", " + _counted(self.frame_count, "frame")
        return f"{uid} ({modality}, {self.set_aside or self.kind}, {count})"


@dataclass(frozen=True)
class Scan:
    """Everything found in a set of files.

    Attributes:
        series: Groups in order of their first file.
        foreign_files: How many files are not DICOM (or DICOM indexes such as a DICOMDIR) and were passed by.
    """

    series: tuple[SeriesRef, ...]
    foreign_files: int


@dataclass(frozen=True)
class _Header:
    path: Path
    sop_class_uid: str
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    image_type: tuple[str, ...]
    orientation: tuple[float, ...] | None
    frames: int
    has_pixels: bool


def find_series(folder: Path) -> list[SeriesRef]:
    """The series below a folder, however deep, in order of their first file.

    Localizers, captures, projections and parametric maps are of kind "other", with the reason in `set_aside`
    and `notes`; files that are not DICOM are passed by and counted in the notes of every series.

    Raises:
        SeriesSelectionError: The folder does not exist or holds no DICOM file.
        UnreadableFileError: A DICOM file is truncated or broken; the message names it.
    """
    return list(scan_files(files_below(folder)).series)


def files_below(folder: Path) -> list[Path]:
    """All files below a folder in order of their paths; links to folders are not followed.

    Raises:
        SeriesSelectionError: The folder does not exist or holds no file.
    """
    if not folder.is_dir():
        raise SeriesSelectionError(f"{folder} is not a folder; a folder of DICOM files is needed; check the path")
    files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    if not files:
        raise SeriesSelectionError(f"folder {folder} holds no file; DICOM files are needed; check the path")
    return sorted(files)


def scan_files(files: Sequence[Path]) -> Scan:
    """Groups the DICOM files among `files` into series.

    Raises:
        SeriesSelectionError: None of the files is DICOM.
        UnreadableFileError: A DICOM file is truncated or broken; the message names it.
    """
    headers = [header for header in map(_read_header, files) if header is not None]
    foreign = len(files) - len(headers)
    if not headers:
        raise SeriesSelectionError(
            f"found no DICOM object among {_counted(len(files), 'file')} (the first is {files[0]}); "
            "DICOM files are needed; check the path"
        )
    if foreign:
        _logger.info("passed by %d files that are not DICOM objects", foreign)
    groups = _set_strays_aside([_series_ref(group) for group in _grouped(headers)])
    return Scan(tuple(_with_notes(group, foreign) for group in groups), foreign)


def load_dataset(path: Path, *, with_pixels: bool) -> FileDataset:
    """The data set of one DICOM file, also of one without preamble and file meta information.

    Raises:
        UnreadableFileError: The file is missing, no DICOM or broken.
    """
    try:
        with path.open("rb") as file:
            if not _looks_like_dicom(file.read(136)):
                raise UnreadableFileError(f"{path} is not a DICOM file; one is needed; check the path")
            file.seek(0)
            dataset = pydicom.dcmread(file, stop_before_pixels=not with_pixels, force=True)
    except READ_ERRORS as error:
        raise broken_file(path, error) from error
    _complete_meta(dataset)
    return dataset


def broken_file(path: Path, error: BaseException | str) -> UnreadableFileError:
    """The refusal of a file that cannot be read, in this package's words."""
    text = " ".join(str(error).split())[:160]
    found = text if isinstance(error, str) else f"{type(error).__name__}: {text}"
    return UnreadableFileError(
        f"{path} is broken ({found}); a whole DICOM file is needed; fetch it again or leave it out"
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _complete_meta(dataset: FileDataset) -> None:
    """Names the transfer syntax of a file that lacks it, as pydicom guessed it: a decoder needs it."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _looks_like_dicom(start: bytes) -> bool:
    """True for the DICM mark, or for a bare data set that begins with group 0002 or 0008."""
    if start[128:132] == b"DICM":
        return True
    return len(start) >= 8 and start[:2] in (b"\x02\x00", b"\x08\x00") and start[3] == 0


def _read_header(path: Path) -> _Header | None:
    """The header, or None for a file that is no DICOM object; raises UnreadableFileError for a broken one."""
    has_mark = True
    try:
        with path.open("rb") as file:
            start = file.read(136)
            if not _looks_like_dicom(start):
                if path.suffix.lower() == ".dcm" and len(start) < _SHORTEST:
                    raise broken_file(path, f"it has {len(start)} bytes")
                return None
            has_mark = start[128:132] == b"DICM"
            file.seek(0)
            tags: list[int | BaseTag] = [Tag(keyword) for keyword in _SCAN_KEYWORDS]
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=tags)
            return _header_of(path, dataset, file, has_mark=has_mark)
    except READ_ERRORS as error:
        if not has_mark:
            return None
        raise broken_file(path, error) from error


def _header_of(path: Path, dataset: FileDataset, file: BinaryIO, *, has_mark: bool) -> _Header | None:
    if any(map(_is_cut, dataset.values())):
        raise broken_file(path, "it ends within an attribute of its header")
    meta_class = str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
    sop_class_uid = str(dataset.get("SOPClassUID") or "")
    if _MEDIA_STORAGE_DIRECTORY in (meta_class, sop_class_uid):
        return None
    if UID(sop_class_uid or meta_class).name.endswith("Image Storage") and "Rows" not in dataset:
        raise broken_file(path, "it names an image class and holds no image")
    if not sop_class_uid and "Rows" not in dataset:
        if not has_mark:
            return None
        raise broken_file(path, "it names no SOP Class UID and holds no image")
    deflated = dataset.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    has_pixels = deflated or _ends_whole(path, file, expects_pixels="Rows" in dataset)
    return _Header(
        path,
        sop_class_uid or meta_class,
        str(dataset.get("StudyInstanceUID") or ""),
        str(dataset.get("SeriesInstanceUID") or ""),
        str(dataset.get("Modality") or ""),
        tuple(str(word).upper() for word in _listed(dataset.get("ImageType"))),
        _orientation(dataset),
        int(dataset.get("NumberOfFrames") or 1),
        has_pixels and "Rows" in dataset,
    )


def _is_cut(element: object) -> bool:
    """True for an attribute, not yet converted by pydicom, with fewer bytes than it announces."""
    if not isinstance(element, RawDataElement) or element.value is None:
        return False
    return element.length != _UNDEFINED_LENGTH and len(element.value) < element.length


def _listed(value: object) -> list[object]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str) else list(value)  # type: ignore[call-overload]


def _orientation(dataset: FileDataset) -> tuple[float, ...] | None:
    cosines = tuple(float(str(cosine)) for cosine in _listed(dataset.get("ImageOrientationPatient")))
    return cosines if len(cosines) == 6 else None


def _ends_whole(path: Path, file: BinaryIO, *, expects_pixels: bool) -> bool:
    """True if whole pixel data follow at the place where pydicom stopped reading.

    Raises UnreadableFileError where the file ends early; the values of a header are not enough to tell.
    """
    position, size = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(position)
    if position > size:  # pydicom skips what it was not asked for without looking
        raise broken_file(path, f"its header runs to byte {position}, the file ends at {size}")
    start = file.read(12)
    little = start[:2] == b"\xe0\x7f"
    tag = struct.unpack("<HH" if little else ">HH", start[:4]) if len(start) == 12 else None
    if tag not in _PIXEL_TAGS:
        if expects_pixels:
            raise broken_file(path, f"it ends at byte {size} before its pixel data")
        return False
    _check_pixel_length(path, file, position, size, start)
    return True


def _check_pixel_length(path: Path, file: BinaryIO, position: int, size: int, start: bytes) -> None:
    order = "<" if start[:2] == b"\xe0\x7f" else ">"
    explicit = start[4:6].isalpha() and start[4:6].isupper() and start[6:8] == b"\0\0"
    length = struct.unpack(order + "L", start[8:12] if explicit else start[4:8])[0]
    value_at = position + (12 if explicit else 8)
    if length == _UNDEFINED_LENGTH:
        _check_fragments(path, file, value_at, size)
    elif value_at + length > size:
        raise broken_file(path, f"its pixel data need {length} bytes, {size - value_at} are left")


def _check_fragments(path: Path, file: BinaryIO, position: int, size: int) -> None:
    """Walks the fragments of compressed pixels (PS3.5 A.4): a decoder may read half a picture in silence."""
    while position + 8 <= size:
        file.seek(position)
        group, element, length = struct.unpack("<HHL", file.read(8))
        if (group, element) == (0xFFFE, 0xE0DD):
            return
        if (group, element) != (0xFFFE, 0xE000):
            raise broken_file(path, f"its compressed pixel data hold no fragment at byte {position}")
        position += 8 + length
    raise broken_file(path, f"its compressed pixel data run past its end at byte {size}")


def _kind(header: _Header) -> tuple[SeriesKind, str]:
    """Kind and, for pixels that a volume reader passes by, the reason."""
    sop_class, image_type = header.sop_class_uid, frozenset(header.image_type)
    if sop_class in _KIND_BY_SOP_CLASS:
        return _KIND_BY_SOP_CLASS[sop_class], ""
    if sop_class.startswith(_STRUCTURED_REPORT):
        return "sr", ""
    if not header.has_pixels or (sop_class.startswith(_RADIOTHERAPY) and sop_class != _RT_IMAGE):
        return "other", ""
    reason = _reason_aside(sop_class, image_type)
    return ("other", reason) if reason else ("image", "")


def _reason_aside(sop_class: str, image_type: frozenset[str]) -> str:
    if image_type & _LOCALIZER_WORDS:
        return "localizer"
    if sop_class == _SECONDARY_CAPTURE or sop_class.startswith(_SECONDARY_CAPTURE + "."):
        return "secondary capture"
    if image_type & _PROJECTION_WORDS:
        return "projection"
    return "parametric map" if sop_class == _PARAMETRIC_MAP else ""


def _grouped(headers: Iterable[_Header]) -> list[list[_Header]]:
    """Groups by study, series, kind, reason, single or multi-frame, and orientation within a tolerance."""
    groups: dict[tuple[object, ...], list[list[_Header]]] = {}
    for header in headers:
        series = header.series_instance_uid or header.path.parent
        key = (header.study_instance_uid, series, header.modality, *_kind(header), header.frames > 1)
        alike = groups.setdefault(key, [])
        group = next((group for group in alike if _same_orientation(group[0], header)), None)
        if group is None:
            alike.append([header])
        else:
            group.append(header)
    return sorted((group for alike in groups.values() for group in alike), key=lambda group: group[0].path)


def _same_orientation(first: _Header, second: _Header) -> bool:
    if first.orientation is None or second.orientation is None:
        return first.orientation is second.orientation
    return bool(np.abs(np.subtract(first.orientation, second.orientation)).max() <= _SAME_COSINE)


def _series_ref(group: Sequence[_Header]) -> SeriesRef:
    first, (kind, reason) = group[0], _kind(group[0])
    notes = () if first.series_instance_uid else ("the files name no SeriesInstanceUID: grouped by folder",)
    return SeriesRef(
        first.study_instance_uid,
        first.series_instance_uid,
        first.modality,
        kind,
        tuple(header.path for header in group),
        sum(header.frames for header in group),
        first.orientation,
        reason,
        notes,
    )


def _set_strays_aside(groups: list[SeriesRef]) -> list[SeriesRef]:
    """Marks a few slices across a large stack of the same series as localizers, also without ImageType."""
    largest: dict[str, SeriesRef] = {}
    for group in groups:
        if group.kind == "image" and group.orientation is not None:
            main = largest.setdefault(group.series_instance_uid, group)
            if group.instance_count > main.instance_count:
                largest[group.series_instance_uid] = group
    return [_stray(group, largest.get(group.series_instance_uid)) for group in groups]


def _stray(group: SeriesRef, main: SeriesRef | None) -> SeriesRef:
    if main is None or group.kind != "image" or group.orientation is None or main.orientation is None:
        return group
    few = group.instance_count <= min(_STRAY_SLICES, main.instance_count // 4)
    normals = [np.cross(one.orientation[:3], one.orientation[3:]) for one in (group, main) if one.orientation]
    if not few or angle_degrees(*normals) < _STRAY_DEGREES:
        return group
    return replace(group, kind="other", set_aside="localizer by its orientation")


def _with_notes(group: SeriesRef, foreign: int) -> SeriesRef:
    notes = list(group.notes)
    if group.set_aside:
        notes.append(f"set aside as {group.set_aside}: {_counted(group.instance_count, 'file')}")
    if foreign:
        notes.append(f"{foreign} files beside it are not DICOM objects and were passed by")
    return replace(group, notes=tuple(notes))


def summary(series: Iterable[SeriesRef], limit: int = 8) -> str:
    """One line for a message that lists series, the first `limit` of them."""
    lines = [one.line for one in series]
    more = len(lines) - limit
    return "; ".join(lines[:limit]) + (f"; and {more} more" if more > 0 else "")
