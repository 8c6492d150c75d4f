"""Checks of the files of a series before their slices are ordered: one patient, decodable, comparable, complete."""

from collections.abc import Iterable, Sequence

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_io.errors import SeriesGeometryError, SeriesSelectionError, UnreadableFileError
from dicom_io.reading.codecs import decoder_of
from dicom_io.reading.completeness import parts_of_concatenations
from dicom_io.reading.frames import Frame, has_groups
from dicom_io.reading.headers import LONGEST_UID, shown
from dicom_io.reading.instances import COLOUR, Instance, differences
from dicom_io.reading.pixels import PHYSICAL_MODALITIES
from dicom_io.reading.series import SeriesRef, counted
from dicom_io.volume import UNKNOWN_UNITS

PLACE_KEYWORDS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
"""The attributes that place a slice in patient space."""

_REPEATED_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")
"""The UIDs that every result repeats, or uses to refer to its source."""


def without_copies(series: SeriesRef) -> tuple[list[Instance], list[str]]:
    """The instances of a series without copies, and notes; copies may differ in attributes that no volume or result needs.

    Raises:
        SeriesGeometryError: Two files have one SOP Instance UID and different contents.
    """
    by_uid: dict[str, Instance] = {}
    kept, different = [], set()
    for instance in series.instances:
        uid = instance.sop_instance_uid
        first = by_uid.setdefault(uid, instance) if uid else instance
        if first is instance:
            kept.append(instance)
        elif (keywords := differences(first, instance)) is not None:
            different.update(keywords)
        else:
            raise SeriesGeometryError(
                f"{series.name} holds SOP instance {uid} twice with different content, in {first.name} and "
                f"{instance.name}; each slice is needed once; leave one of the files out"
            )
    copies = len(series.instances) - len(kept)
    listed = ", ".join(sorted(different)[:5])
    kind = f"copies of another except for {listed}" if different else "byte-identical copies of another"
    return kept, [f"left out as {kind}: {counted(copies, 'file')}"] if copies else []


def check_readable(instances: Sequence[Instance], series: SeriesRef) -> None:
    """Refuses files of several patients, UIDs that no result may repeat, and pixels that cannot be decoded or are no volume of
    single values: cine, and colour unless it is one picture.

    Raises:
        SeriesSelectionError, SeriesGeometryError, UnreadableFileError: See above; the message says which.
    """
    headers = [instance.header for instance in instances]
    check_one_patient(headers, series.name)
    _check_uids(headers, series)
    for syntax in {instance.transfer_syntax for instance in instances}:
        _check_decodable(syntax, series)
    if any(instance.frames > 1 and not has_groups(instance.header) for instance in instances):
        raise without_position(series)
    _check_polarity(headers, series)
    _check_parts(headers, series)
    colours = {str(header.get("PhotometricInterpretation")) for header in headers} & COLOUR
    samples = max(int(header.get("SamplesPerPixel") or 1) for header in headers)
    single = series.frame_count == 1 and series.orientation is None
    if (colours or samples > 1) and not single:
        raise SeriesSelectionError(
            f"{series.name} holds {series.frame_count} colour pictures ({', '.join(sorted(colours))}, {samples} samples a "
            "pixel); one grey value a voxel is needed; pick a grey series with --series UID"
        )


def check_one_patient(headers: Sequence[Dataset], name: str) -> None:
    """Raises SeriesSelectionError if headers name several patients; headers that name no patient do not count.

    Args:
        headers: With PatientID and PatientName, if the files have them.
        name: How a message calls the files.
    """
    for keyword in ("PatientID", "PatientName"):
        # PS3.5 6.2: spaces at the end and empty components of a name mean nothing
        count = len({str(header.get(keyword)).rstrip("^ ") for header in headers if header.get(keyword)})
        if count > 1:
            raise SeriesSelectionError(
                f"{name} has files of {count} different {keyword}; one patient is needed; pass the files of one patient only"
            )


def _check_uids(headers: Sequence[Dataset], series: SeriesRef) -> None:
    """Refuses UIDs of more than 64 characters. Components that begin with a zero are common in old data and accepted."""
    for keyword in _REPEATED_UIDS:
        longest = max(len(str(header.get(keyword) or "").strip("\0 ")) for header in headers)
        if longest > LONGEST_UID:
            raise SeriesSelectionError(
                f"{series.name} has a {keyword} of {longest} characters; at most {LONGEST_UID} are needed (PS3.5 9.1), or "
                "results that repeat it break the standard and archives refuse them; have the archive or the sender give the "
                "study shorter UIDs, and export it again"
            )


def _check_polarity(headers: Sequence[Dataset], series: SeriesRef) -> None:
    kinds = {str(header.get("PhotometricInterpretation")) for header in headers} & {"MONOCHROME1", "MONOCHROME2"}
    # Physical values mean the same in both kinds, so they may be mixed.
    if len(kinds) > 1 and series.modality not in PHYSICAL_MODALITIES:
        raise SeriesSelectionError(
            f"{series.name} mixes MONOCHROME1 and MONOCHROME2, bright for low and bright for high values; one is needed, "
            "or slices cannot be compared; pass the files of one only"
        )


def check_rescale(frames: Sequence[Frame], series: SeriesRef) -> None:
    """Raises SeriesSelectionError if slices have values of different units, or only some a rescale that changes values."""
    named = [frame for frame in frames if frame.has_rescale]
    # A rescale of 1 and 0 is the same as none
    changing = {(frame.slope, frame.intercept) for frame in named} - {(1, 0)}
    if changing and len(named) < len(frames):
        raise SeriesSelectionError(
            f"{series.name} has {len(frames) - len(named)} of {len(frames)} slices without RescaleSlope beside others with "
            "one; all need it, or values cannot be compared; export the series again from its source"
        )
    if len(units := sorted({frame.unit for frame in frames} - UNKNOWN_UNITS)) > 1:
        raise SeriesSelectionError(
            f"{series.name} mixes slices of {' and '.join(map(shown, units))}; one unit of all values is needed; "
            "pass the files of one only"
        )


def _check_parts(headers: Sequence[Dataset], series: SeriesRef) -> None:
    """Raises SeriesGeometryError for a concatenation that lacks parts."""
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


def without_position(series: SeriesRef) -> SeriesSelectionError:
    """The refusal of several pictures without a position in patient space; it names the attributes that they lack."""
    header = series.instances[0].header
    absent = [keyword for keyword in PLACE_KEYWORDS if not header.get(keyword)] if not has_groups(header) else []
    reason = "cine, time series or views"
    if header.get("Modality") == "NM":
        reason = "nuclear medicine keeps it in DetectorInformationSequence, which is not read"
    elif 0 < len(absent) < len(PLACE_KEYWORDS):
        reason = f"its files name no {' and no '.join(absent)}"
    return SeriesSelectionError(
        f"{series.name} holds {series.frame_count} frames or pictures without a position in patient space "
        f"({reason}); a volume or one picture is needed; pass one single-frame file"
    )


def check_one_space(headers: Iterable[Dataset], name: str) -> None:
    """Raises SeriesGeometryError if headers name several frames of reference."""
    spaces = {str(header.get("FrameOfReferenceUID") or "") for header in headers}
    if len(spaces) > 1:
        raise SeriesGeometryError(
            f"{name} mixes {len(spaces)} frames of reference ({', '.join(sorted(spaces))}); one is needed, "
            "or positions cannot be compared; pass the files of one frame of reference"
        )
