"""What a large result keeps of its probabilities, on disk: written box by box, read class by class or box by box."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from monai_unet_app.inference.spool import IN_MEMORY_BYTES, Spool
from monai_unet_app.inference.windows import Slices, shape_of


class StoredChannels:
    """Channels of an image in a file without a name: a box is written as it comes, a channel is read by itself.

    Args:
        shape: (C, *spatial).
        dtype: Of the values.

    Raises:
        InputRefusedError: The disk has no room for them.
    """

    def __init__(self, shape: Sequence[int], dtype: DTypeLike) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._boxes: list[tuple[Slices, int]] = []  # each with its place in the file
        self._spool = Spool("the probabilities of all classes", "leave out the flag that needs them")
        self._spool.reserve(self.dtype.itemsize * math.prod(shape))

    def __setitem__(self, where: tuple[Any, ...], values: NDArray[Any]) -> None:
        """Writes values (C, *box) at (..., *box); boxes do not overlap."""
        box: Slices = where[1:]
        self._boxes.append((box, self._spool.put(torch.from_numpy(values.astype(self.dtype, copy=False)))))

    def __getitem__(self, channel: int) -> NDArray[Any]:
        """Shape (*spatial): a channel, read anew each time. Raises IndexError after the last."""
        if not 0 <= channel < len(self):
            raise IndexError(
                f"there are {len(self)} channels, and channel {channel} was requested; they are counted from 0"
            )
        out = np.empty(self.shape[1:], self.dtype)
        for box, place in self._boxes:
            size = shape_of(box)
            begin = place + channel * math.prod(size) * self.dtype.itemsize
            out[box] = self._spool.read(begin, size, self.dtype).numpy()
        return out

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[channel] for channel in range(len(self)))


class StoredMap:
    """One value for each voxel, in a file without a name; none of it is in memory but while it is looked at.

    Args:
        shape: (I, J, K), in voxels.
        dtype: Of the values.

    Raises:
        InputRefusedError: The disk has no room for it.
    """

    def __init__(self, shape: Sequence[int], dtype: DTypeLike) -> None:
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self._spool = Spool("the certainty of every voxel", "take a smaller image")
        self._spool.reserve(self.dtype.itemsize * math.prod(shape))

    def __setitem__(self, where: Any, values: NDArray[Any]) -> None:
        self._spool.mapped(self.shape, self.dtype)[where] = values

    def __getitem__(self, where: Any) -> NDArray[Any]:
        return np.asarray(self._spool.mapped(self.shape, self.dtype)[where])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self._spool.mapped(self.shape, self.dtype), dtype, copy=copy)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter(np.asarray(self))


def map_of(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any] | StoredMap:
    """Room for one value of each voxel: an array, or for more than half of IN_MEMORY_BYTES a file. Raises as `StoredMap`."""
    in_memory = 2 * np.dtype(dtype).itemsize * math.prod(shape) <= IN_MEMORY_BYTES
    return np.empty(tuple(shape), dtype) if in_memory else StoredMap(shape, dtype)


def channels_of(shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any] | StoredChannels:
    """Room for values (C, *spatial): an array, or for more than IN_MEMORY_BYTES a file. Raises as `StoredChannels`."""
    in_memory = np.dtype(dtype).itemsize * math.prod(shape) <= IN_MEMORY_BYTES
    return np.empty(tuple(shape), dtype) if in_memory else StoredChannels(shape, dtype)
