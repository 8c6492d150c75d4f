"""A DICOM Segmentation as a data set: highdicom assembles the modules, the frames are filled in here.

highdicom builds the object for one empty slice; what depends on the slices (frames, their functional groups, the
references to the source) is then written in one pass over them, which is several times faster for many segments.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import highdicom as hd
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)
from pydicom.valuerep import DSfloat

from dicom_io.coding import Segment, code_item
from dicom_io.objects import identity
from dicom_io.objects.encoding import element, encoded, item
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.slice_positions import Slice, macro, values_on
from dicom_io.objects.source_images import add_image_side
from dicom_io.reading.instances import load_dataset, refusing
from dicom_io.volume import Volume

SegEncoding = Literal["binary", "binary-deflated", "labelmap", "labelmap-rle", "labelmap-jpegls", "fractional"]

SYNTAXES: dict[SegEncoding, UID] = {
    "binary": ExplicitVRLittleEndian,
    "binary-deflated": DeflatedExplicitVRLittleEndian,
    "labelmap": ExplicitVRLittleEndian,
    "labelmap-rle": RLELossless,
    "labelmap-jpegls": JPEGLSLossless,
    "fractional": ExplicitVRLittleEndian,
}
SEGMENT_NUMBER, FRAME_LABEL = 0x0062000B, 0x00209453
_OF_EACH_FRAME = (
    "DerivationImageSequence",
    "FrameContentSequence",
    "PlanePositionSequence",
    "SegmentIdentificationSequence",
)
"""Functional groups that are written for every frame. highdicom shares the segment where there is only one, and a group may
stand in one place only (PS3.3 C.7.6.16.1.1).
"""
STEPS = 255
"""MaximumFractionalValue: a probability of 1."""


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


@dataclass(frozen=True)
class _Frame:
    """One frame: its segment (0 in a label map), slice and stored pixels of shape (rows, columns)."""

    segment: int
    k: int
    pixels: NDArray


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
    groups, packed = _frames_as_bytes(
        _frames(result_volume, source, slices, result if empty_frames else None, encoding),
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


def _frames(
    volume: Volume, source: Volume, slices: Sequence[Slice], described: ResultInfo | None, encoding: SegEncoding
) -> Iterator[_Frame]:
    """Frames by segment, then by slice: those with voxels, or every one of the segments described; at least one slice's."""
    planes = [np.ascontiguousarray(values_on(one, k, volume, source)) for k, one in enumerate(slices)]
    if encoding.startswith("labelmap"):
        kind = np.uint8 if volume.array.max(initial=0) < 256 else np.uint16
        yield from (_Frame(0, k, plane.astype(kind, copy=False)) for k, plane in enumerate(planes))
        return
    held = _held(planes, encoding)
    if described is not None:
        held = {segment.number: list(range(len(planes))) for segment in described.segments}
    for segment in sorted(held) or [1]:
        for k in held.get(segment, range(len(planes))):
            yield _Frame(segment, k, _pixels(planes[k], segment, encoding))


def _held(planes: Sequence[NDArray], encoding: SegEncoding) -> dict[int, list[int]]:
    """The slices on which each segment has voxels."""
    held: dict[int, list[int]] = {}
    for k, plane in enumerate(planes):
        if plane.ndim == 2:
            found = [int(value) for value in np.flatnonzero(np.bincount(plane.ravel())) if value]
        else:
            stored = np.rint(plane * STEPS) if encoding == "fractional" else plane
            found = [c + 1 for c in range(plane.shape[2]) if stored[..., c].any()]
        for segment in found:
            held.setdefault(segment, []).append(k)
    return held


def _overlaps(array: NDArray, encoding: SegEncoding) -> bool:
    """Whether a voxel is of two segments; in a fractional SEG, whether two have a part in it."""
    if array.ndim == 3:
        return False
    held = np.rint(array * STEPS) != 0 if encoding == "fractional" else array != 0
    return bool((held.sum(axis=3) > 1).any())


def _pixels(plane: NDArray, segment: int, encoding: SegEncoding) -> NDArray:
    if plane.ndim == 2:
        return plane == segment
    if encoding == "fractional":
        return np.rint(plane[..., segment - 1] * STEPS).astype(np.uint8)
    return plane[..., segment - 1] != 0


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


NOT_OF_A_SLICE = (
    "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "SpacingBetweenSlices",
)  # fmt: skip
"""What an image that stands in for one slice must not have, or need not and may be no number."""


def stand_in_place(image: Dataset, one: Slice) -> None:
    """Puts a single-frame image where a slice lies."""
    assert one.plane is not None
    image.ImagePositionPatient = _decimals(one.plane.origin_mm)
    image.ImageOrientationPatient, image.PixelSpacing = _orientation(one), _pixel_spacing(one)


def _orientation(one: Slice) -> list[DSfloat]:
    assert one.plane is not None
    steps = (one.plane.column_step_mm, one.plane.row_step_mm)
    return _decimals(np.concatenate([step / np.linalg.norm(step) for step in steps]))


def _pixel_spacing(one: Slice) -> list[DSfloat]:
    """Between rows, between columns (PS3.3 10.7.1.3)."""
    assert one.plane is not None
    return _decimals(np.array([np.linalg.norm(one.plane.row_step_mm), np.linalg.norm(one.plane.column_step_mm)]))


def _decimals(values: NDArray[np.float64]) -> list[DSfloat]:
    """Decimal strings of at most 16 characters."""
    return [DSfloat(float(value) + 0.0, auto_format=True) for value in values]


def _measures(header: Dataset, one: Slice, source: Volume) -> hd.PixelMeasuresSequence:
    between_rows, between_columns = (float(value) for value in _pixel_spacing(one))
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


def thickness_mm(header: Dataset, frame: int | None, source: Volume) -> float:
    """The source's own SliceThickness (a slice may be thinner than the gap between centres), else the spacing.

    Args:
        header: Of an image of the source.
        frame: Its frame, from 1, in a multi-frame object.
        source: The volume.
    """
    found = macro(header, frame, "PixelMeasuresSequence").get("SliceThickness")
    return float(found) if found else source.spacing_mm[2]


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


def refer(dataset: Dataset, headers: Sequence[Dataset], slices: Sequence[Slice]) -> None:
    """Names every instance of the source, whether or not a frame lies on it: viewers look for them all."""
    classes = {one.sop_instance_uid: one.sop_class_uid for one in slices}
    series = Dataset()
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ReferencedInstanceSequence = [_reference(kind, uid) for uid, kind in classes.items()]
    dataset.ReferencedSeriesSequence = [series]
    dataset.SourceImageSequence = [_source_item(kind, uid) for uid, kind in classes.items()]


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    return image


def _source_item(sop_class_uid: str, sop_instance_uid: str, frame: int | None = None) -> Dataset:
    image = _reference(sop_class_uid, sop_instance_uid)
    if frame:
        image.ReferencedFrameNumber = frame
    image.SpatialLocationsPreserved = "YES"
    image.PurposeOfReferenceCodeSequence = [code_item(codes.DCM.SourceImageForImageProcessingOperation)]
    return image


def _frames_as_bytes(
    frames: Iterable[_Frame], slices: Sequence[Slice], encoding: SegEncoding, dimensions: Sequence[int]
) -> tuple[list[bytes], _Packed]:
    """The functional groups of the frames as items of a sequence, and their pixels.

    Args:
        frames: In their order.
        slices: Of the source.
        encoding: How they are stored.
        dimensions: Tags of what the dimensions count: segments, positions, or on a picture without segments frame labels.
    """
    packed, where = _Packed(encoding), []
    for frame in frames:
        packed.add(frame.pixels)
        where.append((frame.segment, frame.k))
    rank = {k: number for number, k in enumerate(sorted({k for _, k in where}), start=1)}
    places = {k: _place_groups(slices[k]) for k in rank}
    segments = {segment: encoded(_segment_group(segment)) for segment in {segment for segment, _ in where}}
    groups = []
    for segment, k in where:
        derivation, position = places[k]
        content = _content_group([segment if tag == SEGMENT_NUMBER else rank[k] for tag in dimensions], dimensions)
        groups.append(item(derivation + content + position + segments[segment]))  # in the order of their tags
    return groups, packed


def _place_groups(one: Slice) -> tuple[bytes, bytes]:
    """What all frames of a slice share, encoded once: which image they were made from, and where they lie."""
    derivation = Dataset()
    derivation.SourceImageSequence = [_source_item(one.sop_class_uid, one.sop_instance_uid, one.frame)]
    derivation.DerivationCodeSequence = [code_item(codes.DCM.Segmentation)]
    holder = Dataset()
    holder.DerivationImageSequence = [derivation]
    if one.plane is None:
        return encoded(holder), b""
    position, place = Dataset(), Dataset()
    position.ImagePositionPatient = _decimals(one.plane.origin_mm)
    place.PlanePositionSequence = [position]
    return encoded(holder), encoded(place)


def _content_group(index: list[int], dimensions: Sequence[int]) -> bytes:
    """FrameContentSequence with the DimensionIndexValues; by hand, because it differs in every frame."""
    values = struct.pack(f"<{len(index)}L", *index)
    content = struct.pack("<HH2sH", 0x0020, 0x9157, b"UL", len(values)) + values
    if FRAME_LABEL in dimensions:  # what is counted must be there (PS3.3 C.7.6.17)
        content += element(FRAME_LABEL, b"LO", b"%d" % index[dimensions.index(FRAME_LABEL)])
    return element(0x00209111, b"SQ", item(content))


def _segment_group(segment: int) -> Dataset:
    """Which segment a frame shows; nothing in a label map, whose frames show all."""
    named, holder = Dataset(), Dataset()
    if segment:
        named.ReferencedSegmentNumber = segment
        holder.SegmentIdentificationSequence = [named]
    return holder


class _Packed:
    """Collects the pixels of frames in the form in which they are stored."""

    def __init__(self, encoding: SegEncoding) -> None:
        self.encoding = encoding
        self.parts: list[bytes] = []
        self.size, self.bits = 0, 1

    def add(self, pixels: NDArray) -> None:
        self.size = pixels.size
        self.bits = 1 if self.encoding.startswith("binary") else pixels.dtype.itemsize * 8
        self.parts.append(self._packed(pixels))

    def _packed(self, pixels: NDArray) -> bytes:
        if self.encoding == "labelmap-jpegls":
            return bytes(imagecodecs.jpegls_encode(pixels))
        if self.encoding == "labelmap-rle":
            return _run_lengths(pixels)
        if self.bits == 1:
            whole = pixels.size % 8 == 0
            return (np.packbits(pixels, bitorder="little") if whole else pixels.astype(np.uint8)).tobytes()
        return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()

    def joined(self) -> bytes:
        """The value of PixelData: fragments where it is compressed."""
        if SYNTAXES[self.encoding] in (RLELossless, JPEGLSLossless):
            return encapsulate([part + b"\0" * (len(part) % 2) for part in self.parts])
        content = b"".join(self.parts)
        if self.bits == 1 and self.size % 8:
            content = np.packbits(np.frombuffer(content, np.uint8), bitorder="little").tobytes()
        return content + b"\0" * (len(content) % 2)


def _run_lengths(pixels: NDArray) -> bytes:
    """One frame in the RLE form of PS3.5 annex G."""
    run_lengths = RLELosslessEncoder.encode(
        pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes(),
        rows=pixels.shape[0],
        columns=pixels.shape[1],
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=pixels.dtype.itemsize * 8,
        bits_stored=pixels.dtype.itemsize * 8,
        pixel_representation=0,
        photometric_interpretation="MONOCHROME2",
    )
    return bytes(run_lengths)


def _finish(dataset: Dataset, source: Volume, headers: tuple[Dataset, ...], result: ResultInfo, uid: str) -> None:
    """What highdicom leaves out or takes from a clock or a dice."""
    identity.stamp(dataset, headers, result, "SEG")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(uid)
    add_image_side(dataset, headers[0])
    dimension_uid = identity.result_uid(source, result, "SEG", "dimensions")
    for named in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        named.DimensionOrganizationUID = dimension_uid


def described_segments(seg: Path) -> tuple[Segment, ...]:
    """What the segments of a SEG mean, in increasing SegmentNumber, without a background.

    Raises:
        UnreadableFileError: It cannot be read, or a segment lacks what the standard wants of it.
    """
    header = load_dataset(seg, with_pixels=False)
    with refusing(seg):
        described = [item for item in header.get("SegmentSequence") or [] if int(item.SegmentNumber)]
        return tuple(sorted(map(_segment, described), key=lambda one: one.number))


def _segment(item: Dataset) -> Segment:
    kind = item.SegmentedPropertyTypeCodeSequence[0]
    region = (item.get("AnatomicRegionSequence") or [None])[0]
    colour = item.get("RecommendedDisplayCIELabValue")
    return Segment(
        number=int(item.SegmentNumber),
        label=str(item.SegmentLabel),
        category=_code(item.SegmentedPropertyCategoryCodeSequence[0]),
        type=_code(kind),
        type_modifier=_code_in(kind, "SegmentedPropertyTypeModifierCodeSequence"),
        anatomic_region=None if region is None else _code(region),
        anatomic_region_modifier=None if region is None else _code_in(region, "AnatomicRegionModifierSequence"),
        display_rgb=hd.color.CIELabColor.from_dicom_value(colour).to_rgb(clip=True) if colour else None,
        description=str(item.get("SegmentDescription") or ""),
    )


def _code(item: Dataset) -> Code:
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue")
    return Code(str(value), str(item.get("CodingSchemeDesignator") or ""), str(item.CodeMeaning))


def _code_in(holder: Dataset, keyword: str) -> Code | None:
    return _code(holder[keyword].value[0]) if holder.get(keyword) else None
