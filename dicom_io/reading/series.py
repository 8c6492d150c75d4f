"""DICOM files -> series: groups of instances that could be one volume, from headers alone.

The instances of a group share SeriesInstanceUID, orientation and kind. Localizers and captures become groups of their own of
kind "other", and `SeriesRef.set_aside` says why.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
from pydicom.dataset import Dataset

from dicom_io.errors import SeriesSelectionError, UnreadableFileError
from dicom_io.kinds import kind_of_class
from dicom_io.reading.dicomdir import files_of_dicomdir, is_dicomdir
from dicom_io.reading.frames import has_groups
from dicom_io.reading.geometry import angle_degrees
from dicom_io.reading.headers import shown
from dicom_io.reading.instances import (
    Instance,
    image_type,
    instance_of,
    is_colour,
    orientation_of,
    read_instance,
    refusing,
    series_uid_in,
)

SeriesKind = Literal["image", "seg", "rtstruct", "sr", "other"]
_logger = logging.getLogger(__name__)

_SERIES_KINDS: dict[str, SeriesKind] = {"SEG": "seg", "RTSTRUCT": "rtstruct", "SR": "sr", "KO": "sr"}
"""By `Kind.name`."""
# PS3.6 annex A: plans, structure sets and doses share this root. A dose has pixels, but they are no image.
_RADIOTHERAPY = "1.2.840.10008.5.1.4.1.1.481."
_RT_IMAGE = "1.2.840.10008.5.1.4.1.1.481.1"
# LOCALIZER is the word of the standard (PS3.3 C.8.2.1.1.1), the others are those of scanner makers.
_LOCALIZER_WORDS = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "REF_SURVIEW"})
_PROJECTION_WORDS = frozenset({"PROJECTION IMAGE", "MIP", "CSA MIP", "MINIP", "CSA MINIP"})

# Rounding makes the cosines of slices of one orientation differ by less.
_SAME_COSINE = 1e-3
_LOCALIZER_DEGREES, _MAX_LOCALIZERS = 30.0, 3  # a few slices of one series that lie across its main stack


@dataclass(frozen=True)
class SeriesRef:
    """The instances of one series that belong together, by their headers.

    Attributes:
        study_instance_uid: Empty where the files lack it.
        series_instance_uid: Empty where the files lack it; such files are grouped by folder.
        modality: DICOM Modality such as "MR"; empty where the files lack it.
        kind: "image" for what could be read as a volume or picture; "other" also for what is set aside.
        files: One file for each instance, in order of their paths; empty for data sets in memory.
        frame_count: Slices in all: one in a single-frame file, NumberOfFrames in a multi-frame file.
        orientation: ImageOrientationPatient (6 direction cosines, LPS), or None where the instances have none
            at their top level (pictures, multi-frame objects).
        set_aside: Why a volume reader skips pixels that it could read ("localizer", ...); else empty.
        notes: One sentence for each thing that a user should know of the grouping.
        instances: The instances themselves, in the order of `files`.
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
    instances: tuple[Instance, ...] = field(default=(), repr=False, compare=False)

    @property
    def in_colour(self) -> bool:
        """Whether its pixels are colours."""
        return is_colour(self.instances[0].header)

    @property
    def instance_count(self) -> int:
        """Number of SOP instances, one in each file."""
        return len(self.instances)

    @property
    def name(self) -> str:
        """The series as a message calls it."""
        where = f" in {shown(self.files[0].parent)}" if self.files else ""
        return f"series {self.series_instance_uid or 'without UID' + where}"

    @property
    def line(self) -> str:
        """One line for a message: UID, modality, kind, and numbers of files and frames."""
        uid, modality = self.series_instance_uid or "(no SeriesInstanceUID)", self.modality or "?"
        count = counted(self.instance_count, "file")
        if self.frame_count > self.instance_count:
            count += ", " + counted(self.frame_count, "frame")
        return f"{uid} ({modality}, {self.set_aside or self.kind}, {count})"


@dataclass(frozen=True)
class BrokenFile:
    """A DICOM file that cannot be read.

    Attributes:
        path: The file.
        error: Its refusal.
        series_instance_uid: Of its series, as its own header says; empty if that cannot be read either.
    """

    path: Path
    error: UnreadableFileError
    series_instance_uid: str = ""


@dataclass(frozen=True)
class Scan:
    """The series in a set of files.

    Attributes:
        series: Groups in order of their first file.
        foreign: The files that are not DICOM objects (DICOM indexes such as a DICOMDIR are among them).
        broken: The DICOM files that cannot be read.
        is_folder: Whether all files of a folder were scanned, and not files that the caller named.
    """

    series: tuple[SeriesRef, ...]
    foreign: tuple[Path, ...] = ()
    broken: tuple[BrokenFile, ...] = ()
    is_folder: bool = False


Source = Path | str | Sequence[Path] | Sequence[Dataset] | Sequence[SeriesRef]
"""A folder, a file, a DICOMDIR, the files of one series, data sets in memory, or series whose headers were read before."""


def find_series(folder: Path) -> list[SeriesRef]:
    """The series below a folder, however deep, in order of their first file.

    Localizers, captures, projections and parametric maps are of kind "other", with the reason in `set_aside`
    and `notes`. Files that are not DICOM are skipped, and the notes of every series count them.

    Raises:
        SeriesSelectionError: The folder does not exist or holds no DICOM file.
        UnreadableFileError: A DICOM file is truncated or broken; the message names it.
    """
    return list(scan_files(files_below(folder)).series)


def files_at(path: Path) -> list[Path]:
    """The files below a folder, or the named file itself. Raises as `files_below`."""
    return files_below(path) if path.is_dir() else [path]


def files_below(folder: Path) -> list[Path]:
    """All files below a folder in order of their paths; links to folders are not followed.

    Raises:
        SeriesSelectionError: The folder does not exist or holds no file.
        UnreadableFileError: A folder below it cannot be listed; its slices would be missing.
    """
    if not os.path.isdir(folder):
        raise SeriesSelectionError(
            f"{shown(folder)} is not a folder; a folder of DICOM files is needed; check the path"
        )
    # Without `onerror`, os.walk passes by a folder that it cannot list.
    files = [Path(parent, name) for parent, _, names in os.walk(folder, onerror=_refuse_folder) for name in names]
    if not files:
        raise SeriesSelectionError(f"folder {shown(folder)} holds no file; DICOM files are needed; check the path")
    return sorted(files)


def _refuse_folder(error: OSError) -> None:
    raise UnreadableFileError(
        f"folder {shown(str(error.filename))} cannot be listed ({type(error).__name__}); all folders are needed, or "
        "slices could be missing; check its permissions"
    ) from error


def scan_source(source: Source) -> Scan:
    """The series of a source. Of series that were scanned before, the headers are grouped again and not read again.

    Files that are truncated or broken are listed in `broken`: which of them matter depends on the series that is read.

    Raises:
        SeriesSelectionError: There is no DICOM object.
        UnreadableFileError: A file that the caller named is absent or no DICOM object; the message names it.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if os.path.isdir(path):
            return replace(survey_files(files_below(path)), is_folder=True)
        return _scan_named(_files_of(path))
    if not source:
        raise SeriesSelectionError("the list of files is empty; the files of one series are needed; check the input")
    if isinstance(source[0], Dataset):
        return Scan(_series_of([instance_of(dataset) for dataset in cast(Sequence[Dataset], source)]))
    if isinstance(source[0], SeriesRef):
        known = cast(Sequence[SeriesRef], source)
        return Scan(_series_of([instance for series in known for instance in series.instances]))
    return _scan_named([_present(path) for path in cast(Sequence[Path], source)])


def _scan_named(files: Sequence[Path]) -> Scan:
    """As `survey_files`, for files that the caller named: each must be a DICOM object, or a slice would be missing silently."""
    scan = survey_files(files)
    foreign = [path for path in scan.foreign if not is_dicomdir(path)]
    if foreign:
        raise UnreadableFileError(
            f"{shown(foreign[0])} is no DICOM object, as {len(foreign)} of the {counted(len(files), 'file')} named; each "
            "is needed, or slices could be missing; leave it out, or fetch it again"
        )
    return scan


def scan_files(files: Sequence[Path]) -> Scan:
    """Groups the DICOM files among `files` into series.

    Raises:
        SeriesSelectionError: None of the files is DICOM.
        UnreadableFileError: A DICOM file is truncated or broken; the message names it.
    """
    scan = survey_files(files)
    if scan.broken:
        raise scan.broken[0].error
    return scan


def survey_files(files: Sequence[Path]) -> Scan:
    """As `scan_files`, but broken files are listed in `broken`, and the others are grouped.

    Raises:
        SeriesSelectionError: None of the files is DICOM.
    """
    instances, foreign, broken = [], [], []
    for path in files:
        try:
            instance = read_instance(path)
        except UnreadableFileError as error:
            broken.append(BrokenFile(path, error, series_uid_in(path)))
            continue
        if instance is None:
            foreign.append(path)
        else:
            instances.append(instance)
    if not instances and not broken:
        raise SeriesSelectionError(
            f"found no DICOM object among {counted(len(files), 'file')} (the first is {shown(files[0])}); "
            "DICOM files are needed; check the path"
        )
    if foreign:
        _logger.info("skipped %d files that are not DICOM objects", len(foreign))
    return Scan(_series_of(instances, len(foreign)), tuple(foreign), tuple(broken))


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as "1 file" or "3 files"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def summary(series: Iterable[SeriesRef], limit: int = 8) -> str:
    """One line for a message that lists series, the first `limit` of them."""
    lines = [ref.line for ref in series]
    more = len(lines) - limit
    return "; ".join(lines[:limit]) + (f"; and {more} more" if more > 0 else "")


def _present(path: Path | str) -> Path:
    path = Path(path)
    if not os.path.isfile(path):
        raise UnreadableFileError(f"{shown(path)} is not a file; a DICOM file or a folder is needed; check the path")
    return path


def _files_of(path: Path) -> list[Path]:
    """The file itself, or the files that it lists if it is a DICOMDIR."""
    if not is_dicomdir(_present(path)):
        return [path]
    files = files_of_dicomdir(path)
    absent = [shown(file) for file in files if not os.path.isfile(file)]
    if absent:
        raise UnreadableFileError(
            f"{shown(path)} lists {counted(len(files), 'file')}, of which {len(absent)} are absent (the first is {absent[0]}); "
            "the whole medium is needed; copy it again, or name the folder instead to read the existing files"
        )
    if not files:
        raise SeriesSelectionError(f"{shown(path)} lists no file; DICOM files are needed; name their folder instead")
    return files


def _series_of(instances: Sequence[Instance], foreign_count: int = 0) -> tuple[SeriesRef, ...]:
    groups = _without_localizers([_series_ref(group) for group in _grouped(instances)])
    return tuple(_with_notes(group, foreign_count) for group in groups)


def _kind(instance: Instance) -> tuple[SeriesKind, str]:
    """The kind of an instance and, for pixels that a volume reader skips, the reason."""
    sop_class = instance.sop_class_uid
    known = kind_of_class(sop_class)
    name = known.name if known else ""
    if name in _SERIES_KINDS:
        return _SERIES_KINDS[name], ""
    if not instance.has_pixels or (sop_class.startswith(_RADIOTHERAPY) and sop_class != _RT_IMAGE):
        return "other", ""
    reason = _reason_to_skip(name, frozenset(image_type(instance.header)))
    return ("other", reason) if reason else ("image", "")


def _reason_to_skip(kind: str, words: frozenset[str]) -> str:
    if words & _LOCALIZER_WORDS:
        return "localizer"
    if kind == "SC":
        return "secondary capture"
    if words & _PROJECTION_WORDS:
        return "projection"
    return "parametric map" if kind == "PM" else ""


def _grouped(instances: Sequence[Instance]) -> list[list[Instance]]:
    """Groups by study, series, kind, reason, grey or colour, single or multi-frame, and orientation within a tolerance."""
    groups: dict[tuple[object, ...], list[list[Instance]]] = {}
    for instance in instances:
        with refusing(instance.name):
            key, orientation = _group_key(instance), orientation_of(instance.header)
        # Orientations are compared with a tolerance, which a key of a dictionary cannot have.
        alike = groups.setdefault(key, [])
        for group in alike:
            if _same_orientation(orientation_of(group[0].header), orientation):
                group.append(instance)
                break
        else:
            alike.append([instance])
    number_of = {id(instance): number for number, instance in enumerate(instances)}
    return sorted((group for alike in groups.values() for group in alike), key=lambda group: number_of[id(group[0])])


def _group_key(instance: Instance) -> tuple[object, ...]:
    header = instance.header
    series = str(header.get("SeriesInstanceUID") or "") or (instance.path.parent if instance.path else "")
    study, modality = str(header.get("StudyInstanceUID") or ""), str(header.get("Modality") or "")
    return study, series, modality, *_kind(instance), is_colour(header), instance.frames > 1 or has_groups(header)


def _same_orientation(first: tuple[float, ...] | None, second: tuple[float, ...] | None) -> bool:
    if first is None or second is None:
        return first is second
    return bool(np.abs(np.subtract(first, second)).max() <= _SAME_COSINE)


def _series_ref(group: Sequence[Instance]) -> SeriesRef:
    header, (kind, reason) = group[0].header, _kind(group[0])
    uid = str(header.get("SeriesInstanceUID") or "")
    return SeriesRef(
        str(header.get("StudyInstanceUID") or ""),
        uid,
        str(header.get("Modality") or ""),
        kind,
        tuple(instance.path for instance in group if instance.path),
        sum(instance.frames for instance in group),
        orientation_of(header),
        reason,
        () if uid else ("the files name no SeriesInstanceUID: grouped by folder",),
        tuple(group),
    )


def _without_localizers(groups: list[SeriesRef]) -> list[SeriesRef]:
    """The groups; a few slices across a large stack of the same series are set aside as localizers, also without ImageType,
    and so are colour pictures, and pages without a place, beside more grey slices.
    """
    largest: dict[object, SeriesRef] = {}
    for group in groups:
        if group.kind == "image" and group.orientation is not None and not group.in_colour:
            main = largest.setdefault(_series_key(group), group)
            if group.instance_count > main.instance_count:
                largest[_series_key(group)] = group
    return [_beside_main(group, largest.get(_series_key(group))) for group in groups]


def _series_key(group: SeriesRef) -> tuple[object, ...]:
    """The key of a series: its UIDs, or its folder if it has no UID."""
    folder = group.files[0].parent if group.files and not group.series_instance_uid else None
    return group.study_instance_uid, group.series_instance_uid, folder


def _beside_main(group: SeriesRef, main: SeriesRef | None) -> SeriesRef:
    """The group, set aside if it does not belong to the largest grey group of its series."""
    if main is None or group.kind != "image":
        return group
    if group.in_colour and group.instance_count < main.instance_count:
        return replace(group, kind="other", set_aside="colour slices beside grey slices")
    if group.orientation is None and main.orientation is not None:
        # A slice that lost its place would be missed; a saved page says that it is no slice (PS3.3 C.7.6.1.1.2).
        pages = [instance for instance in group.instances if "SECONDARY" in image_type(instance.header)]
        if len(pages) < len(group.instances) or group.instance_count >= main.instance_count:
            return group
        return replace(group, kind="other", set_aside=f"page without a place, the first {shown(pages[0].name)}")
    if group.orientation is None or main.orientation is None:
        return group
    # Many slices, or slices turned by less, are a second orientation of the series, and the reader refuses to mix them.
    few = group.instance_count <= min(_MAX_LOCALIZERS, main.instance_count // 4)
    normals = [np.cross(ref.orientation[:3], ref.orientation[3:]) for ref in (group, main) if ref.orientation]
    if not few or angle_degrees(*normals) < _LOCALIZER_DEGREES:
        return group
    return replace(group, kind="other", set_aside="localizer, recognized by its orientation")


def _with_notes(group: SeriesRef, foreign_count: int) -> SeriesRef:
    notes = list(group.notes)
    if group.set_aside:
        notes.append(f"set aside as {group.set_aside}: {counted(group.instance_count, 'file')}")
    if foreign_count:
        notes.append(f"{foreign_count} files beside it are not DICOM objects and were ignored")
    return replace(group, notes=tuple(notes))
