"""NRRD and MetaImage in and out, through SimpleITK; their world is LPS already."""

import errno
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from dicom_io.errors import LabelError, UnreadableFileError
from dicom_io.files import replace_when_whole
from dicom_io.reading.claims import check_claim
from dicom_io.volume import Provenance, Volume

ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
_SHEAR_TOLERANCE = 1e-4
_HEADER_BYTES = 1 << 16  # in which the lines below stand
_PIECE_BYTES = 1 << 22  # that are unpacked at a time
_ZLIB_OR_GZIP = 47  # zlib takes either, as MetaIO does
_PACKED = re.compile(rb"^CompressedData\s*=\s*T", re.MULTILINE | re.IGNORECASE)
_PACKED_LENGTH = re.compile(rb"^CompressedDataSize\s*=\s*(\d+)", re.MULTILINE | re.IGNORECASE)
_DATA_FILE = re.compile(rb"^(?:data ?file:|ElementDataFile\s*=)\s*(.+?)\s*$", re.MULTILINE | re.IGNORECASE)
# Packed voxels, or voxels written as text, may take fewer bytes than in memory
_UNLIKE_MEMORY = re.compile(
    rb"^(?:encoding:(?!\s*raw)|CompressedData\s*=\s*T|BinaryData\s*=\s*F)", re.MULTILINE | re.IGNORECASE
)


def read_itk(path: Path) -> Volume:
    """The voxels of a NRRD or MetaImage file with their grid.

    Returns:
        The file's own type, shape (I, J, K), or (I, J, K, C) for several components a voxel; affine in LPS mm.

    Raises:
        UnreadableFileError: The file is broken, of another dimension than 3, or has no usable affine.
    """
    path = Path(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    # Named by the ending: otherwise ITK tries all of its readers.
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in (".nrrd", ".nhdr") else "MetaImageIO")
    try:
        reader.ReadImageInformation()
        _check_header(reader, path)
        image = reader.Execute()
    except (RuntimeError, OSError) as error:
        raise UnreadableFileError(
            f"{path.name} cannot be read as NRRD or MetaImage ({_last_line(error)}); a whole file is needed; copy it again"
        ) from error
    array = SimpleITK.GetArrayFromImage(image)
    # ITK's direction holds unit vectors in its columns, so the spacing scales the columns.
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine_lps[:3, 3] = image.GetOrigin()
    try:
        return Volume(np.moveaxis(array, (0, 1, 2), (2, 1, 0)), affine_lps, Provenance("itk", files=(path,)))
    except ValueError as error:
        raise UnreadableFileError(
            f"{path.name} does not say where its voxels lie ({error}); an invertible affine is needed; export it again"
        ) from error


def _check_header(reader: SimpleITK.ImageFileReader, path: Path) -> None:
    """Raises UnreadableFileError for another dimension than 3, and for more voxels than the file can hold."""
    if reader.GetDimension() != 3:
        raise UnreadableFileError(
            f"{path.name} has {reader.GetDimension()} dimensions; a 3D volume is needed; save each volume as a file of its own"
        )
    value_bytes = SimpleITK.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    components = reader.GetNumberOfComponents()
    shape = (*reader.GetSize(), *([components] if components > 1 else []))
    with path.open("rb") as stream:
        header = stream.read(_HEADER_BYTES)
    is_meta = path.suffix.lower() in (".mha", ".mhd")
    if not is_meta:
        header = re.split(rb"\r?\n\r?\n", header, maxsplit=1)[0]
    named, file, begin = _DATA_FILE.search(header), path, 0
    if named is not None and named[1].upper() == b"LOCAL":
        begin = header.find(b"\n", named.end(1)) + 1
        header = header[:begin]
    elif named is not None:
        file = path.parent / os.fsdecode(named[1])
    # A list of files, or a pattern of their names: ITK says which of them is too short
    held = file.stat().st_size - begin if file.is_file() else math.inf
    check_claim(path.name, shape, value_bytes, held, is_packed=_UNLIKE_MEMORY.search(header) is not None)
    if is_meta and file.is_file() and _PACKED.search(header):
        with file.open("rb") as stream:
            stream.seek(begin)
            _check_unpacks(stream, header, math.prod(shape) * value_bytes, path.name)


def _check_unpacks(stream: BinaryIO, header: bytes, claimed: int, name: str) -> None:
    """Raises UnreadableFileError if the packed voxels of a MetaImage are damaged: ITK would give memory as it finds it."""
    length = _PACKED_LENGTH.search(header)
    packed = stream.read(int(length[1])) if length else b""
    machine, count = zlib.decompressobj(wbits=_ZLIB_OR_GZIP), 0
    try:
        while packed and not machine.eof and count <= claimed:
            count += len(machine.decompress(packed, _PIECE_BYTES))
            packed = machine.unconsumed_tail
    except zlib.error:
        machine = zlib.decompressobj()
    if not machine.eof or count != claimed:
        raise UnreadableFileError(
            f"the packed voxels of {name} are damaged: {count} bytes of {claimed} can be unpacked; a whole, undamaged file "
            "with its CompressedDataSize is needed; copy it again"
        )


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
            "the grid is sheared (gantry tilt), which NRRD and MetaImage readers take for right-angled; "
            "write NIfTI or a DICOM SEG, or read the series with --resample-tilt"
        )
    image = SimpleITK.GetImageFromArray(
        np.ascontiguousarray(np.moveaxis(array, (0, 1, 2), (2, 1, 0))), isVector=array.ndim == 4
    )
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
