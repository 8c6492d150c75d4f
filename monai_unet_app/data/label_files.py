"""Reads a label file as whole numbers on the grid of its image; `labels` says what the numbers mean."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from dicom_io.read import ReadOptions
from dicom_io.volume import Volume
from monai_unet_app.data.case_files import SHOWN, first_names
from monai_unet_app.data.read import PICTURE_ENDINGS, has_ending, read_picture, read_volume
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.boxes import bounding_box

WHITE = 255
OUTSIDE = 0.5 + 1e-3
"""Of a voxel, that a corner of a grid may lie beyond the outermost centres of another one."""

GRID_TOLERANCE = 0.1
"""Of a voxel along each axis: how far a label may lie beside its image. Programs round the spacings that they write."""

WHOLE_TOLERANCE = 1e-3
"""How far a label value may be from a whole number: floats that were stored as scaled integers come back so close."""


def stored_labels(path: Path, options: ReadOptions | None = None) -> Volume:
    """A label file as it is, shape (I, J, K), or (I, J, K, C); of a picture with a palette the indices.

    Args:
        path: Of a volume or a picture.
        options: As of `read_volume`.

    Raises:
        InputRefusedError: As `read_volume`; or a picture is coloured.
    """
    if not has_ending(path, PICTURE_ENDINGS):
        return read_volume(path, options)
    picture = read_picture(path, classes=True)
    grey = picture.channel(0)
    if (picture.channels != grey.array).any():
        raise InputRefusedError(
            f"label {path.name} is coloured; a grey picture is needed, black and white or with class numbers, or one with a "
            "palette; convert it"
        )
    return grey


def as_mask(array: NDArray[Any]) -> NDArray[Any]:
    """The numbers of a picture, of which 255 is 1 if it has 0 and 255 alone."""
    return np.minimum(array, 1) if array.max(initial=0) == WHITE and np.isin(array, (0, WHITE)).all() else array


def is_black_and_white(files: Iterable[Path], stated: Collection[int] = (), ignored: int | None = None) -> bool:
    """Whether those pictures of a data set that hold 0 and 255 alone are masks in black and white: `white` of `FileValues`.

    Args:
        files: All label files.
        stated: The label values that have a name.
        ignored: The value of voxels without a class.

    Raises:
        InputRefusedError: 255 may be another class, or mean no class.
    """
    held = {
        file: set(np.unique(stored_labels(file).array).tolist()) for file in files if has_ending(file, PICTURE_ENDINGS)
    }
    masks = [file.name for file, values in held.items() if WHITE in values <= {0, WHITE}]
    others = {int(value) for values in held.values() if not values <= {0, WHITE} for value in values} - {0}
    if not masks or ignored == WHITE or set(stated) - {1}:
        return False
    if others and not stated:
        raise InputRefusedError(
            f"{first_names(masks)} of {len(held)} label(s) hold 0 and 255 alone, others {sorted(others)[:SHOWN]}; what 255 "
            "means is needed; give --ignore 255 for pixels without a class, --structure VALUE=NAME for each value, or "
            "--structure 1=NAME where 255 is white, the same as 1"
        )
    return WHITE not in others


def whole_numbers(array: NDArray[Any], what: str) -> NDArray[Any]:
    """The array, each value of which is a whole number now; any shape, of integers or floats.

    Args:
        array: Every value lies within WHOLE_TOLERANCE of a whole number.
        what: Its file, to begin a sentence with.

    Raises:
        InputRefusedError: A value lies farther away.
    """
    if array.dtype.kind != "f":
        return array
    whole: NDArray[Any] = np.rint(array)
    for given, near in zip(array.T, whole.T, strict=True):  # planes: the difference of all would be another array
        away = np.abs(given - near)
        if away.max(initial=0) > WHOLE_TOLERANCE:
            raise InputRefusedError(
                f"{what} holds {given.flat[away.argmax()]:.5g}, which is no whole number; one class number for each "
                f"voxel, within {WHOLE_TOLERANCE}, is needed; export class numbers, and no probabilities or interpolated labels"
            )
    return whole


def on_grid_of_image(labels: Volume, image: Volume, what: str) -> Volume:
    """The labels on the very grid of their image, voxel by voxel.

    Args:
        labels: Shape (I, J, K), or (I, J, K, C).
        image: Of the same shape; no voxel lies farther away than GRID_TOLERANCE.
        what: The labels' file, to begin a sentence with.

    Raises:
        InputRefusedError: Another shape or place.
    """
    if labels.shape != image.shape:
        raise InputRefusedError(
            f"{what} has shape {labels.shape}, its image {image.shape}; the same grid is needed; export the label on the "
            "image's grid"
        )
    apart = image.voxels_apart(labels) if image.has_patient_space else 0.0
    if apart > GRID_TOLERANCE:
        raise InputRefusedError(
            f"{what} lies {image.distance_mm(labels):.2f} mm away from its image, {apart:.2f} voxels along one axis; at most "
            f"{GRID_TOLERANCE} of a voxel is needed; export the label on the image's grid"
        )
    return replace(labels, affine_lps=image.affine_lps)


def part_on_grid(labels: Volume, image: Volume, name: str) -> NDArray[Any]:
    """Labels on the grid of an image, shape (I, J, K), 0 outside the box that the file `name` covers.

    Raises:
        InputRefusedError: Some lie beyond the image.
    """
    step = np.linalg.solve(labels.affine_lps, image.affine_lps)  # index of the image -> index of the labels
    box = bounding_box(labels.array, (0, 0, 0))
    if box is not None:
        ends = np.array(list(product(*((side.start, side.stop - 1) for side in box))))
        index = np.linalg.solve(step, np.c_[ends, np.ones(8)].T)[:3]
        if (np.maximum(-index, index - np.reshape(image.shape, (3, 1)) + 1) > OUTSIDE).any():
            raise InputRefusedError(
                f"segments of {name} reach beyond the image; those that were drawn on it are needed; take the image that they "
                "belong to"
            )
    return np.asarray(
        affine_transform(labels.array, step[:3, :3], step[:3, 3], image.shape, order=0, mode="grid-constant")
    )
