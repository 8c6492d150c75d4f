"""Oblique, lopsided phantoms as DICOM series: no flip, swap or shift of an axis can pass a test unseen.

The geometry is the caller's `affine_lps`, every fault is a keyword; nothing under test is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4.1"
SECONDARY_CAPTURE_STORAGE = "1.2.840.10008.5.1.4.1.1.7"
CT_IMAGE = {"SOPClassUID": CT_IMAGE_STORAGE, "Modality": "CT"}

Edit = Callable[[Dataset, int], None]


def linear_field(points_lps: np.ndarray) -> np.ndarray:
    """A value for each point (..., 3) that linear interpolation gives back exactly."""
    return 20.0 + points_lps @ np.array([0.9, -1.7, 2.3])


def oblique_affine(
    spacing_mm: Sequence[float] = (1.25, 0.75, 2.5),
    origin_lps: Sequence[float] = (-31.5, 12.25, -47.0),
    degrees: Sequence[float] = (12.0, -23.0, 37.0),
) -> NDArray[np.float64]:
    """Shape (4, 4): index (i, j, k, 1) to LPS mm; a right-handed grid turned about all three axes."""
    a, b, c = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = about_z @ about_y @ about_x @ np.diag(spacing_mm)
    affine_lps[:3, 3] = origin_lps
    return affine_lps


def tilted_affine(tilt_degrees: float = 20.0, gap_mm: float = 3.0) -> NDArray[np.float64]:
    """Shape (4, 4): a CT whose gantry is tilted about x: the table moves along z, not along the normal."""
    tilt = np.radians(tilt_degrees)
    affine_lps = np.eye(4)
    affine_lps[:3, 0] = (0.5, 0.0, 0.0)
    affine_lps[:3, 1] = (0.0, 0.5 * np.cos(tilt), -0.5 * np.sin(tilt))
    affine_lps[:3, 2] = (0.0, 0.0, gap_mm)
    affine_lps[:3, 3] = (-7.0, -9.0, 120.0)
    return affine_lps


def lopsided_array(shape: tuple[int, int, int] = (11, 9, 7)) -> NDArray[np.int16]:
    """Shape (I, J, K), 10 to about 500: a slope that differs along each axis, a block near one corner."""
    i, j, k = np.indices(shape)
    array = 10 + 7 * i + 19 * j + 41 * k + (i * j) % 5
    array[1:4, 1:3, 1:3] += 300
    return array.astype(np.int16)


def lopsided_labels(shape: tuple[int, int, int] = (11, 9, 7)) -> NDArray[np.uint8]:
    """Shape (I, J, K): 1 in a block of 18 voxels near one corner, 2 in a block of 8 elsewhere, else 0."""
    labels = np.zeros(shape, dtype=np.uint8)
    labels[1:4, 1:4, 1:3] = 1
    labels[5:7, 4:6, 3:5] = 2
    return labels


def write_mr_series(
    folder: Path,
    array: NDArray,
    affine_lps: NDArray[np.float64],
    *,
    drop: Sequence[int] = (),
    shift_mm: Mapping[int, Sequence[float]] | None = None,
    slopes: Sequence[float] | None = None,
    intercepts: Sequence[float] | None = None,
    decimals: int = 9,
    names_backwards: bool = True,
    prefix: str = "slice",
    header: Mapping[str, object] | None = None,
    edit: Edit | None = None,
) -> list[Path]:
    """A valid classic MR series, one file a slice; the faults asked for come on top.

    Args:
        folder: Created where it is absent.
        array: Shape (I, J, K), any integer dtype of 8 or 16 bits; these are the STORED values.
        affine_lps: Shape (4, 4): index to LPS mm; columns 0 and 1 give spacing and orientation of a slice.
        drop: Slices k that are not written.
        shift_mm: LPS mm added to the position of slice k.
        slopes: RescaleSlope of each slice; with `intercepts`, absent by default as is usual in MR.
        intercepts: RescaleIntercept of each slice.
        decimals: Digits of positions after the point.
        names_backwards: File names and instance numbers run against the positions, as some scanners do.
        prefix: Start of the file names.
        header: DICOM keyword to value, for every slice: UIDs, Modality, ImageType and so on.
        edit: Called with each data set and its k last of all, before the file is written.

    Returns:
        The paths in order of k.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, paths = array.shape[2], []
    series = _series_header(header)
    for k in [k for k in range(count) if k not in drop]:
        number = count - k if names_backwards else k + 1
        dataset = _slice(series, array[:, :, k], number)
        position = affine_lps[:3, 3] + k * affine_lps[:3, 2] + np.array((shift_mm or {}).get(k, (0, 0, 0)))
        _place(dataset, dataset, dataset, affine_lps, position, decimals)
        if slopes is not None or intercepts is not None:
            dataset.RescaleSlope = (slopes or [1.0] * count)[k]
            dataset.RescaleIntercept = (intercepts or [0.0] * count)[k]
            dataset.RescaleType = "US"
        if edit is not None:
            edit(dataset, k)
        paths.append(folder / f"{prefix}_{number:04d}.dcm")
        save(dataset, paths[-1])
    return paths


def write_enhanced_mr(
    path: Path,
    array: NDArray,
    affine_lps: NDArray[np.float64],
    *,
    slopes: Sequence[float] | None = None,
    edit: Edit | None = None,
) -> Path:
    """One enhanced multi-frame MR object, frames against the positions: enough to be read, no full IOD."""
    count = array.shape[2]
    backwards = list(range(count))[::-1]
    dataset = _slice(_series_header({"SOPClassUID": ENHANCED_MR_IMAGE_STORAGE}), array[:, :, 0], 1)
    dataset.PixelData = np.ascontiguousarray(array[:, :, backwards].transpose(2, 1, 0)).tobytes()
    dataset.NumberOfFrames = count
    shared, frames = Dataset(), []
    for k in backwards:
        frame, position, orientation, measures, rescale = (Dataset() for _ in range(5))
        _place(position, orientation, measures, affine_lps, affine_lps[:3, 3] + k * affine_lps[:3, 2], 9)
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = (
            (slopes or [1.0] * count)[k],
            0.0,
            "US",
        )
        frame.PlanePositionSequence = DicomSequence([position])
        frame.PixelValueTransformationSequence = DicomSequence([rescale])
        shared.PlaneOrientationSequence = DicomSequence([orientation])
        shared.PixelMeasuresSequence = DicomSequence([measures])
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = DicomSequence(frames)
    if edit is not None:
        edit(dataset, 0)
    return save(dataset, path)


def split_frames(path: Path, *sizes: int) -> Path:
    """The folder of a multi-frame object taken apart: a complete concatenation of parts with so many frames each."""
    whole, uid, first = pydicom.dcmread(path), generate_uid(), 0
    length = len(whole.PixelData) // whole.NumberOfFrames
    for number, size in enumerate(sizes, start=1):
        part = deepcopy(whole)
        part.ConcatenationUID, part.SOPInstanceUIDOfConcatenationSource = uid, whole.SOPInstanceUID
        part.InConcatenationNumber, part.InConcatenationTotalNumber = number, len(sizes)
        part.ConcatenationFrameOffsetNumber = first
        part.SOPInstanceUID, part.NumberOfFrames = generate_uid(), size
        part.PerFrameFunctionalGroupsSequence = list(whole.PerFrameFunctionalGroupsSequence)[first : first + size]
        part.PixelData = whole.PixelData[first * length : (first + size) * length]
        save(part, path.with_suffix("") / f"{number}.dcm")
        first += size
    path.unlink()
    return path.with_suffix("")


def write_picture(path: Path, array: NDArray, header: Mapping[str, object] | None = None) -> Path:
    """A 2D picture without patient space; `array` of shape (I, J), or (I, J, 3) uint8 for RGB."""
    colour = array.ndim == 3
    dataset = _slice(_series_header({"SOPClassUID": SECONDARY_CAPTURE_STORAGE, "Modality": "OT"}), array, 1)
    if colour:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.PixelData = np.ascontiguousarray(array.transpose(1, 0, 2)).tobytes()
    for keyword, value in (header or {}).items():
        setattr(dataset, keyword, value)
    return save(dataset, path)


def save(dataset: Dataset, path: Path) -> Path:
    """Writes the data set as a DICOM file with its meta information."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", "")
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), dataset, file_meta=meta, preamble=b"\0" * 128)
    file.save_as(path, enforce_file_format=True)
    return path


def _series_header(header: Mapping[str, object] | None) -> dict[str, object]:
    """What every slice says, a made-up patient included; `header` has the last word."""
    return {
        "SOPClassUID": MR_IMAGE_STORAGE,
        "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "PatientName": "Phantom^Lopsided",
        "PatientID": "PHANTOM-1",
        "PatientBirthDate": "19700101",
        "PatientSex": "O",
        "StudyDate": "20260101",
        "StudyTime": "120000",
        "StudyID": "1",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "Modality": "MR",
        "Manufacturer": "none",
        "SeriesNumber": 3,
        "PositionReferenceIndicator": "",
        "PatientPosition": "HFS",
        "BodyPartExamined": "BRAIN",
        "ScanningSequence": "GR",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "3D",
        "EchoTime": 4.0,
        "RepetitionTime": 8.0,
        "EchoTrainLength": 1,
        **(header or {}),
    }


def _slice(series: Mapping[str, object], pixels: NDArray, number: int) -> Dataset:
    """A data set with the pixel module; `pixels` of shape (I, J): columns, rows."""
    dataset = Dataset()
    for keyword, value in series.items():
        setattr(dataset, keyword, value)
    bits = pixels.dtype.itemsize * 8
    dataset.SOPInstanceUID, dataset.InstanceNumber = generate_uid(), number
    dataset.Columns, dataset.Rows = pixels.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.add_new(
        "PixelData", "OW" if bits == 16 else "OB", np.ascontiguousarray(np.swapaxes(pixels, 0, 1)).tobytes()
    )
    return dataset


def _place(
    position: Dataset,
    orientation: Dataset,
    measures: Dataset,
    affine_lps: NDArray[np.float64],
    position_lps: NDArray[np.float64],
    decimals: int,
) -> None:
    """Fills the three macros (or one data set that plays all three) as PS3.3 C.7.6.2 says."""
    between_columns, between_rows = np.linalg.norm(affine_lps[:3, :2], axis=0)
    cosines = np.concatenate([affine_lps[:3, 0] / between_columns, affine_lps[:3, 1] / between_rows])
    position.ImagePositionPatient = [_decimal(x, decimals) for x in position_lps]
    orientation.ImageOrientationPatient = [_decimal(x, 12) for x in cosines]
    measures.PixelSpacing = [_decimal(between_rows, 9), _decimal(between_columns, 9)]
    measures.SliceThickness = _decimal(float(np.linalg.norm(affine_lps[:3, 2])), 6)


def _decimal(number: float, decimals: int) -> str:
    """At most 16 characters, as DS demands."""
    return f"{number:.{decimals}f}"[:16]
