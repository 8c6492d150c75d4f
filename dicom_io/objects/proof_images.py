"""Read parametric maps and presentation states again, and compare them with the result, value by value.

As in `proof`, nothing is told by the writer: a frame of a map is placed by its own headers, an outline by the image
that it names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.errors import GeometryProofError, LabelError, UnreadableFileError
from dicom_io.objects.places import TOLERANCE_MM, TOLERANCE_VOXELS, Plane, Slice, macro, plane_of, values_at
from dicom_io.objects.raster import even_odd
from dicom_io.objects.seg_frames import reference_key
from dicom_io.objects.source_images import SourceImages, mask_on
from dicom_io.reading.instances import READ_ERRORS
from dicom_io.volume import Volume

PIXEL_CENTRE = 0.5  # PS3.3 table C.10-5 and figure C.10.5-1: the first pixel runs from 0.0\0.0 to 1.0\1.0
LAYER_PREFIX = "SEGMENT "

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MapFrame:
    """One frame of a parametric map.

    Attributes:
        plane: Where it lies, by its own headers.
        source_key: The slice that it names, as `places.Slice.key` has it, or None.
        values: Shape (rows, columns), float64: real world values, after slope and intercept.
        meaning: LUT label, quantity and unit codes: frames that differ here are of different maps.
    """

    plane: Plane
    source_key: str | None
    values: Floats
    meaning: tuple[str, ...]


@dataclass(frozen=True)
class Outline:
    """One drawn line of a presentation state: its segment, the image it is drawn on (None: on every image) and its
    points of shape (n, 2), (column, row) with pixel centres at whole numbers.
    """

    segment: int
    source_key: str | None
    points: Floats


def walk_map(dataset: Dataset) -> Iterator[MapFrame]:
    """Every frame of a parametric map, placed and mapped to real world values by its own headers.

    Raises:
        UnreadableFileError: The pixels are missing or cut.
        LabelError: A frame has no linear real world value mapping, no place, or a value outside of the mapped range.
    """
    try:
        stored = dataset.pixel_array.reshape(-1, int(dataset.Rows), int(dataset.Columns))
    except READ_ERRORS as error:
        raise UnreadableFileError(
            f"the pixels of the parametric map cannot be decoded ({type(error).__name__}); a whole file is needed; "
            "fetch it again"
        ) from error
    for number, pixels in enumerate(stored, start=1):
        mapping = macro(dataset, number, "RealWorldValueMappingSequence")
        derivation = macro(dataset, number, "DerivationImageSequence")
        plane = plane_of(dataset, number)
        yield MapFrame(plane, _named(derivation), _real_values(pixels, mapping), _meaning(mapping))


def prove_map(path: Path, values: Volume, images: SourceImages) -> None:
    """Pass if the map holds every value of `values`, bit for bit as float32, at its place in millimetres.

    Args:
        path: The written map; deleted on failure.
        values: Shape (I, J, K), float32.
        images: What the map refers to.

    Raises:
        GeometryProofError: A value is missing, another or elsewhere, or a frame does not coincide with the slice that
            it names.
    """
    missing = {one.key: one for one in images.slices}
    try:
        for number, frame in enumerate(walk_map(pydicom.dcmread(path)), start=1):
            one = missing.pop(frame.source_key or "", None)
            if one is None:
                raise GeometryProofError(f"frame {number} names {frame.source_key}, which is no slice or had a frame")
            _check_on_named_slice(number, frame, one)
            differing = int(np.count_nonzero(frame.values != values_at(frame.plane, one.shape, values)))
            if differing:
                raise GeometryProofError(f"{differing} of {frame.values.size} values of frame {number} differ")
        if missing:
            raise GeometryProofError(f"{len(missing)} of {len(images.slices)} slices have no frame")
    except (GeometryProofError, LabelError, UnreadableFileError) as error:
        Path(path).unlink(missing_ok=True)
        raise GeometryProofError(f"the parametric map was deleted: {error}") from error


def place_map(frames: Iterator[MapFrame], reference: Volume) -> NDArray[np.float32]:
    """The values of a map's frames on the grid of `reference` by patient position; NaN where no frame lies.

    Raises:
        LabelError: A pixel falls between the voxels, outside the grid or on a voxel that has a value.
    """
    array = np.full(reference.shape, np.nan, dtype=np.float32)
    taken = np.zeros(reference.shape, dtype=bool)
    to_index = np.linalg.inv(reference.affine_lps)
    for number, frame in enumerate(frames, start=1):
        rows, columns = np.indices(frame.values.shape)
        index = frame.plane.points_mm(columns.ravel(), rows.ravel()) @ to_index[:3, :3].T + to_index[:3, 3]
        voxels = np.rint(index).astype(int)
        _check_voxels(number, index, voxels, reference)
        where = tuple(voxels.T)
        if taken[where].any():
            raise LabelError(
                f"frame {number} lies where another frame lies; one value a voxel is needed; split the maps first"
            )
        taken[where] = True
        array[where] = frame.values.ravel().astype(np.float32)
    return array


def walk_outlines(dataset: Dataset) -> Iterator[Outline]:
    """Every POLYLINE in PIXEL units on a layer of a segment."""
    for item in dataset.get("GraphicAnnotationSequence") or []:
        layer = str(item.GraphicLayer)
        if not layer.startswith(LAYER_PREFIX):
            continue
        keys: list[str | None] = [reference_key(image) for image in item.get("ReferencedImageSequence") or []] or [None]
        for graphic in item.get("GraphicObjectSequence") or []:
            if (graphic.GraphicType, graphic.GraphicAnnotationUnits) == ("POLYLINE", "PIXEL"):
                points = np.array(graphic.GraphicData, dtype=np.float64).reshape(-1, 2) - PIXEL_CENTRE
                yield from (Outline(int(layer[len(LAYER_PREFIX) :]), key, points) for key in keys)


def prove_outlines(path: Path, labels: Volume, images: SourceImages) -> None:
    """Pass if the outlines, rasterised anew on the images that they name, enclose exactly the labelled pixels.

    Args:
        path: The written presentation state; deleted on failure.
        labels: Shape (I, J, K) with label values, or (I, J, K, C) with channel c as segment c + 1.
        images: What it refers to.

    Raises:
        GeometryProofError: A pixel is missing or added, or an outline names no image of the source.
    """
    slices = {one.key: k for k, one in enumerate(images.slices)}
    loops: dict[int, dict[int, list[Floats]]] = {k: {} for k in slices.values()}
    try:
        for line in walk_outlines(pydicom.dcmread(path)):
            if line.source_key not in slices:
                raise GeometryProofError(f"an outline names the image {line.source_key}, which is not of the source")
            loops[slices[line.source_key]].setdefault(line.segment, []).append(line.points)
        for k, drawn in loops.items():
            _check_outlines(k, drawn, images.values(k, labels))
    except GeometryProofError as error:
        Path(path).unlink(missing_ok=True)
        raise GeometryProofError(f"the presentation state was deleted: {error}") from error


def _check_outlines(k: int, drawn: dict[int, list[Floats]], plane: NDArray) -> None:
    """Compare the loops of each segment on slice k with the labels there, shape (rows, columns[, C])."""
    held = set(np.unique(plane).tolist()) - {0} if plane.ndim == 2 else set(range(1, plane.shape[2] + 1))
    for segment in sorted(held | set(drawn)):
        wanted = mask_on(plane, segment) if segment in held else np.zeros(plane.shape[:2], dtype=bool)
        differing = int(np.count_nonzero(even_odd(drawn.get(segment, []), plane.shape[:2]) != wanted))
        if differing:
            raise GeometryProofError(f"the outlines of segment {segment} miss {differing} pixels of slice {k}")


def _check_on_named_slice(number: int, frame: MapFrame, one: Slice) -> None:
    """Pass if the corners of a frame lie where the slice that it names has its own."""
    if frame.values.shape != one.shape or one.plane is None:
        raise GeometryProofError(f"frame {number} has {frame.values.shape} pixels, its slice {one.shape}")
    bottom, right = one.shape[0] - 1, one.shape[1] - 1
    columns, rows = np.array([0, right, 0, right]), np.array([0, 0, bottom, bottom])
    theirs = one.plane.points_mm(columns, rows)
    away = float(np.linalg.norm(frame.plane.points_mm(columns, rows) - theirs, axis=1).max())
    if away > TOLERANCE_MM:
        raise GeometryProofError(f"frame {number} lies {away:.2f} mm away from the slice {one.key} it names")


def _check_voxels(number: int, index: Floats, voxels: NDArray, reference: Volume) -> None:
    away = float(np.abs(index - voxels).max())
    if away > TOLERANCE_VOXELS:
        raise LabelError(
            f"frame {number} has pixels {away:.2f} voxels away from the image's grid; at most {TOLERANCE_VOXELS} "
            "is needed; resample the map to the image first"
        )
    if (voxels < 0).any() or (voxels >= reference.shape).any():
        raise LabelError(
            f"frame {number} has pixels outside the image, whose grid is {reference.shape}; use the map that was made "
            "for this image"
        )


def _named(derivation: Dataset) -> str | None:
    items = derivation.get("SourceImageSequence") or []
    return reference_key(items[0]) if len(items) else None


def _real_values(pixels: NDArray, mapping: Dataset) -> Floats:
    slope, intercept = mapping.get("RealWorldValueSlope"), mapping.get("RealWorldValueIntercept")
    if slope is None or intercept is None:
        raise LabelError(
            "a frame of the parametric map has no RealWorldValueSlope and RealWorldValueIntercept; a linear mapping is "
            "needed to know what its values mean; write the map again with one"
        )
    return pixels.astype(np.float64) * float(slope) + float(intercept)


def _meaning(mapping: Dataset) -> tuple[str, ...]:
    quantities = [
        code
        for item in mapping.get("QuantityDefinitionSequence") or []
        for code in item.get("ConceptCodeSequence") or []
    ]
    codes = [*quantities, *(mapping.get("MeasurementUnitsCodeSequence") or [])]
    named = [f"{code.get('CodingSchemeDesignator')} {code.get('CodeValue')}" for code in codes]
    return (str(mapping.get("LUTLabel", "")), *named)
