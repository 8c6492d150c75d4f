"""Any source to a `Volume`: a NIfTI, NRRD or MetaImage file, a DICOM folder or file, a 2D picture.

Bad input is refused here with a message for the user.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from dicom_io.channels import joined, read_channels
from dicom_io.errors import UnreadableFileError
from dicom_io.itk_files import ITK_ENDINGS, read_itk
from dicom_io.objects.grid import with_notes
from dicom_io.read import ReadOptions, read_scanned
from dicom_io.reading.claims import check_claim
from dicom_io.reading.series import scan_source
from dicom_io.volume import LPS_FROM_RAS, STATE, STATED, Provenance, Volume, lps_from
from monai_unet_app.data.nifti import check_nifti, not_nifti, one_line, opened_nifti
from monai_unet_app.data.schemas import json_of
from monai_unet_app.errors import InputRefusedError, absence, refusing_as

NIFTI_ENDINGS = (".nii", ".nii.gz")
MM_IN = {"meter": 1e3, "micron": 1e-3}  # NIfTI's other units of length
EXACT = 2.0**24  # float32 holds all whole numbers up to here
LARGEST_LOSS = 1e-2  # rounding to float32 may change a value by this share of the range of values
_CHANNELS_FIRST = 9  # a shorter first axis is one of channels, if the last is longer
_OTHER_SIZE = 0.01  # of a voxel: headers round
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
VOLUME_ENDINGS = NIFTI_ENDINGS + ITK_ENDINGS
FILE_ENDINGS = VOLUME_ENDINGS + PICTURE_ENDINGS


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
        raise InputRefusedError(f"{path.name} {absence(path)}; a NIfTI file, a DICOM folder or a picture is needed")
    if path.is_file() and has_ending(path, NIFTI_ENDINGS):
        volume = _read_nifti(path, options)
    elif path.is_file() and has_ending(path, PICTURE_ENDINGS):
        volume = read_picture(path)
    else:
        with refusing_as(path.name):
            volume = _read_by_dicom_io(path, options)
    if options.directions and STATED.format(options.directions) not in volume.provenance.notes:
        volume = with_notes(
            volume, f"the directions {options.directions} are not used, since the source states its own"
        )
    return _finite(volume, path)


def _read_by_dicom_io(path: Path, options: ReadOptions) -> Volume:
    if path.is_file() and has_ending(path, ITK_ENDINGS):
        volume = read_itk(path, options.directions or _stated_directions(path))
        return volume.with_array(volume.array.astype(np.float32))
    if options.channels:
        return read_channels(path, options.channels, accept_incomplete=options.accept_incomplete)
    return read_scanned(scan_source(path), options)


def _read_nifti(path: Path, options: ReadOptions) -> Volume:
    check_nifti(path, path.name)
    try:
        with opened_nifti(path) as image:
            _check_numbers(image.get_data_dtype(), path)
            # With both codes 0, nibabel takes NIfTI's "method 1": pixel sizes and no orientation
            directions = _check_placed(image.header, path, options)
            if options.before_pixels is not None and len(image.shape) > 2:
                options.before_pixels(image.shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine)
            # dataobj applies scl_slope and scl_inter; the numbers in the file are not the intensities
            stored = np.asanyarray(image.dataobj)
        array = _as_float32(stored, path)
    # A refusal has its reason already; the clause below is for errors of nibabel
    except InputRefusedError:
        raise
    except Exception as error:  # a damaged header makes nibabel fail in any way
        raise not_nifti(path.name, error) from error
    array = _three_axes(array, image.header, path)
    if not array.size:
        raise InputRefusedError(f"{path.name} has shape {array.shape}; at least one voxel is needed; export it again")
    try:
        unit = _units(image.header, path)[0]
        own, notes = image.affine, list[str]()
        if directions:
            own = LPS_FROM_RAS @ lps_from(directions) @ np.diag([*image.header["pixdim"][1:4], 1.0])
            notes.append(STATED.format(directions))
        affine = np.diag([MM_IN.get(unit, 1.0)] * 3 + [1.0]) @ own
        notes += [f"lengths were converted from {unit} to mm"] if unit in MM_IN else []
        return Volume.from_ras(array, affine, Provenance("nifti", files=(path,), notes=tuple(notes)))
    except ValueError as error:
        raise InputRefusedError(
            f"{path.name} does not say where its voxels lie ({error}); a sform or qform with three axes is needed; "
            "export it again"
        ) from error


def _three_axes(array: NDArray[Any], header: Any, path: Path) -> NDArray[Any]:
    """The array with the axes X, Y, Z and, of several channels, C, as NIfTI orders them: X, Y, Z, time, vector.

    Raises:
        InputRefusedError: There are other axes, or the first looks like channels, which NIfTI has no place for there.
    """
    shape = array.shape
    while array.ndim > 3 and array.shape[-1] == 1:  # many programs write a 3D image so
        array = array[..., 0]
    if array.ndim == 5 and array.shape[3] == 1:  # ITK's channels
        array = array[:, :, :, 0]
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim not in (3, 4):
        raise InputRefusedError(f"{path.name} has shape {shape}; a 3D volume (or 4D with channels last) is needed")
    time_unit = _units(header, path)[1] if len(shape) == 4 else "unknown"
    is_series = time_unit != "unknown"
    # ITK writes channels 1 s apart
    if is_series and array.ndim == 4 and float(header["pixdim"][4]) not in (0, 1):
        raise InputRefusedError(
            f"{path.name} holds {array.shape[3]} time points, {header['pixdim'][4]:g} {time_unit} apart, which are not "
            "channels of one image; save the one that is meant as a file of its own (channels: with a time step of 0)"
        )
    if array.ndim == 4 and len(shape) == 4 and not is_series and array.shape[0] < min(array.shape[3], _CHANNELS_FIRST):
        raise InputRefusedError(
            f"{path.name} has shape {shape}: as NIfTI orders axes, {shape[3]} channels of an image {shape[0]} voxel(s) "
            f"wide; or {shape[0]} channel(s) that stand first; save them as X, Y, Z, channels"
        )
    return array


def _units(header: Any, path: Path) -> tuple[str, str]:
    """Of length and time. Raises InputRefusedError for others than NIfTI has."""
    try:
        space, time = header.get_xyzt_units() if hasattr(header, "get_xyzt_units") else ("mm", "unknown")
    except KeyError as error:
        raise InputRefusedError(
            f"{path.name} states the units {int(header['xyzt_units'])}, which NIfTI does not have; correct xyzt_units, such as "
            "2 for mm"
        ) from error
    return space, time


def _check_numbers(dtype: np.dtype[Any], path: Path) -> None:
    """Raises InputRefusedError if a voxel is not one real number."""
    if dtype.names or dtype.kind == "c":
        kind = "complex" if dtype.kind == "c" else "".join(dtype.names or ()).upper()
        raise InputRefusedError(
            f"{path.name} holds {kind} voxels; one number for each voxel is needed; convert it to grey values"
        )


def _stated_directions(path: Path) -> str | None:
    """`directions` of a `dataset.json` in the folder of a file, or above it."""
    for folder in (path.parent, path.parent.parent):
        with suppress(OSError, ValueError, AttributeError):  # reading the data set gives the reason
            if directions := json_of(folder / "dataset.json").get("directions"):
                return str(directions)
    return None


def _check_placed(header: Any, path: Path, options: ReadOptions) -> str | None:
    """What is stated of the directions of a NIfTI without sform and qform; None for one that has them.

    Raises InputRefusedError if nothing is, if sform and qform name opposite directions, or sform and pixdim other sizes.
    """
    if "sform_code" in header and not (int(header["sform_code"]) or int(header["qform_code"])):
        if directions := options.directions or _stated_directions(path):
            return directions
        raise InputRefusedError(
            f"{path.name} has neither sform nor qform (both codes are 0), so left and right are unknown; an image that states "
            f"its orientation is needed; export it again, or {STATE}"
        )
    if "sform_code" not in header or not int(header["sform_code"]):
        return None
    sform, sizes = header.get_sform()[:3, :3], np.linalg.norm(header.get_sform()[:3, :3], axis=0)
    stated = np.abs(header["pixdim"][1:4].astype(float))
    counts = [
        n for n in range(3) if header["dim"][n + 1] > 1 and n < header["dim"][0] and stated[n] > 0 and sizes[n] > 0
    ]
    if np.linalg.det(sform) and any(abs(sizes[n] / stated[n] - 1) > _OTHER_SIZE for n in counts):
        raise InputRefusedError(
            f"{path.name} has voxels of {_by(sizes)} mm by its sform and of {_by(stated)} mm by its pixdim; one size is "
            "needed; an affine map to a template is not the patient's space: save the image with that of its scan"
        )
    if int(header["qform_code"]):
        qform = header.get_qform()[:3, :3]
        directions = (sform / sizes * qform / np.linalg.norm(qform, axis=0)).sum(axis=0)
        if np.linalg.det(sform) * np.linalg.det(qform) < 0 or directions.min() < 0:
            raise InputRefusedError(
                f"{path.name} has a sform and a qform whose axes run in opposite directions, so left and right are unknown; "
                "two that agree are needed; export it again, or remove the wrong one"
            )
    return None


def _by(lengths: Iterable[float]) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths)


def _as_float32(stored: NDArray[Any], path: Path) -> NDArray[np.float32]:
    """The values of any shape. Raises InputRefusedError if float32 has too few digits to distinguish them."""
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, which `_finite` refuses
        array = stored.astype(np.float32)
    if not stored.size:
        return array
    ends = np.array([array.min(), array.max()])  # NaN if any voxel is; `_finite` refuses it later
    if not np.isfinite(ends).all() or np.abs(ends).max() < EXACT:
        return array
    low, high = float(stored.min()), float(stored.max())
    lost = float(np.abs(stored - array.astype(stored.dtype)).max())
    if lost > (high - low) * LARGEST_LOSS:
        raise InputRefusedError(
            f"{path.name} holds values around {low:.3g} that differ by {high - low:.3g} at most, too little for float32 to "
            "distinguish them; subtract the smallest value first"
        )
    return array


def read_picture(path: Path, *, classes: bool = False) -> Volume:
    """A 2D picture as a screen shows it: turned as its EXIF orientation says, with every bit and channel that the file has.

    Args:
        path: PNG, JPEG, TIFF, BMP or GIF.
        classes: Whether its numbers are classes: a palette's indices then, unless its colours are black and white alone.

    Returns:
        Planar, shape (I, J, 1) or (I, J, 1, C), float32, with I along the width; without transparency.

    Raises:
        InputRefusedError: The file is broken, or holds several pictures.
    """
    try:
        pixels, orientation = _of_tiff(path, classes=classes) or _of_pillow(path, classes=classes)
    except Image.DecompressionBombError as error:
        raise InputRefusedError(f"{path.name} is too large ({error}); check the file, or cut it into parts") from error
    except UnreadableFileError as error:
        raise InputRefusedError(str(error)) from error
    # Pillow raises SyntaxError for a broken PNG
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputRefusedError(
            f"{path.name} cannot be read as a picture ({one_line(error)}); a whole PNG, JPEG or TIFF is needed; copy it again"
        ) from error
    # Rows and columns; I runs along the width
    array = np.moveaxis(_TURNED.get(orientation, np.asarray)(pixels), 0, 1)[:, :, None]
    return Volume(array.astype(np.float32), np.eye(4), Provenance("image", files=(path,)), planar=True)


_TURNED: Mapping[Any, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: np.swapaxes(array, 0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: np.swapaxes(array[::-1, ::-1], 0, 1),
    8: lambda array: np.rot90(array),
}
"""What EXIF's orientation does to rows and columns. Source: CIPA DC-008, 4.6.5.1, Orientation."""


def _several(path: Path, count: int) -> InputRefusedError:
    return InputRefusedError(
        f"{path.name} holds {count} pictures; one is needed; save each as a file of its own, or a volume as NIfTI"
    )


def _of_pillow(path: Path, *, classes: bool) -> tuple[NDArray[Any], Any]:
    """Rows and columns of a picture, (R, C) or (R, C, 3), and its orientation."""
    with Image.open(path) as opened:
        if (count := getattr(opened, "n_frames", 1)) > 1:
            raise _several(path, count)
        tile: Any = getattr(opened, "tile", None) or ((None, None, None, ""),)
        is_deep = opened.format == "PNG" and str(tile[0][3]).endswith(";16B") and not opened.mode.startswith("I")
        # Image.open reads the header only; a truncated file fails here
        opened.load()
        if classes and "A" in opened.getbands() and opened.getchannel("A").getextrema()[0] != 255:
            raise InputRefusedError(
                f"{path.name} is a mask with transparent pixels, which may be labelled or not; a mask without transparency is "
                "needed; save it without an alpha channel"
            )
        if classes and opened.format == "JPEG" and not np.isin(np.asarray(opened), (0, 255)).all():
            raise InputRefusedError(
                f"{path.name} is a JPEG, which changes class numbers; a mask is needed as its program drew it; save it as PNG"
            )
        orientation = opened.getexif().get(ExifTags.Base.Orientation)
        if not is_deep:
            return np.asarray(_without_palette(opened, classes=classes)), orientation
    try:
        samples = imagecodecs.png_decode(path.read_bytes())  # Pillow cuts them to 8 bits
    except Exception as error:  # a damaged file makes the codec fail in any way
        raise ValueError(one_line(error)) from error
    return samples[..., : (samples.shape[-1] - 1) // 2 * 2 + 1], orientation  # of 2 and 4, the last is transparency


def _without_palette(picture: Image.Image, *, classes: bool) -> Image.Image:
    """Grey values or colours; of classes in a palette of more than black and white the indices."""
    if picture.mode == "P":
        coloured = picture.convert("RGB")
        colours = {*map(tuple, np.unique(np.asarray(coloured).reshape(-1, 3), axis=0).tolist())}
        return picture if classes and not colours <= {(0, 0, 0), (255, 255, 255)} else coloured
    if picture.mode in ("L", "RGB", "I;16", "I;16B", "I", "F"):
        return picture
    return picture.convert("RGB" if picture.mode in ("PA", "RGBA", "CMYK", "YCbCr") else "L")


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _of_tiff(path: Path, *, classes: bool) -> tuple[NDArray[Any], Any] | None:
    """As `_of_pillow`, with every channel but transparency; None for files of other kinds, and those that Pillow reads whole.

    Pillow cuts colours to 8 bits, wraps numbers around, leaves channels out, and turns a picture of 90 degrees wrongly.
    """
    with path.open("rb") as stream:
        if stream.read(4) not in _TIFF:
            return None
    import tifffile  # which takes a third of a second

    kinds = tifffile.PHOTOMETRIC
    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            if classes and page.photometric == kinds.MINISWHITE:
                raise InputRefusedError(
                    f"{path.name} stores white as 0 (MINISWHITE), as ImageJ does for black objects and others for white ones, "
                    "so which of its numbers is the object is unknown; save it as PNG, or with an ordinary lookup table"
                )
            orientation = getattr(page.tags.get("Orientation"), "value", 1)
            hidden = [
                n for n, kind in enumerate(page.extrasamples, page.samplesperpixel - len(page.extrasamples)) if kind
            ]
            if page.photometric == kinds.RGB and page.samplesperpixel == 4 and not page.extrasamples:
                hidden = [3]
            is_plain = (
                page.dtype in (np.uint8, np.bool_) and page.samplesperpixel - len(hidden) in (1, 3) and orientation == 1
            )
            if is_plain or page.photometric not in (kinds.MINISWHITE, kinds.MINISBLACK, kinds.RGB):
                return None
            if len(file.pages) > 1:
                raise _several(path, len(file.pages))
            check_claim(
                path.name, page.shape, page.dtype.itemsize, path.stat().st_size, is_packed=page.compression != 1
            )
            samples = page.asarray()
            if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1:
                samples = np.moveaxis(samples, 0, -1)
            if page.photometric == kinds.MINISWHITE:
                samples = np.iinfo(samples.dtype).max - samples
            return (np.delete(samples, hidden, axis=2) if samples.ndim == 3 else samples), orientation
    except (InputRefusedError, UnreadableFileError):
        raise
    except Exception as error:  # a damaged file makes tifffile fail in any way
        raise ValueError(one_line(error)) from error


def volume_of_array(array: Any, affine_ras: NDArray[np.float64] | None) -> Volume:
    """The volume of an array, under the rules for files.

    Args:
        array: Shape (I, J, K) or (I, J, K, C); or of a picture (I, J) or (I, J, C). Any real numbers.
        affine_ras: Shape (4, 4): array index to RAS mm; None for a picture.

    Raises:
        InputRefusedError: As `read_volume`; or another shape.
    """
    values, name = np.asarray(array), Path("the array")
    if values.dtype.kind not in "buif":
        raise InputRefusedError(f"the array holds {values.dtype} values; one real number for each voxel is needed")
    found = _as_float32(values, name)
    try:
        if affine_ras is None:
            volume = Volume(found[:, :, None], np.eye(4), Provenance("image"), planar=True)
        else:
            volume = Volume.from_ras(found, affine_ras)
    except (IndexError, ValueError) as error:
        raise InputRefusedError(f"the array of shape {found.shape} cannot be placed: {error}") from error
    return _finite(volume, name)


def _finite(volume: Volume, path: Path) -> Volume:
    # Plane by plane, in their order in memory: the answer for all voxels would be a quarter of the volume.
    bad = volume.array.size - sum(np.count_nonzero(np.isfinite(plane)) for plane in volume.array.T)
    if bad:
        raise InputRefusedError(
            f"{path.name} has {bad} NaN or infinite voxel(s) of {volume.array.size}; finite values are needed; correct the "
            "export or replace them by the value of air"
        )
    return volume
