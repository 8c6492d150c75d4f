"""Anybody's DICOM Segmentation -> labels or channels on the grid of an image, placed through the patient space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from dicom_io.errors import LabelError
from dicom_io.objects.places import TOLERANCE_VOXELS, check_frame_of_reference, check_patient_space, slice_key
from dicom_io.objects.seg_frames import SegFrame, walk_seg
from dicom_io.reading.headers import shown, shown_uid
from dicom_io.reading.instances import load_dataset, load_object, refusing
from dicom_io.volume import Affine, Volume

LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
MAX_SEGMENT = 65535  # SegmentNumber is US


def read_seg(path: Path, reference: Volume) -> Volume:
    """The labels of a SEG on the grid of `reference`, placed by patient position and checked by SOP Instance
    UID.

    Args:
        path: BINARY or LABELMAP segmentation, by whatever software.
        reference: The image that the labels are for. Need not be DICOM; then the position alone decides. For a
            picture without patient space, the SEG must name it.

    Returns:
        `reference` with label values = SegmentNumber, shape (I, J, K), uint8 (uint16 above 255 segments).

    Raises:
        UnreadableFileError: Not a DICOM file.
        LabelError: Not a SEG, FRACTIONAL, overlapping segments, another frame of reference, or frames whose
            pixels are not voxels of `reference`.
    """
    dataset = _open(path, reference)
    with refusing(path):
        return reference.with_array(_labels(dataset, reference))


def _labels(dataset: Dataset, reference: Volume) -> NDArray:
    if dataset.SegmentationType == "FRACTIONAL":
        raise LabelError(
            "the label file is a FRACTIONAL segmentation, which holds a probability a voxel; a BINARY or LABELMAP one is "
            "needed for labels; convert it first, or read its probabilities with `read_segments`"
        )
    array = np.zeros(reference.shape, dtype=np.uint8 if max(_numbers(dataset)) < 256 else np.uint16)
    grid = _Grid(reference)
    for frame in walk_seg(dataset):
        where, stored = grid.voxels(frame)
        taken = array[where]
        if taken.any():
            raise LabelError(
                f"segment {frame.segment} overlaps segment {int(taken.max())}; segments that exclude each other are needed "
                "for one label map; read them as channels with `read_segments`, or split the SEG into one file for each"
            )
        array[where] = frame.segment or stored
    return array


def read_segments(path: Path, reference: Volume) -> Volume:
    """The segments of a SEG as channels on the grid of `reference`; they may overlap or be fractions.

    Args:
        path: BINARY, LABELMAP or FRACTIONAL segmentation, by whatever software.
        reference: As in `read_seg`.

    Returns:
        `reference` with shape (I, J, K, C): one channel a segment, in increasing SegmentNumber (those of
        `segment_numbers`). uint8 0 or 1, or for FRACTIONAL float32 from 0 to 1.

    Raises:
        UnreadableFileError, LabelError: As `read_seg`, but for overlap and fractions.
    """
    dataset = _open(path, reference)
    with refusing(path):
        return reference.with_array(_channels(dataset, reference))


def _channels(dataset: Dataset, reference: Volume) -> NDArray:
    numbers = _numbers(dataset)
    fractional = dataset.SegmentationType == "FRACTIONAL"
    array = np.zeros((*reference.shape, len(numbers)), dtype=np.float32 if fractional else np.uint8)
    grid, steps = _Grid(reference), float(dataset.get("MaximumFractionalValue") or 255)
    for frame in walk_seg(dataset):
        where, stored = grid.voxels(frame)
        named = np.full(len(stored), frame.segment) if frame.segment else stored
        unknown = set(np.unique(named).tolist()) - set(numbers)
        if unknown:
            raise LabelError(
                f"the frames hold segment {min(unknown)}, described are {list(numbers)}; each needs its description; "
                "export the SEG again"
            )
        channel = np.searchsorted(numbers, named)
        array[(*where, channel)] = stored / steps if fractional else 1
    return array


def segment_numbers(path: Path) -> tuple[int, ...]:
    """The SegmentNumbers that a SEG describes, in increasing order, without a background."""
    dataset = load_dataset(Path(path), with_pixels=False)
    with refusing(path):
        return _numbers(dataset)


def _open(path: Path, reference: Volume) -> Dataset:
    dataset = load_object(path, "a segmentation", (SegmentationStorage, LABELMAP_STORAGE))
    with refusing(path):
        way = dataset.get("SegmentationType")
        check_frame_of_reference(dataset.get("FrameOfReferenceUID"), reference)
    if way not in ("BINARY", "LABELMAP", "FRACTIONAL"):
        raise LabelError(
            f"the label file has the segmentation type {shown(str(way)[:64])}; BINARY, LABELMAP or FRACTIONAL is needed; "
            "export the SEG again"
        )
    return dataset


def _numbers(dataset: Dataset) -> tuple[int, ...]:
    found = sorted({int(item.SegmentNumber) for item in dataset.get("SegmentSequence") or []} - {0})
    if not found or found[-1] > MAX_SEGMENT:
        raise LabelError(f"the label file describes the segments {found}; numbers from 1 are needed; export it again")
    return tuple(found)


class _Grid:
    """Finds the voxels of an image on which the pixels of a frame lie."""

    def __init__(self, reference: Volume) -> None:
        self.reference = reference
        self.to_index: Affine = np.linalg.inv(reference.affine_lps).astype(np.float64)
        count = len(reference.provenance.sop_instance_uids)
        self.slices = {} if reference.provenance.resampled else {slice_key(reference, k): k for k in range(count)}

    def voxels(self, frame: SegFrame) -> tuple[tuple[NDArray, ...], NDArray]:
        """Indices (i, j, k) of the voxels under the pixels that are not 0, and those pixels.

        Raises:
            LabelError: They fall between voxels or outside, or in another slice than the frame names.
        """
        rows, columns = np.nonzero(frame.pixels)
        stored = frame.pixels[rows, columns]
        if frame.plane is None:
            return self._in_picture(frame, rows, columns), stored
        check_patient_space(self.reference)
        index = frame.plane.points_mm(columns, rows) @ self.to_index[:3, :3].T + self.to_index[:3, 3]
        voxels = np.rint(index).astype(int)
        if np.abs(index - voxels).max(initial=0.0) > TOLERANCE_VOXELS:
            raise LabelError(
                f"segment {frame.segment} has pixels {np.abs(index - voxels).max():.2f} voxels away from the "
                f"image's grid; at most {TOLERANCE_VOXELS} is needed; resample the SEG to the image first"
            )
        if (voxels < 0).any() or (voxels >= self.reference.shape).any():
            raise LabelError(
                f"segment {frame.segment} has pixels outside the image, whose grid is {self.reference.shape}; "
                "use the SEG that was made for this image"
            )
        self._check_named_slice(frame, voxels)
        return tuple(voxels.T), stored

    def _in_picture(self, frame: SegFrame, rows: NDArray, columns: NDArray) -> tuple[NDArray, ...]:
        wanted = (self.reference.shape[1], self.reference.shape[0])
        if not self.reference.planar or frame.source_uid not in self.slices or frame.pixels.shape != wanted:
            named = shown_uid((frame.source_uid or "none").split("#")[0])
            raise LabelError(
                f"segment {frame.segment} has no place in patient space, {frame.pixels.shape} pixels and names the image "
                f"{named}; a SEG that names this very picture, of {wanted} pixels, or one with a place is needed; "
                "use the SEG that was made for this image"
            )
        return columns, rows, np.zeros_like(rows)

    def _check_named_slice(self, frame: SegFrame, voxels: NDArray) -> None:
        expected = self.slices.get(frame.source_uid or "")
        if expected is not None and len(voxels) and not (voxels[:, 2] == expected).all():
            raise LabelError(
                f"a frame of segment {frame.segment} names slice {expected} of the image but lies in slice "
                f"{int(voxels[0, 2])}; name and position must agree; the SEG was written with its slices out of "
                "order"
            )
