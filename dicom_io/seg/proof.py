"""The proof of a SEG: every frame is read again through `raw_parser` and compared with the result.

`raw_parser` shares nothing with the writer. The only part shared with the reader for other software is `unpacked`, which
unpacks single bits.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import jpeg_ls
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.coding import Segment
from dicom_io.errors import GeometryProofError
from dicom_io.kinds import LABEL_MAP_STORAGE
from dicom_io.objects import identity, proof_groups, proof_headers
from dicom_io.objects.labels import Fractions
from dicom_io.objects.proof_groups import PER_FRAME, POSITION, REFERENCED_SEGMENT, SEGMENT, SHARED
from dicom_io.objects.proof_headers import Meaning, cielab, cielab_of, code_text, coded, compare, encoding_of
from dicom_io.objects.raw_parser import Attributes, first_item, integer, items, text, whole
from dicom_io.objects.slice_positions import Slice, slices_of
from dicom_io.proof import ComparedFrame, SliceComparison
from dicom_io.seg.frames import unpacked
from dicom_io.volume import Volume

_SEGMENTATION_TYPE, _STEPS = 0x00620001, 0x0062000E
_REFERENCED_SERIES, _REFERENCED_INSTANCES = 0x00081115, 0x0008114A
_ROWS, _COLUMNS, _FRAME_COUNT, _PIXELS = 0x00280010, 0x00280011, 0x00280008, 0x7FE00010
_ALLOCATED, _STORED, _HIGH_BIT, _PADDING = 0x00280100, 0x00280101, 0x00280102, 0x00280120
_CLASS = 0x00080016
_FORMS = {  # by SegmentationType: SOP class and bits allocated (PS3.3 C.8.20.2)
    "BINARY": ("1.2.840.10008.5.1.4.1.1.66.4", (1,)),
    "FRACTIONAL": ("1.2.840.10008.5.1.4.1.1.66.4", (8,)),
    "LABELMAP": (LABEL_MAP_STORAGE, (8, 16)),
}
_RLE, _JPEG_LS = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80"
_SEGMENTS, _SEGMENT_NUMBER, _SEGMENT_LABEL, _SEGMENT_COLOUR = 0x00620002, 0x00620004, 0x00620005, 0x0062000D
_CATEGORY, _TYPE, _TYPE_MODIFIER = 0x00620003, 0x0062000F, 0x00620011
_REGION, _REGION_MODIFIER = 0x00082218, 0x00082220


def prove_seg(
    path: Path,
    result: Volume | Fractions,
    source: Volume,
    segments: Sequence[Segment] | None = None,
    headers: tuple[Dataset, ...] | None = None,
) -> None:
    """Pass if the SEG holds exactly the voxels of a result, at the same places in millimetres, and describes their segments and
    their patient.

    Args:
        path: The written SEG (explicit VR); deleted on failure.
        result: Shape (I, J, K) with label values, or (I, J, K, C) with channel c as segment c + 1: labels, or
            probabilities 0 to 1 for a FRACTIONAL SEG, or `Fractions`, compared within half a step of its stored values.
        source: The image that the SEG refers to.
        segments: What the labels mean; None: only their numbers are compared.
        headers: Of the source, from `identity.source_headers`; None: read from its files.

    Raises:
        GeometryProofError: A voxel is missing, added or misplaced, a frame lies off the slice that it names, or something
            else in the SEG is wrong.
    """
    with proof_headers.deleting(path, "SEG") as written:
        headers = headers or identity.source_headers(source, of_each=False)
        steps = whole(written, _STEPS) if text(written, _SEGMENTATION_TYPE) == "FRACTIONAL" else 0
        slices = slices_of(source, headers)
        check: SliceComparison
        if steps:
            check = FractionComparison(_fractions(result), source, slices, steps)
        elif isinstance(result, Volume):
            check = SliceComparison(result, source, slices)
        else:
            raise GeometryProofError("the file contains labels, the result contains probabilities")
        for frame in parsed_seg_frames(written):
            check.frame(frame)
        check.finish()
        proof_groups.check_groups(written)
        proof_groups.check_dimensions(written, list(check.frames))
        proof_headers.check_owner(written, headers[0])
        behind = (*headers, *identity.headers_of_others(source))
        proof_headers.check_images(items(written, _REFERENCED_SERIES), _REFERENCED_INSTANCES, behind)
        described = check_segments(written, segments, label_map=text(written, _SEGMENTATION_TYPE) == "LABELMAP")
        check.are_described(described)


def _fractions(result: Volume | Fractions) -> Fractions:
    if isinstance(result, Fractions):
        return result
    if result.array.ndim == 3:
        raise GeometryProofError("the file is a FRACTIONAL segmentation; the result has labels, not probabilities")
    return Fractions.of_volume(result)


class FractionComparison(SliceComparison):
    """Compares the frames of a FRACTIONAL SEG with probabilities, within half a step.

    Args:
        fractions: The result.
        source: The image that the SEG refers to.
        slices: Of the source.
        steps: MaximumFractionalValue.
    """

    def __init__(self, fractions: Fractions, source: Volume, slices: Sequence[Slice], steps: int) -> None:
        super().__init__(fractions[1], source, slices)
        self.fractions, self.steps = fractions, steps

    def _expected(self, frame: ComparedFrame, k: int) -> NDArray[Any]:
        if not 1 <= frame.segment <= self.fractions.count:
            raise GeometryProofError(f"the file has a segment {frame.segment}, the result has {self.fractions.count}")
        return self._at(self.fractions[frame.segment], self._place(frame, k), k)

    def _differing(self, pixels: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.bool_]:
        # A fraction is rounded to the nearest step, so half a step is allowed; 1e-6 is for float32.
        return np.asarray(np.abs(pixels / self.steps - expected) > 0.5 / self.steps + 1e-6)

    def _labelled(self) -> tuple[list[int], int]:
        on_slices, everywhere = [0] * len(self.slices), 0
        for segment in range(1, self.fractions.count + 1):
            result = self.fractions[segment]
            for k, source_slice in enumerate(self.slices):
                on_slices[k] += self._count(self._at(result, source_slice, k))
            everywhere += sum(self._count(result.array[:, :, k]) for k in range(result.shape[2]))
        return on_slices, everywhere

    def _count(self, array: NDArray[Any]) -> int:
        """A probability that is stored as 0 does not count."""
        return int(np.count_nonzero(np.rint(array * self.steps)))


def parsed_seg_frames(written: Attributes) -> Iterator[ComparedFrame]:
    """Every frame of a SEG of our own, by `raw_parser`.

    Raises:
        GeometryProofError: Something is missing, its pixels are not of the form that its type has, or they are too few or
            too many.
    """
    kind = _checked_form(written)
    shared, groups = (items(written, SHARED) or [{}])[0], items(written, PER_FRAME)
    placed = any(items(group, POSITION) for group in (shared, *groups[:1]))
    if len(groups) != integer(written, _FRAME_COUNT):
        raise GeometryProofError(f"{len(groups)} functional groups describe {integer(written, _FRAME_COUNT)} frames")
    for own, pixels in zip(groups, _parsed_pixels(written), strict=True):
        segment = 0 if kind == "LABELMAP" else whole(first_item(own, SEGMENT), REFERENCED_SEGMENT)
        if segment == 0 and kind != "LABELMAP":
            raise GeometryProofError(f"a frame of a {kind} segmentation names the segment 0; 1 or more is needed")
        plane = proof_groups.parsed_plane(own, shared) if placed else None
        yield ComparedFrame(segment, plane, proof_groups.parsed_source(own), pixels)


def _checked_form(written: Attributes) -> str:
    """The SegmentationType of a SEG; its class and its pixels must be of the form that PS3.3 C.8.20.2 asks of this type."""
    kind = text(written, _SEGMENTATION_TYPE)
    sop_class, bits = _FORMS.get(kind, ("", ()))
    allocated = whole(written, _ALLOCATED)
    expected = {
        _CLASS: (text(written, _CLASS), sop_class),
        # The file meta information names the class and the instance of the data set (PS3.10 7.1).
        0x00020002: (text(written, 0x00020002), sop_class),
        0x00020003: (text(written, 0x00020003), text(written, 0x00080018)),
        # Photometric interpretation, samples per pixel, and pixel representation, which is unsigned.
        0x00280004: (text(written, 0x00280004), "MONOCHROME2"),
        0x00280002: (whole(written, 0x00280002), 1),
        0x00280103: (whole(written, 0x00280103), 0),
        _ALLOCATED: (allocated if allocated in bits else 0, allocated),
        _STORED: (whole(written, _STORED), allocated),
        _HIGH_BIT: (whole(written, _HIGH_BIT), allocated - 1),
        _PADDING: (whole(written, _PADDING) if _PADDING in written else 0, 0),  # the background of a label map
    }
    for tag, (value, needed) in expected.items():
        if value != needed:
            raise GeometryProofError(
                f"of a {kind or 'missing'} segmentation type the attribute {tag:08X} is {value}; {needed or 'none'} is needed"
            )
    return kind


def _parsed_pixels(written: Attributes) -> Iterator[NDArray[Any]]:
    rows, columns, bits = (whole(written, tag) for tag in (_ROWS, _COLUMNS, _ALLOCATED))
    count, content = integer(written, _FRAME_COUNT), written.get(_PIXELS)
    if content is None:
        raise GeometryProofError("the written file has no pixel data")
    kind, syntax = np.dtype("<u2" if bits == 16 else "u1"), text(written, 0x00020010)
    if isinstance(content, list):
        if len(content) != count + 1:
            raise GeometryProofError(f"the written file has {len(content) - 1} compressed frames, {count} are needed")
        # The first item is the offset table (PS3.5 A.4).
        yield from (_decoded(part, syntax, kind).reshape(rows, columns) for part in content[1:])
        return
    needed = -(-rows * columns * count * bits // 8)
    # Values have an even number of bytes (PS3.5 7.1).
    if len(content) != needed + needed % 2:
        raise GeometryProofError(
            f"the written file has {len(content)} bytes of pixels, {needed + needed % 2} are needed"
        )
    if bits == 1:
        yield from unpacked(content, rows, columns, count)
    else:
        yield from np.frombuffer(content, kind, count * rows * columns).reshape(count, rows, columns)


def _decoded(part: bytes, syntax: str, kind: np.dtype) -> NDArray[Any]:
    """One compressed frame; JPEG-LS is decoded and encoded by different codecs."""
    if syntax == _RLE:
        return np.frombuffer(imagecodecs.dicomrle_decode(part, kind), kind)
    if syntax == _JPEG_LS:
        return np.frombuffer(jpeg_ls.decode_buffer(part)[0], kind)
    raise GeometryProofError(f"the written file has the transfer syntax {syntax}, which the proof does not read")


def check_segments(written: Attributes, segments: Sequence[Segment] | None, *, label_map: bool) -> set[int]:
    """The numbers of the segments that a SEG describes, each once; as the result has them, where its segments are known.

    Args:
        written: The SEG.
        segments: Of the result; None where they are not known.
        label_map: It may describe the background, number 0.
    """
    described = [(whole(item, _SEGMENT_NUMBER), item) for item in items(written, _SEGMENTS)]
    encoding = encoding_of(written)
    meanings = [(number, _meaning_of(item, encoding)) for number, item in described if number or not label_map]
    if segments is not None:
        compare("segment", meanings, {segment.number: _segment_meaning(segment) for segment in segments})
    return {number for number, _ in meanings}


def _meaning_of(item: Attributes, encoding: str) -> Meaning:
    kind, region = ((items(item, tag) or [{}])[0] for tag in (_TYPE, _REGION))
    return {
        "label": text(item, _SEGMENT_LABEL, encoding),
        "category": coded(item, _CATEGORY),
        "type": coded(item, _TYPE),
        "type modifier": coded(kind, _TYPE_MODIFIER),
        "region": coded(item, _REGION),
        "region modifier": coded(region, _REGION_MODIFIER),
        "colour": cielab(item, _SEGMENT_COLOUR),
    }


def _segment_meaning(segment: Segment) -> Meaning:
    modifier = segment.anatomic_region_modifier if segment.anatomic_region else None
    return {
        "label": segment.label.strip(),
        "category": code_text(segment.category),
        "type": code_text(segment.type),
        "type modifier": code_text(segment.type_modifier),
        "region": code_text(segment.anatomic_region),
        "region modifier": code_text(modifier),
        "colour": cielab_of(segment),
    }
