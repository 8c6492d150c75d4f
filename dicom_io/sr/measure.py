"""Size, shape and intensity of segments, for reports: all segments of a label map in one pass, slice by slice.

The surface runs half-way between a voxel centre inside and its neighbour outside (marching cubes at level
0.5), the same rule as the RTSTRUCT contours. Definitions and names follow the Image Biomarker Standardisation
Initiative (IBSI, arXiv:1612.07003): C0JK surface area of the mesh, L0JK maximum 3D diameter of the mesh.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

from dicom_io.boxes import Box
from dicom_io.volume import Affine

Labels = NDArray[Any]
Floats = NDArray[np.float64]
# The eight corners of a cell, and its six faces as corner numbers, counter-clockwise seen from outside.
_CORNERS = np.array([(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)], dtype=np.float64)
_FACES = ((0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5))
_BLOCK = 512  # points whose distances to all others are computed at once


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


def measure_segments(
    labels: Labels, boxes: Sequence[Box], image: NDArray[Any], affine_lps: Affine
) -> list[SegmentMeasures]:
    """The figures of segments that share no voxel, in the order of their numbers.

    Args:
        labels: Shape (I, J, K), numbers of segments from 1, 0 elsewhere; fastest where each slice is in one piece of memory.
        boxes: For each number an index box that holds the segment; any box where it has no voxels.
        image: Same shape, the intensities.
        affine_lps: Array index to LPS mm, shape (4, 4).

    Raises:
        ValueError: `labels` and `image` differ in shape.
    """
    if labels.shape != image.shape:
        raise ValueError(f"the labels have the shape {labels.shape}, the image {image.shape}; one grid is needed")
    count = len(boxes)
    surfaces = [_Surface(box, affine_lps) for box in boxes]
    intensities, cells = _Intensities(count), np.zeros((count + 1, 256), np.int64)
    # Around each slice, and above and below all segments, is background: it closes the surfaces at the edges of the grid.
    plane = np.zeros((labels.shape[0] + 2, labels.shape[1] + 2), labels.dtype)
    first, last = min((box[2].start for box in boxes), default=0), max((box[2].stop for box in boxes), default=0)
    for k in range(first, last + 1):
        below, plane = plane, np.zeros_like(plane)
        if k < last:
            plane[1:-1, 1:-1] = labels[:, :, k]
            intensities.add(plane[1:-1, 1:-1], image[:, :, k])
        cells += _cell_kinds(below, plane, count)
        for number, points in _between(below, plane):
            surfaces[number - 1].add(points, k - 0.5)
        for number, points in _outlines(plane):
            surfaces[number - 1].add_outline(points, k)
    step_mm = np.asarray(affine_lps)[:3, :3]
    areas_mm2 = [_cell_area(kind, step_mm) if used else 0.0 for kind, used in enumerate(cells.sum(axis=0))]
    # The determinant of the steps is the volume of a voxel in mm3; 1000 of them are a millilitre.
    voxel_ml = float(abs(np.linalg.det(step_mm))) / 1000.0
    measures = [SegmentMeasures(0.0, 0.0, None, None, None, None, None)] * count
    for n in np.flatnonzero(intensities.voxels).tolist():
        voxels, surface = int(intensities.voxels[n]), surfaces[n - 1]
        measures[n - 1] = SegmentMeasures(
            volume_ml=voxels * voxel_ml,
            surface_mm2=float(cells[n] @ areas_mm2),
            max_diameter_mm=surface.diameter_mm(),
            long_axis_mm=surface.axes_mm[0],
            short_axis_mm=surface.axes_mm[1],
            mean=float(intensities.means[n]),
            std=float(np.sqrt(intensities.squares[n] / voxels)),
        )
    return measures


class _Intensities:
    """Number of voxels, mean intensity and sum of the squared deviations from it, of each segment; shape (count + 1,) each."""

    def __init__(self, count: int) -> None:
        self.voxels = np.zeros(count + 1, np.int64)
        self.means, self.squares = np.zeros(count + 1), np.zeros(count + 1)

    def add(self, labels: Labels, image: NDArray[Any]) -> None:
        """Add a slice: its labels and its intensities, shape (I, J) each."""
        inside, length = labels > 0, len(self.voxels)
        owners, values = labels[inside], image[inside].astype(np.float64)
        voxels = np.bincount(owners, minlength=length)
        means = np.bincount(owners, values, length) / np.maximum(voxels, 1)
        squares = np.bincount(owners, (values - means[owners]) ** 2, length)
        # Chan, Golub and LeVeque 1979: deviations from a mean lose no digits where the mean is large.
        self.voxels += voxels
        away, part = means - self.means, voxels / np.maximum(self.voxels, 1)
        self.squares += squares + away**2 * part * (self.voxels - voxels)
        self.means += away * part


class _Surface:
    """Points of the marching-cubes surface of one segment, of which those are kept that can be farthest apart.

    In each slice the corners of its outline are kept, between slices the ends of each row.

    Attributes:
        axes_mm: Long and short axis in mm, as a reader draws them in one slice; see `SegmentMeasures`.
    """

    def __init__(self, box: Box, affine_lps: Affine) -> None:
        self.axes_mm = (0.0, 0.0)
        self._start = np.array([along.start for along in box])
        self._steps_mm = np.asarray(affine_lps)[:3, :3]
        self._points: list[Floats] = []
        # Two perpendicular unit vectors: lengths are right even if rows and columns are not exactly perpendicular.
        across = self._steps_mm[:, 0] / np.linalg.norm(self._steps_mm[:, 0])
        normal = np.cross(self._steps_mm[:, 0], self._steps_mm[:, 1])
        down = np.cross(normal / np.linalg.norm(normal), across)
        self._plane = np.stack([across, down], axis=1)

    def add(self, points: Floats, k: float) -> None:
        """Add points at the height `k`; shape (n, 2), array indices."""
        self._points.append(np.column_stack([points, np.full(len(points), k)]))

    def add_outline(self, points: Floats, k: int) -> None:
        """Add the whole outline in slice `k`; shape (n, 2), array indices."""
        # Small indices, so that rounding does not depend on where the segment lies.
        places_mm = (points - self._start[:2]) @ self._steps_mm[:, :2].T @ self._plane
        corners = ConvexHull(places_mm).vertices
        # Pairs are compared by their long axis first.
        self.axes_mm = max(self.axes_mm, _axes(places_mm[corners]))
        self.add(points[corners], k)

    def diameter_mm(self) -> float:
        """Greatest distance between two points."""
        # The two points that are farthest apart are corners of the convex hull.
        places_mm = np.concatenate(self._points) @ self._steps_mm.T
        hull = places_mm[ConvexHull(places_mm).vertices]
        # Block by block: a large surface has thousands of corners, and their pairs fill hundreds of megabytes.
        starts = range(0, len(hull), _BLOCK)
        return float(max(cdist(hull[start : start + _BLOCK], hull[start:]).max() for start in starts))


def _outlines(plane: Labels) -> Iterator[tuple[int, Floats]]:
    """Each segment of a slice with a margin, and the points half-way between its pixels and their neighbours outside it.

    The points have shape (n, 2), array indices with the margin.
    """
    flat, width = plane.ravel(), plane.shape[1]  # a row ends and the next begins in the margin
    sides = [(*_sides(flat[:-step], flat[step:]), half) for step, half in ((width, (0.5, 0.0)), (1, (0.0, 0.5)))]
    points = [np.stack(np.divmod(at, width), axis=1) + half for _, at, half in sides]
    return _by_owner(np.concatenate([owners for owners, *_ in sides]), np.concatenate(points))


def _between(below: Labels, plane: Labels) -> Iterator[tuple[int, Floats]]:
    """As `_outlines`, but between the voxels of two slices; of each row only the first and the last point, as no other can be
    a corner of the convex hull.
    """
    rows, width = plane.shape
    owners, at = _sides(below.ravel(), plane.ravel())
    order = np.argsort(owners, kind="stable")
    owners, at = owners[order], at[order]
    row = owners.astype(np.int64) * rows + at // width
    is_end = (np.diff(row, prepend=-1) != 0) | (np.diff(row, append=-1) != 0)
    return _by_owner(owners[is_end], np.stack(np.divmod(at[is_end], width), axis=1))


def _sides(first: Labels, second: Labels) -> tuple[Labels, NDArray[np.intp]]:
    """Where two flat arrays differ: the segments on either side and the positions, in order of these; shape (n,) each."""
    at = np.flatnonzero(first != second)
    owners = np.stack([first[at], second[at]], axis=1).ravel()
    return owners[owners > 0], np.repeat(at, 2)[owners > 0]


def _by_owner(owners: Labels, points: Floats) -> Iterator[tuple[int, Floats]]:
    """Each segment with its points in their order."""
    order = np.argsort(owners, kind="stable")
    owners, points = owners[order], points[order]
    starts = np.flatnonzero(np.diff(owners, prepend=0))
    return zip(owners[starts].tolist(), np.split(points, starts[1:]), strict=False)


def _cell_kinds(below: Labels, plane: Labels, count: int) -> NDArray[np.int64]:
    """How many cells of each kind each segment has between two slices with a margin; shape (count + 1, 256).

    In a binary mask the eight corners of a cell determine its surface, so it is enough to count the 256 kinds of cell: bit n of
    a kind says that corner n is inside. Two inside corners that touch only by the diagonal of a face are taken to be apart.
    Cells without a surface are left out.
    """
    width, size = plane.shape[1], plane.size - plane.shape[1] - 1
    flat = below.ravel(), plane.ravel()
    starts = [(z, x * width + y) for x, y, z in _CORNERS.astype(int).tolist()]
    views = [flat[z][start : start + size] for z, start in starts]
    is_mixed = np.zeros(size, bool)
    for view in views[1:]:
        is_mixed |= view != views[0]
    at = np.flatnonzero(is_mixed)
    corners = np.stack([view[at] for view in views])
    counts = np.zeros((count + 1) * 256, np.int64)
    for n, owner in enumerate(corners):
        kinds = np.packbits(corners == owner, axis=0, bitorder="little")[0]
        # A segment with several corners of a cell counts once, at its first corner.
        first = (owner > 0) & (kinds & ((1 << n) - 1) == 0)
        counts += np.bincount(owner[first] * np.int64(256) + kinds[first], minlength=counts.size)
    return counts.reshape(-1, 256)


def _axes(hull: Floats) -> tuple[float, float]:
    """Long and short axis of the corners of an outline, shape (n, 2)."""
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
        points = loop @ step_mm.T
        # A fan of triangles around the first vertex; each has half the length of the cross product of two sides as its area.
        first, second = points[1:-1] - points[0], points[2:] - points[0]
        area += 0.5 * float(np.linalg.norm(np.cross(first, second), axis=1).sum())
    return area


@cache
def _cell_loops(kind: int) -> list[Floats]:
    """Closed polygons of one kind of cell (bit n set: corner n is inside), vertices in cell units; shape (n, 3) each.

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
    return _chains(following)


def _chains(following: dict[frozenset[int], frozenset[int]]) -> list[Floats]:
    loops = []
    while following:
        edge, after = following.popitem()
        edges = [edge]
        while after != edge:
            edges.append(after)
            after = following.pop(after)
        loops.append(np.array([_CORNERS[sorted(pair)].mean(axis=0) for pair in edges]))
    return loops
