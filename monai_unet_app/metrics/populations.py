"""The populations of voxels in which calibration is counted: chosen by prediction and geometry, never by a voxel's truth.

Labels that are drawn from a model's own probabilities are calibrated by construction, and they are calibrated in every
population here. In the population "truth or prediction" they are not, since it takes in missed voxels because they are missed.
"""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .boundary import Spacing, reach, surface_band
from .boxes import Box, bounding_box
from .overlap import Mask
from .plan import WHOLE, EvaluationPlan


class Populations:
    """The populations of a case; `likely` is chosen by the probabilities, the others by the predicted labels alone.

    Args:
        plan: Widths and names of the populations.
        foreground: Shape (I, J, K) or (I, J). Valid voxels of any class, as predicted.
        spacing_mm: Distance of neighbouring voxels along each axis; 1 for pictures.
        valid: Same shape: voxels that count, or None for all. No population reaches beyond them.
    """

    def __init__(self, plan: EvaluationPlan, foreground: Mask, spacing_mm: Spacing, valid: Mask | None = None) -> None:
        self.plan, self.valid = plan, valid
        self._foreground, self._spacing_mm = foreground, spacing_mm

    @cached_property
    def band(self) -> Mask:
        """Shape (I, J, K) or (I, J), boolean: the band around the predicted surface."""
        # It has no surface at invalid voxels; the other populations are only cut there.
        return surface_band(self._foreground, self._spacing_mm, self.plan.band_width, valid=self.valid)

    @cached_property
    def box(self) -> Mask:
        """Same shape, boolean: in and around the box of the predicted foreground."""
        return box_around(self._foreground, self._spacing_mm, self.plan.box_margin)

    def within(self, slab: Box, probabilities: NDArray[Any]) -> dict[str, Mask | None]:
        """A mask of the slab for each name of `plan.every_population`; None for every voxel of it.

        Args:
            slab: Where it lies, a slice for each axis of the grid.
            probabilities: Shape (C, ...) with the grid of the slab, as delivered.
        """
        chosen = {
            self.plan.band: self.band[slab],
            self.plan.likely: self.plan.outputs.likely(probabilities, self.plan.likely_above),
            self.plan.box: self.box[slab],
        }
        if self.valid is None:
            return {WHOLE: None, **chosen}
        valid = self.valid[slab]
        return {WHOLE: valid, **{name: mask & valid for name, mask in chosen.items()}}


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
