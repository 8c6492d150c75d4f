"""What is watched of each result, so that drift can be found later: acquisition of the image, numbers of image and result.

They stand in the line of the result in the audit trail, which outlives studies. None of them names a patient.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dicom_io.errors import DicomIoError
from dicom_io.reading.acquisition import KEYWORDS, acquisition_of
from dicom_io.reading.instances import load_dataset

PREDICTED = "predicted Dice"
"""End of the name of each predicted Dice."""

CONFIDENCE = "confidence"
"""End of the name of the mean probability in each structure."""

FROZEN = "reference frozen"
"""Event of the audit trail: an approver has frozen the results of a rule that later ones are held against."""

_OF_STRUCTURES = {
    "volume_ml": "size",
    "pixels": "size",
    "mean_probability": CONFIDENCE,
    "predicted_dice": PREDICTED,
    "typical_dice": PREDICTED,
    "dice_at_least": "Dice at least",
}
"""Key of a structure in `result.json` -> what its number is called."""

if TYPE_CHECKING:
    from dicom_io.volume import Volume

_MOST_VOXELS = 1 << 22
"""Of an image that is described; of a larger one every second slice, or fewer, is taken."""

_MOST_STRUCTURES = 12
"""Of a result whose numbers are watched, the first ones; of all others their means."""


def observed(image: "Volume", file: Path | None, document: Mapping[str, Any]) -> dict[str, Any]:
    """{"words": keyword -> text, "numbers": name -> number} of a result.

    Args:
        image: The image as it was read.
        file: One of its DICOM files; None of an image that is no DICOM.
        document: The `result.json` of the result.
    """
    numbers = _of_image(image) | _of_result(document)
    told = {name: float(f"{value:.5g}") for name, value in numbers.items() if math.isfinite(value)}
    return {"words": _words(file), "numbers": told}


def _words(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    try:
        return acquisition_of(load_dataset(file, keywords=(*KEYWORDS, "SharedFunctionalGroupsSequence")))
    except DicomIoError:  # the image was read from it; what cannot be described is not watched
        return {}


def _of_image(image: "Volume") -> dict[str, float]:
    """Brightness, contrast, sharpness and evenness of an image, the last two along the axes of the patient, and its grid."""
    from monai_unet_app.data.digest import turned_to_ras

    array = turned_to_ras(image.array, image)
    array = array[..., 0] if array.ndim == 4 else array
    array = array[:, :, :: max(1, math.ceil(array.size / _MOST_VOXELS))]
    low, middle, high = (float(value) for value in np.percentile(array, (1, 50, 99)))
    scaled = np.clip((array.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    numbers = {"brightness": middle, "span": high - low, "relative brightness": float(np.median(scaled))}
    deviation = float(scaled.std()) + 1e-6
    numbers["contrast"] = deviation
    for axis, name in enumerate(("left to right", "back to front", "foot to head")):
        length = scaled.shape[axis]
        if length < 3:
            continue
        step = float(np.abs(np.diff(scaled, axis=axis)).mean())
        planes = scaled.mean(axis=tuple(other for other in range(3) if other != axis), dtype=np.float64)
        numbers |= {f"sharpness {name}": step / deviation}
        numbers |= {f"evenness {name}": float(np.linspace(-1, 1, length) @ planes / length / deviation)}
    steps = sorted(image.spacing_mm[: 2 if image.planar else 3])
    return numbers | {"finest spacing": steps[0], "coarsest spacing": steps[-1]}


def _of_result(document: Mapping[str, Any]) -> dict[str, float]:
    """Distance to the training, and size, confidence and predicted Dice of each structure."""
    rows, shift = document["structures"], (document["assessment"] or {}).get("shift")
    numbers = {} if shift is None else {"unlike the training": float(shift)}
    told = [
        (row["label"], name, float(row[key]))
        for row in rows
        for key, name in _OF_STRUCTURES.items()
        if row.get(key) is not None
    ]
    first = {row["label"] for row in rows[:_MOST_STRUCTURES]}
    numbers |= {f"{label}: {name}": value for label, name, value in told if label in first}
    for name in dict.fromkeys(name for _, name, _ in told) if len(rows) > _MOST_STRUCTURES else ():
        numbers[f"mean {name}"] = float(np.mean([value for _, other, value in told if other == name]))
    return numbers
