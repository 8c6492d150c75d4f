"""Images that a series lacks: its own headers count them, and they are not here.

Three attributes count images in a way that can be checked: ImagesInAcquisition (PS3.3 C.7.6.1), NumberOfSlices of a PET series
(C.8.9.1, with the numbers of time slices or gates of C.8.9.4) and InConcatenationTotalNumber (C.7.6.16.2.2.4). Counts of what
was planned (NumberOfTemporalPositions) or of one cycle (CardiacNumberOfImages) do not say what was sent.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from dicom_io.errors import DicomIoError
from dicom_io.reading.frames import frames_of, has_groups, optional_number
from dicom_io.reading.geometry import ImagePlane, angle_degrees
from dicom_io.reading.headers import shown_uid
from dicom_io.reading.instances import Instance, image_type, listed
from dicom_io.reading.series import SeriesRef, counted

_OTHER_DEGREES = 1.0  # between the normals of two series that are cut in different directions
_END_GAPS = 0.5  # the ends of two reconstructions of one acquisition lie no more slice gaps apart
_FACTORS = {"DYNAMIC": ("NumberOfTimeSlices",), "GATED": ("NumberOfRRIntervals", "NumberOfTimeSlots")}


@dataclass(frozen=True)
class MissingImages:
    """The number of images that a series lacks.

    Attributes:
        count: Images (or parts of a concatenation) that are missing, at least 1.
        words: The same as a sentence, with the attribute that counts them; without UIDs and without patient data.
    """

    count: int
    words: str


def missing_images(series: SeriesRef, others: Iterable[SeriesRef] = ()) -> MissingImages | None:
    """The images that a series lacks by its own headers; None if it is complete, or if the headers do not say.

    Args:
        series: From `scan_source` or `scan_files`.
        others: The series beside it, as `scan.series`; the series itself may be among them. An acquisition may be counted
            over several series (one for each echo), and a second reconstruction or a reformatted series has the count of the
            acquisition that it was made from. Only the other series show whether this is so, or the series is cut off.
    """
    others = [other for other in others if other.study_instance_uid == series.study_instance_uid]
    alike = [other for other in others if _is_same_series(other, series) and other.in_colour == series.in_colour]
    groups = [series, *(other for other in alike if other is not series)]  # a picture in colour replaces no slice
    elsewhere = [other for other in others if not _is_same_series(other, series)]
    lacks = [*_missing_parts(series), *_missing_pet_slices(series), *_missing_of_acquisitions(groups, elsewhere)]
    return max(lacks, key=lambda missing: missing.count, default=None)


def parts_of_concatenations(headers: Iterable[Dataset]) -> list[tuple[int, int]]:
    """(parts here, parts in all) of each concatenation among the headers (PS3.3 C.7.6.16.2.2.4)."""
    here: dict[str, set[int]] = {}
    total: Counter[str] = Counter()
    for header in headers:
        if uid := str(header.get("ConcatenationUID") or ""):
            here.setdefault(uid, set()).add(int(header.get("InConcatenationNumber") or 0))
            known = (header.get("InConcatenationTotalNumber"), header.get("InConcatenationNumber"))
            total[uid] = max(total[uid], *(int(number or 0) for number in known))
    return [(len(numbers_here), total[uid]) for uid, numbers_here in here.items()]


def _is_same_series(first: SeriesRef, second: SeriesRef) -> bool:
    return bool(first.series_instance_uid) and first.series_instance_uid == second.series_instance_uid


def _missing_parts(series: SeriesRef) -> Iterator[MissingImages]:
    for here, total in parts_of_concatenations(instance.header for instance in series.instances):
        if here < total:
            words = f"it is a concatenation of {total} parts (InConcatenationTotalNumber), of which {here} are here"
            yield MissingImages(total - here, words)


def _missing_pet_slices(series: SeriesRef) -> Iterator[MissingImages]:
    """PET only: NumberOfSlices counts the slices of each time or gate (PS3.3 C.8.9.1)."""
    header = series.instances[0].header
    if series.modality != "PT" or not _largest(series, "NumberOfSlices") or has_groups(header):
        return
    kind = str(next(iter(listed(header.get("SeriesType"))), ""))
    keywords = [keyword for keyword in _FACTORS.get(kind, ()) if _largest(series, keyword)]
    expected = math.prod(_largest(series, keyword) for keyword in ("NumberOfSlices", *keywords))
    here = sum(instance.frames for instance in _each_once(series.instances))
    if here < expected:
        product = " x ".join(("NumberOfSlices", *keywords))
        words = f"it holds {counted(here, 'image')}, and its headers count {expected} ({product})"
        yield MissingImages(expected - here, words)


@dataclass(frozen=True)
class _Acquisition:
    """The images of one series that share an AcquisitionNumber, and the largest count that their headers state."""

    number: str
    here: int
    expected: int


def _missing_of_acquisitions(groups: Sequence[SeriesRef], elsewhere: Sequence[SeriesRef]) -> Iterator[MissingImages]:
    """By ImagesInAcquisition, given all groups of one series.

    Some scanners number the acquisitions within a series and count the images of each; others count those of the series. If
    one acquisition has exactly as many images as it counts, each is checked by itself, else all together.
    """
    acquisitions = _acquisitions(groups)
    total = sum(acquisition.here for acquisition in acquisitions)
    each = any(acquisition.here == acquisition.expected for acquisition in acquisitions)
    for acquisition in acquisitions:
        here, expected = acquisition.here if each else total, acquisition.expected
        if acquisition.here >= expected or here >= expected or _is_explained(groups, acquisition, here, elsewhere):
            continue
        part = f" of acquisition {acquisition.number}" if each and acquisition.number else ""
        words = f"it holds {counted(here, 'image')}{part}, and its headers count {expected} (ImagesInAcquisition)"
        yield MissingImages(expected - here, words)


def _acquisitions(groups: Iterable[SeriesRef]) -> list[_Acquisition]:
    here: Counter[str] = Counter()
    expected: dict[str, int] = {}
    for instance in _each_once(instance for group in groups for instance in group.instances):
        number = _count(instance.header, "AcquisitionNumber")
        key = "" if number is None else str(number)
        here[key] += instance.frames
        if stated := _count(instance.header, "ImagesInAcquisition"):
            # If headers disagree, the larger count holds: what one of them still counts may be missing.
            expected[key] = max(stated, expected.get(key, stated))
    return [_Acquisition(key, count, expected.get(key, 0)) for key, count in here.items()]


def _is_explained(groups: Sequence[SeriesRef], short: _Acquisition, here: int, elsewhere: Sequence[SeriesRef]) -> bool:
    """Whether other series of the study show that the count is not that of this series alone."""
    alike: list[tuple[list[SeriesRef], int]] = []
    for uid in dict.fromkeys(other.series_instance_uid for other in elsewhere):
        parts = [other for other in elsewhere if other.series_instance_uid == uid]
        alike += [
            (parts, acquisition.here)
            for acquisition in _acquisitions(parts)
            if (acquisition.number, acquisition.expected) == (short.number, short.expected)
        ]
    # Decision 26: the other series hold just the images that are missing here, as with two echoes in two series.
    if alike and here + sum(count for _, count in alike) == short.expected:
        return True
    # Decision 26: another series is whole, and this series reaches as far or is cut from it.
    complete = [parts for parts, count in alike if count >= short.expected]
    return any(_is_made_of(groups[0], source) for parts in complete for source in parts)


def _is_made_of(series: SeriesRef, source: SeriesRef) -> bool:
    """Whether a series with fewer images than a complete series of its acquisition may be complete itself: it reaches as far
    along its normal, or it is derived and cut in another direction.
    """
    try:
        planes, others = _planes(series), _planes(source)
    except DicomIoError:
        return False
    if len(planes) < 2 or len(others) < 2 or _space(series) != _space(source):
        return False
    # Cosines of length 0 give NaN here; such a plane explains nothing.
    with np.errstate(invalid="ignore"):
        normal, other_normal = planes[0].normal, others[0].normal
    if not (np.isfinite(normal).all() and np.isfinite(other_normal).all()):
        return False
    # Two series may count their slices in opposite directions, so an angle near 180 degrees is the same cut.
    if _OTHER_DEGREES < angle_degrees(normal, other_normal) < 180 - _OTHER_DEGREES:
        # PS3.3 C.7.6.1.1.2: the first word of ImageType is ORIGINAL or DERIVED.
        return "DERIVED" in image_type(series.instances[0].header)[:1]
    depths, reach = (np.sort([float(np.dot(plane.position, normal)) for plane in stack]) for stack in (planes, others))
    near = _END_GAPS * float(np.median(np.diff(depths))) + 0.02
    return bool(depths[0] <= reach[0] + near and depths[-1] >= reach[-1] - near)


def _planes(series: SeriesRef) -> list[ImagePlane]:
    frames = [frame for instance in series.instances for frame in frames_of(instance)]
    return [frame.plane for frame in frames if frame.plane is not None]


def _space(series: SeriesRef) -> str:
    return shown_uid(series.instances[0].header.get("FrameOfReferenceUID") or "")


def _each_once(instances: Iterable[Instance]) -> list[Instance]:
    """The instances without copies: each SOP Instance UID once, and all instances without a UID."""
    by_uid: dict[object, Instance] = {}
    for instance in instances:
        by_uid.setdefault(instance.sop_instance_uid or id(instance), instance)
    return list(by_uid.values())


def _largest(series: SeriesRef, keyword: str) -> int:
    """The largest count that a header of the series states; 0 if no header states any."""
    return max(_count(instance.header, keyword) or 0 for instance in series.instances)


def _count(header: Dataset, keyword: str) -> int | None:
    """A whole number of 0 or more; None if it is absent or anything else: a count that cannot be read refuses nothing."""
    number = optional_number(header, keyword)
    return int(number) if number is not None and number >= 0 and number.is_integer() else None
