"""Boxes of an image, and the values of its voxels, which may lie in a file."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]
EMPTY_BOX: Box = (slice(0, 0), slice(0, 0), slice(0, 0))

_SLAB_VOXELS = 1 << 22  # of a map that is read at once


class Channels(Protocol):
    """Values of several channels, (C, I, J, K), or of one, (I, J, K): an array, or a file that is read where asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, channel: Any, /) -> Any: ...
    def __iter__(self) -> Iterator[Any]: ...


def values_in(values: Channels, mask: NDArray[np.bool_], box: Box = (slice(0, None),) * 3) -> NDArray[Any]:
    """The values (I, J, K) of the voxels of a mask, which has the shape of the box, in its order; read slab by slab."""
    height = max(1, _SLAB_VOXELS * len(mask) // max(1, mask.size))
    first = box[0].start
    slabs = [mask[start : start + height] for start in range(0, len(mask), height)]
    parts = [
        np.asarray(values[(slice(first + n * height, first + n * height + len(slab)), *box[1:])])[slab]
        for n, slab in enumerate(slabs)
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts])
