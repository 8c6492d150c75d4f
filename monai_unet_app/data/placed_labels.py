"""Label maps of any program, on the grid of the image that they belong to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from dicom_io.volume import Volume, corner_indices, number_type
from monai_unet_app.data.read import PICTURE_ENDINGS, VOLUME_ENDINGS, has_ending, read_volume
from monai_unet_app.errors import InputRefusedError

_OUTSIDE = 0.5 + 1e-3  # of a voxel, that a corner of the image may lie beyond the outermost centres of the labels


def numbered(labels: NDArray[Any], values: Sequence[int]) -> NDArray[Any]:
    """Label values, whole numbers of any shape, with these values as 1, 2, ... and all others as 0."""
    table = np.zeros(max(*values, int(labels.max())) + 1, number_type(len(values)))
    table[list(values)] = range(1, len(values) + 1)
    found: NDArray[Any] = table[labels]
    return found


def placed_labels(file: Path, source: Volume) -> tuple[NDArray[Any], str]:
    """The whole numbers of a label file on the grid of the source, shape (I, J, K), and how they came there.

    Voxels of another grid are found by the affine of the file: each voxel of the source gets the value at the nearest centre.
    """
    if not has_ending(file, VOLUME_ENDINGS + PICTURE_ENDINGS):
        raise InputRefusedError(
            f"{file.name} is no label file; NIfTI, NRRD, MetaImage or, for a picture, a grey picture is needed; export it so"
        )
    labels = read_volume(file)
    array, largest = labels.array, np.iinfo(np.uint16).max
    low, high = float(array.min()), float(array.max())
    whole = all((plane == np.rint(plane)).all() for plane in array.T)
    if array.ndim != 3 or low < 0 or high > largest or not whole:
        raise InputRefusedError(
            f"{file.name} has the shape {array.shape} and values from {low:g} to {high:g}; one whole number "
            f"from 0 to {largest} for each voxel is needed; probabilities are no labels"
        )
    labels = labels.with_array(array.astype(number_type(high)))
    try:
        return labels.on_grid_of(source).array, "on the grid of the series"
    except ValueError:
        step = np.linalg.solve(labels.affine_lps, source.affine_lps)  # index of the source -> index of the labels
    corners = (step @ corner_indices(source.shape))[:3]
    last = np.reshape(labels.shape, (3, 1)) - 1
    beyond = np.maximum(-corners, corners - last).max(axis=1) - _OUTSIDE  # in voxels of the labels, by axis
    if (beyond > 0).any():
        raise InputRefusedError(
            f"{file.name} ends {float((beyond * labels.spacing_mm).max()):.1f} mm before the image does; labels of the whole "
            "image are needed; take those that were made of it"
        )
    nearest = affine_transform(labels.array, step[:3, :3], step[:3, 3], source.shape, order=0, mode="nearest")
    return nearest, f"from a grid of {' x '.join(map(str, labels.shape))} voxels, by the nearest centre"
