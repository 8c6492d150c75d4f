"""One DICOM series -> one Volume: choose, pass the geometry gate, then decode and rescale slice by slice.

Nothing is decoded before every header has passed `geometry.even_grid`, and nothing is repaired in silence: a
fault is refused with its numbers, what is tolerated stands in `Volume.provenance.notes`, and so does a repair that
was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset

from dicom_io.errors import DicomIoError, SeriesGeometryError, SeriesSelectionError
from dicom_io.reading.headers import patient_digest
from dicom_io.reading.instances import Instance, refusing
from dicom_io.reading.ordering import ReadOptions, Stack, check_complete, check_ends, pixel_mm, place_of, stack_of
from dicom_io.reading.pixels import decode_frames
from dicom_io.reading.repair import resample
from dicom_io.reading.series import Scan, SeriesRef, Source, counted, files_below, scan_source, summary, survey_files
from dicom_io.volume import Provenance, Volume

__all__ = ["ReadOptions", "Source", "Verdict", "examine", "read_series"]


@dataclass(frozen=True)
class Verdict:
    """What reading a series would give, judged by its headers alone.

    Attributes:
        series: The group of instances.
        outcome: "readable" as a volume or picture; "refused"; "set aside" (localizer, capture); "object" (SEG, SR, ...);
            "broken" for a file that cannot be read (`series` is None).
        reason: Why it is refused, set aside or broken; what was tolerated in a readable one; else empty.
        shape: (columns, rows, slices) of a readable one.
        spacing_mm: Along these; None without patient space.
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
        source: A folder (searched however deep), one file, a DICOMDIR, the files of one series, or data sets in memory.
        series_instance_uid: As the others, see `ReadOptions`.

    Returns:
        float32 array of shape (I, J, K): I counts columns, J rows, K slices in increasing position along the
        normal (row x column direction); values after each slice's own rescale, computed in float64. A picture
        without patient space has K = 1, `planar` True, pixels for millimetres; in colour (I, J, 1, 3).

    Raises:
        SeriesSelectionError: No image series, or several, fit; or it is no volume (colour, cine), or too large.
        SeriesGeometryError: The slices do not lie on one even grid, or the headers count more images than there are.
        UnreadableFileError: A file is broken or its pixels cannot be decoded; or a voxel is NaN or infinite.
    """
    options = ReadOptions(
        series_instance_uid, time_point, resample_gaps, resample_tilt, accept_incomplete=accept_incomplete
    )
    scan = scan_source(source)
    named = not (isinstance(source, str | Path) and Path(source).is_dir())
    series, notes = _select(scan, series_instance_uid, named=named)
    with refusing(series.name):
        stack = stack_of(replace(series, notes=notes), options)
        check_ends(stack, scan.series)
        return _read(check_complete(stack, scan.series, options))


def examine(source: Path, options: ReadOptions | None = None) -> list[Verdict]:
    """What every series of a folder or file would give, judged by headers alone; nothing is refused but an empty source.

    Raises:
        SeriesSelectionError: There is no DICOM object at all.
    """
    options = options or ReadOptions()
    scan = survey_files(files_below(source) if source.is_dir() else [source])
    verdicts = [_verdict(series, options, scan.series) for series in scan.series]
    mixed = {id(v.series): v for v in _mixed(scan)}
    return [
        *(mixed.get(id(verdict.series), verdict) for verdict in verdicts),
        *(Verdict(None, "broken", str(error)) for error in scan.broken),
    ]


def _verdict(series: SeriesRef, options: ReadOptions, others: Iterable[SeriesRef]) -> Verdict:
    if series.set_aside:
        return Verdict(series, "set aside", series.set_aside)
    if series.kind != "image":
        return Verdict(series, "object", series.kind)
    try:
        with refusing(series.name):
            stack = stack_of(series, options)
            check_ends(stack, others)
            stack = check_complete(stack, others, options)
    except DicomIoError as error:
        return Verdict(series, "refused", str(error))
    affine_lps, shape = place_of(stack)
    spacing = None if stack.grid is None and stack.repair is None else np.linalg.norm(affine_lps[:3, :3], axis=0)
    told = tuple(note for note in stack.notes if note not in series.notes)
    return Verdict(series, "readable", "; ".join(told), shape, None if spacing is None else tuple(spacing.tolist()))


def _mixed(scan: Scan) -> list[Verdict]:
    """Groups that share a series and would be refused together."""
    images = [one for one in scan.series if one.kind == "image"]
    found = []
    for series in images:
        parts = [one for one in images if one.series_instance_uid == series.series_instance_uid]
        if len(parts) > 1:
            found.append(Verdict(series, "refused", str(_several_images(parts))))
    return found


def _select(scan: Scan, wanted: str | None, *, named: bool) -> tuple[SeriesRef, tuple[str, ...]]:
    """The one series to read, and the notes about those passed by; `named`: the caller gave files, not a folder."""
    fitting = [one for one in scan.series if wanted in (None, one.series_instance_uid)]
    images = [one for one in fitting if one.kind == "image"]
    if not images and (named or wanted):
        images = [one for one in fitting if one.set_aside]
    if not images:
        raise _no_image(scan, wanted)
    if len(images) > 1:
        raise _several_images(images)
    passed_by = [one for one in scan.series if one.set_aside and one is not images[0]]
    return images[0], (
        *images[0].notes,
        *(f"passed by, not part of the volume: {one.line}" for one in passed_by),
    )


def _no_image(scan: Scan, wanted: str | None) -> SeriesSelectionError:
    looked_for = f"series {wanted}" if wanted else "image series that could be a volume"
    return SeriesSelectionError(
        f"found no {looked_for} among {summary(scan.series)}; one image series is needed; "
        "check the path, or name one of these with --series UID"
    )


def _several_images(images: Sequence[SeriesRef]) -> DicomIoError:
    if len({one.series_instance_uid for one in images}) > 1:
        return SeriesSelectionError(
            f"found {len(images)} image series: {summary(images)}; one is needed; name it with --series UID"
        )
    parts = "; ".join(
        f"{counted(one.instance_count, 'file')} ({one.modality or 'without Modality'}"
        f"{', multi-frame' if one.instances[0].header.get('NumberOfFrames') else ''}) of orientation {_cosines(one)}"
        for one in images
    )
    if len({one.study_instance_uid for one in images}) > 1 or not images[0].series_instance_uid:
        return SeriesSelectionError(
            f"{images[0].name} falls into {len(images)} studies or folders: {parts}; one is needed; "
            "pass the files of one only, or give all the study UID of their study"
        )
    return SeriesGeometryError(
        f"{images[0].name} mixes {len(images)} orientations or kinds: {parts}; one orientation is needed; "
        "pass the files of one orientation only"
    )


def _cosines(series: SeriesRef) -> str:
    return "none" if series.orientation is None else "(" + ", ".join(f"{c:.4g}" for c in series.orientation) + ")"


def _read(stack: Stack) -> Volume:
    slices, decoding = decode_frames(stack.frames, stack.series.modality, stack.shape)
    if stack.repair is not None:
        slices = resample(slices, stack.repair)
    affine_lps, _ = place_of(stack)
    array = slices.transpose(2, 1, 0, *range(3, slices.ndim))
    planar = stack.grid is None and stack.repair is None
    return Volume(array, affine_lps, _provenance(stack, (*stack.notes, *decoding)), planar)


def _provenance(stack: Stack, notes: tuple[str, ...]) -> Provenance:
    series, frames = stack.series, stack.frames
    uids = tuple(frame.instance.sop_instance_uid for frame in frames)
    if not all(uids):
        notes = (*notes, f"{uids.count('')} slices carry no SOPInstanceUID: no DICOM result can refer to them")
    numbers = tuple(frame.number for frame in frames)
    in_memory = [frame.instance for frame in frames if frame.instance.path is None]
    files = tuple(frame.instance.path for frame in frames if frame.instance.path)
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
        stack.repair is not None,
        tuple({id(instance): _without_pixels(instance) for instance in in_memory}.values()),
        pixel_mm(frames[0].instance.header) if stack.grid is None and stack.repair is None else None,
        incomplete=stack.incomplete,
        patient_digest=patient_digest(frames[0].instance.header),
    )


def _without_pixels(instance: Instance) -> Dataset:
    assert instance.dataset is not None
    header = Dataset()
    header.update({element.tag: element for element in instance.dataset if element.tag.group != 0x7FE0})
    header.file_meta = instance.header.file_meta  # type: ignore[attr-defined]
    return header
