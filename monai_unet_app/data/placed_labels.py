"""Label maps of any program, on the grid of the image that they belong to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from dicom_io.coding import Segment
from dicom_io.itk_files import slicer_segments
from dicom_io.read import ReadOptions
from dicom_io.volume import Volume, corner_indices, number_type
from monai_unet_app.data.case_files import case_id
from monai_unet_app.data.coding import named_as
from monai_unet_app.data.label_files import OUTSIDE, as_mask, part_on_grid, stored_labels, whole_numbers
from monai_unet_app.data.read import PICTURE_ENDINGS, VOLUME_ENDINGS, has_ending, read_volume
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.boxes import Box, bounding_box

_MOST_OVERLAPPING = 2**32  # voxels of masks that share voxels
_FROM_ANOTHER = "from a grid of"


@dataclass(frozen=True)
class PlacedLabels:
    """A label map, or the masks of a folder, one a structure, on the grid of an image.

    Attributes:
        numbers: Shape (I, J, K): label values; of masks 1, 2, ... in the order of their names, where they overlap that of the
            first.
        present: The values that have voxels, rising.
        placed: How they came onto the grid.
        names: Of masks: the name of each, also of those without a voxel: of the file without its ending.
        boxes: Of masks that share voxels: the box of each with its voxels, by its number.
    """

    numbers: NDArray[Any]
    present: Sequence[int]
    placed: str
    names: Mapping[int, str] = field(default_factory=dict)
    boxes: Mapping[int, tuple[Box, NDArray[np.bool_]]] = field(default_factory=dict)

    @property
    def resampled(self) -> bool:
        """Whether some lay on another grid, so that each voxel got the value at the nearest centre."""
        return _FROM_ANOTHER in self.placed

    def numbered(self, values: Sequence[int]) -> NDArray[Any]:
        """With these values as 1, 2, ... and all others as 0: shape (I, J, K), or where masks overlap (S, I, J, K)."""
        if not self.boxes:
            table = np.zeros(max([*values, *self.present]) + 1, number_type(len(values)))
            table[list(values)] = range(1, len(values) + 1)
            return np.asarray(table[self.numbers])
        channels = np.zeros((len(values), *self.numbers.shape), np.uint8)
        for channel, value in zip(channels, values, strict=True):
            box, voxels = self.boxes[value]
            channel[box] = voxels
        return channels

    def renumbered(self, meant: Mapping[int, int], name: str) -> "PlacedLabels":
        """With other values for some of its own.

        Args:
            meant: Own value -> the value that it becomes.
            name: Of the file, for a message.

        Raises:
            InputRefusedError: A value that stays would be taken for one that another becomes.
        """
        changed = {value: other for value, other in meant.items() if value != other}
        if not changed:
            return self
        if mixed := [value for value in self.present if value not in meant and value in changed.values()]:
            raise InputRefusedError(
                f"{name} holds the value {mixed[0]}, of which its names say nothing, while another value is called what "
                f"{mixed[0]} is called elsewhere; name every value"
            )
        largest = max([*meant.values(), *meant, *self.present])
        table = np.arange(largest + 1, dtype=number_type(largest))
        for value, other in changed.items():
            table[value] = other
        return replace(
            self, numbers=table[self.numbers], present=sorted(meant.get(value, value) for value in self.present)
        )

    def known(
        self, segments: Sequence[Segment], values: Sequence[int], program: str
    ) -> tuple["PlacedLabels", list[str]]:
        """As a label map of these segments with these values; and values, or names of masks, that are of none of them.

        Raises:
            InputRefusedError: Masks share voxels.
        """
        if self.boxes:
            raise InputRefusedError(
                f"masks of {', '.join(list(self.names.values())[:3])} and so on share voxels; statements are about structures "
                "that exclude each other; leave some out"
            )
        if not self.names:
            return self, [str(value) for value in self.present if value not in values]
        by_label = {segment.label: value for segment, value in zip(segments, values, strict=True)}
        found = {number: by_label.get(named_as(name, program), 0) for number, name in self.names.items()}
        table = np.zeros(max(found) + 1, number_type(max(values)))
        table[list(found)] = list(found.values())
        own = sorted(found[number] for number in self.present if found[number])
        unknown = [self.names[number] for number in self.present if not found[number]]
        return PlacedLabels(table[self.numbers], own, self.placed), unknown


def placed_labels(
    place: Path, source: Volume, *, white: bool = False, options: ReadOptions | None = None
) -> PlacedLabels:
    """The labels of a file, or of a folder of masks: NIfTI, NRRD or MetaImage with 0 and 1, each named as its structure.

    Args:
        place: The file or the folder.
        source: Whose grid they get.
        white: As of `FileValues`.
        options: Directions of files that state none; other options do not matter.
    """
    if place.is_dir():
        return _placed_masks(place, source, options)
    if len({layer for _, layer, _ in slicer_segments(place)}) > 1:
        return _placed_layers(place, source)
    numbers, placed = _on_grid(place, source, options, white=white)
    return PlacedLabels(numbers, [value for value in np.unique(numbers).tolist() if value], placed)


def _placed_masks(folder: Path, source: Volume, options: ReadOptions | None) -> PlacedLabels:
    files = mask_files(folder)
    if not files:
        raise InputRefusedError(
            f"{folder.name} holds no mask; NIfTI, NRRD or MetaImage files are needed, each named as its structure"
        )
    numbers, how, overlap = np.zeros(source.shape, number_type(len(files)), order="F"), set[str](), False
    boxes = dict[int, tuple[Box, NDArray[np.bool_]]]()
    for number, file in enumerate(files, 1):
        mask, placed = _on_grid(file, source, options)
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
    return PlacedLabels(numbers, list(boxes), "; ".join(sorted(how)), names, boxes if overlap else {})


def _placed_layers(file: Path, source: Volume) -> PlacedLabels:
    """Segments of 3D Slicer in several layers, by their values, or as they stand in the file; they may share voxels."""
    stored, numbers = read_volume(file), np.zeros(source.shape, np.uint16)
    names, boxes, overlap = dict[int, str](), dict[int, tuple[Box, NDArray[np.bool_]]](), False
    segments = slicer_segments(file)
    apart = len({value for _, _, value in segments}) == len(segments)
    if (last := max(layer for _, layer, _ in segments)) >= len(stored.channels):
        raise InputRefusedError(
            f"{file.name} names the layer {last} and has {len(stored.channels)}; a layer for each segment is needed; save it "
            "again"
        )
    for place, (name, layer, value) in enumerate(segments, 1):
        number = value if apart else place
        mask = stored.with_array((stored.channels[layer] == value).astype(np.uint8))
        placed, names[number] = part_on_grid(mask, source, file.name) > 0, name
        overlap = overlap or bool((placed & (numbers > 0)).any())
        numbers[placed & (numbers == 0)] = number
        if (box := bounding_box(placed, (0, 0, 0))) is not None:
            boxes[number] = box, placed[box]
    return PlacedLabels(
        numbers, sorted(boxes), "from the part of it that the segments fill", names, boxes if overlap else {}
    )


def mask_files(folder: Path) -> list[Path]:
    """The volumes in a folder, by name."""
    return sorted(file for file in folder.iterdir() if has_ending(file, VOLUME_ENDINGS))


def _on_grid(
    file: Path, source: Volume, options: ReadOptions | None, *, white: bool = False
) -> tuple[NDArray[Any], str]:
    """The whole numbers of a label file on the grid of the source, shape (I, J, K), and how they came there.

    Voxels of another grid are found by the affine of the file: each voxel of the source gets the value at the nearest centre.
    """
    if not has_ending(file, VOLUME_ENDINGS + PICTURE_ENDINGS):
        raise InputRefusedError(
            f"{file.name} is no label file; NIfTI, NRRD, MetaImage or, for a picture, a grey picture is needed; export it so"
        )
    labels, is_part = stored_labels(file, options), bool(slicer_segments(file))
    if labels.array.ndim != 3:
        raise InputRefusedError(
            f"{file.name} has the shape {labels.array.shape}; one whole number for each voxel is needed; export it so"
        )
    array, largest = whole_numbers(labels.array, file.name), np.iinfo(np.uint16).max
    if white and labels.planar:
        array = as_mask(array)
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > largest:
        raise InputRefusedError(
            f"{file.name} has values from {low:g} to {high:g}; whole numbers from 0 to {largest} are needed; number it anew"
        )
    labels = labels.with_array(array.astype(number_type(high)))
    try:
        return labels.on_grid_of(source).array, "on the grid of the series"
    except ValueError:
        if labels.planar or source.planar:
            raise InputRefusedError(
                f"{file.name} has {' x '.join(map(str, labels.shape[:2]))} pixels, its image "
                f"{' x '.join(map(str, source.shape[:2]))}; the same size is needed; save it in the size of the image"
            ) from None
        step = np.linalg.solve(labels.affine_lps, source.affine_lps)  # index of the source -> index of the labels
    if is_part:
        return part_on_grid(labels, source, file.name), "from the part of it that the segments fill"
    corners = (step @ corner_indices(source.shape))[:3]
    last = np.reshape(labels.shape, (3, 1)) - 1
    beyond = np.maximum(-corners, corners - last).max(axis=1) - OUTSIDE  # in voxels of the labels, by axis
    if (beyond > 0).any():
        raise InputRefusedError(
            f"{file.name} ends {float((beyond * labels.spacing_mm).max()):.1f} mm before the image does; labels of the whole "
            "image are needed; take those that were made of it"
        )
    nearest = affine_transform(labels.array, step[:3, :3], step[:3, 3], source.shape, order=0, mode="nearest")
    return nearest, f"{_FROM_ANOTHER} {' x '.join(map(str, labels.shape))} voxels, by the nearest centre"
