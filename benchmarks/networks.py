"""The networks of the family, trained for the same time on the same cases: docs/networks.md, and what docs/claims.md judges.

    python benchmarks/networks.py --data ../shared/data/msd_hippocampus [--minutes 30] [--stop-after 100] [--only unet mednext]
    python benchmarks/networks.py --pages

Each is planned by `monai-unet plan --network NAME --time 30min`, so that its steps fit into half an hour of one core of this
machine, or 15 minutes of two; trains fold 0 of `examples/splits.json` without its test cases, and is measured on the cases of
the fold by `evaluate --folds`. All plans are made first: they measure how long a step takes, so the machine should do nothing
else then. The number of steps is fixed by them; what else runs makes a training slower, and changes nothing else. Processor
time that a training really took is in the table. The four with the largest Dice, and all that docs/claims.md compares, are
trained a second time with another seed, which also draws other windows.

The same command goes on where it was ended: networks are kept in build/networks, figures in docs/networks.json. A machine that
is faster or slower than the one of the kept figures is refused, until --minutes make it equal; a second seed, and a variant,
take the steps of the training that they are compared with. --jobs trains so many at a time, each on one core. --stop-after
begins no training after so many minutes. --pages writes the pages from the figures alone. Without data it is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from threading import Lock
from typing import Any

import nibabel
import numpy as np
import torch
from matplotlib.figure import Figure
from measuring import REPOSITORY, environment_of
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from dicom_io.files import replace_when_whole
from monai_unet_app.bundle import load_bundle
from monai_unet_app.data.case_files import find_data
from monai_unet_app.metrics.bootstrap import Bootstrap, Estimate, bootstrap_mean, bootstrap_paired_difference
from monai_unet_app.planning.family import DEFAULT, NetworkChoice, built, known, names, written
from monai_unet_app.planning.network import plan_network
from monai_unet_app.report.stored_evaluation import MEAN, read_evaluation
from monai_unet_app.training.update import resolve_precision

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
        structures: As `--structure` takes them. Only with names a plan mirrors images, and averages over mirror images are
            measured, too.
        field_after: No training: what this other one trained is measured with a conditional random field after it.
        steps_of: Network whose number of steps it takes; empty for those that its own plan fits into the time.
    """

    network: str
    values: tuple[str, ...] = ()
    networks: int = 1
    loss: str = ""
    structures: tuple[str, ...] = ()
    field_after: str = ""
    steps_of: str = ""


VARIANTS = {
    "dynunet_deep": Training("dynunet", ("deep_supervision=yes",)),
    "dynunet_two": Training("dynunet", networks=2),
    "dynunet_ace": Training(
        "dynunet",
        loss="{_target_: monai_unet_app.training.losses.Sum, losses: [{_target_: DiceCELoss, to_onehot_y: true, softmax: true, "
        "batch: true}, {_target_: monai_unet_app.training.losses.HardL1ACELoss, softmax: true}]}",
        steps_of="dynunet",
    ),
    "segresnet_transposed": Training("segresnet", ("upsample=transposed",), steps_of="segresnet"),
    "dynunet_mirrored": Training(
        "dynunet", structures=("1=Anterior hippocampus", "2=Posterior hippocampus"), steps_of="dynunet"
    ),
    "dynunet_field": Training("dynunet", field_after="dynunet_mirrored"),
}
FIELD = """field:
  _target_: monai_unet_app.inference.mean_field_crf.MeanFieldCRFd
  keys: pred
  appearance: [1.0, 2.0, 0.5]
  smoothness: [1.0, 1.0]
  reach_mm: 3.0
tidy: "$[@field]"
"""
TWICE = ("unet", "attention_unet", "unet_plus_plus", "segresnet", "dynunet", "light_unet", *VARIANTS)


class Runner:
    """Trains and measures; keeps what is done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data, self.build, self.minutes = options.data, options.build, options.minutes
        self.kept: Path = options.figures
        self.figures: dict[str, Any] = json.loads(self.kept.read_text()) if self.kept.exists() else {}
        self.end, self.jobs, self.keeping = time.monotonic() + 60 * options.stop_after, options.jobs, Lock()

    def run_all(self, only: Sequence[str]) -> None:
        """Plans, then trains what is missing; the second seeds last, since the first tell which are the best."""
        todo = [every for every in wanted(self.figures, only) if self._key(*every) not in self.figures]
        if not todo:
            return
        self._check_processor()
        self._check_speed()
        for name, training, _ in todo:
            if not training.field_after:
                self.plan(name, training)
        for seed in (0, 1):
            missing = [every for every in wanted(self.figures, only) if every[2] == seed]
            with ThreadPoolExecutor(self.jobs) as pool:
                done = [pool.submit(self.run, *every) for every in missing]
            # One that failed ends no other
            failed = [str(one.exception()) for one in done if one.exception()]
            if failed:
                raise SystemExit("\n".join(failed))

    @property
    def _budget(self) -> float:
        """Minutes of a training on the machine of the first figures."""
        return float(self.figures.get(f"{DEFAULT} 0", {}).get("budget_minutes", self.minutes))

    def _check_processor(self) -> None:
        """SystemExit if the kept figures are of a processor that trains in another precision, whose plans are others."""
        own, kept = (
            resolve_precision("auto", torch.device("cpu")),
            self.figures.get(f"{DEFAULT} 0", {}).get("precision"),
        )
        if kept not in (None, own):
            raise SystemExit(
                f"{self.kept.name} is of a processor that trains in {kept}, this one trains in {own}; such figures compare "
                "machines and not networks; take a processor like that, or begin anew with another --figures and --build"
            )

    def _check_speed(self) -> None:
        """SystemExit if the first network of the kept figures would be planned with fewer or more steps than it had."""
        kept = self.figures.get(f"{DEFAULT} 0")
        if kept is None:
            return
        plan = self.build / "plans/.speed"
        shutil.rmtree(plan, ignore_errors=True)
        self._plan(plan, Training(DEFAULT), self.minutes)
        had, has = kept["epochs"] * kept["windows_per_case"], math.prod(_length(plan))
        if _parameters(plan) != kept["parameters"] or abs(has / had - 1) > 0.15:
            raise SystemExit(
                f"{self.kept.name} was begun on a machine of another speed; there {DEFAULT} has {kept['parameters']} weights "
                f"and sees each case {had} times; here, with --minutes {self.minutes:g}, it would have {_parameters(plan)} and "
                f"see each {has} times; give other --minutes, so that these agree"
            )

    @staticmethod
    def _key(name: str, _: Training, seed: int) -> str:
        return f"{name} {seed}"

    def plan(self, name: str, training: Training) -> Path:
        """The folder of the plan, made if it is not there."""
        plan: Path = self.build / "plans" / name
        if plan.exists():
            return plan
        part = plan.with_name(f".part-{name}")
        like = self.figures.get(f"{training.steps_of or name} 0")
        # Near the border of two widths the time that a step happens to take decides: what is compared has one width
        for factor in (1.0, 1.4, 0.7, 2.0) if like else (1.0,):
            shutil.rmtree(part, ignore_errors=True)
            self._plan(part, training, self.minutes * factor)
            if not like or training.values or _parameters(part) == like["parameters"]:
                break
        else:
            raise SystemExit(f"{name}: no plan here has the {like['parameters']} parameters of {self.kept.name}")
        if like:
            _with_length(part, like, factor)
        if training.loss:
            _with_loss(part / "configs/train.yaml", training.loss)
        part.rename(plan)
        return plan

    def _plan(self, folder: Path, training: Training, minutes: float) -> None:
        values = [word for value in training.values for word in ("--network-value", value)]
        values += [word for name in training.structures for word in ("--structure", name)]
        self._call(
            "plan", self.data, "--output", folder, "--splits", REPOSITORY / "examples/splits.json", "--device", "cpu",
            "--time", f"{minutes:g}min", "--network", training.network, *values, "--networks", training.networks,
        )  # fmt: skip

    def run(self, name: str, training: Training, seed: int) -> None:
        """Trains and measures one network, if that is not done."""
        key = self._key(name, training, seed)
        if key in self.figures:
            return
        if time.monotonic() > self.end:
            print(f"the time is over before {key}; the same command goes on", flush=True)
            return
        print(f"== {key}", flush=True)
        root = self.build / f"{name}_{seed}"
        if training.field_after:
            self._with_field(key, self.build / f"{training.field_after}_{seed}", root)
            return
        plan = self.plan(name, training)
        self._call(
            "train", "--bundle", plan, "--data", self.data, "--output", root, "--folds", 0, "--device", "cpu", "--seed", seed,
            "--tracking", "none", "--splits", REPOSITORY / "examples/splits.json", spent=root.with_suffix(".json"),
        )  # fmt: skip
        if training.structures:  # first, since a training is done when the figures of `key` are there
            self._tell(f"{name}_tta {seed}", root, self.build / f"{name}_{seed}_tta_evaluation", "--tta")
        self._tell(key, root, self.build / f"{name}_{seed}_evaluation")

    def _with_field(self, key: str, trained: Path, root: Path) -> None:
        """Measures a trained network with a conditional random field after it."""
        if f"{trained.name.rpartition('_')[0]} {key[-1]}" not in self.figures:
            print(f"{trained.name} is not trained yet; the same command goes on", flush=True)
            return
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(trained, root)
        shutil.copy(trained.with_suffix(".json"), root.with_suffix(".json"))
        config = root / "configs/inference.yaml"
        config.write_text(
            re.sub(r"(?m)^tidy: .*\n", lambda old: FIELD, config.read_text(encoding="utf-8")), encoding="utf-8"
        )
        self._tell(key, root, root.with_name(f"{root.name}_evaluation"))

    def _tell(self, key: str, root: Path, evaluation: Path, *more: str) -> None:
        """Measures a trained network, and keeps the figures."""
        self._call(
            "evaluate", "--bundle", root, "--data", self.data, "--folds", "--output", evaluation, "--device", "cpu", *more
        )  # fmt: skip
        scores = _scores(evaluation)
        images = {case.id: case.image for case in find_data(self.data)}
        record = json.loads((root / "folds/0/models/run.json").read_text(encoding="utf-8"))
        entry = {
            "budget_minutes": self._budget,
            **json.loads(root.with_suffix(".json").read_text(encoding="utf-8")),
            "epochs": record["settings"]["epochs"],
            "windows_per_case": _length(root)[1],
            "pace": round(self.minutes / self._budget, 3),
            "precision": record["sessions"][-1]["precision"],
            "trained": sum(case["partition"] == "train" for case in record["cases"].values()),
            **_size(root, [images[case] for case in scores["cases"]]),
            **scores,
        }
        with self.keeping:
            self._keep(key, entry)

    def _keep(self, key: str, entry: Mapping[str, Any]) -> None:
        self.figures[key] = entry
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in sorted(self.figures.items()))
        with replace_when_whole(self.kept) as part:
            part.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")

    def _call(self, *words: object, spent: Path | None = None) -> None:
        """One command on one core. SystemExit if it fails. `spent` is told its memory and time, with what was spent before."""
        command = [sys.executable, "-m", "monai_unet_app", *map(str, words)]
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment_of(OMP_NUM_THREADS="1"))
        _, status, used = os.wait4(process.pid, 0)
        if spent is not None:
            before = json.loads(spent.read_text()) if spent.exists() else {"memory_gb": 0.0, "minutes": 0.0}
            memory = max(before["memory_gb"], round(used.ru_maxrss / 1e6, 2))
            minutes = round(before["minutes"] + (used.ru_utime + used.ru_stime) / 60, 2)
            spent.write_text(json.dumps({"memory_gb": memory, "minutes": minutes}))
        if status:
            raise SystemExit(f"failed: {' '.join(command)}")


def _length(plan: Path) -> tuple[int, int]:
    """Epochs, and windows of each case in an epoch."""
    text = (plan / "configs/train.yaml").read_text(encoding="utf-8")
    epochs, windows = (re.search(rf"(?m)^ *{key}: (\d+)$", text) for key in ("epochs", "windows_per_case"))
    assert epochs is not None
    assert windows is not None
    return int(epochs[1]), int(windows[1])


def _with_length(plan: Path, like: Mapping[str, Any], longer: float) -> None:
    """Gives a plan the epochs and windows of another training; it was made for a time that is so many times as long."""
    windows = like.get("windows_per_case") or max(1, round(math.prod(_length(plan)) / longer / like["epochs"]))
    path = plan / "configs/train.yaml"
    text = re.sub(r"(?m)^(epochs: )\d+$", rf"\g<1>{like['epochs']}", path.read_text(encoding="utf-8"))
    path.write_text(re.sub(r"(?m)^( *windows_per_case: )\d+$", rf"\g<1>{windows}", text), encoding="utf-8")


def _parameters(plan: Path) -> int:
    config = ConfigParser.load_config_file(plan / "configs/inference.yaml")
    network = ConfigParser({**config, "bundle_root": str(plan)}).get_parsed_content("new_network")()
    return sum(weight.numel() for weight in network.parameters())


def _with_loss(path: Path, loss: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first = lines.index("loss:\n")
    last = next(number for number in range(first + 1, len(lines)) if lines[number][0] not in " #")
    path.write_text("".join([*lines[:first], f"loss: {loss}\n", *lines[last:]]), encoding="utf-8")


def _size(root: Path, images: Sequence[Path]) -> dict[str, Any]:
    """Window, parameters, multiplications, time of a window and checkerboard of the network of fold 0."""
    bundle = load_bundle(root, "cpu").of_fold(0)
    network, window = bundle.network.eval(), bundle.windows.window
    seconds, boards = [], []
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, *window))
    for image in images[:7]:
        batch = torch.from_numpy(_middle(image, window))[None, None]
        begun = time.thread_time()
        with torch.inference_mode():
            logits = network(batch)
        seconds.append(time.thread_time() - begun)
        boards.append(checkerboard(logits[0].numpy()))
    return {
        "window": list(window),
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "gflops": round(counter.get_total_flops() / 1e9, 2),
        "window_s": round(median(seconds), 4),
        "checkerboard": round(median(boards), 3),
    }


def _middle(path: Path, window: Sequence[int]) -> NDArray[np.float32]:
    """The middle of an image by its own mean and deviation, zeros around it where it is smaller than the window."""
    values = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
    values = (values - values.mean()) / values.std()
    for axis, size in enumerate(window):
        lacks = max(0, size - values.shape[axis])
        values = np.pad(
            values, [(lacks // 2, lacks - lacks // 2) if one == axis else (0, 0) for one in range(values.ndim)]
        )
        begin = (values.shape[axis] - size) // 2
        values = values.take(range(begin, begin + size), axis)
    return values


def checkerboard(logits: NDArray[np.float32]) -> float:
    """How much an answer alternates from voxel to voxel.

    Args:
        logits: Shape (C, *window), all sizes even.

    Returns:
        The power at a period of two voxels, as a part of the mean power at the three longer periods beside it; the largest of
        the axes. About 1 or less for a smooth answer.
    """
    ratios = []
    for axis in range(1, logits.ndim):
        power = (np.abs(np.fft.rfft(logits - logits.mean(), axis=axis)) ** 2).mean(
            axis=tuple(other for other in range(logits.ndim) if other != axis)
        )
        ratios.append(float(power[-1] / power[-4:-1].mean()))
    return max(ratios)


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
    every = {DEFAULT: Training(DEFAULT), **{name: Training(name) for name in names()}, **VARIANTS}
    chosen = {name: training for name, training in every.items() if not only or name in only}
    yield from ((name, training, 0) for name, training in chosen.items())
    dice = {name: _mean(figures[f"{name} 0"]) for name in chosen if f"{name} 0" in figures and name not in VARIANTS}
    best = sorted(dice, key=lambda name: -dice[name])[:BEST_AGAIN]
    yield from ((name, training, 1) for name, training in chosen.items() if name in {*best, *TWICE})


def _mean(entry: Mapping[str, Any], column: int = 1) -> float:
    return float(np.mean([case[column] for case in entry["cases"].values()]))


def difference(
    one: Mapping[str, Any], other: Mapping[str, Any], column: int = 1, *, relative: bool = False
) -> Estimate:
    """What `other` has more than `one`, paired by case, with its interval by subject; relative: as a part of `one`'s mean."""
    cases = list(one["cases"])
    first, second = (np.array([entry["cases"][case][column] for case in cases]) for entry in (one, other))
    scale = first.mean() if relative else 1.0
    return bootstrap_paired_difference(
        second / scale, first / scale, [one["cases"][case][0] for case in cases], Bootstrap()
    )


def _told(found: Estimate, digits: int = 4, unit: str = "") -> str:
    return f"{found.value:+.{digits}f}{unit} ({found.low:+.{digits}f} to {found.high:+.{digits}f})"


HEAD = (
    "network", "Dice", "difference", "boundary IoU", "ECE", "parameters, M", "GFLOPs a window", "window", "ms a window",
    "memory of the training, GB", "minutes of a core",
)  # fmt: skip


def write_networks(figures: Mapping[str, Any], folder: Path) -> None:
    """docs/networks.md with its plot."""
    base = figures[f"{DEFAULT} 0"]
    first = {key.split()[0]: entry for key, entry in figures.items() if key.endswith(" 0")}
    again = {key.split()[0]: entry for key, entry in figures.items() if key.endswith(" 1")}
    order = sorted(first, key=lambda name: -_mean(first[name]))
    people = len({case[0] for case in base["cases"].values()})
    rows = [HEAD, ["---"] * len(HEAD), *(_row(name, first[name], base) for name in order)]
    reaches = {name: reach(NetworkChoice(name)) for name in names()}
    twice = [["network", "Dice", "difference, seed 0", "difference, seed 1"], ["---"] * 4]
    for name in (name for name in order if name in again and DEFAULT in again):
        apart = [_apart(name, first[name], base), _apart(name, again[name], again[DEFAULT])]
        twice.append([name, f"{_mean(again[name]):.4f}", *apart])
    text = PAGE.format(
        minutes=base["budget_minutes"], trained=base["trained"], cases=len(base["cases"]), people=people, default=DEFAULT,
        rows=_table(rows), twice=_table(twice),
        reaches=", ".join(f"`{name}` {size}" for name, size in reaches.items() if size < 255),
    )  # fmt: skip
    (folder / "networks.md").write_text(text, encoding="utf-8")
    _plot({name: first[name] for name in order}).savefig(folder / "images/networks.png", dpi=110)


def _row(name: str, entry: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    return [
        name,
        f"{_mean(entry):.4f}",
        _apart(name, entry, base),
        f"{_mean(entry, 2):.4f}",
        f"{_mean(entry, 3):.4f}",
        f"{entry['parameters'] / 1e6:.2f}",
        f"{entry['gflops']:.1f}",
        " × ".join(map(str, entry["window"])),
        f"{1000 * _there(entry, 'window_s'):.0f}",
        f"{entry['memory_gb']:.1f}",
        f"{_there(entry, 'minutes'):.1f}",
    ]


def _there(entry: Mapping[str, Any], key: str) -> float:
    """A time as the machine of the first figures takes it: another machine has as many steps in `pace` times the minutes."""
    return float(entry[key]) / float(entry.get("pace", 1.0))


def _apart(name: str, entry: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    return "" if name == DEFAULT else _told(difference(base, entry))


def reach(choice: NetworkChoice) -> int:
    """Voxels along an axis from which an answer may come, in a window of 256 x 256 with as many levels as a plan gives it.

    All weights are made positive, so that no gradient vanishes, and norms are taken out: they see the whole window.
    """
    plan = plan_network((256, 256), (1.0, 1.0), 2**16, 16, known(choice.name).divisor)
    network = built(written(choice, plan, 1)[0], plan, 1).eval()
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if "Norm" in type(layer).__name__:
                setattr(parent, name, torch.nn.Identity())
    for weight in network.parameters():
        weight.data = weight.data.abs().clamp_min(1e-4)
    image = torch.ones(1, 1, *plan.window, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(image)[0, 0, 128, 128], image)
    return int((gradient[0, 0] != 0).any(0).sum())  # NaN, where sums overflow, is not 0 either


def _table(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _plot(entries: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axis = figure.subplots()
    for name, entry in entries.items():
        subjects, scores = zip(*(case[:2] for case in entry["cases"].values()), strict=True)
        dice, place = bootstrap_mean(scores, subjects, Bootstrap()), 1000 * _there(entry, "window_s")
        axis.errorbar(place, dice.value, [[dice.value - dice.low], [dice.high - dice.value]], fmt="o", ms=5, lw=1)
        axis.annotate(name, (place, dice.value), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axis.set(xscale="log", xlabel="milliseconds a window, one core", ylabel="Dice on cases out of fold, 95 % interval")
    axis.grid(alpha=0.3)
    return figure


PAGE = """# The networks by name, compared

Each for {minutes:g} minutes of one core on hippocampi in MRI: planned by `plan --network NAME --time`, trained on the
{trained} cases of four folds, measured on {cases} cases of {people} people of the fifth, which no training has seen. The test
cases of `examples/splits.json` take no part. `make networks` writes this page from `networks.json`, which has the scores
of every case.

Times are those of the machine of the first trainings; a later machine, on which the same steps take another time, trained for
as many steps, and its times are converted by that.

Differences are to `{default}`, which a plan takes by itself, paired by case; intervals of 95 % by subject. Where an interval
holds 0, these cases and this training show no difference. Other data, or hours on a GPU, may give another order.
`dynunet_two` is two networks side by side within the same time, `dynunet_deep` has deep supervision, `dynunet_ace` the loss
Dice + cross entropy + ACE, `segresnet_transposed` transposed convolutions on its way up. Names of structures decide whether
a plan mirrors images: here they say nothing, so it does not; `dynunet_mirrored` was planned with names, `_tta` averages over
mirror images, and `dynunet_field` is `dynunet_mirrored` with our conditional random field after it, with the values of
[the page on bundles](bundles.md).

![Dice against the time of a window](images/networks.png)

{rows}

Reach, in voxels along an axis of a window of 256 x 256 with six levels, norms apart: {reaches}; all others the whole window.

## On vessels of the retina

The network of the shipped bundle and the light one on CHASE_DB1, whose lines are one to ten pixels wide, with the same time of
one core each:

```
monai-unet plan chase_db1_2d --label-suffix _1stHO --network light_unet --time 3min --output PLAN
monai-unet train --bundle PLAN --data chase_db1_2d --label-suffix _1stHO --folds all --output BUNDLE
monai-unet evaluate --bundle BUNDLE --data chase_db1_2d --label-suffix _1stHO --folds --output OUT
```

| time of a training | measured on | retina_vessel_unet2d | light_unet | difference |
| --- | --- | --- | --- | --- |
| 3 minutes | 20 pictures of 10 people, five folds | 0.7046 | 0.4720 | -0.2327 (-0.2429 to -0.2233) |
| 10 minutes | 4 pictures of 2 people, one fold | 0.8336 | 0.8010 | -0.0326, too few people for an interval |

Mean Dice. So the light network is no replacement here. In 2D a step of its training takes twice as long as one of the
other: the plan fits 63 and 128 of them into 3 minutes.

A second training with another seed, for the four best and those that [what the field says](claims.md) compares:

{twice}
"""


@dataclass(frozen=True)
class Claim:
    """What the field says of one training beside another.

    Attributes:
        text: In words.
        one, other: Names of trainings.
        column: Of the scores of a case.
        least: What `other` is said to have more, with the sign of a gain.
        relative: As a part of the mean of `one`.
        sign: -1 where less is better.
    """

    text: str
    one: str
    other: str
    column: int
    least: float = 0.0
    relative: bool = False
    sign: int = 1

    def gains(self, figures: Mapping[str, Any]) -> list[Estimate]:
        """Of each seed that both were trained with; the sign is that of a gain."""
        pairs = [(figures.get(f"{self.one} {seed}"), figures.get(f"{self.other} {seed}")) for seed in (0, 1)]
        found = [difference(a, b, self.column, relative=self.relative) for a, b in pairs if a and b]
        return [
            replace(gain, value=-gain.value, low=-gain.high, high=-gain.low) if self.sign < 0 else gain
            for gain in found
        ]

    def verdict(self, gains: Sequence[Estimate]) -> str:
        """Decided only where both seeds agree."""
        if len(gains) < 2:
            return "not tried"
        if all(gain.low > self.least for gain in gains):
            return "reproduced"
        if all(gain.high < self.least for gain in gains):
            return "refuted: less than that" if self.least else "refuted: worse"
        return "not decided"

    def row(self, figures: Mapping[str, Any]) -> list[str]:
        """For the table of the page."""
        gains = self.gains(figures)
        scale, unit = (100.0, " %") if self.relative else (1.0, "")
        told = [
            _told(
                replace(gain, value=scale * gain.value, low=scale * gain.low, high=scale * gain.high),
                1 if unit else 4,
                unit,
            )
            for gain in gains
        ]
        return [self.text, f"{self.other} - {self.one}", *told, *[""] * (2 - len(told)), self.verdict(gains)]


CLAIMS = (
    Claim("U-Net++ has 5 to 15 % better boundaries than U-Net (boundary IoU)", "unet", "unet_plus_plus", 2, 0.05, True),
    Claim(
        "Attention U-Net has 5 to 15 % better boundaries than U-Net (boundary IoU)",
        "unet",
        "attention_unet",
        2,
        0.05,
        True,
    ),
    Claim("Deep supervision gives a better Dice", "dynunet", "dynunet_deep", 1),
    Claim(
        "The mean of two networks has a better Dice than one that trained as long as both", "dynunet", "dynunet_two", 1
    ),
    Claim("The mean of two networks is better calibrated (ECE)", "dynunet", "dynunet_two", 3, sign=-1),
    Claim("A loss of calibration lowers the calibration error (ECE)", "dynunet", "dynunet_ace", 3, sign=-1),
    Claim("A loss of calibration costs no Dice (no more than 0.005)", "dynunet", "dynunet_ace", 1, -0.005),
    Claim("Mirror images in training give a better Dice", "dynunet", "dynunet_mirrored", 1),
    Claim(
        "Averaging over mirror images at test time gives a better Dice", "dynunet_mirrored", "dynunet_mirrored_tta", 1
    ),
    Claim(
        "Averaging over mirror images is better calibrated (ECE)",
        "dynunet_mirrored",
        "dynunet_mirrored_tta",
        3,
        sign=-1,
    ),
    Claim("A conditional random field after the network gives a better Dice", "dynunet_mirrored", "dynunet_field", 1),
    Claim("A conditional random field sharpens boundaries (boundary IoU)", "dynunet_mirrored", "dynunet_field", 2),
    Claim("Resize convolutions give a better Dice than transposed ones", "segresnet_transposed", "segresnet", 1),
)
CLAIM_HEAD = ("it is said", "compared", "seed 0", "seed 1", "here")


def write_claims(figures: Mapping[str, Any], folder: Path) -> None:
    """docs/claims.md."""
    rows = [CLAIM_HEAD, ["---"] * len(CLAIM_HEAD), *(claim.row(figures) for claim in CLAIMS)]
    boards = [("network", "seed 0", "seed 1"), ["---"] * 3]
    for name in dict.fromkeys(key.split()[0] for key in figures):
        if not name.endswith("_tta"):
            found = [figures[key]["checkerboard"] if (key := f"{name} {seed}") in figures else "" for seed in (0, 1)]
            boards.append([name, *map(str, found)])
    text = CLAIMS_PAGE.format(rows=_table(rows), boards=_table(boards), transfer=_transfer(folder / "transfer.json"))
    (folder / "claims.md").write_text(text, encoding="utf-8")


def _transfer(kept: Path) -> str:
    """A table for each curve of benchmarks/transfer.py."""
    curves = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    tables = []
    for curve in curves.values():
        rows = [["cases that trained", "begins with", "Dice", "gain"], ["---"] * 4]
        for point in curve["points"]:
            gain = point["gain"]
            ends = f"{gain['value']:+.4f} ({gain['interval'][0]:+.4f} to {gain['interval'][1]:+.4f})" if gain else ""
            low, high = point["interval"]
            told = f"{point['dice']:.4f} ({low:.4f} to {high:.4f})"
            rows.append(
                [
                    str(point["cases"]),
                    f"weights of {curve['donor']}" if point["donor"] else "random weights",
                    told,
                    ends,
                ]
            )
        head = f"{curve['data']}, {curve['minutes']} minutes of one core each, measured on {curve['measured']}:"
        tables.append(f"{head}\n\n{_table(rows)}")
    gains = [point["gain"]["interval"] for curve in curves.values() for point in curve["points"] if point["gain"]]
    above = sum(low > 0 for low, _ in gains)
    said = f"The weights of another anatomy gave a better Dice in {above} of {len(gains)} comparisons"
    below = sum(high < 0 for _, high in gains)
    return "\n\n".join([*tables, f"{said}, a worse one in {below}."] if tables else ["Not measured yet."])


CLAIMS_PAGE = """# What the field says of U-Nets, tried

Each line compares two trainings of [the table of networks](networks.md): the same cases, the same half hour of one core, the
same windows drawn by the same seed, one thing changed. Gains are paired by case, with an interval of 95 % by subject; above 0
is better. *Reproduced*: both seeds have their interval above what is said; *refuted*: both have it below; all else is *not
decided* here. Hippocampi are easy, small and many are alike: what is refuted here may hold for other images, and for
trainings of days. Written by `make networks`.

{rows}

## Checkerboards

It is said that transposed convolutions leave checkerboards, and resize convolutions do not. The power of the logits at a period
of two voxels as a part of that at the three longer periods beside it, the largest of the axes, median of seven images: about 1
or less is smooth. On the way up `segresnet`, `light_unet` and `flexible_unet` resize, all others have transposed convolutions.

{boards}

## Few cases, and weights that were trained before

It is said that 500 to 2,000 samples suffice with weights that were trained before. No data set of this size is at hand; here is
what fewer cases say, by [benchmarks/learning_curve.py](how-to/train.md#curve), which measures it on yours, too. A number is
trained twice, with the same steps and windows; the gain is that of the weights, paired by case. Written by
`python benchmarks/transfer.py`.

{transfer}

## Not tried

- *Averaging over mirror images gives 8 to 12 % more consistency*: it is not said of what. Between an image and its mirror image
  the averaged answers agree by construction.
"""


def main() -> int:
    """Trains what is missing, within the time, and writes the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--build", type=Path, default=REPOSITORY / "build/networks")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="what is kept of each training")
    parser.add_argument("--minutes", type=float, default=30.0, help="of a training")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each on one core")
    parser.add_argument("--stop-after", type=float, default=1e6, metavar="MINUTES")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=[*names(), *VARIANTS])
    parser.add_argument("--pages", action="store_true")
    options = parser.parse_args()
    if not options.pages and not options.data.exists():
        print(f"left out: {options.data} does not exist")
        return 0
    runner = Runner(options)
    if not options.pages:
        torch.set_num_threads(1)
        runner.run_all(options.only)
    if f"{DEFAULT} 0" in runner.figures:
        write_networks(runner.figures, runner.kept.parent)
        write_claims(runner.figures, runner.kept.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
