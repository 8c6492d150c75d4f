"""A DICOM Segmentation of any software -> labels or channels on the grid of an image, placed through the patient space."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_io.coding import NOT_STATED, Segment, is_code, printable
from dicom_io.errors import LabelError
from dicom_io.kinds import KIND
from dicom_io.objects.grid import FrameGrid, check_some_left, with_made_slices, with_notes
from dicom_io.objects.slice_positions import check_frame_of_reference
from dicom_io.reading.headers import shown, shown_uid
from dicom_io.reading.instances import load_dataset, load_object, refusing
from dicom_io.reading.titles import numbers_called
from dicom_io.seg.frames import SegFrame, numbering, padded, seg_frames_of
from dicom_io.volume import Volume, number_type

MAX_SEGMENT = 65535  # SegmentNumber is US


def read_seg(path: Path, reference: Volume) -> Volume:
    """The labels of a SEG on the grid of `reference`, placed by patient position and checked by SOP Instance
    UID.

    Args:
        path: BINARY or LABELMAP segmentation, by whatever software.
        reference: The image that the labels are for. Need not be DICOM; then the position alone decides. For a
            picture without patient space, the SEG must name it.

    Returns:
        `reference` with label values = SegmentNumber, shape (I, J, K), uint8 (uint16 above 255 segments).

    Raises:
        UnreadableFileError: Not a DICOM file.
        LabelError: Not a SEG, FRACTIONAL, overlapping segments, or segments that are not described, another frame of
            reference, or frames whose pixels are not voxels of `reference`: between them, or larger, smaller or further
            apart, though their centres may fall on centres.
    """
    dataset = _open(path, reference)
    with refusing(path):
        return _labels(dataset, reference)


def _labels(dataset: Dataset, reference: Volume) -> Volume:
    if dataset.SegmentationType == "FRACTIONAL":
        raise LabelError(
            "the label file is a FRACTIONAL segmentation, which holds a probability a voxel; a BINARY or LABELMAP one is "
            "needed for labels; convert it first, or read its probabilities with `read_segments`"
        )
    segments = _Segments(dataset, reference)
    array = np.zeros(reference.shape, dtype=number_type(segments.numbers[-1]))
    for where, named, _ in segments.laid():
        taken = array[where]
        if taken.any():
            # The message names the first overlap of the frame.
            at = int(np.argmax(taken != 0))
            raise LabelError(
                f"segment {int(named[at])} overlaps segment {int(taken[at])}; segments that exclude each other are needed "
                "for one label map; read them as channels with `read_segments`, or split the SEG into one file for each"
            )
        array[where] = named
    return with_made_slices(with_notes(reference.with_array(array), *segments.notes))


def read_segments(path: Path, reference: Volume, names: Sequence[str] | None = None) -> Volume:
    """The segments of a SEG as channels on the grid of `reference`; they may overlap or be fractions.

    Args:
        path: BINARY, LABELMAP or FRACTIONAL segmentation, by whatever software.
        reference: As in `read_seg`.
        names: SegmentLabels of the segments to read, in the order of the channels; None for all, by their numbers.

    Returns:
        `reference` with shape (I, J, K, C): one channel a segment, in increasing SegmentNumber (those of
        `segment_numbers`) or as named. uint8 0 or 1, or for FRACTIONAL float32 from 0 to 1.

    Raises:
        UnreadableFileError: As `read_seg`.
        LabelError: As `read_seg`, but for overlap and fractions; or a name is of no segment, or of several.
    """
    dataset = _open(path, reference)
    with refusing(path):
        return _channels(dataset, reference, names)


def _channels(dataset: Dataset, reference: Volume, names: Sequence[str] | None) -> Volume:
    segments = _Segments(dataset, reference)
    kind, chosen = np.float32 if segments.fractional else np.uint8, list(segments.numbers)
    if names is not None:
        known = numbering(dataset)
        items = ((known.get(int(item.SegmentNumber), 0), item) for item in dataset.SegmentSequence)
        labels = [(number, str(item.get("SegmentLabel") or "")) for number, item in items if number]
        chosen = numbers_called(dataset, labels, names, "segment")
    channels = np.full(segments.numbers[-1] + 1, -1)
    channels[chosen] = np.arange(len(chosen))
    # A segment lies in one piece, so that the system gives memory only where some voxel is set.
    array = np.zeros((len(chosen), *reference.shape[::-1]), dtype=kind).T
    for where, named, stored in segments.laid(None if names is None else chosen):
        channel = channels[named]
        wanted = channel >= 0
        place = (*(axis[wanted] for axis in where), channel[wanted])
        array[place] = stored[wanted] / float(segments.most) if segments.fractional else 1
    return with_made_slices(with_notes(reference.with_array(array), *segments.notes))


def segment_numbers(path: Path) -> tuple[int, ...]:
    """The SegmentNumbers that a SEG describes, in increasing order, without a background."""
    dataset = load_dataset(Path(path))
    with refusing(path):
        return _numbers(dataset)


def _open(path: Path, reference: Volume) -> Dataset:
    dataset = load_object(path, "a segmentation", KIND["SEG"].sop_classes)
    with refusing(path):
        way = dataset.get("SegmentationType")
        check_frame_of_reference(dataset.get("FrameOfReferenceUID"), reference)
    if way not in ("BINARY", "LABELMAP", "FRACTIONAL"):
        raise LabelError(
            f"the label file has the segmentation type {shown(str(way)[:64])}; BINARY, LABELMAP or FRACTIONAL is needed; "
            "export the SEG again"
        )
    return dataset


def _numbers(dataset: Dataset) -> tuple[int, ...]:
    numbers = sorted(set(numbering(dataset).values()) - {0})
    if not numbers or numbers[-1] > MAX_SEGMENT:
        raise LabelError(
            f"the label file describes the segments {numbers[:20]}; numbers from 1 are needed; export it again"
        )
    return tuple(numbers)


class _Segments:
    """Lays the frames of a SEG on an image.

    Attributes:
        numbers: The segments that it describes.
        fractional: Its pixels are steps of fractions.
        most: The highest value of a pixel; a label map has none.
        notes: What has been left out or numbered anew, a sentence each; complete when all frames are laid.
    """

    def __init__(self, dataset: Dataset, reference: Volume) -> None:
        self.dataset, self.reference = dataset, reference
        self.numbers = _numbers(dataset)
        self.fractional = dataset.SegmentationType == "FRACTIONAL"
        self.most = int(dataset.get("MaximumFractionalValue") or 0) if self.fractional else 1
        self.notes = [
            f"segment {number} of the file has the number {own} here, since 0 is the background"
            for number, own in numbering(dataset).items() if own not in (0, number)
        ] + [
            f"segment {number} ({shown(name)}) is the PixelPaddingValue of the file, and so no structure"
            for number, name in padded(dataset).items()
        ]  # fmt: skip
        self._grid = FrameGrid(reference)

    def laid(
        self, chosen: Sequence[int] | None = None
    ) -> Iterator[tuple[tuple[NDArray[Any], ...], NDArray[Any], NDArray[Any]]]:
        """For each frame: the voxels (i, j, k) under its pixels that are not 0, the segments there, and these pixels.

        Args:
            chosen: The segments that are wanted, since others cannot hinder them; None for all.

        Raises:
            UnreadableFileError: Its pixels are missing or broken.
            LabelError: The pixels are no voxels of the image, lie in another slice than the frame names, or belong to a
                segment that is not described.
        """
        left_out = taken = 0
        times = dict[tuple[float, ...], int | None]()
        for frame in seg_frames_of(self.dataset):
            if chosen is not None and frame.segment and frame.segment not in chosen:
                continue
            if self._grid.is_of_other_time(frame.named):
                left_out += 1
                continue
            taken += 1
            # Only pixels of a segment are placed, so the empty part of a frame may reach beyond the image.
            # Counted in one dimension, in which numpy finds the pixels that are set many times faster.
            rows, columns = np.divmod(np.flatnonzero(frame.pixels.ravel() != 0), frame.pixels.shape[1])
            stored = frame.pixels[rows, columns]
            if frame.segment and stored.max(initial=0) > self.most:
                raise LabelError(
                    f"a frame of segment {frame.segment} holds {int(stored.max())}; values up to {self.most} are needed "
                    "(BINARY: 1; FRACTIONAL: its MaximumFractionalValue); export the SEG again"
                )
            if len(stored) and frame.plane is not None:
                place = (frame.segment, *np.round(frame.plane.origin_mm, 2))
                if place in times and (
                    self.reference.provenance.other_times or times[place] != frame.time or self.fractional
                ):
                    which = f"segment {frame.segment}" if frame.segment else "the label map"
                    raise LabelError(
                        f"two frames of {which} lie at one place, and may be of two time points; one is needed; export each "
                        "time point as an object of its own"
                    )
                times[place] = frame.time
            named = np.full(len(stored), frame.segment) if frame.segment else stored
            self._check_described(named)
            if chosen is not None and not frame.segment:
                wanted = np.isin(named, chosen)
                rows, columns, named, stored = rows[wanted], columns[wanted], named[wanted], stored[wanted]
            yield self._voxels(frame, rows, columns), named, stored
        self.notes += check_some_left(left_out, taken, "frame(s)")
        self._grid.finish("the SEG")

    def _check_described(self, named: NDArray[Any]) -> None:
        unknown = named[~np.isin(named, self.numbers)]
        if len(unknown):
            described = f"{list(self.numbers[:20])}{' ...' * (len(self.numbers) > 20)}"
            raise LabelError(
                f"the frames hold segment {int(unknown.min())}, described are {described}; each needs its description; "
                "export the SEG again"
            )

    def _voxels(self, frame: SegFrame, rows: NDArray[Any], columns: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        if frame.plane is None:
            return self._in_picture(frame, rows, columns)
        name = f"a frame of segment {frame.segment}" if frame.segment else "a frame of the label map"
        voxels = self._grid.voxels(name, frame.plane, columns, rows, frame.gap_mm)
        self._grid.check_named(name, frame.named, voxels[:, 2])
        return tuple(voxels.T)

    def _in_picture(self, frame: SegFrame, rows: NDArray[Any], columns: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        # Without a place, only the name and the size of the image show that a frame belongs to it.
        shape = (self.reference.shape[1], self.reference.shape[0])
        is_named = any(key in self._grid.slices for key in frame.named)
        if not self.reference.planar or not is_named or frame.pixels.shape != shape:
            named = shown_uid(next(iter(frame.named), "none").split("#")[0])
            raise LabelError(
                f"a frame of the SEG has no place in patient space, {frame.pixels.shape} pixels and names the image "
                f"{named}; a SEG that names this very picture, of {shape} pixels, or one with a place is needed; "
                "use the SEG that was made for this image"
            )
        return columns, rows, np.zeros_like(rows)


def described_segments(seg: Path) -> tuple[Segment, ...]:
    """The meaning of each segment of a SEG, in increasing SegmentNumber, without a background.

    A segment without a label is called "Segment" with its number; absent codes are NOT_STATED.

    Raises:
        UnreadableFileError: The file cannot be read.
    """
    header = load_dataset(seg)
    with refusing(seg):
        known = numbering(header)
        described = [(known.get(int(item.SegmentNumber), 0), item) for item in header.get("SegmentSequence") or []]
        return tuple(
            sorted((_segment(item, number) for number, item in described if number), key=lambda segment: segment.number)
        )


def _segment(item: Dataset, number: int) -> Segment:
    kind = (item.get("SegmentedPropertyTypeCodeSequence") or [Dataset()])[0]
    region = (item.get("AnatomicRegionSequence") or [None])[0]
    colour = item.get("RecommendedDisplayCIELabValue")
    return Segment(
        number=number,
        label=printable(str(item.get("SegmentLabel") or ""), 64) or f"Segment {number}",
        category=_code_in(item, "SegmentedPropertyCategoryCodeSequence") or NOT_STATED,
        type=_code(kind),
        type_modifier=_code_in(kind, "SegmentedPropertyTypeModifierCodeSequence"),
        anatomic_region=None if region is None else _code(region),
        anatomic_region_modifier=None if region is None else _code_in(region, "AnatomicRegionModifierSequence"),
        # CIELab has colours that RGB does not have; they are clipped to 0 and 255.
        display_rgb=hd.color.CIELabColor.from_dicom_value(colour).to_rgb(clip=True) if colour else None,
        description=printable(str(item.get("SegmentDescription") or ""), 1024),
    )


def _code(item: Dataset) -> Code:
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue")
    scheme, meaning = str(item.get("CodingSchemeDesignator") or ""), printable(str(item.get("CodeMeaning") or ""), 64)
    code = Code(str(value or ""), scheme, meaning or NOT_STATED.meaning)
    return code if is_code(code) else NOT_STATED._replace(meaning=code.meaning)


def _code_in(holder: Dataset, keyword: str) -> Code | None:
    return _code(holder[keyword].value[0]) if holder.get(keyword) else None
