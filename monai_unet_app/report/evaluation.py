"""Writes an evaluation: metrics.json for machines, cases.csv for tables, report.html for people."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from monai_unet_app.data.schemas import validate
from monai_unet_app.metrics import CaseScores, EvaluationPlan, definitions
from monai_unet_app.metrics.cases import ClassScores
from monai_unet_app.metrics.evaluation import number, score_keys

from .contents import EvaluationReport
from .html import render_html

SCHEMA_VERSION = "1.0"


def write_evaluation(report: EvaluationReport, folder: Path) -> tuple[Path, Path, Path]:
    """Writes metrics.json, cases.csv and report.html into a folder, which is made if it is not there.

    All three are rendered and checked before the first is written; each is written under a temporary name and
    then renamed, so a reader never meets half a file.

    Returns:
        The three paths, in that order.

    Raises:
        InputRefusedError: The summary does not obey metrics.schema.json.
        OSError: The folder cannot be written to.
    """
    document = metrics_document(report)
    validate(document, "metrics")
    texts = {
        "metrics.json": json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n",
        "cases.csv": cases_csv(report.cases, report.plan),
        "report.html": render_html(report),
    }
    folder.mkdir(parents=True, exist_ok=True)
    metrics, cases, page = (_replace(folder / name, text) for name, text in texts.items())
    return metrics, cases, page


def metrics_document(report: EvaluationReport) -> dict[str, Any]:
    """What metrics.json holds; `metrics.schema.json` says what each entry means."""
    on, plan, how = report.measured_on, report.plan, report.how
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "created": report.created.isoformat(timespec="seconds"),
        "bundle": {"name": on.bundle_name, "version": on.bundle_version, "sha256": on.bundle_sha256},
        "data": {
            "name": on.data_name,
            "sha256": on.data_sha256,
            "partition": on.partition,
            "cases": len(report.cases),
            "subjects": report.subjects,
        },
        "classes": list(plan.class_names),
        "exclusive": plan.exclusive,
        "planar": plan.planar,
        "unit": plan.unit,
        "boundary_width": plan.boundary_width,
        "band_width": plan.band_width,
        "surface_tolerance": plan.surface_tolerance,
        "bins": plan.bins,
        "interval": {
            "method": "bootstrap by subject",
            "level": how.level,
            "resamples": how.resamples,
            "seed": how.seed,
        },
        **report.summary,
        "definitions": definitions(plan),
    }
    if report.targets:
        document["targets"] = [_target(report, n) for n in range(len(report.targets))]
    return document


def cases_csv(cases: tuple[CaseScores, ...], plan: EvaluationPlan) -> str:
    """One row a case and class, then one row "mean" a case; what is undefined is an empty field.

    `ece_whole` and `ece_band` are one class against the rest in the rows of classes, top label in the row
    "mean".
    """
    keys = score_keys(plan)
    sizes = {f"{name}_size_{plan.size_unit}": f"{name}_size" for name in ("truth", "predicted")}
    columns = {key: score for score, key in keys.items()} | sizes
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["case", "subject", "class", *columns, "ece_whole", "ece_band"])
    for case in cases:
        for n, entry in enumerate(case.classes):
            table.writerow(_row(case, entry.name, _scores(entry, columns), plan.row_of(n), plan))
        means = [case.mean(score) for score in columns.values()]
        table.writerow(_row(case, "mean", means, 0, plan))
    return stream.getvalue()


def _scores(entry: ClassScores, columns: Mapping[str, str]) -> list[float]:
    return [float(getattr(entry, score)) for score in columns.values()]


def _row(case: CaseScores, name: str, scores: list[float], row: int, plan: EvaluationPlan) -> list[str]:
    errors = [case.ece(population, row) for population in plan.populations]
    return [case.case_id, case.subject, name, *map(_field, [*scores, *errors])]


def _field(value: float) -> str:
    return "" if number(value) is None else f"{value:.6g}"


def _target(report: EvaluationReport, index: int) -> dict[str, Any]:
    target = report.targets[index]
    return {
        "name": target.name,
        "path": list(target.path),
        "value": target.value(report.summary),
        "at_least": target.at_least,
        "at_most": target.at_most,
        "reached": target.reached(report.summary),
    }


def _replace(path: Path, text: str) -> Path:
    """Writes a text under a temporary name beside `path`, then renames it; if it fails, nothing is left."""
    with NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8", newline=""
    ) as stream:
        temporary = Path(stream.name)
        try:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
            temporary.chmod(0o644)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path
