"""An RT Structure Set as a data set, and its contours as the bytes of its file.

The modules are a pydicom data set. The contours are encoded here, some slices at a time: in data sets each of their hundreds
of thousands of numbers would be an object of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.coding import Segment, code_item
from dicom_io.objects import identity
from dicom_io.objects.encoding import data_set, element, encoded, item
from dicom_io.objects.functional_groups import reference
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.slice_positions import Slice
from dicom_io.objects.source_images import SourceImages, add_side, result_object
from dicom_io.rtstruct.contours import Contours, contours_of
from dicom_io.segmentation import Segmentation, SliceLabels

DETACHED_STUDY_MANAGEMENT = "1.2.840.10008.3.1.2.3.1"  # retired, and still what PS3.3 C.8.8.5 asks for
ANATOMICAL_STRUCTURE = "91723000"
ROI_CONTOUR_SEQUENCE = 0x30060039
PIXELS_AT_ONCE = 1_000_000  # pixels of the slices that are drawn together; more do not fit into the processor's caches
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RtObject:
    """An RTSTRUCT that is ready to be saved.

    Attributes:
        head: Every attribute but ROIContourSequence, with the file meta information.
        regions: The items of that sequence.
    """

    head: Dataset
    regions: bytes

    def save(self, path: Path) -> None:
        """Write the file."""
        # Attributes stand in the order of their tags. What follows the contours is encoded as a data set of its own,
        # which needs the character set of the whole as an argument.
        front, back = self.head[:ROI_CONTOUR_SEQUENCE], self.head[ROI_CONTOUR_SEQUENCE:]
        front.file_meta = self.head.file_meta
        with path.open("wb") as file:
            front.save_as(file, enforce_file_format=True)
            file.write(element(ROI_CONTOUR_SEQUENCE, b"SQ", self.regions))
            file.write(encoded(back, self.head.get("SpecificCharacterSet") or "iso8859"))


def build_rtstruct(segmentation: Segmentation, images: SourceImages, result: ResultInfo) -> RtObject:
    """An RTSTRUCT of a segmentation.

    Args:
        segmentation: With the labels of `in_slices`.
        images: The source that it lies on; the whole header of the first image is enough.
        result: What computed it.

    Raises:
        LabelError: The source names no frame of reference.
    """
    identity.check_has_frame(images.headers)
    head = _head(segmentation, images, result)
    contours: dict[int, list[bytes]] = {segment.number: [] for segment in result.segments}
    rows, columns = images.slices[0].shape
    at_once = max(1, PIXELS_AT_ONCE // (rows * columns))
    for start in range(0, len(images.slices), at_once):
        ks = range(start, min(start + at_once, len(images.slices)))
        for number, contour in _contours_on(
            [images.slices[k] for k in ks], [images.labels(k, segmentation) for k in ks]
        ):
            contours[number].append(contour)
    return RtObject(head, b"".join(_region(segment, contours[segment.number]) for segment in result.segments))


def _contours_on(slices: Sequence[Slice], planes: Sequence[SliceLabels]) -> Iterator[tuple[int, bytes]]:
    """The contours on some slices as items of a ContourSequence, each with the number of its segment.

    Args:
        slices: All of one shape.
        planes: The labels on them.
    """
    images = [_named_image(source_slice) for source_slice in slices]
    for lacking, stack in SliceLabels.maps(planes):
        if not stack.any():
            continue
        contours = contours_of(stack)
        numbers = (contours.labels + lacking).tolist()
        texts = _texts(_points_mm(contours, slices), contours.counts)
        for number, k, count, text in zip(numbers, contours.planes, contours.counts.tolist(), texts, strict=True):
            yield number, _contour(images[k], count, text)


def _points_mm(contours: Contours, slices: Sequence[Slice]) -> Floats:
    """Shape (n, 3): LPS positions of the points of contours on some slices."""
    planes = [source_slice.plane for source_slice in slices if source_slice.plane is not None]
    # Each point is placed by the plane of its own slice, as the header of that slice has it.
    slice_of = np.repeat(contours.planes, contours.counts)
    origin, across, down = (
        np.array([getattr(plane, name) for plane in planes])[slice_of]
        for name in ("origin_mm", "column_step_mm", "row_step_mm")
    )
    return np.asarray(origin + contours.points[:, :1] * across + contours.points[:, 1:] * down)


def _contour(image: bytes, count: int, text: bytes) -> bytes:
    """An item of a ContourSequence (PS3.3 C.8.8.6)."""
    return item(
        image
        + element(0x30060042, b"CS", b"CLOSED_PLANAR")
        + element(0x30060046, b"IS", b"%d" % count)
        + element(0x30060050, b"DS", text)
    )


def _texts(points_mm: Floats, counts: NDArray[np.int64]) -> list[bytes]:
    """The coordinates of contours as decimal strings: three decimals, separated by backslashes.

    All digits are computed column by column as bytes; one Python string for each number takes four times as long.

    Args:
        points_mm: Shape (sum of `counts`, 3).
        counts: The number of points of each contour.
    """
    thousandths = np.rint(points_mm.ravel() * 1000).astype(np.int64)
    size, tail = np.abs(thousandths), np.frombuffer(b"0.000\\", np.uint8)
    places = max(len(str(size.max(initial=0))), 4)
    written = np.empty((len(size), places + 3), np.uint8)  # sign, digits, point, backslash
    is_written = np.ones(written.shape, dtype=bool)
    written[:, 0], is_written[:, 0] = ord("-"), thousandths < 0
    written[:, -len(tail) :] = tail
    columns = [*range(1, places - 2), *range(places - 1, places + 2)]
    for place, column in enumerate(reversed(columns)):
        higher = size // 10
        written[:, column] = ord("0") + size - 10 * higher
        # The three decimals and the units are always written; further digits only where the number reaches them.
        if place > 3:
            is_written[:, column] = size > 0
        size = higher
    lengths = is_written.sum(axis=1)
    ends = np.cumsum(lengths)[3 * np.cumsum(counts) - 1].tolist()
    text = written[is_written].tobytes()
    # Without the backslash behind the last number of a contour.
    return [text[start : end - 1] for start, end in pairwise([0, *ends])]


def _head(segmentation: Segmentation, images: SourceImages, result: ResultInfo) -> Dataset:
    """All modules but the contours."""
    headers, header = images.headers, images.headers[0]
    digest = identity.digest_of(segmentation.label_volume.array)
    dataset = result_object(
        "RTSTRUCT", identity.object_uids(images.source, result, "RTSTRUCT", digest), headers, result
    )
    add_side(dataset, header)
    # Type 2 of the RT Series module (PS3.3 C.8.8.1).
    dataset.OperatorsName = ""
    dataset.FrameOfReferenceUID = header.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = header.get("PositionReferenceIndicator") or ""
    dataset.StructureSetLabel = "RESEARCH"
    dataset.StructureSetDescription = "Research use only, not for diagnosis or treatment planning"
    dataset.StructureSetDate, dataset.StructureSetTime = identity.content_moment(headers)
    dataset.ReferencedFrameOfReferenceSequence = [_referenced_frame(headers)]
    dataset.StructureSetROISequence = [_roi(segment, header, result) for segment in result.segments]
    dataset.RTROIObservationsSequence = [_observation(segment) for segment in result.segments]
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _referenced_frame(headers: tuple[Dataset, ...]) -> Dataset:
    """Frame of reference, study, series and every instance that may carry a contour."""
    series = data_set(
        SeriesInstanceUID=headers[0].SeriesInstanceUID,
        ContourImageSequence=[reference(header.SOPClassUID, header.SOPInstanceUID) for header in headers],
    )
    study = reference(DETACHED_STUDY_MANAGEMENT, headers[0].StudyInstanceUID)
    study.RTReferencedSeriesSequence = [series]
    return data_set(FrameOfReferenceUID=headers[0].FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _roi(segment: Segment, header: Dataset, result: ResultInfo) -> Dataset:
    roi = data_set(
        ROINumber=segment.number,
        ReferencedFrameOfReferenceUID=header.FrameOfReferenceUID,
        ROIName=segment.label,
        ROIGenerationAlgorithm=result.algorithm_type,
    )
    if segment.description:
        roi.ROIDescription = segment.description
    return roi


def _region(segment: Segment, contours: Sequence[bytes]) -> bytes:
    """An item of the ROIContourSequence; a segment without voxels has no contours."""
    colour, number = data_set(ROIDisplayColor=list(segment.rgb)), data_set(ReferencedROINumber=segment.number)
    sequence = element(0x30060040, b"SQ", b"".join(contours)) if contours else b""
    return item(encoded(colour) + sequence + encoded(number))


def _named_image(source_slice: Slice) -> bytes:
    """The ContourImageSequence of a contour: the image that it lies on."""
    sop_class = element(0x00081150, b"UI", source_slice.sop_class_uid.encode())
    instance = element(0x00081155, b"UI", source_slice.sop_instance_uid.encode())
    frame = element(0x00081160, b"IS", b"%d" % source_slice.frame) if source_slice.frame else b""
    return element(0x30060016, b"SQ", item(sop_class + instance + frame))


def _observation(segment: Segment) -> Dataset:
    return data_set(
        ObservationNumber=segment.number,
        ReferencedROINumber=segment.number,
        ROIObservationLabel=segment.short_label,
        RTROIIdentificationCodeSequence=[code_item(segment.type)],
        # Type 2 (PS3.3 C.8.8.8): empty where the category does not make it an organ.
        RTROIInterpretedType="ORGAN" if segment.category.value == ANATOMICAL_STRUCTURE else "",
        ROIInterpreter="",
    )
