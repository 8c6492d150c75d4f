"""The partitions: the use of each subject (train, selection, calibration, test) is decided once and written down.

A subject (one person, whose two hippocampi or two eyes are two cases) is never in two partitions.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from monai_unet_app.data.schemas import json_of, validate
from monai_unet_app.errors import InputRefusedError

Partition = Literal["train", "selection", "calibration", "test"]
FOLDS = 5
MOST_FOLDS = 10
NNUNET_FOLDS = "splits_final.json"
"""Of nnU-Net, in its folder of preprocessed data: a list with the cases that train and that validate, for each fold."""

ENOUGH_TO_CHECK = 2
"""Number of subjects that a check needs: a calibration is fitted on some and checked on another."""

VERBS = {"train": "train on", "selection": "select the best model", "calibration": "calibrate", "test": "test"}
SHARES: Mapping[Partition, float] = {"test": 0.2, "calibration": 0.11, "selection": 0.07, "train": 0.62}


@dataclass(frozen=True)
class SplitCase:
    """The entry of a case in the plan. `fold` (0 to 4) is for five-fold cross-validation and independent of `partition`."""

    id: str
    subject: str
    partition: Partition
    fold: int


def make_split(name: str, subjects: Mapping[str, str]) -> list[SplitCase]:
    """A split of the cases, the same on every machine: subjects are ordered by a hash and divided by `SHARES`.

    Args:
        name: Name of the data set; seeds the order.
        subjects: Case id to subject id.

    Returns:
        One entry for each case, sorted by id.

    Raises:
        InputRefusedError: Fewer subjects than partitions.
    """
    order = _in_order(name, subjects)
    if len(order) < len(SHARES):
        raise InputRefusedError(
            f"{len(order)} subject(s) found; at least {len(SHARES)} are needed, one each to train, select, calibrate "
            "and test; add cases, or state two folds or more in the column fold of a list"
        )
    partition, fold = _partitions(order), deal_folds(name, subjects)
    return [SplitCase(case, subject, partition[subject], fold[case]) for case, subject in sorted(subjects.items())]


def deal_folds(name: str, subjects: Mapping[str, str]) -> dict[str, int]:
    """The cross-validation fold of each case, from 0; arguments as in `make_split`."""
    # Dealt out in turn: partitions are blocks of this order, so a fold takes subjects of every large partition
    place = {subject: n % FOLDS for n, subject in enumerate(_in_order(name, subjects))}
    return {case: place[subject] for case, subject in subjects.items()}


def _in_order(name: str, subjects: Mapping[str, str]) -> list[str]:
    # A hash instead of a seed: random generators may change with a library's version, SHA-256 does not
    return sorted(set(subjects.values()), key=lambda s: hashlib.sha256(f"{name}:{s}".encode()).hexdigest())


def _partitions(order: list[str]) -> dict[str, Partition]:
    """The partition of each subject: the first subjects test, calibrate and select, all others train."""
    counts = {part: max(1, round(share * len(order))) for part, share in SHARES.items() if part != "train"}
    parts: list[Partition] = [part for part, count in counts.items() for _ in range(count)]
    return dict(zip_longest(order, parts, fillvalue="train"))


def folds_of(plan: Iterable[SplitCase]) -> list[int]:
    """The folds of a plan, in order; its test cases are in none."""
    return sorted({entry.fold for entry in plan if entry.partition != "test"})


def trains_by_folds(plan: Iterable[SplitCase], where: str, wanted: bool | None = None) -> bool:
    """Whether a plan is trained in folds, not by its partitions.

    Partitions need cases that train and that select, and by themselves are taken only where others calibrate or test.

    Args:
        plan: The entry of each case.
        where: The source of the plan, for a message.
        wanted: What the user asks for; None for what the plan allows.

    Raises:
        InputRefusedError: The plan does not allow it; the message says what it allows.
    """
    entries = list(plan)
    folds, subjects = folds_of(entries), {part: {e.subject for e in entries if e.partition == part} for part in SHARES}
    possible = len(folds) > 1 and folds[0] >= 0 and folds[-1] < MOST_FOLDS
    absent = next((part for part in ("train", "selection") if not subjects[part]), None)
    if wanted is None:
        left = subjects["test"] or len(subjects["calibration"]) >= ENOUGH_TO_CHECK
        wanted = possible and not (left and absent is None)
    if wanted and not possible:
        raise InputRefusedError(
            f"{where} has cases to train on in fold {', '.join(map(str, folds)) or 'none'}; two to {MOST_FOLDS} folds, from 0 "
            "on, are needed; state them in the column fold of a list, or by --splits"
        )
    if not wanted and absent:
        instead = "give --folds all, which trains a network for each fold and one on all cases"
        raise InputRefusedError(
            f"{where} has no case to {VERBS[absent]}; at least one is needed; "
            + (instead if possible else "correct the partitions, or leave them out")
        )
    return wanted


def read_splits(path: Path) -> dict[str, SplitCase]:
    """Every case of every data set in a `splits.json`, by id.

    Raises:
        InputRefusedError: The file cannot be read, breaks its schema, names a case twice or has one subject in two
            partitions.
    """
    try:
        document = json_of(Path(path))
    except (OSError, ValueError) as error:
        raise InputRefusedError(
            f"{path} cannot be read as a plan ({error}); a splits.json is needed; check the path"
        ) from error
    if isinstance(document, list):
        raise InputRefusedError(
            f"{path} is a list of folds, as nnU-Net writes it, which plan and train take; a splits.json is needed here; leave "
            "it out, since a trained bundle knows its cases, or give a splits.json"
        )
    validate(document, "splits")
    cases: dict[str, SplitCase] = {}
    for name, dataset in document["datasets"].items():
        rows = [SplitCase(**row) for row in dataset["cases"]]
        # Subjects are compared within a data set; two data sets may use the same names for different people
        check_subjects(rows, f"{path}: {name}")
        for case in rows:
            if case.id in cases:
                raise InputRefusedError(
                    f"{path}: case {case.id} occurs twice; one entry for each case is needed; remove one"
                )
            cases[case.id] = case
    return cases


def is_nnunet_folds(path: Path) -> bool:
    """Whether the file is a list of folds, as nnU-Net writes it, and no `splits.json`."""
    try:
        return isinstance(json_of(path), list)
    except (OSError, ValueError):  # `read_splits` gives the reason
        return False


def read_nnunet_folds(path: Path, subjects: Mapping[str, str]) -> dict[str, SplitCase]:
    """The plan of the cases by nnU-Net's folds: each trains, and is tested in the fold whose `val` names it.

    Args:
        path: A JSON list with {"train": [ids], "val": [ids]} for each fold; cases that are not at hand may be among them.
        subjects: Case id to subject id, of the cases at hand.

    Raises:
        InputRefusedError: The file has another form or too many folds; a case is in no `val` or in several; a fold does not
            train on all other cases; or a subject is in two folds.
    """
    try:
        folds = [(frozenset(fold["train"]), frozenset(fold["val"])) for fold in json_of(path)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputRefusedError(
            f'{path.name} cannot be read as a list of folds ({error}); {{"train": [cases], "val": [cases]}} for each fold is '
            "needed; correct it, or move it away"
        ) from error
    if len(folds) > MOST_FOLDS:
        raise InputRefusedError(f"{path.name} has {len(folds)} folds; at most {MOST_FOLDS} are possible; join some")
    plan = {}
    for case, subject in sorted(subjects.items()):
        places = [number for number, (_, val) in enumerate(folds) if case in val]
        trains = [number for number, (train, _) in enumerate(folds) if case in train]
        if len(places) != 1 or sorted(places + trains) != list(range(len(folds))):
            raise InputRefusedError(
                f"{path.name}: {case} is in val of {_numbered(places)} and in train of {_numbered(trains)}; val of one fold, "
                f"and train of each other of {len(folds)}, are needed; correct the file, leave the case out, or give "
                "another plan by --splits"
            )
        plan[case] = SplitCase(case, subject, "train", places[0])
    check_folds(plan.values(), path.name)
    return plan


def check_folds(cases: Iterable[SplitCase], where: str) -> None:
    """Raises InputRefusedError if a subject is in two folds."""
    folds_of: dict[str, int] = {}
    for entry in cases:
        if (other := folds_of.setdefault(entry.subject, entry.fold)) != entry.fold:
            raise InputRefusedError(
                f"{where}: subject {entry.subject} is in fold {other} and, with case {entry.id}, in fold {entry.fold}; one "
                "subject belongs to one fold, otherwise the network of the fold has seen it; correct the file, or give "
                "another plan by --splits"
            )


def _numbered(folds: Sequence[int]) -> str:
    return f"fold {', '.join(map(str, folds))}" if folds else "no fold"


def check_subjects(cases: Iterable[SplitCase], where: str) -> None:
    """Raises InputRefusedError if a subject is in two partitions."""
    partitions: dict[str, Partition] = {}
    for case in cases:
        if partitions.setdefault(case.subject, case.partition) != case.partition:
            raise InputRefusedError(
                f"{where}: subject {case.subject} is in {partitions[case.subject]} and in {case.partition}; "
                "one subject belongs to one partition, otherwise the test is not independent; correct one of the two"
            )
