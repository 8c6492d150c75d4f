"""What an evaluation left in its folder, read again, and two of them paired by case."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.bootstrap import finite_mean

MEAN = "mean"  # the row of cases.csv that stands for a whole case
SETTINGS = ("classes", "exclusive", "planar", "unit", "boundary_width", "band_width", "surface_tolerance", "bins")
DEFINED = ("empty", "boundary_iou", "surface_dice", "hd95", "assd", "ece", "ece_band")
SIX_DIGITS = 1e-5  # cases.csv has that many
SHOWN = 5  # names in a message
KNOWN_VERSIONS = ("1", "")  # of metrics.json, its first part; one without is old
AGREE = ("dice", "iou", "boundary_iou")  # by which metrics.json and cases.csv are held against each other
Values = dict[str, float]


@dataclass(frozen=True)
class CaseTable:
    """A cases.csv.

    Attributes:
        columns: Names of its columns.
        subjects: Case id to subject.
        rows: (case id, class name) to the texts of that row by column.
    """

    columns: tuple[str, ...]
    subjects: Mapping[str, str]
    rows: Mapping[tuple[str, str], Mapping[str, str]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that have a row, in the order of the file; MEAN is one of them."""
        return tuple(dict.fromkeys(name for _, name in self.rows))

    def values(self, column: str, class_name: str = MEAN) -> Values:
        """One column of one class by case id; NaN where the field is empty.

        Raises:
            InputRefusedError: No such column, a case without a row of that class, or a text that is no number.
        """
        if column not in self.columns:
            raise InputRefusedError(
                f"cases.csv has no column {column} (it has {', '.join(self.columns)}); evaluate again with this version"
            )
        if class_name not in self.classes:
            raise InputRefusedError(
                f"cases.csv has no class {class_name!r}; it has {', '.join(self.classes)}; name one of them"
            )
        missing = [case for case in self.subjects if (case, class_name) not in self.rows]
        if missing:
            raise InputRefusedError(
                f"cases.csv has no row {class_name!r} for {some(missing)}; one for each case is needed; evaluate again"
            )
        return {case: _number(self.rows[case, class_name][column], f"{column} of {case}") for case in self.subjects}


@dataclass(frozen=True)
class EvaluationFiles:
    """An evaluation's folder, read: metrics.json as it is, and cases.csv."""

    document: Mapping[str, Any]
    table: CaseTable

    @property
    def name(self) -> str:
        """The bundle that was measured, with its version."""
        return f"{self.document['bundle']['name']} {self.document['bundle']['version']}"

    @property
    def not_measured(self) -> tuple[str, ...]:
        """Cases that should have been measured and could not be."""
        return tuple(self.document["data"].get("not_measured", ()))

    @property
    def size_column(self) -> str:
        """The column of cases.csv with the reference's sizes."""
        return "truth_size_px" if self.document["planar"] else "truth_size_ml"


@dataclass(frozen=True)
class Pairs:
    """Two evaluations of the same cases.

    Attributes:
        first, second: The two.
        subjects: Case id to subject, in the order of the ids. Cases that either evaluation gives to one person belong
            together.
        left_out: Cases of one evaluation only.
    """

    first: EvaluationFiles
    second: EvaluationFiles
    subjects: Mapping[str, str]
    left_out: tuple[str, ...] = ()


def is_evaluation(folder: Path) -> bool:
    """Whether `evaluate` wrote into this folder."""
    return (folder / "metrics.json").is_file() and (folder / "cases.csv").is_file()


def read_evaluation(folder: Path) -> EvaluationFiles:
    """What `evaluate` left in a folder; columns and keys that are not known here do no harm.

    Raises:
        InputRefusedError: metrics.json or cases.csv is absent or damaged, or the two do not belong together.
    """
    try:
        document = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        version = str(document.get("schema_version", ""))
        absent = [key for key in ("bundle", "data", "definitions", *SETTINGS) if key not in document]
    except (OSError, ValueError, TypeError) as error:
        raise InputRefusedError(
            f"{folder}: metrics.json cannot be read ({error}); a folder that monai-unet evaluate wrote is needed; "
            "check the path"
        ) from error
    if version.partition(".")[0] not in KNOWN_VERSIONS:
        raise InputRefusedError(
            f"{folder}: metrics.json has schema_version {version!r}; 1.x is needed; evaluate again with this version"
        )
    if absent:
        raise InputRefusedError(f"{folder}: metrics.json lacks {', '.join(absent)}; evaluate again with this version")
    found = EvaluationFiles(document, read_cases(folder / "cases.csv"))
    told, there = document["data"].get("cases"), len(found.table.subjects)
    if told != there:
        raise InputRefusedError(
            f"{folder}: metrics.json speaks of {told} case(s), cases.csv of {there}; files of one evaluation are needed; "
            "evaluate again"
        )
    _check_agree(folder, found)
    return found


def _check_agree(folder: Path, found: EvaluationFiles) -> None:
    """The means of cases.csv are those of metrics.json: neither was changed, and no field was lost."""
    for score in AGREE:
        told = found.document.get(score, {}).get(MEAN)
        if told is None or score not in found.table.columns:
            continue
        there = finite_mean(found.table.values(score).values())
        if not abs(there - told) <= SIX_DIGITS:
            raise InputRefusedError(
                f"{folder}: the mean {score} is {told:.6g} in metrics.json and {there:.6g} in cases.csv; files as evaluate "
                "left them are needed; evaluate again"
            )


def read_cases(path: Path) -> CaseTable:
    """A cases.csv, with whatever columns it has.

    Raises:
        InputRefusedError: It cannot be read, has no case, lacks the columns case, subject, class, or has a row twice.
    """
    rows: dict[tuple[str, str], Mapping[str, str]] = {}
    subjects: dict[str, str] = {}
    header, lines = read_table(path, ("case", "subject", "class"))
    for line in lines:
        case, key = line["case"], (line["case"], line["class"])
        if key in rows:
            raise InputRefusedError(f"{path}: row {' / '.join(key)} stands twice; one is needed; evaluate again")
        if subjects.setdefault(case, line["subject"]) != line["subject"]:
            raise InputRefusedError(f"{path}: case {case} has two subjects; one is needed; evaluate again")
        rows[key] = line
    if not rows:
        raise InputRefusedError(f"{path} has no case; at least one is needed; evaluate again")
    return CaseTable(header, {case: subjects[case] for case in sorted(subjects)}, rows)


def read_table(path: Path, needed: Sequence[str]) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Header and rows of a CSV file with commas.

    Raises:
        InputRefusedError: It cannot be read, a needed column is missing, or a row has more or fewer fields than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header, rows = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise InputRefusedError(
            f"{path} cannot be read ({error}); a CSV file in UTF-8 is needed; check the path"
        ) from error
    missing = [name for name in needed if name not in header]
    if missing or len(set(header)) < len(header):
        raise InputRefusedError(
            f"{path} has the columns {', '.join(header) or '(none)'}; each once, {', '.join(needed)} among them, and commas "
            "between them are needed"
        )
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise InputRefusedError(f"{path}: row {number} has not the {len(header)} fields of the header; mend it")
    return header, rows


def pair(
    first: EvaluationFiles,
    second: EvaluationFiles,
    *,
    common: bool = False,
    names: tuple[str, str] = ("first", "second"),
) -> Pairs:
    """The two evaluations case by case.

    Args:
        first: One evaluation.
        second: The other.
        common: Take the cases that both have and leave the others out.
        names: What a refusal calls the two.

    Raises:
        InputRefusedError: Other cases (unless `common`), other images or labels under the same names, other classes,
            lengths, bins or definitions.
    """
    _check_settings(first.document, second.document, names)
    left_out = sorted(first.table.subjects.keys() ^ second.table.subjects.keys())
    cases = sorted(first.table.subjects.keys() & second.table.subjects.keys())
    if left_out and not (common and cases):
        raise InputRefusedError(_other_cases(first, second, cases, names))
    digests = [evaluation.document["data"].get("sha256", "") for evaluation in (first, second)]
    if not left_out and all(digests) and digests[0] != digests[1]:
        raise InputRefusedError(
            f"the cases have the same names and other content (data sha256 {digests[0][:12]}... and {digests[1][:12]}...); "
            "the same images and labels are needed; evaluate both on one data set"
        )
    _check_truth(first, second, cases)
    return Pairs(first, second, _joined(first.table.subjects, second.table.subjects, cases), tuple(left_out))


def some(names: Iterable[str]) -> str:
    """Names for a message, the first few of them."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _check_settings(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    pairs = [(name, first[name], second[name]) for name in SETTINGS]
    definitions = first["definitions"], second["definitions"]
    shared = [name for name in DEFINED if all(name in told for told in definitions)]
    pairs += [(f"the definition of {name}", *(told[name] for told in definitions)) for name in shared]
    for what, one, other in pairs:
        if one != other:
            raise InputRefusedError(
                f"{what} is {one!r} in the {names[0]} evaluation and {other!r} in the {names[1]}; figures of one definition "
                "are needed; evaluate both with one version, on labels of the same meaning"
            )


def _other_cases(first: EvaluationFiles, second: EvaluationFiles, common: Sequence[str], names: tuple[str, str]) -> str:
    lacks = [
        f"the {name} lacks {some(sorted(other.table.subjects.keys() - own.table.subjects.keys()))}"
        for name, own, other in ((names[0], first, second), (names[1], second, first))
        if other.table.subjects.keys() - own.table.subjects.keys()
    ]
    advice = f", or --common for the {len(common)} that both have" if common else ""
    return (
        f"the evaluations have other cases: {'; '.join(lacks)}; the same cases in both are needed; evaluate both on one "
        f"data set{advice}"
    )


def _check_truth(first: EvaluationFiles, second: EvaluationFiles, cases: Sequence[str]) -> None:
    """Reference masks of one size in both: all that the files tell of each case's label."""
    for name in first.document["classes"]:
        one, other = (found.table.values(found.size_column, name) for found in (first, second))
        apart = [case for case in cases if not np.isclose(one[case], other[case], rtol=SIX_DIGITS, atol=0)]
        if apart:
            raise InputRefusedError(
                f"the true {name} of {some(apart)} has another size in each evaluation ({apart[0]}: {one[apart[0]]:g} and "
                f"{other[apart[0]]:g}); the same labels are needed; evaluate both on one data set"
            )


def _joined(first: Mapping[str, str], second: Mapping[str, str], cases: Sequence[str]) -> dict[str, str]:
    """Case id to subject, where bundles call people differently: cases that share a subject in either are one person's."""
    if not cases:
        return {}
    members = [np.unique([told[case] for case in cases], return_inverse=True)[1] for told in (first, second)]
    own = np.arange(len(cases))
    people = [len(cases) + members[0], len(cases) + members[0].max() + 1 + members[1]]
    size = int(people[1].max()) + 1
    links = coo_array((np.ones(2 * len(cases)), (np.tile(own, 2), np.concatenate(people))), shape=(size, size))
    groups = connected_components(links, directed=False)[1][: len(cases)]
    names = {
        group: min(first[case] for case, own in zip(cases, groups, strict=True) if own == group) for group in groups
    }
    return {case: names[group] for case, group in zip(cases, groups, strict=True)}


def _number(text: str, what: str) -> float:
    if not text.strip():
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise InputRefusedError(f"cases.csv: {what} is {text!r}; a number or nothing is needed; evaluate again")
    return value
