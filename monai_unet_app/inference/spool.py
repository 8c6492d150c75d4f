"""Tensors that wait on disk while memory is short."""

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from monai_unet_app.errors import NoRoomError

IN_MEMORY_BYTES = 1 << 28
"""Of stored rows: the logits of a small case stay in memory."""

Rows = tuple[int, Tensor]
"""Neighbouring positions along the first axis of the image: the first position, and values of shape (C, rows, *rest)."""


class Spool:
    """A temporary file of tensors. It has no name: nothing is left of it however a run ends.

    Args:
        held: What it holds, for the message of a full disk.
        remedy: What helps besides more space.
    """

    def __init__(
        self, held: str = "sums of windows that are kept on disk", remedy: str = "allow more memory by --memory-limit"
    ) -> None:
        self._held, self._remedy = held, remedy
        self._file: IO[bytes] | None = None
        self._end = 0
        self._free: dict[int, list[int]] = {}  # number of bytes -> places that hold nothing any more

    def put(self, tensor: Tensor) -> int:
        """Writes a tensor and gives its place.

        Raises:
            NoRoomError: The disk is full.
        """
        data = tensor.contiguous().cpu().numpy().reshape(-1).view(np.uint8).data
        free = self._free.get(len(data))
        place = free.pop() if free else self._end
        self._end = max(self._end, place + len(data))
        written = 0
        with self._refusing(self._end - place):
            while written < len(data):
                written += os.pwrite(self._descriptor(), data[written : written + (1 << 24)], place + written)
        return place

    def reserve(self, size: int) -> None:
        """Takes this many bytes of the disk before anything is written. Raises as `put`."""
        with self._refusing(size), suppress(AttributeError):  # macOS has no such call
            os.posix_fallocate(self._descriptor(), 0, size)

    def take(self, place: int, shape: tuple[int, ...]) -> Tensor:
        """Reads the tensor of this shape; its place is free again."""
        tensor = self.read(place, shape)
        self._free.setdefault(4 * tensor.numel(), []).append(place)
        return tensor

    def read(self, place: int, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Tensor:
        """Reads the tensor of this shape, which stays."""
        array = np.empty(shape, dtype)
        data = array.reshape(-1).view(np.uint8).data
        read = 0
        while read < len(data):
            read += os.preadv(self._descriptor(), [data[read : read + (1 << 24)]], place + read)
        # Without this the system keeps in memory what was read, and what is on disk is to leave the memory to others
        with suppress(AttributeError, OSError):
            os.posix_fadvise(self._descriptor(), place, len(data), os.POSIX_FADV_DONTNEED)
        return torch.from_numpy(array)

    def mapped(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """The first values of the file, an array of this shape; what is looked at is in memory until the array goes."""
        self._descriptor()
        assert self._file is not None
        return np.memmap(self._file, dtype, "r+", shape=shape)

    def copied_on_write(self, place: int, shape: tuple[int, ...]) -> Tensor:
        """The tensor at a place, mapped; what is written into it does not come into the file."""
        assert self._file is not None
        return torch.from_numpy(np.memmap(self._file, np.float32, "c", place, shape))

    def _descriptor(self) -> int:
        if self._file is None:  # not before it is needed
            self._file = tempfile.TemporaryFile(prefix="monai-unet-", buffering=0)  # noqa: SIM115 - `finalize` closes it
            weakref.finalize(self, self._file.close)
        return self._file.fileno()

    @contextmanager
    def _refusing(self, size: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise NoRoomError(
                f"{self._held} cannot be written to {tempfile.gettempdir()} ({error.strerror}); {size / 1e6:.0f} MB more are "
                f"needed at least; free space, name another folder by TMPDIR, or {self._remedy}"
            ) from error


class StoredRows:
    """Rows of logits that can be gone through again; large ones are on disk."""

    def __init__(self) -> None:
        self._spool = Spool()
        self._rows: list[tuple[int, Tensor | tuple[int, tuple[int, ...]]]] = []
        self._bytes = 0

    def kept(self, rows: Iterable[Rows]) -> Iterator[Rows]:
        """The same rows, each stored as it passes."""
        for start, values in rows:
            self._bytes += 4 * values.numel()
            in_memory = self._bytes <= IN_MEMORY_BYTES
            self._rows.append((start, values if in_memory else (self._spool.put(values), tuple(values.shape))))
            yield start, values

    def __iter__(self) -> Iterator[Rows]:
        for start, held in self._rows:
            yield start, held if isinstance(held, Tensor) else self._spool.read(*held)
