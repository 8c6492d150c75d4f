"""One DICOM series -> one Volume: choose, pass the geometry gate, then decode and rescale slice by slice.

Nothing is decoded before every header has passed `geometry.even_grid`, and nothing is repaired in silence: a
fault is refused with its numbers, what is tolerated stands in `Volume.provenance.notes`, and so does a repair that
was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_io.errors import DicomIoError, SeriesGeometryError, SeriesSelectionError, UnreadableFileError
from dicom_io.reading.codecs import decoder_of
from dicom_io.reading.frames import MAX_MM, MAX_VOXELS, MIN_MM, Frame, check_size, frames_of, has_groups, numbers
from dicom_io.reading.geometry import Grid, Plane, even_grid
from dicom_io.reading.instances import Instance, same_content
from dicom_io.reading.pixels import decode_frames
from dicom_io.reading.repair import Repair, plan_repair, resample
from dicom_io.reading.series import Scan, SeriesRef, Source, counted, files_below, scan_source, summary, survey_files
from dicom_io.reading.time_points import choose_time_point
from dicom_io.volume import Provenance, Volume

_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "YBR_PARTIAL_420", "PALETTE COLOR"})


@dataclass(frozen=True)
class ReadOptions:
    """What a caller asks for where a source holds more, or less, than one even volume. Nothing of it is done unasked.

    Attributes:
        series_instance_uid: Which series to read where there are several.
        time_point: Which of several time points, echoes or acquisitions to read, from 1.
        resample_gaps: Fill uneven gaps and missing slices by linear interpolation.
        resample_tilt: Put a stack whose slices are shifted sideways (gantry tilt) onto a right-angled grid.
        channels: Read these series of one frame of reference as channels, on the grid of the first (`channels.py`).
    """

    series_instance_uid: str | None = None
    time_point: int | None = None
    resample_gaps: bool = False
    resample_tilt: bool = False
    channels: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class _Stack:
    """A series that passed the gate: what is left is to decode."""

    series: SeriesRef
    frames: tuple[Frame, ...]
    shape: tuple[int, ...]
    grid: Grid | None
    repair: Repair | None
    notes: tuple[str, ...] = field(default=())


def read_series(
    source: Source,
    *,
    series_instance_uid: str | None = None,
    time_point: int | None = None,
    resample_gaps: bool = False,
    resample_tilt: bool = False,
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
        SeriesGeometryError: The slices do not lie on one even grid.
        UnreadableFileError: A file is broken or its pixels cannot be decoded; or a voxel is NaN or infinite.
    """
    options = ReadOptions(series_instance_uid, time_point, resample_gaps, resample_tilt)
    scan = scan_source(source)
    named = not (isinstance(source, str | Path) and Path(source).is_dir())
    series, notes = _select(scan, series_instance_uid, named=named)
    return _read(_gate(replace(series, notes=notes), options))


def examine(source: Path, options: ReadOptions | None = None) -> list[Verdict]:
    """What every series of a folder or file would give, judged by headers alone; nothing is refused but an empty source.

    Raises:
        SeriesSelectionError: There is no DICOM object at all.
    """
    options = options or ReadOptions()
    scan = survey_files(files_below(source) if source.is_dir() else [source])
    verdicts = [_verdict(series, options) for series in scan.series]
    mixed = {id(v.series): v for v in _mixed(scan)}
    return [
        *(mixed.get(id(verdict.series), verdict) for verdict in verdicts),
        *(Verdict(None, "broken", str(error)) for error in scan.broken),
    ]


def _verdict(series: SeriesRef, options: ReadOptions) -> Verdict:
    if series.set_aside:
        return Verdict(series, "set aside", series.set_aside)
    if series.kind != "image":
        return Verdict(series, "object", series.kind)
    try:
        stack = _gate(series, options)
    except DicomIoError as error:
        return Verdict(series, "refused", str(error))
    affine_lps, shape = _place(stack)
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
    parts = "; ".join(f"{one.instance_count} files of orientation {_cosines(one)}" for one in images)
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


def _gate(series: SeriesRef, options: ReadOptions) -> _Stack:
    """Frames in order and the grid that they lie on, from headers alone; refuses everything that is no volume."""
    for instance in series.instances:
        check_size(instance)
    instances, notes = _without_copies(series)
    headers = [instance.header for instance in instances]
    _check_readable(instances, series)
    frames = [frame for instance in instances for frame in frames_of(instance)]
    if all(frame.plane is None for frame in frames):
        return _picture(frames, headers[0], series, (*series.notes, *notes))
    planes = _planes(frames, series.name)
    _check_space(headers, series.name)
    frames, told = choose_time_point(frames, planes, series.name, options.time_point)
    return _even(series, frames, options, (*series.notes, *notes, *told))


def _even(series: SeriesRef, frames: Sequence[Frame], options: ReadOptions, notes: tuple[str, ...]) -> _Stack:
    planes = [frame.plane for frame in frames if frame.plane is not None]
    thickness = frames[0].thickness_mm
    repair = None
    try:
        grid: Grid | None = even_grid(planes, series.name, single_step_mm=thickness or 1.0)
        if grid and grid.shear_degrees and options.resample_tilt:
            grid = None
    except SeriesGeometryError:
        if not options.resample_gaps and not options.resample_tilt:
            raise
        grid = None
    if grid is None:
        repair = plan_repair(planes, series.name, gaps=options.resample_gaps, tilt=options.resample_tilt)
    order = grid.order if grid else repair.order if repair else ()
    notes = (*notes, *(_grid_notes(grid, thickness) if grid else [repair.note] if repair else []))
    stack = _Stack(series, tuple(frames[index] for index in order), (len(order), *planes[0].shape), grid, repair, notes)
    _check_total(stack)
    return stack


def _check_total(stack: _Stack) -> None:
    voxels = max(int(np.prod(stack.shape)), int(np.prod(_place(stack)[1])))
    if voxels > MAX_VOXELS:
        raise SeriesSelectionError(
            f"{stack.series.name} has {voxels} voxels; at most {MAX_VOXELS} fit; read a part of it"
        )


def _place(stack: _Stack) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine in LPS mm (pixels for a picture) and (columns, rows, slices) of what will be read."""
    slices, rows, columns = stack.shape[:3]
    if stack.repair is not None:
        return stack.repair.affine_lps, stack.repair.shape
    return (np.eye(4) if stack.grid is None else stack.grid.affine_lps), (columns, rows, slices)


def _read(stack: _Stack) -> Volume:
    slices, decoding = decode_frames(stack.frames, stack.series.modality, stack.shape)
    if stack.repair is not None:
        slices = resample(slices, stack.repair)
    affine_lps, _ = _place(stack)
    array = slices.transpose(2, 1, 0, *range(3, slices.ndim))
    planar = stack.grid is None and stack.repair is None
    return Volume(array, affine_lps, _provenance(stack, (*stack.notes, *decoding)), planar)


def _without_copies(series: SeriesRef) -> tuple[list[Instance], list[str]]:
    """The instances without byte-identical copies. Raises SeriesGeometryError for one UID with two contents."""
    kept: dict[str, Instance] = {}
    without_uid, copies = [], []
    for instance in series.instances:
        uid = instance.sop_instance_uid
        if not uid:
            without_uid.append(instance)
        elif uid not in kept:
            kept[uid] = instance
        elif same_content(kept[uid], instance):
            copies.append(instance)
        else:
            raise SeriesGeometryError(
                f"{series.name} holds SOP instance {uid} twice with different content, in {kept[uid].name} and "
                f"{instance.name}; each slice is needed once; leave one of the files out"
            )
    chosen = {id(instance) for instance in (*kept.values(), *without_uid)}
    found = counted(len(copies), "file")
    notes = [f"left out as byte-identical copies of another: {found}"] if copies else []
    return [instance for instance in series.instances if id(instance) in chosen], notes


def _check_readable(instances: Sequence[Instance], series: SeriesRef) -> None:
    """Refuses what belongs to several patients, what cannot be decoded, and what can be no volume of single values:
    cine, and colour unless it is one picture.
    """
    headers = [instance.header for instance in instances]
    for keyword in ("PatientID", "PatientName"):
        count = len({str(header.get(keyword)) for header in headers if header.get(keyword)})
        if count > 1:
            raise SeriesSelectionError(
                f"{series.name} has files of {count} different {keyword}; one patient is needed; "
                "pass the files of one patient only"
            )
    for syntax in {instance.transfer_syntax for instance in instances}:
        _check_decodable(syntax, series)
    if any(instance.frames > 1 and not has_groups(instance.header) for instance in instances):
        raise _placeless(series)
    colours = {str(header.get("PhotometricInterpretation")) for header in headers} & _COLOUR
    samples = max(int(header.get("SamplesPerPixel") or 1) for header in headers)
    single = series.frame_count == 1 and series.orientation is None
    if (colours or samples > 1) and not single:
        raise SeriesSelectionError(
            f"{series.name} holds {series.frame_count} colour pictures ({', '.join(sorted(colours))}, "
            f"{samples} samples a pixel); one grey value a voxel is needed; "
            "pick a grey series with --series UID"
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


def _placeless(series: SeriesRef) -> SeriesSelectionError:
    return SeriesSelectionError(
        f"{series.name} holds {series.frame_count} frames or pictures without a position in patient space "
        "(cine, time series or views); a volume or one picture is needed; pass one single-frame file"
    )


def _picture(frames: Sequence[Frame], header: Dataset, series: SeriesRef, notes: tuple[str, ...]) -> _Stack:
    """A 2D picture: pixels for millimetres, columns along +x and rows along +y."""
    if len(frames) > 1:
        raise _placeless(series)
    in_colour = (
        int(header.get("SamplesPerPixel") or 1) == 3 or header.get("PhotometricInterpretation") == "PALETTE COLOR"
    )
    shape = (1, *frames[0].shape, *((3,) if in_colour else ()))
    notes = (*notes, "without patient space: the affine counts pixels, not millimetres", *_pixel_notes(header))
    return _Stack(series, tuple(frames), shape, None, None, notes)


def _pixel_mm(header: Dataset) -> tuple[float, float] | None:
    """Distance of neighbouring pixels along a row and down a column of a picture, where PixelSpacing says it."""
    spacing = numbers(header, "PixelSpacing", 2)
    if spacing is None or not all(MIN_MM <= value <= MAX_MM for value in spacing):
        return None
    return spacing[1], spacing[0]  # PS3.3 10.7.1.3: first between rows


def _pixel_notes(header: Dataset) -> list[str]:
    spacing = _pixel_mm(header)
    if spacing is None:
        return []
    told = f"its pixels are {spacing[0]:g} x {spacing[1]:g} mm"
    at_detector = header.get("PixelSpacing") == header.get("ImagerPixelSpacing")  # PS3.3 C.8.11.7.1.1: not calibrated
    return [f"{told} at the detector, smaller in the patient" if at_detector else told]


def _planes(frames: Sequence[Frame], name: str) -> list[Plane]:
    planes = [frame.plane for frame in frames if frame.plane is not None]
    if len(planes) < len(frames):
        lost = next(frame.instance.name for frame in frames if frame.plane is None)
        raise SeriesGeometryError(
            f"{name}: {len(frames) - len(planes)} of {len(frames)} slices name no position, orientation or "
            f"pixel spacing (the first in {lost}); each slice needs all three; leave those files out"
        )
    return planes


def _check_space(headers: Iterable[Dataset], name: str) -> None:
    spaces = {str(header.get("FrameOfReferenceUID") or "") for header in headers}
    if len(spaces) > 1:
        raise SeriesGeometryError(
            f"{name} mixes {len(spaces)} frames of reference ({', '.join(sorted(spaces))}); one is needed, "
            "for positions to compare; pass the files of one frame of reference"
        )


def _grid_notes(grid: Grid, thickness_mm: float | None) -> list[str]:
    notes = []
    if grid.shear_degrees:
        notes.append(
            f"the stack is sheared by {grid.shear_degrees:.2f} degrees in even steps (gantry tilt): "
            "kept as an exact sheared affine, not resampled"
        )
    if len(grid.order) == 1:
        source = "SliceThickness" if thickness_mm else "1 mm, no SliceThickness is given"
        notes.append(f"a single slice: its step along the normal is {source}")
    return notes


def _provenance(stack: _Stack, notes: tuple[str, ...]) -> Provenance:
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
        _pixel_mm(frames[0].instance.header) if stack.grid is None and stack.repair is None else None,
    )


def _without_pixels(instance: Instance) -> Dataset:
    assert instance.dataset is not None
    header = Dataset()
    header.update({element.tag: element for element in instance.dataset if element.tag.group != 0x7FE0})
    header.file_meta = instance.header.file_meta  # type: ignore[attr-defined]
    return header
