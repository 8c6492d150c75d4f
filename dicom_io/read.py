"""One DICOM series -> one Volume: choose the series, check its geometry, then decode and rescale slice by slice.

Nothing is decoded before every header has passed `geometry.even_grid`, and nothing is repaired without being asked: a fault is
refused with its numbers; small faults that are accepted, and repairs on request, are noted in `Volume.provenance.notes`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset

from dicom_io.errors import DicomIoError, SeriesGeometryError, SeriesSelectionError
from dicom_io.reading.headers import patient_digest, shown
from dicom_io.reading.instances import Instance, refusing
from dicom_io.reading.ordering import OrderedSeries, ReadOptions, check_complete, check_ends, order_series, pixel_mm
from dicom_io.reading.pixels import decode_frames
from dicom_io.reading.repair import made_slices, resample
from dicom_io.reading.series import Scan, SeriesRef, Source, counted, files_at, scan_source, summary, survey_files
from dicom_io.volume import Provenance, Volume

__all__ = ["Examination", "ReadOptions", "Source", "examine", "read_series"]


@dataclass(frozen=True)
class Examination:
    """The outcome of reading a series, by its headers alone.

    Attributes:
        series: The group of instances.
        outcome: "readable" as a volume or picture; "refused"; "set aside" (localizer, capture); "object" (SEG, SR, ...);
            "broken" for a file that cannot be read (`series` is None).
        reason: Why it is refused, set aside or broken; the notes of a readable series; else empty.
        shape: (columns, rows, slices) of a readable series.
        spacing_mm: Along columns, rows, slices; None without patient space.
    """

    series: SeriesRef | None
    outcome: Literal["readable", "refused", "set aside", "object", "broken"]
    reason: str = ""
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None


def read_series(
    source: Source,
    *,
    series_instance_uid: str | None = None,
    time_point: int | None = None,
    resample_gaps: bool = False,
    resample_tilt: bool = False,
    accept_incomplete: bool = False,
) -> Volume:
    """The voxels of one image series in patient space.

    Args:
        source: A folder (with all folders below it), one file, a DICOMDIR, the files of one series, data sets in memory, or
            series whose headers were read before.
        series_instance_uid: See `ReadOptions`, as for the other arguments.

    Returns:
        float32 array of shape (I, J, K): I counts columns, J rows, K slices in increasing position along the
        normal (row x column direction). Values are those after each slice's own rescale, computed in float64. A picture
        without patient space has K = 1, `planar` True, and pixels for millimetres; in colour its shape is (I, J, 1, 3).

    Raises:
        SeriesSelectionError: No image series fits, or several do; or the series is no volume (colour, cine), or too large.
        SeriesGeometryError: The slices do not lie on one even grid, or the headers count more images than there are.
        UnreadableFileError: A file is broken or its pixels cannot be decoded; or a voxel is NaN or infinite. Where a series is
            named, broken files of other series are passed by, and in a folder also those that name no series; notes count them.
    """
    options = ReadOptions(
        series_instance_uid, time_point, resample_gaps, resample_tilt, accept_incomplete=accept_incomplete
    )
    return read_scanned(scan_source(source), options)


def read_scanned(scan: Scan, options: ReadOptions) -> Volume:
    """As `read_series`, of a source whose headers were read before."""
    series, notes = _select(scan, options.series_instance_uid)
    with refusing(series.name):
        # All checks of the headers, of the ends and of the number of images come before a pixel is decoded.
        ordered = order_series(replace(series, notes=notes), options)
        check_ends(ordered, scan.series)
        ordered = check_complete(ordered, scan.series, options)
        if options.before_pixels is not None and not ordered.is_picture:
            options.before_pixels(ordered.volume_shape, ordered.affine_lps)
        return _decode(ordered)


def examine(source: Path, options: ReadOptions | None = None) -> list[Examination]:
    """The outcome of reading each series of a folder or file, by headers alone; only a source without DICOM is refused.

    Raises:
        SeriesSelectionError: There is no DICOM object at all.
    """
    options = options or ReadOptions()
    scan = survey_files(files_at(source))
    examinations = [_examined(series, options, scan.series) for series in scan.series]
    mixed = {id(examination.series): examination for examination in _mixed(scan)}
    return [
        *(mixed.get(id(examination.series), examination) for examination in examinations),
        *(Examination(None, "broken", str(file.error)) for file in scan.broken),
    ]


def _examined(series: SeriesRef, options: ReadOptions, others: Iterable[SeriesRef]) -> Examination:
    if series.set_aside:
        return Examination(series, "set aside", series.set_aside)
    if series.kind != "image":
        return Examination(series, "object", series.kind)
    try:
        with refusing(series.name):
            ordered = order_series(series, options)
            check_ends(ordered, others)
            ordered = check_complete(ordered, others, options)
    except DicomIoError as error:
        return Examination(series, "refused", str(error))
    notes = "; ".join(note for note in ordered.notes if note not in series.notes)
    if ordered.is_picture:
        return Examination(series, "readable", notes, ordered.volume_shape)
    spacing_mm = tuple(np.linalg.norm(ordered.affine_lps[:3, :3], axis=0).tolist())
    return Examination(series, "readable", notes, ordered.volume_shape, spacing_mm)


def _mixed(scan: Scan) -> list[Examination]:
    """The refusals of groups that share one series."""
    by_uid: dict[str, list[SeriesRef]] = {}
    for series in scan.series:
        if series.kind == "image":
            by_uid.setdefault(series.series_instance_uid, []).append(series)
    several = [parts for parts in by_uid.values() if len(parts) > 1]
    return [Examination(series, "refused", str(_several_images(parts))) for parts in several for series in parts]


def _select(scan: Scan, series_instance_uid: str | None) -> tuple[SeriesRef, tuple[str, ...]]:
    """The series to read and its notes, which name the series that were set aside."""
    broken_notes = _passed_by(scan, series_instance_uid)
    fitting = [series for series in scan.series if series_instance_uid in (None, series.series_instance_uid)]
    images = [series for series in fitting if series.kind == "image"]
    if not images and (series_instance_uid or not scan.is_folder):  # the caller named it
        images = [series for series in fitting if series.set_aside]
    if not images:
        raise _no_image(scan, series_instance_uid)
    if len(images) > 1:
        raise _several_images(images)
    others = [series for series in scan.series if series.set_aside and series is not images[0]]
    notes = [f"ignored, not part of the volume: {series.line}" for series in others]
    return images[0], (*images[0].notes, *notes, *broken_notes)


def _passed_by(scan: Scan, series_instance_uid: str | None) -> tuple[str, ...]:
    """Notes on broken files that do not hinder the series to be read: those of other series, and in a folder those that
    name no series.

    Raises:
        UnreadableFileError: A broken file is of the series that is read, or it may be and the caller names it or no series.
    """
    for file in scan.broken:
        other = file.series_instance_uid not in ("", series_instance_uid)
        if series_instance_uid is None or not (other or (scan.is_folder and not file.series_instance_uid)):
            raise file.error
    unknown = [file for file in scan.broken if not file.series_instance_uid]
    notes = []
    if len(unknown) < len(scan.broken):
        notes.append(f"ignored: {counted(len(scan.broken) - len(unknown), 'broken file')} of other series")
    if unknown:
        notes.append(
            f"ignored: {counted(len(unknown), 'broken file')} of unknown series, the first {shown(unknown[0].path.name)}; if "
            "it belongs to this series, a slice is missing"
        )
    return tuple(notes)


def _no_image(scan: Scan, series_instance_uid: str | None) -> SeriesSelectionError:
    kind = f"series {series_instance_uid}" if series_instance_uid else "image series that could be a volume"
    return SeriesSelectionError(
        f"found no {kind} among {summary(scan.series)}; one image series is needed; "
        "check the path, or name one of these with --series UID"
    )


def _several_images(images: Sequence[SeriesRef]) -> DicomIoError:
    if len({series.series_instance_uid for series in images}) > 1:
        return SeriesSelectionError(
            f"found {len(images)} image series: {summary(images)}; one is needed; name it with --series UID"
        )
    parts = "; ".join(
        f"{counted(series.instance_count, 'file')} ({series.modality or 'without Modality'}"
        f"{', multi-frame' if series.instances[0].header.get('NumberOfFrames') else ''}) of orientation {_cosines(series)}"
        + (f" (the first {shown(series.instances[0].name)})" if series.orientation is None else "")
        for series in images
    )
    if len({series.study_instance_uid for series in images}) > 1 or not images[0].series_instance_uid:
        return SeriesSelectionError(
            f"{images[0].name} falls into {len(images)} studies or folders: {parts}; one is needed; "
            "pass the files of only one, or give all files the study UID of their study"
        )
    return SeriesGeometryError(
        f"{images[0].name} mixes {len(images)} orientations or kinds: {parts}; one orientation is needed; "
        "pass the files of one orientation only"
    )


def _cosines(series: SeriesRef) -> str:
    return "none" if series.orientation is None else "(" + ", ".join(f"{c:.4g}" for c in series.orientation) + ")"


def _decode(ordered: OrderedSeries) -> Volume:
    slices, notes = decode_frames(ordered.frames, ordered.series.modality, ordered.shape)
    if ordered.repair is not None:
        slices = resample(slices, ordered.repair)
    # (slices, rows, columns) to (I, J, K); a view, because a copy would double the memory.
    array = slices.swapaxes(0, 2)
    provenance = _provenance(ordered, (*ordered.notes, *notes))
    return Volume(array, ordered.affine_lps, provenance, ordered.is_picture)


def _provenance(ordered: OrderedSeries, notes: tuple[str, ...]) -> Provenance:
    series, frames = ordered.series, ordered.frames
    uids = tuple(frame.instance.sop_instance_uid for frame in frames)
    if not all(uids):
        notes = (*notes, f"{uids.count('')} slices have no SOPInstanceUID: no DICOM result can refer to them")
    numbers = tuple(frame.number for frame in frames)
    in_memory = [frame.instance for frame in frames if frame.instance.path is None]
    files = tuple(frame.instance.path for frame in frames if frame.instance.path)
    # Several slices of one file: the file is listed once.
    repeated = any(numbers) or any(frame.tile for frame in frames)
    return Provenance(
        "dicom",
        series.modality or None,
        series.study_instance_uid or None,
        series.series_instance_uid or None,
        str(frames[0].instance.header.get("FrameOfReferenceUID") or "") or None,
        uids,
        numbers if any(numbers) else (),
        tuple(dict.fromkeys(files)) if repeated else files,
        notes,
        ordered.repair is not None,
        tuple({id(instance): _without_pixels(instance) for instance in in_memory}.values()),
        pixel_mm(frames[0].instance.header) if ordered.is_picture else None,
        incomplete=ordered.incomplete,
        patient_digest=patient_digest(frames[0].instance.header),
        patient_id_digest=patient_digest(frames[0].instance.header, "PatientID"),
        other_times=ordered.other_times,
        made_slices=made_slices(ordered.repair) if ordered.repair else (),
        unit=frames[0].unit or ("" if frames[0].has_rescale or series.modality != "CT" else "stored values"),
    )


def _without_pixels(instance: Instance) -> Dataset:
    assert instance.dataset is not None
    header = Dataset()
    header.update({element.tag: element for element in instance.dataset if element.tag.group != 0x7FE0})
    header.file_meta = instance.header.file_meta
    return header
