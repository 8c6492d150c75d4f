"""Masks and probabilities on which several implementations are compared: hippocampi moved, eroded and dilated, and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel
import numpy as np
from conftest import EXAMPLES
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
BLOCK = {2: np.ones((3, 3)), 3: np.ones((3, 3, 3))}
CROSS = {rank: ndimage.generate_binary_structure(rank, 1) for rank in (2, 3)}


@dataclass(frozen=True)
class Pair:
    """Two masks of one grid, (I, J, K) or (I, J), and the size of its voxels."""

    truth: Mask
    predicted: Mask
    spacing_mm: tuple[float, ...]


def hippocampus(case: str) -> NDArray[np.uint8]:
    """Labels of an example case: 1 anterior, 2 posterior; voxels of 1 mm."""
    return np.asarray(nibabel.load(EXAMPLES / "labels" / f"hippocampus_{case}.nii.gz").dataobj).astype(np.uint8)


def moved(mask: Mask, steps: Sequence[int]) -> Mask:
    """The mask so many voxels further along each axis; what leaves the image is lost."""
    out = np.zeros_like(mask)
    ends = list(zip(steps, mask.shape, strict=True))
    source = tuple(slice(max(0, -step), size - max(0, step)) for step, size in ends)
    out[tuple(slice(max(0, step), size - max(0, -step)) for step, size in ends)] = mask[source]
    return out


def noise_pair(seed: int, shape: tuple[int, ...] = (17, 14, 11)) -> tuple[Mask, Mask]:
    """Two lopsided masks that overlap in part and touch the image's edge."""
    noise = np.random.default_rng(seed).normal(size=(2, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, *(2, 1.5, 1)[: len(shape)]))
    return smooth[0] > 0, smooth[0] + 0.6 * smooth[1] > 0.01


def islands(seed: int, shape: tuple[int, ...] = (40, 36, 20)) -> tuple[Mask, Mask]:
    """Two masks of some dozen parts, of which about half match."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(2, *shape)), (0, 2, 2, 1))
    level = noise[0].std()
    return noise[0] > 1.2 * level, noise[0] + 0.35 * noise[1] > 1.25 * level


def real_pairs() -> dict[str, Pair]:
    """Hippocampi against changed copies of themselves; the third as if its slices were thick."""
    anterior, posterior, whole = hippocampus("003") == 1, hippocampus("003") == 2, hippocampus("035") > 0
    return {
        "moved": Pair(anterior, moved(anterior, (1, -2, 1)), (1.0, 1.0, 1.0)),
        "eroded": Pair(posterior, ndimage.binary_erosion(posterior), (1.0, 1.0, 1.0)),
        "dilated": Pair(whole, ndimage.binary_dilation(moved(whole, (0, 1, 0))), (0.8, 1.1, 2.5)),
    }


REAL = real_pairs()
PAIRS = REAL | {
    "noise": Pair(*noise_pair(3), (0.8, 1.1, 2.5)),
    "more noise": Pair(*noise_pair(11), (1.0, 1.0, 1.0)),
}


def border(mask: Mask, *, corners: bool = False, edge_counts: bool = True) -> Mask:
    """The mask minus its erosion by scipy, with or without neighbours by corners, the image's edge being outside or not."""
    around = (BLOCK if corners else CROSS)[mask.ndim]
    return mask & ~ndimage.binary_erosion(mask, around, border_value=0 if edge_counts else 1)


def soft_labels(case: str = "003", seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Labels of an example and a softmax for them, (3, I, J, K): the smoothed labels with smooth noise, not calibrated."""
    labels = hippocampus(case)
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(3, *labels.shape)), (0, 1, 1, 1))
    near = np.stack([ndimage.gaussian_filter((labels == value).astype(float), 1.0) for value in range(3)])
    power = np.exp(6 * near + 2.1 * noise)
    return labels, (power / power.sum(axis=0)).astype(np.float32)
