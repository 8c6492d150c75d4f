"""Boundary scores against geometry (boxes, balls, half-spaces), brute force and MONAI."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from monai_unet_app.metrics import boundary
from monai_unet_app.metrics.boundary import SurfacePair, surface_band, surface_distances

SPACING = (0.8, 1.1, 2.5)


def box(shape, start, size):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def ball(shape, spacing, centre_mm, radius_mm):
    grid = np.indices(shape).reshape(3, -1).T * np.asarray(spacing)
    return (np.linalg.norm(grid - centre_mm, axis=1) <= radius_mm).reshape(shape)


def blobs(seed, shape=(17, 14, 11)):
    """Two lopsided masks that overlap in part and touch the edge of the field of view."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(2, *shape)), (0, 2, 1.5, 1))
    return noise[0] > 0, noise[0] + 0.6 * noise[1] > 0.01


def shell_of_box(shape, start, size, layers):
    """The outer `layers` layers of a box, by comparing indices only."""
    inner = box(shape, [s + layers for s in start], [max(0, n - 2 * layers) for n in size])
    return box(shape, start, size) & ~inner


# --- boundary IoU


def inner_band(mask, spacing, width_mm):
    """The voxels of a mask that boundary IoU counts."""
    return mask & (boundary._distance_to(boundary.border(mask), spacing) <= boundary.reach(width_mm))


@pytest.mark.parametrize(("width_mm", "layers"), [(0.5, 1), (1.0, 2), (2.9, 3), (3.0, 4)])
def test_the_band_of_a_box_is_its_outer_layers_counted_from_the_border_voxel(width_mm, layers):
    shape, start, size = (24, 22, 20), (3, 4, 5), (16, 13, 12)
    found = inner_band(box(shape, start, size), (1.0, 1.0, 1.0), width_mm)
    assert np.array_equal(found, shell_of_box(shape, start, size, layers))


def test_boundary_iou_of_a_shifted_box_is_the_iou_of_the_two_shells():
    shape, size = (26, 22, 20), (16, 13, 12)
    truth, predicted = box(shape, (3, 4, 5), size), box(shape, (4, 5, 5), size)
    shells = [shell_of_box(shape, start, size, 2) for start in ((3, 4, 5), (4, 5, 5))]
    expected = (shells[0] & shells[1]).sum() / (shells[0] | shells[1]).sum()
    assert SurfacePair(truth, predicted, (1, 1, 1)).boundary_iou(1.0) == pytest.approx(expected)
    assert expected < 0.6 < (truth & predicted).sum() / (truth | predicted).sum()


def test_boundary_iou_of_concentric_balls_falls_as_the_band_over_the_shift_says():
    # For a uniform shift s < d: (d - s) / (d + s). On voxels the band is d plus half a voxel deep.
    spacing, shape = (0.25, 0.25, 0.25), (104, 104, 104)
    centre, shift, d = (12.9, 12.8, 12.7), 0.75, 2.0
    truth, predicted = ball(shape, spacing, centre, 11.5), ball(shape, spacing, centre, 11.5 - shift)
    depth = d + 0.125
    expected = (depth - shift) / (depth + shift)
    assert SurfacePair(truth, predicted, spacing).boundary_iou(d) == pytest.approx(expected, abs=0.03)


def test_thick_slices_keep_the_caps_of_a_ball_in_the_band():
    # Slices of 5 mm, d = 3 mm: a rule by distance to the outside would find the caps 5 mm deep and drop them.
    spacing = (5.0, 0.8, 0.8)
    mask = ball((9, 50, 50), spacing, (20, 20, 20), 16.0)
    band = inner_band(mask, spacing, 3.0)
    first = int(np.flatnonzero(mask.any(axis=(1, 2)))[0])
    assert mask[first].sum() > 50
    assert np.array_equal(band[first], mask[first])


def test_boundary_iou_equals_brute_force_on_anisotropic_blobs_at_the_edge_of_the_image():
    truth, predicted = blobs(3)
    assert truth[0].any()
    assert truth[:, :, -1].any()
    bands = [brute_force_band(mask, SPACING, 2.2) for mask in (truth, predicted)]
    expected = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
    assert SurfacePair(truth, predicted, SPACING).boundary_iou(2.2) == pytest.approx(expected)


def brute_force_band(mask, spacing, width):
    """Every pair of mask and border voxels, border found by looking at the neighbours one by one."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
        inner &= np.roll(padded, step, axis)[(slice(1, -1),) * mask.ndim]
    edge = np.argwhere(mask & ~inner) * np.asarray(spacing)
    points = np.argwhere(mask)
    nearest = np.linalg.norm(points[:, None] * np.asarray(spacing) - edge[None], axis=2).min(axis=1)
    band = np.zeros_like(mask)
    band[tuple(points[nearest <= width + 1e-9].T)] = True
    return band


def test_a_distance_of_three_tenths_is_within_a_width_of_three_tenths():
    mask = box((20, 20, 20), (2, 2, 2), (16, 16, 16))
    band = inner_band(mask, (0.1, 0.1, 0.1), 0.3)
    assert np.array_equal(band, shell_of_box((20, 20, 20), (2, 2, 2), (16, 16, 16), 4))


def test_in_two_dimensions_the_border_looks_at_four_neighbours():
    mask = box((9, 9), (2, 2), (5, 5))
    mask[2, 2] = False  # a missing corner makes no border of its diagonal neighbour
    assert boundary.border(mask)[2, 3]
    assert not boundary.border(mask)[3, 3]


def test_empty_masks_follow_the_stated_policy():
    some, none = box((6, 6, 6), (1, 1, 1), (3, 3, 3)), np.zeros((6, 6, 6), bool)
    assert SurfacePair(none, none, SPACING).boundary_iou(1) == 1.0
    assert SurfacePair(some, none, SPACING).boundary_iou(1) == 0.0
    assert SurfacePair(none, some, SPACING).boundary_iou(1) == 0.0


@pytest.mark.parametrize(
    ("spacing", "width", "says"),
    [
        ((1, 1), 1, "spacing"),
        ((1, 1, 0), 1, "above 0"),
        ((1, 1, np.nan), 1, "finite"),
        ((1, 1, 1), 0, "width is 0"),
    ],
)
def test_lengths_that_mean_nothing_are_refused(spacing, width, says):
    mask = np.ones((3, 3, 3), bool)
    with pytest.raises(ValueError, match=says):
        SurfacePair(mask, mask, spacing).boundary_iou(width)
    with pytest.raises(ValueError, match=says):
        surface_band(mask, spacing, width)


# --- surface distances


def test_two_slabs_apart_have_the_distance_of_their_gap_along_each_axis():
    for axis in range(3):
        sizes = [12, 12, 12]
        sizes[axis] = 1
        starts = [0, 0, 0]
        truth = box((12, 12, 12), starts, sizes)
        starts[axis] = 4
        predicted = box((12, 12, 12), starts, sizes)
        distances = surface_distances(truth, predicted, SPACING)
        assert boundary.hausdorff_distance(distances) == pytest.approx(4 * SPACING[axis])
        assert boundary.average_surface_distance(distances) == pytest.approx(4 * SPACING[axis])


def test_concentric_balls_have_the_difference_of_their_radii_as_surface_distance():
    spacing, centre = (0.5, 0.5, 0.5), (10.1, 10.2, 9.9)
    truth, predicted = (ball((42, 42, 42), spacing, centre, r) for r in (9.0, 7.0))
    distances = surface_distances(truth, predicted, spacing)
    assert boundary.average_surface_distance(distances) == pytest.approx(2.0, abs=0.15)
    assert boundary.hausdorff_distance(distances) == pytest.approx(2.0, abs=0.5)
    assert boundary.normalised_surface_dice(distances, tolerance_mm=2.6) == 1.0
    assert boundary.normalised_surface_dice(distances, tolerance_mm=1.0) == 0.0


def test_surface_distances_equal_those_of_monai_on_anisotropic_blobs():
    truth, predicted = blobs(11)
    tensors = [torch.from_numpy(np.stack([~m, m])[None].astype(np.float32)) for m in (predicted, truth)]
    distances = surface_distances(truth, predicted, SPACING)
    hd95 = compute_hausdorff_distance(*tensors, percentile=95, spacing=SPACING)
    assd = compute_average_surface_distance(*tensors, symmetric=True, spacing=SPACING)
    nsd = compute_surface_dice(*tensors, class_thresholds=[1.2], spacing=SPACING)
    assert boundary.hausdorff_distance(distances) == pytest.approx(float(hd95), abs=1e-5)
    assert boundary.average_surface_distance(distances) == pytest.approx(float(assd), abs=1e-5)
    assert boundary.normalised_surface_dice(distances, tolerance_mm=1.2) == pytest.approx(float(nsd), abs=1e-6)
    assert 0 < float(nsd) < 1


def test_the_largest_distance_is_that_of_a_single_far_voxel_which_95_percent_do_not_see():
    truth = box((30, 12, 12), (2, 2, 2), (8, 8, 8))
    predicted = truth.copy()
    predicted[25, 5, 5] = True  # 16 voxels beyond the face
    distances = surface_distances(truth, predicted, SPACING)
    assert boundary.hausdorff_distance(distances, percentile=100) == pytest.approx(16 * SPACING[0])
    assert boundary.hausdorff_distance(distances) == 0.0


def test_the_largest_distance_equals_that_of_monai():
    truth, predicted = blobs(11)
    tensors = [torch.from_numpy(np.stack([~m, m])[None].astype(np.float32)) for m in (predicted, truth)]
    found = boundary.hausdorff_distance(surface_distances(truth, predicted, SPACING), percentile=100)
    assert found == pytest.approx(float(compute_hausdorff_distance(*tensors, spacing=SPACING)), abs=1e-5)


def test_surface_distances_of_empty_masks_follow_the_stated_policy():
    some, none = box((6, 6, 6), (1, 1, 1), (3, 3, 3)), np.zeros((6, 6, 6), bool)
    both, one = surface_distances(none, none, SPACING), surface_distances(some, none, SPACING)
    assert (boundary.hausdorff_distance(both), boundary.average_surface_distance(both)) == (0.0, 0.0)
    assert boundary.normalised_surface_dice(both, tolerance_mm=1.0) == 1.0
    for distances in (one, surface_distances(none, some, SPACING)):
        assert boundary.hausdorff_distance(distances) == np.inf
        assert boundary.average_surface_distance(distances) == np.inf
        assert boundary.normalised_surface_dice(distances, tolerance_mm=1.0) == 0.0


# --- band around the predicted surface


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("width", [0.4, 1.2, 2.0, 3.75])
def test_around_a_half_space_the_band_holds_the_centres_within_the_width_of_the_face(axis, width):
    shape, first = (24, 20, 16), 7
    index = np.indices(shape)[axis]
    depth = (index - first + 0.5) * SPACING[axis]  # signed distance of a centre from the face, in mm
    assert np.array_equal(surface_band(index >= first, SPACING, width), np.abs(depth) <= width + 1e-9)


@pytest.mark.parametrize("width", [0.3, 2.0, 4.1])
def test_the_band_equals_brute_force_over_the_centre_of_every_face(width):
    mask, _ = blobs(5, (13, 11, 9))
    assert np.array_equal(surface_band(mask, SPACING, width), near_face_centres(mask, SPACING, width))


def near_face_centres(mask, spacing, width, valid=None):
    """Every pair of voxel centre and face centre; faces are found one pair of neighbours at a time."""
    valid = np.ones_like(mask) if valid is None else valid
    step = np.asarray(spacing)
    centres = np.indices(mask.shape).reshape(mask.ndim, -1).T * step
    nearest = np.full(len(centres), np.inf)
    for index, move in itertools.product(np.ndindex(mask.shape), np.eye(mask.ndim, dtype=int)):
        beside = tuple(index + move)
        if all(a < n for a, n in zip(beside, mask.shape, strict=True)) and mask[index] != mask[beside]:
            if not (valid[index] and valid[beside]):
                continue
            face = (np.asarray(index) + move / 2) * step
            nearest = np.minimum(nearest, np.linalg.norm(centres - face, axis=1))
    return (nearest <= width + 1e-9).reshape(mask.shape)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("width", [0.9, 2.6])
def test_block_by_block_the_band_is_that_of_every_face(width, order, monkeypatch):
    spacing, shape = (0.8, 2.2, 2.5), (31, 17, 15)
    blob, chosen = blobs(11, shape)
    mask, valid = np.asarray(blob & (np.indices(shape)[0] > 3), order=order), np.asarray(chosen | ~blob, order=order)
    faces = near_face_centres(mask, spacing, width)
    among_valid = near_face_centres(mask, spacing, width, valid) & valid
    assert not np.array_equal(faces & valid, among_valid)
    monkeypatch.setattr(boundary, "_BLOCK_VOXELS", 1)  # so each block is four times as long as its margin
    assert np.array_equal(surface_band(mask, spacing, width), faces)
    assert np.array_equal(surface_band(mask, spacing, width, valid=valid), among_valid)
    plane = near_face_centres(mask[:, :, 7], spacing[:2], width)
    assert np.array_equal(surface_band(mask[:, :, 7], spacing[:2], width), plane)


def test_the_band_of_a_large_mask_takes_little_more_than_its_own_memory():
    mask = box((200, 190, 150), (60, 0, 0), (70, 190, 150))
    tracemalloc.start()
    try:
        band = surface_band(mask, (1, 1, 1), 2.0)
        assert tracemalloc.get_traced_memory()[1] < 3 * mask.size
    finally:
        tracemalloc.stop()
    assert band.sum() == 2 * 4 * 190 * 150


def test_the_band_around_a_ball_is_the_spherical_shell():
    spacing, shape, radius, width = (0.4, 0.5, 0.6), (60, 50, 40), 9.0, 2.0
    centre = (12.1, 12.3, 11.8)
    away = np.linalg.norm(np.indices(shape).T * spacing - np.asarray(centre), axis=-1).T - radius
    shell, found = np.abs(away) <= width, surface_band(away <= 0, spacing, width)
    volume = 4 / 3 * np.pi * ((radius + width) ** 3 - (radius - width) ** 3)
    assert found.sum() * np.prod(spacing) == pytest.approx(volume, rel=0.06)
    assert (found & shell).sum() / (found | shell).sum() > 0.94


def test_the_edge_of_the_image_is_no_surface():
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask[:5] = True
    band = surface_band(mask, (1, 1, 1), 2.0)
    assert np.array_equal(np.flatnonzero(band.all(axis=(1, 2))), [3, 4, 5, 6])
    assert band.sum() == 400


def test_where_nothing_or_everything_is_foreground_there_is_no_band():
    assert not surface_band(np.zeros((5, 6, 7), bool), SPACING, 2.0).any()
    assert not surface_band(np.ones((5, 6, 7), bool), SPACING, 2.0).any()


def test_where_the_valid_voxels_end_there_is_no_surface():
    mask = np.zeros((14, 9, 8), bool)
    mask[:5] = True
    valid = np.ones_like(mask)
    valid[:, 6:] = False
    band = surface_band(mask & valid, (1, 1, 1), 2.0, valid=valid)
    assert np.array_equal(np.flatnonzero(band.any(axis=(1, 2))), [3, 4, 5, 6])  # as without the cut
    assert band.sum() == 4 * 6 * 8
    valid = np.ones_like(mask)
    valid[5:8] = False  # what lies between the foreground and the rest does not count: nobody saw a surface
    assert not surface_band(mask, (1, 1, 1), 2.0, valid=valid).any()


def test_valid_voxels_that_are_all_of_them_change_no_band():
    mask, _ = blobs(5, (13, 11, 9))
    everywhere = np.ones_like(mask)
    assert np.array_equal(surface_band(mask, SPACING, 2.0, valid=everywhere), surface_band(mask, SPACING, 2.0))
    with pytest.raises(ValueError, match=r"valid is uint8 \(13, 11, 9\)"):
        surface_band(mask, SPACING, 2.0, valid=everywhere.astype(np.uint8))


def test_the_band_works_on_a_plane_in_pixels():
    mask = box((12, 12), (4, 4), (4, 4))
    band = surface_band(mask, (1, 1), 2.0)
    assert np.array_equal(band, near_face_centres(mask, (1, 1), 2.0))
    assert band[2, 5]
    assert not band[1, 5]


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_surface_distances_equal_brute_force_in_any_order_of_memory(order, planar):
    spacing = SPACING[:2] if planar else SPACING
    truth, predicted = (np.asarray(mask[..., 5] if planar else mask, order=order) for mask in blobs(3))
    places = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) * np.asarray(spacing) for mask in (truth, predicted)]
    apart = np.linalg.norm(places[0][:, None] - places[1], axis=2)
    found = surface_distances(truth, predicted, spacing)
    assert np.sort(found.truth_to_predicted) == pytest.approx(np.sort(apart.min(axis=1)), abs=1e-5)
    assert np.sort(found.predicted_to_truth) == pytest.approx(np.sort(apart.min(axis=0)), abs=1e-5)
