"""What do overlap, mirror images, a second network and the grid cost in time, and give in quality?

    python benchmarks/tradeoff.py --bundle NAME --data DIR [--splits FILE | --folds] [--overlaps 0 0.25 0.5 0.75] [--grids 1.5]

One bundle, its windows with each overlap, averages over mirror images where it has mirror axes, one of its networks where it
has several, and its grid made coarser by these factors. Cases are those that the bundle has not seen; with --folds each case
is answered by the network of the fold that tests it. Dice, boundary IoU and calibration error in the band are means over
cases; differences from the bundle as it is are paired, with an interval of 95 % by subject. Times are of the first --timed
cases, in turns: the median of the ratios to the bundle as it is. Seams: mean difference, where windows meet, between the
answer and that of one window around the place. It decides nothing; it shows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.comparison.differences import compare
from monai_unet_app.config import PredictConfig, ResultSettings
from monai_unet_app.data.case_files import find_data
from monai_unet_app.evaluate import choose_cases, choose_out_of_fold, evaluate_cases
from monai_unet_app.evaluate.case_selection import LabelledCases, Networks
from monai_unet_app.pipeline import segment_case
from monai_unet_app.report.stored_evaluation import MEAN

USUAL = "as it is"


@dataclass(frozen=True)
class Way:
    """One way to use a bundle."""

    bundle: Bundle
    tta: bool = False

    @property
    def run(self) -> PredictConfig:
        return PredictConfig(ResultSettings(tta=self.tta))


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=Path)
    parser.add_argument("--folds", action="store_true")
    parser.add_argument("--overlaps", type=float, nargs="*", default=[0.0, 0.25, 0.5, 0.75])
    parser.add_argument("--grids", type=float, nargs="*", default=[1.5])
    parser.add_argument("--timed", type=int, default=3)
    options = parser.parse_args()
    if options.folds and not Path(options.bundle).exists():
        print(
            f"left out: {options.bundle} does not exist; it is a bundle with folds, as monai-unet train --folds makes it"
        )
        return
    ways = ways_of(options.bundle, options.overlaps, options.grids)
    usual, cases = ways[USUAL].bundle, find_data(options.data)
    chosen = choose_out_of_fold(usual, cases) if options.folds else choose_cases(usual, cases, None, options.splits)
    chosen = replace(chosen, name=options.data.name)
    subjects = len({row["subject"] for row in chosen.rows})
    print(f"{usual.name}: {len(chosen.rows)} cases of {subjects} subjects of {options.data.name}; {chosen.note}")
    seconds = times(ways, replace(chosen, rows=chosen.rows[: options.timed]))
    head = ("seconds", "core-s", "Dice", "difference", "boundary IoU", "ECE band", "seams")
    print(f"  {'':24}{head[0]:>8}{head[1]:>8}{head[2]:>8}{head[3]:>29}{head[4]:>14}{head[5]:>10}{head[6]:>9}")
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / str(n) for n, name in enumerate(ways)}
        for name, way in ways.items():
            done = evaluate_cases(way.bundle, chosen, folders[name], run=way.run)
            wall, core = (np.median(np.divide(*pair)) for pair in zip(seconds[name], seconds[USUAL], strict=True))
            print(
                f"  {name:24}{wall:>8.2f}{core:>8.2f}{_scores(folders[USUAL], folders[name])}{_seams(done.metrics):>9}",
                flush=True,
            )
    wall, core = (float(np.median(one)) for one in seconds[USUAL])
    print(f"  {USUAL}: {wall:.2f} s and {core:.2f} core-seconds a case")


def ways_of(name: str, overlaps: Sequence[float], grids: Sequence[float]) -> dict[str, Way]:
    """Name -> way; the first is the bundle as it is."""
    usual = load_bundle(name, "cpu")
    own = usual.windows.overlap
    ways = {USUAL: Way(usual)}
    for overlap in overlaps:
        if overlap != own:
            ways[f"overlap {overlap:g} (not {own:g})"] = Way(load_bundle(name, "cpu", **{"inferer::overlap": overlap}))
    if usual.mirror_axes:
        ways["mirror images"] = Way(usual, tta=True)
    if usual.untrained is None and isinstance(usual.network, torch.nn.ModuleList):
        one = load_bundle(name, "cpu", feature_layer=None)
        vars(one).update(network=usual.network[0])
        ways[f"one of {len(usual.network)} networks"] = Way(one)
    for factor in grids if usual.grid_spacing else ():
        spacing = [round(factor * step, 4) for step in usual.grid_spacing or ()]
        ways[f"grid {factor:g} times"] = Way(load_bundle(name, "cpu", spacing_mm=spacing))
    return ways


def times(ways: dict[str, Way], chosen: LabelledCases) -> dict[str, tuple[list[float], list[float]]]:
    """Name -> seconds and core-seconds of each case, in turns, after one that does not count."""
    found = {name: (list[float](), list[float]()) for name in ways}
    networks = {name: Networks(way.bundle, chosen.folds) for name, way in ways.items()}
    for number, row in enumerate([chosen.rows[0], *chosen.rows]):
        for name, way in ways.items():
            began = time.perf_counter(), time.process_time()
            segment_case(row["image"], networks[name].of(row), way.run)
            if number:
                found[name][0].append(time.perf_counter() - began[0])
                found[name][1].append(time.process_time() - began[1])
    return found


def _scores(usual: Path, own: Path) -> str:
    compared = compare(usual, own)
    dice, boundary, band = (
        compared.of(*which) for which in (("dice", MEAN), ("boundary_iou", MEAN), ("ece_band", "top label"))
    )
    low, high = dice.estimate.low, dice.estimate.high
    difference = "" if usual == own else f"{dice.second - dice.first:+.4f} ({low:+.4f} to {high:+.4f})"
    return f"{dice.second:>8.4f}{difference:>29}{boundary.second:>14.4f}{band.second:>10.4f}"


def _seams(metrics: dict) -> str:
    seams = metrics.get("inference", {}).get("seam_difference")
    return "-" if not seams or seams["mean"] is None else f"{seams['mean']:.4f}"


if __name__ == "__main__":
    main()
