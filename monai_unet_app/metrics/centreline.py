"""How well the centre-lines of two masks agree: for vessels, nerves and other long and thin structures."""

import numpy as np

from .components import components
from .overlap import Mask, check_masks


def centreline_dice(truth: Mask, predicted: Mask) -> float:
    """Dice of centre-lines ("clDice"): how much of each mask's centre-line lies within the other mask.

    The harmonic mean of two parts: the part of the predicted centre-line that is in the truth (1 if nothing is invented), and
    the part of the true centre-line that is in the prediction (1 if nothing is missed). A vessel that is too wide or too thin
    does not lower the score; a vessel that is cut or doubled does. Masks are thinned voxel by voxel, without regard to the
    spacing, so with thick slices the centre-line follows the grid.

    Args:
        truth: Shape (I, J, K) or (I, J). Reference mask.
        predicted: Same shape and grid.

    Returns:
        0 to 1. Both masks empty: 1. One empty, or neither centre-line in the other mask: 0.

    Raises:
        ValueError: The masks differ in shape, are not boolean, or are neither 2D nor 3D.

    Source: Shit et al., clDice, CVPR 2021, arXiv:2003.07311 (the hard form of its metric).
    """
    check_masks(truth, predicted)
    if not (truth.any() and predicted.any()):
        return float(truth.any() == predicted.any())
    # Topology sensitivity and topology precision in the words of the paper.
    of_truth, of_predicted = _share_within(centreline(truth), predicted), _share_within(centreline(predicted), truth)
    return 2 * of_truth * of_predicted / (of_truth + of_predicted) if of_truth + of_predicted else 0.0


def centreline(mask: Mask) -> Mask:
    """A mask thinned to lines one voxel wide, same shape: by Zhang and Suen in 2D, by Lee and Kashyap in 3D.

    Every connected part of the mask keeps at least a voxel: thinning in 3D removes some small blocks (2 x 2 x 2) completely,
    and these are kept whole.

    Raises:
        ValueError: The mask is neither 2D nor 3D.
    """
    from skimage.morphology import skeletonize  # half a second that only vessels need

    if mask.ndim not in (2, 3):
        raise ValueError(f"the mask has {mask.ndim} dimensions; 2 or 3 are needed for a centre-line")
    line = skeletonize(mask).astype(bool)  # type: ignore[no-untyped-call]  # scikit-image has no types
    parts, count = components(mask)
    has_line = np.bincount(parts[line], minlength=count + 1) > 0
    has_line[0] = True  # the background, which is no part
    # A part that thinning has removed stands for itself; otherwise clDice would not notice that it was missed or
    # invented.
    return np.asarray(line | ~has_line[parts])


def _share_within(line: Mask, mask: Mask) -> float:
    return np.count_nonzero(line & mask) / np.count_nonzero(line)
