"""Label maps of any program, on the grid of the image that they belong to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from dicom_io.coding import Segment
from dicom_io.volume import Volume, corner_indices, number_type
from monai_unet_app.data.case_files import case_id
from monai_unet_app.data.coding import named_as
from monai_unet_app.data.read import PICTURE_ENDINGS, VOLUME_ENDINGS, has_ending, read_volume
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.boxes import Box, bounding_box

_MOST_OVERLAPPING = 2**32  # voxels of masks that share voxels
_OUTSIDE = 0.5 + 1e-3  # of a voxel, that a corner of the image may lie beyond the outermost centres of the labels


def numbered(labels: NDArray[Any], values: Sequence[int]) -> NDArray[Any]:
    """Label values, whole numbers of any shape, with these values as 1, 2, ... and all others as 0."""
    table = np.zeros(max(*values, int(labels.max())) + 1, number_type(len(values)))
    table[list(values)] = range(1, len(values) + 1)
    found: NDArray[Any] = table[labels]
    return found


@dataclass(frozen=True)
class PlacedMasks:
    """The masks of a folder, one a structure, on the grid of an image.

    Attributes:
        numbers: Shape (I, J, K): 1, 2, ... in the order of their names; where masks overlap, the number of the first.
        names: The name of each, also of those without a voxel: of the file without its ending.
        placed: How they came onto the grid.
        boxes: The box of each mask with its voxels, by its number.
        overlap: Masks share voxels.
    """

    numbers: NDArray[Any]
    names: Mapping[int, str]
    placed: str
    boxes: Mapping[int, tuple[Box, NDArray[np.bool_]]]
    overlap: bool

    def valued(
        self, segments: Sequence[Segment], values: Sequence[int], program: str
    ) -> tuple[NDArray[Any], list[str]]:
        """The masks of these segments as one label map, shape (I, J, K), with these label values; and names of other masks.

        Raises:
            InputRefusedError: Masks share voxels.
        """
        if self.overlap:
            raise InputRefusedError(
                f"masks of {', '.join(list(self.names.values())[:3])} and so on share voxels; statements are about structures "
                "that exclude each other; leave some out"
            )
        by_label = {segment.label: value for segment, value in zip(segments, values, strict=True)}
        found = {number: by_label.get(named_as(name, program)) for number, name in self.names.items()}
        table = np.zeros(max(self.names) + 1, number_type(max(values)))
        for number, value in found.items():
            table[number] = value or 0
        unknown = [self.names[number] for number, value in found.items() if value is None and number in self.boxes]
        numbers: NDArray[Any] = table[self.numbers]
        return numbers, unknown


def placed_masks(folder: Path, source: Volume) -> PlacedMasks:
    """The masks of a folder: NIfTI, NRRD or MetaImage with 0 and 1, each named as its structure; they may overlap."""
    files = mask_files(folder)
    if not files:
        raise InputRefusedError(
            f"{folder.name} holds no mask; NIfTI, NRRD or MetaImage files are needed, each named as its structure"
        )
    numbers, how, overlap = np.zeros(source.shape, number_type(len(files)), order="F"), set[str](), False
    boxes = dict[int, tuple[Box, NDArray[np.bool_]]]()
    for number, file in enumerate(files, 1):
        mask, placed = placed_labels(file, source)
        how.add(placed)
        if (most := int(mask.max())) > 1:
            raise InputRefusedError(
                f"{file.name} holds values up to {most}; a mask has 0 and 1; name a label map by itself as --labels"
            )
        if not most:
            continue
        box = bounding_box(mask, (0, 0, 0))
        assert box is not None
        inside = mask[box] > 0
        boxes[number] = box, inside
        free = inside & (numbers[box] == 0)
        overlap = overlap or bool((free != inside).any())
        numbers[box][free] = number
    if overlap and len(boxes) * numbers.size > _MOST_OVERLAPPING:
        raise InputRefusedError(
            f"{len(boxes)} masks of {folder.name} overlap, and fill {len(boxes) * numbers.size / 1e9:.0f} GB; at most "
            f"{_MOST_OVERLAPPING / 1e9:.0f} GB are held in memory; write them by several calls"
        )
    names = {number: case_id(file) for number, file in enumerate(files, 1)}
    return PlacedMasks(numbers, names, "; ".join(sorted(how)), boxes, overlap)


def mask_files(folder: Path) -> list[Path]:
    """The volumes in a folder, by name."""
    return sorted(file for file in folder.iterdir() if has_ending(file, VOLUME_ENDINGS))


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
