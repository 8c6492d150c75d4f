"""Planes of labels -> closed contours: all labels in one pass, holes joined to the contour around them.

Contours are those of marching squares at level 0.5: they run half-way between the centre of a pixel inside and the centre
of its neighbour outside. Pixels that touch only by a corner are apart, so contours neither cross nor touch. The inside is on
the right of the direction of travel, with rows running down.

A hole is joined by a keyhole: a bridge that is walked forth and back. It starts at the uppermost pixel of the hole and runs
straight up, half-way between two columns of centres, to the first contour that it meets. That contour is of the same region and
begins further up. So the bridge meets no centre and crosses no contour, every hole ends at its outer contour, and no search is
needed for the contour around a hole.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
# Of a cell of 2 x 2 pixels: its corners, clockwise as bits, and its edges, which a contour cuts in their middle.
_UPPER_LEFT, _UPPER_RIGHT, _LOWER_RIGHT, _LOWER_LEFT = _CORNERS = np.array([1, 2, 4, 8])
_TOP, _LEFT, _RIGHT, _BOTTOM = range(4)
_MIDDLES = np.array([(1, 0), (0, 1), (2, 1), (1, 2)])  # in halves of a pixel
_WAYS = {
    _UPPER_LEFT: (_TOP, _LEFT),
    _UPPER_RIGHT: (_RIGHT, _TOP),
    _LOWER_RIGHT: (_BOTTOM, _RIGHT),
    _LOWER_LEFT: (_LEFT, _BOTTOM),
    _UPPER_LEFT | _UPPER_RIGHT: (_RIGHT, _LEFT),
    _UPPER_RIGHT | _LOWER_RIGHT: (_BOTTOM, _TOP),
    _LOWER_RIGHT | _LOWER_LEFT: (_LEFT, _RIGHT),
    _LOWER_LEFT | _UPPER_LEFT: (_TOP, _BOTTOM),
    15 - _UPPER_LEFT: (_LEFT, _TOP),
    15 - _UPPER_RIGHT: (_TOP, _RIGHT),
    15 - _LOWER_RIGHT: (_RIGHT, _BOTTOM),
    15 - _LOWER_LEFT: (_BOTTOM, _LEFT),
}
"""By the corners inside: the edges by which a contour enters and leaves a cell. Two opposite corners are two contours."""
_ENTER, _LEAVE = (np.array([_WAYS.get(code, (0, 0))[end] for code in range(16)]) for end in (0, 1))
# Each direction has a number of its own: 3 x the sign of the columns + the sign of the rows.
_HEADING = np.sign(_MIDDLES[_LEAVE] - _MIDDLES[_ENTER]) @ np.array([3, 1])
_ALONG_A_ROW = (_UPPER_LEFT | _UPPER_RIGHT, _LOWER_RIGHT | _LOWER_LEFT)


@dataclass(frozen=True)
class Contours:
    """Contours by label, then by plane, then from top to bottom by where they begin.

    Attributes:
        labels: Shape (n,): the label that each contour encloses.
        planes: Shape (n,): number of the plane that it lies in.
        counts: Shape (n,): the number of its points.
        points: Shape (sum of `counts`, 2): (column, row) in pixels, pixel centres are whole numbers; the last point of a
            contour joins its first.
    """

    labels: Integers
    planes: Integers
    counts: Integers
    points: Floats


def contours_of(planes: NDArray[Any]) -> Contours:
    """The contours of every label in every plane.

    Args:
        planes: Shape (planes, rows, columns): masks, or whole numbers with 0 as background. Several planes in one call take
            less time than one call for each.
    """
    # The margin closes contours at the edge of the image, and keeps the planes apart when they are stacked.
    padded = np.pad(planes, ((0, 0), (1, 1), (1, 1)))
    height = padded.shape[1]
    padded = padded.reshape(-1, padded.shape[2])  # one below the other
    segments = _Segments(*_cut_cells(padded), padded.shape)
    points, counts = segments.ways()
    first = points[np.cumsum(counts) - counts]
    # A contour begins at its uppermost point, between two pixels of a column; that of a hole has its region above.
    is_hole = padded.ravel()[segments.point[first] >> 1] == segments.label[first]
    if is_hole.any():
        segments.join(first[is_hole])
        points, counts = segments.ways(first[~is_hole])
    first, place = first[~is_hole], segments.place[points]
    plane = (segments.place[first, 1] + 1).astype(np.int64) // height
    place[:, 1] -= np.repeat(height * plane, counts)
    return Contours(segments.label[first], plane, counts, place)


def _cut_cells(padded: NDArray[Any]) -> tuple[Integers, Integers, Integers]:
    """The cells of a plane that a contour crosses: upper left pixel, label and corners inside, once for each contour.

    Args:
        padded: The plane with a margin of one pixel of background, so that a cell between the end of a row and the beginning of
            the next is empty.
    """
    flat, width = padded.ravel(), padded.shape[1]
    # A cell is cut unless its four pixels are equal. Three pairs show it: upper row, lower row and a diagonal.
    sideways = flat[1:] != flat[:-1]
    cut = sideways[:-width] | sideways[width:]
    cut |= flat[: -width - 1] != flat[width:-1]
    cell = np.flatnonzero(cut)
    corners = flat[cell + np.array([0, 1, width + 1, width])[:, None]].astype(np.int64)
    pieces: list[tuple[Integers, Integers, Integers]] = []
    # Each label among the four corners has a contour of its own; a label that an earlier corner had is done.
    for number, label in enumerate(corners):
        is_new = label != 0
        for earlier in corners[:number]:
            is_new &= earlier != label
        new = np.flatnonzero(is_new)
        code = _CORNERS @ (corners[:, new] == label[new])
        # Two pixels that touch only by a corner are apart: a contour around the upper, another around the lower.
        opposite = np.flatnonzero((code == _UPPER_LEFT | _LOWER_RIGHT) | (code == _UPPER_RIGHT | _LOWER_LEFT))
        lower = code[opposite] & (_LOWER_RIGHT | _LOWER_LEFT)
        code[opposite] -= lower
        pieces += [(cell[new], label[new], code), (cell[new[opposite]], label[new[opposite]], lower)]
    cell, label, code = (np.concatenate(part) for part in zip(*pieces, strict=True))
    return cell, label, code


class _Segments:
    """The pieces of contours in single cells, by label, row and column of their first points.

    A point lies between two pixels, one inside and one outside. Its number is 2 x pixel for the pixel to its left, or
    2 x pixel + 1 for the pixel above it. For each label it is the first point of one segment and the last of another.

    Attributes:
        cell, label, code: Shape (n,): upper left pixel of the cell, label and corners inside.
        point: Shape (n,): number of the first point.
        place: Shape (n, 2): (column, row) of the first point.
        turns: Shape (n,): whether the contour changes its direction there.
        following: Shape (n,): the segment behind each.
    """

    def __init__(self, cell: Integers, label: Integers, code: Integers, shape: tuple[int, int]) -> None:
        self.shape, size = shape, 2 * shape[0] * shape[1]
        # Numbers of the points on the top, left, right and bottom edge, counted from the upper left pixel of the cell.
        number_of = np.array([0, 1, 3, 2 * shape[1]])
        start = label * size + 2 * cell
        first, last = (start + number_of[edge][code] for edge in (_ENTER, _LEAVE))
        # Sorted by first points, so that a binary search for its last point finds the segment behind each.
        order = np.argsort(first)
        first = first[order]
        self.cell, self.label, self.code = cell[order], label[order], code[order]
        self.point = first - self.label * size
        self.following = np.searchsorted(first, last[order])
        heading = _HEADING[self.code]
        self.turns = np.empty(len(order), dtype=bool)
        self.turns[self.following] = heading[self.following] != heading
        row, column = np.divmod(self.point >> 1, shape[1])
        is_below = 0.5 * (self.point & 1)
        self.place = np.column_stack([column - 0.5 - is_below, row - 1.0 + is_below])

    def ways(self, starts: Integers | None = None) -> tuple[Integers, Integers]:
        """The closed ways that begin at some segments, or all ways: the segments at whose first points a way turns, way by
        way, and the number of these segments for each way.
        """
        # Pointer doubling: every segment points to the next turn, so that points on straight lines are left out.
        onwards = self.following.copy()
        while len(straight := np.flatnonzero(~self.turns[onwards])):
            onwards[straight] = onwards[onwards[straight]]  # each time over twice as many
        turning = np.flatnonzero(self.turns)
        number = np.cumsum(self.turns) - 1
        following = number[onwards[turning]].tolist()
        way: list[int] = []
        ends: list[int] = []
        visited = bytearray(len(following))
        for at in range(len(following)) if starts is None else number[starts].tolist():
            if not visited[at]:
                while not visited[at]:
                    visited[at] = 1
                    way.append(at)
                    at = following[at]
                ends.append(len(way))
        counts = np.array(ends, dtype=np.int64)
        counts[1:] -= counts[:-1].copy()
        return turning[np.array(way, dtype=np.int64)], counts

    def join(self, holes: Integers) -> None:
        """Lead outer contours around the holes whose contours begin with the given segments.

        The outer contour goes over the bridge, around the hole, back over the bridge, and on as before. Two segments are added:
        for the way around the hole, and for the way on. Each has the first point of the segment that it replaces.
        """
        starts = self.following[holes]  # their first points lie to the left of the holes' uppermost pixels
        targets = self._met_above(starts)
        around = len(self.following) + 2 * np.arange(len(starts))
        following = [*self.following.tolist(), *np.zeros(2 * len(starts), np.int64).tolist()]
        for start, target, new in zip(starts.tolist(), targets.tolist(), around.tolist(), strict=True):
            following[new], following[new + 1] = following[start], following[target]
            following[target], following[start] = new, new + 1
        self.following = np.array(following)
        ends = np.column_stack([starts, targets]).ravel()
        self.turns[ends] = True
        self._add(self.place[ends])

    def _met_above(self, starts: Integers) -> Integers:
        """The segments at whose first points the bridges end; each begins at the first point of one of `starts`.

        A bridge runs in the middle of a column of cells. It meets either a point, or a contour along a row, which gets a point
        there.
        """
        at_point, at_middle = np.flatnonzero(self.point & 1 == 0), np.flatnonzero(np.isin(self.code, _ALONG_A_ROW))
        # What bridges may meet, by label, column and row: the last entry before a bridge is the first contour above it.
        depth = np.concatenate([self._depth(at_point, self.point >> 1), self._depth(at_middle, self.cell) + 1])
        order = np.argsort(depth)
        above = order[np.searchsorted(depth[order], self._depth(starts, self.point >> 1)) - 1]
        targets = np.concatenate([at_point, at_middle])[above]
        # A contour along a row has no point in the middle of the cell: its segment is divided there.
        between = above >= len(at_point)
        halved = targets[between]
        row, column = np.divmod(self.cell[halved], self.shape[1])
        targets[between] = len(self.following) + np.arange(len(halved))
        self.following = np.concatenate([self.following, self.following[halved]])
        self.following[halved] = targets[between]
        self._add(np.column_stack([column - 0.5, row - 0.5]))
        return targets

    def _depth(self, segments: Integers, pixel: Integers) -> Integers:
        """Numbers that sort pixels by label, then by column, then by row; they grow by 2 from row to row."""
        row, column = np.divmod(pixel[segments], self.shape[1])
        return np.asarray((self.label[segments] * self.shape[1] + column) * 2 * self.shape[0] + 2 * row)

    def _add(self, place: Floats) -> None:
        """Further points at which a contour turns."""
        self.place = np.concatenate([self.place, place])
        self.turns = np.concatenate([self.turns, np.ones(len(place), dtype=bool)])
