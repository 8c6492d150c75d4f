"""The populations of voxels in which calibration is counted: chosen by prediction and geometry, never by a voxel's truth.

Labels that are drawn from a model's own probabilities are calibrated by construction, and they are calibrated in every
population here. In the population "truth or prediction" they are not, since it takes in missed voxels because they are missed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .boundary import Spacing, reach, surface_band
from .boxes import bounding_box
from .overlap import Mask
from .plan import WHOLE, EvaluationPlan


def populations(
    plan: EvaluationPlan, foreground: Mask, probabilities: NDArray[Any], spacing_mm: Spacing, valid: Mask | None = None
) -> dict[str, Mask | None]:
    """A mask for each name of `plan.every_population`; None for every voxel of the image.

    Args:
        plan: Widths and names of the populations.
        foreground: Shape (I, J, K) or (I, J). Valid voxels of any class, as predicted.
        probabilities: Shape (C, I, J, K) or (C, I, J), as delivered.
        spacing_mm: Distance of neighbouring voxels along each axis; 1 for pictures.
        valid: Voxels that count, or None for all. No population reaches beyond them.
    """
    chosen: dict[str, Mask | None] = {
        WHOLE: valid,
        plan.band: surface_band(foreground, spacing_mm, plan.band_width, valid=valid),
        plan.likely: likely_foreground(probabilities, plan),
        plan.box: box_around(foreground, spacing_mm, plan.box_margin),
    }
    if valid is not None:  # the band has no surface at invalid voxels; the other populations are only cut there
        chosen = {name: valid if mask is None else mask & valid for name, mask in chosen.items()}
    return chosen


def likely_foreground(probabilities: NDArray[Any], plan: EvaluationPlan) -> Mask:
    """Voxels whose probability of foreground is greater than `plan.likely_above`.

    For exclusive classes that is 1 minus the probability of the background, for overlapping labels the largest probability of
    any label.

    Args:
        probabilities: Shape (C, ...), 0 to 1.
        plan: The kind of the classes and the limit.

    Returns:
        Shape (...).
    """
    if plan.exclusive:
        return np.asarray(probabilities[0] < 1 - plan.likely_above)
    return np.asarray(probabilities.max(axis=0) > plan.likely_above)


def box_around(foreground: Mask, spacing_mm: Spacing, margin_mm: float) -> Mask:
    """Voxels whose centre lies at most `margin_mm` outside the smallest index box around a mask, along each axis.

    Args:
        foreground: Shape (I, J, K) or (I, J).
        spacing_mm: Voxel size along each axis.
        margin_mm: 0 or more.

    Returns:
        Same shape. All False for an empty mask.
    """
    box = np.zeros_like(foreground)
    # `reach` as for distances: 0.3 mm at a spacing of 0.1 mm are 3 voxels, although 0.3 / 0.1 is less than 3 in binary.
    window = bounding_box(foreground, margin=[int(reach(margin_mm) / step) for step in spacing_mm])
    if window is not None:
        box[window] = True
    return box
