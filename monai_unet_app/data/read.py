"""Any source to a `Volume`: a NIfTI, NRRD or MetaImage file, a DICOM folder or file, a 2D picture.

Bad input is refused here with a message for the user.
"""

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.fileholders import FileHolder
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dicom_io.channels import joined, read_channels
from dicom_io.itk_files import ITK_ENDINGS, read_itk
from dicom_io.read import ReadOptions, read_scanned
from dicom_io.reading.series import scan_source
from dicom_io.volume import Provenance, Volume
from monai_unet_app.data.nifti import check_nifti, not_nifti, one_line
from monai_unet_app.errors import InputRefusedError, refusing_as

NIFTI_ENDINGS = (".nii", ".nii.gz")
MM_IN = {"meter": 1e3, "micron": 1e-3}  # NIfTI's other units of length
EXACT = 2.0**24  # float32 holds all whole numbers up to here
LARGEST_LOSS = 1e-2  # rounding to float32 may change a value by this share of the range of values
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_PART = 1 << 20  # bytes that are read at once
VOLUME_ENDINGS = NIFTI_ENDINGS + ITK_ENDINGS


def has_ending(path: Path, endings: tuple[str, ...]) -> bool:
    """Whether the file's name has one of these endings, in upper or lower case."""
    return path.name.lower().endswith(endings)


ImageFiles = str | Path | Sequence[str | Path]
"""The file or folder of an image, or one for each of its channels."""


def read_volume(files: ImageFiles, options: ReadOptions | None = None) -> Volume:
    """The voxels of one case with their position in the patient; float32, every value finite.

    Args:
        files: NIfTI, NRRD or MetaImage file, DICOM folder or file, or a 2D picture. Several of these are channels, which are
            laid on the grid of the first.
        options: The series and the time point of a DICOM folder, and the permitted repairs. `before_pixels` is called for NIfTI
            and DICOM.

    Returns:
        Shape (I, J, K), or (I, J, K, C) for several channels; affine in LPS mm. A picture is planar with I along its width.

    Raises:
        InputRefusedError: The file is absent, truncated, of an unknown kind, or holds NaN or infinite voxels; or as `joined`.
    """
    options = options or ReadOptions()
    if isinstance(files, str | Path):
        return _read_one(Path(files), options)
    first, *others = map(Path, files)
    plan = options.before_pixels
    # The memory of all channels is planned for once
    of_all = None if plan is None else lambda shape, affine: plan((*shape[:3], len(files)), affine)
    volumes = [_read_one(first, replace(options, before_pixels=of_all))]
    volumes += [_read_one(path, replace(options, before_pixels=None)) for path in others]
    with refusing_as(first.name):
        return joined(volumes) if others else volumes[0]


def _read_one(path: Path, options: ReadOptions) -> Volume:
    if not path.exists():
        raise InputRefusedError(f"{path.name} does not exist; a NIfTI file, a DICOM folder or a picture is needed")
    if path.is_file() and has_ending(path, NIFTI_ENDINGS):
        volume = _read_nifti(path, options)
    elif path.is_file() and has_ending(path, PICTURE_ENDINGS):
        volume = _read_picture(path)
    else:
        with refusing_as(path.name):
            volume = _read_by_dicom_io(path, options)
    return _finite(volume, path)


def _read_by_dicom_io(path: Path, options: ReadOptions) -> Volume:
    if path.is_file() and has_ending(path, ITK_ENDINGS):
        volume = read_itk(path)
        return volume.with_array(volume.array.astype(np.float32))
    if options.channels:
        return read_channels(path, options.channels, accept_incomplete=options.accept_incomplete)
    return read_scanned(scan_source(path), options)


def _read_nifti(path: Path, options: ReadOptions) -> Volume:
    check_nifti(path, path.name)
    try:
        with _opened(path) as image:
            _check_numbers(image.get_data_dtype(), path)
            # With both codes 0, nibabel takes NIfTI's "method 1": pixel sizes and no orientation
            _check_placed(image.header, path)
            if options.before_pixels is not None and len(image.shape) > 2:
                options.before_pixels(image.shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine)
            # dataobj applies scl_slope and scl_inter; the numbers in the file are not the intensities
            stored = np.asanyarray(image.dataobj)
        with np.errstate(over="ignore"):  # values beyond float32 become infinite, which is refused
            array = stored.astype(np.float32)
        _check_precision(stored, array, path)
    # A refusal has its reason already; the clause below is for errors of nibabel
    except InputRefusedError:
        raise
    except Exception as error:  # a damaged header makes nibabel fail in any way
        raise not_nifti(path.name, error) from error
    # Many programs write a 3D image with a fourth axis of length 1
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim not in (3, 4):
        raise InputRefusedError(
            f"{path.name} has shape {array.shape}; a 3D volume (or 4D with channels last) is needed"
        )
    if not array.size:
        raise InputRefusedError(f"{path.name} has shape {array.shape}; at least one voxel is needed; export it again")
    try:
        unit = image.header.get_xyzt_units()[0] if hasattr(image.header, "get_xyzt_units") else "mm"
        affine = np.diag([MM_IN.get(unit, 1.0)] * 3 + [1.0]) @ image.affine
        notes = (f"lengths were converted from {unit} to mm",) if unit in MM_IN else ()
        return Volume.from_ras(array, affine, Provenance("nifti", files=(path,), notes=notes))
    except ValueError as error:
        raise InputRefusedError(
            f"{path.name} does not say where its voxels lie ({error}); a sform or qform with three axes is needed; "
            "export it again"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """nibabel's image, whose voxels are read within the block. After it a compressed file is read to its end.

    gzip compares its checksum (CRC) at the end of the stream, which nibabel does not reach: it stops at the last voxel.
    """
    image: Any = nibabel.load(path)
    if not path.name.lower().endswith(".gz"):
        yield image
        return
    with gzip.open(path) as stream:
        yield type(image).from_file_map({"image": FileHolder(fileobj=stream)})
        while stream.read(_PART):
            pass


def _check_numbers(dtype: np.dtype[Any], path: Path) -> None:
    """Raises InputRefusedError if a voxel is not one real number."""
    if dtype.names or dtype.kind == "c":
        kind = "complex" if dtype.kind == "c" else "".join(dtype.names or ()).upper()
        raise InputRefusedError(
            f"{path.name} holds {kind} voxels; one number for each voxel is needed; convert it to grey values"
        )


def _check_placed(header: Any, path: Path) -> None:
    """Raises InputRefusedError for a NIfTI without sform and qform: left and right are unknown."""
    if "sform_code" in header and not (int(header["sform_code"]) or int(header["qform_code"])):
        raise InputRefusedError(
            f"{path.name} has neither sform nor qform (both codes are 0), so left and right are unknown; an image that states "
            "its orientation is needed; export it again, or set the sform if you know it"
        )


def _check_precision(stored: NDArray[Any], array: NDArray[np.float32], path: Path) -> None:
    """Raises InputRefusedError if float32 has too few digits to distinguish the values."""
    if not stored.size:
        return
    ends = np.array([array.min(), array.max()])  # NaN if any voxel is; `_finite` refuses it later
    if not np.isfinite(ends).all() or np.abs(ends).max() < EXACT:
        return
    low, high = float(stored.min()), float(stored.max())
    lost = float(np.abs(stored - array.astype(stored.dtype)).max())
    if lost > (high - low) * LARGEST_LOSS:
        raise InputRefusedError(
            f"{path.name} holds values around {low:.3g} that differ by {high - low:.3g} at most, too little for float32 to "
            "distinguish them; subtract the smallest value first"
        )


def _read_picture(path: Path) -> Volume:
    try:
        with Image.open(path) as opened:
            if getattr(opened, "n_frames", 1) > 1:
                raise InputRefusedError(
                    f"{path.name} holds {getattr(opened, 'n_frames', 1)} pictures; one is needed; save each as a file of its "
                    "own, or a volume as NIfTI"
                )
            # Image.open reads the header only; a truncated file fails here
            opened.load()
            picture: Image.Image = opened
            # The numbers of a palette picture are indices of colours, no grey values; an alpha channel is dropped
            if picture.mode not in ("L", "RGB", "I;16", "I;16B", "I", "F"):
                picture = picture.convert("RGB" if picture.mode in ("P", "RGBA", "CMYK", "YCbCr") else "L")
            pixels = np.asarray(picture, dtype=np.float32)
    except Image.DecompressionBombError as error:
        raise InputRefusedError(f"{path.name} is too large ({error}); check the file, or cut it into parts") from error
    # Pillow raises SyntaxError for a broken PNG
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputRefusedError(
            f"{path.name} cannot be read as a picture ({one_line(error)}); a whole PNG, JPEG or TIFF is needed; copy it again"
        ) from error
    # Pillow's arrays are (row, column); I runs along the width
    array = np.moveaxis(pixels, 0, 1)[:, :, None]
    return Volume(array, np.eye(4), Provenance("image", files=(path,)), planar=True)


def _finite(volume: Volume, path: Path) -> Volume:
    # Plane by plane, in their order in memory: the answer for all voxels would be a quarter of the volume.
    bad = volume.array.size - sum(np.count_nonzero(np.isfinite(plane)) for plane in volume.array.T)
    if bad:
        raise InputRefusedError(
            f"{path.name} has {bad} NaN or infinite voxel(s) of {volume.array.size}; finite values are needed; correct the "
            "export or replace them by the value of air"
        )
    return volume
