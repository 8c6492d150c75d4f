"""Labels to a DICOM Segmentation and back.

BINARY by default, one frame a segment and slice, the encoding that every viewer shows. Frames without voxels are left
out. A segment without voxels stays described (its number is its label value, and "looked for, not found" is a
result) and has no frames; if all segments are empty the empty frames are written, because an image needs at
least one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import SegmentationStorage

from dicom_io import identity, proof
from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.identity import ResultInfo
from dicom_io.places import TOLERANCE_VOXELS, check_frame_of_reference, check_grid, slice_key, slices_of
from dicom_io.seg_frames import SegFrame, walk_seg
from dicom_io.seg_object import SegEncoding, build_seg
from dicom_io.volume import Affine, Volume, slice_by_slice

LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"


def write_seg(
    labels: Volume,
    source: Volume,
    path: Path,
    result: ResultInfo,
    *,
    encoding: SegEncoding = "binary",
    prove: bool = True,
) -> Path:
    """Write labels as a SEG that refers to the series they were made from.

    Args:
        labels: On the grid of `source`. Shape (I, J, K) with values 0 (background) to N, or (I, J, K, C) with
            channel c non-zero where segment c + 1 is (segments may overlap); for "fractional" (I, J, K, C) with the
            probability of segment c + 1, 0 to 1.
        source: DICOM volume; its files are read again for their headers. A picture without patient space is
            welcome: its segments lie in pixels.
        path: Target file, replaced if it exists.
        result: What computed the labels.
        encoding: "binary", which every viewer shows, plain or with the whole data set deflated; "labelmap", plain,
            with run lengths or JPEG-LS; "fractional", in steps of 1/255.
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
    built = build_seg(labels, source, headers, slices, result, encoding)
    return proof.save_proved(
        built.save, path, (lambda file: proof.prove_seg(file, labels, source, slices)) if prove else None
    )


def read_seg(path: Path, reference: Volume) -> Volume:
    """The labels of a SEG on the grid of `reference`, placed by patient position and checked by SOP Instance
    UID.

    Args:
        path: BINARY or LABELMAP segmentation, by whatever software.
        reference: The image that the labels are for. Need not be DICOM; then the position alone decides.

    Returns:
        `reference` with label values = SegmentNumber, shape (I, J, K), uint8 (uint16 above 255 segments).

    Raises:
        UnreadableFileError: Not a DICOM file.
        LabelError: Not a SEG, FRACTIONAL, overlapping segments, another frame of reference, or frames whose
            pixels are not voxels of `reference`.
    """
    dataset = _read(path)
    _check_readable(dataset, reference)
    numbers = [int(item.SegmentNumber) for item in dataset.SegmentSequence]
    array = np.zeros(reference.shape, dtype=np.uint8 if max(numbers) < 256 else np.uint16)
    slices = {slice_key(reference, k): k for k in range(len(reference.provenance.sop_instance_uids))}
    to_index: Affine = np.linalg.inv(reference.affine_lps).astype(np.float64)
    for frame in walk_seg(dataset):
        _place(frame, array, to_index, slices)
    return reference.with_array(array)


def in_slices(labels: Volume, encoding: SegEncoding = "binary") -> Volume:
    """The same labels in the smallest type (probabilities as they are), each slice in one piece of memory."""
    array = labels.array
    if encoding != "fractional":
        array = array.astype(np.uint8 if array.max(initial=0) < 256 else np.uint16, copy=False)
    return labels.with_array(slice_by_slice(array))


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


def _read(path: Path) -> Dataset:
    try:
        return pydicom.dcmread(path)
    except (OSError, InvalidDicomError, EOFError) as error:
        raise UnreadableFileError(
            f"{Path(path).name} cannot be read as DICOM ({type(error).__name__}); a DICOM SEG is needed; "
            "check that the file is whole"
        ) from error


def _check_readable(dataset: Dataset, reference: Volume) -> None:
    kind, way = dataset.get("SOPClassUID"), dataset.get("SegmentationType")
    if kind not in (SegmentationStorage, LABELMAP_STORAGE) or way not in ("BINARY", "LABELMAP"):
        raise LabelError(
            f"the label file has SOP class {kind} and segmentation type {way}; a BINARY or LABELMAP "
            "segmentation is needed; convert probabilities to a binary SEG first"
        )
    check_frame_of_reference(dataset.get("FrameOfReferenceUID"), reference)


def _place(frame: SegFrame, array: NDArray, to_index: Affine, slices: dict[str, int]) -> None:
    """Put the pixels of one frame where patient space says; refuse what falls between voxels or on a taken
    one.
    """
    rows, columns = np.nonzero(frame.pixels)
    if frame.plane is None:
        raise LabelError(
            f"segment {frame.segment} has no place in patient space; one is needed to lay it on an image; "
            "use a SEG of a volume"
        )
    index = frame.plane.points_mm(columns, rows) @ to_index[:3, :3].T + to_index[:3, 3]
    voxels = np.rint(index).astype(int)
    if np.abs(index - voxels).max(initial=0.0) > TOLERANCE_VOXELS:
        raise LabelError(
            f"segment {frame.segment} has pixels {np.abs(index - voxels).max():.2f} voxels away from the "
            f"image's grid; at most {TOLERANCE_VOXELS} is needed; resample the SEG to the image first"
        )
    if (voxels < 0).any() or (voxels >= array.shape).any():
        raise LabelError(
            f"segment {frame.segment} has pixels outside the image, whose grid is {array.shape}; "
            "use the SEG that was made for this image"
        )
    _check_named_slice(frame, voxels, slices)
    where = tuple(voxels.T)
    values = frame.pixels[rows, columns] if frame.segment == 0 else frame.segment
    taken = array[where]
    if taken.any():
        raise LabelError(
            f"segment {frame.segment} overlaps segment {int(taken.max())}; segments that exclude each other "
            "are needed; split the SEG into one file for each"
        )
    array[where] = values


def _check_named_slice(frame: SegFrame, voxels: NDArray, slices: dict[str, int]) -> None:
    expected = slices.get(frame.source_uid or "")
    if expected is not None and len(voxels) and not (voxels[:, 2] == expected).all():
        raise LabelError(
            f"a frame of segment {frame.segment} names slice {expected} of the image but lies in slice "
            f"{int(voxels[0, 2])}; name and position must agree; the SEG was written with its slices out of "
            "order"
        )
