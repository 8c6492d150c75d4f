"""Instances -> frames: one slice each, with the place and the rescale that its own header or functional group states.

A classic object is one frame, an enhanced one has its functional groups (PS3.3 C.7.6.16), a Siemens mosaic is one
picture with the slices as its tiles.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, UncompressedTransferSyntaxes

from dicom_io.errors import SeriesSelectionError
from dicom_io.reading.geometry import ImagePlane, angle_degrees
from dicom_io.reading.instances import READ_ERRORS, Instance, broken_file, image_type
from dicom_io.reading.kept_attributes import CSA_BLOCKS, MARKS

MAX_VOXELS = 2**30
"""The most voxels of one volume, 4 GiB as float32; a header that claims more is refused before anything is allocated."""

MAX_MM, MIN_MM = 1e6, 1e-4
"""The longest distance in space and the shortest between pixels that can be meant; beyond, an affine cannot be inverted."""

_RLE_RATIO = 64  # PS3.5 G.3.1: two bytes become at most 128
_MOST_PADDING = 1.1  # some writers add bytes after the pixels; with more of them the header tells of another picture
_MOST_DEGREES = 1.0  # between the normal of a mosaic's tiles by CSA and by their orientation
_CSA_CREATOR = "SIEMENS CSA HEADER"
_Groups = Dataset | tuple[Dataset, ...]
_Csa = Mapping[str, Sequence[object]]
_FRAME_TYPE = ("FrameType", "ComplexImageComponent")
_MARK_MACROS = {  # PS3.3 C.7.6.16.2, C.8.13.5, C.8.15.3, C.8.22.5: where an enhanced object holds MARKS
    ("FrameContentSequence",): (
        "TemporalPositionIndex",
        "FrameAcquisitionNumber",
        "StackID",
        "FrameReferenceDateTime",
        "FrameAcquisitionDateTime",
    ),
    ("TemporalPositionSequence",): ("TemporalPositionTimeOffset",),
    ("CardiacSynchronizationSequence",): (
        "NominalPercentageOfCardiacPhase",
        "NominalCardiacTriggerDelayTime",
        "NominalCardiacTriggerTimePriorToRPeak",
    ),
    ("RespiratorySynchronizationSequence",): ("NominalPercentageOfRespiratoryPhase",),
    ("MREchoSequence",): ("EffectiveEchoTime",),
    ("MRModifierSequence",): ("InversionTimes",),
    ("MRDiffusionSequence",): ("DiffusionBValue",),
    ("MRDiffusionSequence", "DiffusionGradientDirectionSequence"): ("DiffusionGradientOrientation",),
    ("MRImageFrameTypeSequence",): _FRAME_TYPE,
    ("CTImageFrameTypeSequence",): _FRAME_TYPE,
    ("PETFrameTypeSequence",): _FRAME_TYPE,
    ("CTReconstructionSequence",): ("ConvolutionKernel",),
}


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice as its header says.

    Attributes:
        instance: Where it stands.
        number: Counts from 1 in a multi-frame object, 0 elsewhere.
        tile: (tile from 0, tiles in a row) in a mosaic, else None.
        plane: Its place, None without patient space.
        slope, intercept: Of its own rescale.
        thickness_mm: SliceThickness, None where it is absent or 0.
        marks: What may tell it from another frame at its position, as (keyword, value).
    """

    instance: Instance
    number: int
    tile: tuple[int, int] | None
    plane: ImagePlane | None
    slope: float
    intercept: float
    thickness_mm: float | None
    marks: tuple[tuple[str, str], ...]

    @property
    def key(self) -> tuple[str, int]:
        """SOP Instance UID and frame (tile of a mosaic): the same twice is a copy."""
        return self.instance.sop_instance_uid, self.tile[0] + 1 if self.tile else self.number

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of this frame."""
        if self.tile is not None and self.plane is not None:
            return self.plane.shape
        return int(self.instance.header.Rows), int(self.instance.header.Columns)


def frames_of(instance: Instance) -> list[Frame]:
    """The slices of one instance.

    Raises:
        UnreadableFileError: Its header contradicts itself.
        SeriesSelectionError: It is a mosaic without what tells its tiles apart, or has frames that nothing tells apart.
    """
    header, count = instance.header, instance.frames
    try:
        groups = header.get("PerFrameFunctionalGroupsSequence")
        if groups is None and count > 1:
            raise SeriesSelectionError(
                f"{instance.name} holds {count} frames and no functional group of a frame, so nothing says where they lie; "
                "positions are needed; pass an object that has them"
            )
        if groups is not None and len(groups) != count:
            raise broken_file(instance.name, f"NumberOfFrames is {count}, the functional groups are {len(groups)}")
        csa = _csa(header)
        if _is_mosaic(header, csa):
            return _tiles(instance, csa)
        return [_frame(instance, index, count) for index in range(count)]
    except READ_ERRORS as error:
        raise broken_file(instance.name, error) from error


def _is_mosaic(header: Dataset, csa: _Csa) -> bool:
    """Whether the slices of a volume are laid out as tiles of one picture (Siemens); ImageType may lack the word."""
    return "MOSAIC" in image_type(header) or _tiles_by_csa(csa) > 1


def has_groups(header: Dataset) -> bool:
    """Whether an object has functional groups, as enhanced ones do."""
    return "SharedFunctionalGroupsSequence" in header or "PerFrameFunctionalGroupsSequence" in header


def check_size(instance: Instance) -> None:
    """Passes sizes that can be; to be called before a list of frames or pixels is made.

    Raises:
        UnreadableFileError: No pixels at all, or more than the file can hold.
        SeriesSelectionError: More than MAX_VOXELS.
    """
    rows, columns = int(instance.header.get("Rows") or 0), int(instance.header.get("Columns") or 0)
    if rows < 1 or columns < 1 or instance.frames < 1:
        raise broken_file(instance.name, f"it has {instance.frames} frames of {rows} x {columns} pixels")
    voxels = rows * columns * instance.frames
    if voxels > MAX_VOXELS:
        raise SeriesSelectionError(
            f"{instance.name} claims {instance.frames} frames of {rows} x {columns} pixels, {voxels} voxels; at most "
            f"{MAX_VOXELS} fit; check the file, or split it"
        )
    _check_bytes(instance, voxels)


def _check_bytes(instance: Instance, voxels: int) -> None:
    """Passes an instance that may hold its pixels. Raises UnreadableFileError."""
    header, syntax, held = instance.header, instance.transfer_syntax, instance.pixel_bytes
    samples, bits = int(header.get("SamplesPerPixel") or 1), int(header.get("BitsAllocated") or 8)
    subsampled = "422" in str(header.get("PhotometricInterpretation"))
    needed = voxels * samples * bits // (12 if subsampled else 8)
    if syntax not in UncompressedTransferSyntaxes:
        needed = needed // _RLE_RATIO if syntax == RLELossless else 0
    too_many = syntax in UncompressedTransferSyntaxes and held > needed * _MOST_PADDING + 1
    if held < needed or too_many:
        size = f"{instance.frames} x {header.Rows} x {header.Columns}"
        raise broken_file(instance.name, f"{size} pixels of {bits} bits need {needed} bytes, it holds {held}")
    pieces = len(instance.fragments)
    if instance.path and syntax not in UncompressedTransferSyntaxes and instance.frames > max(pieces, 1):
        raise broken_file(instance.name, f"{instance.frames} frames need a fragment each, it holds {pieces}")


def _frame(instance: Instance, index: int, count: int) -> Frame:
    header = instance.header
    groups = _groups(header, index)
    measures = _macro(groups, "PixelMeasuresSequence")
    slope, intercept = _rescale(_macro(groups, "PixelValueTransformationSequence") or header)
    return Frame(
        instance,
        index + 1 if count > 1 or has_groups(header) else 0,
        None,
        _plane(header, groups, measures),
        slope,
        intercept,
        _thickness_mm(measures),
        _marks(header, groups),
    )


def _rescale(rescale: Dataset) -> tuple[float, float]:
    slope, intercept = numbers(rescale, "RescaleSlope", 1), numbers(rescale, "RescaleIntercept", 1)
    if slope and slope[0] == 0:
        raise ValueError("RescaleSlope is 0, which makes all values the same")
    return slope[0] if slope else 1.0, intercept[0] if intercept else 0.0


def _thickness_mm(holder: Dataset) -> float | None:
    thickness = numbers(holder, "SliceThickness", 1)
    return thickness[0] if thickness and MIN_MM <= thickness[0] <= MAX_MM else None


def _plane(header: Dataset, groups: _Groups, measures: Dataset) -> ImagePlane | None:
    position = numbers(_macro(groups, "PlanePositionSequence"), "ImagePositionPatient", 3)
    orientation = numbers(_macro(groups, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    pixel_spacing = numbers(measures, "PixelSpacing", 2)
    if position is None or orientation is None or pixel_spacing is None:
        return None
    return _placed(position, orientation, pixel_spacing, (int(header.Rows), int(header.Columns)))


def _placed(
    position: tuple[float, ...], orientation: tuple[float, ...], spacing: tuple[float, ...], shape: tuple[int, int]
) -> ImagePlane:
    """A plane of distances that can be meant; what is no number or no direction, the geometry gate refuses."""
    too_far = any(abs(value) > MAX_MM for value in (*position, *spacing))
    if too_far or any(0 < value < MIN_MM for value in spacing):
        raise ValueError(
            f"it lies at {_listed(position)} with pixels of {_listed(spacing)} mm; at most {MAX_MM:g} and pixels of at "
            f"least {MIN_MM:g} mm are needed"
        )
    return ImagePlane(position, orientation, spacing, shape)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _groups(header: Dataset, index: int) -> _Groups:
    """Where the attributes of a frame stand: its own functional groups before the shared ones, or a single frame's header.

    Empty where there is none: the top level of a multi-frame object places no frame but perhaps its first.
    """
    if not has_groups(header):
        return header if int(header.get("NumberOfFrames") or 1) == 1 else ()
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    groups = (*per_frame[index : index + 1], *shared[:1])
    if int(header.get("NumberOfFrames") or 1) == 1 and not any("PlanePositionSequence" in group for group in groups):
        return header
    return groups


def _macro(groups: _Groups, keyword: str) -> Dataset:
    """The first item of a macro, or a single frame's header; empty where there is none."""
    if isinstance(groups, Dataset):
        return groups
    return next((one[keyword].value[0] for one in groups if one.get(keyword)), Dataset())


def numbers(holder: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """The numbers of an attribute, None where it is absent or empty; ValueError if they are not `count`."""
    try:
        value = holder.get(keyword)
        if value is None or value == "" or (isinstance(value, Sequence) and not len(value)):
            return None
        found = tuple(float(number) for number in (value if isinstance(value, Sequence) else [value]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{keyword} holds text that is no number; decimals with a point are needed") from error
    if len(found) != count:
        raise ValueError(f"{keyword} holds {len(found)} values, {count} are needed")
    return found


def _marks(header: Dataset, groups: _Groups) -> tuple[tuple[str, str], ...]:
    found = {keyword: _mark(header, keyword) for keyword in MARKS}
    for path, keywords in () if isinstance(groups, Dataset) else _MARK_MACROS.items():
        item = _macro(groups, path[0])
        for sequence in path[1:]:
            item = _macro((item,), sequence)
        found |= {keyword: text for keyword in keywords if (text := _mark(item, keyword))}
    return tuple(sorted((keyword, text) for keyword, text in found.items() if text))


def _mark(holder: Dataset, keyword: str) -> str:
    """An attribute's values as DICOM writes them; empty where there is none or it cannot be read: it places no slice."""
    try:
        value = holder.get(keyword)
    except READ_ERRORS:
        return ""
    parts = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    return "\\".join(map(str, parts)) if all(isinstance(part, str | int | float) for part in parts) else ""


def _tiles(instance: Instance, csa: _Csa) -> list[Frame]:
    """The slices of a Siemens mosaic, in the order of the tiles.

    The header places the corner of the whole picture as if it were one slice about the centre of the true ones;
    a tile's own corner lies half the difference of the two sizes further in. Normal and count stand in the
    manufacturer's CSA header. Source: NiBabel, "Siemens mosaic" (DICOM notes).
    """
    header = instance.header
    if instance.frames > 1:
        raise broken_file(instance.name, f"it is a mosaic of {instance.frames} frames")
    count = _tile_count(instance, csa)
    across = math.ceil(math.sqrt(count))
    rows, columns = int(header.Rows) // across, int(header.Columns) // across
    spacing, gap = numbers(header, "PixelSpacing", 2), numbers(header, "SpacingBetweenSlices", 1)
    step_mm = gap[0] if gap else _thickness_mm(header)
    corner, orientation = numbers(header, "ImagePositionPatient", 3), numbers(header, "ImageOrientationPatient", 6)
    if spacing is None or step_mm is None or corner is None or orientation is None or rows < 1 or columns < 1:
        raise _unknown_mosaic(instance, "it names no position, orientation, pixel spacing or slice spacing")
    normal = _tile_normal(instance, csa, orientation)
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    inwards = along_row * spacing[1] * (int(header.Columns) - columns) / 2
    inwards = inwards + along_column * spacing[0] * (int(header.Rows) - rows) / 2
    groups = _groups(header, 0)
    slope, intercept = _rescale(_macro(groups, "PixelValueTransformationSequence") or header)
    first, marks = np.array(corner) + inwards, _marks(header, groups)
    return [
        Frame(
            instance,
            0,
            (tile, across),
            _placed(tuple(first + tile * step_mm * normal), orientation, spacing, (rows, columns)),
            slope,
            intercept,
            _thickness_mm(header),
            marks,
        )
        for tile in range(count)
    ]


def _csa(header: Dataset) -> _Csa:
    """The values of the Siemens CSA image header by name; empty where it is absent or unreadable."""
    content = _csa_bytes(header)
    if not content:
        return {}
    with warnings.catch_warnings():  # NiBabel calls its DICOM readers experimental; its CSA parser is not one of them
        warnings.simplefilter("ignore")
        from nibabel.nicom import csareader
    errors: tuple[type[Exception], ...] = (*READ_ERRORS, csareader.CSAError, AssertionError)
    try:
        tags = csareader.read(content)["tags"]
    except errors:
        return {}
    return {name: tag["items"] for name, tag in tags.items()}


def _csa_bytes(header: Dataset) -> bytes:
    """The CSA image header, in whichever block of group 0029 its creator reserved."""
    for block in CSA_BLOCKS:
        creator, held = header.get((0x0029, block)), header.get((0x0029, block << 8 | 0x10))
        if creator is not None and held is not None and str(creator.value).strip() == _CSA_CREATOR:
            return bytes(held.value or b"")
    return b""


def _tiles_by_csa(csa: _Csa) -> int:
    """How many tiles the CSA header names; 0 where it is absent or names none."""
    values = csa.get("NumberOfImagesInMosaic", ())
    try:
        return int(str(values[0])) if values else 0
    except ValueError:
        return 0


def _tile_count(instance: Instance, csa: _Csa) -> int:
    count = _tiles_by_csa(csa)
    if not 0 < count <= 4096:
        raise _unknown_mosaic(instance, f"it names {count} tiles")
    return count


def _tile_normal(instance: Instance, csa: _Csa, orientation: Sequence[float]) -> np.ndarray:
    """Unit vector along which the tiles follow: the normal of their planes, in the direction that CSA gives."""
    found = csa.get("SliceNormalVector", ())
    if len(found) != 3:
        raise _unknown_mosaic(instance, "it does not say in which direction its tiles follow (CSA SliceNormalVector)")
    told, normal = np.array([float(str(value)) for value in found]), np.cross(orientation[:3], orientation[3:])
    normal = normal * (1.0 if told @ normal >= 0 else -1.0)
    away = angle_degrees(told, normal)
    if not (np.linalg.norm(told) > 0 and away <= _MOST_DEGREES):
        raise _unknown_mosaic(
            instance,
            f"its tiles follow a direction {away:.1f} degrees off the normal of their planes (CSA SliceNormalVector)",
        )
    return normal / np.linalg.norm(normal)


def _unknown_mosaic(instance: Instance, found: str) -> SeriesSelectionError:
    return SeriesSelectionError(
        f"{instance.name} is a mosaic, a volume laid out as tiles of one picture, and {found}; the scanner's own header is "
        "needed; convert it to an enhanced or classic MR series where that is still there"
    )
