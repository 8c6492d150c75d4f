"""The partitions: the use of each subject (train, selection, calibration, test) is decided once and written down.

A subject (one person, whose two hippocampi or two eyes are two cases) is never in two partitions.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from monai_unet_app.data.schemas import validate
from monai_unet_app.errors import InputRefusedError

Partition = Literal["train", "selection", "calibration", "test"]
SHARES: Mapping[Partition, float] = {"test": 0.2, "calibration": 0.11, "selection": 0.07, "train": 0.62}


@dataclass(frozen=True)
class SplitCase:
    """The entry of a case in the plan. `fold` (0 to 4) is for five-fold cross-validation and independent of `partition`."""

    id: str
    subject: str
    partition: Partition
    fold: int


def make_split(name: str, subjects: Mapping[str, str], folds: int = 5) -> list[SplitCase]:
    """A split of the cases, the same on every machine: subjects are ordered by a hash and divided by `SHARES`.

    Args:
        name: Name of the data set; seeds the order.
        subjects: Case id to subject id.
        folds: Number of cross-validation folds.

    Returns:
        One entry for each case, sorted by id.

    Raises:
        InputRefusedError: Fewer subjects than partitions.
    """
    # A hash instead of a seed: random generators may change with a library's version, SHA-256 does not
    order = sorted(set(subjects.values()), key=lambda s: hashlib.sha256(f"{name}:{s}".encode()).hexdigest())
    if len(order) < len(SHARES):
        raise InputRefusedError(
            f"{len(order)} subject(s) found; at least {len(SHARES)} are needed, one each to train, select, calibrate "
            "and test; add cases"
        )
    partition = _partitions(order)
    return [
        # Dealt out in turn: partitions are blocks of this order, so a fold takes subjects of every large partition
        SplitCase(case, subject, partition[subject], order.index(subject) % folds)
        for case, subject in sorted(subjects.items())
    ]


def _partitions(order: list[str]) -> dict[str, Partition]:
    """The partition of each subject: the first subjects test, calibrate and select, all others train."""
    counts = {part: max(1, round(share * len(order))) for part, share in SHARES.items() if part != "train"}
    parts: list[Partition] = [part for part, count in counts.items() for _ in range(count)]
    return dict(zip_longest(order, parts, fillvalue="train"))


def read_splits(path: Path) -> dict[str, SplitCase]:
    """Every case of every data set in a `splits.json`, by id.

    Raises:
        InputRefusedError: The file cannot be read, breaks its schema, names a case twice or has one subject in two
            partitions.
    """
    try:
        document = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InputRefusedError(
            f"{path} cannot be read as a plan ({error}); a splits.json is needed; check the path"
        ) from error
    validate(document, "splits")
    cases: dict[str, SplitCase] = {}
    for name, dataset in document["datasets"].items():
        partitions: dict[str, str] = {}
        for row in dataset["cases"]:
            case = SplitCase(**row)
            if case.id in cases:
                raise InputRefusedError(
                    f"{path}: case {case.id} stands twice; one entry for each case is needed; remove one"
                )
            # Subjects are compared within a data set; two data sets may use the same names for different people
            if partitions.setdefault(case.subject, case.partition) != case.partition:
                raise InputRefusedError(
                    f"{path}: subject {case.subject} of {name} is in {partitions[case.subject]} and in {case.partition}; "
                    "one subject belongs to one partition, else the test is no test"
                )
            cases[case.id] = case
    return cases
