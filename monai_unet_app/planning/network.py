"""Window, depth, strides and kernels of a U-Net from the size and the spacing of images.

The rules are those that nnU-Net made common (Isensee et al., Nature Methods 2021, doi 10.1038/s41592-020-01008-z): the axes
with the finest voxels are halved until the others have caught up, and the window has the proportions of the images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_EDGE = 4  # voxels of the coarsest level, along an axis that was halved
MOST_LEVELS = 6
MOST_FILTERS = {2: 512, 3: 320}
_COARSE = 2.0  # an axis with voxels so many times as long as the shortest is neither halved nor convolved across


@dataclass(frozen=True)
class NetworkPlan:
    """A U-Net and the window that it looks at.

    Attributes:
        window: Voxels of a window, along R, A and S; rows and columns for 2D.
        strides: Of each level, the first all 1.
        kernels: Of each level, 1 or 3.
        filters: Of each level.
        multiple: What every axis of the window must be divisible by; None: what the strides ask.
    """

    window: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    filters: tuple[int, ...]
    multiple: int | None = None

    @property
    def divisor(self) -> tuple[int, ...]:
        """What the window must be divisible by, along each axis."""
        return _divisor(self.strides, self.multiple)

    @property
    def voxels(self) -> int:
        """In a window."""
        return math.prod(self.window)

    def smaller_window(self, most_voxels: float) -> tuple[int, ...]:
        """The window with its longest axes halved, as often as the network allows it, until it has at most so many voxels."""
        window = list(self.window)
        while math.prod(window) > most_voxels:
            may = [n if n % (2 * d) == 0 else 0 for n, d in zip(window, self.divisor, strict=True)]
            if not any(may):
                break
            window[may.index(max(may))] //= 2
        return tuple(window)


def plan_network(
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    most_voxels: float,
    base: int,
    multiple: int | None = None,
    like: NetworkPlan | None = None,
) -> NetworkPlan:
    """The window that covers an image, or as much of it as it may, and a network for it.

    Args:
        shape: Voxels of a usual image on the grid of the network, two or three axes.
        spacing_mm: Voxel size along these axes; pixels count as 1.
        most_voxels: In a window.
        base: Filters of the first level; each level has twice those of the one before, up to MOST_FILTERS.
        multiple: As in `NetworkPlan`.
        like: Levels and filters that are taken over.
    """
    window = [max(LEAST_EDGE, int(n)) for n in shape]
    while True:
        strides, kernels = (like.strides, like.kernels) if like else levels(window, spacing_mm)
        divisor = _divisor(strides, multiple)
        # To the nearest, not up: voxels beside the image cost as much as those in it, and windows overlap
        rounded = [max(1, math.floor(n / d + 0.5)) * d for n, d in zip(window, divisor, strict=True)]
        if math.prod(rounded) <= most_voxels:
            break
        # The axis of which the window still covers the largest part gives way; of equal parts, the longest axis
        smaller = [
            whole - d if whole - d >= max(d, LEAST_EDGE) else 0 for whole, d in zip(rounded, divisor, strict=True)
        ]
        order = sorted(range(len(window)), key=lambda axis: (window[axis] / max(shape[axis], 1), window[axis]))
        axis = next((axis for axis in reversed(order) if smaller[axis]), None)
        if axis is None:
            break
        window[axis] = smaller[axis]
    if multiple and max(rounded) == multiple:
        rounded[0] = 2 * multiple  # the norms of the coarsest level need more than one voxel
    filters = like.filters if like else widths(base, strides)
    return NetworkPlan(tuple(rounded), tuple(strides), tuple(kernels), filters, multiple)


def widths(base: int, strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Filters of each level, twice those of the one before, up to MOST_FILTERS."""
    return tuple(min(base * 2**level, MOST_FILTERS[len(strides[0])]) for level in range(len(strides)))


def _divisor(strides: Sequence[Sequence[int]], multiple: int | None) -> tuple[int, ...]:
    """The product of the strides of all levels along each axis, or the number that every axis must be a multiple of."""
    return tuple(multiple or math.prod(steps) for steps in zip(*strides, strict=True))


def levels(window: Sequence[int], spacing_mm: Sequence[float]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Strides and kernels of each level."""
    sizes, steps = list(map(float, window)), list(map(float, spacing_mm))
    strides: list[tuple[int, ...]] = [(1,) * len(sizes)]
    kernels = [_kernel(steps)]
    while len(strides) < MOST_LEVELS:
        halved = [size >= 2 * LEAST_EDGE for size in sizes]
        finest = min((step for step, may in zip(steps, halved, strict=True) if may), default=math.inf)
        stride = tuple(2 if may and step < _COARSE * finest else 1 for step, may in zip(steps, halved, strict=True))
        if set(stride) == {1}:
            break
        sizes = [size / n for size, n in zip(sizes, stride, strict=True)]
        steps = [step * n for step, n in zip(steps, stride, strict=True)]
        strides.append(stride)
        kernels.append(_kernel(steps))
    return strides, kernels


def _kernel(steps: Sequence[float]) -> tuple[int, ...]:
    return tuple(1 if step >= _COARSE * min(steps) else 3 for step in steps)
