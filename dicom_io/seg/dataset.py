"""A DICOM Segmentation as a data set: highdicom assembles the modules, the frames are filled in here.

highdicom builds the object for one empty slice; what depends on the slices (frames, their functional groups, the
references to the source) is then written in one pass over them, which is several times faster for many segments.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
)

from dicom_io.coding import Segment, code_item
from dicom_io.kinds.encodings import SYNTAXES, SegEncoding
from dicom_io.objects import identity
from dicom_io.objects.encoding import encoded
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.slice_positions import Slice
from dicom_io.objects.source_images import add_image_side
from dicom_io.objects.stand_ins import NOT_OF_A_SLICE, pixel_spacing, refer, stand_in_place, thickness_mm
from dicom_io.seg.pixels import STEPS, frames_as_bytes, stored_frames
from dicom_io.volume import Volume

_OF_EACH_FRAME = (
    "DerivationImageSequence",
    "FrameContentSequence",
    "PlanePositionSequence",
    "SegmentIdentificationSequence",
)
"""Functional groups that are written for every frame. highdicom shares the segment where there is only one, and a group may
stand in one place only (PS3.3 C.7.6.16.1.1).
"""


@dataclass(frozen=True)
class SegObject:
    """A SEG in the order of its file: all attributes but the frames, the frames' functional groups, their pixels.

    Attributes:
        head: Every attribute before PerFrameFunctionalGroupsSequence, with the file meta information.
        groups: The items of that sequence.
        pixels: The value of PixelData, as fragments where the transfer syntax is a compressed one.
    """

    head: Dataset
    groups: bytes
    pixels: bytes

    def save(self, path: Path) -> None:
        """Write the file."""
        syntax = UID(self.head.file_meta.TransferSyntaxUID)
        tail = struct.pack("<HH2sHL", 0x5200, 0x9230, b"SQ", 0, len(self.groups)) + self.groups
        kind = b"OW" if self.head.BitsAllocated == 16 else b"OB"
        length = 0xFFFFFFFF if syntax.is_compressed else len(self.pixels)
        tail += struct.pack("<HH2sHL", 0x7FE0, 0x0010, kind, 0, length)
        end = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0) if syntax.is_compressed else b""
        body = [encoded(self.head), tail, self.pixels, end]
        if syntax == DeflatedExplicitVRLittleEndian:
            body = [_deflated(b"".join(body))]
        with path.open("wb") as file:
            file.write(b"\0" * 128 + b"DICM" + _meta(self.head))
            file.writelines(body)


def _meta(head: Dataset) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_file_meta_info(buffer, head.file_meta, enforce_standard=True)
    return buffer.getvalue()


def _deflated(body: bytes) -> bytes:
    """PS3.5 A.5: the bare stream of RFC 1951, padded to even length."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    content = packer.compress(body) + packer.flush()
    return content + b"\0" * (len(content) % 2)


def build_seg(
    result_volume: Volume,
    source: Volume,
    headers: tuple[Dataset, ...],
    slices: Sequence[Slice],
    result: ResultInfo,
    encoding: SegEncoding,
    *,
    empty_frames: bool = False,
) -> SegObject:
    """A SEG that is ready to be saved.

    Args:
        result_volume: Labels (I, J, K), channels (I, J, K, C), or for "fractional" probabilities (I, J, K, C) of 0 to 1.
        source: The volume that they lie on.
        headers: Of the source, from `identity.source_headers`.
        slices: Of the source, from `slice_positions.slices_of`.
        result: What computed them.
        encoding: How frames are stored.
        empty_frames: Write the frames of slices on which a segment has no voxel, too.

    Raises:
        LabelError: The slices have places in patient space, and the source names no frame of reference for them.
    """
    if slices[0].plane is not None:
        identity.check_has_frame(headers)
    head = _template(headers[0], slices[0], source, result, encoding)
    refer(head, headers, slices)
    groups, packed = frames_as_bytes(
        stored_frames(result_volume, source, slices, result if empty_frames else None, encoding),
        slices,
        encoding,
        [int(dimension.DimensionIndexPointer) for dimension in head.DimensionIndexSequence],
    )
    if slices[0].plane is not None:  # highdicom takes the spacing of its one slice for that of the stack
        head.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = _measures(headers[0], slices[0], source)
    else:
        head.PatientOrientation = headers[0].get("PatientOrientation") or ""  # Type 2C, without Image Orientation
    for keyword in _OF_EACH_FRAME:
        head.SharedFunctionalGroupsSequence[0].pop(keyword, None)
    head.SegmentsOverlap = "YES" if _overlaps(result_volume.array, encoding) else "NO"
    head.NumberOfFrames = len(groups)
    head.BitsAllocated = head.BitsStored = packed.bits
    head.HighBit = packed.bits - 1
    digest = identity.digest_of(result_volume.array)
    _finish(head, source, headers, result, seg_uid(source, result, encoding, digest, empty_frames=empty_frames))
    head.file_meta.TransferSyntaxUID = SYNTAXES[encoding]
    del head.PerFrameFunctionalGroupsSequence, head.PixelData
    return SegObject(head, b"".join(groups), packed.joined())


def seg_uid(source: Volume, result: ResultInfo, encoding: SegEncoding, digest: str, *, empty_frames: bool) -> str:
    """The SOP Instance UID of a SEG.

    Args:
        source: The volume that its voxels lie on.
        result: What computed them.
        encoding: How frames are stored.
        digest: Of the voxels, from `identity.digest_of`, in the form that `seg.in_slices` gives them.
        empty_frames: Whether frames without voxels are written.
    """
    every = ("empty frames",) if empty_frames else ()
    return identity.result_uid(source, result, "SEG", "instance", encoding, digest, *every)


def _overlaps(array: NDArray[Any], encoding: SegEncoding) -> bool:
    """Whether a voxel is of two segments; in a fractional SEG, whether two have a part in it."""
    if array.ndim == 3:
        return False
    held = np.rint(array * STEPS) != 0 if encoding == "fractional" else array != 0
    return bool((held.sum(axis=3) > 1).any())


def _template(header: Dataset, one: Slice, source: Volume, result: ResultInfo, encoding: SegEncoding) -> Dataset:
    """What highdicom makes of one empty slice: all modules but what depends on the slices."""
    fractional = encoding == "fractional"
    segments = [_description(segment, source, result) for segment in result.segments]
    empty = np.zeros((1, *one.shape, len(segments)), np.float32) if fractional else np.zeros((1, *one.shape), np.uint8)
    return hd.seg.Segmentation(
        source_images=[_single_image(header, one, source)],
        pixel_array=empty,
        segmentation_type=hd.seg.SegmentationTypeValues(encoding.split("-")[0].upper()),
        segment_descriptions=segments,
        series_instance_uid=identity.result_uid(source, result, "SEG", "series"),
        series_number=identity.series_number(header, "SEG", result),
        sop_instance_uid=identity.result_uid(source, result, "SEG", "instance"),
        instance_number=1,
        manufacturer=identity.plain(result.manufacturer, 64),
        manufacturer_model_name=identity.plain(result.algorithm_name, 64),
        software_versions=identity.plain(result.algorithm_version, 64),
        device_serial_number=identity.plain(result.bundle_sha256, 64) or "0",
        pixel_measures=None if one.plane is None else _measures(header, one, source),
        omit_empty_frames=False,
        content_label="SEGMENTATION",
        content_description="Research use only, not for diagnosis",
        content_qualification="RESEARCH",
        content_creator_name=result.content_creator or None,
        contributing_equipment=[identity.contribution(result)],
        max_fractional_value=STEPS,
    )


def _single_image(header: Dataset, one: Slice, source: Volume) -> Dataset:
    """The source as highdicom shall see it: a single-frame image at the first slice, without identity."""
    image = identity.neutral((header,))[0]
    for keyword in NOT_OF_A_SLICE:
        image.pop(keyword, None)
    # of a class without frames, and without frame of reference for a picture: the references are written in `_refer`
    image.SOPClassUID = SecondaryCaptureImageStorage if one.plane is None else MRImageStorage
    if one.plane is not None:
        stand_in_place(image, one)
        image.SliceThickness = thickness_mm(header, one.frame, source)
    return image


def _measures(header: Dataset, one: Slice, source: Volume) -> hd.PixelMeasuresSequence:
    between_rows, between_columns = (float(value) for value in pixel_spacing(one))
    return hd.PixelMeasuresSequence(
        pixel_spacing=(between_rows, between_columns),
        slice_thickness=thickness_mm(header, one.frame, source),
        spacing_between_slices=None if source.provenance.resampled else _gap_mm(one, source),
    )


def _gap_mm(one: Slice, source: Volume) -> float:
    """Distance of two slices along the normal (PS3.3 C.7.6.16.2.1), which in a tilted stack is less than that of their
    centres.
    """
    assert one.plane is not None
    normal = np.cross(one.plane.column_step_mm, one.plane.row_step_mm)
    return float(abs(source.affine_lps[:3, 2] @ normal) / np.linalg.norm(normal))


def _description(segment: Segment, source: Volume, result: ResultInfo) -> hd.seg.SegmentDescription:
    manual = result.algorithm_type == "MANUAL"
    description = hd.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=segment.label,
        segmented_property_category=segment.category,
        segmented_property_type=segment.type,
        algorithm_type=result.algorithm_type,
        algorithm_identification=None if manual else _algorithm(result),
        tracking_uid=identity.tracking_uid(source, result, segment.number),
        tracking_id=identity.tracking_id(segment),
        anatomic_regions=[segment.anatomic_region] if segment.anatomic_region else None,
        display_color=hd.color.CIELabColor.from_rgb(*segment.rgb),
    )
    if segment.description:
        description.SegmentDescription = identity.plain(segment.description, 1024)
    # PS3.3 C.8.20.2: modifiers nest inside the code that they modify.
    if segment.type_modifier:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [code_item(segment.type_modifier)]
    if segment.anatomic_region and segment.anatomic_region_modifier:
        region = description.AnatomicRegionSequence[0]
        region.AnatomicRegionModifierSequence = [code_item(segment.anatomic_region_modifier)]
    return description


def _algorithm(result: ResultInfo) -> hd.AlgorithmIdentificationSequence:
    return hd.AlgorithmIdentificationSequence(
        name=identity.plain(result.algorithm_name, 64),
        family=result.algorithm_family,
        version=identity.plain(result.algorithm_version, 64),
        source=identity.plain(result.manufacturer, 64),
    )


def _finish(dataset: Dataset, source: Volume, headers: tuple[Dataset, ...], result: ResultInfo, uid: str) -> None:
    """What highdicom leaves out or takes from a clock or a dice."""
    identity.stamp(dataset, headers, result, "SEG")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(uid)
    add_image_side(dataset, headers[0])
    dimension_uid = identity.result_uid(source, result, "SEG", "dimensions")
    for named in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        named.DimensionOrganizationUID = dimension_uid
