"""Whether the borders between windows can be seen in probabilities that were put together from windows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def seam_error(probabilities: NDArray[Any], seams: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """How much larger the steps across the seams are than the other steps along the same axis; 1 is as smooth as elsewhere.

    A step is the difference of two neighbouring voxels in a channel. Its absolute value is averaged over all channels and over
    all voxels of the planes.

    Args:
        probabilities: Shape (C, I, J, K) or (C, I, J).
        seams: For each axis I, J, K the planes in which windows meet; n is the plane between voxel n - 1 and voxel n.
            An axis with a single window has no plane.

    Returns:
        A ratio for each axis, 0 or more. NaN if an axis has no seam or only seams, or if there are no steps at all; infinite if
        only the seams have steps.

    Raises:
        ValueError: The number of lists is not the number of axes, or a plane does not lie between two voxels.
    """
    shape = probabilities.shape[1:]
    if len(seams) != len(shape):
        raise ValueError(f"seams were given for {len(seams)} axes, the probabilities have {len(shape)}; one list each")
    return tuple(_ratio(probabilities, axis, planes) for axis, planes in enumerate(seams, start=1))


def _ratio(probabilities: NDArray[Any], axis: int, planes: Sequence[int]) -> float:
    size = probabilities.shape[axis]
    wrong = [plane for plane in planes if not 0 < plane < size]
    if wrong:
        raise ValueError(
            f"seams along axis {axis - 1} hold {wrong}; planes from 1 to {size - 1} lie between two voxels"
        )
    # Plane by plane, so that only two slices at a time are held in float64.
    steps = np.array([_mean_step(probabilities, axis, plane) for plane in range(1, size)])
    at_seam = np.isin(np.arange(1, size), planes)
    if not at_seam.any() or at_seam.all():
        return float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):  # the documented NaN and infinity
        return float(steps[at_seam].mean() / steps[~at_seam].mean())


def _mean_step(probabilities: NDArray[Any], axis: int, plane: int) -> float:
    """Mean absolute value of the steps across a plane."""
    before, after = (probabilities.take(n, axis=axis).astype(np.float64) for n in (plane - 1, plane))
    return float(np.abs(after - before).mean())
