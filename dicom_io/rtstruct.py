"""Labels to a DICOM RT Structure Set and back.

Contours are CLOSED_PLANAR, one set a slice, in LPS mm with three decimals. They run half-way between the
centre of a voxel inside and the centre of its neighbour outside (level 0.5), so every voxel centre stays at
least 0.35 voxels away from a contour and rounding cannot move it to the other side. Holes are joined to their
outer contour by a keyhole: a bridge walked forth and back, the technique that PS3.3 C.8.8.6.3 names for
CLOSED_PLANAR; it fills right under the even-odd and the winding rule. Parts that touch by a corner only may
come as one contour or as two; both enclose the same voxel centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian, RTStructureSetStorage

from dicom_io import identity, proof
from dicom_io.coding import Segment, code_item
from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.identity import ResultInfo
from dicom_io.places import (
    TOLERANCE_VOXELS,
    Slice,
    check_frame_of_reference,
    check_grid,
    slice_key,
    slices_of,
    values_on,
)
from dicom_io.seg import check_labels, in_slices
from dicom_io.volume import Volume

DETACHED_STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"  # retired, and still what PS3.3 C.8.8.5 asks for
ANATOMICAL_STRUCTURE = "91723000"
MIN_SPACING_MM = 0.01  # below, three decimals of a millimetre could move a contour over a voxel centre
BRIDGES_TRIED = 64

Floats = NDArray[np.float64]


def write_rtstruct(labels: Volume, source: Volume, path: Path, result: ResultInfo, *, prove: bool = True) -> Path:
    """Write labels as contours on the slices they were made from; approval status UNAPPROVED.

    Args and errors are those of `write_seg`; labels that overlap (4D) are welcome. A segment without voxels
    becomes a region without contours.
    """
    check_labels(labels, result)
    _check_space(source)
    if min(source.spacing_mm[:2]) < MIN_SPACING_MM:
        raise LabelError(
            f"the pixels are {min(source.spacing_mm[:2]):.5f} mm apart; at least {MIN_SPACING_MM} mm is "
            "needed because contours are written with three decimals; write a SEG instead"
        )
    headers = identity.source_headers(source, of_each=False)
    slices = slices_of(source, headers)
    check_grid(labels, source, slices)
    labels = in_slices(labels)
    dataset = _structure_set(labels, source, headers, slices, result)
    identity.stamp(dataset, headers, result, "RTSTRUCT")
    return proof.save_proved(
        dataset, path, (lambda file: proof.prove_rtstruct(file, labels, source, slices)) if prove else None
    )


def read_rtstruct(path: Path, reference: Volume) -> Volume:
    """The regions of an RTSTRUCT as labels on the grid of `reference`.

    A voxel belongs to a region if its centre is inside by the even-odd rule over all contours of the region
    in its slice. Slices are found by patient position; a contour's named instance must agree with it.

    Returns:
        `reference` with label values = ROINumber, shape (I, J, K), uint8 (uint16 above 255).

    Raises:
        UnreadableFileError: Not a DICOM file.
        LabelError: Not an RTSTRUCT, another frame of reference, contours between slices or of another type,
            overlapping regions, or a ROINumber that cannot be a label value.
    """
    dataset = _read(path)
    for item in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        check_frame_of_reference(item.get("FrameOfReferenceUID"), reference)
    numbers = [int(item.ROINumber) for item in dataset.get("StructureSetROISequence") or []]
    if not all(0 < number < 65536 for number in numbers):
        raise LabelError(
            f"the regions are numbered {sorted(numbers)}; numbers from 1 to 65535 are needed because they "
            "become label values; renumber the regions"
        )
    array = np.zeros(reference.shape, dtype=np.uint8 if max(numbers, default=0) < 256 else np.uint16)
    for (roi, k), loops in sorted(_loops(dataset, reference).items()):
        inside = proof.even_odd(loops, (reference.shape[1], reference.shape[0])).T
        taken = array[:, :, k][inside]
        if taken.any():
            raise LabelError(
                f"region {roi} overlaps region {int(taken.max())}; regions that exclude each other are "
                "needed; split the structure set into one file for each"
            )
        array[:, :, k][inside] = roi
    return reference.with_array(array)


def contours(mask: NDArray[np.bool_]) -> list[Floats]:
    """Closed contours of a mask of shape (rows, columns): (n, 2) points (column, row) in pixel
    coordinates.
    """
    padded = np.pad(mask.astype(np.float64), 1)
    generator = contour_generator(z=padded, name="serial", fill_type=FillType.OuterOffset)
    regions = []
    for points, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
        loops = [_corners(points[a : b - 1] - 1.0) for a, b in pairwise(offsets)]
        regions.append(_keyholed(loops[0], loops[1:]))
    return regions


def _corners(loop: Floats) -> Floats:
    """The loop without the points on a straight line between their neighbours."""
    before, after = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    return loop[turns]


def _keyholed(outer: Floats, holes: list[Floats]) -> Floats:
    """One loop that walks from the outer contour to each hole, around it and back over the same bridge."""
    while holes:
        gaps = [np.linalg.norm(outer[:, None] - hole[None], axis=2) for hole in holes]
        nearest = int(np.argmin([gap.min() for gap in gaps]))
        a, b = _bridge(outer, holes[nearest], gaps[nearest])
        hole = np.roll(holes.pop(nearest), -b, axis=0)
        outer = np.concatenate([outer[: a + 1], hole, hole[:1], outer[a:]])
    return outer


def _bridge(outer: Floats, hole: Floats, gaps: Floats) -> tuple[int, int]:
    """Where to join: the shortest bridge that touches no voxel centre, else the shortest.

    A centre on a bridge is on two edges at once; this project's rasteriser does not mind, others may.
    """
    shortest = np.argsort(gaps, axis=None, kind="stable")[:BRIDGES_TRIED]
    pairs = [(int(a), int(b)) for a, b in zip(*np.unravel_index(shortest, gaps.shape), strict=True)]
    clear = (pair for pair in pairs if not _touches_centre(outer[pair[0]], hole[pair[1]]))
    return next(clear, pairs[0])


def _touches_centre(start: Floats, end: Floats) -> bool:
    """True if a voxel centre (a point of whole coordinates) lies within 0.05 pixels of the segment."""
    low, high = np.floor(np.minimum(start, end)), np.ceil(np.maximum(start, end))
    x, y = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1))
    along = end - start
    length = max(float(along @ along), 1e-12)
    share = np.clip(((x - start[0]) * along[0] + (y - start[1]) * along[1]) / length, 0, 1)
    away = np.hypot(x - start[0] - share * along[0], y - start[1] - share * along[1])
    return bool(away.min() < 0.05)


def _check_space(source: Volume) -> None:
    if source.planar:
        raise LabelError(
            "the source is a picture without patient space; contours are in millimetres of the patient; write a SEG"
        )


def _structure_set(
    labels: Volume, source: Volume, headers: tuple[Dataset, ...], slices: Sequence[Slice], result: ResultInfo
) -> Dataset:
    header = headers[0]
    digest = identity.digest_of(labels.array)
    dataset = Dataset()
    dataset.file_meta = _file_meta(identity.result_uid(source, result, "RTSTRUCT", "instance", digest))
    dataset.SOPClassUID = RTStructureSetStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.Modality = "RTSTRUCT"
    dataset.SeriesInstanceUID = identity.result_uid(source, result, "RTSTRUCT", "series")
    dataset.SeriesNumber = identity.series_number(header, "RTSTRUCT")
    dataset.InstanceNumber = 1
    dataset.OperatorsName = ""
    dataset.FrameOfReferenceUID = header.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = header.get("PositionReferenceIndicator") or ""
    dataset.StructureSetLabel = "RESEARCH"
    dataset.StructureSetDescription = "Research use only, not for diagnosis or treatment planning"
    dataset.StructureSetDate, dataset.StructureSetTime = identity.content_moment(headers)
    dataset.ContributingEquipmentSequence = [identity.contribution(result)]
    dataset.ReferencedFrameOfReferenceSequence = [_reference(source, headers)]
    dataset.StructureSetROISequence = [_roi(segment, header, result) for segment in result.segments]
    dataset.ROIContourSequence = [_roi_contours(segment, labels, source, slices) for segment in result.segments]
    dataset.RTROIObservationsSequence = [_observation(segment) for segment in result.segments]
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _file_meta(sop_instance_uid: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def _reference(source: Volume, headers: tuple[Dataset, ...]) -> Dataset:
    """Frame of reference, study, series and every instance that may carry a contour."""
    series = Dataset()
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ContourImageSequence = [_image_item(header) for header in headers]
    study = Dataset()
    study.ReferencedSOPClassUID = DETACHED_STUDY_MANAGEMENT
    study.ReferencedSOPInstanceUID = headers[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Dataset()
    frame.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame


def _image_item(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return item


def _roi(segment: Segment, header: Dataset, result: ResultInfo) -> Dataset:
    roi = Dataset()
    roi.ROINumber = segment.number
    roi.ReferencedFrameOfReferenceUID = header.FrameOfReferenceUID
    roi.ROIName = segment.label
    if segment.description:
        roi.ROIDescription = segment.description
    roi.ROIGenerationAlgorithm = result.algorithm_type
    return roi


def _roi_contours(segment: Segment, labels: Volume, source: Volume, slices: Sequence[Slice]) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber = segment.number
    item.ROIDisplayColor = list(segment.rgb)
    found = []
    for k, one in enumerate(slices):
        held = values_on(one, k, labels, source)
        mask = held == segment.number if held.ndim == 2 else held[..., segment.number - 1] != 0
        if one.plane is not None and mask.any():
            image = _named_image(one)
            found += [_contour(one.plane.points_mm(loop[:, 0], loop[:, 1]), image) for loop in contours(mask)]
    if found:
        item.ContourSequence = found
    return item


def _named_image(one: Slice) -> Dataset:
    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = one.sop_class_uid, one.sop_instance_uid
    if one.frame:
        image.ReferencedFrameNumber = one.frame
    return image


def _contour(points_mm: Floats, image: Dataset) -> Dataset:
    contour = Dataset()
    contour.ContourImageSequence = [image]
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(points_mm)
    contour.ContourData = [f"{value:.3f}" for value in points_mm.ravel()]
    return contour


def _observation(segment: Segment) -> Dataset:
    item = Dataset()
    item.ObservationNumber = segment.number
    item.ReferencedROINumber = segment.number
    item.ROIObservationLabel = segment.label[:16]
    item.RTROIIdentificationCodeSequence = [code_item(segment.type)]
    item.RTROIInterpretedType = "ORGAN" if segment.category.value == ANATOMICAL_STRUCTURE else ""
    item.ROIInterpreter = ""
    return item


def _read(path: Path) -> Dataset:
    try:
        dataset = pydicom.dcmread(path)
    except (OSError, InvalidDicomError, EOFError) as error:
        raise UnreadableFileError(
            f"{Path(path).name} cannot be read as DICOM ({type(error).__name__}); an RTSTRUCT is needed; "
            "check that the file is whole"
        ) from error
    if dataset.get("SOPClassUID") != RTStructureSetStorage:
        raise LabelError(
            f"the label file has SOP class {dataset.get('SOPClassUID')}; an RT Structure Set is needed; "
            "use `read_seg` for segmentations"
        )
    return dataset


def _loops(dataset: Dataset, reference: Volume) -> dict[tuple[int, int], list[Floats]]:
    """Contours by (ROINumber, slice k) in pixel coordinates (column, row) of the reference."""
    to_index = np.linalg.inv(reference.affine_lps)
    slices = {slice_key(reference, k): k for k in range(len(reference.provenance.sop_instance_uids))}
    loops: dict[tuple[int, int], list[Floats]] = {}
    for contour in proof.walk_rtstruct(dataset):
        index = contour.points_mm @ to_index[:3, :3].T + to_index[:3, 3]
        k = _slice_of(contour.roi, index, reference.shape[2])
        named = slices.get(contour.source_uid or "", k)
        if named != k:
            raise LabelError(
                f"a contour of region {contour.roi} names slice {named} of the image but lies in slice {k}; "
                "name and position must agree; use the structure set that was made for this image"
            )
        loops.setdefault((contour.roi, k), []).append(index[:, :2])
    return loops


def _slice_of(roi: int, index: Floats, count: int) -> int:
    k = int(np.rint(index[:, 2].mean()))
    if not 0 <= k < count:
        raise LabelError(
            f"a contour of region {roi} lies in slice {k}; slices 0 to {count - 1} of the image are needed; "
            "use the structure set that was made for this image"
        )
    away = float(np.abs(index[:, 2] - k).max())
    if away > TOLERANCE_VOXELS:
        raise LabelError(
            f"a contour of region {roi} lies {away:.2f} slices away from slice {k} of {count}; contours on "
            "the slices of the image are needed; use the structure set that was made for this image"
        )
    return k
