"""Images of the package `itk` in and out, and a DICOM series read by ITK alone, to check values and positions.

ITK uses LPS millimetres, as we do. It is imported where it is used, because the import takes seconds and 400 MB.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.itk_files import direction_cosines
from dicom_io.volume import Provenance, Volume
from monai_unet_app.errors import InputRefusedError


def volume_from_itk(image: Any) -> Volume:
    """The voxels of an `itk.Image` with their position in the patient.

    Args:
        image: Three dimensions, of numbers or of vectors (`itk.VectorImage`, `itk.Image[itk.Vector, 3]`, RGB).

    Returns:
        A copy of the values with their own type, shape (I, J, K), or (I, J, K, C) for vectors; affine in LPS mm.

    Raises:
        InputRefusedError: The image has not three dimensions.
    """
    import itk

    if image.GetImageDimension() != 3:
        raise InputRefusedError(
            f"the itk image has {image.GetImageDimension()} dimensions; 3 are needed; give each volume separately"
        )
    affine_lps = np.eye(4)
    # ITK's direction has a unit vector in each column; the spacing scales the columns
    affine_lps[:3, :3] = itk.array_from_matrix(image.GetDirection()) @ np.diag(list(image.GetSpacing()))
    affine_lps[:3, 3] = list(image.GetOrigin())
    array = np.moveaxis(itk.array_from_image(image), (0, 1, 2), (2, 1, 0))  # ITK's arrays are (K, J, I) or (K, J, I, C)
    first = list(image.GetBufferedRegion().GetIndex())  # not (0, 0, 0) in a cropped image
    affine_lps[:3, 3] += affine_lps[:3, :3] @ first
    return Volume(array, affine_lps, Provenance("array"))


def itk_from_volume(volume: Volume) -> Any:
    """An `itk.Image` with the values and the position of a volume; several channels make a vector image.

    Raises:
        InputRefusedError: The volume is a picture without patient space, or its grid is sheared, which ITK cannot hold.
    """
    import itk

    if not volume.has_patient_space:
        raise InputRefusedError(
            "a picture has no position in the patient, and an itk image needs a position; give the array to itk yourself"
        )
    cosines = direction_cosines(volume)
    if cosines is None:
        raise InputRefusedError(
            "the grid is sheared (gantry tilt), which an itk image cannot hold; read the series with --resample-tilt first"
        )
    values = np.ascontiguousarray(np.moveaxis(volume.array, (0, 1, 2), (2, 1, 0)))
    image = itk.image_from_array(values, is_vector=volume.array.ndim == 4)
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(volume.affine_lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(cosines)))
    return image


def read_by_itk(files: Sequence[Path]) -> Volume:
    """A series of single-slice files as ITK reads it: sorted, positioned and rescaled by ITK alone.

    Args:
        files: All files of one series, in any order.

    Returns:
        Shape (I, J, K) in ITK's own order of the axes, float32, affine in LPS mm.

    Raises:
        InputRefusedError: ITK cannot read the files, or does not take them for one series.
    """
    import itk

    folders = {str(path.parent) for path in files}
    names = itk.GDCMSeriesFileNames.New()
    # With details, ITK would divide a series by further attributes; here the SeriesInstanceUID alone counts
    names.SetUseSeriesDetails(False)
    if len(folders) != 1:
        raise InputRefusedError(f"the series lies in {len(folders)} folders; one is needed; copy its files together")
    names.SetDirectory(folders.pop())
    all_series = [list(names.GetFileNames(uid)) for uid in names.GetSeriesUIDs()]
    own_files = {str(path) for path in files}
    in_order = next((series for series in all_series if set(series) == own_files), None)
    if in_order is None:
        raise InputRefusedError(
            f"ITK finds series of {', '.join(str(len(series)) for series in all_series) or 'no'} files where our reader has "
            f"{len(own_files)}; one series a folder is needed; copy its files into a folder of their own"
        )
    # By default ITK replaces a sheared direction (gantry tilt) by an orthogonal one, which would hide a difference
    reader = itk.ImageSeriesReader[itk.Image[itk.F, 3]].New(FileNames=in_order, ForceOrthogonalDirection=False)
    reader.SetImageIO(itk.GDCMImageIO.New())
    try:
        reader.Update()
    except RuntimeError as error:
        raise InputRefusedError(
            f"ITK cannot read the series ({str(error).strip().splitlines()[-1][:160]}); ask for another copy"
        ) from error
    return volume_from_itk(reader.GetOutput())


def check_by_itk(volume: Volume) -> float:
    """Reads the files of a volume again by ITK and compares the position and the value of every voxel.

    Args:
        volume: From `read_series`, of single-slice files, not resampled.

    Returns:
        Largest absolute difference of two values, in units of the image.

    Raises:
        InputRefusedError: ITK cannot read the series, or has the voxels at other positions; the message gives the distance.
    """
    try:
        # ITK may have other axes and signs; on_grid_of transposes and flips, and refuses what would need interpolation
        by_itk = read_by_itk(volume.provenance.files).on_grid_of(volume)
    except ValueError as error:
        raise InputRefusedError(f"ITK reads the series at another position: {error}") from error
    return float(np.abs(by_itk.array - volume.array).max())
