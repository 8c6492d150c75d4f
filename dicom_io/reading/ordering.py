"""A series -> its slices in order and the grid that they lie on, from headers alone; what is no volume is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydicom.dataset import Dataset

from dicom_io.errors import SeriesGeometryError, SeriesSelectionError
from dicom_io.reading.checks import PLACE, check_readable, check_rescale, check_space, placeless, without_copies
from dicom_io.reading.completeness import missing_images
from dicom_io.reading.frames import MAX_MM, MAX_VOXELS, MIN_MM, Frame, check_size, frames_of, has_groups, numbers
from dicom_io.reading.geometry import Grid, ImagePlane, even_grid, five_indices
from dicom_io.reading.repair import Repair, plan_repair
from dicom_io.reading.series import SeriesRef
from dicom_io.reading.time_points import choose_time_point

_OTHER_GAP = 0.1  # of the gap that the positions have
_SAME_PLACE_VOXELS = 0.1


@dataclass(frozen=True)
class ReadOptions:
    """What a caller asks for where a source holds more, or less, than one even volume. Nothing of it is done unasked.

    Attributes:
        series_instance_uid: Which series to read where there are several.
        time_point: Which of several time points, echoes or acquisitions to read, from 1.
        resample_gaps: Fill uneven gaps and missing slices by linear interpolation.
        resample_tilt: Put a stack whose slices are shifted sideways (gantry tilt) onto a right-angled grid.
        channels: Read these series of one frame of reference as channels, on the grid of the first (`channels.py`).
        accept_incomplete: Read a series although its own headers count more images than are here.
    """

    series_instance_uid: str | None = None
    time_point: int | None = None
    resample_gaps: bool = False
    resample_tilt: bool = False
    channels: tuple[str, ...] = ()
    accept_incomplete: bool = False


@dataclass(frozen=True)
class Stack:
    """A series that passed the gate: what is left is to decode.

    Attributes:
        series: It.
        frames: Its slices in order along the normal.
        shape: (slices, rows, columns) of what will be decoded, with 3 colours last in a picture in colour.
        grid: Where they lie; None for a picture, and where `repair` says it.
        repair: What is to be resampled, because it was asked for.
        notes: What was found and tolerated.
        incomplete: Whether images are missing by its own headers, and it was asked for all the same.
    """

    series: SeriesRef
    frames: tuple[Frame, ...]
    shape: tuple[int, ...]
    grid: Grid | None
    repair: Repair | None
    notes: tuple[str, ...] = field(default=())
    incomplete: bool = False


def stack_of(series: SeriesRef, options: ReadOptions) -> Stack:
    """The slices of a series on their grid.

    Raises:
        SeriesSelectionError: It is no volume (colour, cine), mixes what cannot be compared, or is too large.
        SeriesGeometryError: The slices do not lie on one even grid.
        UnreadableFileError: A header contradicts itself, or there is no decoder.
    """
    for instance in series.instances:
        check_size(instance)
    instances, notes = without_copies(series)
    headers = [instance.header for instance in instances]
    check_readable(instances, series)
    frames = [frame for instance in instances for frame in frames_of(instance)]
    check_rescale(headers, series)
    if all(frame.plane is None for frame in frames):
        return _picture(frames, headers[0], series, (*series.notes, *notes))
    planes = _planes(frames, series.name)
    check_space(headers, series.name)
    frames, told = choose_time_point(frames, planes, series.name, options.time_point)
    return _even(series, frames, options, (*series.notes, *notes, *told))


def _even(series: SeriesRef, frames: Sequence[Frame], options: ReadOptions, notes: tuple[str, ...]) -> Stack:
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
    notes = (*notes, *_count_notes(frames, grid))
    stack = Stack(series, tuple(frames[index] for index in order), (len(order), *planes[0].shape), grid, repair, notes)
    _check_total(stack)
    return stack


def _check_total(stack: Stack) -> None:
    voxels = max(int(np.prod(stack.shape)), int(np.prod(place_of(stack)[1])))
    if voxels > MAX_VOXELS:
        raise SeriesSelectionError(
            f"{stack.series.name} has {voxels} voxels; at most {MAX_VOXELS} fit; read a part of it"
        )


def place_of(stack: Stack) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine in LPS mm (pixels for a picture) and (columns, rows, slices) of what will be read."""
    slices, rows, columns = stack.shape[:3]
    if stack.repair is not None:
        return stack.repair.affine_lps, stack.repair.shape
    return (np.eye(4) if stack.grid is None else stack.grid.affine_lps), (columns, rows, slices)


def _picture(frames: Sequence[Frame], header: Dataset, series: SeriesRef, notes: tuple[str, ...]) -> Stack:
    """A 2D picture: pixels for millimetres, columns along +x and rows along +y."""
    if len(frames) > 1:
        raise placeless(series)
    in_colour = (
        int(header.get("SamplesPerPixel") or 1) == 3 or header.get("PhotometricInterpretation") == "PALETTE COLOR"
    )
    shape = (1, *frames[0].shape, *((3,) if in_colour else ()))
    absent = [keyword for keyword in PLACE if not header.get(keyword)]
    if "ImagePositionPatient" not in absent and absent:
        notes = (*notes, f"it names a position and no {' and no '.join(absent)}")
    notes = (*notes, "without patient space: the affine counts pixels, not millimetres", *_pixel_notes(header))
    return Stack(series, tuple(frames), shape, None, None, notes)


def pixel_mm(header: Dataset) -> tuple[float, float] | None:
    """Distance of neighbouring pixels along a row and down a column of a picture, where PixelSpacing says it."""
    spacing = numbers(header, "PixelSpacing", 2)
    if spacing is None or not all(MIN_MM <= value <= MAX_MM for value in spacing):
        return None
    return spacing[1], spacing[0]  # PS3.3 10.7.1.3: first between rows


def _pixel_notes(header: Dataset) -> list[str]:
    spacing = pixel_mm(header)
    if spacing is None:
        return []
    told = f"its pixels are {spacing[0]:g} x {spacing[1]:g} mm"
    at_detector = header.get("PixelSpacing") == header.get("ImagerPixelSpacing")  # PS3.3 C.8.11.7.1.1: not calibrated
    return [f"{told} at the detector, smaller in the patient" if at_detector else told]


def _planes(frames: Sequence[Frame], name: str) -> list[ImagePlane]:
    planes = [frame.plane for frame in frames if frame.plane is not None]
    if len(planes) < len(frames):
        lost = next(frame.instance.name for frame in frames if frame.plane is None)
        raise SeriesGeometryError(
            f"{name}: {len(frames) - len(planes)} of {len(frames)} slices name no position, orientation or "
            f"pixel spacing (the first in {lost}); each slice needs all three; leave those files out"
        )
    return planes


def _grid_notes(grid: Grid, thickness_mm: float | None) -> list[str]:
    notes = []
    if grid.shear_degrees:
        notes.append(
            f"the stack is sheared by {grid.shear_degrees:.2f} degrees in even steps (gantry tilt): "
            "kept as an exact sheared affine, not resampled"
        )
    if grid.jitter_mm:
        notes.append(
            f"slices lie up to {grid.jitter_mm:.2f} mm off the even grid fitted to them; objects keep each where it is"
        )
    if len(grid.order) == 1:
        source = "SliceThickness" if thickness_mm else "1 mm, no SliceThickness is given"
        notes.append(f"a single slice: its step along the normal is {source}")
    return notes


def _count_notes(frames: Sequence[Frame], grid: Grid | None) -> list[str]:
    """What the headers say of gaps and numbers of slices, where the slices at hand say otherwise."""
    header, notes = frames[0].instance.header, []
    told = None if has_groups(header) else _number(header, "SpacingBetweenSlices")
    gap = float(np.dot(grid.affine_lps[:3, 2], frames[0].plane.normal)) if grid and frames[0].plane else 0.0
    if told and len(frames) > 1 and abs(abs(told) - gap) > _OTHER_GAP * gap and not frames[0].tile:
        notes.append(
            f"SpacingBetweenSlices says {told:g} mm, the slices lie {gap:g} mm apart: some may never have come here"
        )
    count = _number(header, "NumberOfSlices")  # fewer of a PET series are refused by check_complete
    if count and count != len(frames):
        notes.append(f"the header counts {count:g} slices, {len(frames)} are here")
    return notes


def _number(header: Dataset, keyword: str) -> float | None:
    """A number that nothing hangs on; None where it is absent or is none."""
    try:
        found = numbers(header, keyword, 1)
    except ValueError:
        return None
    return found[0] if found else None


def check_complete(stack: Stack, others: Iterable[SeriesRef], options: ReadOptions) -> Stack:
    """Passes a stack that has all images that its headers count, or whose missing slices were filled in on request.

    Returns:
        The stack; with a note where it is incomplete and was asked for all the same.

    Raises:
        SeriesGeometryError: Images are missing, and nothing was asked for.
    """
    missing = missing_images(stack.series, others) if stack.grid or stack.repair else None
    filled = stack.repair.shape[2] - len(stack.repair.order) if stack.repair else 0
    if missing is None or missing.count <= filled:
        return stack
    told = f"{missing.words}: {missing.count} missing"
    if options.accept_incomplete:
        note = f"read on request although it is incomplete by its own headers: {told}"
        return replace(stack, notes=(*stack.notes, note), incomplete=True)
    raise SeriesGeometryError(
        f"{stack.series.name} is incomplete by its own headers: {told}; all are needed, or a structure could be cut off; "
        "fetch the missing images, or pass --accept-incomplete to read what is here"
    )


def check_ends(stack: Stack, others: Iterable[SeriesRef]) -> None:
    """Passes if no slice that was set aside continues the stack: a wrong word in its header would cost its end."""
    if stack.grid is None:
        return
    to_index = np.linalg.inv(stack.grid.affine_lps)
    for series in others:
        alike = series.set_aside and series.series_instance_uid == stack.series.series_instance_uid
        for frame in [frame for one in series.instances for frame in frames_of(one)] if alike else []:
            if frame.plane is None or frame.shape != stack.shape[1:3]:
                continue
            corners = frame.plane.five_points @ to_index[:3, :3].T + to_index[:3, 3]
            k = float(np.rint(corners[0, 2]))
            expected = np.column_stack([five_indices(frame.shape), np.full(5, k)])
            if k in (-1.0, float(stack.shape[0])) and np.abs(corners - expected).max() < _SAME_PLACE_VOXELS:
                raise SeriesGeometryError(
                    f"{stack.series.name} goes on in {frame.instance.name}, which is set aside as {series.set_aside}; a stack "
                    "without its end would be read; take the wrong word out of its header, or move the file away"
                )
