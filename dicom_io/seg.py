"""Labels to a DICOM Segmentation and back.

BINARY, one frame a segment and slice, the encoding that every viewer shows. Frames without voxels are left
out. A segment without voxels stays described (its number is its label value, and "looked for, not found" is a
result) and has no frames; if all segments are empty the empty frames are written, because an image needs at
least one.
"""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import SegmentationStorage

from dicom_io import identity, proof
from dicom_io.coding import Segment, code_item
from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.identity import ResultInfo
from dicom_io.proof import SegFrame
from dicom_io.volume import Affine, Volume

LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"


def write_seg(labels: Volume, source: Volume, path: Path, result: ResultInfo, *, prove: bool = True) -> Path:
    """Write labels as a SEG that refers to the series they were made from.

    Args:
        labels: On the grid of `source`. Shape (I, J, K) with values 0 (background) to N, or (I, J, K, C) with
            channel c non-zero where segment c + 1 is (segments may overlap).
        source: DICOM volume; its files are read again for their headers.
        path: Target file, replaced if it exists.
        result: What computed the labels.
        prove: Read the file back and compare it in mm before it gets its name.

    Returns:
        `path`.

    Raises:
        LabelError: The labels do not fit the source or the segments.
        GeometryProofError: What was written is not what was meant; no file is left.
    """
    check_labels(labels, result)
    proof.check_grid(labels, source)
    headers = identity.source_headers(source)
    dataset = _build(labels, source, headers, result)
    return proof.save_proved(dataset, path, (lambda file: proof.prove_seg(file, labels, source)) if prove else None)


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
    slices = {proof.slice_key(reference, k): k for k in range(len(reference.provenance.sop_instance_uids))}
    to_index: Affine = np.linalg.inv(reference.affine_lps).astype(np.float64)
    for frame in proof.walk_seg(dataset):
        _place(frame, array, to_index, slices)
    return reference.with_array(array)


def check_labels(labels: Volume, result: ResultInfo) -> None:
    """Pass if every label value has a segment. Raises LabelError, naming the value that has none."""
    array, count = labels.array, len(result.segments)
    if array.ndim == 4:
        if array.shape[3] != count:
            raise LabelError(
                f"the labels have {array.shape[3]} channels and {count} segments are described; one each is "
                "needed; use the segments.json that belongs to these labels"
            )
        return
    unknown = [value for value in np.unique(array).tolist() if value not in range(count + 1)]
    if unknown:
        raise LabelError(
            f"the labels hold the value {unknown[0]}; 0 (background) to {count} are described; "
            "use the segments.json that belongs to these labels"
        )


def _build(labels: Volume, source: Volume, headers: tuple[Dataset, ...], result: ResultInfo) -> Dataset:
    header = headers[0]
    frames = _source_order(labels, source, headers)
    measures = hd.PixelMeasuresSequence(
        pixel_spacing=(source.spacing_mm[1], source.spacing_mm[0]),
        slice_thickness=_slice_thickness(header, source),
        spacing_between_slices=source.spacing_mm[2],
    )
    dataset = hd.seg.Segmentation(
        source_images=identity.neutral(headers),
        pixel_array=frames,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(segment, source, result) for segment in result.segments],
        series_instance_uid=identity.result_uid(source, result, "SEG", "series"),
        series_number=identity.series_number(header, "SEG"),
        sop_instance_uid=identity.result_uid(source, result, "SEG", "instance"),
        instance_number=1,
        manufacturer=identity.plain(result.manufacturer, 64),
        manufacturer_model_name=identity.plain(result.algorithm_name, 64),
        software_versions=identity.plain(result.algorithm_version, 64),
        device_serial_number=identity.plain(result.bundle_sha256, 64) or "0",
        pixel_measures=measures,
        omit_empty_frames=bool(frames.any()),
        content_label="SEGMENTATION",
        content_description="Research use only, not for diagnosis",
        content_qualification="RESEARCH",
        contributing_equipment=[identity.contribution(result)],
    )
    _finish(dataset, source, headers, result)
    return dataset


def _source_order(labels: Volume, source: Volume, headers: tuple[Dataset, ...]) -> NDArray:
    """The labels as (frames, rows, columns[, segments]) in the order of the source images' frames."""
    array = labels.array
    small = np.uint8 if array.ndim == 4 or array.max(initial=0) < 256 else np.uint16
    planes = np.moveaxis((array != 0) if array.ndim == 4 else array, (2, 1, 0), (0, 1, 2)).astype(small)
    if not source.provenance.frame_numbers:
        return np.ascontiguousarray(planes)  # source_headers follows K
    frames = np.zeros((int(headers[0].NumberOfFrames), *planes.shape[1:]), dtype=small)
    frames[np.array(source.provenance.frame_numbers) - 1] = planes
    return frames


def _slice_thickness(header: Dataset, source: Volume) -> float:
    """The source's own SliceThickness (a slice may be thinner than the gap between centres), else the
    spacing.
    """
    found = header.get("SliceThickness")
    return float(found) if found else source.spacing_mm[2]


def _description(segment: Segment, source: Volume, result: ResultInfo) -> hd.seg.SegmentDescription:
    manual = result.algorithm_type == "MANUAL"
    description = hd.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.label,
        segmented_property_category=segment.category,
        segmented_property_type=segment.type,
        algorithm_type=result.algorithm_type,
        algorithm_identification=None if manual else algorithm(result),
        tracking_uid=identity.tracking_uid(source, result, segment.number),
        tracking_id=identity.tracking_id(segment),
        anatomic_regions=[segment.anatomic_region] if segment.anatomic_region else None,
        display_color=hd.color.CIELabColor.from_rgb(*segment.rgb),
    )
    if segment.description:
        description.SegmentDescription = segment.description
    _add_modifiers(description, segment)
    return description


def _add_modifiers(description: Dataset, segment: Segment) -> None:
    # PS3.3 C.8.20.2: modifiers nest inside the code that they modify.
    if segment.type_modifier:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [code_item(segment.type_modifier)]
    if segment.anatomic_region and segment.anatomic_region_modifier:
        region = description.AnatomicRegionSequence[0]
        region.AnatomicRegionModifierSequence = [code_item(segment.anatomic_region_modifier)]


def algorithm(result: ResultInfo) -> hd.AlgorithmIdentificationSequence:
    """The algorithm identification of every segment."""
    return hd.AlgorithmIdentificationSequence(
        name=identity.plain(result.algorithm_name, 64),
        family=result.algorithm_family,
        version=identity.plain(result.algorithm_version, 64),
        source=identity.plain(result.manufacturer, 64),
    )


def _finish(dataset: Dataset, source: Volume, headers: tuple[Dataset, ...], result: ResultInfo) -> None:
    """What highdicom leaves out or takes from a clock or a dice."""
    identity.stamp(dataset, headers, result, "SEG")
    if headers[0].get("BodyPartExamined"):
        dataset.BodyPartExamined = headers[0].BodyPartExamined
    dimension_uid = identity.result_uid(source, result, "SEG", "dimensions")
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimension_uid


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
    proof.check_frame_of_reference(dataset.get("FrameOfReferenceUID"), reference)


def _place(frame: SegFrame, array: NDArray, to_index: Affine, slices: dict[str, int]) -> None:
    """Put the pixels of one frame where patient space says; refuse what falls between voxels or on a taken
    one.
    """
    rows, columns = np.nonzero(frame.pixels)
    index = frame.plane.points_mm(columns, rows) @ to_index[:3, :3].T + to_index[:3, 3]
    voxels = np.rint(index).astype(int)
    if np.abs(index - voxels).max(initial=0.0) > proof.TOLERANCE_VOXELS:
        raise LabelError(
            f"segment {frame.segment} has pixels {np.abs(index - voxels).max():.2f} voxels away from the "
            f"image's grid; at most {proof.TOLERANCE_VOXELS} is needed; resample the SEG to the image first"
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
