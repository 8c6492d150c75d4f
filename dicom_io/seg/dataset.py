"""A DICOM Segmentation as a data set: highdicom assembles the modules, the frames are filled in here.

highdicom builds the object for one empty slice. The frames, their functional groups and the references to the source depend
on the slices. They are then written in one pass over the slices, which is several times faster for many segments.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from dicom_io.coding import Segment, code_item
from dicom_io.errors import LabelError
from dicom_io.kinds.encodings import SYNTAXES, SegEncoding, segmentation_type
from dicom_io.objects import identity
from dicom_io.objects.encoding import encoded
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.labels import Fractions
from dicom_io.objects.slice_positions import Slice
from dicom_io.objects.source_images import SourceImages, add_image_side
from dicom_io.objects.stand_ins import pixel_spacing, refer, stand_in, thickness_mm
from dicom_io.seg.pixels import STEPS, StoredFractions, StoredFrames, StoredLabels, frame_groups
from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume

_OF_EACH_FRAME = (
    "DerivationImageSequence",
    "FrameContentSequence",
    "PlanePositionSequence",
    "SegmentIdentificationSequence",
)
"""Functional groups that are written for every frame. highdicom puts the group of a single segment among the shared groups, and
a group may stand either there or with the frames (PS3.3 C.7.6.16.1.1).
"""


@dataclass(frozen=True)
class SegObject:
    """A SEG in the order of its file: all attributes but the frames, the frames' functional groups, the frames.

    Attributes:
        head: Every attribute before PerFrameFunctionalGroupsSequence, with the file meta information.
        groups: The items of that sequence.
        frames: The frames, whose pixels are written last.
    """

    head: Dataset
    groups: bytes
    frames: StoredFrames

    def save(self, path: Path) -> None:
        """Write the file."""
        body, meta = self._body(), self.head.file_meta
        # PS3.10 7.1: a preamble of 128 bytes, the prefix DICM, and the file meta information, which is never deflated.
        with path.open("wb") as file:
            file.write(b"\0" * 128 + b"DICM")
            write_file_meta_info(file, meta, enforce_standard=True)  # type: ignore[arg-type]  # it only writes to it
            file.writelines(_deflated(body) if meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian else body)

    def _body(self) -> Iterator[bytes]:
        """What follows the file meta information."""
        # Groups of frames and pixels have the highest tags, so they follow the head.
        yield encoded(self.head) + struct.pack("<HH2sHL", 0x5200, 0x9230, b"SQ", 0, len(self.groups)) + self.groups
        kind = b"OW" if self.head.BitsAllocated == 16 else b"OB"
        # Fragments have an undefined length and end in a delimiter (PS3.5 A.4).
        is_compressed = self.head.file_meta.TransferSyntaxUID.is_compressed
        length = 0xFFFFFFFF if is_compressed else self.frames.length
        yield struct.pack("<HH2sHL", 0x7FE0, 0x0010, kind, 0, length)
        yield from self.frames.pieces()
        yield struct.pack("<HHL", 0xFFFE, 0xE0DD, 0) if is_compressed else b""


def _deflated(body: Iterable[bytes]) -> Iterator[bytes]:
    """PS3.5 A.5: the bare stream of RFC 1951, padded to even length."""
    packer, written = zlib.compressobj(wbits=-zlib.MAX_WBITS), 0
    for content in chain(map(packer.compress, body), map(packer.flush, (zlib.Z_FINISH,))):
        yield content
        written += len(content)
    yield b"\0" * (written % 2)


def build_seg(
    content: Segmentation | Fractions,
    images: SourceImages,
    result: ResultInfo,
    encoding: SegEncoding,
    *,
    empty_frames: bool = False,
) -> SegObject:
    """A SEG that is ready to be saved.

    Args:
        content: Labels from `objects.labels.in_slices`; for "fractional" the probabilities.
        images: The source that it lies on; the whole header of the first image is enough.
        result: What computed it.
        encoding: How frames are stored.
        empty_frames: Write the frames of slices on which a segment has no voxel, too.

    Raises:
        LabelError: The slices have places in patient space, and the source names no frame of reference for them.
    """
    source, header, first = images.source, images.headers[0], images.slices[0]
    if first.plane is not None:
        identity.check_has_frame(images.headers)
    head = _template(header, first, source, result, encoding)
    refer(head, source, images.headers, images.slices)
    frames: StoredFrames
    if isinstance(content, Fractions):
        frames = fractions = StoredFractions(content, images, empty_frames=empty_frames)
        overlaps, digest = fractions.overlaps, fractions.digest
    else:
        frames = StoredLabels(content, images, encoding, empty_frames=empty_frames)
        overlaps, digest = content.overlaps, identity.digest_of(content.label_volume.array)
    check_length(frames.length, compressed=SYNTAXES[encoding].is_compressed)
    if first.plane is not None:  # highdicom knows one slice, not the gap between slices
        head.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = _measures(header, first, source)
    else:
        head.PatientOrientation = header.get("PatientOrientation") or ""  # Type 2C, without Image Orientation
    # The frames of highdicom's empty slice are replaced by those of the labels.
    for keyword in _OF_EACH_FRAME:
        head.SharedFunctionalGroupsSequence[0].pop(keyword, None)
    head.SegmentsOverlap = "YES" if overlaps else "NO"
    head.NumberOfFrames = len(frames.where)
    head.BitsAllocated = head.BitsStored = frames.bits
    head.HighBit = frames.bits - 1
    uid = seg_uid(source, result, encoding, digest, empty_frames=empty_frames)
    _finish(head, source, images.headers, result, uid)
    head.file_meta.TransferSyntaxUID = SYNTAXES[encoding]
    del head.PerFrameFunctionalGroupsSequence, head.PixelData
    dimensions = [int(dimension.DimensionIndexPointer) for dimension in head.DimensionIndexSequence]
    return SegObject(head, b"".join(frame_groups(frames.where, images.slices, dimensions)), frames)


def seg_uid(source: Volume, result: ResultInfo, encoding: SegEncoding, digest: str, *, empty_frames: bool) -> str:
    """The SOP Instance UID of a SEG.

    Args:
        source: The volume that its voxels lie on.
        result: What computed them.
        encoding: How frames are stored.
        digest: Of the voxels, from `identity.digest_of`, in the form that `objects.labels.in_slices` gives them.
        empty_frames: Whether frames without voxels are written.
    """
    every = ("empty frames",) if empty_frames else ()
    return identity.result_uid(source, result, "SEG", "instance", encoding, digest, *every)


def check_length(length: int, *, compressed: bool) -> None:
    """Raises LabelError for frames of more bytes than the length of PixelData can say, 32 bits (PS3.5 7.1.2)."""
    if not compressed and length >= 0xFFFFFFFF:
        raise LabelError(
            f"the frames of this SEG have {length / 1e9:.1f} GB; less than 4.3 GB fit one DICOM object; write a label map "
            "or a binary SEG"
        )


def _template(header: Dataset, first: Slice, source: Volume, result: ResultInfo, encoding: SegEncoding) -> Dataset:
    """The object that highdicom makes of one empty slice: all modules, still without frames, groups and references."""
    fractional = encoding == "fractional"
    segments = [_description(segment, source, result) for segment in result.segments]
    # highdicom takes fractions as a channel for each segment, and all else as label values.
    shape = (1, *first.shape, len(segments)) if fractional else (1, *first.shape)
    return hd.seg.Segmentation(
        source_images=[stand_in(identity.neutral((header,))[0], first, thickness_mm(header, first.frame, source))],
        pixel_array=np.zeros(shape, np.float32 if fractional else np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues(segmentation_type(encoding)),
        segment_descriptions=segments,
        instance_number=1,
        pixel_measures=None if first.plane is None else _measures(header, first, source),
        # The one slice of the template is empty, and an object needs a frame.
        omit_empty_frames=False,
        content_label="SEGMENTATION",
        content_description="Research use only, not for diagnosis",
        content_qualification="RESEARCH",
        content_creator_name=result.content_creator or None,
        max_fractional_value=STEPS,
        **identity.for_highdicom("SEG", identity.object_uids(source, result, "SEG"), header, result),
    )


def _measures(header: Dataset, first: Slice, source: Volume) -> hd.PixelMeasuresSequence:
    return hd.PixelMeasuresSequence(
        pixel_spacing=[float(value) for value in pixel_spacing(first)],
        slice_thickness=thickness_mm(header, first.frame, source),
        # The slices behind a resampled volume may lie unevenly, so no single gap holds for them.
        spacing_between_slices=None if source.provenance.resampled else _gap_mm(first, source),
    )


def _gap_mm(first: Slice, source: Volume) -> float:
    """Distance of two slices along the normal (PS3.3 C.7.6.16.2.1); in a tilted stack the centres lie further apart."""
    assert first.plane is not None
    normal = np.cross(first.plane.column_step_mm, first.plane.row_step_mm)
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
        description.SegmentDescription = segment.description
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
        name=identity.plain(result.algorithm_name),
        family=result.algorithm_family,
        version=identity.plain(result.algorithm_version),
        source=identity.plain(result.manufacturer),
    )


def _finish(dataset: Dataset, source: Volume, headers: tuple[Dataset, ...], result: ResultInfo, uid: str) -> None:
    """Sets what highdicom leaves out, takes from a clock or makes at random."""
    identity.stamp(dataset, headers, result, "SEG")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(uid)
    add_image_side(dataset, headers[0])
    # highdicom makes this UID at random; it must be the same for the same input.
    dimension_uid = identity.result_uid(source, result, "SEG", "dimensions")
    for named in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        named.DimensionOrganizationUID = dimension_uid
