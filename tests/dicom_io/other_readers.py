"""What other programs find in our objects, as points in LPS mm; and a judge that knows nothing but an affine.

A reader here gives `Points`: the millimetres of voxels and the value of each. `on_grid` lays them on a grid that a test
knows in closed form, and refuses a point that lies further than 0.01 mm from a voxel's centre. Nothing of `dicom_io` is
used: pixels by pydicom and highdicom, contours by matplotlib, images by dcmqi and SimpleITK.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import SimpleITK
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from result_phantoms import tool

Floats = NDArray[np.float64]
Key = tuple[str, int]
"""What names a slice: SOP Instance UID, and the frame from 1 in a multi-frame object, else 0."""
Points = tuple[Floats, NDArray]
"""Positions of shape (N, 3), LPS mm, and values of shape (N,)."""

TOLERANCE_MM = 0.01
CONTOUR_DIGITS_MM = 0.001
"""Contours are written with three decimals: up to 0.0005 mm along each axis."""


@dataclass(frozen=True)
class Plane:
    """Where the pixels of a slice lie by its own header (PS3.3 C.7.6.2.1.1), all LPS mm, shape (3,) each."""

    origin: Floats
    column_step: Floats
    row_step: Floats
    shape: tuple[int, int]

    def points(self, rows: NDArray, columns: NDArray) -> Floats:
        """Shape (N, 3): centres of pixels."""
        return self.origin + np.outer(columns, self.column_step) + np.outer(rows, self.row_step)

    def pixels(self, points_mm: Floats) -> tuple[Floats, Floats]:
        """Shape (N, 2): (column, row) of points, and shape (N,): their distance from the plane in mm."""
        normal = np.cross(self.column_step, self.row_step)
        steps = np.stack([self.column_step, self.row_step, normal / np.linalg.norm(normal)], axis=1)
        found = np.linalg.solve(steps, (points_mm - self.origin).T)
        return found[:2].T, np.abs(found[2])


# --- the judge


def on_grid(
    affine_lps: Floats, shape: Sequence[int], points: Points, *, tolerance_mm: float = TOLERANCE_MM, empty: float = 0
) -> NDArray:
    """The values laid on a grid.

    Args:
        affine_lps: Shape (4, 4), index to LPS mm.
        shape: Of the grid.
        points: No two on one voxel.
        tolerance_mm: How far a point may lie from the centre of its voxel.
        empty: What voxels without a point hold.

    Raises:
        AssertionError: A point lies off the grid, beside it, or on a voxel that is taken.
    """
    positions, values = points
    exact = np.linalg.solve(affine_lps, np.c_[positions, np.ones(len(positions))].T)[:3]
    nearest = np.rint(exact).astype(int)
    off_mm = np.linalg.norm(affine_lps[:3, :3] @ (exact - nearest), axis=0).max(initial=0)
    assert off_mm <= tolerance_mm, f"a voxel lies {off_mm:.4f} mm from its place"
    inside = (nearest >= 0).all(axis=0) & (nearest < np.array(shape)[:, None]).all(axis=0)
    assert inside.all(), f"{np.count_nonzero(~inside)} voxels lie outside the grid {tuple(shape)}"
    places = np.ravel_multi_index(tuple(nearest), tuple(shape))
    assert np.bincount(places).max(initial=0) <= 1, "a voxel is there twice"
    array = np.full(tuple(shape), empty, dtype=np.result_type(values, np.min_scalar_type(empty)))
    array[tuple(nearest)] = values
    return array


def points_of(array: NDArray, affine_lps: Floats) -> Points:
    """The voxels of an array (I, J, K) that are not 0, as points."""
    index = np.argwhere(array)
    return index @ affine_lps[:3, :3].T + affine_lps[:3, 3], array[tuple(index.T)]


# --- headers


def planes_of(files: Iterable[Path]) -> dict[Key, Plane]:
    """The plane of each slice of a series by the headers of its files."""
    planes = {}
    for path in set(files):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if "PerFrameFunctionalGroupsSequence" in header:
            for number in range(1, int(header.NumberOfFrames) + 1):
                planes[str(header.SOPInstanceUID), number] = frame_plane(header, number)
        else:
            planes[str(header.SOPInstanceUID), 0] = _plane(header, header, header, header)
    return planes


def frame_plane(dataset: Dataset, number: int) -> Plane:
    """The plane of a frame, from 1, of a multi-frame object."""
    groups = dataset.PerFrameFunctionalGroupsSequence[number - 1], dataset.SharedFunctionalGroupsSequence[0]
    names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
    position, orientation, measures = (next(g[name].value[0] for g in groups if name in g) for name in names)
    return _plane(dataset, position, orientation, measures)


def _plane(header: Dataset, position: Dataset, orientation: Dataset, measures: Dataset) -> Plane:
    cosines = np.array(orientation.ImageOrientationPatient, dtype=np.float64)
    between_rows, between_columns = (float(value) for value in measures.PixelSpacing)
    origin = np.array(position.ImagePositionPatient, dtype=np.float64)
    shape = int(header.Rows), int(header.Columns)
    return Plane(origin, cosines[:3] * between_columns, cosines[3:] * between_rows, shape)


def key_of(reference: Dataset) -> Key:
    """The slice that an item of a reference names."""
    return str(reference.ReferencedSOPInstanceUID), int(reference.get("ReferencedFrameNumber") or 0)


def source_key(uids: Sequence[str], frames: Sequence[int], k: int) -> Key:
    """What names slice k of a series, of which instances and frames (empty for single-frame ones) are listed."""
    return uids[k], frames[k] if frames else 0


def named_sources(dataset: Dataset) -> list[Key]:
    """The slice that each frame of a SEG or map names."""
    groups = dataset.PerFrameFunctionalGroupsSequence
    return [key_of(group.DerivationImageSequence[0].SourceImageSequence[0]) for group in groups]


# --- segmentations


def seg_by_headers(path: Path) -> dict[int, Points]:
    """Each segment of a BINARY, LABELMAP or FRACTIONAL SEG: pixels other than 0, placed by the frames' own headers.

    Values are 1, or the fraction. Pixels by pydicom.
    """
    dataset = pydicom.dcmread(path)
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    found: dict[int, list[Points]] = {int(item.SegmentNumber): [] for item in dataset.SegmentSequence}
    for number, (own, pixels) in enumerate(zip(dataset.PerFrameFunctionalGroupsSequence, frames, strict=True), start=1):
        plane = frame_plane(dataset, number)
        for segment, values in _by_segment(dataset, own, pixels):
            rows, columns = np.nonzero(values)
            found[segment].append((plane.points(rows, columns), values[rows, columns]))
    return {segment: _joined(parts) for segment, parts in found.items()}


def _by_segment(dataset: Dataset, own: Dataset, pixels: NDArray) -> list[tuple[int, Floats]]:
    if dataset.SegmentationType == "LABELMAP":
        padding = dataset.get("PixelPaddingValue", 0)
        return [(int(value), pixels == value) for value in np.unique(pixels) if value not in (0, padding)]
    segment = int(own.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    whole = int(dataset.MaximumFractionalValue) if dataset.SegmentationType == "FRACTIONAL" else 1
    return [(segment, pixels / whole)]


def _joined(parts: Sequence[Points]) -> Points:
    if not parts:
        return np.zeros((0, 3)), np.zeros(0)
    return np.concatenate([positions for positions, _ in parts]), np.concatenate([values for _, values in parts])


def as_labels(segments: Mapping[int, Points]) -> Points:
    """Segments as one label map: the value is the segment's number."""
    return _joined([(positions, np.full(len(positions), number)) for number, (positions, _) in segments.items()])


def seg_by_highdicom_volume(path: Path) -> Points:
    """The label map that highdicom lays on a grid of its own."""
    volume = hd.seg.segread(path).get_volume(combine_segments=True)
    return points_of(volume.array, volume.affine)


def seg_by_highdicom_sources(path: Path, keys: Sequence[Key], *, fractions: bool = False) -> NDArray:
    """Shape (I, J, K), or (I, J, K, C) for fractions: what highdicom says lies on each of the named slices.

    Args:
        path: The SEG.
        keys: The slices in the order that is wanted; all of one object where it has several frames.
        fractions: One channel a segment, as stored by the fraction's steps.
    """
    seg = hd.seg.segread(path)
    how = {"combine_segments": not fractions, "rescale_fractional": fractions, "assert_missing_frames_are_empty": True}
    if keys[0][1]:
        planes = seg.get_pixels_by_source_frame(keys[0][0], [frame for _, frame in keys], **how)
    else:
        planes = seg.get_pixels_by_source_instance([uid for uid, _ in keys], **how)
    return np.moveaxis(planes, (0, 1, 2), (2, 1, 0))


# --- what dcmqi writes


def images_by_dcmqi(program: str, path: Path, folder: Path, *options: str) -> list[tuple[NDArray, Floats]]:
    """The images, (I, J, K) and index to LPS mm, that a program of dcmqi makes of an object, in order of their names."""
    folder.mkdir(parents=True)
    command = [tool(program), "-t", "nrrd", "--inputDICOM", str(path), "--outputDirectory", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # its exit code cannot be trusted
    files = sorted(folder.glob("*.nrrd"))
    assert files, f"{program} wrote no image: {(done.stderr + done.stdout)[-300:]}"
    return [nrrd(file) for file in files]


def nrrd(path: Path) -> tuple[NDArray, Floats]:
    """An image file, (I, J, K) and index to LPS mm, by SimpleITK."""
    image = SimpleITK.ReadImage(str(path))
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine_lps[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), affine_lps


# --- lines: RTSTRUCT and presentation states


def inside(loops: Sequence[Floats], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels (rows, columns) whose centre is within an odd number of loops of (column, row), by matplotlib."""
    odd = np.zeros(shape, dtype=bool)
    for loop in loops:
        low, high = np.floor(loop.min(axis=0)).astype(int), np.ceil(loop.max(axis=0)).astype(int) + 1
        part = tuple(slice(max(first, 0), max(last, 0)) for first, last in zip(low[::-1], high[::-1], strict=True))
        rows, columns = np.mgrid[: shape[0], : shape[1]][(slice(None), *part)]
        within = Polygon(np.r_[loop, loop[:1]], closed=True).contains_points(np.c_[columns.ravel(), rows.ravel()])
        odd[part] ^= within.reshape(rows.shape)
    return odd


def rtstruct_by_matplotlib(path: Path, planes: Mapping[Key, Plane]) -> dict[tuple[int, Key], NDArray[np.bool_]]:
    """Each region on each slice that its contours name: the pixels (rows, columns) inside, in that slice's plane.

    Raises:
        AssertionError: A contour does not lie in the slice that it names.
        KeyError: It names no slice of `planes`.
    """
    loops: dict[tuple[int, Key], list[Floats]] = {}
    for region in pydicom.dcmread(path).ROIContourSequence:
        for contour in region.get("ContourSequence") or []:
            key = key_of(contour.ContourImageSequence[0])
            points = np.array([float(value) for value in contour.ContourData]).reshape(-1, 3)
            pixels, away_mm = planes[key].pixels(points)
            assert away_mm.max() <= CONTOUR_DIGITS_MM, f"a contour lies {away_mm.max():.4f} mm off its slice"
            loops.setdefault((int(region.ReferencedROINumber), key), []).append(pixels)
    return {(region, key): inside(drawn, planes[key].shape) for (region, key), drawn in loops.items()}


def gsps_by_matplotlib(path: Path, planes: Mapping[Key, Plane]) -> dict[tuple[int, Key], NDArray[np.bool_]]:
    """Each segment on each image that its lines name: the pixels (rows, columns) inside.

    The centre of the first pixel is at 0.5 and 0.5 there (PS3.3 figure C.10.5-1).
    """
    loops: dict[tuple[int, Key], list[Floats]] = {}
    for item in pydicom.dcmread(path).GraphicAnnotationSequence:
        for graphic in item.get("GraphicObjectSequence") or []:
            assert (graphic.GraphicType, graphic.GraphicAnnotationUnits) == ("POLYLINE", "PIXEL")
            line = np.array(graphic.GraphicData, dtype=np.float64).reshape(-1, 2) - 0.5
            (image,) = item.ReferencedImageSequence
            loops.setdefault((int(item.GraphicLayer.split()[1]), key_of(image)), []).append(line)
    return {(segment, key): inside(drawn, planes[key].shape) for (segment, key), drawn in loops.items()}


def masks_as_labels(masks: Mapping[tuple[int, Key], NDArray[np.bool_]], planes: Mapping[Key, Plane]) -> Points:
    """Masks of labels on slices as points whose value is the label."""
    parts = []
    for (label, key), mask in masks.items():
        rows, columns = np.nonzero(mask)
        parts.append((planes[key].points(rows, columns), np.full(len(rows), label)))
    return _joined(parts)


# --- parametric maps


def map_by_headers(path: Path) -> Points:
    """Every pixel of a map of floats, placed by the frames' own headers; pixels by pydicom."""
    dataset = pydicom.dcmread(path)
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    row, column = (axis.ravel() for axis in np.indices(frames.shape[1:]))
    placed = [frame_plane(dataset, number).points(row, column) for number in range(1, len(frames) + 1)]
    return np.concatenate(placed), frames.reshape(-1)


def map_by_highdicom_volume(path: Path) -> tuple[NDArray, Floats]:
    """Real world values on the grid that highdicom lays them on, and its index to LPS mm."""
    volume = hd.imread(path).get_volume()
    return volume.array, volume.affine


def all_points_of(array: NDArray, affine_lps: Floats) -> Points:
    """Every voxel of an array (I, J, K) as a point."""
    index = np.indices(array.shape).reshape(3, -1).T
    return index @ affine_lps[:3, :3].T + affine_lps[:3, 3], array.reshape(-1)
