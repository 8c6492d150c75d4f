"""How many cases are enough? One training on more and more of them, measured on the same cases out of fold.

    python benchmarks/learning_curve.py --bundle PLAN --data DATA --output OUT --cases 20 50 118 [--folds 0 1] [--from DONOR]

The network of each fold (of fold 0 if none is named) is trained on so many of its cases. The cases of a smaller number are
among those of a larger one, and all cases of a subject train or none. Each training has as many steps as one on all cases,
since it takes more windows of each, and more epochs. With --from each number is trained twice, at random and with the weights
of the donor; the gain is paired by case, with its interval by subject. OUT/learning_curve.md and .png have the table and the
plot, OUT/20_random/out_of_fold the report behind a point. The same command resumes. Cases that are set aside count as test
cases in the run.json of these bundles: they are for the curve, not for use. One curve is one draw of cases and one seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dicom_io.files import replace_when_whole, write_whole
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.comparison.differences import Difference, compare
from monai_unet_app.data.cases import PlannedCases
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import AppError, BundleError, InputRefusedError
from monai_unet_app.metrics.bootstrap import Bootstrap, Estimate, bootstrap_mean
from monai_unet_app.report.charts import LIGHT, Palette, style_axis
from monai_unet_app.report.stored_evaluation import MEAN, read_evaluation
from monai_unet_app.training.ranking import OUT_OF_FOLD, check_folder, digests_of, interval_text, measure_out_of_fold
from monai_unet_app.training.run import (
    TrainConfig,
    check_classes,
    check_folds,
    check_output,
    planned_cases,
    train_checked_folds,
)
from monai_unet_app.training.transfer import find_donor
from monai_unet_app.written_config import yaml_of

TABLE, PICTURE, PLANS = "learning_curve.md", "learning_curve.png", "plans"
COLUMNS = ("cases", "begins", "Dice, 95 % interval", "gain by the donor, 95 % interval")


@dataclass(frozen=True)
class Point:
    """What a training on so many cases reached.

    Attributes:
        cases: Number of cases that trained, in the last of several folds.
        donor: Name of the weights that it began with; empty for random ones.
        dice: Mean over the cases out of fold, 0 to 1, with its interval by subject.
        gain: To the training on the same cases that began at random; None for that one, or if there is none.
    """

    cases: int
    donor: str
    dice: Estimate
    gain: Difference | None = None

    def row(self) -> tuple[str, str, str, str]:
        """As in COLUMNS."""
        gain = self.gain.estimate if self.gain else None
        return (
            str(self.cases),
            f"with {self.donor}" if self.donor else "at random",
            f"{self.dice.value:.4f}{interval_text(self.dice.interval, sign='')}",
            f"{gain.value:+.4f}{interval_text(gain.interval)}" if gain else "",
        )

    def document(self) -> dict[str, Any]:
        """For JSON."""
        gain = self.gain.estimate if self.gain else None
        return {
            "cases": self.cases,
            "donor": self.donor or None,
            "dice": self.dice.value,
            "interval": self.dice.interval,
            "gain": gain and {"value": gain.value, "interval": gain.interval},
        }


def train_learning_curve(
    template: Bundle, run: TrainConfig, numbers: Sequence[int], folds: Sequence[int] = (0,)
) -> list[Point]:
    """Trains the folds of a template on some of their cases, and measures each on the cases of the fold.

    The cases of a smaller number are among those of a larger one. A subject trains with all of its cases or with none, so fewer
    cases may train than were asked for. Every training has as many steps as one on all cases of the fold, since it takes more
    windows of each case, and more epochs. With a donor all are trained twice, with its weights and at random. The same call
    resumes. `run.output` gets a bundle for each training and learning_curve.md with a plot.

    Args:
        template: As in `train_folds`.
        run: As in `train_folds`.
        numbers: Of cases to train on, in any order.
        folds: Some of the plan's folds.

    Raises:
        InputRefusedError: A fold has fewer cases to train on; else as `train_folds`.
        BundleError: The template's `train.yaml` has no `windows_per_case`; else as `train_folds`.
        UsageError: As `train_folds`.
    """
    trainings = _trainings(template, run, planned_cases(template, run), sorted(set(numbers)), folds)
    check_folder(run.output, [one.folder for one in trainings], {TABLE, PICTURE, PLANS})
    _, measured = check_folds(template, replace(run, output=trainings[-1].run.output), folds, None)
    for one in trainings:
        check_output(template, one.run.output)
        check_classes(template, one.run, one.planned, measured)
    for one in trainings:
        run.say(f"{one.folder}:")
        one.write_plan()
        train_checked_folds(template, one.run, [one.fold])
    for folder in dict.fromkeys(one.run.output for one in trainings):
        bundle = load_bundle(folder, template.device)
        measure_out_of_fold(bundle, run, digests_of(bundle, folds))
    trained = {one.number: one.cases for one in trainings}
    points = [
        _point(run, *key, trained) for key in dict.fromkeys((one.number, bool(one.run.donor)) for one in trainings)
    ]
    _write(points, run.output)
    return points


@dataclass(frozen=True)
class _Training:
    """One network of the curve: a fold, with its plan, for a number of cases that was asked for."""

    number: int
    fold: int
    planned: PlannedCases
    run: TrainConfig

    @property
    def folder(self) -> str:
        return self.run.output.name

    @property
    def cases(self) -> int:
        return len(self.planned.rows(self.fold)["train"])

    def write_plan(self) -> None:
        """Writes its splits.json."""
        assert self.run.splits
        cases = [asdict(entry) for entry in self.planned.plan.values()]
        write_json({"schema_version": "1.0", "datasets": {"data": {"cases": cases}}}, self.run.splits, "splits")


def _trainings(
    template: Bundle, run: TrainConfig, planned: PlannedCases, numbers: Sequence[int], folds: Sequence[int]
) -> list[_Training]:
    """All networks, those on few cases first."""
    document = yaml_of(template.root / "configs/train.yaml")
    windows = document.get("train", {}).get("loader", {}).get("windows_per_case")
    if not isinstance(windows, int):
        raise BundleError(
            f"{template.name}: train.yaml has no number `windows_per_case` in `train::loader`, by which a training on few "
            "cases has as many steps as one on all; a loader as in a planned bundle is needed"
        )
    epochs = run.overrides.get("epochs", document["epochs"])
    taken = {fold: taken_cases(planned, fold, numbers) for fold in folds}
    prefix = run.name or run.output.resolve().name
    trainings = []
    for number, own in product(numbers, [replace(run, donor=None), run] if run.donor else [run]):
        folder = _folder(number, own.donor is not None)
        for fold in folds:
            more = len(planned.rows(fold)["train"]) / len(taken[fold][number])
            each = max(1, round(windows * more))
            length = {"train::loader::windows_per_case": each, "epochs": max(1, round(epochs * windows * more / each))}
            one = replace(
                own,
                splits=run.output / PLANS / f"{number}_fold{fold}.json",
                fold=fold,
                output=run.output / folder,
                name=f"{prefix}_{folder}",
                overrides=own.overrides | length,
            )
            trainings.append(_Training(number, fold, _with_only(planned, fold, taken[fold][number]), one))
    return trainings


def taken_cases(planned: PlannedCases, fold: int, numbers: Sequence[int]) -> dict[int, list[str]]:
    """Number -> cases of a fold that train, as many as whole subjects give; in the order of a hash of the subject.

    Args:
        planned: The cases.
        fold: Of the plan.
        numbers: Smallest first; each list begins with the one before.

    Raises:
        InputRefusedError: Fewer cases train in the fold than the largest number, or no subject has as few as the smallest.
    """
    cases: dict[str, list[str]] = {}
    for row in planned.rows(fold)["train"]:
        cases.setdefault(row["subject"], []).append(row["id"])
    if numbers[-1] > (most := sum(map(len, cases.values()))):
        raise InputRefusedError(
            f"--cases {numbers[-1]}: fold {fold} has {most} case(s) to train on; at most as many are possible; give "
            "smaller numbers"
        )
    left = sorted(cases, key=lambda subject: hashlib.sha256(subject.encode()).hexdigest())
    taken: list[str] = []
    found = {}
    for number in numbers:
        for subject in list(left):
            if len(taken) + len(cases[subject]) <= number:
                taken += cases[subject]
                left.remove(subject)
        found[number] = list(taken)
    if not found[numbers[0]]:
        raise InputRefusedError(
            f"--cases {numbers[0]}: every subject of fold {fold} has more cases than that, and all cases of a subject "
            "train together; give a larger number"
        )
    return found


def _folder(number: int, with_donor: bool) -> str:
    return f"{number}_{'from' if with_donor else 'random'}"


def _with_only(planned: PlannedCases, fold: int, taken: Collection[str]) -> PlannedCases:
    """The plan in which all others are set aside, as test cases are, but for those of the fold."""
    plan = {}
    for case, entry in planned.plan.items():
        kept = entry.partition != "test" and (entry.fold == fold or case in taken)
        plan[case] = replace(entry, partition="train" if kept else "test")
    return replace(planned, plan=plan)


def _point(run: TrainConfig, number: int, with_donor: bool, trained: Mapping[int, int]) -> Point:
    folders = [run.output / _folder(number, one) / OUT_OF_FOLD for one in (False, with_donor)]
    table = read_evaluation(folders[-1]).table
    values = table.values("dice", MEAN)
    dice = bootstrap_mean(list(values.values()), [table.subjects[case] for case in values], Bootstrap())
    if not with_donor or run.donor is None:
        return Point(trained[number], "", dice)
    compared = compare(*folders, common=True, names=("at random", "donor"))
    return Point(trained[number], run.donor.name, dice, compared.of("dice", MEAN))


def _table(points: Sequence[Point]) -> str:
    rows = (COLUMNS, ("---",) * 4, *(point.row() for point in points))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _write(points: Sequence[Point], output: Path) -> None:
    count = points[0].dice
    lines = [
        "# Dice against the number of cases",
        "",
        f"{count.cases} case(s) of {count.subjects} subject(s), the same for every training, seen by none.",
        "",
        _table(points),
        "",
        f"![Dice against the number of cases]({PICTURE})",
    ]
    write_whole(output / TABLE, "\n".join(lines) + "\n")
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for point in points:
        name = f"begins with {point.donor}" if point.donor else "begins at random"
        curves.setdefault(name, []).append((point.cases, point.dice))
    figure = curve_figure(curves, LIGHT)
    with replace_when_whole(output / PICTURE) as part:
        figure.savefig(part, format="png", dpi=120)


def curve_figure(curves: Mapping[str, Sequence[tuple[float, Estimate]]], palette: Palette) -> Figure:
    """Up to two curves with the interval of each point: name -> number of cases and Dice of each point."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained", facecolor=palette.ground)
    axis = figure.subplots()
    style_axis(axis, palette)
    for (name, points), colour, marker in zip(curves.items(), (palette.first, palette.second), "os", strict=False):
        places, values = [place for place, _ in points], [value.value for _, value in points]
        axis.plot(places, values, color=colour, lw=1.6, marker=marker, ms=5, label=name, zorder=3)
        for place, value in points:
            axis.vlines(place, value.low, value.high, color=colour, lw=1.2, alpha=0.6, zorder=2)
    axis.legend(loc="lower right", frameon=False, fontsize=10, labelcolor=palette.ink)
    axis.set_xlabel("cases that trained", color=palette.ink)
    axis.set_ylabel("Dice on cases out of fold", color=palette.ink)
    axis.grid(True, color=palette.grid, lw=0.8)
    return figure


def main(words: Sequence[str] | None = None) -> int:
    """Trains what is missing, prints the points and keeps table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="template, such as the output of monai-unet plan")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cases", type=int, nargs="+", required=True, metavar="N", help="numbers of cases to train on")
    parser.add_argument("--folds", type=int, nargs="+", default=[0], choices=range(10), metavar="FOLD")
    parser.add_argument("--from", dest="donor", metavar="WEIGHTS", help="train each number with these weights, too")
    parser.add_argument("--splits", type=Path)
    parser.add_argument("--epochs", type=int, help="of a training on all cases (default: the template's)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="print the points as JSON")
    options = parser.parse_args(words)
    overrides = {"tracker": "none"} | ({"epochs": options.epochs} if options.epochs else {})
    try:
        donor = find_donor(options.donor, [], 1.0) if options.donor else None
        run = TrainConfig(
            options.data, options.output, splits=options.splits, device=options.device, donor=donor, overrides=overrides,
            say=lambda line: print(line, file=sys.stderr),
        )  # fmt: skip
        points = train_learning_curve(load_bundle(options.bundle), run, options.cases, options.folds)
    except AppError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"points": [point.document() for point in points]}) if options.json else _table(points))
    return 0


if __name__ == "__main__":
    sys.exit(main())
