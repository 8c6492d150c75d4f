"""comparison.json and .csv, subgroups.json and .csv: the same figures for machines and for tables."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dicom_io.files import write_whole
from monai_unet_app.data.schemas import validate, write_json
from monai_unet_app.report.words import csv_text

from .differences import Comparison
from .subgroups import Subgroups

NO_INTERVAL = (None, None)


def write_comparison(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Writes comparison.json and comparison.csv into a folder, which is made if it is not there.

    Raises:
        InputRefusedError: The document does not obey comparison.schema.json.
        OSError: The folder cannot be written to.
    """
    document = comparison.as_dict()
    return _write(document, "comparison", map(_comparison_row, document["scores"]), folder)


def write_subgroups(by_group: Subgroups, folder: Path) -> tuple[Path, Path]:
    """Writes subgroups.json and subgroups.csv, as `write_comparison` does."""
    document = by_group.as_dict()
    rows = [
        _subgroup_row(part, group, score)
        for part in document["attributes"]
        for group in part["groups"]
        for score in group["scores"]
    ]
    return _write(document, "subgroups", rows, folder)


def _write(
    document: Mapping[str, Any], name: str, rows: Iterable[Mapping[str, Any]], folder: Path
) -> tuple[Path, Path]:
    # Before the first file is written, so that a refused document leaves neither of the two.
    validate(document, name)
    written = folder / f"{name}.json", folder / f"{name}.csv"
    write_json(document, written[0])
    rows = list(rows)
    write_whole(written[1], csv_text([rows[0], *(row.values() for row in rows)]))
    return written


def _comparison_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    low, high = entry["interval"] or NO_INTERVAL
    return {
        **{key: entry[key] for key in ("score", "class", "first", "second", "difference")},
        "low": low,
        "high": high,
        **{key: entry[key] for key in ("cases", "subjects")},
        **{f"undefined_{side}": entry["undefined"][side] for side in ("first", "second")},
        **{key: entry[key] for key in ("p", "p_holm", "p_method", "p_undefined", "word")},
    }


def _subgroup_row(part: Mapping[str, Any], group: Mapping[str, Any], score: str) -> dict[str, Any]:
    estimate, test = group["scores"][score], part["tests"][score]
    figures = estimate or {"subjects": group["subjects"], "cases": group["cases"], "mean": None, "interval": None}
    low, high = figures["interval"] or NO_INTERVAL
    return {
        "attribute": part["attribute"],
        "group": group["group"],
        "score": score,
        **{key: figures[key] for key in ("subjects", "cases", "mean")},
        "low": low,
        "high": high,
        "too_few": "" if estimate else "too few",
        **{key: test[key] for key in ("p", "p_holm", "p_undefined")},
    }
