"""Fingerprints of files, data sets and images, to know them again whatever folder they lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from dicom_io.volume import Volume
from monai_unet_app.data.read import read_volume

BLOCKS_3D, BLOCKS_2D = (4, 4, 4), (8, 8, 1)  # whose means make the fingerprint of an image
STEPS_PER_DEVIATION, LARGEST = 31, 127
STEPS_APART = 2  # what rounding the voxels to 8 bits may move a block's mean


def file_sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes, or of the bytes of all files below a folder in order of their names."""
    path, digest = Path(path), hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def dataset_sha256(rows: Iterable[Mapping[str, str]]) -> str:
    """Hex digest over every case's id and the bytes of its image and label; order and folders do not count."""
    lines = [
        f"{row['id']} {key} {file_sha256(row[key])}\n"
        for row in sorted(rows, key=lambda row: row["id"])
        for key in ("image", "label")
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def image_fingerprint(volume: Volume) -> str:
    """Shape and coarse content, from which no picture can be made, as text: "35x51x35:0a1b...".

    The volume is turned to RAS and cut into blocks; the blocks' means, centred and divided by their deviation, are rounded
    to bytes. Compressing, renaming, turning, rescaling, or rounding to DICOM's integers leaves it, up to `same_image`;
    cropping and resampling do not.
    """
    return _fingerprint(_in_ras(volume), volume.planar)


def seen_entry(row: Mapping[str, str]) -> dict[str, str]:
    """What `run.json` and `calibration.json` keep of a case, to know it again: whose it is, and its image's fingerprint."""
    return {"subject": row["subject"], "image": image_fingerprint(read_volume(row["image"]))}


def mirrored_fingerprints(volume: Volume) -> list[str]:
    """The fingerprints of the image and of its mirror images along any of its axes; its own is the first."""
    array = _in_ras(volume)
    axes = [axis for axis in range(3) if array.shape[axis] > 1]
    mirrors = (chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count))
    return [_fingerprint(np.flip(array, chosen), volume.planar) for chosen in mirrors]


def same_image(one: str, other: str) -> bool:
    """Whether two fingerprints are of one image."""
    (shape, steps), (other_shape, other_steps) = one.split(":"), other.split(":")
    if shape != other_shape or len(steps) != len(other_steps):
        return False
    a, b = (np.frombuffer(bytes.fromhex(text), np.int8).astype(int) for text in (steps, other_steps))
    return bool(np.abs(a - b).max() <= STEPS_APART)


def _in_ras(volume: Volume) -> NDArray:
    array = volume.array.mean(axis=3) if volume.array.ndim == 4 else volume.array
    if volume.planar:
        return array
    return nibabel.orientations.apply_orientation(array, nibabel.io_orientation(volume.affine_ras))


def _fingerprint(array: NDArray, planar: bool) -> str:
    means = np.asarray(array, dtype=np.float64)
    for axis, blocks in enumerate(BLOCKS_2D if planar else BLOCKS_3D):
        parts = np.array_split(means, min(blocks, array.shape[axis]), axis)
        means = np.concatenate([part.mean(axis=axis, keepdims=True) for part in parts], axis)
    spread = means.std() or 1.0
    steps = np.clip(np.rint((means - means.mean()) / spread * STEPS_PER_DEVIATION), -LARGEST, LARGEST)
    return "x".join(map(str, array.shape)) + ":" + steps.astype(np.int8).tobytes().hex()
