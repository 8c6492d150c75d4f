"""Size, shape and intensity of one segment, for reports.

The surface runs half-way between a voxel centre inside and its neighbour outside (marching cubes at level
0.5), the same rule as the RTSTRUCT contours. Definitions and names follow the Image Biomarker Standardisation
Initiative (IBSI, arXiv:1612.07003): C0JK surface area of the mesh, L0JK maximum 3D diameter of the mesh.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from dicom_io.volume import Affine

Mask = NDArray[np.bool_]
# The eight corners of a cell, and its six faces as corner numbers, counter-clockwise seen from outside.
_CORNERS = np.array([(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)], dtype=np.float64)
_FACES = ((0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5))


@dataclass(frozen=True)
class SegmentMeasures:
    """Figures of one segment; an empty segment has volume and surface 0 and None elsewhere.

    Attributes:
        volume_ml: Voxel count times voxel volume, mL (= cm3).
        surface_mm2: Area of the marching-cubes mesh, mm2.
        max_diameter_mm: Greatest distance between two vertices of that mesh, mm.
        long_axis_mm: Greatest distance between two points of the outline in one slice [:, :, k], over all slices.
        short_axis_mm: Width of the outline in that slice, across the long axis.
        mean: Mean intensity, in the image's units.
        std: Population standard deviation of the intensity, in the image's units.
    """

    volume_ml: float
    surface_mm2: float
    max_diameter_mm: float | None
    long_axis_mm: float | None
    short_axis_mm: float | None
    mean: float | None
    std: float | None


def measure_segment(mask: Mask, image: NDArray[Any], affine_lps: Affine) -> SegmentMeasures:
    """The figures of one segment.

    Args:
        mask: Shape (I, J, K): of the whole grid, or only of the box that holds the segment, which takes less time.
        image: Same shape, the intensities.
        affine_lps: Array index to LPS mm, shape (4, 4).

    Raises:
        ValueError: `mask` and `image` differ in shape.
    """
    if mask.shape != image.shape:
        raise ValueError(f"mask has the shape {mask.shape}, image {image.shape}; one grid is needed")
    count = int(mask.sum())
    if count == 0:
        return SegmentMeasures(0.0, 0.0, None, None, None, None, None)
    values = image[mask].astype(np.float64)
    # The margin closes the surface at the edges of the box.
    padded = np.pad(mask, 1)
    long_axis_mm, short_axis_mm = axes_mm(padded, affine_lps)
    return SegmentMeasures(
        # The determinant of the steps is the volume of a voxel in mm3; 1000 of them are a millilitre.
        volume_ml=count * float(abs(np.linalg.det(affine_lps[:3, :3]))) / 1000.0,
        surface_mm2=mesh_area_mm2(padded, affine_lps),
        max_diameter_mm=mesh_diameter_mm(padded, affine_lps),
        long_axis_mm=long_axis_mm,
        short_axis_mm=short_axis_mm,
        mean=float(values.mean()),
        std=float(values.std()),
    )


def mesh_area_mm2(mask: Mask, affine_lps: Affine) -> float:
    """Area in mm2 of the marching-cubes surface of a mask (I, J, K) that has a margin of background on every side.

    In a binary mask the eight corners of a cell determine its surface, so it is enough to count the 256 kinds of cell. Two
    inside corners that touch only by the diagonal of a face are taken to be apart.
    """
    i, j, k = (n - 1 for n in mask.shape)
    kinds = np.zeros((i, j, k), dtype=np.int64)
    for bit, (x, y, z) in enumerate(_CORNERS.astype(int)):
        # Bit n of the kind of a cell: corner n is inside.
        kinds |= mask[x : x + i, y : y + j, z : z + k].astype(np.int64) << bit
    counts = np.bincount(kinds.ravel(), minlength=256)
    step_mm = np.asarray(affine_lps)[:3, :3]
    return float(sum(counts[kind] * _cell_area(kind, step_mm) for kind in np.flatnonzero(counts).tolist()))


def mesh_diameter_mm(mask: Mask, affine_lps: Affine) -> float:
    """Greatest distance in mm between two vertices of the marching-cubes surface of a mask.

    Args:
        mask: Shape (I, J, K), with a margin of background on every side.
        affine_lps: Shape (4, 4): voxel index to LPS millimetres.
    """
    points_mm = _half_way_points(mask) @ np.asarray(affine_lps)[:3, :3].T
    # The two points that are farthest apart are corners of the convex hull.
    hull = points_mm[ConvexHull(points_mm).vertices]
    return float(pdist(hull).max())


def axes_mm(mask: Mask, affine_lps: Affine) -> tuple[float, float]:
    """Long and short axis in mm, as a reader draws them in one slice; see `SegmentMeasures`.

    Args:
        mask: Shape (I, J, K), not empty, with a margin of background in each slice.
        affine_lps: Array index to LPS mm.
    """
    best = (0.0, 0.0)
    for k in np.flatnonzero(mask.any(axis=(0, 1))).tolist():
        # Pairs are compared by their long axis first.
        best = max(best, _axes_in_slice(_outline_mm(mask[:, :, k], np.asarray(affine_lps)[:3, :2])))
    return best


def _outline_mm(plane: Mask, steps_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shape (n, 2), mm: the points half-way between a pixel inside and its neighbour outside, in coordinates of the plane."""
    # Two perpendicular unit vectors: lengths are right even if rows and columns are not exactly perpendicular.
    across = steps_mm[:, 0] / np.linalg.norm(steps_mm[:, 0])
    normal = np.cross(steps_mm[:, 0], steps_mm[:, 1])
    down = np.cross(normal / np.linalg.norm(normal), across)
    return np.asarray(_half_way_points(plane) @ steps_mm.T @ np.stack([across, down], axis=1))


def _half_way_points(mask: Mask) -> NDArray[np.float64]:
    """Shape (n, axes of the mask), array indices: the points half-way between an element inside and its neighbour outside."""
    half_steps = 0.5 * np.eye(mask.ndim)
    changes = (np.diff(mask.astype(np.int8), axis=axis) for axis in range(mask.ndim))
    return np.concatenate([np.argwhere(change) + half for change, half in zip(changes, half_steps, strict=True)])


def _axes_in_slice(points: NDArray[np.float64]) -> tuple[float, float]:
    hull = points[ConvexHull(points).vertices]
    apart = hull[:, None] - hull[None]
    lengths = np.linalg.norm(apart, axis=2)
    first, second = np.unravel_index(int(lengths.argmax()), lengths.shape)
    along = apart[first, second] / lengths[first, second]
    # Positions along the perpendicular to the long axis; their range is the width.
    across = hull @ np.array([-along[1], along[0]])
    return float(lengths.max()), float(np.ptp(across))


def _cell_area(kind: int, step_mm: NDArray[np.float64]) -> float:
    """Area in mm2 of the surface patches of one cell; the columns of `step_mm` are the steps along the array axes."""
    area = 0.0
    for loop in _cell_loops(kind):
        points = np.array(loop) @ step_mm.T
        # A fan of triangles around the first vertex; each has half the length of the cross product of two sides as its area.
        first, second = points[1:-1] - points[0], points[2:] - points[0]
        area += 0.5 * float(np.linalg.norm(np.cross(first, second), axis=1).sum())
    return area


@cache
def _cell_loops(kind: int) -> tuple[tuple[tuple[float, float, float], ...], ...]:
    """Closed polygons of one kind of cell (bit n set: corner n is inside), vertices in cell units.

    On each face every run of inside corners is cut off by one segment, from the edge where the run starts to
    the edge where it ends. The neighbouring face walks that edge the other way, so the segments chain into
    closed loops.
    """
    following: dict[frozenset[int], frozenset[int]] = {}
    for face in _FACES:
        inside = [bool(kind >> corner & 1) for corner in face]
        for n in range(4):
            if inside[n] and not inside[n - 1]:
                end = next(m for m in range(n, n + 4) if not inside[(m + 1) % 4])
                # An edge is the set of its two corners, the same from both of its faces.
                start_edge = frozenset((face[n - 1], face[n]))
                following[start_edge] = frozenset((face[end % 4], face[(end + 1) % 4]))
    return tuple(_chains(following))


def _chains(following: dict[frozenset[int], frozenset[int]]) -> list[tuple[tuple[float, float, float], ...]]:
    loops = []
    while following:
        edge, after = following.popitem()
        edges = [edge]
        while after != edge:
            edges.append(after)
            after = following.pop(after)
        middles = [_CORNERS[sorted(pair)].mean(axis=0) for pair in edges]
        loops.append(tuple((float(x), float(y), float(z)) for x, y, z in middles))
    return loops
