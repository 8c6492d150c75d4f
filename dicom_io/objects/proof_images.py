"""The frames of parametric maps, and the proof of what we wrote.

`walk_map` reads anybody's map through pydicom. `prove_map` reads ours through `raw_parser`, which shares nothing with the
writer (pydicom and highdicom): a frame is placed by its own headers and must lie on the slice that it names. Where the
slices of the source lie comes from its headers, as for the writer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_io.errors import GeometryProofError, LabelError, UnreadableFileError
from dicom_io.objects import proof_frames, proof_headers
from dicom_io.objects.grid import FrameGrid
from dicom_io.objects.raw_parser import Attributes, first_item, integer, items, needed, text, walk_file, whole
from dicom_io.objects.seg_frames import gap_of, items_of, named_sources
from dicom_io.objects.slice_positions import Plane, Slice, apart_mm, plane_of, tolerance_mm, values_at
from dicom_io.objects.source_images import SourceImages
from dicom_io.reading.headers import shown, shown_uid
from dicom_io.reading.instances import READ_ERRORS
from dicom_io.volume import Volume

WHOLE_RANGE = ("RealWorldValueFirstValueMapped", "RealWorldValueLastValueMapped")
FLOAT_RANGE = ("DoubleFloatRealWorldValueFirstValueMapped", "DoubleFloatRealWorldValueLastValueMapped")
RANGE_TOLERANCE = 1e-5
"""Of the larger end of a range: some write it with few digits."""

_SHARED, _PER_FRAME, _FLOAT_PIXELS = 0x52009229, 0x52009230, 0x7FE00008
_MAPPING, _SLOPE, _INTERCEPT, _EXPLANATION = 0x00409096, 0x00409225, 0x00409224, 0x00283003
_QUANTITY, _CONCEPT, _UNITS = 0x00409220, 0x0040A168, 0x004008EA
_REFERENCED_SERIES, _REFERENCED_INSTANCES = 0x00081115, 0x0008114A

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MapFrame:
    """One frame of a parametric map.

    Attributes:
        plane: Where it lies, by its own headers.
        named: The slices that it names, as `slice_positions.Slice.key` has them.
        values: Shape (rows, columns), float64: real world values, after slope and intercept; NaN for padding.
        meaning: LUT label, quantity and unit codes: frames that differ here are of different maps.
        gap_mm: SpacingBetweenSlices, where it says one.
    """

    plane: Plane
    named: tuple[str, ...]
    values: Floats
    meaning: tuple[str, ...]
    gap_mm: float | None = None


def walk_map(dataset: Dataset) -> Iterator[MapFrame]:
    """Every frame of a parametric map, placed and mapped to real world values by its own headers.

    Raises:
        UnreadableFileError: The pixels are missing or cut.
        LabelError: A frame has no linear real world value mapping or several that differ, no place, or a value outside of
            the mapped range, which has no real world value (PS3.3 C.7.6.16.2.11).
    """
    try:
        stored = dataset.pixel_array.reshape(-1, int(dataset.Rows), int(dataset.Columns))
    except READ_ERRORS as error:
        raise UnreadableFileError(
            f"the pixels of the parametric map cannot be decoded ({type(error).__name__}); a whole file is needed; "
            "fetch it again"
        ) from error
    for number, pixels in enumerate(stored, start=1):
        mapping = _mapping(dataset, number)
        values = _real_values(number, pixels, _is_padding(dataset, pixels), mapping)
        named = named_sources(dataset, number)
        yield MapFrame(plane_of(dataset, number), named, values, _meaning(mapping), gap_of(dataset, number))


def prove_map(
    path: Path,
    values: Volume,
    images: SourceImages,
    quantity: Code | None = None,
    unit: Code | None = None,
    label: str = "",
) -> None:
    """Pass if the map holds every value of `values`, bit for bit as float32, at its place in millimetres, says what they are,
    and is of the source's patient, study and frame of reference.

    Args:
        path: The written map; deleted on failure.
        values: Shape (I, J, K), float32.
        images: What the map refers to.
        quantity, unit, label: What the values are; None and "" are not compared.

    Raises:
        GeometryProofError: A value is missing, another or elsewhere, or a frame does not coincide with the slice that
            it names, or something else differs.
    """
    with proof_headers.deleting(path, "parametric map"):
        written = walk_file(path)
        slices, shown = {one.key: k for k, one in enumerate(images.slices)}, []
        for number, frame in enumerate(map_frames(written), start=1):
            key = next(iter(frame.named), "")
            k = slices.pop(key, None)
            if k is None:
                told = shown_uid(key.split("#")[0])
                raise GeometryProofError(f"frame {number} names the image {told}, which is no slice or had a frame")
            _check_on_named_slice(number, frame, images.slices[k], tolerance_mm(*images.source.spacing_mm))
            differing = int(np.count_nonzero(frame.values != values_at(frame.plane, images.slices[k].shape, values)))
            if differing:
                raise GeometryProofError(f"{differing} of {frame.values.size} values of frame {number} differ")
            _check_meaning(frame.meaning, quantity, unit, label)
            shown.append((0, k))
        if slices:
            raise GeometryProofError(f"{len(slices)} of {len(images.slices)} slices have no frame")
        proof_frames.check_groups(written)
        proof_frames.check_dimensions(written, shown)
        proof_headers.check_owner(written, images.headers[0])
        proof_headers.check_images(items(written, _REFERENCED_SERIES), _REFERENCED_INSTANCES, images.headers)


def map_frames(written: Attributes) -> Iterator[MapFrame]:
    """Every frame of a map of our own, by `raw_parser`; its meaning is label, quantity and unit.

    Raises:
        GeometryProofError: Something is missing in it.
    """
    shared, groups = (items(written, _SHARED) or [{}])[0], items(written, _PER_FRAME)
    rows, columns = whole(written, 0x00280010), whole(written, 0x00280011)
    if len(groups) != integer(written, 0x00280008):
        raise GeometryProofError(f"{len(groups)} functional groups describe {integer(written, 0x00280008)} frames")
    stored = np.frombuffer(needed(written, _FLOAT_PIXELS), "<f4").reshape(len(groups), rows, columns)
    for own, pixels in zip(groups, stored, strict=True):
        mapping = first_item(own if items(own, _MAPPING) else shared, _MAPPING)
        slope, intercept = (struct.unpack("<d", needed(mapping, tag))[0] for tag in (_SLOPE, _INTERCEPT))
        plane, key = proof_frames.plane_by_walk(own, shared), proof_frames.source_by_walk(own)
        quantity = proof_headers.coded(first_item(mapping, _QUANTITY), _CONCEPT)
        meaning = (text(mapping, _EXPLANATION), quantity, proof_headers.coded(mapping, _UNITS))
        yield MapFrame(plane, (key,) if key else (), pixels.astype(np.float64) * slope + intercept, meaning)


def _check_meaning(found: tuple[str, ...], quantity: Code | None, unit: Code | None, label: str) -> None:
    """Pass if label, quantity and unit of a frame are those that are given."""
    needed = (label, proof_headers.code_text(quantity), proof_headers.code_text(unit))
    for told, wanted in zip(found, needed, strict=True):
        if wanted and told != wanted.strip():
            raise GeometryProofError(f"its values are {shown(told[:80])}; {wanted} is needed")


def place_map(frames: Iterator[MapFrame], reference: Volume) -> NDArray[np.float32]:
    """The values of a map's frames on the grid of `reference` by patient position; NaN where no frame lies.

    Raises:
        LabelError: A pixel is no voxel (see `FrameGrid`), lies in another slice than its frame names, or on a voxel that has
            a value.
    """
    array = np.full(reference.shape, np.nan, dtype=np.float32)
    taken = np.zeros(reference.shape, dtype=bool)
    grid = FrameGrid(reference)
    for number, frame in enumerate(frames, start=1):
        what = f"frame {number}"
        rows, columns = np.indices(frame.values.shape)
        voxels = grid.voxels(what, frame.plane, columns.ravel(), rows.ravel(), frame.gap_mm)
        grid.check_named(what, frame.named, voxels[:, 2])
        where = tuple(voxels.T)
        if taken[where].any():
            raise LabelError(
                f"frame {number} lies where another frame lies; one value a voxel is needed; split the maps first"
            )
        taken[where] = True
        array[where] = frame.values.ravel().astype(np.float32)
    grid.finish("the map")
    return array


def _check_on_named_slice(number: int, frame: MapFrame, one: Slice, tolerance: float) -> None:
    """Pass if the corners of a frame lie where the slice that it names has its own, within `tolerance` mm."""
    if frame.values.shape != one.shape or one.plane is None:
        raise GeometryProofError(f"frame {number} has {frame.values.shape} pixels, its slice {one.shape}")
    away = apart_mm(frame.plane, one.plane, one.shape)
    if away > tolerance:
        told = shown_uid(one.sop_instance_uid)
        raise GeometryProofError(f"frame {number} lies {away:.2f} mm away from the slice {told} it names")


def _mapping(dataset: Dataset, number: int) -> Dataset:
    """The one real world value mapping of a frame; several that are the same are one."""
    items = items_of(dataset, number, "RealWorldValueMappingSequence") or [Dataset()]
    known = {_known(item): item for item in items}
    if len(known) > 1:
        told = "; ".join(_told(item) for item in list(known.values())[:4])
        raise LabelError(
            f"frame {number} of the parametric map has {len(known)} real world value mappings: {told}; one is needed, to "
            "know which values are meant; write a map for each"
        )
    return items[0]


def _known(mapping: Dataset) -> tuple[str, ...]:
    """What tells mappings apart."""
    numbers = ("RealWorldValueSlope", "RealWorldValueIntercept", *FLOAT_RANGE, *WHOLE_RANGE)
    return (*(str(mapping.get(keyword)) for keyword in numbers), *_codes(mapping))


def _told(mapping: Dataset) -> str:
    """A mapping as a message has it: codes and numbers, no free text."""
    codes = ", ".join(shown(code[:32]) for code in _codes(mapping)[:4]) or "no code"
    slope, intercept = (shown(str(mapping.get(f"RealWorldValue{part}"))[:24]) for part in ("Slope", "Intercept"))
    return f"{codes} with slope {slope} and intercept {intercept}"


def _is_padding(dataset: Dataset, pixels: NDArray) -> NDArray[np.bool_]:
    """Shape (rows, columns): pixels that stand for no value, those that are NaN among them.

    From the padding value to its range limit, in the type of the pixels (PS3.3 C.7.6.24.1, C.7.6.25.1, C.7.5.1.1.2).
    """
    empty = np.isnan(pixels)
    kind = next((kind for kind in ("DoubleFloat", "Float") if f"{kind}PixelData" in dataset), "")
    value, limit = (dataset.get(f"{kind}PixelPadding{end}") for end in ("Value", "RangeLimit"))
    if value is None:
        return empty
    ends = np.array([value, value if limit is None else limit], dtype=pixels.dtype)
    if np.isnan(ends).any():
        return np.asarray(empty | (pixels == ends[0]))
    return np.asarray(empty | ((pixels >= ends.min()) & (pixels <= ends.max())))


def _real_values(number: int, pixels: NDArray, padding: NDArray[np.bool_], mapping: Dataset) -> Floats:
    slope, intercept = mapping.get("RealWorldValueSlope"), mapping.get("RealWorldValueIntercept")
    if slope is None or intercept is None or not np.isfinite([float(slope), float(intercept)]).all():
        raise LabelError(
            "a frame of the parametric map has no finite RealWorldValueSlope and RealWorldValueIntercept; a linear mapping is "
            "needed to know what its values mean; write the map again with one"
        )
    values = np.where(padding, np.nan, pixels.astype(np.float64))
    _check_range(number, values, mapping, whole=pixels.dtype.kind in "iu")
    return values * float(slope) + float(intercept)


def _check_range(number: int, stored: Floats, mapping: Dataset, *, whole: bool) -> None:
    """Pass if all stored values lie in the range that a mapping is for; one without a range is for all.

    For floats the range of doubles alone counts. One of whole numbers may stand there too (PS3.3 C.7.6.16.2.11), but dcmqi
    writes it modulo 65536 whatever it is: -2.5 to 1.6 as 65534 to 1.
    """
    first, last = (mapping.get(keyword) for keyword in (WHOLE_RANGE if whole else FLOAT_RANGE))
    if first is None or last is None:
        return
    low, high = sorted((float(first), float(last)))
    margin = 0 if whole else RANGE_TOLERANCE * max(abs(low), abs(high))
    outside = stored[(stored < low - margin) | (stored > high + margin)]
    if outside.size:
        raise LabelError(
            f"frame {number} of the parametric map stores {outside.size} values outside of {low:g} to {high:g}, the range that "
            f"its mapping is for (one is {float(outside[0]):g}); all are needed there, or are padding, because no others have "
            "a meaning; write the map again with its whole range"
        )


def _meaning(mapping: Dataset) -> tuple[str, ...]:
    return (str(mapping.get("LUTLabel", "")), *_codes(mapping))


def _codes(mapping: Dataset) -> tuple[str, ...]:
    """Quantity and unit of a mapping, each as "scheme value"."""
    quantities = [
        code
        for item in mapping.get("QuantityDefinitionSequence") or []
        for code in item.get("ConceptCodeSequence") or []
    ]
    codes = [*quantities, *(mapping.get("MeasurementUnitsCodeSequence") or [])]
    return tuple(f"{code.get('CodingSchemeDesignator')} {code.get('CodeValue')}" for code in codes)
