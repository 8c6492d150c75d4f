"""Fingerprints of files, data sets and images, by which they are recognised under any name and in any folder."""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

from dicom_io.volume import Volume
from monai_unet_app.data.read import read_volume

BLOCKS_3D, BLOCKS_2D = (4, 4, 4), (8, 8, 1)  # number of blocks along each axis; their means are the fingerprint
STEPS_PER_DEVIATION, LARGEST = 31, 127  # steps for one standard deviation; the largest step of a signed byte
STEPS_APART = 2  # rounding the voxels to 8 bits moves the mean of a block by no more


def file_sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes, or of the bytes of all files below a folder in order of their names."""
    path, digest = Path(path), hashlib.sha256()
    # Sorted, because a file system lists a folder in any order
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                hashlib.file_digest(
                    stream, lambda: digest
                )  # piece by piece: a SEG may be larger than the memory that is left
    return digest.hexdigest()


def dataset_sha256(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hex digest over the id, the image and the label of every case; the order and the folders do not matter."""
    lines = [
        f"{row['id']} {key} {file_sha256(file)}\n"
        for row in sorted(rows, key=lambda row: row["id"])
        for key in ("image", "label")
        for file in ([row[key]] if isinstance(row[key], str) else row[key])
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def image_fingerprint(volume: Volume) -> str:
    """Shape and coarse content as text, "35x51x35:0a1b..."; the picture cannot be restored from it.

    The volume is reoriented to RAS and cut into blocks. The means of the blocks, centred and divided by their standard
    deviation, are rounded to bytes. `same_image` recognises an image after compressing, renaming, reorienting, rescaling
    its values, or rounding them to integers of DICOM, but not after cropping or resampling.
    """
    return _fingerprint(in_ras(volume), volume.planar)


def seen_entry(row: Mapping[str, Any]) -> dict[str, str]:
    """The entry of a case in `run.json` and `calibration.json`: its subject and the fingerprint of its image."""
    return {"subject": row["subject"], "image": image_fingerprint(read_volume(row["image"]))}


def mirrored_fingerprints(volume: Volume) -> list[str]:
    """The fingerprints of the image and of its mirror images along any of its axes; that of the image is the first."""
    array = in_ras(volume)
    axes = [axis for axis in range(3) if array.shape[axis] > 1]
    # The voxels are flipped, not the means: array_split makes the first blocks longer, so that the blocks of a mirror
    # image have other borders
    mirrored_axes = (chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count))
    return [_fingerprint(np.flip(array, chosen), volume.planar) for chosen in mirrored_axes]


def same_image(fingerprint: str, other: str) -> bool:
    """Whether two fingerprints are those of the same image."""
    return _steps_apart(fingerprint, other) <= STEPS_APART


def _steps_apart(fingerprint: str, other: str) -> float:
    """Largest difference of two fingerprints in steps; infinite for images of different shapes."""
    (shape, steps), (other_shape, other_steps) = fingerprint.split(":"), other.split(":")
    if shape != other_shape or len(steps) != len(other_steps):
        return np.inf
    a, b = (np.frombuffer(bytes.fromhex(text), np.int8).astype(int) for text in (steps, other_steps))
    return float(np.abs(a - b).max())


def place_among(volume: Volume, fingerprints: Iterable[str]) -> int | None:
    """Place of the fingerprint that is of this image, mirrored or not; None if none is.

    Of several that are near enough the nearest, since images of one kind may be alike; of equal ones the first.
    """
    own = mirrored_fingerprints(volume)
    apart = [min(_steps_apart(one, other) for other in own) for one in fingerprints]
    place = min(range(len(apart)), key=apart.__getitem__, default=None)
    return place if place is not None and apart[place] <= STEPS_APART else None


def in_ras(volume: Volume) -> NDArray[Any]:
    """The mean over channels, shape (I, J, K), reoriented to RAS if the volume lies in the patient."""
    array: NDArray[Any] = volume.array.mean(axis=3) if volume.array.ndim == 4 else volume.array
    return turned_to_ras(array, volume)


def turned_to_ras(array: NDArray[Any], volume: Volume) -> NDArray[Any]:
    """The values of a volume, shape (I, J, K) or (I, J, K, C), in RAS order; those of a picture as they are."""
    # A NIfTI and the DICOM series made from it differ in the order of their axes; in RAS they do not (decision 11)
    return array if volume.planar else apply_orientation(array, io_orientation(volume.affine_ras))


def _fingerprint(array: NDArray[Any], planar: bool) -> str:
    means = np.asarray(array, dtype=np.float64)
    for axis, count in enumerate(BLOCKS_2D if planar else BLOCKS_3D):
        blocks = np.array_split(means, min(count, array.shape[axis]), axis)
        means = np.concatenate([block.mean(axis=axis, keepdims=True) for block in blocks], axis)
    # Centred and scaled, so that a rescaled copy of the image has the same steps; 1 for a constant image
    deviation = means.std() or 1.0
    steps = np.clip(np.rint((means - means.mean()) / deviation * STEPS_PER_DEVIATION), -LARGEST, LARGEST)
    return f"{'x'.join(map(str, array.shape))}:{steps.astype(np.int8).tobytes().hex()}"
