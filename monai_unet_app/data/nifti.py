"""Arrays to NIfTI files, on the grid of their volume; and whether a NIfTI file can hold what its header claims."""

import gzip
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.fileholders import FileHolder
from nibabel.nifti1 import Nifti1Extension
from numpy.typing import NDArray

from dicom_io.coding import display_rgb
from dicom_io.errors import UnreadableFileError
from dicom_io.reading.claims import check_claim
from dicom_io.volume import Volume
from monai_unet_app.errors import InputRefusedError, of_surroundings

_GZIP = b"\x1f\x8b"
_LONGEST_HEADER_BYTES = 540  # of NIfTI-2
_CARET = 30  # code of a header extension, nifti1.h: NIFTI_ECODE_CARET


_PART = 1 << 20  # bytes that are read at once
_LONGEST_QUATERNION = 1 + 1e-5  # whose three numbers are float32


class _Rounded:
    """Of a header: a quaternion that float32 rounded beyond length 1 is one of length 1, as nifti1.h says."""

    def get_qform_quaternion(self: Any) -> NDArray[np.float64]:
        """w, x, y, z."""
        told = np.array([self[f"quatern_{part}"] for part in "bcd"], np.float64)
        length = float(np.linalg.norm(told))
        if 1 < length <= _LONGEST_QUATERNION:
            return np.concatenate([[0.0], told / length])
        return np.asarray(super().get_qform_quaternion())  # type: ignore[misc]


class _Header1(_Rounded, nibabel.Nifti1Header):
    pass


class _Header2(_Rounded, nibabel.Nifti2Header):
    pass


class _Image1(nibabel.Nifti1Image):
    header_class = _Header1


class _Image2(nibabel.Nifti2Image):
    header_class = _Header2


def is_packed(path: Path) -> bool:
    """Whether gzip packed a file, whatever its name says."""
    with path.open("rb") as stream:
        return stream.read(len(_GZIP)) == _GZIP


@contextmanager
def _unpacked(path: Path) -> Iterator[Any]:
    with (gzip.open if is_packed(path) else open)(path, "rb") as stream:
        yield stream


def _kind_of(path: Path) -> Any:
    """nibabel's class for a file of NIfTI."""
    with _unpacked(path) as stream:
        start = stream.read(4)
    is_second = any(int.from_bytes(start, order) == _LONGEST_HEADER_BYTES for order in ("little", "big"))
    return _Image2 if is_second else _Image1


def nifti_header(path: Path) -> Any:
    """nibabel's header of a NIfTI file; of a damaged one any error."""
    kind = _kind_of(path)
    with _unpacked(path) as stream:
        return kind.header_class.from_fileobj(stream)


@contextmanager
def opened_nifti(path: Path) -> Iterator[Any]:
    """nibabel's image, whose voxels are read within the block. After it a packed file is read to its end.

    gzip compares its checksum (CRC) at the end of the stream, which nibabel does not reach: it stops at the last voxel.
    """
    kind = _kind_of(path)
    if not is_packed(path) and not path.name.lower().endswith(".gz"):
        yield kind.from_filename(path)
        return
    with _unpacked(path) as stream:
        yield kind.from_file_map({"image": FileHolder(fileobj=stream)})
        while stream.read(_PART):
            pass


def check_nifti(path: Path, name: str) -> None:
    """Passes if a NIfTI file can hold the voxels that its header claims; reads nothing but the header.

    Args:
        path: The file; it may be packed by gzip, whatever its name.
        name: Of the file, for a message.

    Raises:
        InputRefusedError: More voxels are claimed than fit, or than the file can become; or there is no header of NIfTI.
    """
    try:
        kind, packed = _kind_of(path).header_class, is_packed(path)
        with _unpacked(path) as stream:
            start = stream.read(_LONGEST_HEADER_BYTES)
        # No extensions of the header are read: they may be as long as they say
        header = kind(start[: kind.template_dtype.itemsize], check=False)
        size, value_bytes = path.stat().st_size, header.get_data_dtype().itemsize
        held = size if packed else max(0, size - header.get_data_offset())
        check_claim(name, header.get_data_shape(), value_bytes, held, is_packed=packed)
    except UnreadableFileError as error:
        raise InputRefusedError(str(error)) from error
    except Exception as error:  # a damaged header makes nibabel fail in any way
        raise not_nifti(name, error) from error


def one_line(error: Exception) -> str:
    """What an error says, on one line; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def not_nifti(name: str, error: Exception) -> InputRefusedError:
    """The refusal of a file that cannot be read as NIfTI."""
    if isinstance(error, OSError) and (sentence := of_surroundings(error)):
        return InputRefusedError(f"{name}: {sentence}")
    return InputRefusedError(
        f"{name} cannot be read as NIfTI ({one_line(error)}); a whole, undamaged file is needed; copy it again"
    )


def write_nifti(array: NDArray[Any], volume: Volume, path: Path, names: Mapping[int, str] | None = None) -> Path:
    """Writes values on the volume's grid, (I, J, K) or (I, J, K, C), with scanner millimetres (sform code 1).

    A sheared grid gets no qform, because NIfTI's quaternion cannot hold shear and some readers prefer the qform to the sform.
    The `names` of label values go into the header, where `label_table` and Connectome Workbench find them.
    """
    image = nifti_image(array, volume)
    if names:
        image.header.extensions.append(Nifti1Extension(_CARET, _table_of(names)))
    nibabel.save(image, path)
    return path


def _table_of(names: Mapping[int, str]) -> bytes:
    """The label table of these names, with the colours of their numbers.

    Source: CaretExtension of Connectome Workbench, https://www.nitrc.org/projects/caret; TotalSegmentator writes the same.
    """
    rows = []
    for value, name in names.items():
        red, green, blue = (f"{part / 255:.3f}" for part in display_rgb(value))
        colour = f'Red="{red}" Green="{green}" Blue="{blue}" Alpha="1"'
        rows.append(f'<Label Key="{value}" {colour}><![CDATA[{name.replace("]]>", "]] >")}]]></Label>')
    return (
        '<?xml version="1.0" encoding="UTF-8"?><CaretExtension><VolumeInformation Index="0"><LabelTable>'
        f"{''.join(rows)}</LabelTable><VolumeType><![CDATA[Label]]></VolumeType></VolumeInformation></CaretExtension>"
    ).encode()


def nifti_image(array: NDArray[Any], volume: Volume) -> nibabel.Nifti1Image:
    """An image in memory: values on the volume's grid, (I, J, K) or (I, J, K, C), whose affine is in RAS mm."""
    image = nibabel.Nifti1Image(array, volume.affine_ras)
    # nibabel leaves the unit of a new image unknown
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine_ras, code=1)
    image.set_qform(volume.affine_ras, code=1)
    if not np.allclose(image.get_qform(), volume.affine_ras, atol=1e-3):
        image.set_qform(None, code=0)
    return image


_LABEL = re.compile(rb'<Label Key="(\d{1,5})"[^>]{0,200}>\s*(?:<!\[CDATA\[(.{1,260}?)\]\]>|([^<]{1,260}))', re.DOTALL)


def label_table(path: Path) -> dict[int, str]:
    """The names of label values in the header of a NIfTI file, as Connectome Workbench and TotalSegmentator write them.

    Args:
        path: The file, which `read_volume` has read.

    Returns:
        Label value, from 1, -> name; empty without such a table, and for files of other kinds.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return {}
    header = nifti_header(path)
    # nibabel has no form of its own for Workbench's kind of extension, and 5.2 no `content`
    texts = [one.content if hasattr(one, "content") else bytes(one.get_content()) for one in header.extensions]
    found = (match for text in texts if b"<LabelTable>" in text for match in _LABEL.finditer(text))
    return {
        int(number): (quoted or plain).decode("utf-8", "replace").strip()
        for number, quoted, plain in map(re.Match.groups, found)
        if int(number)
    }
