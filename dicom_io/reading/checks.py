"""What the files of a series must be before their slices are looked at: of one patient, decodable, comparable, complete."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_io.errors import SeriesGeometryError, SeriesSelectionError, UnreadableFileError
from dicom_io.reading.codecs import decoder_of
from dicom_io.reading.completeness import parts_of_concatenations
from dicom_io.reading.frames import has_groups
from dicom_io.reading.headers import LONGEST_UID
from dicom_io.reading.instances import COLOUR, Instance, differences
from dicom_io.reading.pixels import PHYSICAL_MODALITIES
from dicom_io.reading.series import SeriesRef, counted

PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
"""What a slice needs for a place in patient space."""

REPEATED_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")
"""What every result repeats, or refers to its source by."""


def without_copies(series: SeriesRef) -> tuple[list[Instance], list[str]]:
    """The instances without copies, which may differ in what no volume and no result needs.

    Raises SeriesGeometryError for one UID with two contents.
    """
    kept: dict[str, Instance] = {}
    without_uid, copies, odd = [], [], set()
    for instance in series.instances:
        uid = instance.sop_instance_uid
        if not uid:
            without_uid.append(instance)
        elif uid not in kept:
            kept[uid] = instance
        elif (differ := differences(kept[uid], instance)) is not None:
            copies.append(instance)
            odd.update(differ)
        else:
            raise SeriesGeometryError(
                f"{series.name} holds SOP instance {uid} twice with different content, in {kept[uid].name} and "
                f"{instance.name}; each slice is needed once; leave one of the files out"
            )
    chosen = {id(instance) for instance in (*kept.values(), *without_uid)}
    found = counted(len(copies), "file")
    alike = f"copies of another but for {', '.join(sorted(odd)[:5])}" if odd else "byte-identical copies of another"
    notes = [f"left out as {alike}: {found}"] if copies else []
    return [instance for instance in series.instances if id(instance) in chosen], notes


def check_readable(instances: Sequence[Instance], series: SeriesRef) -> None:
    """Refuses what belongs to several patients, what no result can refer to, what cannot be decoded, and what can be no volume
    of single values: cine, and colour unless it is one picture.
    """
    headers = [instance.header for instance in instances]
    check_one_patient(headers, series.name)
    _check_uids(headers, series)
    for syntax in {instance.transfer_syntax for instance in instances}:
        _check_decodable(syntax, series)
    if any(instance.frames > 1 and not has_groups(instance.header) for instance in instances):
        raise placeless(series)
    _check_polarity(headers, series)
    _check_parts(headers, series)
    colours = {str(header.get("PhotometricInterpretation")) for header in headers} & COLOUR
    samples = max(int(header.get("SamplesPerPixel") or 1) for header in headers)
    single = series.frame_count == 1 and series.orientation is None
    if (colours or samples > 1) and not single:
        raise SeriesSelectionError(
            f"{series.name} holds {series.frame_count} colour pictures ({', '.join(sorted(colours))}, "
            f"{samples} samples a pixel); one grey value a voxel is needed; "
            "pick a grey series with --series UID"
        )


def check_one_patient(headers: Sequence[Dataset], name: str) -> None:
    """Raises SeriesSelectionError where headers name several patients; those that name none do not count.

    Args:
        headers: With PatientID and PatientName, where the files have them.
        name: How a message calls what they belong to.
    """
    for keyword in ("PatientID", "PatientName"):
        count = len({str(header.get(keyword)).rstrip("^ ") for header in headers if header.get(keyword)})
        if count > 1:
            raise SeriesSelectionError(
                f"{name} has files of {count} different {keyword}; one patient is needed; "
                "pass the files of one patient only"
            )


def _check_uids(headers: Sequence[Dataset], series: SeriesRef) -> None:
    """Passes UIDs of at most 64 characters. Zeros in front of a component are common in old data, and pass."""
    for keyword in REPEATED_UIDS:
        longest = max(len(str(header.get(keyword) or "").strip("\0 ")) for header in headers)
        if longest > LONGEST_UID:
            raise SeriesSelectionError(
                f"{series.name} has a {keyword} of {longest} characters; at most {LONGEST_UID} are needed (PS3.5 9.1), or "
                "results that repeat it break the standard and archives refuse them; have the archive or the sender give the "
                "study shorter UIDs, and export it again"
            )


def _check_polarity(headers: Sequence[Dataset], series: SeriesRef) -> None:
    kinds = {str(header.get("PhotometricInterpretation")) for header in headers} & {"MONOCHROME1", "MONOCHROME2"}
    if len(kinds) > 1 and series.modality not in PHYSICAL_MODALITIES:
        raise SeriesSelectionError(
            f"{series.name} mixes MONOCHROME1 and MONOCHROME2, bright for low and bright for high values; one is needed, "
            "for slices to be comparable; pass the files of one only"
        )


def check_rescale(headers: Sequence[Dataset], series: SeriesRef) -> None:
    """Passes slices that all name a rescale, or none, or none but the one that changes nothing."""
    named = [header for header in headers if header.get("RescaleSlope") is not None]
    changing = [one for one in named if (float(one.RescaleSlope), float(one.get("RescaleIntercept") or 0)) != (1, 0)]
    plain = [one for one in headers if not has_groups(one) and "ModalityLUTSequence" not in one]
    if changing and 0 < len(named) < len(plain):
        raise SeriesSelectionError(
            f"{series.name} has {len(plain) - len(named)} of {len(plain)} slices without RescaleSlope beside others with one; "
            "all need it, for values to be comparable; export the series again from its source"
        )


def _check_parts(headers: Sequence[Dataset], series: SeriesRef) -> None:
    """Passes a concatenation of which all parts are there."""
    for here, total in parts_of_concatenations(headers):
        if here < total:
            raise SeriesGeometryError(
                f"{series.name} is a concatenation of {total} parts, of which {here} are here; all are "
                "needed, or slices would be missing; fetch the others"
            )


def _check_decodable(syntax: UID, series: SeriesRef) -> None:
    try:
        available = not syntax.is_compressed or decoder_of(syntax).is_available
    except (NotImplementedError, ValueError):
        available = False
    if not available:
        raise UnreadableFileError(
            f"{series.name} is encoded as {syntax.name}; there is no decoder for it here; "
            "store it uncompressed or losslessly (JPEG 2000, JPEG-LS) and read that"
        )


def placeless(series: SeriesRef) -> SeriesSelectionError:
    """The refusal of several pictures that are nowhere, naming what they lack."""
    header = series.instances[0].header
    absent = [keyword for keyword in PLACE if not header.get(keyword)] if not has_groups(header) else []
    told = (
        f"its files name no {' and no '.join(absent)}" if 0 < len(absent) < len(PLACE) else "cine, time series or views"
    )
    if header.get("Modality") == "NM":
        told = "nuclear medicine keeps it in DetectorInformationSequence, which is not read"
    return SeriesSelectionError(
        f"{series.name} holds {series.frame_count} frames or pictures without a position in patient space "
        f"({told}); a volume or one picture is needed; pass one single-frame file"
    )


def check_space(headers: Iterable[Dataset], name: str) -> None:
    """Passes slices of one frame of reference. Raises SeriesGeometryError."""
    spaces = {str(header.get("FrameOfReferenceUID") or "") for header in headers}
    if len(spaces) > 1:
        raise SeriesGeometryError(
            f"{name} mixes {len(spaces)} frames of reference ({', '.join(sorted(spaces))}); one is needed, "
            "for positions to compare; pass the files of one frame of reference"
        )
