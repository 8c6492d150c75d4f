"""NRRD and MetaImage in and out, through SimpleITK; their world is LPS already."""

import errno
import math
import re
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.files import replace_when_whole
from dicom_io.reading.claims import check_claim
from dicom_io.volume import STATE, STATED, Provenance, Volume, lps_from

ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
_SHEAR_TOLERANCE = 1e-4
_PATIENT_SPACES = {"right-anterior-superior", "left-anterior-superior", "left-posterior-superior", "ras", "las", "lps"}
_MM_IN = {
    "mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "?": 1.0, "": 1.0, "cm": 10.0, "centimeter": 10.0, "m": 1e3, "meter": 1e3,
    "um": 1e-3, "\xb5m": 1e-3, "micron": 1e-3, "micrometer": 1e-3, "micrometre": 1e-3, "nm": 1e-6,
}  # fmt: skip
_META_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "MET_MOD_NM": "NM", "MET_MOD_US": "US"}
_META_DIRECTIONS = ("TransformMatrix", "Orientation", "Rotation")
_PART = 1 << 20  # bytes that are read at once
_ANY_HEADER = 32 + zlib.MAX_WBITS  # zlib and gzip streams alike


def read_itk(path: Path, directions: str | None = None) -> Volume:
    """The voxels of a NRRD or MetaImage file with their grid.

    Args:
        path: The file.
        directions: Where the axes of its coordinates run, as in `lps_from`, if it does not state it.

    Returns:
        The file's own type, shape (I, J, K), or (I, J, K, C) for several components a voxel; affine in LPS mm.

    Raises:
        UnreadableFileError: The file is broken, of another dimension than 3, or states no directions of the patient or no
            usable affine.
    """
    path = Path(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    # Named by the ending: otherwise ITK tries all of its readers.
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO")
    try:
        reader.ReadImageInformation()
        fields = _check_file(reader, path)
        is_bare = not _states_directions(fields, path, needed=directions is None)
        image = reader.Execute()
    except (EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
        way_out = "a whole file is needed; copy it again"
        if "ScalarWithSpace" in str(error):  # a space and spacings
            way_out = "it has no `space directions`, which are needed; export it again with them, or as NIfTI"
        raise UnreadableFileError(
            f"{path.name} cannot be read as NRRD or MetaImage ({_last_line(error)}); {way_out}"
        ) from error
    array = SimpleITK.GetArrayFromImage(image)
    # ITK's direction holds unit vectors in its columns, so the spacing scales the columns.
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine_lps[:3, 3] = image.GetOrigin()
    unit_mm, notes = _unit_of_length(fields, path)
    affine_lps[:3] *= unit_mm
    try:
        if is_bare and directions:
            affine_lps, notes = lps_from(directions) @ affine_lps, (*notes, STATED.format(directions))
        modality = _META_MODALITIES.get(fields.get("Modality", ""))
        return Volume(np.swapaxes(array, 0, 2), affine_lps, Provenance("itk", modality, files=(path,), notes=notes))
    except ValueError as error:
        raise UnreadableFileError(
            f"{path.name} does not say where its voxels lie ({error}); an invertible affine is needed; export it again"
        ) from error


def slicer_segments(path: Path) -> list[tuple[str, int, int]]:
    """Name, layer and label value of each segment that 3D Slicer wrote into a .seg.nrrd; empty for other files.

    Such a file covers the segments alone. Segments of one layer exclude each other; layers are components of a voxel.
    """
    if path.suffix.lower() != ".nrrd" or not path.is_file():
        return []
    with path.open("rb") as file:
        fields = _nrrd_fields(file)
    found = list[tuple[str, int, int]]()
    while (name := fields.get(f"segment{len(found)}_name")) is not None:
        layer, value = (
            fields.get(f"segment{len(found)}_{what}", usual) for what, usual in (("layer", "0"), ("labelvalue", "1"))
        )
        if not (layer.isdecimal() and value.isdecimal()):
            return []  # no file of 3D Slicer
        found.append((name, int(layer), int(value)))
    return found


def _check_file(reader: SimpleITK.ImageFileReader, path: Path) -> Mapping[str, str]:
    """The fields of the header, if the file holds the voxels that it claims; packed ones are read to the end of their checksum.

    ITK does not report a damaged stream: of what MetaIO cannot unpack it gives whatever was in memory.

    Raises:
        UnreadableFileError: Another dimension than 3, more voxels than fit, or more than the file can become or unpacks to.
        EOFError: The stream ends early.
        OSError: A file cannot be read.
        ValueError: The header does not say where the one stream is.
        zlib.error: The stream or its checksum is wrong.
    """
    if reader.GetDimension() != 3:
        raise UnreadableFileError(
            f"{path.name} has {reader.GetDimension()} dimensions; a 3D volume is needed; save each volume as a file of its own"
        )
    is_nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    with path.open("rb") as file:
        fields = _nrrd_fields(file) if is_nrrd else _meta_image_fields(file)
        begin = file.tell()
    if is_nrrd and ("axis0indextype" in fields or fields.get("modality") == "DWMRI"):
        raise UnreadableFileError(
            f"{path.name} holds {reader.GetNumberOfComponents()} time points or gradients, which are not channels of one "
            "image; save the one that is meant as a file of its own"
        )
    name = fields.get("datafile" if is_nrrd else "ElementDataFile", "")
    length = int(fields.get("CompressedDataSize", 0))
    if is_nrrd:
        encoding = fields.get("encoding", "raw").lower()
        packed, as_in_memory = encoding in ("gzip", "gz"), encoding == "raw"
    else:
        packed = fields.get("CompressedData", "")[:1] in ("T", "t", "1")
        as_in_memory = not packed and fields.get("BinaryData", "")[:1] not in ("F", "f", "0")
    is_local = name in ("", "LOCAL")
    data, begin = (path, begin) if is_local else (path.parent / name, 0)
    # A list of files, or a pattern of their names: ITK says which of them is too short
    held = data.stat().st_size - begin if data.is_file() else math.inf
    pixel, components = SimpleITK.Image([1, 1, 1], reader.GetPixelID()), reader.GetNumberOfComponents()
    is_float = "float" in pixel.GetPixelIDTypeAsString()
    # MetaIO stores integers that ITK holds in 8 bytes in 4 or 8
    value_bytes = pixel.GetSizeOfPixelComponent() if is_float else min(pixel.GetSizeOfPixelComponent(), 4)
    shape = (*reader.GetSize(), *([components] if components > 1 else []))
    check_claim(path.name, shape, value_bytes, held, is_packed=not as_in_memory)
    if not packed:
        return fields
    if name == "LOCAL" and not length:  # MetaIO would take the header for voxels
        raise ValueError("it does not state its CompressedDataSize")
    if name.startswith("LIST") or "%" in name:
        raise ValueError("its compressed voxels are in several files, whose checksums are not compared")
    with data.open("rb") as stream:
        stream.seek(begin)
        unpacked, claimed = _unpacked(stream, length), math.prod(shape) * value_bytes
    if unpacked < claimed:
        raise UnreadableFileError(
            f"{path.name} holds {unpacked} bytes of voxels, and its header says {claimed} or more; a whole file is needed; "
            "copy it again"
        )
    return fields


def _states_directions(fields: Mapping[str, str], path: Path, *, needed: bool) -> bool:
    """Whether a header says where the patient's left is; else ITK assumes LPS. Raises UnreadableFileError if that is needed."""
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        stated = fields.get("space", "").lower().removesuffix("-time").removesuffix("t") in _PATIENT_SPACES
        found = f"the space {fields['space']!r}" if "space" in fields else "no space"
        # Without them ITK takes the identity in LPS, whatever the space.
        if stated and fields.get("spacedirections", "").count("(") != 3:
            stated, found = False, f"{found} without its three `space directions`"
    else:
        anatomical = fields.get("AnatomicalOrientation", "")
        # ITK passes over these letters and takes the identity in LPS, which is RAI in them.
        stated = any(name in fields for name in _META_DIRECTIONS) or anatomical == "RAI"
        found = "neither TransformMatrix nor AnatomicalOrientation"
        if anatomical:
            found = f"AnatomicalOrientation {anatomical[:16]!r} and no TransformMatrix, for which ITK takes 'RAI'"
    if not stated and needed:
        raise UnreadableFileError(
            f"{path.name} has {found}, so the patient's left and right are unknown; a file that states its directions is "
            f"needed; export it again with them (NRRD: space left-posterior-superior or right-anterior-superior), or {STATE}"
        )
    return stated


def _unit_of_length(fields: Mapping[str, str], path: Path) -> tuple[float, tuple[str, ...]]:
    """A header's unit of length in mm, and a note on any other unit. Raises UnreadableFileError if it is not one known unit."""
    told = set(re.findall(r'"([^"]*)"', fields.get("spaceunits", ""))) or {fields.get("DistanceUnits", "mm")}
    # UTF-8 has two bytes for a micro sign, which are read as two characters
    known = {_MM_IN.get(unit.strip().lstrip("\xc2").lower().removesuffix("s")) for unit in told}
    if len(known) > 1 or None in known:
        raise UnreadableFileError(
            f"{path.name} has lengths in {' and '.join(sorted(told))[:64]!r}; one unit for all axes, such as mm or um, is "
            "needed; correct its `space units` (NRRD) or DistanceUnits (MetaImage)"
        )
    unit_mm = known.pop() or 1.0
    return unit_mm, () if unit_mm == 1 else (f"lengths were converted from {told.pop()} to mm",)


def _unpacked(stream: BinaryIO, length: int) -> int:
    """Bytes that a zlib or gzip stream of this length unpacks to; 0: it ends before the file does. Errors as above."""
    unpacker, left, unpacked = zlib.decompressobj(_ANY_HEADER), length or sys.maxsize, 0
    while not unpacker.eof:
        packed = unpacker.unconsumed_tail
        if not packed:
            packed = stream.read(min(_PART, left))
            left -= len(packed)
        if not packed:
            raise EOFError("its compressed voxels end early")
        unpacked += len(unpacker.decompress(packed, _PART))
    return unpacked


def _nrrd_fields(file: BinaryIO) -> dict[str, str]:
    """The fields of the header, whose names are in lower case without spaces; the file then stands behind it.

    Source: https://teem.sourceforge.net/nrrd/format.html
    """
    fields = {}
    for line in iter(lambda: file.readline(_PART).decode("latin-1").strip(), ""):
        name, _, value = line.partition(":")
        fields[name.lower().replace(" ", "")] = value.removeprefix("=").strip()  # `name:=value` is a pair of its own
    return fields


def _meta_image_fields(file: BinaryIO) -> dict[str, str]:
    """The fields of the header; the file then stands behind it.

    Source: https://itk.org/Wiki/ITK/MetaIO/Documentation
    """
    fields = {}
    while "ElementDataFile" not in fields and (line := file.readline(_PART).decode("latin-1")):
        name, _, value = line.partition("=")
        fields[name.strip()] = value.strip()
    return fields


def write_itk(array: NDArray[Any], volume: Volume, path: Path) -> Path:
    """The path, after values on a volume's grid were written as NRRD or MetaImage (by the ending), compressed.

    Args:
        array: Shape (I, J, K), or (I, J, K, C).
        volume: Has the grid of the array.
        path: Ends in .nrrd or .mha.

    Raises:
        LabelError: The grid is sheared, which ITK's direction cosines cannot express.
        OSError: The file could not be written whole.
    """
    cosines = direction_cosines(volume)
    if cosines is None:
        raise LabelError(
            "the grid is sheared (gantry tilt), which NRRD and MetaImage readers treat as right-angled; "
            "write NIfTI or a DICOM SEG, or read the series with --resample-tilt"
        )
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(np.swapaxes(array, 0, 2)), isVector=array.ndim == 4)
    image.SetSpacing(volume.spacing_mm)
    image.SetDirection(cosines.ravel().tolist())
    image.SetOrigin(volume.affine_lps[:3, 3].tolist())
    try:
        with replace_when_whole(path) as part:
            SimpleITK.WriteImage(image, str(part), useCompression=True)
            _check_written(image, SimpleITK.ReadImage(str(part)), path)
    except RuntimeError as error:
        raise OSError(errno.EIO, f"ITK did not write the whole file: {_last_line(error)}", str(path)) from error
    return path


def _check_written(image: SimpleITK.Image, written: SimpleITK.Image, path: Path) -> None:
    """Raises OSError if other voxels were written: ITK's writers do not report a full disk."""
    expected, values = (SimpleITK.GetArrayViewFromImage(volume).ravel() for volume in (image, written))
    if not np.array_equal(values, expected, equal_nan=expected.dtype.kind == "f"):
        raise OSError(errno.EIO, "the file does not hold the voxels that were written", str(path))


def direction_cosines(volume: Volume) -> NDArray[np.float64] | None:
    """Shape (3, 3), columns are unit vectors in LPS: the direction of a grid as ITK has it; None for a sheared grid."""
    cosines = volume.affine_lps[:3, :3] / np.array(volume.spacing_mm)
    is_sheared = np.abs(cosines.T @ cosines - np.eye(3)).max() > _SHEAR_TOLERANCE
    return None if is_sheared else cosines


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:160] if lines else type(error).__name__
