"""Segmentations from masks and probabilities, for tests of what is stated about results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.sr.codedict import codes

from dicom_io.coding import Segment, Whole
from dicom_io.segmentation import Segmentation
from dicom_io.volume import Volume


def segments(*labels: str) -> tuple[Segment, ...]:
    """Brain structures of these names, numbered from 1."""
    kind = codes.SCT.AnatomicalStructure, codes.SCT.Brain
    return tuple(Segment(number, label, *kind) for number, label in enumerate(labels, start=1))


def exclusive(
    image: Volume, masks: Sequence[NDArray[Any]], probabilities: Sequence[NDArray[Any]] | None = None, *wholes: Whole
) -> Segmentation:
    """Segments a, b, ... that share no voxel, with the probability of each, shape (I, J, K); else their masks as floats."""
    labels = np.zeros(image.shape, np.uint8)
    for number, mask in enumerate(masks, start=1):
        labels[mask] = number
    known = np.stack([mask.astype(np.float32) for mask in masks] if probabilities is None else list(probabilities))
    names = segments(*"abcdefgh"[: len(masks)])
    return Segmentation(image, labels, names, np.concatenate([1 - known.sum(0, keepdims=True), known]), wholes)
