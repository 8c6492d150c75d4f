"""Steps across seams against closed forms."""

import numpy as np
import pytest

from monai_unet_app.metrics.seams import seam_error


def ramp_with_jumps(size, step, jumps):
    """Values along one axis that rise by `step` a voxel and by a further jump across each of the planes."""
    return step * np.arange(size) + sum(jump * (np.arange(size) >= plane) for plane, jump in jumps.items())


def test_a_jump_at_each_seam_is_measured_against_the_slope_elsewhere():
    # Slope 0.01 a voxel along I, jumps that make the steps across the seams 0.04 and 0.08: a mean of 6 slopes.
    along_i = ramp_with_jumps(16, 0.01, {5: 0.03, 11: 0.07})
    # Slope 0.02 along J, a seam across which it falls by 0.03: an amount is meant, not a sign.
    along_j = ramp_with_jumps(9, 0.02, {4: -0.05})
    p = np.stack([along_i[:, None, None] + along_j[:, None] + np.zeros(7)] * 2)
    found = seam_error(p, [(5, 11), (4,), ()])
    assert found[:2] == pytest.approx((6.0, 1.5))
    assert np.isnan(found[2])


def test_the_channels_and_voxels_of_a_plane_weigh_alike():
    p = np.zeros((2, 6, 4))
    p[0] = 0.1 * np.arange(6)[:, None]  # one channel of two rises
    p[1, 3:, :1] = 0.8  # and of the other a quarter jumps at plane 3
    assert seam_error(p, [(3,), ()])[0] == pytest.approx(((0.1 + 0.8 / 4) / 2) / (0.1 / 2))


def test_seams_that_do_not_show_have_the_ratio_one():
    p = np.broadcast_to(0.05 * np.arange(12), (1, 3, 12))
    assert seam_error(p, [(), (4, 8)])[1] == pytest.approx(1.0)


def test_without_seams_or_without_other_planes_there_is_no_ratio():
    p = np.random.default_rng(0).random((2, 4, 5))
    for seams in ([(), ()], [(1, 2, 3), (1, 2, 3, 4)]):
        assert np.isnan(seam_error(p, seams)).all()
    flat = np.ones((1, 4, 5))
    assert np.isnan(seam_error(flat, [(1,), (2,)])).all()
    flat[:, 1:] = 0.5
    assert seam_error(flat, [(1,), ()])[0] == np.inf


def test_steps_of_small_floats_are_taken_in_full():
    p = np.full((1, 9, 2), 0.9, np.float16)
    p[:, ::2] = 0.1
    assert seam_error(p, [(4,), ()])[0] == pytest.approx(1.0)


@pytest.mark.parametrize(("seams", "says"), [([(1,)], "1 axes"), ([(0,), ()], r"\[0\]"), ([(), (5,)], "1 to 4")])
def test_seams_that_lie_nowhere_are_refused(seams, says):
    with pytest.raises(ValueError, match=says):
        seam_error(np.zeros((1, 4, 5)), seams)
