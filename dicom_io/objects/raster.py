"""Closed contours -> the pixels whose centres they enclose, by the even-odd rule.

Each edge is cut with the rows of pixel centres, its lower end included, its upper end not; between the first and the second
cut of a row, the third and the fourth, and so on, is inside. An edge walked forth and back (a keyhole's bridge) cuts twice at
the same place and encloses nothing.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Shape = tuple[int, int]
"""(rows, columns)."""

Pair = tuple[int, int]
"""The numbers of two contours."""

NEAR = 0.05
"""In pixels: a centre this close to a contour may be inside for one program and outside for another."""


def even_odd(loops: Sequence[Floats], shape: Shape) -> Mask:
    """Pixels whose centre is inside by the even-odd rule over all contours.

    Args:
        loops: Closed polygons of shape (n, 2), (column, row) in pixel coordinates; the last point joins the
            first.
        shape: (rows, columns).
    """
    if not loops:
        return np.zeros(shape, dtype=bool)
    counts = np.array([len(loop) for loop in loops])
    plane, _ = painted(np.concatenate(loops), counts, np.ones(len(loops), dtype=np.int64), shape)
    return np.asarray(plane != 0)


def painted(points: Floats, counts: Integers, labels: Integers, shape: Shape) -> tuple[NDArray[Any], int]:
    """Labels of the pixels whose centre is inside by the even-odd rule over all contours of one label.

    Args:
        points: Shape (sum of `counts`, 2): (column, row) of the contours' points, in pixel coordinates.
        counts: Shape (n,): the number of points of each contour, n at least 1.
        labels: Shape (n,): the label of each contour, from 1.
        shape: (rows, columns).

    Returns:
        Shape (rows, columns): labels in the smallest unsigned type, 0 where there is none; and the number of pixels that are
        inside further labels, counted once for each further label.
    """
    label, pixels = _filled(points, counts, labels, shape)
    plane = np.zeros(shape[0] * shape[1], dtype=np.min_scalar_type(int(labels.max())))
    plane[pixels] = label.astype(plane.dtype)
    return plane.reshape(shape), len(pixels) - int(np.count_nonzero(plane))


def filled(loops: Sequence[Floats], shape: Shape) -> list[Integers]:
    """The pixels inside each of some contours by itself: row x columns + column, in increasing order.

    Args:
        loops: As in `even_odd`, at least one.
        shape: (rows, columns).
    """
    counts = np.array([len(loop) for loop in loops])
    number, pixels = _filled(np.concatenate(loops), counts, np.arange(len(loops)), shape)
    return np.split(pixels, np.searchsorted(number, np.arange(1, len(loops))))


def entangled(loops: Sequence[Floats], shape: Shape) -> Pair | None:
    """Two contours that overlap in part, as far as pixels tell; None if all lie apart or one within the other.

    A pixel whose centre lies within `NEAR` pixels of a contour is on neither side of it: contours may run through
    centres, and rounding puts these on this side or that. Two contours that enclose the same pixels are entangled unless
    one lies within the other when pixels are a quarter as wide.

    Args:
        loops: As in `even_odd`, at least one; no two the same.
        shape: (rows, columns).
    """
    # Exact pixels first, in one pass; only contours that fail here are compared with a tolerance, pair by pair.
    same, is_nested = _nested(filled(loops, shape), shape)
    if not is_nested:
        same, pair = _clearly_entangled(loops, shape)
        if pair:
            return pair
    return next((pair for pair in same if not _is_thin_ring(loops[pair[0]], loops[pair[1]], shape)), None)


def _nested(pixels: Sequence[Integers], shape: Shape) -> tuple[list[Pair], bool]:
    """Pairs of sets of pixels that are the same; and whether any two sets lie apart or one within the other.

    The sets are laid down from the largest to the smallest. Each must lie within the set that was laid down last at its place.
    """
    owner, same = np.full(shape[0] * shape[1], -1, dtype=np.int64), []
    for number in sorted(range(len(pixels)), key=lambda number: -len(pixels[number])):
        own = pixels[number]
        if not len(own):
            continue
        around = int(owner[own[0]])
        if (owner[own] != around).any():
            return [], False
        if around >= 0 and len(pixels[around]) == len(own):
            same.append((around, number))
        owner[own] = number
    return same, True


def _clearly_entangled(loops: Sequence[Floats], shape: Shape) -> tuple[list[Pair], Pair | None]:
    """Pairs that enclose the same pixels, and a pair that overlaps in part; pixels near to a contour do not count."""
    # Filled once in place and moved by NEAR four ways: pixels that are inside every time are surely inside,
    # pixels that are inside at least once are perhaps inside.
    shifts = [NEAR * np.array(shift) for shift in ((-1, -1), (-1, 1), (1, -1), (1, 1), (0, 0))]
    fills = [filled([loop + shift for loop in loops], shape) for shift in shifts]
    surely = [reduce(np.intersect1d, shifted) for shifted in zip(*fills, strict=True)]
    perhaps = [reduce(np.union1d, shifted) for shifted in zip(*fills, strict=True)]
    same: list[Pair] = []
    for first, second in combinations([number for number, pixels in enumerate(surely) if len(pixels)], 2):
        # Pixel numbers are sorted: sets whose ranges lie apart share no pixel.
        if surely[first][-1] < surely[second][0] or surely[second][-1] < surely[first][0]:
            continue
        if np.isin(surely[first], surely[second]).any():
            # They overlap in part if each surely has pixels that the other does not have even perhaps.
            rests = [len(np.setdiff1d(surely[a], perhaps[b])) for a, b in ((first, second), (second, first))]
            if all(rests):
                return same, (first, second)
            same += [] if any(rests) else [(first, second)]
    return same, None


def _is_thin_ring(first: Floats, second: Floats, shape: Shape) -> bool:
    """Whether one of two contours lies within the other when pixels are a quarter as wide."""
    start = np.maximum(np.floor(np.minimum(first.min(axis=0), second.min(axis=0))), -1)
    end = np.minimum(np.maximum(first.max(axis=0), second.max(axis=0)), shape[::-1])
    columns, rows = (int(size) for size in 4 * (end - start) + 2)
    pixels, others = filled([4 * (first - start), 4 * (second - start)], (rows, columns))
    return len(pixels) != len(others) and len(np.intersect1d(pixels, others)) == min(len(pixels), len(others))


def _filled(points: Floats, counts: Integers, labels: Integers, shape: Shape) -> tuple[Integers, Integers]:
    """Label and number of the pixels inside by the even-odd rule over all contours of one label, by label and number."""
    rows, columns = shape
    edge, row, column = _cuts(points, counts, shape)
    # one number for label, row and column: a single sort puts the cuts of each row from left to right
    cuts = np.sort((np.repeat(labels, counts)[edge] * rows + row) * (columns + 1) + column)
    first, widths = cuts[0::2], cuts[1::2] - cuts[0::2]  # by label and row, from left to right
    line, column = np.divmod(first, columns + 1)
    label, row = np.divmod(line, rows)
    # All runs of pixels in one pass: a count over all pixels, plus for each run its first pixel less the pixels
    # of the runs before.
    pixels = np.repeat(row * columns + column - (np.cumsum(widths) - widths), widths)
    pixels += np.arange(len(pixels))
    return np.repeat(label, widths), pixels


def _cuts(points: Floats, counts: Integers, shape: Shape) -> tuple[Integers, Integers, Integers]:
    """Where contours cut the rows of pixel centres: number of the edge, row, and the first column to the right.

    An edge is taken from its lower end, whichever way it is walked: forth and back are cut at the same places.
    """
    rows, columns = shape
    ends, number = np.cumsum(counts), np.arange(len(points))
    following = number + 1
    following[ends - 1] = ends - counts
    # the same edge walked upwards and downwards must give the same floating-point results
    falls = points[:, 1] > points[following, 1]
    low, high = np.where(falls, following, number), np.where(falls, number, following)
    (x, y), (across, up) = points[low].T, (points[high] - points[low]).T
    # lower end included, upper end not: a corner between two edges is cut once
    first, last = _bounded(np.ceil(y), rows), _bounded(np.ceil(points[high, 1]), rows)
    times = last - first
    edge = np.repeat(number, times)
    row = np.repeat(first - (np.cumsum(times) - times), times) + np.arange(len(edge))
    at = x[edge] + (row - y[edge]) * across[edge] / up[edge]
    return edge, row, _bounded(np.floor(at) + 1, columns)


def _bounded(values: Floats, most: int) -> Integers:
    """Whole numbers of at least 0 and at most `most`."""
    return np.clip(values, 0, most).astype(np.int64)


def off_half_way(points: Floats) -> Floats:
    """How far points lie from the nearest middle between the centres of two pixels, or of four, along columns and rows.

    Args:
        points: Shape (n, 2): (column, row), pixel centres at whole numbers.

    Returns:
        Shape (n, 2), in pixels. Half a pixel for a point that is nearest to a centre.
    """
    # In halves of a pixel two even numbers are a centre, anything else is half-way.
    halves = np.rint(2 * points)
    away = np.abs(points - halves / 2)
    away[(np.mod(halves, 2) == 0).all(axis=1)] = 0.5
    return away
