"""The networks of the family, trained for the same time on the same cases: docs/networks.md, and what docs/claims.md judges.

    python benchmarks/networks.py --data ../shared/data/msd_hippocampus [--minutes 15] [--stop-after 100] [--only unet mednext]
    python benchmarks/networks.py --pages

Each is planned by `monai-unet plan --network NAME --time 15min`, so that its steps fit into the time on this machine, trains
fold 0 of `examples/splits.json` without its test cases, and is measured on the cases of the fold by `evaluate --folds`. One
process runs at a time; the machine should do nothing else, since a plan measures how long a step takes. What a training really
took is in the table as minutes of the processor. The four with the largest Dice, and all that docs/claims.md compares, are
trained a second time with another seed, which also draws other windows.

The same command goes on where it was ended: networks are kept in build/networks, figures in docs/networks.json. --stop-after
begins no training after so many minutes. --pages writes the pages from the figures alone. Without data it is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import REPOSITORY, environment_of
from torch.utils.flop_counter import FlopCounterMode

from monai_unet_app.bundle import load_bundle
from monai_unet_app.data.schemas import write_json
from monai_unet_app.planning.family import DEFAULT, names
from monai_unet_app.report.stored_evaluation import MEAN, read_evaluation

DATA, FIGURES = REPOSITORY.parent / "shared/data/msd_hippocampus", REPOSITORY / "docs/networks.json"
BEST_AGAIN = 4
COLUMNS = ("dice", "boundary_iou", "ece_whole", "ece_band")


@dataclass(frozen=True)
class Training:
    """One network and how it is trained.

    Attributes:
        network: Of the family.
        values: As `--network-value` takes them.
        networks: Trained side by side within the time; their answer is the mean.
        loss: Line of `train.yaml` that replaces the planned loss.
    """

    network: str
    values: tuple[str, ...] = ()
    networks: int = 1
    loss: str = ""


VARIANTS = {
    "dynunet_deep": Training("dynunet", ("deep_supervision=yes",)),
    "dynunet_two": Training("dynunet", networks=2),
    "dynunet_ace": Training(
        "dynunet",
        loss="{_target_: monai_unet_app.training.losses.Sum, losses: [{_target_: DiceCELoss, to_onehot_y: true, softmax: true, "
        "batch: true}, {_target_: monai_unet_app.training.losses.HardL1ACELoss, softmax: true}]}",
    ),
    "segresnet_transposed": Training("segresnet", ("upsample=transposed",)),
}
TWICE = ("unet", "attention_unet", "unet_plus_plus", "segresnet", "dynunet", "light_unet", *VARIANTS)


class Runner:
    """Trains and measures; keeps what is done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data, self.build, self.minutes = options.data, options.build, options.minutes
        self.kept: Path = options.figures
        self.figures: dict[str, Any] = json.loads(self.kept.read_text()) if self.kept.exists() else {}
        self.end = time.monotonic() + 60 * options.stop_after

    def run(self, name: str, training: Training, seed: int) -> None:
        """Trains and measures one network, if that is not done."""
        key = f"{name} {seed}"
        if key in self.figures:
            return
        if time.monotonic() > self.end:
            raise SystemExit(f"the time is over before {key}; the same command goes on")
        print(f"== {key}", flush=True)
        plan, root = self.build / "plans" / name, self.build / f"{name}_{seed}"
        values = [word for value in training.values for word in ("--network-value", value)]
        if not plan.exists():
            self._call(
                "plan", self.data, "--output", plan, "--splits", REPOSITORY / "examples/splits.json", "--device", "cpu",
                "--time", f"{self.minutes:g}min", "--network", training.network, *values, "--networks", training.networks,
            )  # fmt: skip
            if training.loss:
                _with_loss(plan / "configs/train.yaml", training.loss)
        took = self._call(
            "train", "--bundle", plan, "--data", self.data, "--output", root, "--folds", 0, "--device", "cpu", "--seed", seed,
            "--tracking", "none", "--splits", REPOSITORY / "examples/splits.json",
        )  # fmt: skip
        evaluation = self.build / f"{name}_{seed}_evaluation"
        self._call(
            "evaluate", "--bundle", root, "--data", self.data, "--folds", "--output", evaluation, "--device", "cpu"
        )
        entry = {**_size(root), **took, **_scores(evaluation)}
        self.figures[key] = {
            "network": training.network,
            "values": training.values,
            "networks": training.networks,
        } | entry
        write_json(self.figures, self.kept, indent=1)

    def _call(self, *words: object) -> dict[str, float]:
        """One command; what it took. SystemExit if it fails."""
        command = [sys.executable, "-m", "monai_unet_app", *map(str, words)]
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment_of())
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"failed: {' '.join(command)}")
        return {
            "processor_minutes": round((used.ru_utime + used.ru_stime) / 60, 2),
            "memory_gb": round(used.ru_maxrss / 1e6, 2),
        }


def _with_loss(path: Path, loss: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first = lines.index("loss:\n")
    last = next(number for number in range(first + 1, len(lines)) if lines[number][0] not in " #")
    path.write_text("".join([*lines[:first], f"loss: {loss}\n", *lines[last:]]), encoding="utf-8")


def _size(root: Path) -> dict[str, Any]:
    """Window, parameters, multiplications and time of a window, of the network of fold 0."""
    bundle = load_bundle(root, "cpu").of_fold(0)
    network, window = bundle.network.eval(), bundle.windows.window
    image = torch.randn(1, 1, *window)
    seconds = []
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            network(image)
        for _ in range(7):
            begun = time.perf_counter()
            network(image)
            seconds.append(time.perf_counter() - begun)
    return {
        "window": list(window),
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "gflops": round(counter.get_total_flops() / 1e9, 2),
        "window_s": round(median(seconds), 4),
    }


def _scores(folder: Path) -> dict[str, Any]:
    """Case -> subject and scores."""
    table = read_evaluation(folder).table
    values = {column: table.values(column, MEAN) for column in COLUMNS}
    return {
        "cases": {
            case: [table.subjects[case], *(values[column][case] for column in COLUMNS)] for case in values["dice"]
        }
    }


def wanted(figures: Mapping[str, Any], only: Sequence[str]) -> Iterable[tuple[str, Training, int]]:
    """Every training with its seed: the family, then its variants, then the second seeds."""
    known = {DEFAULT: Training(DEFAULT), **{name: Training(name) for name in names()}, **VARIANTS}
    known = {name: training for name, training in known.items() if not only or name in only}
    yield from ((name, training, 0) for name, training in known.items())
    dice = {name: _mean(figures[f"{name} 0"]) for name in known if f"{name} 0" in figures and name not in VARIANTS}
    best = sorted(dice, key=lambda name: -dice[name])[:BEST_AGAIN]
    yield from ((name, training, 1) for name, training in known.items() if name in {*best, *TWICE})


def _mean(entry: Mapping[str, Any]) -> float:
    scores = [case[1] for case in entry["cases"].values()]
    return sum(scores) / len(scores)


def main() -> int:
    """Trains what is missing, within the time, and writes the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build/networks")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="what is kept of each training")
    parser.add_argument("--minutes", type=float, default=15.0, help="of a training")
    parser.add_argument("--stop-after", type=float, default=1e6, metavar="MINUTES")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--pages", action="store_true")
    options = parser.parse_args()
    if not options.pages and not options.data.exists():
        print(f"left out: {options.data} does not exist")
        return 0
    runner = Runner(options)
    if not options.pages:
        for name, training, seed in wanted(runner.figures, options.only):
            runner.run(name, training, seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
