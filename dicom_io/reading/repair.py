"""Repairs on request: uneven gaps, and slices that are shifted sideways, are resampled onto one even grid.

Values are interpolated linearly, along the normal between two slices and within each slice. The provenance says what was
done. A result on such a volume is put back onto the original slices (`objects/slice_positions.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import SeriesGeometryError
from dicom_io.reading import geometry
from dicom_io.reading.geometry import SILENT_OFFSET_MM, ImagePlane, Points

MAX_GROWTH = 4.0
"""The most slices that a repair may make for each slice; with more, most of the volume would be invented."""


@dataclass(frozen=True)
class Repair:
    """Where the slices are, and the even grid onto which they are resampled.

    Attributes:
        affine_lps: Shape (4, 4): the even grid, index (column, row, slice, 1) to LPS mm.
        shape: (columns, rows, slices) of that grid.
        order: `order[s]` is the index, into the planes given, of the source slice s along the normal.
        depths_mm: Shape (S,): distance of each source slice from the first along the normal.
        offsets: Shape (S, 2): (column, row) of each source slice's first pixel on the new grid.
        note: One sentence on the repair, with its numbers.
    """

    affine_lps: Points
    shape: tuple[int, int, int]
    order: tuple[int, ...]
    depths_mm: Points
    offsets: Points
    note: str


def plan_repair(planes: Sequence[ImagePlane], name: str, *, gaps: bool, tilt: bool) -> Repair:
    """The even grid for a stack that has none.

    Args:
        planes: Two or more of one orientation, size and spacing, no position twice.
        name: How a message calls the series.
        gaps: Whether uneven gaps may be resampled.
        tilt: Whether slices shifted sideways may be resampled onto a right-angled grid.

    Raises:
        SeriesGeometryError: A fault that may not, or cannot, be repaired.
    """
    geometry.check_planes(planes, name)
    order = geometry.slice_order(planes)
    ordered = [planes[index] for index in order]
    depths_mm = geometry.depths(ordered) - geometry.depths(ordered)[0]
    step_mm, count = _even_step(depths_mm, name, gaps=gaps)
    sideways = _sideways(ordered, depths_mm)
    # (columns, rows) per mm along the normal: the even shear that stays in the new grid, or none to remove the tilt.
    slope = np.zeros(2) if tilt else sideways[-1] / depths_mm[-1]
    offsets = sideways - np.outer(depths_mm, slope)
    _check_straight(ordered, offsets, name, tilt=tilt)
    # 1e-6: rounding must not add a row or a column
    low, high = (np.floor(offsets.min(axis=0) + 1e-6), np.ceil(offsets.max(axis=0) - 1e-6)) if tilt else (0.0, 0.0)
    # The grid grows by the largest shifts, so no pixel of a shifted slice is cut off.
    rows, columns = ordered[0].shape
    grown = (np.array([columns, rows]) + high - low).astype(int)
    step = ordered[0].normal * step_mm + ordered[0].steps @ (slope * step_mm)
    affine_lps = geometry.plane_affine(ordered[0], step)
    affine_lps[:3, 3] += ordered[0].steps @ np.broadcast_to(low, 2)
    note = _note(depths_mm, step_mm, count, sideways, ordered[0], tilt=tilt)
    return Repair(affine_lps, (int(grown[0]), int(grown[1]), count), order, depths_mm, offsets - low, note)


def made_slices(repair: Repair) -> tuple[tuple[int, int], ...]:
    """Each slice of the grid on which no source slice lies, and the nearest one on which one does; the lower of two."""
    step_mm = repair.depths_mm[-1] / (repair.shape[2] - 1)
    known = sorted({round(float(depth)) for depth in repair.depths_mm / step_mm})
    return tuple((k, min(known, key=lambda own: (abs(own - k), own))) for k in range(repair.shape[2]) if k not in known)


def resample(slices: NDArray[np.float32], repair: Repair) -> NDArray[np.float32]:
    """Values on the even grid.

    Args:
        slices: Shape (S, rows, columns), in the repair's order.
        repair: From `plan_repair`.

    Returns:
        Shape (K, rows, columns) of the new grid. Voxels that no slice reaches have the least value of the series.
    """
    columns, rows, count = repair.shape
    # Not 0, which is water in Hounsfield units: the least value stands for the background.
    fill = float(slices.min())
    out = np.empty((count, rows, columns), dtype=np.float32)
    step_mm = repair.depths_mm[-1] / (count - 1)
    for k in range(count):
        # Rounding must not lead beyond the last slice.
        depth_mm = min(k * step_mm, repair.depths_mm[-1])
        # The neighbours of this depth among the source slices, weighted by their distance.
        after = int(np.clip(np.searchsorted(repair.depths_mm, depth_mm), 1, len(slices) - 1))
        before = after - 1
        share = (depth_mm - repair.depths_mm[before]) / (repair.depths_mm[after] - repair.depths_mm[before])
        out[k] = 0.0
        for s, weight in ((before, 1 - share), (after, share)):
            if weight > 1e-9:  # a slice that lies on the grid keeps its values
                out[k] += np.float32(weight) * _shifted(slices[s], repair.offsets[s], (rows, columns), fill)
    return out


def _shifted(plane: NDArray[np.float32], offset: Points, shape: tuple[int, int], fill: float) -> NDArray[np.float32]:
    """One slice on the rows and columns of the new grid: shape (rows, columns)."""
    if plane.shape == shape and np.abs(offset).max() < 1e-6:
        return plane
    from scipy import ndimage  # here, since few series are tilted, and its import takes a third of a second

    larger = np.full(shape, fill, dtype=np.float32)
    larger[: plane.shape[0], : plane.shape[1]] = plane
    # Offsets are (column, row), the axes of the array are (row, column).
    return np.asarray(ndimage.shift(larger, (offset[1], offset[0]), order=1, mode="constant", cval=fill), np.float32)


def _even_step(depths_mm: Points, name: str, *, gaps: bool) -> tuple[float, int]:
    """Gap in mm and number of slices that divide the way from the first slice to the last evenly, near the usual gap."""
    gaps_mm = np.diff(depths_mm)
    usual = float(np.median(gaps_mm))  # a missing slice doubles a gap, which moves the mean and not the median
    even = bool(np.abs(gaps_mm - usual).max() <= SILENT_OFFSET_MM)
    count = len(depths_mm) if even else round(float(depths_mm[-1]) / usual) + 1
    if not even and not gaps:
        raise SeriesGeometryError(
            f"{name} has slice gaps from {gaps_mm.min():.2f} to {gaps_mm.max():.2f} mm; even gaps are needed, each within "
            f"{SILENT_OFFSET_MM} mm of the usual {usual:.2f} mm; pass --resample-gaps as well"
        )
    if count > MAX_GROWTH * len(depths_mm):
        raise SeriesGeometryError(
            f"{name} has {len(depths_mm)} slices over {depths_mm[-1]:.1f} mm with a usual gap of {usual:.2f} mm, {count} "
            f"even slices would be needed; at most {MAX_GROWTH:g} are made for each slice; fetch the missing slices"
        )
    return float(depths_mm[-1]) / (count - 1), count


def _sideways(ordered: Sequence[ImagePlane], depths_mm: Points) -> Points:
    """Shape (S, 2): (columns, rows) by which the first pixel of each slice is shifted off the first slice's normal."""
    positions = np.array([plane.position for plane in ordered])
    along = positions - positions[0] - np.outer(depths_mm, ordered[0].normal)
    # The steps of a plane are 3 x 2, so the pseudo-inverse turns mm within the plane into columns and rows.
    return np.asarray(along @ np.linalg.pinv(ordered[0].steps).T)


def _check_straight(ordered: Sequence[ImagePlane], offsets: Points, name: str, *, tilt: bool) -> None:
    shift_mm = np.linalg.norm(offsets @ ordered[0].steps.T, axis=1)
    if not tilt and shift_mm.max() > SILENT_OFFSET_MM:
        raise SeriesGeometryError(
            f"{name} is not one straight stack: slice {int(shift_mm.argmax()) + 1} of {len(ordered)} lies "
            f"{shift_mm.max():.2f} mm sideways off the line from first to last; at most {SILENT_OFFSET_MM} mm is needed; "
            "pass --resample-tilt as well"
        )


def _note(depths_mm: Points, step_mm: float, count: int, sideways: Points, plane: ImagePlane, *, tilt: bool) -> str:
    gaps_mm = np.diff(depths_mm)
    text = (
        f"resampled on request: {len(depths_mm)} slices with gaps of {gaps_mm.min():.2f} to {gaps_mm.max():.2f} mm became "
        f"{count} slices {step_mm:.3f} mm apart, linearly along the normal"
    )
    shift_mm = float(np.linalg.norm(sideways @ plane.steps.T, axis=1).max())
    if tilt and shift_mm > SILENT_OFFSET_MM:
        text += f"; slices shifted sideways by up to {shift_mm:.2f} mm were straightened, linearly within the slice"
    return text
