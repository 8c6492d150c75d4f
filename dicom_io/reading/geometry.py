"""From the planes of a series to one even grid in patient space, or a refusal that names the fault.

All positions are LPS millimetres. The equation is DICOM PS3.3 C.7.6.2.1.1: ImagePositionPatient is the CENTRE
of the first voxel, ImageOrientationPatient holds the direction of a row (along which the column index grows)
and then of a column, and PixelSpacing holds the distance between rows first, between columns second.

How uneven may slices lie? The offset of a slice is the distance between its ImagePositionPatient and its place on an even
grid, measured along the normal and sideways; each of the two has to keep the limit.

1. Up to SILENT_OFFSET_MM (`silent_offset_mm`): the grid runs from the first slice to the last; no note.
2. Up to `jitter_limit_mm`, which depends on gap and pixel size: the grid is the line fitted to all slices; with a note.
3. More: refused. Where the odd gaps are multiples of the usual gap, the refusal says that slices are missing; where a gap
   differs from the usual gap, that the gaps are uneven; else that the stack is not straight.

The corners and the middle of every slice must lie within CORNER_OFFSET_MM of the grid; in case 2 they may lie as far off as
`jitter_limit_mm`, where that is more. The two limits are never more than half a pixel.

Who else asks how slices lie:

- `repair.py` compares gaps with the usual gap, and interpolates what is more uneven than SILENT_OFFSET_MM. It is asked after a
  refusal, or to remove a tilt, and only if the caller allows it.
- `stacks.py` and `time_points.py` take slices within `silent_offset_mm` for slices at one position.
- `objects/source_grid.py` compares the grid of a result with each slice's own header, corners included. It allows what
  `objects/slice_positions.tolerance_mm` gives: 0.05 mm, at most a quarter of a gap, so that a result cannot be taken for that
  of the next slice. It allows `jitter_limit_mm` if that is more, because a fitted grid leaves each slice that far from its
  header.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import SeriesGeometryError

Points = NDArray[np.float64]

SILENT_OFFSET_MM = 0.02
"""The largest offset of a slice that needs no note. Positions that a writer rounded to 0.01 mm stay below it."""

JITTER_SHARE, MAX_JITTER_MM = 0.05, 0.1
"""The largest offset that is accepted with a note: this share of the gap between slices, and at most so many mm. Positions
rounded to 0.1 mm are off by 0.05 mm along each axis, and the table of a scanner may stop a little short.
"""

CORNER_OFFSET_MM = 0.05
"""The largest offset of a slice's corners and middle: direction cosines of four decimals move a corner at 0.5 m by some
hundredths of a millimetre.
"""

MAX_SHEAR_DEGREES = 45.0
"""The most that a gantry tilt may shear a stack; scanners reach 30. Slices with more shear are no stack."""

_COSINE_TOLERANCE = 1e-3
# Smaller turns are left to the check of the corners, which measures them in millimetres.
_MIXED_DEGREES = 0.5
_MAX_LISTED = 3  # missing slices in one message


@dataclass(frozen=True)
class ImagePlane:
    """Where the pixel matrix of one slice lies, by its own header (Image Plane module, PS3.3 C.7.6.2).

    Attributes:
        position: ImagePositionPatient, LPS mm.
        orientation: ImageOrientationPatient, direction of a row and then of a column, unit vectors in LPS.
        pixel_spacing: PixelSpacing in mm: between rows, between columns.
        shape: Rows, Columns.
    """

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_spacing: tuple[float, ...]
    shape: tuple[int, int]

    @property
    def normal(self) -> Points:
        """Shape (3,): unit vector along which slices are counted, row direction x column direction."""
        # Cosines in a header are rounded, so their product is not exactly a unit vector.
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return np.asarray(normal / np.linalg.norm(normal))

    @property
    def steps(self) -> Points:
        """Shape (3, 2), mm: the step for one column (array axis I) and for one row (array axis J)."""
        between_rows, between_columns = self.pixel_spacing
        along_row, along_column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        return np.stack([along_row * between_columns, along_column * between_rows], axis=1)

    @property
    def five_points(self) -> Points:
        """Shape (5, 3), LPS mm: the four corner voxels' centres and the middle of the matrix."""
        return np.array(self.position) + five_indices(self.shape) @ self.steps.T


@dataclass(frozen=True)
class Grid:
    """One even grid through all planes.

    Attributes:
        affine_lps: Shape (4, 4): index (column, row, slice, 1) to LPS mm. Sheared where the gantry tilted.
        order: `order[k]` is the index, into the planes given, of slice k.
        shear_degrees: Angle between the step from slice to slice and the normal; 0 for a right-angled grid.
        jitter_mm: The largest offset of a slice where it is above SILENT_OFFSET_MM; else 0.
    """

    affine_lps: Points
    order: tuple[int, ...]
    shear_degrees: float
    jitter_mm: float = 0.0


def five_indices(shape: tuple[int, int]) -> Points:
    """Shape (5, 2): (column, row) indices of the corners and the middle of a (rows, columns) matrix."""
    last_row, last_column = shape[0] - 1.0, shape[1] - 1.0
    corners = [(0.0, 0.0), (last_column, 0.0), (0.0, last_row), (last_column, last_row)]
    return np.array([*corners, (last_column / 2, last_row / 2)])


def even_grid(planes: Sequence[ImagePlane], name: str = "the series", *, single_step_mm: float = 1.0) -> Grid:
    """The grid that every plane lies on, slices in increasing position along the normal.

    Args:
        planes: One or more, in any order.
        name: How a message calls the series, such as "series 1.2.3".
        single_step_mm: Step along the normal if there is only one plane, greater than 0.

    Returns:
        A grid on which corners and middle of every slice lie where the slice's own header puts them, within
        CORNER_OFFSET_MM, or within `jitter_limit_mm` if the slices jitter and that is more.

    Raises:
        SeriesGeometryError: Differing sizes, spacings or orientations, positions used twice, missing slices,
            uneven gaps, slices shifted sideways by differing amounts, or header values that are no geometry.
    """
    check_planes(planes, name)
    order = slice_order(planes)
    ordered = [planes[index] for index in order]
    affine_lps, jitter_mm = _fit_grid(ordered, _slice_step(ordered, single_step_mm), name)
    _check_five_points(ordered, affine_lps, jitter_mm, name)
    step = affine_lps[:3, 2]
    shear = _shear_degrees(step, ordered)
    if shear > MAX_SHEAR_DEGREES:
        raise SeriesGeometryError(
            f"{name} goes sideways: from slice to slice by {np.linalg.norm(step):.2f} mm at {shear:.1f} degrees to the normal; "
            f"at most {MAX_SHEAR_DEGREES:g} degrees can be a gantry tilt; pass the files of one stack only"
        )
    return Grid(affine_lps, order, shear, jitter_mm)


def check_planes(planes: Sequence[ImagePlane], name: str) -> None:
    """Raises SeriesGeometryError unless all planes have one size, spacing and orientation, and no position is used twice."""
    # Duplicates come last: positions along a normal mean nothing before all planes have one valid orientation.
    for check in (_check_values, _check_sizes, _check_orientations, _check_duplicates):
        check(planes, name)


def plane_affine(plane: ImagePlane, step: Points) -> Points:
    """Shape (4, 4): index (column, row, slice, 1) to LPS mm; slices lie `step` (shape (3,), mm) apart."""
    affine_lps = np.eye(4)
    affine_lps[:3, :2] = plane.steps
    affine_lps[:3, 2] = step
    affine_lps[:3, 3] = plane.position
    return affine_lps


def slice_order(planes: Sequence[ImagePlane]) -> tuple[int, ...]:
    """Indices of the planes in increasing position along the first plane's normal."""
    return tuple(np.argsort(depths(planes), kind="stable").tolist())


def same_positions(planes: Sequence[ImagePlane]) -> list[tuple[int, ...]]:
    """Indices of planes that share a position along the normal (within `silent_offset_mm`), in order of depth."""
    depths_mm, tolerance_mm = depths(planes), silent_offset_mm(planes)
    groups: list[list[int]] = []
    for index in slice_order(planes):
        if groups and depths_mm[index] - depths_mm[groups[-1][-1]] <= tolerance_mm:
            groups[-1].append(index)
        else:
            groups.append([index])
    return [tuple(group) for group in groups if len(group) > 1]


def silent_offset_mm(planes: Sequence[ImagePlane]) -> float:
    """The largest offset that needs no note, in mm: SILENT_OFFSET_MM, or half a pixel if that is less (micro-CT)."""
    return min(SILENT_OFFSET_MM, *(min(plane.pixel_spacing) / 2 for plane in planes))


def jitter_limit_mm(gap_mm: float, pixel_mm: float) -> float:
    """The largest offset that is accepted at all, in mm: JITTER_SHARE of the gap, at most MAX_JITTER_MM and half a pixel.

    Args:
        gap_mm: Usual distance of neighbouring slices along the normal.
        pixel_mm: Smaller of the distances between rows and between columns.

    Returns:
        Never less than what `silent_offset_mm` accepts.
    """
    return min(pixel_mm / 2, max(SILENT_OFFSET_MM, min(MAX_JITTER_MM, JITTER_SHARE * gap_mm)))


def angle_degrees(first: Points, second: Points) -> float:
    """Angle between two vectors of shape (3,), 0 to 180; exact for tiny angles too."""
    # The arccosine of a value near 1 loses half of the digits; arctan2 loses none.
    sine, cosine = np.linalg.norm(np.cross(first, second)), np.dot(first, second)
    return float(np.degrees(np.arctan2(sine, cosine)))


def depths(planes: Sequence[ImagePlane]) -> Points:
    """Shape (N,), mm: position of each plane along the first plane's normal."""
    return np.array([plane.position for plane in planes]) @ planes[0].normal


def _fit_grid(ordered: Sequence[ImagePlane], step: Points, name: str) -> tuple[Points, float]:
    """Affine, index to LPS mm, and the jitter in mm: from the first slice to the last with jitter 0, or fitted to all slices.

    Raises:
        SeriesGeometryError: The slices lie on neither grid.
    """
    # Decision 36: a stack within the silent offset keeps the grid from its first slice to its last, bit by bit.
    affine_lps = plane_affine(ordered[0], step)
    if np.max(_offsets_mm(ordered, affine_lps)) <= silent_offset_mm(ordered):
        return affine_lps, 0.0
    positions, numbers = np.array([plane.position for plane in ordered]), np.arange(len(ordered))
    # least squares over all slices: a line from the first to the last would be tilted by the jitter of these two
    slope = np.polynomial.polynomial.polyfit(numbers, positions, 1)[1]
    upright = ordered[0].normal * np.dot(slope, ordered[0].normal)
    for fitted_step in (upright, slope):  # a sheared grid only if no right-angled grid fits
        affine_lps[:3, 2] = fitted_step
        # For a given step, the mean of the remainders is the origin of least squares.
        affine_lps[:3, 3] = (positions - numbers[:, None] * fitted_step).mean(axis=0)
        jitter_mm = float(np.max(_offsets_mm(ordered, affine_lps)))
        if jitter_mm <= _stack_jitter_limit_mm(ordered):
            return affine_lps, jitter_mm
    # Missing slices and uneven gaps have messages of their own; any other stack that comes here is not straight.
    _check_gaps(ordered, name)
    raise _not_straight(ordered, plane_affine(ordered[0], step), name)


def _offsets_mm(ordered: Sequence[ImagePlane], affine_lps: Points) -> tuple[Points, Points]:
    """Distances of the slices from their places on a grid, in mm: along the normal and sideways, shape (N,) each."""
    even = affine_lps[:3, 3] + np.arange(len(ordered))[:, None] * affine_lps[:3, 2]
    offsets = np.array([plane.position for plane in ordered]) - even
    along = offsets @ ordered[0].normal
    return np.abs(along), np.linalg.norm(offsets - np.outer(along, ordered[0].normal), axis=1)


def _stack_jitter_limit_mm(ordered: Sequence[ImagePlane]) -> float:
    # The median, because a missing slice enlarges the mean.
    gap_mm = float(np.median(np.diff(depths(ordered))))
    return jitter_limit_mm(gap_mm, min(min(plane.pixel_spacing) for plane in ordered))


def _slice_step(ordered: Sequence[ImagePlane], single_step_mm: float) -> Points:
    if len(ordered) == 1:
        return ordered[0].normal * single_step_mm
    return np.subtract(ordered[-1].position, ordered[0].position) / (len(ordered) - 1)


def _shear_degrees(step: Points, ordered: Sequence[ImagePlane]) -> float:
    """The angle of the shear, or 0 where the whole stack moves sideways by no more than the silent offset."""
    normal = ordered[0].normal
    sideways = np.linalg.norm(step - normal * np.dot(step, normal)) * (len(ordered) - 1)
    return angle_degrees(step, normal) if sideways > silent_offset_mm(ordered) else 0.0


def _check_values(planes: Sequence[ImagePlane], name: str) -> None:
    for plane in planes:
        numbers = np.array([*plane.position, *plane.orientation, *plane.pixel_spacing])
        if not np.isfinite(numbers).all() or min(plane.pixel_spacing) <= 0 or min(plane.shape) < 1:
            raise SeriesGeometryError(
                f"{name} has a slice with position {_text(plane.position)}, spacing {_text(plane.pixel_spacing)} mm and "
                f"{plane.shape[0]}x{plane.shape[1]} pixels; finite numbers and sizes above 0 are needed; export the series "
                "again from its source"
            )
        _check_cosines(plane, name)


def _check_cosines(plane: ImagePlane, name: str) -> None:
    row, column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(np.dot(row, column))) > _COSINE_TOLERANCE:
        raise SeriesGeometryError(
            f"{name} has ImageOrientationPatient {_text(plane.orientation)}, vectors of lengths {lengths[0]:.4f} and "
            f"{lengths[1]:.4f} at {angle_degrees(row, column):.2f} degrees; two unit vectors at 90 degrees are needed; export "
            "the series again from its source"
        )


def _check_sizes(planes: Sequence[ImagePlane], name: str) -> None:
    shapes = sorted({plane.shape for plane in planes})
    if len(shapes) > 1:
        sizes = ", ".join(f"{rows}x{columns}" for rows, columns in shapes)
        raise SeriesGeometryError(
            f"{name} mixes slices of {sizes} pixels (rows x columns); one size is needed; pass the files of one size only"
        )
    spacings = np.array([plane.pixel_spacing for plane in planes])
    # differences of spacing add up along a row: what counts is how far they move the last pixel
    if np.ptp(spacings, axis=0).max() * max(shapes[0]) > CORNER_OFFSET_MM:
        raise SeriesGeometryError(
            f"{name} mixes pixel spacings from {_text(spacings.min(axis=0))} to {_text(spacings.max(axis=0))} mm; one spacing "
            "is needed; pass the files of one spacing only"
        )


def _check_orientations(planes: Sequence[ImagePlane], name: str) -> None:
    first = np.array(planes[0].orientation).reshape(2, 3)
    # Most planes have the orientation of the first one, to the last digit.
    others = {plane.orientation: np.array(plane.orientation).reshape(2, 3) for plane in planes}
    turn_of = {given: max(angle_degrees(first[n], other[n]) for n in (0, 1)) for given, other in others.items()}
    turns = [turn_of[plane.orientation] for plane in planes]
    turned = sum(turn > _MIXED_DEGREES for turn in turns)
    if turned:
        raise SeriesGeometryError(
            f"{name} mixes orientations: {turned} of {len(planes)} slices are turned by up to {max(turns):.1f} degrees against "
            "the first; one orientation is needed; pass the files of one orientation only"
        )


def _check_duplicates(planes: Sequence[ImagePlane], name: str) -> None:
    groups = same_positions(planes)
    if groups:
        first = planes[groups[0][0]].position
        raise SeriesGeometryError(
            f"{name} has up to {max(map(len, groups))} slices at one position, at {len(groups)} positions (the first at "
            f"{_text(first)} mm); one slice a position is needed; pass the files of one time point, echo or copy only"
        )


def _check_gaps(ordered: Sequence[ImagePlane], name: str) -> None:
    gaps = np.diff(depths(ordered))
    usual = float(np.median(gaps))
    # Decision 36: a missing slice is to be seen in an even stack and in a stack that jitters.
    # twice the limit, because both ends of a gap may jitter
    for tolerance_mm in (silent_offset_mm(ordered), 2 * _stack_jitter_limit_mm(ordered)):
        odd = np.flatnonzero(np.abs(gaps - usual) > tolerance_mm)
        multiples = np.round(gaps[odd] / usual)
        # The usual gap may be off by the tolerance, and a gap of n slices by n times as much.
        near = np.abs(gaps[odd] - multiples * usual) <= tolerance_mm * multiples
        if odd.size and (multiples >= 2).all() and near.all():
            raise _missing_slices(ordered, gaps, odd, int((multiples - 1).sum()), name)
    odd = np.flatnonzero(np.abs(gaps - usual) > silent_offset_mm(ordered))
    if odd.size:
        raise SeriesGeometryError(
            f"{name} has slice gaps from {gaps.min():.2f} to {gaps.max():.2f} mm ({odd.size} of {gaps.size} differ from the "
            f"usual {usual:.2f} mm); {_even_gaps_needed(ordered)}; pass --resample-gaps, or its evenly spaced part only"
        )


def _missing_slices(
    ordered: Sequence[ImagePlane], gaps: Points, odd: NDArray[np.intp], missing: int, name: str
) -> SeriesGeometryError:
    places = [
        f"between slices {k + 1} and {k + 2} ({gaps[k]:.2f} mm, from {_text(ordered[k].position)} on)"
        for k in odd[:_MAX_LISTED]
    ]
    more = f" and {odd.size - _MAX_LISTED} more places" if odd.size > _MAX_LISTED else ""
    return SeriesGeometryError(
        f"{name} lacks {missing} of {gaps.size + 1 + missing} slices, counted along the normal: {', '.join(places)}{more}, "
        f"where the usual gap is {np.median(gaps):.2f} mm; {_even_gaps_needed(ordered)}; fetch the missing slices, or pass "
        "--resample-gaps to fill in between"
    )


def _even_gaps_needed(ordered: Sequence[ImagePlane]) -> str:
    return f"even gaps are needed, with each slice at most {_stack_jitter_limit_mm(ordered):.3g} mm off its even place"


def _not_straight(ordered: Sequence[ImagePlane], affine_lps: Points, name: str) -> SeriesGeometryError:
    """The refusal of slices whose gaps are even but add up to an offset, or whose tilt is uneven."""
    along, sideways = _offsets_mm(ordered, affine_lps)
    worst = int(np.argmax(np.maximum(along, sideways)))
    return SeriesGeometryError(
        f"{name} is not one straight stack: slice {worst + 1} of {len(ordered)} lies {along[worst]:.2f} mm along the normal "
        f"and {sideways[worst]:.2f} mm sideways off the even line from first to last; at most "
        f"{_stack_jitter_limit_mm(ordered):g} mm is needed; pass --resample-tilt, or its straight part only"
    )


def _check_five_points(ordered: Sequence[ImagePlane], affine_lps: Points, jitter_mm: float, name: str) -> None:
    # The position of a slice does not show that it is turned or stretched; its corners do.
    limit_mm = max(CORNER_OFFSET_MM, _stack_jitter_limit_mm(ordered)) if jitter_mm else CORNER_OFFSET_MM
    in_plane = five_indices(ordered[0].shape) @ affine_lps[:3, :2].T
    for k, plane in enumerate(ordered):
        expected = in_plane + k * affine_lps[:3, 2] + affine_lps[:3, 3]
        offset_mm = float(np.linalg.norm(plane.five_points - expected, axis=1).max())
        if offset_mm > limit_mm:
            raise SeriesGeometryError(
                f"{name} is not one grid: a corner of slice {k + 1} of {len(ordered)} lies {offset_mm:.2f} mm off the grid of "
                "the first slice, because orientation or spacing differ from slice to slice; at most "
                f"{limit_mm:g} mm is needed; pass the files of one orientation only"
            )


def _text(numbers: Sequence[float] | Points) -> str:
    return "(" + ", ".join(f"{number:.6g}" for number in numbers) + ")"
