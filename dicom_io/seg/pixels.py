"""The frames of a DICOM Segmentation as bytes: their functional groups and their pixels."""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import RLELosslessEncoder
from pydicom.sr.codedict import codes
from pydicom.uid import JPEGLSLossless, RLELossless

from dicom_io.coding import code_item
from dicom_io.kinds.encodings import SYNTAXES, SegEncoding
from dicom_io.objects.encoding import data_set, element, encoded, item
from dicom_io.objects.labels import SliceLabels
from dicom_io.objects.slice_positions import Slice
from dicom_io.objects.source_images import SourceImages
from dicom_io.objects.stand_ins import decimal_strings, source_item
from dicom_io.segmentation import Segmentation

SEGMENT_NUMBER, FRAME_LABEL = 0x0062000B, 0x00209453
STEPS = 255
"""MaximumFractionalValue: a probability of 1."""


@dataclass(frozen=True)
class _Frame:
    """One frame: its segment (0 in a label map), slice and stored pixels of shape (rows, columns)."""

    segment: int
    k: int
    pixels: NDArray[Any]


def stored_frames(
    segmentation: Segmentation, images: SourceImages, encoding: SegEncoding, *, empty_frames: bool
) -> Iterator[_Frame]:
    """Frames by segment, then by slice: only frames with voxels, or all with `empty_frames`.

    Where all segments are empty, the frames of segment 1 are written: an image needs at least one frame.
    """
    planes = [_stored(images.labels(k, segmentation), encoding) for k in range(len(images.slices))]
    if encoding.startswith("labelmap"):
        kind = np.uint8 if segmentation.labels.max(initial=0) < 256 else np.uint16
        yield from (_Frame(0, k, plane.values.astype(kind, copy=False)) for k, plane in enumerate(planes))
        return
    # By segment first: the frames of one structure follow each other, as the dimension index values count them.
    slices_of_segment: dict[int, list[int]] = {}
    for k, plane in enumerate(planes):
        for number in [segment.number for segment in segmentation.segments] if empty_frames else plane.numbers:
            slices_of_segment.setdefault(number, []).append(k)
    for number in sorted(slices_of_segment) or [1]:
        for k in slices_of_segment.get(number, range(len(planes))):
            plane = planes[k]
            yield _Frame(number, k, plane.values[..., number - 1] if encoding == "fractional" else plane.mask(number))


def _stored(plane: SliceLabels, encoding: SegEncoding) -> SliceLabels:
    """The labels of a slice row by row in memory; probabilities as steps of 1/255."""
    values = np.ascontiguousarray(plane.values)
    stored = np.rint(values * STEPS).astype(np.uint8) if encoding == "fractional" else values
    return SliceLabels(stored, plane.exclusive)


def frames_as_bytes(
    frames: Iterable[_Frame], slices: Sequence[Slice], encoding: SegEncoding, dimensions: Sequence[int]
) -> "tuple[list[bytes], _Packed]":
    """The functional groups of the frames as items of a sequence, and their pixels.

    Args:
        frames: In their order.
        slices: Of the source.
        encoding: How they are stored.
        dimensions: Tags that the dimensions count: segments, positions, or frame labels in a label map on a picture.
    """
    packed, where = _Packed(encoding), []
    for frame in frames:
        packed.add(frame.pixels)
        where.append((frame.segment, frame.k))
    # DimensionIndexValues count from 1, over the slices that have frames (PS3.3 C.7.6.17).
    rank = {k: number for number, k in enumerate(sorted({k for _, k in where}), start=1)}
    places = {k: _place_groups(slices[k]) for k in rank}
    segments = {segment: _segment_group(segment) for segment in {segment for segment, _ in where}}
    groups = []
    for segment, k in where:
        derivation, position = places[k]
        content = _content_group([segment if tag == SEGMENT_NUMBER else rank[k] for tag in dimensions], dimensions)
        groups.append(item(derivation + content + position + segments[segment]))  # in the order of their tags
    return groups, packed


def _place_groups(image: Slice) -> tuple[bytes, bytes]:
    """The functional groups that all frames on a slice share, encoded once: the source image, and the place."""
    derivation = data_set(
        SourceImageSequence=[source_item(image.sop_class_uid, image.sop_instance_uid, image.frame)],
        DerivationCodeSequence=[code_item(codes.DCM.Segmentation)],
    )
    source = encoded(data_set(DerivationImageSequence=[derivation]))
    if image.plane is None:
        return source, b""
    position = data_set(ImagePositionPatient=decimal_strings(image.plane.origin_mm))
    return source, encoded(data_set(PlanePositionSequence=[position]))


def _content_group(index: list[int], dimensions: Sequence[int]) -> bytes:
    """FrameContentSequence with the DimensionIndexValues; encoded by hand for speed, because it differs in every frame."""
    values = struct.pack(f"<{len(index)}L", *index)
    content = struct.pack("<HH2sH", 0x0020, 0x9157, b"UL", len(values)) + values
    if FRAME_LABEL in dimensions:  # a dimension's attribute must be present (PS3.3 C.7.6.17)
        content += element(FRAME_LABEL, b"LO", b"%d" % index[dimensions.index(FRAME_LABEL)])
    return element(0x00209111, b"SQ", item(content))


def _segment_group(segment: int) -> bytes:
    """The functional group that names the segment of a frame; empty in a label map, whose frames show all segments."""
    if not segment:
        return b""
    return encoded(data_set(SegmentIdentificationSequence=[data_set(ReferencedSegmentNumber=segment)]))


class _Packed:
    """Collects the pixels of frames in the form in which they are stored."""

    def __init__(self, encoding: SegEncoding) -> None:
        self.encoding = encoding
        self.parts: list[bytes] = []
        self.size, self.bits = 0, 1

    def add(self, pixels: NDArray[Any]) -> None:
        self.size = pixels.size
        self.bits = 1 if self.encoding.startswith("binary") else pixels.dtype.itemsize * 8
        self.parts.append(self._packed(pixels))

    def _packed(self, pixels: NDArray[Any]) -> bytes:
        if self.encoding == "labelmap-jpegls":
            return bytes(imagecodecs.jpegls_encode(pixels))
        if self.encoding == "labelmap-rle":
            return _run_lengths(pixels)
        if self.bits == 1:
            # Frames follow each other bit by bit (PS3.5 8.1.1): a frame of whole bytes is packed at once, others in `joined`.
            whole = pixels.size % 8 == 0
            return (np.packbits(pixels, bitorder="little") if whole else pixels.astype(np.uint8)).tobytes()
        return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()

    def joined(self) -> bytes:
        """The value of PixelData: fragments where it is compressed."""
        if SYNTAXES[self.encoding] in (RLELossless, JPEGLSLossless):
            # A fragment has an even length (PS3.5 A.4), and so has a value (7.1).
            return encapsulate([part + b"\0" * (len(part) % 2) for part in self.parts])
        content = b"".join(self.parts)
        if self.bits == 1 and self.size % 8:
            content = np.packbits(np.frombuffer(content, np.uint8), bitorder="little").tobytes()
        return content + b"\0" * (len(content) % 2)


def _run_lengths(pixels: NDArray[Any]) -> bytes:
    """One frame in the RLE form of PS3.5 annex G."""
    # pydicom's encoder, because imagecodecs has only a decoder for this form.
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
