"""How much two masks share. Boolean arrays in, floats out.

Empty masks are treated alike by every score here: both masks empty is 1 (nothing to find, and nothing was invented), exactly
one empty is 0 (everything was missed, or everything was invented).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def check_masks(truth: NDArray[Any], predicted: NDArray[Any]) -> None:
    """Refuses masks, of any shape, that cannot be compared voxel by voxel.

    Raises:
        ValueError: A mask is not boolean, or the two differ in shape.
    """
    for name, mask in (("truth", truth), ("predicted", predicted)):
        # `&` of label values works on their bits: 1 & 2 is 0.
        if mask.dtype != np.bool_:
            raise ValueError(f"{name} has dtype {mask.dtype}; a boolean mask is needed; pass `labels == value`")
    # NumPy would stretch a mask of one slice over the whole volume without a warning.
    if truth.shape != predicted.shape:
        raise ValueError(
            f"truth has shape {truth.shape}, predicted {predicted.shape}; one grid is needed; resample one"
        )


def dice(truth: Mask, predicted: Mask) -> float:
    """Dice coefficient, 2 |T∩P| / (|T| + |P|).

    Args:
        truth: Any shape. Reference mask.
        predicted: Same shape and grid.

    Returns:
        0 to 1. Both masks empty: 1. One empty: 0.

    Raises:
        ValueError: A mask is not boolean, or the two differ in shape.
    """
    check_masks(truth, predicted)
    return _ratio(2 * _count(truth & predicted), _count(truth) + _count(predicted))


def iou(truth: Mask, predicted: Mask) -> float:
    """Intersection over union (Jaccard index), |T∩P| / |T∪P|. Shapes, empties and errors as in `dice`."""
    check_masks(truth, predicted)
    return _ratio(_count(truth & predicted), _count(truth | predicted))


def precision(truth: Mask, predicted: Mask) -> float:
    """Part of the prediction that is true, |T∩P| / |P|; both masks are boolean and of the same shape.

    Returns:
        0 to 1. Both masks empty: 1. One empty: 0, so an empty prediction scores nothing where the truth is not empty.
    """
    check_masks(truth, predicted)
    return _share(_count(truth & predicted), _count(predicted), _count(truth))


def recall(truth: Mask, predicted: Mask) -> float:
    """Part of the truth that is predicted, |T∩P| / |T|, 0 to 1; masks of the same shape. Empty masks as in `precision`."""
    check_masks(truth, predicted)
    return _share(_count(truth & predicted), _count(truth), _count(predicted))


def _count(mask: Mask) -> int:
    return int(np.count_nonzero(mask))


def _ratio(part: int, whole: int) -> float:
    """part / whole; a whole of 0 voxels means that both masks are empty."""
    return part / whole if whole else 1.0


def _share(common: int, own: int, other: int) -> float:
    """common / own; an empty mask is right only if the other mask is empty too."""
    if own:
        return common / own
    return 0.0 if other else 1.0
