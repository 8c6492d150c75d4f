"""Labels from a NIfTI, NRRD or MetaImage file, a picture, a DICOM SEG or RTSTRUCT, on the grid of their image."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.coding import WITHOUT_CLASS
from dicom_io.itk_files import slicer_segments
from dicom_io.objects.slice_positions import check_belongs
from dicom_io.reading.instances import load_dataset
from dicom_io.reading.series import files_at, scan_files
from dicom_io.rtstruct import read_rtstruct
from dicom_io.seg import described_segments, read_seg, read_segments, segment_numbers
from dicom_io.volume import Volume
from monai_unet_app.data.case_files import CaseFiles, Row
from monai_unet_app.data.label_files import (
    WHITE,
    as_mask,
    on_grid_of_image,
    part_on_grid,
    stored_labels,
    whole_numbers,
)
from monai_unet_app.data.nifti import nifti_header
from monai_unet_app.data.read import (
    NIFTI_ENDINGS,
    PICTURE_ENDINGS,
    VOLUME_ENDINGS,
    has_ending,
    read_volume,
)
from monai_unet_app.errors import BundleError, InputRefusedError, refusing_as

MOST_OBJECTS = 65535
"""In an image, since files number them in 16 bits."""


@dataclass(frozen=True)
class FileValues:
    """Which values of label files stand for which structure: `label_values` of an `inference.yaml`.

    Attributes:
        values: The value of each structure, in the order of their numbers; () for the numbers themselves.
        objects: Every value above 0 is the only structure: files that number objects.
        ignored: A value that stays as it is: the bundle's `ignore_label`, of voxels that have no class.
        regions: Of structures that may share voxels: the values that each consists of, in the order of their numbers.
        masks: Number of structures that may share voxels, where labels are a mask for each: a file, a channel or a segment.
        instances: Every value above 0 is an object of the only structure, and stays.
        white: A picture of 0 and 255 alone is a mask in black and white, of structure 1. In any other file 255 is a value like
            others.
        structures: Number of structures, where a bundle knows it.
    """

    values: tuple[int, ...] = ()
    objects: bool = False
    ignored: int | None = None
    regions: tuple[tuple[int, ...], ...] = ()
    masks: int = 0
    instances: bool = False
    white: bool = False
    structures: int = 0

    @classmethod
    def parse(cls, told: object, ignored: int | None = None) -> "FileValues":
        """From the value in the YAML file: a list of numbers or of lists, "objects", "instances", {"masks": S}, or None.

        Raises:
            BundleError: For anything else.
        """
        if ignored == 0:
            raise BundleError(
                "ignore_label is 0, the background; another value is needed; correct it in inference.yaml"
            )
        if told is None or told in ("objects", "instances"):
            return cls((), told == "objects", ignored, instances=told == "instances", white=ignored != WHITE)
        if isinstance(told, dict) and list(told) == ["masks"] and isinstance(told["masks"], int) and told["masks"] > 0:
            return cls(ignored=ignored, masks=told["masks"], white=ignored != WHITE)
        entries = list(told) if isinstance(told, list) else []
        regions = tuple(tuple(entry) if isinstance(entry, list) else (entry,) for entry in entries)
        values = [value for region in regions for value in region]
        is_distinct = len({frozenset(region) for region in regions}) == len(regions) and all(regions)
        if not values or not all(isinstance(value, int) and value > 0 for value in values) or not is_distinct:
            raise BundleError(
                f"label_values is {told!r}; a list with the value, or the list of values, of each structure in label files, or "
                "the word objects or instances, or the number of masks, is needed; see docs/bundles.md"
            )
        if ignored in values:
            raise BundleError(
                f"ignore_label is {ignored}, which label_values gives to a structure as well; a value of its own is needed; "
                "correct one of them in inference.yaml"
            )
        if any(isinstance(entry, list) for entry in entries):
            return cls(ignored=ignored, regions=regions)
        return cls(tuple(values), ignored=ignored)

    @property
    def collapsed(self) -> "FileValues":
        """The same, but for objects: these are one structure."""
        return replace(self, objects=True, instances=False) if self.instances else self

    def of_row(self, row: Row) -> "FileValues":
        """What they stand for in the label of a case: the names in it may say otherwise, see `label_names`."""
        return replace(self, values=tuple(row["label_values"])) if "label_values" in row else self

    def for_structures(self, count: int) -> "FileValues":
        """The same for a bundle of so many structures: of several, white pixels do not say which."""
        white = self.white and (self.masks > 0 or self.instances or count == 1)
        return replace(self, white=white, structures=count)

    def known(self, numbers: Sequence[int]) -> Sequence[int]:
        """What labels may hold whose structures have these numbers, 0 included."""
        return range(MOST_OBJECTS + 1) if self.instances else numbers

    @property
    def overlap(self) -> bool:
        """Whether structures may share voxels: labels are masks, channels last, and no numbers."""
        return self.masks > 0 or bool(self.regions)

    def numbered(self, array: NDArray[Any], name: str) -> NDArray[Any]:
        """Label values of a file, any shape, as numbers of structures; of regions a mask for each, channels last.

        Args:
            array: Whole numbers.
            name: Of the file, for a message.

        Raises:
            InputRefusedError: A value stands for no structure, or is below 0.
        """
        if array.size and array.min() < 0:
            below = array[(array < 0) & (array != self.ignored)]
            if below.size:
                raise InputRefusedError(
                    f"label {name} holds the value {int(below.min())}, and {below.size} voxel(s) below 0; values from 0 are "
                    "needed, 0 for the background; change them in the label file"
                )
        if (self.instances or self.objects) and array.size and (most := int(array.max())) > MOST_OBJECTS:
            raise InputRefusedError(
                f"label {name} holds the value {most}; numbers of objects up to {MOST_OBJECTS} are needed; number them anew"
            )
        if self.objects:
            return np.where(array == self.ignored, array, array > 0).astype(array.dtype)
        if self.regions:
            return self._masks(array, name)
        if not self.values:
            return array
        numbers = {0: 0, **{value: n for n, value in enumerate(self.values, 1)}}
        if self.ignored is not None:
            numbers[self.ignored] = self.ignored
        result = np.empty_like(array)
        for plane, numbered in zip(
            array.T, result.T, strict=True
        ):  # planes, since np.unique takes many times their memory
            found, places = np.unique(plane, return_inverse=True)
            if unknown := sorted({int(value) for value in found} - set(numbers)):
                raise InputRefusedError(
                    f"label {name} holds the value(s) {unknown}; the bundle's `label_values` are {list(self.values)}; change "
                    "them in the label file, or state them in inference.yaml"
                )
            numbered[:] = np.array([numbers[int(value)] for value in found])[places].reshape(plane.shape)
        return result

    def _masks(self, array: NDArray[Any], name: str) -> NDArray[np.uint8]:
        """Shape (..., S), 0 and 1: the mask of each region; the ignored value stays, in all channels."""
        known = {0, self.ignored, *(value for region in self.regions for value in region)} - {None}
        masks = np.zeros((*array.shape, len(self.regions)), np.uint8)
        for plane, filled in zip(np.moveaxis(array, -1, 0), np.moveaxis(masks, -2, 0), strict=True):
            if unknown := sorted({int(value) for value in np.unique(plane)} - known):
                regions = [list(region) for region in self.regions]
                raise InputRefusedError(
                    f"label {name} holds the value(s) {unknown}; the regions in the bundle's `label_values` are {regions}; "
                    "change them in the label file, or state them in inference.yaml"
                )
            for channel, region in enumerate(self.regions):
                filled[..., channel] = np.isin(plane, region)
            if self.ignored is not None:
                filled[plane == self.ignored] = self.ignored
        return masks


AS_NUMBERED = FileValues()


def as_numbers(labels: Volume) -> Volume:
    """Masks, shape (I, J, K, S), as numbers of structures, shape (I, J, K): where several lie, the last; numbers unchanged."""
    if labels.array.ndim == 3:
        return labels
    numbers = np.zeros(labels.shape, np.float32)
    for number, mask in enumerate(labels.channels, 1):
        numbers[mask == 1] = number
    return labels.with_array(numbers)


def read_labels(files: str | Path | Sequence[str | Path], image: Volume, values: FileValues = AS_NUMBERED) -> Volume:
    """The labels on the grid of their image.

    Args:
        files: The label file, or a folder with one SEG or RTSTRUCT; or the masks of all structures, in their order.
        image: Shape (I, J, K) or (I, J, K, C).
        values: What the values of the file stand for.

    Returns:
        Shape (I, J, K), float32, whole numbers; 0 is the background. Of structures that may share voxels (I, J, K, S): 0 and 1.

    Raises:
        InputRefusedError: The label has another shape or position than the image or is the image, its values are no whole
            numbers or below 0, or the file cannot be read. Or masks share voxels where structures may not.
    """
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
    masks = _read_masks(paths, image, values)
    if masks is None:
        labels = read_label_numbers(paths[0], image, values)
        numbers = values.numbered(labels.array, paths[0].name)
    else:
        labels, numbers = (
            masks,
            masks.array if values.overlap else _exclusive(masks.array, values.ignored, paths[0].name),
        )
    return labels.with_array(numbers.astype(np.float32, copy=False))


def _read_masks(paths: Sequence[Path], image: Volume, values: FileValues) -> Volume | None:
    """A mask for each structure, shape (I, J, K, S), 0 and 1; None for one file of numbers where no number of masks is told.

    Where one of them has the ignored value, all have it.
    """
    first, structures = paths[0], values.masks
    if len(paths) > 1:
        found = [read_label_numbers(path, image, replace(values, white=values.ignored != WHITE)) for path in paths]
        masks = found[0].with_array(np.stack([mask.array for mask in found], axis=-1))
    elif has_ending(first, VOLUME_ENDINGS) and (structures or mask_count(first) > 1):
        masks = on_grid_of_image(read_volume(first), image, f"label {first.name}")
        own = structures or values.structures
        if masks.array.ndim == 4 and masks.array.shape[3] != own and is_one_hot(masks.array, values.ignored):
            masks = masks.with_array(masks.array[..., 1:])
    elif structures and not has_ending(first, PICTURE_ENDINGS):
        masks = _read_segments(first, image, values)
    else:
        return None
    if values.ignored is not None and masks.array.ndim == 4:
        ignored = (masks.array == values.ignored).any(axis=3, keepdims=True)
        masks = masks.with_array(np.where(ignored, values.ignored, masks.array))
    if masks.array.ndim != 4 or not np.isin(masks.array, [0, 1, values.ignored or 0]).all():
        raise InputRefusedError(
            f"label {first.name} has shape {masks.array.shape} and values up to {masks.array.max():g}; a mask of 0 and 1 for "
            "each structure, in channels, segments or files, is needed; export it so"
        )
    return masks


def is_one_hot(masks: NDArray[Any], ignored: int | None = None) -> bool:
    """Whether every voxel is in one of several masks, shape (..., S), or ignored: then the first is the background."""
    counted = (masks.sum(axis=-1) == 1) | (masks[..., 0] == ignored)
    return masks.shape[-1] > 1 and bool(counted.all())


def masks_of(cases: Sequence[CaseFiles], named: int = 0, ignored: int | None = None) -> int:
    """Number of structures that have a mask each in the labels of a data set; 0 where labels are numbers.

    Of channels that are classes one-hot the first is the background and does not count, unless as many structures are named.

    Args:
        cases: Some have labels.
        named: Number of structures that the user, or the data set, names.
        ignored: The value of voxels without a class.
    """
    counts = [len(case.masks) + 1 if case.masks else mask_count(case.label) for case in cases if case.label]
    most = max(counts, default=1)
    first = next((case.label for case in cases if case.label and not case.masks), None)
    if most > 1 and named != most and first and has_ending(first, VOLUME_ENDINGS):
        with suppress(InputRefusedError):  # reading all cases gives the reason
            return most - is_one_hot(read_volume(first).array, ignored)
    return most if most > 1 else 0


def mask_count(path: Path) -> int:
    """Channels of a volume file of labels by its header, or segments of a SEG that may overlap; 1 for any other label."""
    with suppress(Exception):  # of a damaged file; reading it gives the reason
        if has_ending(path, NIFTI_ENDINGS):
            shape = nifti_header(path).get_data_shape()
            return int(shape[3]) if len(shape) == 4 else 1
        if not has_ending(path, VOLUME_ENDINGS + PICTURE_ENDINGS):
            found = scan_files(files_at(path)).series[0]
            if found.kind == "seg" and load_dataset(found.files[0]).get("SegmentsOverlap") == "YES":
                return max(set(segment_numbers(found.files[0])) - {_segment_without_class(found.files[0])})
    return 1


def has_unlabelled_segment(path: Path) -> bool:
    """Whether a label is a SEG with a segment of voxels that have no class, as `dicomize` writes it."""
    with suppress(Exception):  # of a damaged file; reading it gives the reason
        if not has_ending(path, VOLUME_ENDINGS + PICTURE_ENDINGS):
            found = scan_files(files_at(path)).series[0]
            return found.kind == "seg" and _segment_without_class(found.files[0]) is not None
    return False


def _segment_without_class(file: Path) -> int | None:
    return next((one.number for one in described_segments(file) if one.type == WITHOUT_CLASS), None)


def _read_segments(path: Path, image: Volume, values: FileValues) -> Volume:
    """The segments of a SEG as masks, each in the channel of its number; its voxels without a class get the ignored value."""
    with refusing_as(f"label {path.name}"):
        (file,) = scan_files(files_at(path)).series[0].files
        check_belongs(load_dataset(file), image)
        found, numbers = read_segments(file, image), list(segment_numbers(file))
        without = None if values.ignored is None else _segment_without_class(file)
        if max(set(numbers) - {without}, default=0) > values.masks:
            raise InputRefusedError(
                f"it has a segment {max(set(numbers) - {without})}; the bundle has {values.masks} structures; renumber it"
            )
    masks = np.zeros((*image.shape, values.masks), np.uint8)
    for place, number in enumerate(numbers):
        if number != without:
            masks[..., number - 1] = found.array[..., place]
    if without in numbers and values.ignored is not None:
        masks[found.array[..., numbers.index(without)] > 0] = values.ignored
    return found.with_array(masks)


def _exclusive(masks: NDArray[Any], ignored: int | None, name: str) -> NDArray[Any]:
    """Numbers of structures, shape (I, J, K), from masks that share no voxel. Raises InputRefusedError if they do."""
    if ignored is not None:
        is_ignored = masks[..., 0] == ignored
        return np.where(is_ignored, ignored, _exclusive(np.where(is_ignored[..., None], 0, masks), None, name))
    shared = int(((masks > 0).sum(axis=3) > 1).sum())
    if shared:
        raise InputRefusedError(
            f"label {name}: its masks share {shared} voxel(s); a bundle whose outputs are exclusive has one structure a voxel; "
            "plan a bundle for these labels, whose structures may overlap"
        )
    return np.asarray((masks * np.arange(1, masks.shape[3] + 1)).sum(axis=3))


def read_label_numbers(path: Path, image: Volume, values: FileValues = AS_NUMBERED) -> Volume:
    """The same labels in the type of their file, if it holds whole numbers; those of a full-size image take less memory so.

    Args and errors are those of `read_labels`, for one file; of `values`, `ignored` and `white` count.
    """
    if not has_ending(path, VOLUME_ENDINGS + PICTURE_ENDINGS):
        labels = _read_dicom_labels(path, image, values.ignored)
    else:
        labels = stored_labels(path)
        if labels.array.ndim == 3 and slicer_segments(path):
            labels = image.with_array(part_on_grid(labels, image, path.name))
        labels = on_grid_of_image(labels, image, f"label {path.name}")
        if _is_channel_of(labels.array, image):
            raise InputRefusedError(
                f"label {path.name} is its image, voxel for voxel; class numbers are needed; replace it by the label of "
                "this case"
            )
    array = labels.array if labels.array.dtype.kind in "bui" else labels.array.astype(np.float32, copy=False)
    if array.ndim != 3:
        raise InputRefusedError(
            f"label {path.name} has shape {array.shape}; one class number for each voxel is needed; export it so"
        )
    array = whole_numbers(array, f"label {path.name}")
    return labels.with_array(as_mask(array) if values.white and has_ending(path, PICTURE_ENDINGS) else array)


def _is_channel_of(array: NDArray[Any], image: Volume) -> bool:
    """Whether the values are those of the image, or of one of its channels, and not all the same."""
    alike = array.ndim == 3 and any(
        all(np.array_equal(own, other) for own, other in zip(array.T, channel.T, strict=True))
        for channel in image.channels
    )
    return alike and bool((array != array.flat[0]).any())


def check_values(labels: Volume, known: Collection[int], name: str) -> None:
    """Raises InputRefusedError for label values that the bundle does not know, or for another number of masks."""
    if labels.array.ndim == 4:
        found, structures = labels.array.shape[3], next(number for number in count(1) if number not in known) - 1
        if found != structures:
            raise InputRefusedError(
                f"label {name} holds {found} mask(s); one for each of {structures} structures is needed; export it so"
            )
        return
    unknown = unknown_values(labels, known)
    if unknown:
        raise InputRefusedError(
            f"label {name} holds the value(s) {unknown}; the bundle has {sorted(known)}; change them in the label file, or "
            "declare them in segments.json and `labels`"
        )


def unknown_values(labels: Volume, known: Iterable[int]) -> list[int]:
    """The label values, whole numbers of any type, that are none of the known ones, rising."""
    array, expected = labels.array, set(known)
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    # The usual case, decided without np.unique
    if expected and min(expected) <= low and high <= max(expected) and expected.issuperset(range(low, high + 1)):
        return []
    return sorted(set(np.unique(array.ravel(order="K")).astype(int).tolist()) - expected)


def _read_dicom_labels(path: Path, image: Volume, ignored: int | None) -> Volume:
    try:
        with refusing_as(f"label {path.name}"):
            found = scan_files(files_at(path)).series[0]
            check_belongs(load_dataset(found.files[0]), image)
            if found.kind == "rtstruct":
                return read_rtstruct(path, image)
            labels, number = read_seg(path, image), _segment_without_class(found.files[0])
            if ignored is None or number is None:
                return labels
            return labels.with_array(np.where(labels.array == number, ignored, labels.array))
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # an object that lacks required attributes
        raise InputRefusedError(
            f"label {path.name} lacks parts of a SEG or RTSTRUCT ({error}); a whole object is needed; export it again"
        ) from error
