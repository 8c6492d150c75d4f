"""Probabilities that another program has written beside its label map.

They come as nnU-Net's .npz, as one file with a channel a class, or as a file a class.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicom_io.volume import Volume
from monai_unet_app.data.case_files import case_id, find_images, first_names
from monai_unet_app.data.read import VOLUME_ENDINGS, has_ending, read_volume
from monai_unet_app.errors import InputRefusedError

SUM_TOLERANCE = 2e-3
"""How far probabilities of a voxel, stored in half precision, may be from 1 in all, and the label's from the largest."""

_KEY = "probabilities"
_MOST_BYTES = 2**32
_LEAST = 1e-6  # of a probability whose logarithm is taken


def probability_files(folder: Path) -> dict[str, list[Path]]:
    """Case id -> its files in a folder: `<id>.npz`, `<id>.nii.gz` with channels, or `<id>_<value>.nii.gz` a class.

    Other endings of volumes are possible, too.
    """
    found = {file.stem: [file] for file in sorted(folder.glob("*.npz"))}
    cases = find_images(folder) if any(has_ending(file, VOLUME_ENDINGS) for file in folder.iterdir()) else []
    ids = {case.id for case in cases}
    for case in cases:
        found.setdefault(case.id, []).extend(case.files)
        name, _, value = case.id.rpartition("_")
        if name and value.isdigit() and name not in ids:
            found.setdefault(name, []).extend(case.files)
    return found


def read_probabilities(
    files: Sequence[Path], label_file: Path, labels: NDArray[Any], image: Volume, values: Sequence[int]
) -> NDArray[np.float32]:
    """The probabilities of an image, on its grid.

    Args:
        files: Of the case, as `probability_files` finds them.
        label_file: The program's label map, whose grid an .npz has.
        labels: The label map on the grid of the image, shape (I, J, K): number n stands for values[n - 1].
        image: Whose grid they are wanted on.
        values: The label value of each structure, which is also the number of its channel: the first channel is the background.

    Returns:
        Shape (1 + structures, I, J, K), 0 to 1: the background first, with what belongs to no structure.

    Raises:
        InputRefusedError: Another grid or another number of classes; values that are no probabilities of classes that exclude
            each other; or labels that are not the likeliest class.
    """
    name = ", ".join(file.name for file in files[:2])
    channels = _of_npz(files[0], label_file) if files[0].suffix == ".npz" else _of_volumes(files, values)
    if channels.array.ndim != 4 or channels.array.shape[3] not in (len(values), *range(max(values) + 1, 1 << 16)):
        count = channels.array.shape[3] if channels.array.ndim == 4 else 1
        raise InputRefusedError(
            f"{name} has {count} channel(s); {max(values) + 1} or more, the background first, or one for each of the values "
            f"{first_names(list(map(str, values)))} are needed"
        )
    try:
        array = channels.on_grid_of(image).array
    except ValueError as error:
        raise InputRefusedError(f"{name} lies on another grid than its image: {error}") from error
    every = np.moveaxis(array, 3, 0).astype(np.float32)
    has_background = len(every) > len(values)
    named, total = every[list(values)] if has_background else every, every.sum(axis=0)
    low, high = float(every.min()), float(every.max())
    if not (low >= 0 and high <= 1 + SUM_TOLERANCE):
        raise InputRefusedError(f"{name} holds values from {low:g} to {high:g}; probabilities from 0 to 1 are needed")
    if float((np.abs(total - 1) if has_background else total - 1).max()) > SUM_TOLERANCE:
        raise InputRefusedError(
            f"the classes of {name} sum to {float(total.min()):.4g} to {float(total.max()):.4g}; 1 within {SUM_TOLERANCE} is "
            "needed; probabilities of structures that may overlap are not taken"
        )
    found = np.concatenate([np.clip(1 - named.sum(axis=0, keepdims=True), 0, 1), named])
    others = [every[value] for value in range(len(every)) if value not in values] if has_background else [found[0]]
    # A voxel without a named structure may have any other class, of which each is held against the structures by itself
    rivals = np.concatenate([np.max(others, axis=0, keepdims=True), named])
    chosen = np.take_along_axis(rivals, labels[None].astype(np.intp), 0)[0]
    wrong = int((chosen < rivals.max(axis=0) - SUM_TOLERANCE).sum())
    if wrong:
        raise InputRefusedError(
            f"at {wrong} voxel(s) the label in {label_file.name} is not the likeliest class of {name}; files of one result, "
            "before post-processing, are needed"
        )
    return found


def tempered(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Shape (C, ...): the probabilities whose logarithms were divided by a temperature; the likeliest class stays so."""
    powers: NDArray[np.float32] = np.maximum(probabilities, np.float32(_LEAST)) ** np.float32(1 / temperature)
    powers /= powers.sum(axis=0)
    return powers


def _of_npz(file: Path, label_file: Path) -> Volume:
    """nnU-Net's: float, shape (C, K, J, I), on the grid of the label map."""
    grid = read_volume(label_file)
    needed = "an .npz that nnUNetv2_predict --save_probabilities wrote is needed"
    try:
        with zipfile.ZipFile(file) as archive, archive.open(f"{_KEY}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, kind = read_header(stream)
        # Before anything is unpacked: a small file can hold a large array
        if len(shape) != 4 or shape[:0:-1] != grid.shape or np.prod(shape) * 4 > _MOST_BYTES or kind.kind != "f":
            raise InputRefusedError(
                f"{file.name} holds {kind} of the shape {shape}, {label_file.name} {grid.shape} voxels; {needed}, of at most "
                f"{_MOST_BYTES / 1e9:.0f} GB"
            )
        with np.load(file, allow_pickle=False) as stored:
            array = stored[_KEY]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputRefusedError(f"{file.name} cannot be read ({error}); {needed}") from error
    return replace(grid, array=array.transpose(3, 2, 1, 0))


def _of_volumes(files: Sequence[Path], values: Sequence[int]) -> Volume:
    """One file with channels, or a file for each value."""
    if len(files) == 1:
        return read_volume(files[0])
    by_value = {int(case_id(file).rpartition("_")[2]): file for file in files}
    if absent := [str(value) for value in values if value not in by_value]:
        raise InputRefusedError(
            f"{files[0].name} and its likes lack the value(s) {first_names(absent)}; a file for each is needed"
        )
    wanted = range(max(by_value) + 1) if set(by_value) == set(range(max(by_value) + 1)) else values
    parts = [read_volume(by_value[value]) for value in wanted]
    if any(part.array.ndim != 3 or part.shape != parts[0].shape for part in parts):
        raise InputRefusedError(f"{files[0].name} and its likes have different shapes; volumes of one grid are needed")
    return replace(parts[0], array=np.stack([part.array for part in parts], axis=3))
