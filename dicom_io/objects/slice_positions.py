"""Positions: those of the slices of a source by their own headers, and the values of a result at a position.

A result lies on the grid of a `Volume`; a DICOM object speaks of the source's slices. Where the volume is the slices as
they are, the two are the same voxels. Where it was resampled on request, each pixel of a slice takes the nearest voxel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_io.errors import LabelError
from dicom_io.objects.functional_groups import macro
from dicom_io.objects.identity import source_headers
from dicom_io.reading.headers import patient_digest, referenced_series, shown_uid
from dicom_io.volume import Volume

# Scanners write positions with 0.001 to 0.01 mm; an evenly spaced grid fitted to them may be off by the
# reader's 0.02, and by `jitter_limit_mm` where they jitter.
TOLERANCE_MM = 0.05
TOLERANCE_VOXELS = 0.25
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plane:
    """Where the pixels of one slice or frame lie.

    Attributes:
        origin_mm: Shape (3,), LPS centre of the first pixel (PS3.3 C.7.6.2.1.1).
        column_step_mm: Shape (3,), from a pixel to the next in its row (array axis I).
        row_step_mm: Shape (3,), from a row to the next (array axis J).
    """

    origin_mm: Floats
    column_step_mm: Floats
    row_step_mm: Floats

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Distance of neighbouring pixels in a row and in a column."""
        return float(np.linalg.norm(self.column_step_mm)), float(np.linalg.norm(self.row_step_mm))

    def points_mm(self, columns: NDArray[Any], rows: NDArray[Any]) -> Floats:
        """Shape (n, 3): LPS positions of pixel coordinates, which may lie between pixel centres."""
        return self.origin_mm + np.outer(columns, self.column_step_mm) + np.outer(rows, self.row_step_mm)

    def pixels(self, points_mm: Floats) -> Floats:
        """Shape (n, 3): column, row and distance from the plane in mm, of LPS positions of shape (n, 3)."""
        normal = np.cross(self.column_step_mm, self.row_step_mm)
        basis = np.column_stack([self.column_step_mm, self.row_step_mm, normal / np.linalg.norm(normal)])
        return (points_mm - self.origin_mm) @ np.linalg.inv(basis).T


@dataclass(frozen=True)
class Slice:
    """One slice of a source.

    Attributes:
        sop_class_uid, sop_instance_uid: Of the object that holds it.
        frame: Its frame, from 1, in a multi-frame object; else None.
        plane: Where its own header puts it; None for a picture without patient space.
        shape: (rows, columns).
    """

    sop_class_uid: str
    sop_instance_uid: str
    frame: int | None
    plane: Plane | None
    shape: tuple[int, int]

    @property
    def key(self) -> str:
        """Its SOP Instance UID, with "#frame" behind it if the object has several frames."""
        return self.sop_instance_uid + (f"#{self.frame}" if self.frame else "")


def slices_of(source: Volume, headers: Sequence[Dataset] | None = None) -> tuple[Slice, ...]:
    """The slices of a source along its K axis (along the normal, if it was resampled).

    Args:
        source: DICOM volume.
        headers: From `identity.source_headers`, if they are at hand.

    Raises:
        LabelError: A slice has no place, the source is a mosaic, or see `identity.source_headers`.
    """
    by_uid = {str(header.SOPInstanceUID): header for header in headers or source_headers(source, of_each=False)}
    uids, frames = source.provenance.sop_instance_uids, source.provenance.frame_numbers
    if len(set(uids)) < len(uids) and not frames:
        raise LabelError(
            f"the source is a mosaic, one picture with {len(uids)} slices as its tiles; a DICOM result must refer to "
            "slices; write NIfTI, or convert the mosaic to an enhanced or classic MR series first"
        )
    return tuple(_slice(by_uid[uid], uid, frames[k] if frames else None, source.planar) for k, uid in enumerate(uids))


def _slice(header: Dataset, uid: str, frame: int | None, planar: bool) -> Slice:
    plane = None if planar else plane_of(header, frame)
    return Slice(str(header.SOPClassUID), uid, frame, plane, (int(header.Rows), int(header.Columns)))


def values_on(source_slice: Slice, k: int, result: Volume, source: Volume) -> NDArray[Any]:
    """The voxels of a result on slice k of its source: shape (rows, columns), or (rows, columns, C) with channels."""
    if source.provenance.resampled and source_slice.plane is not None:
        return values_at(source_slice.plane, source_slice.shape, result)
    return np.swapaxes(result.array[:, :, k], 0, 1)


def values_at(plane: Plane, shape: tuple[int, int], result: Volume) -> NDArray[Any]:
    """The values of a result at the pixels of a plane, looked up through the patient space.

    Args:
        plane: Anywhere.
        shape: (rows, columns) of its pixels.
        result: Labels, or values for each channel.

    Returns:
        Shape (rows, columns), or (rows, columns, C): the voxel nearest to each pixel's centre, 0 outside the grid.
    """
    to_index = np.linalg.inv(result.affine_lps)
    start = to_index[:3, :3] @ plane.origin_mm + to_index[:3, 3]
    across, down = to_index[:3, :3] @ plane.column_step_mm, to_index[:3, :3] @ plane.row_step_mm
    rows, columns = shape
    # the usual case: the plane is a slice of the grid, and no voxel has to be looked up
    if (
        _runs_along(start, across, columns, 0)
        and _runs_along(start, down, rows, 1)
        and _is_whole_slice(result, start, shape)
    ):
        return np.swapaxes(result.array[:, :, round(float(start[2]))], 0, 1)
    # Labels must not be mixed, so each pixel takes the nearest voxel and nothing is interpolated.
    index = start + np.arange(rows)[:, None, None] * down + np.arange(columns)[None, :, None] * across
    nearest = np.rint(index).astype(np.int64)
    inside = ((nearest >= 0) & (nearest < result.shape)).all(axis=-1)
    out = np.zeros((*shape, *result.array.shape[3:]), dtype=result.array.dtype)
    out[inside] = result.array[tuple(nearest[inside].T)]
    return out


def _runs_along(start: Floats, step: Floats, count: int, axis: int) -> bool:
    """Whether pixels stay on whole indices, one voxel of the axis a pixel, from its first voxel on."""
    unit = np.zeros(3)
    unit[axis] = 1.0
    # The error of a step adds up over the pixels of a line, so it is taken times their number.
    return bool(np.abs(step - unit).max() * count < TOLERANCE_VOXELS and abs(start[axis]) < TOLERANCE_VOXELS)


def _is_whole_slice(result: Volume, start: Floats, shape: tuple[int, int]) -> bool:
    k = float(start[2])
    return (
        (result.shape[1], result.shape[0]) == shape
        and abs(k - round(k)) < TOLERANCE_VOXELS
        and 0 <= round(k) < result.shape[2]
    )


def tolerance_mm(*steps_mm: float) -> float:
    """Largest distance of two places that count as the same: TOLERANCE_MM, at most a quarter of the steps to the next place."""
    return min(TOLERANCE_MM, min(steps_mm) / 4)


def apart_mm(plane: Plane, other: Plane, shape: tuple[int, int]) -> float:
    """How far the corner pixels of two planes of (rows, columns) pixels lie apart, the largest of the four distances."""
    rows, columns = shape[0] - 1.0, shape[1] - 1.0
    across, down = np.array([0.0, columns, 0.0, columns]), np.array([0.0, 0.0, rows, rows])
    return float(np.linalg.norm(plane.points_mm(across, down) - other.points_mm(across, down), axis=1).max())


def check_frame_of_reference(frame_of_reference_uid: str | None, reference: Volume) -> None:
    """Pass unless a label object and the image name two different frames of reference.

    Args:
        frame_of_reference_uid: Of the label object; None if it names no frame of reference.
        reference: The image.

    Raises:
        LabelError: They differ, so positions cannot be compared.
    """
    own = reference.provenance.frame_of_reference_uid
    if own and frame_of_reference_uid and own != frame_of_reference_uid:
        raise LabelError(
            f"the label file has the frame of reference {shown_uid(frame_of_reference_uid)}, the image {own}; the same one is "
            "needed; use the file that was made for this image, or register them first"
        )


def check_belongs(label_object: Dataset, reference: Volume) -> None:
    """Pass unless a label object is of another patient than the image, or refers only to other series.

    Args:
        label_object: Header of a SEG or RTSTRUCT; one that names no patient and no series passes.
        reference: The image; one that is no DICOM passes.

    Raises:
        LabelError: See above; the message does not name the patients.
    """
    sources = (reference.provenance, *reference.provenance.others)
    patients = {source.patient_id_digest for source in sources} - {""}
    if patients and patient_digest(label_object, "PatientID") not in ("", *patients):
        raise LabelError(
            "the label file has another PatientID than the image; labels of the same patient are needed; use the file that was "
            "made for this image"
        )
    named = {uid for uid, _ in referenced_series(label_object) if uid}
    own = {source.series_instance_uid for source in sources if source.series_instance_uid}
    if named and own and not named & own:
        raise LabelError(
            f"the label file refers to the series {', '.join(map(shown_uid, sorted(named)[:3]))}, and the image is the series "
            f"{', '.join(map(shown_uid, sorted(own)))}; the series that the labels were made on is needed; name that one"
        )


def check_patient_space(reference: Volume) -> None:
    """Pass unless the image is a picture, whose pixels are no millimetres. Raises LabelError: nothing can be laid on it."""
    if not reference.has_patient_space:
        raise LabelError(
            "the label object lies in patient space, the image is a picture without one; both need it for one to be placed on "
            "the other; use the image that the object was made for"
        )


def plane_of(header: Dataset, frame_number: int | None = None) -> Plane:
    """The plane of a single-frame image, or of one frame (from 1) of a multi-frame object.

    Raises:
        LabelError: Position, orientation or spacing is missing.
    """
    try:
        position = macro(header, frame_number, "PlanePositionSequence").ImagePositionPatient
        orientation = macro(header, frame_number, "PlaneOrientationSequence").ImageOrientationPatient
        spacing = macro(header, frame_number, "PixelMeasuresSequence").PixelSpacing
    except (AttributeError, IndexError, KeyError) as error:
        raise LabelError(
            f"position, orientation or pixel spacing is missing ({error}); all three are needed to place "
            "pixels; use a file that has them"
        ) from error
    cosines = np.array([float(v) for v in orientation])
    row_spacing, column_spacing = (float(v) for v in spacing)  # PS3.3 10.7.1.3: first between rows
    origin = np.array([float(v) for v in position])
    return Plane(origin, cosines[:3] * column_spacing, cosines[3:] * row_spacing)
