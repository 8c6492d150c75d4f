"""Arrays to NIfTI files, on the grid of their volume."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from dicom_io.volume import Volume


def write_nifti(array: NDArray[Any], volume: Volume, path: Path) -> Path:
    """Writes values on the volume's grid, (I, J, K) or (I, J, K, C), with scanner millimetres (sform code 1).

    A sheared grid gets no qform, because NIfTI's quaternion cannot hold shear and some readers prefer the qform to the sform.
    """
    nibabel.save(nifti_image(array, volume), path)
    return path


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
