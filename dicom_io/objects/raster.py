"""Closed contours -> the pixels whose centres they enclose, by the even-odd rule.

Each edge is cut with the rows of pixel centres, its lower end included, its upper end not; between the first and the second
cut of a row, the third and the fourth, and so on, is inside. An edge walked forth and back (a keyhole's bridge) cuts twice at
the same place and encloses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def even_odd(loops: Sequence[Floats], shape: tuple[int, int]) -> Mask:
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
    return plane != 0


def painted(points: Floats, counts: Integers, labels: Integers, shape: tuple[int, int]) -> tuple[NDArray, int]:
    """Labels of the pixels whose centre is inside by the even-odd rule over all contours of one label.

    Args:
        points: Shape (sum of `counts`, 2): (column, row) of the contours' points, in pixel coordinates.
        counts: Shape (n,): the number of points of each contour, n at least 1.
        labels: Shape (n,): the label of each contour, from 1.
        shape: (rows, columns).

    Returns:
        Shape (rows, columns): labels in the smallest unsigned type, 0 where there is none; and how many pixels are inside
        further labels, each counted once for each.
    """
    rows, columns = shape
    edge, row, column = _cuts(points, counts, shape)
    cuts = np.sort((np.repeat(labels, counts)[edge] * rows + row) * (columns + 1) + column)
    first, widths = cuts[0::2], cuts[1::2] - cuts[0::2]  # by label and row, from left to right
    line, column = np.divmod(first, columns + 1)
    label, row = np.divmod(line, rows)
    pixels = np.repeat(row * columns + column - (np.cumsum(widths) - widths), widths)
    pixels += np.arange(len(pixels))
    plane = np.zeros(rows * columns, dtype=np.min_scalar_type(int(labels.max())))
    plane[pixels] = np.repeat(label.astype(plane.dtype), widths)
    return plane.reshape(shape), len(pixels) - int(np.count_nonzero(plane))


def _cuts(points: Floats, counts: Integers, shape: tuple[int, int]) -> tuple[Integers, Integers, Integers]:
    """Where contours cut the rows of pixel centres: number of the edge, row, and the first column to the right.

    An edge is taken from its lower end, whichever way it is walked: forth and back are cut at the same places.
    """
    rows, columns = shape
    ends = np.cumsum(counts)
    following = np.arange(1, len(points) + 1)
    following[ends - 1] = ends - counts
    falls = points[:, 1] > points[following, 1]
    low, high = np.where(falls, following, np.arange(len(points))), np.where(falls, np.arange(len(points)), following)
    (x, y), (across, up) = points[low].T, (points[high] - points[low]).T
    first, last = _bounded(np.ceil(y), rows), _bounded(np.ceil(points[high, 1]), rows)
    times = last - first
    edge = np.repeat(np.arange(len(points)), times)
    row = np.repeat(first - (np.cumsum(times) - times), times) + np.arange(len(edge))
    at = x[edge] + (row - y[edge]) * across[edge] / up[edge]
    return edge, row, _bounded(np.floor(at) + 1, columns)


def _bounded(values: Floats, most: int) -> Integers:
    """Whole numbers of at least 0 and at most `most`."""
    return np.minimum(np.maximum(values, 0), most).astype(np.int64)
