"""Several configurations on one data set: trained in the same folds, measured out of fold, ranked; the best gets a network."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from dicom_io.files import write_whole
from monai_unet_app.bundle import Bundle, load_bundle
from monai_unet_app.comparison.differences import compare
from monai_unet_app.data.case_files import find_data
from monai_unet_app.data.cases import plan_of
from monai_unet_app.data.schemas import json_of, write_json
from monai_unet_app.errors import BundleError, InputRefusedError, UsageError
from monai_unet_app.evaluate import choose_out_of_fold, evaluate_cases
from monai_unet_app.metrics.bootstrap import Bootstrap, finite_mean
from monai_unet_app.report.stored_evaluation import read_evaluation
from monai_unet_app.training.run import Delivery, TrainConfig, check_folds, deliver_network, train_checked_folds

OUT_OF_FOLD = "out_of_fold"
"""Folder of the evaluation in the bundle of a configuration."""

RANKING, TABLE = "ranking.json", "ranking.md"


@dataclass(frozen=True)
class Ranked:
    """A configuration with its figures out of fold.

    Attributes:
        name: Its folder.
        dice: Mean over cases, 0 to 1.
        difference: Of its Dice to that of the configuration with the largest, case by case; None for that one.
        interval: Of the difference, by subject; None without one.
        word: "same" where the interval holds 0, "too few" below the subjects that an interval needs; None for the first.
        seconds: For a case, the median, on this machine.
        weights: Fold -> SHA-256 of the weights that were measured.
    """

    name: str
    dice: float
    difference: float | None
    interval: Sequence[float] | None
    word: str | None
    seconds: float
    weights: Mapping[str, str]

    @property
    def is_equal(self) -> bool:
        """Whether nothing shows that it is worse than the first."""
        return self.word != "worse"


@dataclass(frozen=True)
class Ranking:
    """Configurations, the one with the largest Dice first.

    Attributes:
        cases: Number of cases that all have measured.
        subjects: Number of people behind them.
        interval: How the intervals are drawn.
        configurations: Each with its figures.
    """

    cases: int
    subjects: int
    interval: Mapping[str, Any]
    configurations: Sequence[Ranked]

    @property
    def chosen(self) -> Ranked:
        """The fastest of those that are not surely worse than the first."""
        return min((entry for entry in self.configurations if entry.is_equal), key=lambda entry: entry.seconds)

    @property
    def reason(self) -> str:
        """Why it was chosen."""
        equal = [entry.name for entry in self.configurations if entry.is_equal]
        if len(equal) == 1:
            return f"{equal[0]} has the largest Dice, and each interval of a difference to it lies below 0"
        why = "an interval of the difference to the largest Dice holds 0"
        if any(entry.word == "too few" for entry in self.configurations):
            why = f"{self.subjects} subject(s) are too few for intervals"
        return f"no difference between {', '.join(equal)} is shown ({why}), and {self.chosen.name} is the fastest"

    def document(self) -> dict[str, Any]:
        """The content of ranking.json."""
        return {"schema_version": "1.0", "chosen": self.chosen.name, "reason": self.reason, **asdict(self)}

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Name, Dice, difference with its interval, seconds, and "chosen" or nothing."""
        return [
            (
                entry.name,
                f"{entry.dice:.4f}",
                "" if entry.difference is None else f"{entry.difference:+.4f}{interval_text(entry.interval)}",
                f"{entry.seconds:.1f}",
                "chosen" if entry is self.chosen else "",
            )
            for entry in self.configurations
        ]


COLUMNS = ("configuration", "Dice", "difference to the best, 95 % interval", "seconds a case", "")


def train_ranked(
    templates: Mapping[str, Bundle],
    run: TrainConfig,
    folds: Sequence[int] = (),
    *,
    deliver: Delivery | None = "all-data",
) -> Ranking:
    """Trains the folds of each template into a folder of its name in `run.output`, ranks them, and completes the best one.

    Everything is checked for all templates before the first is trained. The same call resumes: what is trained or ranked
    already is not done again.

    Args:
        templates: Name -> bundle, for one task and one plan of cases.
        run: As in `train_folds`; its output gets ranking.json and ranking.md beside the bundles.
        folds: Some of the plan's folds; by default all.
        deliver: The own network of the chosen bundle, as in `train_folds`; the others have those of their folds only.

    Raises:
        UsageError: The output folder holds something else.
        InputRefusedError, BundleError: As `train_folds`, for any of the templates; or they have other structures or folds.
    """
    prefix = run.name or run.output.resolve().name
    runs = {name: replace(run, output=run.output / name, name=f"{prefix}_{name}") for name in templates}
    check_folder(run.output, templates, {RANKING, TABLE})
    _check_alike(templates, run)
    wanted: dict[str, Sequence[int]] = {}
    for name, template in templates.items():
        run.say(f"{name}:")
        wanted[name], _ = check_folds(template, runs[name], folds, deliver)
    for name, template in templates.items():
        run.say(f"{name}:")
        train_checked_folds(template, runs[name], wanted[name])
    bundles = {name: load_bundle(runs[name].output, template.device) for name, template in templates.items()}
    weights = {name: digests_of(bundle, wanted[name]) for name, bundle in bundles.items()}
    ranking = _earlier(run.output, weights)
    if ranking is None:
        seconds = {name: measure_out_of_fold(bundle, run, weights[name]) for name, bundle in bundles.items()}
        ranking = _rank({name: bundle.root / OUT_OF_FOLD for name, bundle in bundles.items()}, seconds, weights)
        _write(ranking, run.output)
    if deliver:
        name = ranking.chosen.name
        run.say(f"{name}: {ranking.reason}")
        deliver_network(templates[name], runs[name], wanted[name], deliver)
    return ranking


def check_folder(output: Path, names: Collection[str], files: Collection[str]) -> None:
    """Raises UsageError if a folder of several trainings holds anything but these trainings and files."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UsageError(f"{output} is a file; a folder is needed; choose another")
    known = {*names, *files}
    other = sorted(entry.name for entry in output.iterdir() if entry.name not in known and entry.name[0] != ".")
    if other:
        raise UsageError(
            f"{output} holds {', '.join(other[:3])}{', ...' if other[3:] else ''}; a new or empty folder is needed, or one "
            f"with only {', '.join(names)} of an earlier run; choose another"
        )


def _check_alike(templates: Mapping[str, Bundle], run: TrainConfig) -> None:
    """Raises if the templates have other structures, or would train on other cases in a fold."""
    cases = find_data(run.data, run.labels, run.label_suffix)
    tasks = {name: (template.outputs, template.structure_names) for name, template in templates.items()}
    plans = {name: plan_of(cases, run.splits, template.own_splits) for name, template in templates.items()}
    first = next(iter(templates))
    for name in templates:
        if tasks[name] != tasks[first]:
            raise BundleError(
                f"{first} is for {', '.join(tasks[first][1])}, {name} for {', '.join(tasks[name][1])}; the same structures are "
                "needed to rank them; plan them together"
            )
        if plans[name] != plans[first]:
            raise InputRefusedError(
                f"{first} and {name} put these cases into different folds; the same folds are needed to rank them; give "
                "--splits, "
                "or plan them together"
            )


def digests_of(bundle: Bundle, folds: Sequence[int]) -> dict[str, str]:
    """Fold -> SHA-256 of its weights."""
    digests = {}
    for fold in folds:
        with (bundle.of_fold(fold).weights_dir / "model.pt").open("rb") as file:
            digests[str(fold)] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def measure_out_of_fold(bundle: Bundle, run: TrainConfig, folds: Mapping[str, str]) -> float:
    """Evaluates the cases of these folds out of fold, into the bundle's folder; gives the median of the seconds for a case."""
    chosen = choose_out_of_fold(bundle, find_data(run.data, run.labels, run.label_suffix))
    numbers = {case: fold for case, fold in chosen.folds.items() if str(fold) in folds}
    rows = [row for row in chosen.rows if row["id"] in numbers]
    run.say(f"{bundle.name}: evaluating {len(rows)} case(s) out of fold")
    with run.display("evaluating", len(rows)) as step:
        done = evaluate_cases(
            bundle,
            replace(chosen, rows=rows, name=run.data.resolve().name, folds=numbers),
            bundle.root / OUT_OF_FOLD,
            each=lambda case_id, dice: step(case_id),
        )
    for problem in done.problems:
        run.say(f"{bundle.name}: not measured: {problem}")
    return median(done.seconds.values())


def _rank(
    evaluations: Mapping[str, Path], seconds: Mapping[str, float], weights: Mapping[str, Mapping[str, str]]
) -> Ranking:
    """The ranking by the stored evaluations."""
    tables = {name: read_evaluation(folder).table for name, folder in evaluations.items()}
    values = {name: table.values("dice") for name, table in tables.items()}
    measured = ({case for case, value in own.items() if isfinite(value)} for own in values.values())
    shared = sorted(set.intersection(*measured))
    if not shared:
        raise InputRefusedError("no case could be measured by all configurations; see their problems above")
    dice = {name: finite_mean(own[case] for case in shared) for name, own in values.items()}
    first, *others = sorted(dice, key=lambda name: -dice[name])
    differences: dict[str, tuple[Any, Any, Any]] = {first: (None, None, None)}
    for name in others:
        compared = compare(evaluations[first], evaluations[name], common=True, names=(first, name))
        difference = compared.of("dice", "mean")
        differences[name] = difference.estimate.value, difference.estimate.interval, difference.word
    entries = [
        Ranked(name, dice[name], *own, round(seconds[name], 3), weights[name]) for name, own in differences.items()
    ]
    subjects = {tables[first].subjects[case] for case in shared}
    return Ranking(len(shared), len(subjects), Bootstrap().document(), entries)


def _earlier(output: Path, weights: Mapping[str, Mapping[str, str]]) -> Ranking | None:
    """The ranking of an earlier call, if it measured these weights."""
    try:
        stored = json_of(output / RANKING)
        entries = [Ranked(**entry) for entry in stored["configurations"]]
        ranking = Ranking(stored["cases"], stored["subjects"], stored["interval"], entries)
    except (OSError, ValueError, KeyError, TypeError):  # absent or of another version: it is made anew
        return None
    return ranking if {entry.name: entry.weights for entry in entries} == weights else None


def _write(ranking: Ranking, output: Path) -> None:
    lines = [
        "# Configurations, ranked out of fold",
        "",
        f"{ranking.cases} case(s) of {ranking.subjects} subject(s), each by the network that has not seen it.",
        f"Chosen: {ranking.chosen.name}. {ranking.reason[:1].upper()}{ranking.reason[1:]}.",
        "",
        *(f"| {' | '.join(row)} |" for row in (COLUMNS, ("---",) * len(COLUMNS), *ranking.rows())),
    ]
    write_whole(output / TABLE, "\n".join(lines) + "\n")
    write_json(ranking.document(), output / RANKING, "ranking")


def interval_text(interval: Sequence[float] | None, sign: str = "+") -> str:
    """ " (+0.0012 to +0.0034)"; empty for None."""
    return "" if interval is None else f" ({interval[0]:{sign}.4f} to {interval[1]:{sign}.4f})"
