"""The frames of a DICOM Segmentation as bytes: their functional groups and their pixels."""

import hashlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import imagecodecs
import numpy as np
from highdicom.frame import encode_frame
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes
from pydicom.uid import RLELossless

from dicom_io.coding import code_item
from dicom_io.kinds.encodings import SegEncoding
from dicom_io.objects.encoding import data_set, element, encoded, item
from dicom_io.objects.identity import digest_of
from dicom_io.objects.labels import Fractions
from dicom_io.objects.slice_positions import Slice
from dicom_io.objects.source_images import SourceImages
from dicom_io.objects.stand_ins import decimal_strings, source_item
from dicom_io.segmentation import Segmentation

SEGMENT_NUMBER, FRAME_LABEL = 0x0062000B, 0x00209453
STEPS = 255
"""MaximumFractionalValue: a probability of 1."""


class StoredFrames(ABC):
    """The frames of a SEG by segment, then by slice: only frames with voxels, or all with `empty_frames`.

    Where all segments are empty, the frames of segment 1 are written: an image needs at least one frame. Pixels are made while
    they are written, because the frames of many segments take more memory than their labels.

    Attributes:
        where: Segment (0 in a label map) and slice of each frame.
        bits: Bits of a pixel: 1, 8 or 16.
    """

    where: list[tuple[int, int]]
    bits: int

    def __init__(self, images: SourceImages) -> None:
        self._images = images

    @property
    def length(self) -> int:
        """Bytes of PixelData where it is not compressed; even (PS3.5 7.1)."""
        rows, columns = self._images.slices[0].shape
        length = -(-len(self.where) * rows * columns * self.bits // 8)
        return length + length % 2

    def pieces(self) -> Iterator[bytes]:
        """The value of PixelData, piece by piece."""
        frames, written = self._frames(), 0
        for piece in _bits(frames) if self.bits == 1 else (pixels.tobytes() for pixels in frames):
            yield piece
            written += len(piece)
        yield b"\0" * (self.length - written)

    def _frames(self) -> Iterator[NDArray[Any]]:
        return (self._pixels(segment, k) for segment, k in self.where)

    @abstractmethod
    def _pixels(self, segment: int, k: int) -> NDArray[Any]:
        """Shape (rows, columns): the stored pixels of a frame."""


class StoredLabels(StoredFrames):
    """The frames of a binary SEG or a label map."""

    def __init__(
        self, segmentation: Segmentation, images: SourceImages, encoding: SegEncoding, *, empty_frames: bool
    ) -> None:
        super().__init__(images)
        self._encoding = encoding
        self._planes = [images.labels(k, segmentation).in_rows() for k in range(len(images.slices))]
        if encoding.startswith("labelmap"):
            self.bits = 8 if segmentation.labels.max(initial=0) < 256 else 16
            self.where = [(0, k) for k in range(len(self._planes))]
            return
        self.bits = 1
        # By segment first: the frames of one structure follow each other, as the dimension index values count them.
        slices_of_segment: dict[int, list[int]] = {}
        for k, plane in enumerate(self._planes):
            for number in [segment.number for segment in segmentation.segments] if empty_frames else plane.numbers:
                slices_of_segment.setdefault(number, []).append(k)
        self.where = [
            (number, k)
            for number in sorted(slices_of_segment) or [1]
            for k in slices_of_segment.get(number, range(len(self._planes)))
        ]

    def pieces(self) -> Iterator[bytes]:
        """The value of PixelData, piece by piece; where it is compressed, with a fragment for each frame (PS3.5 A.4)."""
        if self._encoding == "labelmap-jpegls":
            yield encapsulate([bytes(imagecodecs.jpegls_encode(pixels)) for pixels in self._frames()])
        elif self._encoding == "labelmap-rle":
            # By pydicom's encoder (PS3.5 annex G), because imagecodecs has only a decoder for this form.
            yield encapsulate(
                [encode_frame(pixels, RLELossless, self.bits, self.bits, "MONOCHROME2") for pixels in self._frames()]
            )
        else:
            yield from super().pieces()

    def _pixels(self, segment: int, k: int) -> NDArray[Any]:
        plane = self._planes[k]
        if segment == 0:
            return plane.values.astype(f"<u{self.bits // 8}", copy=False)
        return plane.mask(segment)


class StoredFractions(StoredFrames):
    """The frames of a fractional SEG, in steps of 1/255; one segment at a time is in memory.

    Attributes:
        overlaps: Whether two segments have a part in one voxel, as it is stored.
        digest: Of the probabilities of all segments.
    """

    bits = 8

    def __init__(self, fractions: Fractions, images: SourceImages, *, empty_frames: bool) -> None:
        super().__init__(images)
        self._fractions, self.where = fractions, []
        slices, digest = range(len(images.slices)), hashlib.sha256()
        self.overlaps, seen = False, [np.zeros(images.slices[k].shape, dtype=bool) for k in slices]
        for segment in range(1, fractions.count + 1):
            digest.update(digest_of(fractions[segment].array).encode())
            for k in slices:
                inside = self._pixels(segment, k) > 0
                if empty_frames or inside.any():
                    self.where.append((segment, k))
                    self.overlaps = self.overlaps or bool((inside & seen[k]).any())
                    seen[k] |= inside
        self.where = self.where or [(1, k) for k in slices]
        self.digest = digest.hexdigest()

    def _pixels(self, segment: int, k: int) -> NDArray[Any]:
        steps: NDArray[np.uint8] = np.rint(self._images.values(k, self._fractions[segment]) * STEPS).astype(np.uint8)
        return steps


def frame_groups(
    where: Sequence[tuple[int, int]], slices: Sequence[Slice], dimensions: Sequence[int]
) -> Iterator[bytes]:
    """The functional groups of each frame, as items of a sequence.

    Args:
        where: Segment (0 in a label map) and slice of each frame, in their order.
        slices: Of the source.
        dimensions: Tags that the dimensions count: segments, positions, or frame labels in a label map on a picture.
    """
    # DimensionIndexValues count from 1, over the slices that have frames (PS3.3 C.7.6.17).
    rank = {k: number for number, k in enumerate(sorted({k for _, k in where}), start=1)}
    places = {k: _place_groups(slices[k]) for k in rank}
    segments = {segment: _segment_group(segment) for segment in {segment for segment, _ in where}}
    for segment, k in where:
        derivation, position = places[k]
        content = _content_group([segment if tag == SEGMENT_NUMBER else rank[k] for tag in dimensions], dimensions)
        yield item(derivation + content + position + segments[segment])  # in the order of their tags


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


def _bits(frames: Iterable[NDArray[np.bool_]]) -> Iterator[bytes]:
    """Frames that follow each other bit by bit (PS3.5 8.1.1); a frame may begin within a byte."""
    rest = np.zeros(0, dtype=bool)
    for pixels in frames:
        bits = np.concatenate([rest, pixels.ravel()]) if rest.size else pixels.ravel()
        whole = bits.size - bits.size % 8
        yield np.packbits(bits[:whole], bitorder="little").tobytes()
        rest = bits[whole:]
    yield np.packbits(rest, bitorder="little").tobytes()
