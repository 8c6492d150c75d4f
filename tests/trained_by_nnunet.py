"""Folders that nnU-Net trained, and its label files of regions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESULTS = Path(__file__).resolve().parent / "nnunet_results"


def painted(labels: NDArray[Any], name: str) -> NDArray[Any]:
    """One label map, shape (I, J, K); of regions as nnU-Net paints them, one over the other."""
    if labels.ndim == 3:
        return labels
    values = json.loads((RESULTS / name / "dataset.json").read_text())["regions_class_order"]
    out = np.zeros(labels.shape[1:], np.uint8)
    for mask, value in zip(labels, values, strict=True):
        out[mask > 0] = value
    return out
