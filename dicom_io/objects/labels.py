"""Labels as a writer takes them: each value has a segment, and equal meaning has equal bytes."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.errors import LabelError
from dicom_io.kinds.encodings import SegEncoding
from dicom_io.objects.identity import ResultInfo
from dicom_io.volume import Volume, number_type, slice_by_slice


class Fractions:
    """The probabilities of the segments of a result, one segment at a time: those of many segments would fill the memory.

    Args:
        count: Number of segments.
        channel: Gives the probabilities (I, J, K) of a segment, counted from 0.
    """

    def __init__(self, count: int, channel: Callable[[int], Volume]) -> None:
        self.count, self._channel = count, channel
        self._last: tuple[int, Volume] | None = None

    @classmethod
    def of_volume(cls, probabilities: Volume) -> "Fractions":
        """Those in a volume (I, J, K, C)."""
        return cls(probabilities.array.shape[3], probabilities.channel)

    def __getitem__(self, number: int) -> Volume:
        """Shape (I, J, K), float32: the probability of a segment, counted from 1. Raises LabelError for other values."""
        if self._last is None or self._last[0] != number:
            self._last = None  # two of them are not held at once
            volume = self._channel(number - 1)
            _check_range(volume.array)
            self._last = number, volume.with_array(slice_by_slice(volume.array.astype(np.float32, copy=False)))
        return self._last[1]


def in_slices(labels: Volume) -> Volume:
    """The labels in the smallest type, each slice in one piece of memory. Labels of the same meaning have the same digest.

    Args:
        labels: Shape (I, J, K) with whole values, or (I, J, K, C); see `write_seg`.

    Returns:
        Label values as uint8 or uint16; channels as uint8, 1 where they are not 0.

    Raises:
        LabelError: Label values that are not whole numbers from 0 to 65535.
    """
    array = _whole(labels.array) if labels.array.ndim == 3 else _set(labels.array)
    return labels.with_array(slice_by_slice(array))


def _whole(array: NDArray[Any]) -> NDArray[Any]:
    """Label values in the smallest type."""
    smallest = array.astype(number_type(array.max(initial=0)), copy=False)
    # A fraction, a negative number or a number above 65535 changes when it is converted.
    if smallest is not array and (smallest != array).any():
        raise LabelError(
            f"the labels are of the type {array.dtype} with values from {array.min():g} to {array.max():g}; whole numbers from "
            "0 to 65535 are needed; threshold them first"
        )
    return smallest


def _set(array: NDArray[Any]) -> NDArray[Any]:
    """Channels as 0 and 1."""
    if array.dtype == np.uint8 and array.max(initial=0) <= 1:
        return array
    # A boolean is a byte of 0 or 1, so it becomes a number without a copy.
    return np.asarray(array != 0).view(np.uint8)


def check_labels(labels: Volume, result: ResultInfo, encoding: SegEncoding = "binary") -> None:
    """Pass if every label value has a segment, in a form that the encoding can hold. Raises LabelError with the value
    that has no segment.
    """
    array, count = labels.array, len(result.segments)
    if encoding == "fractional":
        if array.ndim != 4:
            raise _no_probabilities(array)
        _check_range(array)
    if encoding.startswith("labelmap") and array.ndim == 4:
        raise LabelError(
            f"the labels have {array.shape[3]} channels, which may overlap; a label map holds one segment a voxel; "
            "write a binary SEG"
        )
    if array.ndim == 4:
        if array.shape[3] != count:
            raise LabelError(
                f"the labels have {array.shape[3]} channels and {count} segments are described; one each is "
                "needed; use the segments.json that belongs to these labels"
            )
        if array.dtype.kind in "fc" and np.isnan(array).any():
            raise LabelError(
                "the channels contain NaN, which is neither 0 nor 1; zeros and other numbers are needed; look at what "
                "computed them"
            )
        return
    # The usual case, decided without np.unique, which sorts all voxels.
    if array.dtype.kind in "iu" and array.min(initial=0) >= 0 and array.max(initial=0) <= count:
        return
    unknown = [value for value in np.unique(array.ravel(order="K")).tolist() if value not in range(count + 1)]
    if unknown:
        raise LabelError(
            f"the labels hold the value {unknown[0]}; 0 (background) to {count} are described; "
            "use the segments.json that belongs to these labels"
        )


def _check_range(array: NDArray[Any]) -> None:
    # `not (... and ...)`, so that NaN is refused too.
    if array.dtype.kind != "f" or not (array.min(initial=0) >= 0 and array.max(initial=0) <= 1):
        raise _no_probabilities(array)


def _no_probabilities(array: NDArray[Any]) -> LabelError:
    return LabelError(
        f"a fractional SEG was asked for, and the values have the shape {array.shape}, type {array.dtype} and range "
        f"{array.min(initial=0):g} to {array.max(initial=0):g}; probabilities of 0 to 1 are needed, one channel a segment; "
        "give the probabilities, or write a binary SEG"
    )
