"""What masks above a threshold miss of the truth, counted slab by slab."""

import numpy as np
import pytest

from monai_unet_app.metrics.missed import MissedVoxels

THRESHOLDS = (0.01, 0.3, 0.5)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("axis", [0, 2])
def test_slabs_count_what_masks_of_the_whole_miss(exclusive, axis):
    rng = np.random.default_rng(4)
    p = rng.random((4, 11, 9, 7)).astype(np.float32) ** 3
    p[:, 4] = np.float32(0.01)  # exactly a threshold, in single precision: part of the mask
    labels = rng.integers(0, 3, (11, 9, 7)).astype(np.uint8)
    truth = labels if exclusive else np.stack([labels == 1, labels == 2, labels == 3])
    p = p if exclusive else p[1:]
    counter = MissedVoxels(truth, 3, THRESHOLDS)
    for start, stop in ((6, 99), (0, 2), (2, 6)):
        slab = tuple(slice(start, stop) if n == axis else slice(None) for n in range(3))
        counter.add(slab, p[(slice(None), *slab)])
    for n in range(2):
        inside = p[n + exclusive][truth == n + 1 if exclusive else truth[n]]
        expected = [(~(inside >= np.float32(cut))).mean() for cut in THRESHOLDS]
        assert 0 < expected[0] < expected[1] < expected[2] < 1
        assert counter.parts[n].tolist() == expected
    assert np.isnan(counter.parts[2]).all()  # of nothing, nothing can be missed
