"""What a series lacks by its own headers: images that its sender counted and that are not here.

Three headers count images in a way that can be checked: ImagesInAcquisition (PS3.3 C.7.6.1), NumberOfSlices of a PET series
(C.8.9.1, with the numbers of time slices or gates of C.8.9.4) and InConcatenationTotalNumber (C.7.6.16.2.2.4). Counts of what
was prescribed (NumberOfTemporalPositions) or of one cycle (CardiacNumberOfImages) say nothing of what was sent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from dicom_io.errors import DicomIoError
from dicom_io.reading.frames import frames_of, has_groups, numbers
from dicom_io.reading.geometry import ImagePlane, angle_degrees
from dicom_io.reading.headers import shown_uid
from dicom_io.reading.instances import Instance, image_type, is_colour, listed
from dicom_io.reading.series import SeriesRef, counted

_OTHER_DEGREES = 1.0  # between the normals of two series that are cut in other directions
_ENDS = 0.5  # of a slice gap: the first and last slices of two reconstructions of one acquisition lie no further apart
_OF_ONE_TIME: Mapping[str, tuple[str, ...]] = {
    "DYNAMIC": ("NumberOfTimeSlices",),
    "GATED": ("NumberOfRRIntervals", "NumberOfTimeSlots"),
}


@dataclass(frozen=True)
class MissingImages:
    """What a series lacks.

    Attributes:
        count: Images (or parts of a concatenation) that are missing, at least 1.
        words: The same in words, with the header that counts them: no UID, nothing of the patient.
    """

    count: int
    words: str


def missing_images(series: SeriesRef, others: Iterable[SeriesRef] = ()) -> MissingImages | None:
    """What a series lacks by its own headers; None where it is complete, or where they do not say.

    Args:
        series: From `scan_source` or `scan_files`.
        others: What was found beside it, as `scan.series`; the series itself may be among them. An acquisition may be
            counted over several series (one for each echo), and a second reconstruction or a reformatted series carries the
            count of the acquisition that it was made from. Only the other series can tell these from one that is cut off.
    """
    others = [one for one in others if one.study_instance_uid == series.study_instance_uid]
    alike = [one for one in others if _is_same_series(one, series) and _is_colour(one) == _is_colour(series)]
    groups = [series, *(one for one in alike if one is not series)]  # a picture in colour stands for no slice
    elsewhere = [one for one in others if not _is_same_series(one, series)]
    found = [*_parts(series), *_slices(series), *_acquisition(groups, elsewhere)]
    return max(found, key=lambda one: one.count, default=None)


def parts_of_concatenations(headers: Iterable[Dataset]) -> list[tuple[int, int]]:
    """(parts here, parts in all) of each concatenation among the headers (PS3.3 C.7.6.16.2.2.4)."""
    here: dict[str, set[int]] = {}
    total: Counter[str] = Counter()
    for header in headers:
        if uid := str(header.get("ConcatenationUID") or ""):
            here.setdefault(uid, set()).add(int(header.get("InConcatenationNumber") or 0))
            total[uid] = max(total[uid], int(header.get("InConcatenationTotalNumber") or 0))
    return [(len(there), total[uid]) for uid, there in here.items()]


def _is_colour(series: SeriesRef) -> bool:
    return is_colour(series.instances[0].header)


def _is_same_series(one: SeriesRef, other: SeriesRef) -> bool:
    return bool(one.series_instance_uid) and one.series_instance_uid == other.series_instance_uid


def _parts(series: SeriesRef) -> Iterator[MissingImages]:
    for here, total in parts_of_concatenations(instance.header for instance in series.instances):
        if here < total:
            words = f"it is a concatenation of {total} parts (InConcatenationTotalNumber), of which {here} are here"
            yield MissingImages(total - here, words)


def _slices(series: SeriesRef) -> Iterator[MissingImages]:
    """Of a PET series, whose slices are counted for each of its times or gates."""
    header = series.instances[0].header
    slices = _count(header, "NumberOfSlices")
    if series.modality != "PT" or not slices or has_groups(header):
        return
    kind = str(next(iter(listed(header.get("SeriesType"))), ""))
    keywords = [keyword for keyword in _OF_ONE_TIME.get(kind, ()) if _count(header, keyword)]
    wanted = slices * math.prod(_count(header, keyword) or 1 for keyword in keywords)
    here = sum(instance.frames for instance in _each_once(series.instances))
    if here < wanted:
        told = " x ".join(("NumberOfSlices", *keywords))
        yield MissingImages(
            wanted - here, f"it holds {counted(here, 'image')}, and its headers count {wanted} ({told})"
        )


@dataclass(frozen=True)
class _Acquisition:
    """The images of one series that share an AcquisitionNumber, and how many the headers count, at least."""

    number: str
    here: int
    wanted: int


def _acquisition(groups: Sequence[SeriesRef], elsewhere: Sequence[SeriesRef]) -> Iterator[MissingImages]:
    """Of the acquisitions of one series, given all groups of it that were found.

    Some scanners number the acquisitions within a series and count each, others count the series whatever the numbers are:
    where one acquisition has just as many images as it counts, each is judged by itself, else all together.
    """
    found = _acquisitions(groups)
    total = sum(one.here for one in found)
    each = any(one.here == one.wanted for one in found)
    short = [one for one in found if one.here < one.wanted and (each or total < one.wanted)]
    for one in short:
        here = one.here if each else total
        if _explained(groups, one, here, elsewhere):
            continue
        which = f" of acquisition {one.number}" if each and one.number else ""
        told = f"it holds {counted(here, 'image')}{which}, and its headers count {one.wanted} (ImagesInAcquisition)"
        yield MissingImages(one.wanted - here, told)


def _acquisitions(groups: Iterable[SeriesRef]) -> list[_Acquisition]:
    here: Counter[str] = Counter()
    wanted: dict[str, int] = {}
    for instance in _each_once(instance for group in groups for instance in group.instances):
        number = _count(instance.header, "AcquisitionNumber")
        key = "" if number is None else str(number)
        here[key] += instance.frames
        if told := _count(instance.header, "ImagesInAcquisition"):
            wanted[key] = min(told, wanted.get(key, told))
    return [_Acquisition(key, count, wanted.get(key, 0)) for key, count in here.items()]


def _explained(groups: Sequence[SeriesRef], short: _Acquisition, here: int, elsewhere: Sequence[SeriesRef]) -> bool:
    """Whether other series of the study show that the count is not that of this series alone."""
    alike: list[tuple[list[SeriesRef], int]] = []
    for uid in dict.fromkeys(one.series_instance_uid for one in elsewhere):
        others = [one for one in elsewhere if one.series_instance_uid == uid]
        alike += [
            (others, one.here)
            for one in _acquisitions(others)
            if (one.number, one.wanted) == (short.number, short.wanted)
        ]
    if alike and here + sum(count for _, count in alike) == short.wanted:
        return True
    whole = [others for others, count in alike if count >= short.wanted]
    return any(_is_made_of(groups[0], one) for others in whole for one in others)


def _is_made_of(series: SeriesRef, source: SeriesRef) -> bool:
    """Whether a series that has fewer images than a complete one of its acquisition may be whole all the same: it reaches as
    far along its normal, or it is derived and cut in another direction.
    """
    try:
        ours, theirs = _planes(series), _planes(source)
    except DicomIoError:
        return False
    if len(ours) < 2 or len(theirs) < 2 or _space(series) != _space(source):
        return False
    with np.errstate(invalid="ignore"):
        normal, other = ours[0].normal, theirs[0].normal
    if not (np.isfinite(normal).all() and np.isfinite(other).all()):
        return False
    if _OTHER_DEGREES < angle_degrees(normal, other) < 180 - _OTHER_DEGREES:
        return "DERIVED" in image_type(series.instances[0].header)[:1]
    depths, reach = (np.sort([float(np.dot(plane.position, normal)) for plane in planes]) for planes in (ours, theirs))
    near = _ENDS * float(np.median(np.diff(depths))) + 0.02
    return bool(depths[0] <= reach[0] + near and depths[-1] >= reach[-1] - near)


def _planes(series: SeriesRef) -> list[ImagePlane]:
    frames = [frame for instance in series.instances for frame in frames_of(instance)]
    return [frame.plane for frame in frames if frame.plane is not None]


def _space(series: SeriesRef) -> str:
    return shown_uid(series.instances[0].header.get("FrameOfReferenceUID") or "")


def _each_once(instances: Iterable[Instance]) -> list[Instance]:
    """Without copies: each SOP Instance UID once, and all that have none."""
    kept: dict[object, Instance] = {}
    for instance in instances:
        kept.setdefault(instance.sop_instance_uid or id(instance), instance)
    return list(kept.values())


def _count(header: Dataset, keyword: str) -> int | None:
    """A whole number of 0 or more; None where it is absent or none: a count that cannot be read refuses nothing."""
    try:
        found = numbers(header, keyword, 1)
        return int(found[0]) if found and found[0] >= 0 and found[0] == int(found[0]) else None
    except (ValueError, OverflowError):
        return None
