"""Labels to a DICOM Segmentation and back.

BINARY by default, one frame a segment and slice, the encoding that every viewer shows. Frames without voxels are left
out. A segment without voxels stays described (its number is its label value, and "looked for, not found" is a
result) and has no frames; if all segments are empty the empty frames are written, because an image needs at
least one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicom_io import proof
from dicom_io.errors import LabelError
from dicom_io.objects import identity
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.odd_headers import refusing_odd_headers
from dicom_io.objects.seg_object import SegEncoding, build_seg
from dicom_io.objects.seg_read import read_seg, read_segments
from dicom_io.objects.slice_positions import check_grid, slices_of
from dicom_io.volume import Volume, slice_by_slice

__all__ = ["check_labels", "in_slices", "read_seg", "read_segments", "write_seg"]


@refusing_odd_headers
def write_seg(
    labels: Volume,
    source: Volume,
    path: Path,
    result: ResultInfo,
    *,
    encoding: SegEncoding = "binary",
    empty_frames: bool = False,
    prove: bool = True,
) -> Path:
    """Write labels as a SEG that refers to the series they were made from.

    Args:
        labels: On the grid of `source`. Shape (I, J, K) with whole values 0 (background) to N, of any type, or
            (I, J, K, C) with channel c non-zero where segment c + 1 is (segments may overlap); for "fractional"
            (I, J, K, C) with the probability of segment c + 1, 0 to 1, kept as float32.
        source: DICOM volume; its files are read again for their headers. A picture without patient space is
            welcome: its segments lie in pixels.
        path: Target file, replaced if it exists.
        result: What computed the labels.
        encoding: "binary", which every viewer shows, plain or with the whole data set deflated; "labelmap", plain,
            with run lengths or JPEG-LS; "fractional", in steps of 1/255.
        empty_frames: Write a frame for every slice and segment, also where there is no voxel: some viewers want them.
        prove: Read the file back and compare it in mm before it gets its name.

    Returns:
        `path`.

    Raises:
        LabelError: The labels do not fit the source, the segments or the encoding.
        GeometryProofError: What was written is not what was meant; no file is left.
    """
    check_labels(labels, result, encoding)
    headers = identity.source_headers(source, of_each=False)
    slices = slices_of(source, headers)
    check_grid(labels, source, slices)
    labels = in_slices(labels, encoding)
    built = build_seg(labels, source, headers, slices, result, encoding, empty_frames=empty_frames)
    return proof.save_proved(
        built.save,
        path,
        (lambda file: proof.prove_seg(file, labels, source, result.segments, headers)) if prove else None,
    )


def in_slices(labels: Volume, encoding: SegEncoding = "binary") -> Volume:
    """What labels mean, in the smallest type, each slice in one piece of memory. The same meaning has the same digest.

    Args:
        labels: Shape (I, J, K) with whole values, or (I, J, K, C); see `write_seg`.
        encoding: "fractional" for probabilities.

    Returns:
        Label values as uint8 or uint16; channels as uint8, 1 where they are not 0; probabilities as float32.

    Raises:
        LabelError: Label values that are not whole numbers from 0 to 65535.
    """
    if encoding == "fractional":
        array = labels.array.astype(np.float32, copy=False)
    else:
        array = _whole(labels.array) if labels.array.ndim == 3 else _set(labels.array)
    return labels.with_array(slice_by_slice(array))


def _whole(array: NDArray) -> NDArray:
    """Label values in the smallest type."""
    smallest = array.astype(np.uint8 if array.max(initial=0) < 256 else np.uint16, copy=False)
    if smallest is not array and (smallest != array).any():
        raise LabelError(
            f"the labels are of the type {array.dtype} with values from {array.min():g} to {array.max():g}; whole numbers from "
            "0 to 65535 are needed; threshold them first"
        )
    return smallest


def _set(array: NDArray) -> NDArray:
    """Channels as 0 and 1."""
    if array.dtype == np.uint8 and array.max(initial=0) <= 1:
        return array
    return (array != 0).view(np.uint8)


def check_labels(labels: Volume, result: ResultInfo, encoding: SegEncoding = "binary") -> None:
    """Pass if every label value has a segment, in a form that the encoding can hold. Raises LabelError, naming the value
    that has none.
    """
    array, count = labels.array, len(result.segments)
    if encoding == "fractional":
        _check_probabilities(labels)
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
                "the channels hold NaN, which says neither yes nor no; zeros and other numbers are needed; look at what "
                "computed them"
            )
        return
    if array.dtype.kind == "u" and array.max(initial=0) <= count:
        return
    unknown = [value for value in np.unique(array).tolist() if value not in range(count + 1)]
    if unknown:
        raise LabelError(
            f"the labels hold the value {unknown[0]}; 0 (background) to {count} are described; "
            "use the segments.json that belongs to these labels"
        )


def _check_probabilities(labels: Volume) -> None:
    array = labels.array
    if array.ndim != 4 or array.dtype.kind != "f" or not (array.min(initial=0) >= 0 and array.max(initial=0) <= 1):
        raise LabelError(
            f"a fractional SEG was asked for, and the values have the shape {array.shape}, type {array.dtype} and range "
            f"{array.min(initial=0):g} to {array.max(initial=0):g}; probabilities of 0 to 1 are needed, one channel a segment; "
            "give the probabilities, or write a binary SEG"
        )
