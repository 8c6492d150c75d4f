"""The uncertainty of probabilities."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LEAST = 1e-12  # smallest probability whose logarithm is taken


def normalised_entropy(probabilities: NDArray[Any], *, exclusive: bool) -> NDArray[np.float32]:
    """How undecided the network is at each voxel: 0 is sure, 1 means that all answers are equally likely.

    Args:
        probabilities: Shape (C, ...), 0 to 1.
        exclusive: Channels sum to 1: the entropy over the channels, divided by its largest possible value. Otherwise the
            largest entropy of any channel against its absence.

    Returns:
        Shape (...), 0 to 1.
    """
    # float64, since 1 - 1e-12 would be 1 in float32.
    p = np.clip(probabilities.astype(np.float64), _LEAST, 1.0)
    # The largest entropy of C exclusive classes is log C, that of a single label log 2.
    if exclusive:
        entropy = -(p * np.log(p)).sum(axis=0) / np.log(len(p))
    else:
        rest = np.clip(1.0 - p, _LEAST, 1.0)
        entropy = (-(p * np.log(p) + rest * np.log(rest)) / np.log(2.0)).max(axis=0)
    # The floor of the probabilities and rounding can carry the quotient a little beyond 0 to 1.
    return np.asarray(np.clip(entropy, 0.0, 1.0), dtype=np.float32)
