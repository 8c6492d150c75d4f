"""Small files whose headers claim voxels that may not be there."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np


def nifti_claiming(shape: tuple[int, ...], held: int = 1000) -> bytes:
    """A NIfTI file whose header claims int16 voxels of this shape, before so many bytes of 0."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header.binaryblock + bytes(4 + held)


def claiming(path: Path, shape: tuple[int, ...], held: int = 1000) -> Path:
    """The same as a file of its name's format; a NRRD or MetaImage is packed if its name begins so.

    The voxels of a .nhdr and .mhd are in a file beside it.
    """
    if ".nii" in path.suffixes:
        content = nifti_claiming(shape, held)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path
    is_packed, is_nrrd = path.name.startswith("packed"), path.suffix in (".nrrd", ".nhdr")
    is_beside = path.suffix in (".nhdr", ".mhd")
    voxels = (gzip if is_nrrd else zlib).compress(bytes(held)) if is_packed else bytes(held)
    beside, by = path.with_suffix(".raw"), " ".join(map(str, shape))
    if is_nrrd:
        lines = ["NRRD0004", "type: short", "dimension: 3", f"sizes: {by}", "endian: little"]
        lines += [
            "space: left-posterior-superior",
            "space directions: (1,0,0) (0,1,0) (0,0,1)",
            "space origin: (0,0,0)",
        ]
        lines += [
            f"encoding: {'gzip' if is_packed else 'raw'}",
            *([f"data file: {beside.name}"] if is_beside else []),
            "",
        ]
    else:
        lines = [
            "ObjectType = Image",
            "NDims = 3",
            f"DimSize = {by}",
            "ElementSpacing = 1 1 1",
            "TransformMatrix = 1 0 0 0 1 0 0 0 1",
            "ElementType = MET_SHORT",
        ]
        lines += ["BinaryData = True", f"CompressedData = {is_packed}", f"CompressedDataSize = {len(voxels)}"]
        lines += [f"ElementDataFile = {beside.name if is_beside else 'LOCAL'}"]
    header = "".join(f"{line}\n" for line in lines).encode()
    if is_beside:
        beside.write_bytes(voxels)
    path.write_bytes(header if is_beside else header + voxels)
    return path


def png_claiming(path: Path, width: int, height: int) -> Path:
    """A PNG of 8-bit grey pixels with a whole header and no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = (
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, b"IDAT")
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path
