"""What a reader must give back for a series, and the judge that compares: value AND place of every point.

A truth is a table of (position, value), made from the numbers that a phantom was written with, or from each slice's own
header (PS3.3 C.7.6.2.1.1). No reader is trusted here, ours included. Positions are LPS millimetres.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.misc import is_dicom

Placed = tuple[NDArray, NDArray[np.float64]]
"""An array of shape (I, J, K) and its affine of shape (4, 4): index to LPS mm."""

PLACE_TOLERANCE_MM = 0.05
PLACE_TOLERANCE_VOXELS = 0.25
VALUE_TOLERANCE = 1e-5  # relative: float32 keeps 7 digits, and a rescale rounds twice
LOPSIDED = ((0.03, 0.02), (0.61, 0.37), (0.42, 0.71), (0.29, 0.48), (0.97, 0.89))
"""Five points of a slice as fractions of its columns and rows; no flip or turn carries one into another."""

_MACROS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)


@dataclass(frozen=True)
class Truth:
    """One volume as it truly is.

    Attributes:
        positions_lps: Shape (N, 3), mm: voxel centres, all of them or at least five of each slice.
        values: Shape (N,): what a reader must give there, rescaled.
        voxel_count: How many voxels the volume has in all.
        required: False for what a reader may leave out: a localizer, or the other one of two series.
        place_mm: How far a voxel may lie from its position.
    """

    positions_lps: NDArray[np.float64]
    values: NDArray[np.float64]
    voxel_count: int
    required: bool = True
    place_mm: float = PLACE_TOLERANCE_MM


@dataclass(frozen=True)
class Verdict:
    """What a reader did with a series.

    Attributes:
        kind: "WRONG" is a volume of which a value or a place is not true; "crashed" is an error that the reader did not
            mean to raise, the end of its process, or no end in time; "absent" a reader that is not installed.
        text: The fault, or the refusal.
        warned: Whether the reader said anything beside its result.
    """

    kind: Literal["right", "WRONG", "refused", "crashed", "absent"]
    text: str = ""
    warned: bool = False


def stack_truth(
    array: NDArray,
    affine_lps: NDArray[np.float64],
    *,
    drop: Sequence[int] = (),
    shift_mm: Mapping[int, Sequence[float]] | None = None,
    slopes: Sequence[float] | None = None,
    intercepts: Sequence[float] | None = None,
    required: bool = True,
) -> Truth:
    """Every voxel of the series that `phantoms.write_mr_series` writes from the same arguments."""
    count = array.shape[2]
    indices = np.indices(array.shape).reshape(3, -1).T
    indices = indices[~np.isin(indices[:, 2], drop)]
    k = indices[:, 2]
    shifts = np.array([(shift_mm or {}).get(n, (0.0, 0.0, 0.0)) for n in range(count)])
    slope, intercept = np.array(slopes or [1.0] * count), np.array(intercepts or [0.0] * count)
    values = array[tuple(indices.T)].astype(np.float64) * slope[k] + intercept[k]
    positions = indices @ affine_lps[:3, :3].T + affine_lps[:3, 3] + shifts[k]
    return Truth(positions, values, len(indices), required)


def judge(volumes: Sequence[Placed], truths: Sequence[Truth]) -> Verdict:
    """Right if every volume is one of the truths, none is there twice and no required one is left out.

    Args:
        volumes: All that a reader gave back; a 4D result as its single volumes.
        truths: The volumes that a reader may give; empty where nothing can be right.
    """
    if not volumes:
        return Verdict("refused", "nothing was given back")
    left = list(truths)
    for volume in volumes:
        faults = [fault(volume, truth) for truth in left]
        if "" not in faults:
            return Verdict("WRONG", min(faults, key=len) if faults else "it cannot be one volume, yet it was read")
        del left[faults.index("")]
    if any(truth.required for truth in left):
        return Verdict("WRONG", f"{sum(truth.required for truth in left)} of {len(truths)} volumes were left out")
    return Verdict("right")


def fault(volume: Placed, truth: Truth) -> str:
    """What is not true of the volume; empty where all is."""
    array, affine_lps = np.asarray(volume[0]), np.asarray(volume[1], dtype=np.float64)
    if array.ndim != 3 or array.size != truth.voxel_count:
        return f"the array is {'x'.join(map(str, array.shape))}, the truth has {truth.voxel_count} voxels"
    if not np.isfinite(affine_lps).all() or abs(np.linalg.det(affine_lps[:3, :3])) < 1e-9:
        return "the affine is singular or not finite"
    exact = np.linalg.solve(affine_lps, np.c_[truth.positions_lps, np.ones(len(truth.positions_lps))].T)[:3]
    nearest = np.rint(exact).astype(int)
    off_mm = np.linalg.norm(affine_lps[:3, :3] @ (exact - nearest), axis=0)
    outside = (nearest < 0).any(axis=0) | (nearest >= np.array(array.shape)[:, None]).any(axis=0)
    misplaced = outside | (off_mm > truth.place_mm) | (np.abs(exact - nearest) > PLACE_TOLERANCE_VOXELS).any(axis=0)
    if misplaced.any():
        found = f"{misplaced.sum()} of {misplaced.size} points have no voxel centre ({outside.sum()} lie outside"
        return f"{found}, others up to {off_mm[~outside].max(initial=0):.2f} mm off)"
    return _value_fault(array[tuple(nearest)].astype(np.float64), truth.values)


def _value_fault(found: NDArray[np.float64], values: NDArray[np.float64]) -> str:
    differing = ~(np.abs(found - values) <= VALUE_TOLERANCE * np.maximum(1.0, np.abs(values)))
    if not differing.any():
        return ""
    worst = int(np.argmax(np.where(differing, np.nan_to_num(np.abs(found - values), nan=np.inf), -1.0)))
    return f"{differing.sum()} of {differing.size} values differ, such as {found[worst]:g} for {values[worst]:g}"


def header_truths(files: Iterable[Path]) -> tuple[Truth, ...]:
    """Truths of real files: five lopsided points of each slice, by its own header and pixels.

    Slices of one series, size and orientation are one volume. The largest one is required, unless another is as large.
    Pictures without a position and colour are left out.
    """
    volumes: dict[tuple[object, ...], list[Truth]] = {}
    for path in sorted(files):
        for key, slice_truth in _slices(path):
            volumes.setdefault(key, []).append(slice_truth)
    merged = [_merged(slices) for slices in volumes.values()]
    sizes = sorted((truth.voxel_count for truth in merged), reverse=True)
    tied = len(sizes) > 1 and sizes[0] == sizes[1]
    return tuple(replace(truth, required=not tied and truth.voxel_count == sizes[0]) for truth in merged)


def _merged(slices: Sequence[Truth]) -> Truth:
    positions = np.concatenate([one.positions_lps for one in slices])
    values = np.concatenate([one.values for one in slices])
    return Truth(positions, values, sum(one.voxel_count for one in slices))


def _slices(path: Path) -> list[tuple[tuple[object, ...], Truth]]:
    """Key and five points of each slice in a file; empty for what is no grey image in patient space."""
    if not is_dicom(path):
        return []
    try:
        header = dcmread(path)
    except InvalidDicomError:
        return []
    if "PixelData" not in header or int(header.SamplesPerPixel) != 1:
        return []
    groups = [_groups_of(header, frame) for frame in range(int(header.get("NumberOfFrames") or 1))]
    if any(groups_of_frame is None for groups_of_frame in groups):
        return []
    stored = _stored(path, header).reshape(-1, header.Rows, header.Columns)
    return [_five_points(header, frame, pixels) for frame, pixels in zip(groups, stored, strict=True) if frame]


def _groups_of(header: Dataset, frame: int) -> Dataset | None:
    """Position, orientation, spacing and rescale of a frame in one flat data set; None where there is no position."""
    flat = Dataset()
    flat.update({element.tag: element for element in header if element.VR != "SQ"})
    if "PerFrameFunctionalGroupsSequence" in header:
        for groups in (header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence[frame]):
            for macro in _MACROS:
                flat.update(groups.get(macro, [Dataset()])[0])
    placed = all(flat.get(keyword) for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
    return flat if placed else None


def _five_points(header: Dataset, frame: Dataset, pixels: NDArray) -> tuple[tuple[object, ...], Truth]:
    rows, columns = pixels.shape
    along_row, along_column = np.array(frame.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
    between_rows, between_columns = (float(number) for number in frame.PixelSpacing)
    points = [(int(x * (columns - 1)), int(y * (rows - 1))) for x, y in LOPSIDED]
    origin = np.array(frame.ImagePositionPatient, dtype=np.float64)
    positions = [origin + along_row * between_columns * i + along_column * between_rows * j for i, j in points]
    slope, intercept = float(frame.get("RescaleSlope", 1)), float(frame.get("RescaleIntercept", 0))
    values = [float(pixels[j, i]) * slope + intercept for i, j in points]
    cosines = tuple(round(float(cosine), 2) for cosine in (*along_row, *along_column))
    key = (str(header.SeriesInstanceUID), rows, columns, cosines)
    return key, Truth(np.array(positions), np.array(values), rows * columns)


def _stored(path: Path, header: Dataset) -> NDArray:
    """Stored values by pydicom, or by SimpleITK where pydicom has no decoder and the file no rescale to be applied."""
    try:
        return header.pixel_array
    except (RuntimeError, NotImplementedError):
        if float(header.get("RescaleSlope", 1)) != 1 or float(header.get("RescaleIntercept", 0)) != 0:
            raise
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
