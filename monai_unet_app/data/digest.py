"""Fingerprints of files, data sets and images, to know them again whatever folder they lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

import nibabel
import numpy as np

from dicom_io.volume import Volume

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
    to bytes. Compressing, renaming, turning, mirroring, rescaling, or rounding to DICOM's integers leaves it, up to
    `same_image`; cropping and resampling do not.
    """
    array = volume.array.mean(axis=3) if volume.array.ndim == 4 else volume.array
    if not volume.planar:
        array = nibabel.orientations.apply_orientation(array, nibabel.io_orientation(volume.affine_ras))
    means = np.asarray(array, dtype=np.float64)
    for axis, blocks in enumerate(BLOCKS_2D if volume.planar else BLOCKS_3D):
        parts = np.array_split(means, min(blocks, array.shape[axis]), axis)
        means = np.concatenate([part.mean(axis=axis, keepdims=True) for part in parts], axis)
    spread = means.std() or 1.0
    steps = np.clip(np.rint((means - means.mean()) / spread * STEPS_PER_DEVIATION), -LARGEST, LARGEST)
    return "x".join(map(str, array.shape)) + ":" + steps.astype(np.int8).tobytes().hex()


def same_image(one: str, other: str) -> bool:
    """Whether two fingerprints are of one image, or of one and its mirror image."""
    (shape, steps), (other_shape, other_steps) = one.split(":"), other.split(":")
    if shape != other_shape or len(steps) != len(other_steps):
        return False
    sizes = [int(size) for size in shape.split("x")]
    blocks = (
        BLOCKS_2D
        if len(steps) > 2 * np.prod([min(*pair) for pair in zip(BLOCKS_3D, sizes, strict=True)])
        else BLOCKS_3D
    )
    grid = tuple(min(*pair) for pair in zip(blocks, sizes, strict=True))
    a, b = (np.frombuffer(bytes.fromhex(text), np.int8).astype(int).reshape(grid) for text in (steps, other_steps))
    mirrors = (axes for count in range(4) for axes in combinations(range(3), count))
    return any(np.abs(a - np.flip(b, axes)).max() <= STEPS_APART for axes in mirrors)
