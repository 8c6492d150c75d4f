"""A Parametric Map of any software to values on the grid of an image, through pydicom."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ParametricMapStorage

from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.objects.functional_groups import gap_of, items_of, named_sources
from dicom_io.objects.grid import FrameGrid, check_some_left
from dicom_io.objects.slice_positions import Floats, Plane, check_frame_of_reference, check_patient_space, plane_of
from dicom_io.reading.headers import shown
from dicom_io.reading.instances import READ_ERRORS, load_object, refusing
from dicom_io.volume import Volume

WHOLE_RANGE = ("RealWorldValueFirstValueMapped", "RealWorldValueLastValueMapped")
FLOAT_RANGE = ("DoubleFloatRealWorldValueFirstValueMapped", "DoubleFloatRealWorldValueLastValueMapped")
RANGE_TOLERANCE = 1e-5
"""Share of the larger end of a range, because some programs write it with few digits."""


def read_parametric_map(path: Path, reference: Volume) -> Volume:
    """The values of a Parametric Map on the grid of `reference`, placed by patient position.

    Args:
        path: A map by whatever software, of floats or of integers with a linear mapping.
        reference: The image that the map is for. Need not be DICOM; then the position alone decides.

    Returns:
        `reference` with real world values, shape (I, J, K), float32; NaN where the map has no frame, and where it stores its
        padding value or NaN.

    Raises:
        UnreadableFileError: Not a whole DICOM file.
        LabelError: Not a map, several maps in one object, several mappings of a frame that differ, stored values outside of
            the range that the mapping is for, another frame of reference, or pixels that are not voxels of `reference`:
            between them, or larger, smaller or further apart, though their centres may fall on centres.
    """
    dataset = load_object(path, "a Parametric Map", (ParametricMapStorage,))
    check_patient_space(reference)
    with refusing(path):
        check_frame_of_reference(dataset.get("FrameOfReferenceUID"), reference)
        frames = list(map_frames_of(dataset))
    meanings = {frame.meaning for frame in frames}
    if len(meanings) > 1:
        raise LabelError(
            f"the parametric map holds {len(meanings)} quantities in one object; one is needed; split it into one file "
            "for each"
        )
    with refusing(path):
        return reference.with_array(place_map(frames, reference))


@dataclass(frozen=True)
class MapFrame:
    """One frame of a parametric map.

    Attributes:
        plane: Where it lies, by its own headers.
        named: The slices that it names, as `slice_positions.Slice.key` has them.
        values: Shape (rows, columns), float64: real world values, after slope and intercept; NaN for padding.
        meaning: LUT label, quantity and unit codes; frames of different maps differ here.
        gap_mm: SpacingBetweenSlices; None where the frame does not state it.
    """

    plane: Plane
    named: tuple[str, ...]
    values: Floats
    meaning: tuple[str, ...]
    gap_mm: float | None = None


def map_frames_of(dataset: Dataset) -> Iterator[MapFrame]:
    """Every frame of a parametric map, placed and mapped to real world values by its own headers.

    Raises:
        UnreadableFileError: The pixels are missing or cut.
        LabelError: A frame has no linear real world value mapping or several that differ, no place, or a value outside of
            the mapped range, which has no real world value (PS3.3 C.7.6.16.2.11).
    """
    try:
        # The array of a single frame comes without an axis for frames.
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
        meaning = (str(mapping.get("LUTLabel", "")), *_codes(mapping))
        yield MapFrame(plane_of(dataset, number), named, values, meaning, gap_of(dataset, number))


def place_map(frames: Iterable[MapFrame], reference: Volume) -> NDArray[np.float32]:
    """The values of a map's frames, placed by patient position: shape (I, J, K) of `reference`, NaN where no frame lies.

    Raises:
        LabelError: A pixel is no voxel (see `FrameGrid`), lies in another slice than its frame names, or on a voxel that has
            a value; or all frames name images of other time points of the series.
    """
    # NaN marks the voxels without a frame.
    array = np.full(reference.shape, np.nan, dtype=np.float32)
    # A map of its own, because the value of a frame may be NaN, too.
    taken = np.zeros(reference.shape, dtype=bool)
    grid, left_out = FrameGrid(reference), 0
    for number, frame in enumerate(frames, start=1):
        name = f"frame {number}"
        if grid.is_of_other_time(frame.named):
            left_out += 1
            continue
        rows, columns = np.indices(frame.values.shape)
        voxels = grid.voxels(name, frame.plane, columns.ravel(), rows.ravel(), frame.gap_mm)
        grid.check_named(name, frame.named, voxels[:, 2])
        where = tuple(voxels.T)
        if taken[where].any():
            raise LabelError(
                f"frame {number} lies where another frame lies; one value a voxel is needed; split the maps first"
            )
        taken[where] = True
        array[where] = frame.values.ravel().astype(np.float32)
    check_some_left(left_out, int(taken.any()), "frame(s)")
    grid.finish("the map")
    return array


def _mapping(dataset: Dataset, number: int) -> Dataset:
    """The real world value mapping of a frame; equal mappings count once."""
    items = items_of(dataset, number, "RealWorldValueMappingSequence") or [Dataset()]
    known = {_known(item): item for item in items}
    if len(known) > 1:
        mappings = "; ".join(_described(item) for item in list(known.values())[:4])
        raise LabelError(
            f"frame {number} of the parametric map has {len(known)} real world value mappings: {mappings}; one is needed, to "
            "know which values are meant; write a map for each"
        )
    return items[0]


def _known(mapping: Dataset) -> tuple[str, ...]:
    """The numbers and codes of a mapping, to compare it with others."""
    numbers = ("RealWorldValueSlope", "RealWorldValueIntercept", *FLOAT_RANGE, *WHOLE_RANGE)
    return (*(str(mapping.get(keyword)) for keyword in numbers), *_codes(mapping))


def _described(mapping: Dataset) -> str:
    """A mapping for a message: codes and numbers, but no free text, which may name the patient."""
    codes = ", ".join(shown(code[:32]) for code in _codes(mapping)[:4]) or "no code"
    slope, intercept = (shown(str(mapping.get(f"RealWorldValue{part}"))[:24]) for part in ("Slope", "Intercept"))
    return f"{codes} with slope {slope} and intercept {intercept}"


def _is_padding(dataset: Dataset, pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Shape (rows, columns): pixels without a value, including NaN.

    Padding is everything from the padding value to its range limit, in the type of the pixels (PS3.3 C.7.6.24.1, C.7.6.25.1,
    C.7.5.1.1.2).
    """
    empty = np.isnan(pixels)
    kind = next((kind for kind in ("DoubleFloat", "Float") if f"{kind}PixelData" in dataset), "")
    value, limit = (dataset.get(f"{kind}PixelPadding{end}") for end in ("Value", "RangeLimit"))
    if value is None:
        return np.asarray(empty)
    ends = np.array([value, value if limit is None else limit], dtype=pixels.dtype)
    # A range that ends in NaN is no range: only the padding value itself counts. If that is NaN, no pixel equals it.
    if np.isnan(ends).any():
        return np.asarray(empty | (pixels == ends[0]))
    return np.asarray(empty | ((pixels >= ends.min()) & (pixels <= ends.max())))


def _real_values(number: int, pixels: NDArray[Any], padding: NDArray[np.bool_], mapping: Dataset) -> Floats:
    # The standard also has mappings by a table (PS3.3 C.7.6.16.2.11), which are refused here.
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
    """Pass if all stored values lie in the range of a mapping; a mapping without a range holds for all values.

    For floats only the range in doubles counts. A range in whole numbers may stand beside it (PS3.3 C.7.6.16.2.11), but dcmqi
    writes that range modulo 65536: -2.5 to 1.6 becomes 65534 to 1.
    """
    first, last = (mapping.get(keyword) for keyword in (WHOLE_RANGE if whole else FLOAT_RANGE))
    if first is None or last is None:
        return
    low, high = sorted((float(first), float(last)))
    # Whole numbers are exact.
    margin = 0 if whole else RANGE_TOLERANCE * max(abs(low), abs(high))
    outside = stored[(stored < low - margin) | (stored > high + margin)]
    if outside.size:
        raise LabelError(
            f"frame {number} of the parametric map stores {outside.size} values outside of {low:g} to {high:g}, the range that "
            f"its mapping is for (one is {float(outside[0]):g}); all are needed there, or are padding, because no others have "
            "a meaning; write the map again with its whole range"
        )


def _codes(mapping: Dataset) -> tuple[str, ...]:
    """Quantity and unit of a mapping, each as "scheme value"."""
    quantities = [
        code
        for item in mapping.get("QuantityDefinitionSequence") or []
        for code in item.get("ConceptCodeSequence") or []
    ]
    codes = [*quantities, *(mapping.get("MeasurementUnitsCodeSequence") or [])]
    return tuple(f"{code.get('CodingSchemeDesignator')} {code.get('CodeValue')}" for code in codes)
