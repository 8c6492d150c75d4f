"""A series -> its slices in order and the grid that they lie on, from headers alone; what is no volume is refused."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydicom.dataset import Dataset

from dicom_io.errors import SeriesGeometryError, SeriesSelectionError
from dicom_io.reading import checks
from dicom_io.reading.claims import MAX_VOXELS
from dicom_io.reading.completeness import missing_images
from dicom_io.reading.frames import MAX_MM, MIN_MM, Frame, check_size, frames_of, measures_of, numbers, optional_number
from dicom_io.reading.geometry import Grid, ImagePlane, Points, even_grid, five_indices
from dicom_io.reading.repair import Repair, plan_repair
from dicom_io.reading.series import SeriesRef
from dicom_io.reading.time_points import choose_time_point

_OTHER_GAP = 0.1  # as a share of the gap between the positions
_SAME_PLACE_VOXELS = 0.1


@dataclass(frozen=True)
class ReadOptions:
    """The choices of a caller for a source that holds more, or less, than one even volume. No repair is made unless chosen.

    Attributes:
        series_instance_uid: Which series to read if there are several.
        time_point: Which of several time points, echoes or acquisitions to read, from 1.
        by_place: Lay labels that name images of other time points on the one that is read, by their place alone.
        resample_gaps: Fill uneven gaps and missing slices by linear interpolation.
        resample_tilt: Put a stack whose slices are shifted sideways (gantry tilt) onto a right-angled grid.
        channels: Read these series of one frame of reference as channels, on the grid of the first (`channels.py`).
        accept_incomplete: Read a series although its own headers count more images than there are.
        directions: Of a file that states none, NIfTI, NRRD or MetaImage: where its axes run, as in `volume.lps_from`.
        before_pixels: Called with the shape (I, J, K) in voxels and the affine in LPS mm of what will be read, when headers are
            checked and no pixel is decoded; what it raises ends the reading. Not called for a picture or for channels.
    """

    series_instance_uid: str | None = None
    time_point: int | None = None
    resample_gaps: bool = False
    resample_tilt: bool = False
    by_place: bool = False
    channels: tuple[str, ...] = ()
    accept_incomplete: bool = False
    directions: str | None = None
    before_pixels: Callable[[tuple[int, ...], Points], None] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class OrderedSeries:
    """A series that passed every check of its headers: only its pixels are still to be decoded.

    Attributes:
        series: The series.
        frames: Its slices in order along the normal.
        shape: (slices, rows, columns) of what will be decoded, with 3 colours last for a picture in colour.
        grid: The even grid of the slices; None for a picture, and if there is a `repair`.
        repair: The resampling that the caller asked for.
        notes: One sentence for each irregularity that was accepted.
        incomplete: Whether images are missing by its own headers, and the caller accepts that.
        other_times: Keys of the slices of time points that were not chosen.
    """

    series: SeriesRef
    frames: tuple[Frame, ...]
    shape: tuple[int, ...]
    grid: Grid | None
    repair: Repair | None
    notes: tuple[str, ...] = ()
    incomplete: bool = False
    other_times: frozenset[str] = frozenset()

    @property
    def is_picture(self) -> bool:
        """Whether it has no patient space."""
        return self.grid is None and self.repair is None

    @property
    def affine_lps(self) -> Points:
        """Shape (4, 4): index to LPS mm of the volume that will be read; pixels for a picture."""
        if self.repair is not None:
            return self.repair.affine_lps
        return np.eye(4) if self.grid is None else self.grid.affine_lps

    @property
    def volume_shape(self) -> tuple[int, int, int]:
        """(columns, rows, slices) of the volume that will be read."""
        slices, rows, columns = self.shape[:3]
        return (columns, rows, slices) if self.repair is None else self.repair.shape


def order_series(series: SeriesRef, options: ReadOptions) -> OrderedSeries:
    """The slices of a series on their grid.

    Raises:
        SeriesSelectionError: It is no volume (colour, cine), mixes what cannot be compared, or is too large.
        SeriesGeometryError: The slices do not lie on one even grid.
        UnreadableFileError: A header contradicts itself, or there is no decoder.
    """
    # Sizes come first: `frames_of` makes an object for each frame that a header claims.
    for instance in series.instances:
        check_size(instance)
    # A copy would be a second slice at its position, so copies are left out before slices are compared.
    instances, copy_notes = checks.without_copies(series)
    headers = [instance.header for instance in instances]
    checks.check_readable(instances, series)
    frames = [frame for instance in instances for frame in frames_of(instance)]
    checks.check_rescale(frames, series)
    if all(frame.plane is None for frame in frames):
        return _picture(frames, headers[0], series, (*series.notes, *copy_notes))
    planes = _planes(frames, series.name)
    checks.check_one_space(headers, series.name)
    chosen, choice_notes = choose_time_point(frames, planes, series.name, options.time_point)
    ordered = _on_even_grid(series, chosen, options, (*series.notes, *copy_notes, *choice_notes))
    keys, own = ({frame.slice_key for frame in some} for some in (frames, chosen))
    return replace(ordered, other_times=frozenset() if options.by_place else frozenset(keys - own))


def _on_even_grid(
    series: SeriesRef, frames: Sequence[Frame], options: ReadOptions, notes: tuple[str, ...]
) -> OrderedSeries:
    planes = [frame.plane for frame in frames if frame.plane is not None]
    thickness_mm = frames[0].thickness_mm
    grid: Grid | None = None
    try:
        # A single slice has no gap; its thickness is the best that the header says of the third axis.
        grid = even_grid(planes, series.name, single_step_mm=thickness_mm or 1.0)
    # Decision 1: nothing is repaired unless the caller names the repair, so the refusal stands.
    except SeriesGeometryError:
        if not options.resample_gaps and not options.resample_tilt:
            raise
    # An even tilt makes a sheared grid that needs no repair; it is resampled only on request.
    if grid is None or (grid.shear_degrees and options.resample_tilt):
        grid = None
        repair = plan_repair(planes, series.name, gaps=options.resample_gaps, tilt=options.resample_tilt)
        order, notes = repair.order, (*notes, repair.note)
    else:
        repair = None
        order, notes = grid.order, (*notes, *_grid_notes(grid, thickness_mm))
    shape = (len(order), *planes[0].shape)
    notes = (*notes, *_count_notes(frames, grid))
    ordered = OrderedSeries(series, tuple(frames[index] for index in order), shape, grid, repair, notes)
    # A repair may make more voxels than the slices have, so both are limited.
    voxels = max(int(np.prod(ordered.shape)), int(np.prod(ordered.volume_shape)))
    if voxels > MAX_VOXELS:
        raise SeriesSelectionError(f"{series.name} has {voxels} voxels; at most {MAX_VOXELS} fit; read a part of it")
    return ordered


def _picture(frames: Sequence[Frame], header: Dataset, series: SeriesRef, notes: tuple[str, ...]) -> OrderedSeries:
    """A 2D picture: pixels for millimetres, columns along +x and rows along +y."""
    if len(frames) > 1:
        raise checks.without_position(series)
    in_colour = (
        int(header.get("SamplesPerPixel") or 1) == 3 or header.get("PhotometricInterpretation") == "PALETTE COLOR"
    )
    shape = (1, *frames[0].shape, *((3,) if in_colour else ()))
    absent = [keyword for keyword in checks.PLACE_KEYWORDS if not header.get(keyword)]
    if "ImagePositionPatient" not in absent and absent:
        notes = (*notes, f"it names a position and no {' and no '.join(absent)}")
    notes = (*notes, "without patient space: the affine counts pixels, not millimetres", *_pixel_notes(header))
    return OrderedSeries(series, tuple(frames), shape, None, None, notes)


def pixel_mm(header: Dataset) -> tuple[float, float] | None:
    """Distance of neighbouring pixels along a row and down a column of a picture; None if PixelSpacing does not say it."""
    spacing = numbers(header, "PixelSpacing", 2)
    if spacing is None or not all(MIN_MM <= value <= MAX_MM for value in spacing):
        return None
    return spacing[1], spacing[0]  # PS3.3 10.7.1.3: first between rows


def _pixel_notes(header: Dataset) -> list[str]:
    spacing = pixel_mm(header)
    if spacing is None:
        return []
    note = f"its pixels are {spacing[0]:g} x {spacing[1]:g} mm"
    at_detector = header.get("PixelSpacing") == header.get("ImagerPixelSpacing")  # PS3.3 C.8.11.7.1.1: not calibrated
    return [f"{note} at the detector, smaller in the patient" if at_detector else note]


def _planes(frames: Sequence[Frame], name: str) -> list[ImagePlane]:
    planes = [frame.plane for frame in frames if frame.plane is not None]
    if len(planes) < len(frames):
        first = next(frame.instance.name for frame in frames if frame.plane is None)
        raise SeriesGeometryError(
            f"{name}: {len(frames) - len(planes)} of {len(frames)} slices name no position, orientation or "
            f"pixel spacing (the first in {first}); each slice needs all three; leave those files out"
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
            f"slices lie up to {grid.jitter_mm:.2f} mm off the even grid fitted to them; result objects keep the position "
            "of each slice"
        )
    if len(grid.order) == 1:
        source = "SliceThickness" if thickness_mm else "1 mm, no SliceThickness is given"
        notes.append(f"a single slice: its step along the normal is {source}")
    return notes


def _count_notes(frames: Sequence[Frame], grid: Grid | None) -> list[str]:
    """Notes of headers that state another gap or another number of slices than the slices have."""
    header, notes = frames[0].instance.header, []
    # The sign is ignored: in nuclear medicine it gives the direction in which slices are stacked.
    stated = optional_number(measures_of(header), "SpacingBetweenSlices")
    gap = float(np.dot(grid.affine_lps[:3, 2], frames[0].plane.normal)) if grid and frames[0].plane else 0.0
    if stated and len(frames) > 1 and abs(abs(stated) - gap) > _OTHER_GAP * gap and not frames[0].tile:
        notes.append(f"SpacingBetweenSlices says {stated:g} mm, the slices lie {gap:g} mm apart: some may be missing")
    count = optional_number(header, "NumberOfSlices")  # a PET series with fewer is refused by check_complete
    if count and count != len(frames):
        notes.append(f"the header counts {count:g} slices, {len(frames)} were found")
    return notes


def check_complete(ordered: OrderedSeries, others: Iterable[SeriesRef], options: ReadOptions) -> OrderedSeries:
    """Checks that a series has all images that its headers count, or that missing slices are filled in on request.

    Args:
        ordered: The series.
        others: The series beside it; see `missing_images`.
        options: Whether an incomplete series is accepted.

    Returns:
        The series; with a note if it is incomplete and accepted.

    Raises:
        SeriesGeometryError: Images are missing, and the caller does not accept that.
    """
    missing = None if ordered.is_picture else missing_images(ordered.series, others)
    # Decision 26: slices that a repair fills in are not missing.
    filled = ordered.repair.shape[2] - len(ordered.repair.order) if ordered.repair else 0
    if missing is None or missing.count <= filled:
        return ordered
    text = f"{missing.words}: {missing.count} missing"
    if options.accept_incomplete:
        note = f"read on request although it is incomplete by its own headers: {text}"
        return replace(ordered, notes=(*ordered.notes, note), incomplete=True)
    raise SeriesGeometryError(
        f"{ordered.series.name} is incomplete by its own headers: {text}; all are needed, or a structure could be cut off; "
        "fetch the missing images, or pass --accept-incomplete to read the images that exist"
    )


def check_ends(ordered: OrderedSeries, others: Iterable[SeriesRef]) -> None:
    """Raises SeriesGeometryError if a slice that was set aside continues the stack: its header is wrong."""
    if ordered.grid is None:
        return
    to_index = np.linalg.inv(ordered.grid.affine_lps)
    for series in others:
        if not series.set_aside or series.series_instance_uid != ordered.series.series_instance_uid:
            continue
        for frame in [frame for instance in series.instances for frame in frames_of(instance)]:
            if frame.plane is None or frame.shape != ordered.shape[1:3]:
                continue
            corners = frame.plane.five_points @ to_index[:3, :3].T + to_index[:3, 3]
            k = float(np.rint(corners[0, 2]))
            expected = np.column_stack([five_indices(frame.shape), np.full(5, k)])
            # Only the places before the first slice and behind the last count: between them nothing is missing.
            if k in (-1.0, float(ordered.shape[0])) and np.abs(corners - expected).max() < _SAME_PLACE_VOXELS:
                raise SeriesGeometryError(
                    f"{ordered.series.name} goes on in {frame.instance.name}, which is set aside as {series.set_aside}; the "
                    "whole stack is needed; correct the header of that file, or move it away"
                )
