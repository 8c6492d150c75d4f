"""From the planes of a series to one even grid in patient space, or a refusal that names the fault.

All positions are LPS millimetres. The equation is DICOM PS3.3 C.7.6.2.1.1: ImagePositionPatient is the CENTRE
of the first voxel, ImageOrientationPatient holds the direction of a row (along which the column index grows)
and then of a column, and PixelSpacing holds the distance between rows first, between columns second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import SeriesGeometryError

Points = NDArray[np.float64]

TOLERANCE_MM = 0.02
"""How far a slice may lie from its even place without a word: positions rounded to 0.01 mm pass."""

JITTER_SHARE, MOST_JITTER_MM = 0.05, 0.1
"""How far it may lie from the line fitted to all, with a note: a part of the gap, and a bound. Positions rounded to 0.1 mm are
off by 0.05 mm along each axis, and tables stop a little short; objects keep each slice at its own place.
"""

FIVE_POINT_TOLERANCE_MM = 0.05
"""The same for corners and centre: cosines of four decimals add some hundredths over half a metre."""

MOST_SHEAR_DEGREES = 45.0
"""The most that a gantry tilt may shear a stack; scanners reach 30. Beyond, the slices are no stack."""

_COSINE_TOLERANCE = 1e-3
_MIXED_DEGREES = 0.5
_MOST_TOLD = 3  # places in one message


@dataclass(frozen=True)
class Plane:
    """Where the pixel matrix of one slice lies, as its own header says.

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
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return normal / np.linalg.norm(normal)

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
        jitter_mm: How far slices lie off it at most, where that is more than TOLERANCE_MM; else 0.
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


def even_grid(planes: Sequence[Plane], name: str = "the series", *, single_step_mm: float = 1.0) -> Grid:
    """The grid that every plane lies on, slices in increasing position along the normal.

    Args:
        planes: One or more, in any order.
        name: How a message calls the series, such as "series 1.2.3".
        single_step_mm: Step along the normal where there is but one plane, greater than 0.

    Returns:
        A grid on which the five points of every slice lie where the slice's own header puts them, within
        FIVE_POINT_TOLERANCE_MM or what `jitter_allowed_mm` says, if that is more.

    Raises:
        SeriesGeometryError: Differing sizes, spacings or orientations, positions used twice, missing slices,
            uneven gaps, slices shifted sideways by differing amounts, or header values that are no geometry.
    """
    check_planes(planes, name)
    order = slice_order(planes)
    ordered = [planes[index] for index in order]
    affine_lps, jitter_mm = _fitted(ordered, _slice_step(ordered, single_step_mm), name)
    _check_five_points(ordered, affine_lps, jitter_mm, name)
    step = affine_lps[:3, 2]
    shear = _shear_degrees(step, ordered)
    if shear > MOST_SHEAR_DEGREES:
        raise _fault(
            f"{name} goes sideways: from slice to slice by {np.linalg.norm(step):.2f} mm at {shear:.1f} degrees to the normal",
            f"at most {MOST_SHEAR_DEGREES:g} degrees can be a gantry tilt",
            "pass the files of one stack only",
        )
    return Grid(affine_lps, order, shear, jitter_mm)


def check_planes(planes: Sequence[Plane], name: str) -> None:
    """Passes planes of one size, spacing and orientation, no position twice. Raises SeriesGeometryError."""
    for check in (_check_values, _check_sizes, _check_orientations, _check_duplicates):
        check(planes, name)


def plane_affine(plane: Plane, step: Points) -> Points:
    """Shape (4, 4): index (column, row, slice, 1) to LPS mm; slices lie `step` (shape (3,), mm) apart."""
    affine_lps = np.eye(4)
    affine_lps[:3, :2] = plane.steps
    affine_lps[:3, 2] = step
    affine_lps[:3, 3] = plane.position
    return affine_lps


def slice_order(planes: Sequence[Plane]) -> tuple[int, ...]:
    """Indices of the planes in increasing position along the first plane's normal."""
    return tuple(int(index) for index in np.argsort(depths(planes), kind="stable"))


def same_positions(planes: Sequence[Plane]) -> list[tuple[int, ...]]:
    """Groups of indices of planes that share a position along the normal within the tolerance, by depth."""
    found, tolerance_mm = depths(planes), tolerance_of(planes)
    groups: list[list[int]] = []
    for index in slice_order(planes):
        if groups and found[index] - found[groups[-1][-1]] <= tolerance_mm:
            groups[-1].append(index)
        else:
            groups.append([index])
    return [tuple(group) for group in groups if len(group) > 1]


def tolerance_of(planes: Sequence[Plane]) -> float:
    """How far in mm a slice may lie from its even place: TOLERANCE_MM, or half a pixel where that is less (micro-CT)."""
    return min(TOLERANCE_MM, *(min(plane.pixel_spacing) / 2 for plane in planes))


def jitter_allowed_mm(gap_mm: float, pixel_mm: float) -> float:
    """How far a slice may lie from an even grid, by the gap between slices and the smallest distance of pixels."""
    return max(min(TOLERANCE_MM, pixel_mm / 2), min(MOST_JITTER_MM, JITTER_SHARE * gap_mm, pixel_mm / 2))


def angle_degrees(first: Points, second: Points) -> float:
    """Angle between two vectors of shape (3,), 0 to 180; exact for tiny angles too."""
    sine, cosine = np.linalg.norm(np.cross(first, second)), np.dot(first, second)
    return float(np.degrees(np.arctan2(sine, cosine)))


def depths(planes: Sequence[Plane]) -> Points:
    """Shape (N,), mm: position of each plane along the first plane's normal."""
    return np.array([plane.position for plane in planes]) @ planes[0].normal


def _fitted(ordered: Sequence[Plane], step: Points, name: str) -> tuple[Points, float]:
    """Affine in LPS mm from the first slice to the last, with jitter 0, if all lie on it; else the line nearest to all.

    Raises:
        SeriesGeometryError: They lie on neither.
    """
    affine_lps = plane_affine(ordered[0], step)
    if np.max(_stray(ordered, affine_lps)) <= tolerance_of(ordered):
        return affine_lps, 0.0
    positions, numbers = np.array([plane.position for plane in ordered]), np.arange(len(ordered))
    slope = np.polynomial.polynomial.polyfit(numbers, positions, 1)[1]
    upright = ordered[0].normal * np.dot(slope, ordered[0].normal)
    for one in (upright, slope):  # a shear only where nothing else fits
        affine_lps[:3, 2], affine_lps[:3, 3] = one, (positions - numbers[:, None] * one).mean(axis=0)
        jitter_mm = float(np.max(_stray(ordered, affine_lps)))
        if jitter_mm <= _jitter_allowed(ordered):
            return affine_lps, jitter_mm
    _check_gaps(ordered, name)
    raise _not_straight(ordered, plane_affine(ordered[0], step), name)


def _stray(ordered: Sequence[Plane], affine_lps: Points) -> tuple[Points, Points]:
    """How far each slice lies off its place on a grid, in mm: along the normal and sideways, shape (N,) each."""
    even = affine_lps[:3, 3] + np.arange(len(ordered))[:, None] * affine_lps[:3, 2]
    stray = np.array([plane.position for plane in ordered]) - even
    along = stray @ ordered[0].normal
    return np.abs(along), np.linalg.norm(stray - np.outer(along, ordered[0].normal), axis=1)


def _jitter_allowed(ordered: Sequence[Plane]) -> float:
    gap_mm = float(np.median(np.diff(depths(ordered))))
    return jitter_allowed_mm(gap_mm, min(min(plane.pixel_spacing) for plane in ordered))


def _slice_step(ordered: Sequence[Plane], single_step_mm: float) -> Points:
    if len(ordered) == 1:
        return ordered[0].normal * single_step_mm
    return (np.array(ordered[-1].position) - np.array(ordered[0].position)) / (len(ordered) - 1)


def _shear_degrees(step: Points, ordered: Sequence[Plane]) -> float:
    """The angle of the shear, or 0 where the whole stack moves sideways by less than the tolerance."""
    normal = ordered[0].normal
    sideways = np.linalg.norm(step - normal * np.dot(step, normal)) * (len(ordered) - 1)
    return angle_degrees(step, normal) if sideways > tolerance_of(ordered) else 0.0


def _check_values(planes: Sequence[Plane], name: str) -> None:
    for plane in planes:
        numbers = np.array([*plane.position, *plane.orientation, *plane.pixel_spacing])
        if not np.isfinite(numbers).all() or min(plane.pixel_spacing) <= 0 or min(plane.shape) < 1:
            found = f"position {_text(plane.position)}, spacing {_text(plane.pixel_spacing)} mm"
            raise _fault(
                f"{name} has a slice with {found} and {plane.shape[0]}x{plane.shape[1]} pixels",
                "finite numbers and sizes above 0 are needed",
                "export the series again from its source",
            )
        _check_cosines(plane, name)


def _check_cosines(plane: Plane, name: str) -> None:
    row, column = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(np.dot(row, column))) > _COSINE_TOLERANCE:
        raise _fault(
            f"{name} has ImageOrientationPatient {_text(plane.orientation)}, vectors of lengths "
            f"{lengths[0]:.4f} and {lengths[1]:.4f} at {angle_degrees(row, column):.2f} degrees",
            "two unit vectors at 90 degrees are needed",
            "export the series again from its source",
        )


def _check_sizes(planes: Sequence[Plane], name: str) -> None:
    shapes = sorted({plane.shape for plane in planes})
    if len(shapes) > 1:
        found = ", ".join(f"{rows}x{columns}" for rows, columns in shapes)
        raise _fault(
            f"{name} mixes slices of {found} pixels (rows x columns)",
            "one size is needed",
            "pass the files of one size only",
        )
    spacings = np.array([plane.pixel_spacing for plane in planes])
    if np.ptp(spacings, axis=0).max() * max(shapes[0]) > FIVE_POINT_TOLERANCE_MM:
        raise _fault(
            f"{name} mixes pixel spacings from {_text(spacings.min(axis=0))} to {_text(spacings.max(axis=0))} mm",
            "one spacing is needed",
            "pass the files of one spacing only",
        )


def _check_orientations(planes: Sequence[Plane], name: str) -> None:
    first = np.array(planes[0].orientation).reshape(2, 3)
    others = [np.array(plane.orientation).reshape(2, 3) for plane in planes]
    turns = [max(angle_degrees(first[n], other[n]) for n in (0, 1)) for other in others]
    turned = sum(turn > _MIXED_DEGREES for turn in turns)
    if turned:
        raise _fault(
            f"{name} mixes orientations: {turned} of {len(planes)} slices are turned by up to "
            f"{max(turns):.1f} degrees against the first",
            "one orientation is needed",
            "pass the files of one orientation only",
        )


def _check_duplicates(planes: Sequence[Plane], name: str) -> None:
    groups = same_positions(planes)
    if groups:
        first = planes[groups[0][0]].position
        raise _fault(
            f"{name} has up to {max(map(len, groups))} slices at one position, at {len(groups)} positions "
            f"(the first at {_text(first)} mm)",
            "one slice a position is needed",
            "pass the files of one time point, echo or copy only",
        )


def _check_gaps(ordered: Sequence[Plane], name: str) -> None:
    gaps = np.diff(depths(ordered))
    usual = float(np.median(gaps)) if gaps.size else 0.0
    for tolerance_mm in (tolerance_of(ordered), 2 * _jitter_allowed(ordered)):
        odd = np.flatnonzero(np.abs(gaps - usual) > tolerance_mm)
        multiples = np.round(gaps[odd] / usual)
        near = np.abs(gaps[odd] - multiples * usual) <= tolerance_mm * multiples
        if odd.size and (multiples >= 2).all() and near.all():
            raise _missing_slices(ordered, gaps, odd, int((multiples - 1).sum()), name)
    odd = np.flatnonzero(np.abs(gaps - usual) > tolerance_of(ordered))
    if odd.size:
        raise _fault(
            f"{name} has slice gaps from {gaps.min():.2f} to {gaps.max():.2f} mm ({odd.size} of {gaps.size} "
            f"differ from the usual {usual:.2f} mm)",
            f"one even gap is needed (tolerance {_jitter_allowed(ordered):g} mm)",
            "pass --resample-gaps, or its evenly spaced part only",
        )


def _missing_slices(
    ordered: Sequence[Plane], gaps: Points, odd: NDArray[np.intp], missing: int, name: str
) -> SeriesGeometryError:
    places = [
        f"between slices {k + 1} and {k + 2} ({gaps[k]:.2f} mm, from {_text(ordered[k].position)} on)"
        for k in odd[:_MOST_TOLD]
    ]
    more = f" and {odd.size - _MOST_TOLD} more places" if odd.size > _MOST_TOLD else ""
    return _fault(
        f"{name} lacks {missing} of {gaps.size + 1 + missing} slices, counted along the normal: {', '.join(places)}{more}, "
        f"where the usual gap is {np.median(gaps):.2f} mm",
        f"one even gap is needed (tolerance {_jitter_allowed(ordered):g} mm)",
        "fetch the missing slices, or pass --resample-gaps to fill in between",
    )


def _not_straight(ordered: Sequence[Plane], affine_lps: Points, name: str) -> SeriesGeometryError:
    """Small faults add up, and a tilt may be uneven: every position must lie on one line in even steps."""
    along, sideways = _stray(ordered, affine_lps)
    worst = int(np.argmax(np.maximum(along, sideways)))
    return _fault(
        f"{name} is not one straight stack: slice {worst + 1} of {len(ordered)} lies "
        f"{along[worst]:.2f} mm along the normal and {sideways[worst]:.2f} mm sideways "
        "off the even line from first to last",
        f"at most {_jitter_allowed(ordered):g} mm is needed",
        "pass --resample-tilt, or its straight part only",
    )


def _check_five_points(ordered: Sequence[Plane], affine_lps: Points, jitter_mm: float, name: str) -> None:
    allowed_mm = max(FIVE_POINT_TOLERANCE_MM, _jitter_allowed(ordered)) if jitter_mm else FIVE_POINT_TOLERANCE_MM
    in_plane = five_indices(ordered[0].shape) @ affine_lps[:3, :2].T
    for k, plane in enumerate(ordered):
        expected = in_plane + k * affine_lps[:3, 2] + affine_lps[:3, 3]
        stray = float(np.linalg.norm(plane.five_points - expected, axis=1).max())
        if stray > allowed_mm:
            raise _fault(
                f"{name} is not one grid: a corner of slice {k + 1} of {len(ordered)} lies {stray:.2f} mm "
                "off the grid of the first slice, because orientation or spacing wander",
                f"at most {allowed_mm:g} mm is needed",
                "pass the files of one orientation only",
            )


def _fault(found: str, needed: str, advice: str) -> SeriesGeometryError:
    return SeriesGeometryError(f"{found}; {needed}; {advice}")


def _text(numbers: Sequence[float] | Points) -> str:
    return "(" + ", ".join(f"{number:.6g}" for number in numbers) + ")"
