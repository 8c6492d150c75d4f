"""The frames of a DICOM Segmentation as bytes: which there are, their functional groups and their pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sr.codedict import codes
from pydicom.uid import (
    JPEGLSLossless,
    RLELossless,
)

from dicom_io.coding import code_item
from dicom_io.kinds.encodings import SYNTAXES, SegEncoding
from dicom_io.objects.encoding import element, encoded, item
from dicom_io.objects.identity import ResultInfo
from dicom_io.objects.slice_positions import Slice, values_on
from dicom_io.objects.stand_ins import decimal_strings, source_item
from dicom_io.volume import Volume

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


def _held(planes: Sequence[NDArray[Any]], encoding: SegEncoding) -> dict[int, list[int]]:
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


def _pixels(plane: NDArray[Any], segment: int, encoding: SegEncoding) -> NDArray[Any]:
    if plane.ndim == 2:
        return plane == segment
    if encoding == "fractional":
        return np.rint(plane[..., segment - 1] * STEPS).astype(np.uint8)
    return plane[..., segment - 1] != 0


def frames_as_bytes(
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
    derivation.SourceImageSequence = [source_item(one.sop_class_uid, one.sop_instance_uid, one.frame)]
    derivation.DerivationCodeSequence = [code_item(codes.DCM.Segmentation)]
    holder = Dataset()
    holder.DerivationImageSequence = [derivation]
    if one.plane is None:
        return encoded(holder), b""
    position, place = Dataset(), Dataset()
    position.ImagePositionPatient = decimal_strings(one.plane.origin_mm)
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


def _run_lengths(pixels: NDArray[Any]) -> bytes:
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
