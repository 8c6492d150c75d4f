"""An evaluation in the folder that `evaluate` wrote: metrics.json and cases.csv are read and checked."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_unet_app.data.schemas import json_of
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.bootstrap import finite_mean
from monai_unet_app.metrics.plan import units_of
from monai_unet_app.report.words import plain_field

MEAN = "mean"  # the row of cases.csv for a whole case, and the mean of a score in metrics.json
SETTINGS = ("classes", "exclusive", "planar", "unit", "boundary_width", "band_width", "surface_tolerance", "bins")
SIX_DIGITS = 1e-5  # relative step of the numbers in cases.csv, which have six digits
_MOST_NAMES = 5  # in a message
_KNOWN_VERSIONS = ("1", "")  # first part of the schema version of metrics.json; old files have none
_CHECKED_MEANS = ("dice", "iou", "boundary_iou")
"""Scores whose means must be the same in metrics.json and cases.csv."""

Values = dict[str, float]


@dataclass(frozen=True)
class CaseTable:
    """The content of a cases.csv.

    Attributes:
        columns: Names of its columns.
        subjects: Case id -> subject.
        rows: (case id, class name) -> column -> text.
    """

    columns: tuple[str, ...]
    subjects: Mapping[str, str]
    rows: Mapping[tuple[str, str], Mapping[str, str]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that have a row, in the order of the file; MEAN is among them."""
        return tuple(dict.fromkeys(name for _, name in self.rows))

    def values(self, column: str, class_name: str = MEAN) -> Values:
        """Case id -> number in one column, for one class; NaN where the field is empty.

        Raises:
            InputRefusedError: There is no such column, a case has no row for the class, or a text is not a number.
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
                f"cases.csv has no row {class_name!r} for {first_names(missing)}; one for each case is needed; evaluate again"
            )
        return {case: _number(self.rows[case, class_name][column], f"{column} of {case}") for case in self.subjects}


@dataclass(frozen=True)
class StoredEvaluation:
    """The folder of an evaluation: the content of metrics.json and of cases.csv."""

    document: Mapping[str, Any]
    table: CaseTable

    @property
    def name(self) -> str:
        """Name and version of the bundle that was measured."""
        return f"{self.document['bundle']['name']} {self.document['bundle']['version']}"

    @property
    def not_measured(self) -> tuple[str, ...]:
        """Cases that should have been measured and could not be."""
        return tuple(self.document["data"].get("not_measured", ()))

    @property
    def size_column(self) -> str:
        """The column of cases.csv with the sizes of the reference masks."""
        return f"truth_size_{units_of(self.document['planar']).size}"


def is_evaluation(folder: Path) -> bool:
    """Whether the folder holds the files that `evaluate` writes."""
    return (folder / "metrics.json").is_file() and (folder / "cases.csv").is_file()


def read_evaluation(folder: Path) -> StoredEvaluation:
    """The evaluation in a folder. Unknown columns and keys are ignored.

    Raises:
        InputRefusedError: metrics.json or cases.csv is absent or damaged, or the two do not belong together.
    """
    try:
        document = json_of(folder / "metrics.json")
        version = str(document.get("schema_version", ""))
        absent = [key for key in ("bundle", "data", "definitions", *SETTINGS) if key not in document]
    except (OSError, ValueError, TypeError) as error:
        raise InputRefusedError(
            f"{folder}: metrics.json cannot be read ({error}); a folder that monai-unet evaluate wrote is needed; "
            "check the path"
        ) from error
    if version.partition(".")[0] not in _KNOWN_VERSIONS:
        raise InputRefusedError(
            f"{folder}: metrics.json has schema_version {version!r}; 1.x is needed; evaluate again with this version"
        )
    if absent:
        raise InputRefusedError(f"{folder}: metrics.json lacks {', '.join(absent)}; evaluate again with this version")
    evaluation = StoredEvaluation(document, read_cases(folder / "cases.csv"))
    stated, counted = document["data"].get("cases"), len(evaluation.table.subjects)
    if stated != counted:
        raise InputRefusedError(
            f"{folder}: metrics.json has {stated} case(s), cases.csv has {counted}; files of one evaluation are needed; "
            "evaluate again"
        )
    _check_means(folder, evaluation)
    return evaluation


def _check_means(folder: Path, evaluation: StoredEvaluation) -> None:
    """Refuses files whose means differ: one of the two files was changed, or has lost a field."""
    for score in _CHECKED_MEANS:
        stated = evaluation.document.get(score, {}).get(MEAN)
        if stated is None or score not in evaluation.table.columns:
            continue
        computed = finite_mean(evaluation.table.values(score).values())
        # `not <=` instead of `>`, so that NaN is refused, too.
        if not abs(computed - stated) <= SIX_DIGITS:
            raise InputRefusedError(
                f"{folder}: the mean {score} is {stated:.6g} in metrics.json and {computed:.6g} in cases.csv; files as "
                "evaluate wrote them are needed; evaluate again"
            )


def read_cases(path: Path) -> CaseTable:
    """The content of a cases.csv, with all columns that it has.

    Raises:
        InputRefusedError: The file cannot be read, has no case, lacks the column case, subject or class, or has a row twice.
    """
    rows: dict[tuple[str, str], Mapping[str, str]] = {}
    subjects: dict[str, str] = {}
    header, lines = read_table(path, ("case", "subject", "class"))
    for line in lines:
        case, key = line["case"], (line["case"], line["class"])
        if key in rows:
            raise InputRefusedError(f"{path}: row {' / '.join(key)} occurs twice; one is needed; evaluate again")
        if subjects.setdefault(case, line["subject"]) != line["subject"]:
            raise InputRefusedError(f"{path}: case {case} has two subjects; one is needed; evaluate again")
        rows[key] = line
    if not rows:
        raise InputRefusedError(f"{path} has no case; at least one is needed; evaluate again")
    # Sorted, so that no result depends on the order of the rows.
    return CaseTable(header, {case: subjects[case] for case in sorted(subjects)}, rows)


def read_table(path: Path, needed: Sequence[str]) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Header and rows of a CSV file with commas.

    Raises:
        InputRefusedError: The file cannot be read, a needed column is missing, or a row has more or fewer fields than the
            header.
    """
    try:
        # utf-8-sig: Excel writes a byte order mark, which would become a part of the name of the first column.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header = tuple(reader.fieldnames or ())
            rows = [
                {key: plain_field(text) if isinstance(text, str) else text for key, text in row.items()}
                for row in reader
            ]
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
        # csv.DictReader puts surplus fields under the key None, and None into missing fields.
        if None in row or None in row.values():
            raise InputRefusedError(
                f"{path}: row {number} does not have the {len(header)} fields of the header; correct it"
            )
    return header, rows


def first_names(names: Iterable[str]) -> str:
    """The first few names, and how many more there are, for a message."""
    names = list(names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _number(text: str, place: str) -> float:
    if not text.strip():
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    # `evaluate` writes an empty field for an undefined figure, so the text "nan" comes from elsewhere.
    if math.isnan(value):
        raise InputRefusedError(f"cases.csv: {place} is {text!r}; a number or nothing is needed; evaluate again")
    return value
