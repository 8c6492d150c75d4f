"""Writes an evaluation: metrics.json for machines, cases.csv for tables, report.html and report.pdf for people."""

import json
import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.files import write_whole
from monai_unet_app.data.schemas import validate
from monai_unet_app.metrics.case_scores import CaseScores
from monai_unet_app.metrics.glossary import score_definitions
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.reliability import TOP_LABEL
from monai_unet_app.metrics.score_registry import column_readers, means_of_rows, presence, score_table

from .evaluation_report import EvaluationReport, Target
from .html import page
from .pdf import typeset
from .sections import sections
from .words import csv_text

SCHEMA_VERSION = "1.0"


def write_evaluation(report: EvaluationReport, folder: Path) -> tuple[Path, ...]:
    """Writes metrics.json, cases.csv, report.html and report.pdf into a folder, which is made if it is not there.

    All are rendered and checked before the first is written. Each is written under a temporary name and then renamed, so that
    no reader sees a part of a file.

    Returns:
        The four paths, in that order.

    Raises:
        InputRefusedError: The summary does not obey metrics.schema.json.
        OSError: The folder cannot be written to.
    """
    document = metrics_document(report)
    validate(document, "metrics")
    # allow_nan=False: JSON has no NaN; Python would write a file that other programs cannot read.
    contents = {
        "metrics.json": (json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode(),
        "cases.csv": cases_csv(report.cases, report.plan).encode(),
        **pages(report),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_whole(folder / name, content, sync=True)
    return tuple(folder / name for name in contents)


def pages(report: EvaluationReport) -> dict[str, bytes]:
    """report.html and report.pdf, of the same blocks, so that a picture is drawn once.

    The same report gives the same bytes: the only time in them is that of the report, in its text.
    """
    on, blocks = report.measured_on, sections(report)
    name = f"{on.bundle_name} {on.bundle_version}"
    return {
        "report.html": page(f"Evaluation of {on.bundle_name}", blocks).encode(),
        "report.pdf": typeset(blocks, f"Evaluation of {name}", f"{name}, sha256 {on.bundle_sha256[:16] or 'unknown'}"),
    }


def metrics_document(report: EvaluationReport) -> dict[str, Any]:
    """The content of metrics.json; `metrics.schema.json` explains each entry."""
    on, plan = report.measured_on, report.plan
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
            "not_measured": list(on.not_measured),
            "seen": dict(on.seen),
            **({"folds": dict(on.folds)} if on.folds else {}),
        },
        "settings": on.settings.document(),
        "classes": list(plan.class_names),
        "exclusive": plan.outputs.one_map,
        "planar": plan.planar,
        "unit": plan.units.length,
        "boundary_width": plan.boundary_width,
        "band_width": plan.band_width,
        "surface_tolerance": plan.surface_tolerance,
        "tolerances": list(plan.tolerances),
        "likely_above": plan.likely_above,
        "box_margin": plan.box_margin,
        "bins": plan.bins,
        "interval": report.how.document(),
        **report.summary,
        "definitions": score_definitions(plan),
    }
    if report.statements is not None:
        document["statements"] = dict(report.statements)
    if report.inference is not None:
        document["inference"] = dict(report.inference)
    if report.targets:
        document["targets"] = [_target_entry(target, report.summary) for target in report.targets]
    return document


def cases_csv(cases: Sequence[CaseScores], plan: EvaluationPlan) -> str:
    """A row for each class of a case, then the row "mean" of the case; an undefined figure is an empty field.

    `ece_whole` and `ece_band` are the errors of one class against the rest in the rows of classes, and of the top label in the
    row "mean"; they and the expected size are empty without probabilities. A class without a voxel in any case has no scores
    here either, and is no part of the means.
    """
    somewhere = presence(cases, plan).any(axis=0)
    columns = {
        name: np.where(somewhere, score_table(read, cases, plan), np.nan) for name, read in column_readers(plan).items()
    }
    for side in ("truth", "predicted"):
        columns[f"{side}_size_{plan.units.size}"] = score_table(attrgetter(f"{side}_size"), cases, plan)
    expected = [[case.expected_size(n) for n in range(len(plan.class_names))] for case in cases]
    columns[f"expected_size_{plan.units.size}"] = np.array(expected)
    rows: list[Sequence[object]] = [("case", "subject", "class", *columns, "ece_whole", "ece_band")]
    means = np.array([means_of_rows(column) for column in columns.values()])
    for m, case in enumerate(cases):
        for n, name in enumerate(plan.class_names):
            rows.append(_row(case, name, [column[m, n] for column in columns.values()], plan.row_of(n), plan))
        rows.append(_row(case, "mean", list(means[:, m]), TOP_LABEL, plan))
    return csv_text(rows)


def _row(case: CaseScores, name: str, scores: list[float], row: int, plan: EvaluationPlan) -> Sequence[object]:
    errors = [case.ece(population, row) for population in plan.populations] or [math.nan, math.nan]
    return case.case_id, case.subject, name, *scores, *errors


def _target_entry(target: Target, summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": target.name,
        "path": list(target.path),
        "value": target.value(summary),
        "at_least": target.at_least,
        "at_most": target.at_most,
        "reached": target.outcome(summary) == "reached",
    }
