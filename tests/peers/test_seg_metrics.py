"""seg-metrics: the same overlap, another contour. Known differences stand in docs/metrics.md."""

import numpy as np
import pytest
from mask_pairs import PAIRS, border
from scipy import ndimage
from seg_metrics.seg_metrics import write_metrics

from monai_unet_app.metrics import boundary, overlap
from monai_unet_app.metrics.boundary import surface_distances

each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def theirs(truth, predicted, spacing, *, corners=True):
    masks = {"gdth_img": truth.astype(np.uint8), "pred_img": predicted.astype(np.uint8)}
    found = write_metrics(labels=[1], **masks, spacing=spacing, fully_connected=corners)[0]
    return {name: float(values[0]) for name, values in found.items()}


@each_pair
def test_overlap_is_the_same(pair):
    masks = pair.truth, pair.predicted
    found = theirs(*masks, pair.spacing_mm)
    ours = {
        "dice": overlap.dice(*masks),
        "jaccard": overlap.iou(*masks),
        "precision": overlap.precision(*masks),
        "recall": overlap.recall(*masks),
    }
    assert {name: found[name] for name in ours} == pytest.approx(ours, abs=1e-6)


# --- where they are known to differ


@each_pair
@pytest.mark.parametrize("corners", [True, False])
def test_distances_go_to_a_contour_of_corner_neighbours_and_the_images_edge_is_none(pair, corners):
    masks = pair.truth, pair.predicted
    contours = [border(mask, corners=True, edge_counts=False) for mask in masks]
    starts = [border(mask, corners=corners, edge_counts=False) for mask in masks]
    away = [ndimage.distance_transform_edt(~contours[1 - n], sampling=pair.spacing_mm)[starts[n]] for n in (0, 1)]
    both = np.concatenate(away)
    found = theirs(*masks, pair.spacing_mm, corners=corners)
    expected = {"hd": both.max(), "hd95": np.percentile(both, 95), "msd": both.mean()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_their_distances_are_the_smaller_ones():
    pair = PAIRS["dilated"]
    found = theirs(pair.truth, pair.predicted, pair.spacing_mm)
    assert [found[name] for name in ("hd", "hd95", "msd")] == pytest.approx([2.7313, 2.2, 0.6747], abs=1e-4)
    ours = surface_distances(pair.truth, pair.predicted, pair.spacing_mm)
    assert boundary.hausdorff_distance(ours, percentile=100) == pytest.approx(2.9682, abs=1e-4)
    assert boundary.hausdorff_distance(ours) == pytest.approx(2.6249, abs=1e-4)
    assert boundary.average_surface_distance(ours) == pytest.approx(1.0448, abs=1e-4)


@pytest.mark.parametrize("missed", [True, False], ids=["missed", "invented"])
def test_a_structure_that_was_missed_or_invented_has_the_distance_of_a_perfect_one(missed):
    some = PAIRS["moved"].truth
    masks = (some, np.zeros_like(some)) if missed else (np.zeros_like(some), some)
    found = theirs(*masks, (1, 1, 1))
    assert (found["hd"], found["hd95"], found["msd"]) == (0.0, 0.0, 0.0)
    assert boundary.hausdorff_distance(surface_distances(*masks, (1, 1, 1))) == np.inf
