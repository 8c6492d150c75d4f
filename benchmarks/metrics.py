"""How long does a full table of scores take for 20 labels in 512 x 512 x 300 voxels, and calibration counts of many voxels?

    python benchmarks/metrics.py [--slices 300] [--labels 20] [--rounds 2]
    pip install --no-deps surface-distance

The table is Dice, boundary IoU, surface Dice, HD95, mean surface distance and components of every label. The labels are
balls of 20 to 70 voxels radius, each predicted shifted and a little smaller; voxels are 0.8 x 0.8 x 1.5 mm. The others get
each label as two masks, one label after the other, as their functions need them:

- MONAI: compute_dice, compute_surface_dice, compute_hausdorff_distance, compute_average_surface_distance (it has no boundary
  IoU and no components: they are not asked of it);
- surface-distance (DeepMind): compute_surface_distances, then Dice, surface Dice, HD95, mean distance.

All run in one process in turns; the values that ours shares with MONAI are compared (surface-distance weighs by area). Memory
is what ours takes above the two label maps. Calibration counts are taken of a softmax of 3 classes, whole image, truth as label
map. Exit code 1 if a target is missed: the table 8 times as fast as MONAI and 4 times as fast as surface-distance, at most 2
GB, 100 million voxel-classes a second.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from claims import judged
from numpy.typing import NDArray

from monai_unet_app.metrics.case_scores import ClassScores, score_masks
from monai_unet_app.metrics.outputs import EXCLUSIVE
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.reliability import count_reliability

SPACING_MM = (0.8, 0.8, 1.5)
TOLERANCE_MM = 1.0
TIMES = {"MONAI": 8.0, "surface-distance": 4.0}
MOST_GB, LEAST_MILLIONS = 2.0, 100.0
Row = tuple[float, float, float, float]
"""Dice, surface Dice, HD95, mean surface distance of one label."""


def main() -> int:
    """Makes the labels, times all sides, prints; 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    truth, predicted = made_labels(options.labels, (512, 512, options.slices))
    filled = np.count_nonzero(truth) / truth.size
    print(f"{options.labels} labels in {truth.shape}, {filled:.1%} of the voxels; {options.rounds} rounds")
    reached = [
        table_is_fast(truth, predicted, options),
        memory_is_small(truth, predicted, options.labels),
        counting_is_fast(),
    ]
    return int(not all(reached))


def made_labels(count: int, shape: tuple[int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Label maps of truth and prediction."""
    rng, maps = np.random.default_rng(0), np.zeros((2, *shape), np.uint8)
    for label in range(1, count + 1):
        centre, radius = rng.uniform(0.15, 0.85, 3) * shape, rng.uniform(20, 70)
        for labels, shift, size in ((maps[0], 0, radius), (maps[1], 2, 0.97 * radius)):
            place = [
                slice(max(0, int(c - size)), min(n, int(c + size) + shift + 3))
                for c, n in zip(centre, shape, strict=True)
            ]
            away = sum((axis - c - shift) ** 2 for axis, c in zip(np.ogrid[tuple(place)], centre, strict=True))
            labels[tuple(place)][away <= size**2] = label
    return maps[0], maps[1]


def table_is_fast(truth: NDArray, predicted: NDArray, options: argparse.Namespace) -> bool:
    """Times the sides in turns and compares what they found."""
    sides: dict[str, Callable[[NDArray, NDArray, int], list[Row]]] = {"ours": by_us, "MONAI": by_monai}
    if find_spec("surface_distance"):
        sides["surface-distance"] = by_surface_distance
    else:
        print("  surface-distance: absent (pip install --no-deps surface-distance)")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, NDArray] = {}
    for _ in range(options.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            found[name] = np.array(side(truth, predicted, options.labels))
            seconds[name].append(time.perf_counter() - start)
    best = {name: min(values) for name, values in seconds.items()}
    for name, value in best.items():
        print(f"  {name:18} best {value:8.2f} s  {value / best['ours']:6.2f}x")
    apart = np.abs(found["ours"] - found["MONAI"]).max(axis=0)
    print(
        f"  largest difference from MONAI: Dice {apart[0]:.1e}, surface Dice {apart[1]:.1e}, "
        f"HD95 {apart[2]:.1e}, ASSD {apart[3]:.1e}"
    )
    reached = [judged(f"{name} / ours", best[name] / best["ours"], TIMES[name]) for name in TIMES if name in best]
    return all(reached) and bool(apart.max() < 1e-4)


def by_us(truth: NDArray, predicted: NDArray, count: int) -> list[Row]:
    return [(one.dice, one.surface_dice, one.hd95, one.assd) for one in our_table(truth, predicted, count)]


def our_table(truth: NDArray, predicted: NDArray, count: int) -> tuple[ClassScores, ...]:
    plan = EvaluationPlan(tuple(f"label {n}" for n in range(1, count + 1)), surface_tolerance=TOLERANCE_MM)
    return score_masks(truth, predicted, SPACING_MM, 0.00096, plan)


def by_monai(truth: NDArray, predicted: NDArray, count: int) -> list[Row]:
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    rows = []
    for label in range(1, count + 1):
        masks = [torch.from_numpy(labels == label)[None, None] for labels in (predicted, truth)]
        surface = [
            compute_surface_dice(*masks, class_thresholds=[TOLERANCE_MM], include_background=True, spacing=SPACING_MM),
            compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=SPACING_MM),
            compute_average_surface_distance(*masks, include_background=True, symmetric=True, spacing=SPACING_MM),
        ]
        rows.append((float(compute_dice(*masks, include_background=True)), *(float(one) for one in surface)))
    return rows


def by_surface_distance(truth: NDArray, predicted: NDArray, count: int) -> list[Row]:
    import surface_distance as peer

    rows = []
    for label in range(1, count + 1):
        masks = truth == label, predicted == label
        distances = peer.compute_surface_distances(*masks, SPACING_MM)
        rows.append(
            (
                peer.compute_dice_coefficient(*masks),
                peer.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM),
                peer.compute_robust_hausdorff(distances, 95),
                float(np.mean(peer.compute_average_surface_distance(distances))),
            )
        )
    return rows


def memory_is_small(truth: NDArray, predicted: NDArray, count: int) -> bool:
    """The peak while ours runs, above what is in use before: the label maps and the interpreter."""
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is in use now; see proc(5)
    before = peak_bytes()
    our_table(truth, predicted, count)
    return judged("memory of ours in GB", (peak_bytes() - before) / 1e9, MOST_GB, at_most=True)


def peak_bytes() -> int:
    """VmHWM of this process (Linux)."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def counting_is_fast() -> bool:
    """Calibration counts of 100 million voxel-classes."""
    rng, shape = np.random.default_rng(1), (320, 320, 325)
    logits = rng.normal(size=(3, *shape)).astype(np.float32) * 3
    logits[0] += 6
    p = np.exp(logits - logits.max(axis=0))
    p /= p.sum(axis=0)
    truth, seconds = rng.integers(0, 3, shape).astype(np.uint8), []
    for _ in range(3):
        start = time.perf_counter()
        count_reliability(truth, p, outputs=EXCLUSIVE)
        seconds.append(time.perf_counter() - start)
    return judged("million voxel-classes counted in a second", p.size / min(seconds) / 1e6, LEAST_MILLIONS)


if __name__ == "__main__":
    raise SystemExit(main())
