"""Where things are: the slices of a source by their own headers, and what a result holds at a place.

A result lies on the grid of a `Volume`; a DICOM object speaks of the source's slices. Where the volume is the slices as
they are, the two are the same voxels. Where it was resampled on request, each pixel of a slice takes the nearest voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.objects.functional_groups import macro
from dicom_io.objects.identity import source_headers
from dicom_io.reading.geometry import jitter_limit_mm
from dicom_io.reading.headers import shown_uid
from dicom_io.reading.instances import READ_ERRORS, load_dataset
from dicom_io.volume import Volume

# Scanners write positions with 0.001 to 0.01 mm; an evenly spaced grid fitted to them may be off by the
# reader's 0.02, and by `jitter_limit_mm` where they jitter.
TOLERANCE_MM = 0.05


TOLERANCE_VOXELS = 0.25


# Classes of which GDCM takes position, orientation and spacing from the Image Plane module or its functional groups, as we
# do: measured with SimpleITK 2.5.7 on an oblique image of every storage class, with pixels that are not square. Not of CR, DX,
# MG, IO, XA and RF, whose spacing it takes from ImagerPixelSpacing or as 1 mm, nor of RT images (1 mm) and NM (1 mm, or no
# position); classes that it does not know it does not read. Others, which are seldom slices, were left out.
PLACED_BY_GDCM = frozenset(
    (
        "1.2.840.10008.5.1.4.1.1.2",  # CT, then enhanced, then legacy converted
        "1.2.840.10008.5.1.4.1.1.2.1",
        "1.2.840.10008.5.1.4.1.1.2.2",
        "1.2.840.10008.5.1.4.1.1.4",  # MR
        "1.2.840.10008.5.1.4.1.1.4.1",
        "1.2.840.10008.5.1.4.1.1.4.4",
        "1.2.840.10008.5.1.4.1.1.128",  # PET
        "1.2.840.10008.5.1.4.1.1.130",
        "1.2.840.10008.5.1.4.1.1.128.1",
        "1.2.840.10008.5.1.4.1.1.6.1",  # ultrasound, secondary capture
        "1.2.840.10008.5.1.4.1.1.7",
    )
)


# What ITK is given of a header: attributes of these groups that are no sequences and no longer than this, and of the first
# items of the functional groups the macros that place a frame.
_TOLD_GROUPS, _LONGEST_TOLD = (0x0008, 0x0018, 0x0020, 0x0028), 1024


_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


_PLACING = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")


_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)


_UNREADABLE: tuple[type[Exception], ...] = (UnreadableFileError, RuntimeError, *READ_ERRORS)


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

    def points_mm(self, columns: NDArray, rows: NDArray) -> Floats:
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
        """What names it: its SOP Instance UID, with "#frame" behind it where an object holds several."""
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


def values_on(one: Slice, k: int, result: Volume, source: Volume) -> NDArray:
    """What a result holds on slice k of its source: shape (rows, columns), or (rows, columns, C) with channels."""
    if source.provenance.resampled and one.plane is not None:
        return values_at(one.plane, one.shape, result)
    return np.swapaxes(result.array[:, :, k], 0, 1)


def values_at(plane: Plane, shape: tuple[int, int], result: Volume) -> NDArray:
    """What a result holds at the pixels of a plane, found through the patient space.

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
    if (
        _runs_along(start, across, columns, 0)
        and _runs_along(start, down, rows, 1)
        and _is_whole_slice(result, start, shape)
    ):
        return np.swapaxes(result.array[:, :, round(float(start[2]))], 0, 1)
    index = start + np.arange(rows)[:, None, None] * down + np.arange(columns)[None, :, None] * across
    nearest = np.rint(index).astype(np.int64)
    inside = ((nearest >= 0) & (nearest < result.shape)).all(axis=-1)
    out = np.zeros((*shape, *result.array.shape[3:]), dtype=result.array.dtype)
    out[inside] = result.array[tuple(nearest[inside].T)]
    return out


def _runs_along(start: Floats, step: Floats, count: int, axis: int) -> bool:
    """Whether pixels stay on whole indices, one voxel of the axis a pixel, from its first voxel on."""
    wanted = np.zeros(3)
    wanted[axis] = 1.0
    return bool(np.abs(step - wanted).max() * count < TOLERANCE_VOXELS and abs(start[axis]) < TOLERANCE_VOXELS)


def _is_whole_slice(result: Volume, start: Floats, shape: tuple[int, int]) -> bool:
    k = float(start[2])
    return (
        (result.shape[1], result.shape[0]) == shape
        and abs(k - round(k)) < TOLERANCE_VOXELS
        and 0 <= round(k) < result.shape[2]
    )


def slice_key(source: Volume, k: int) -> str:
    """What names slice k: its SOP Instance UID, with "#frame" behind it where an object holds several."""
    uid, frames = source.provenance.sop_instance_uids[k], source.provenance.frame_numbers
    return f"{uid}#{frames[k]}" if frames else uid


def tolerance_mm(*steps_mm: float) -> float:
    """How far two places may lie apart and be one: TOLERANCE_MM, and at most a quarter of the steps to the next place."""
    return min(TOLERANCE_MM, min(steps_mm) / 4)


def apart_mm(one: Plane, other: Plane, shape: tuple[int, int]) -> float:
    """How far the corner pixels of two planes of (rows, columns) pixels lie apart, the largest of the four distances."""
    rows, columns = shape[0] - 1.0, shape[1] - 1.0
    across, down = np.array([0.0, columns, 0.0, columns]), np.array([0.0, 0.0, rows, rows])
    return float(np.linalg.norm(one.points_mm(across, down) - other.points_mm(across, down), axis=1).max())


def check_grid(labels: Volume, source: Volume, slices: Sequence[Slice] | None = None) -> None:
    """Pass if `labels` lie on the grid of `source`, and that grid on the slices as the files have them, in our eyes and,
    for the first, middle and last slice, in those of ITK.

    Raises:
        LabelError: Another shape, another place, or a source that was moved or resampled after reading.
    """
    if labels.shape != source.shape:
        raise LabelError(
            f"the labels have the shape {labels.shape}, the source {source.shape}; one grid is needed; "
            "resample the labels to the source first"
        )
    i, j, k = (n - 1 for n in source.shape)
    corners = np.array([(x, y, z, 1.0) for x in (0, i) for y in (0, j) for z in (0, k)])
    away = np.linalg.norm((corners @ (labels.affine_lps - source.affine_lps).T)[:, :3], axis=1).max()
    allowed_mm = tolerance_mm(source.spacing_mm[2])
    if away > allowed_mm:
        raise LabelError(
            f"the labels lie up to {away:.2f} mm away from the source's grid; at most {allowed_mm:g} mm is "
            "needed; resample the labels to the source first"
        )
    if source.provenance.resampled:
        return
    slices = slices_of(source) if slices is None else slices
    for number, one in enumerate(slices):
        if one.plane is not None:
            _check_slice(source, number, one.plane)
    _check_by_itk(source, slices)


def check_frame_of_reference(theirs: str | None, reference: Volume) -> None:
    """Pass unless a label object and the image name two different frames of reference.

    Raises:
        LabelError: They do; positions cannot be compared then.
    """
    ours = reference.provenance.frame_of_reference_uid
    if ours and theirs and ours != theirs:
        raise LabelError(
            f"the label file has the frame of reference {shown_uid(theirs)}, the image {ours}; the same one is needed; "
            "use the file that was made for this image, or register them first"
        )


def check_patient_space(reference: Volume) -> None:
    """Pass unless the image is a picture, whose pixels are no millimetres. Raises LabelError: nothing can be laid on it."""
    if not reference.has_patient_space:
        raise LabelError(
            "the label object lies in patient space, the image is a picture without; both must have it for one to be laid on "
            "the other; use the image that the object was made for"
        )


def _check_slice(source: Volume, k: int, plane: Plane) -> None:
    across, down, through, origin = source.affine_lps[:3].T
    away = apart_mm(Plane(origin + k * through, across, down), plane, (source.shape[1], source.shape[0]))
    *pixel_mm, gap_mm = source.spacing_mm
    allowed_mm = max(tolerance_mm(gap_mm), jitter_limit_mm(gap_mm, min(pixel_mm)))
    if away > allowed_mm:
        raise LabelError(
            f"slice {k} lies {away:.2f} mm from where its file has it; at most {allowed_mm:g} mm is needed; "
            "results cannot be written on a resampled or rearranged series, bring the labels back to the "
            "original slices"
        )


def _check_by_itk(source: Volume, slices: Sequence[Slice]) -> None:
    """A second opinion on where slices lie: ITK (GDCM) places three of them, from what their headers say.

    Slices of classes that are not in PLACED_BY_GDCM are passed by; what it cannot read is told by `second_opinion_note`.
    """
    by_uid = {one.sop_instance_uid: one for one in slices if one.sop_class_uid in PLACED_BY_GDCM}
    for file in _looked_at(source):
        uid, theirs = _plane_by_itk(str(file))
        one = by_uid.get(uid)
        if one is None or one.plane is None or theirs is None:
            continue
        away = apart_mm(one.plane, theirs, one.shape)
        allowed_mm = tolerance_mm(source.spacing_mm[2])
        if away > allowed_mm:
            raise LabelError(
                f"ITK sees instance {uid} of the source {away:.2f} mm from where its header puts it for us; both must agree "
                f"within {allowed_mm:g} mm; look at its position, orientation and pixel spacing"
            )


def _looked_at(source: Volume) -> list[Path]:
    """The files of the first, middle and last slice; none of frames of one file, or of data sets in memory."""
    files = source.provenance.files
    if not files or len(files) != len(source.provenance.sop_instance_uids):
        return []
    return [files[number] for number in sorted({0, len(files) // 2, len(files) - 1})]


def second_opinion_note(source: Volume) -> str | None:
    """Says of how many slices ITK could not tell where they lie, though it knows their class; None if there is none."""
    files = [] if source.planar or source.provenance.resampled else _looked_at(source)
    placed = [file for file in files if str(_header_of(file).get("SOPClassUID")) in PLACED_BY_GDCM]
    missing = sum(_plane_by_itk(str(file))[1] is None for file in placed)
    if not missing:
        return None
    return f"ITK cannot read the place of {missing} of {len(placed)} slices; only our reading of headers says where they lie"


def _header_of(file: Path) -> Dataset:
    try:
        return load_dataset(file, with_pixels=False)
    except _UNREADABLE:
        return Dataset()


def _plane_by_itk(file: str) -> tuple[str, Plane | None]:
    """SOP Instance UID of a single-slice file and where ITK puts its pixels; None if it cannot read it.

    ITK is not given the file: a few bytes behind the pixels make it set aside gigabytes. It is given the attributes that
    place a slice, with their values as they stand in the file.
    """
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with TemporaryDirectory(prefix="monai-unet-place-") as folder:
        copy = Path(folder) / "header.dcm"
        try:
            _told(load_dataset(Path(file), with_pixels=False)).save_as(copy, enforce_file_format=True)
            reader.SetFileName(str(copy))
            reader.ReadImageInformation()
        except _UNREADABLE:
            return "", None
    if reader.GetDimension() != 3 or not reader.HasMetaDataKey("0008|0018"):
        return "", None
    steps = np.array(reader.GetDirection()).reshape(3, 3) @ np.diag(reader.GetSpacing())
    return reader.GetMetaData("0008|0018").strip("\0 "), Plane(np.array(reader.GetOrigin()), steps[:, 0], steps[:, 1])


def _told(header: Dataset) -> Dataset:
    """What ITK is given of a header, with an empty PixelData, without which it reads nothing."""
    told = Dataset()
    for tag in header.keys():  # noqa: SIM118 - a Dataset's iterator decodes its values
        element = header.get_item(tag)
        known = dictionary_VR(tag) if dictionary_has_tag(tag) else "SQ"
        is_short = not isinstance(element.value, bytes) or len(element.value) <= _LONGEST_TOLD
        if tag.group in _TOLD_GROUPS and "SQ" not in (element.VR, known) and is_short:
            told[tag] = element
    for keyword in _FUNCTIONAL_GROUPS:
        if header.get(keyword):
            item, whole = Dataset(), header[keyword].value[0]
            for macro_keyword in _PLACING:
                if macro_keyword in whole:
                    item[macro_keyword] = whole[macro_keyword]
            setattr(told, keyword, [item])
    told.add_new("PixelData", "OW", b"")
    told.file_meta, syntax = FileMetaDataset(), header.file_meta.TransferSyntaxUID
    told.file_meta.TransferSyntaxUID = syntax if syntax in _NATIVE else ExplicitVRLittleEndian
    told.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    told.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    return told


def plane_of(header: Dataset, frame_number: int | None = None) -> Plane:
    """The plane of a single-frame image, or of one frame (from 1) of a multi-frame object.

    Raises:
        LabelError: Position, orientation or spacing is missing.
    """
    try:
        position, orientation, spacing = _plane_attributes(header, frame_number)
    except (AttributeError, IndexError, KeyError) as error:
        raise LabelError(
            f"position, orientation or pixel spacing is missing ({error}); all three are needed to place "
            "pixels; use a file that has them"
        ) from error
    cosines = np.array([float(v) for v in orientation])
    row_spacing, column_spacing = (float(v) for v in spacing)  # PS3.3 10.7.1.3: first between rows
    origin = np.array([float(v) for v in position])
    return Plane(origin, cosines[:3] * column_spacing, cosines[3:] * row_spacing)


def _plane_attributes(header: Dataset, frame_number: int | None) -> tuple:
    position = macro(header, frame_number, "PlanePositionSequence").ImagePositionPatient
    orientation = macro(header, frame_number, "PlaneOrientationSequence").ImageOrientationPatient
    return position, orientation, macro(header, frame_number, "PixelMeasuresSequence").PixelSpacing
