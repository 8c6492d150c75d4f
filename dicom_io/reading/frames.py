"""Instances -> frames: one slice each, with the position and the rescale of its own header or functional group.

A classic object has one frame, an enhanced object has functional groups for each frame (PS3.3 C.7.6.16), and a Siemens mosaic
is one picture whose tiles are the slices.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, UncompressedTransferSyntaxes

from dicom_io.errors import SeriesSelectionError
from dicom_io.reading.claims import MAX_VOXELS
from dicom_io.reading.geometry import ImagePlane, Points, angle_degrees
from dicom_io.reading.instances import READ_ERRORS, Instance, OddHeaderError, broken_file, image_type, refusing
from dicom_io.reading.kept_attributes import CSA_BLOCKS, DISTINGUISHING

MAX_MM, MIN_MM = 1e6, 1e-4
"""The longest distance in space and the shortest between pixels that are accepted; with others an affine cannot be inverted."""

_RLE_RATIO = 64  # PS3.5 G.3.1: two bytes become at most 128
_MAX_PADDING = 1.1  # some writers add bytes after the pixels; if there are more, the header is that of another picture
_MAX_DEGREES = 1.0  # between the normal of a mosaic's tiles by CSA and by their orientation
_CSA_CREATOR = "SIEMENS CSA HEADER"
_FunctionalGroups = Dataset | tuple[Dataset, ...]
_Csa = Mapping[str, Sequence[object]]
# PS3.3 C.7.6.16.2, C.8.13.5, C.8.15.3, C.8.22.5: in which sequence an enhanced object holds each of DISTINGUISHING
_MACROS = {
    "FrameContentSequence": "TemporalPositionIndex FrameAcquisitionNumber StackID FrameReferenceDateTime "
    "FrameAcquisitionDateTime",
    "TemporalPositionSequence": "TemporalPositionTimeOffset",
    "CardiacSynchronizationSequence": "NominalPercentageOfCardiacPhase NominalCardiacTriggerDelayTime "
    "NominalCardiacTriggerTimePriorToRPeak",
    "RespiratorySynchronizationSequence": "NominalPercentageOfRespiratoryPhase",
    "MREchoSequence": "EffectiveEchoTime",
    "MRModifierSequence": "InversionTimes",
    "MRDiffusionSequence": "DiffusionBValue",
    "MRDiffusionSequence/DiffusionGradientDirectionSequence": "DiffusionGradientOrientation",
    "MRImageFrameTypeSequence": "FrameType ComplexImageComponent",
    "CTImageFrameTypeSequence": "FrameType ComplexImageComponent",
    "PETFrameTypeSequence": "FrameType ComplexImageComponent",
    "CTReconstructionSequence": "ConvolutionKernel",
}


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice, by its own header.

    Attributes:
        instance: The object that holds it.
        number: From 1 in a multi-frame object, 0 elsewhere.
        tile: (tile from 0, tiles in a row) in a mosaic, else None.
        plane: Where it lies; None without patient space.
        slope, intercept: Of its own rescale.
        thickness_mm: SliceThickness; None where it is absent or 0.
        distinguishing: (keyword, value) of attributes that may distinguish it from another frame at its position.
        unit: Of its values: RescaleType, Units (PET), or its own factor where only RealWorldValueMapping has one; else empty.
        has_rescale: Whether it states a rescale or a Modality LUT.
    """

    instance: Instance
    number: int
    tile: tuple[int, int] | None
    plane: ImagePlane | None
    slope: float
    intercept: float
    thickness_mm: float | None
    distinguishing: tuple[tuple[str, str], ...]
    unit: str = ""
    has_rescale: bool = True

    @property
    def key(self) -> tuple[str, int]:
        """SOP Instance UID and frame (tile of a mosaic); two frames of one key are copies."""
        return self.instance.sop_instance_uid, self.tile[0] + 1 if self.tile else self.number

    @property
    def slice_key(self) -> str:
        """As `Provenance.slice_keys` has it."""
        return self.instance.sop_instance_uid + (f"#{self.number}" if self.number else "")

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
        SeriesSelectionError: It has frames without functional groups, or is a mosaic whose tiles cannot be placed.
    """
    header, count = instance.header, instance.frames
    with refusing(instance.name):
        groups = header.get("PerFrameFunctionalGroupsSequence")
        if groups is None and count > 1:
            raise SeriesSelectionError(
                f"{instance.name} holds {count} frames without functional groups, so their positions are unknown; "
                "positions are needed; pass an object that has them"
            )
        if groups is not None and len(groups) != count:
            raise broken_file(instance.name, f"NumberOfFrames is {count}, the functional groups are {len(groups)}")
        csa = _csa(header)
        if "MOSAIC" in image_type(header) or _tile_count(csa) > 1:
            return _mosaic_frames(instance, csa)
        return [_frame(instance, index, count) for index in range(count)]


def has_groups(header: Dataset) -> bool:
    """Whether an object has functional groups, as enhanced ones do."""
    return "SharedFunctionalGroupsSequence" in header or "PerFrameFunctionalGroupsSequence" in header


def check_size(instance: Instance) -> None:
    """Checks how many pixels an instance claims; call it before memory for frames or pixels is taken.

    Raises:
        UnreadableFileError: It claims no pixels, or more than its file can hold.
        SeriesSelectionError: It claims more than MAX_VOXELS.
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
    """Raises UnreadableFileError if an instance has too few bytes for its pixels, or, uncompressed, too many."""
    header, syntax, held = instance.header, instance.transfer_syntax, instance.pixel_bytes
    bits = int(header.get("BitsAllocated") or 8)
    needed = voxels * stored_samples(header) * bits // 8
    # Only run lengths have a least size; other codecs can make a plain picture as small as they like.
    if syntax not in UncompressedTransferSyntaxes:
        needed = needed // _RLE_RATIO if syntax == RLELossless else 0
    too_many = syntax in UncompressedTransferSyntaxes and held > needed * _MAX_PADDING + 1
    if held < needed or too_many:
        size = f"{instance.frames} x {header.Rows} x {header.Columns}"
        raise broken_file(instance.name, f"{size} pixels of {bits} bits need {needed} bytes, it holds {held}")
    # PS3.5 A.4: a fragment holds data of one frame only, so there are at least as many fragments as frames.
    pieces = len(instance.fragments)
    if instance.path and syntax not in UncompressedTransferSyntaxes and instance.frames > max(pieces, 1):
        raise broken_file(instance.name, f"{instance.frames} frames need a fragment each, it holds {pieces}")


def stored_samples(header: Dataset) -> int:
    """How many values a pixel has when it is not compressed: its samples, or 2 of 3 where two pixels share their colour, in
    YBR_FULL_422 and in the retired YBR_PARTIAL_422 (PS3.3 C.7.6.3.1.2).
    """
    samples = int(header.get("SamplesPerPixel") or 1)
    return 2 if samples == 3 and "422" in str(header.get("PhotometricInterpretation")) else samples


def _frame(instance: Instance, index: int, count: int) -> Frame:
    header = instance.header
    groups = _functional_groups(header, index)
    measures = _macro(groups, "PixelMeasuresSequence")
    # PS3.3 C.7.6.16.2.9: the rescale of an enhanced object. Without that macro, the rescale of the top level holds.
    rescale = _macro(groups, "PixelValueTransformationSequence") or header
    slope, intercept = _rescale(rescale)
    mapped = next(iter(header.get("RealWorldValueMappingSequence") or ()), Dataset()).get("RealWorldValueSlope")
    has_rescale = rescale.get("RescaleSlope") is not None or "ModalityLUTSequence" in header
    unit = str(rescale.get("RescaleType") or header.get("Units") or "")
    if mapped and not has_rescale:
        unit = f"stored values with a RealWorldValueSlope of {mapped:g}"
    return Frame(
        instance,
        index + 1 if count > 1 or has_groups(header) else 0,
        None,
        _plane(header, groups, measures),
        slope,
        intercept,
        _thickness_mm(measures),
        _distinguishing(header, groups),
        unit,
        has_rescale,
    )


def _rescale(rescale: Dataset) -> tuple[float, float]:
    slope, intercept = numbers(rescale, "RescaleSlope", 1), numbers(rescale, "RescaleIntercept", 1)
    if slope and slope[0] == 0:
        raise ValueError("RescaleSlope is 0, which makes all values the same")
    return slope[0] if slope else 1.0, intercept[0] if intercept else 0.0


def _thickness_mm(holder: Dataset) -> float | None:
    thickness = numbers(holder, "SliceThickness", 1)
    return thickness[0] if thickness and MIN_MM <= thickness[0] <= MAX_MM else None


def _plane(header: Dataset, groups: _FunctionalGroups, measures: Dataset) -> ImagePlane | None:
    position = numbers(_macro(groups, "PlanePositionSequence"), "ImagePositionPatient", 3)
    orientation = numbers(_macro(groups, "PlaneOrientationSequence"), "ImageOrientationPatient", 6)
    pixel_spacing = numbers(measures, "PixelSpacing", 2)
    if position is None or orientation is None or pixel_spacing is None:
        return None
    return _checked_plane(position, orientation, pixel_spacing, (int(header.Rows), int(header.Columns)))


def _checked_plane(
    position: tuple[float, ...], orientation: tuple[float, ...], spacing: tuple[float, ...], shape: tuple[int, int]
) -> ImagePlane:
    """The plane; ValueError for distances that are too long or too short. `even_grid` refuses NaN and bad directions."""
    too_far = any(abs(value) > MAX_MM for value in (*position, *spacing))
    if too_far or any(0 < value < MIN_MM for value in spacing):
        raise ValueError(
            f"it lies at {_listed(position)} with pixels of {_listed(spacing)} mm; at most {MAX_MM:g} and pixels of at "
            f"least {MIN_MM:g} mm are needed"
        )
    return ImagePlane(position, orientation, spacing, shape)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _functional_groups(header: Dataset, index: int) -> _FunctionalGroups:
    """The data sets with the attributes of a frame: its own functional groups, then the shared groups; or the header of a
    single frame.

    Empty for a multi-frame object without functional groups: its top level describes no frame, except perhaps the first.
    """
    is_single = int(header.get("NumberOfFrames") or 1) == 1
    if not has_groups(header):
        return header if is_single else ()
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    groups = (*per_frame[index : index + 1], *shared[:1])
    # A single frame whose groups give no position is placed by the top level, as in a classic object.
    if is_single and not any("PlanePositionSequence" in group for group in groups):
        return header
    return groups


def measures_of(header: Dataset) -> Dataset:
    """What has the pixel sizes and the gap of the first frame: a functional group (PS3.3 C.7.6.16.2.1), or the header."""
    return _macro(_functional_groups(header, 0), "PixelMeasuresSequence")


def _macro(groups: _FunctionalGroups, keyword: str) -> Dataset:
    """The first item of a macro, or the header of a single frame; empty if there is no such macro."""
    if isinstance(groups, Dataset):
        return groups
    return next((group[keyword].value[0] for group in groups if group.get(keyword)), Dataset())


def numbers(holder: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """The numbers of an attribute; None where it is absent or empty. Raises OddHeaderError unless there are `count` of them."""
    try:
        value = holder.get(keyword)
        is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))  # one text is one number
        if value is None or value in ("", b"") or (is_list and not len(value)):
            return None
        values = tuple(float(number) for number in (value if is_list else [value]))
    except (TypeError, ValueError) as error:
        raise OddHeaderError(f"text that is not a number in its {keyword}; decimals with a point are needed") from error
    if len(values) != count:
        held = "one value" if len(values) == 1 else f"{len(values)} values"
        raise OddHeaderError(f"{held} in its {keyword}; {count} are needed")
    return values


def optional_number(header: Dataset, keyword: str) -> float | None:
    """The number of an attribute; None if it is absent or not a number."""
    try:
        values = numbers(header, keyword, 1)
    except ValueError:
        return None
    return values[0] if values else None


def _distinguishing(header: Dataset, groups: _FunctionalGroups) -> tuple[tuple[str, str], ...]:
    texts = {keyword: _attribute_text(header, keyword) for keyword in DISTINGUISHING}
    for path, keywords in () if isinstance(groups, Dataset) else _MACROS.items():
        first, *deeper = path.split("/")
        item = _macro(groups, first)
        for sequence in deeper:
            item = _macro((item,), sequence)
        # The value in a functional group of the frame replaces the value at the top level.
        texts |= {keyword: text for keyword in keywords.split() if (text := _attribute_text(item, keyword))}
    return tuple(sorted((keyword, text) for keyword, text in texts.items() if text))


def _attribute_text(holder: Dataset, keyword: str) -> str:
    """An attribute's values as DICOM writes them; empty if it is absent or cannot be read: no position depends on it."""
    # Most of the attributes are absent, and `get`, like `in`, takes long to find that out.
    if tag_for_keyword(keyword) not in holder.keys():  # noqa: SIM118
        return ""
    try:
        value = holder.get(keyword)
    except READ_ERRORS:
        return ""
    parts = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    return "\\".join(map(str, parts)) if all(isinstance(part, str | int | float) for part in parts) else ""


def _mosaic_frames(instance: Instance, csa: _Csa) -> list[Frame]:
    """The slices of a Siemens mosaic, in the order of the tiles.

    The header gives the corner of the whole picture as if it were one slice with the centre of the true slices; the corner of a
    tile lies half the difference of the two sizes further in. Normal and count are in the manufacturer's CSA header.
    Source: NiBabel, "Siemens mosaic" (DICOM notes).
    """
    header = instance.header
    if instance.frames > 1:
        raise broken_file(instance.name, f"it is a mosaic of {instance.frames} frames")
    count = _tile_count(csa)
    if not 0 < count <= 4096:
        raise _unknown_mosaic(instance, f"it names {count} tiles")
    # The tiles fill the smallest square that holds them, row by row; the last tiles may be empty.
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
    first, picture = np.array(corner) + inwards, replace(_frame(instance, 0, 1), number=0)
    positions = (tuple(first + tile * step_mm * normal) for tile in range(count))
    planes = (_checked_plane(position, orientation, spacing, (rows, columns)) for position in positions)
    return [replace(picture, tile=(tile, across), plane=plane) for tile, plane in enumerate(planes)]


def _csa(header: Dataset) -> _Csa:
    """The values of the Siemens CSA image header by name; empty where it is absent or unreadable."""
    content = _csa_bytes(header)
    if not content:
        return {}
    with warnings.catch_warnings():  # NiBabel calls its DICOM readers experimental; its CSA parser is not one of them
        warnings.simplefilter("ignore")
        from nibabel.nicom import csareader
    # NiBabel's parser checks some lengths by `assert`.
    errors: tuple[type[Exception], ...] = (*READ_ERRORS, csareader.CSAError, AssertionError)
    try:
        tags = csareader.read(content)["tags"]
    except errors:
        return {}
    return {name: tag["items"] for name, tag in tags.items()}


def _csa_bytes(header: Dataset) -> bytes:
    """The CSA image header, from the block of group 0029 that its creator reserved; empty where it is absent."""
    for block in CSA_BLOCKS:
        creator, content = header.get((0x0029, block)), header.get((0x0029, block << 8 | 0x10))
        if creator is not None and content is not None and str(creator.value).strip() == _CSA_CREATOR:
            return bytes(content.value or b"")
    return b""


def _tile_count(csa: _Csa) -> int:
    """The number of tiles by the CSA header; 0 if the header is absent or states no number."""
    try:
        return int(str(csa["NumberOfImagesInMosaic"][0]))
    except (LookupError, ValueError):
        return 0


def _tile_normal(instance: Instance, csa: _Csa, orientation: Sequence[float]) -> Points:
    """Shape (3,), LPS: unit vector along which the tiles follow, their planes' normal turned as the CSA header says."""
    direction = csa.get("SliceNormalVector", ())
    if len(direction) != 3:
        raise _unknown_mosaic(instance, "it does not say in which direction its tiles follow (CSA SliceNormalVector)")
    stated, normal = np.array([float(str(value)) for value in direction]), np.cross(orientation[:3], orientation[3:])
    # The CSA header decides the sense only: the tiles lie along the normal of their own planes.
    normal = normal * (1.0 if stated @ normal >= 0 else -1.0)
    off_degrees = angle_degrees(stated, normal)
    if not (np.linalg.norm(stated) > 0 and off_degrees <= _MAX_DEGREES):
        fault = f"its tiles follow a direction {off_degrees:.1f} degrees off the normal of their planes (CSA SliceNormalVector)"
        raise _unknown_mosaic(instance, fault)
    return np.asarray(normal / np.linalg.norm(normal))


def _unknown_mosaic(instance: Instance, fault: str) -> SeriesSelectionError:
    return SeriesSelectionError(
        f"{instance.name} is a mosaic, a volume laid out as tiles of one picture, and {fault}; the scanner's own header is "
        "needed; convert it to an enhanced or classic MR series where that is still there"
    )
