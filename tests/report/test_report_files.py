"""The files of a report: machine readable, complete, and written whole or not at all."""

import csv
import io
import json
import os
import re
from copy import deepcopy
from dataclasses import replace
from functools import cache

import jsonschema
import numpy as np
import pytest

from monai_unet_app.data.schemas import schema, validate
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.bootstrap import Bootstrap
from monai_unet_app.metrics.case_scores import CaseArrays
from monai_unet_app.metrics.outputs import OVERLAPPING
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.score_registry import scores_of
from monai_unet_app.metrics.summary import Evaluation
from monai_unet_app.report.evaluation_report import EvaluationReport, MeasuredOn, Target, exemplary_cases
from monai_unet_app.report.evaluation_writer import cases_csv, metrics_document, write_evaluation

ON = MeasuredOn("lobes_mri_unet3d", "1.2.0", "ab" * 32, "Phantoms", "cd" * 32, "test")
PLAN = EvaluationPlan(("Front", "Back"))


def phantom(n, shift, plan=PLAN, miss=False):
    """Boxes side by side, the prediction moved along I; sure of itself by 0.9 (0.99 before calibration)."""
    shape, spacing, size = ((16, 14), (1, 1), 1.0) if plan.planar else ((16, 14, 10), (1, 1.5, 2), 0.003)
    truth, predicted = np.zeros((2, *shape), np.uint8)
    for labels, start in ((truth, 3), (predicted, 3 + shift)):
        for value in range(1, len(plan.class_names) + 1):
            labels[start + 3 * value - 3 : start + 3 * value, 4:10] = value
    if miss:
        predicted[predicted == 1] = 0
    values = np.arange(0 if plan.outputs.one_map else 1, len(plan.class_names) + 1).reshape(-1, *(1 for _ in shape))
    after, before = (np.where(values == predicted, sure, (1 - sure) / max(1, len(values) - 1)) for sure in (0.9, 0.99))
    return CaseArrays(f"case_{n}", f"person_{n // 2}", truth, predicted, after, spacing, size, before)


def report_of(plan=PLAN, shifts=(0, 1, 2, 1), targets=(), miss_last=False):
    evaluation = Evaluation(plan)
    for n, shift in enumerate(shifts):
        evaluation.add(phantom(n, shift, plan, miss=miss_last and n == len(shifts) - 1))
    return EvaluationReport(evaluation, ON, targets=targets, how=Bootstrap(resamples=50))


def test_metrics_json_holds_dice_boundary_iou_and_ece_per_class_and_mean(tmp_path, without_pages):
    metrics, *others = write_evaluation(report_of(), tmp_path / "new" / "folder")
    found = json.loads(metrics.read_text())
    for key in ("dice", "boundary_iou", "ece", "ece_band"):
        assert set(found[key]["per_class"]) == {"Front", "Back"}
        assert 0 <= found[key]["mean"] <= 1
    assert found["ece"]["top_label"] == pytest.approx(found["calibration"]["whole"]["top_label"]["ece"])
    assert found["bundle"] == {"name": "lobes_mri_unet3d", "version": "1.2.0", "sha256": "ab" * 32}
    assert (found["data"]["cases"], found["data"]["subjects"]) == (4, 2)
    assert found["schema_version"] == "1.0"
    assert [path.name for path in others] == ["cases.csv", "report.html", "report.pdf"]
    assert all(path.is_file() for path in others)


@pytest.mark.parametrize(
    "report",
    [
        report_of(targets=[Target("Dice", ("dice", "mean"), at_least=0.5)]),
        report_of(shifts=(1,)),
        report_of(miss_last=True),
        report_of(EvaluationPlan(("Vessel",), outputs=OVERLAPPING, planar=True)),
    ],
    ids=["plain", "one case without intervals", "a missed structure", "planar"],
)
def test_every_kind_of_report_obeys_the_committed_schema(report):
    document = json.loads(json.dumps(metrics_document(report), allow_nan=False))
    validate(document, "metrics")


@cache
def document_that_obeys():
    document = metrics_document(report_of())
    validate(document, "metrics")
    return document


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("dice",), None),
        (("dice", "mean"), "0.9"),
        (("ece", "population"), "truth_or_prediction"),
        (("bundle", "sha256"), "/somewhere/model.pt"),
        (("unit",), "cm"),
        (("data", "cases"), 0),
        (("surprise",), 1),
    ],
)
def test_a_document_that_breaks_the_schema_is_refused(place, value):
    document = deepcopy(document_that_obeys())
    entry = document
    for key in place[:-1]:
        entry = entry[key]
    entry[place[-1]] = value
    with pytest.raises(InputRefusedError):
        validate(document, "metrics")


def test_the_schema_itself_is_sound_and_asks_for_every_figure_that_is_defined():
    rules = schema("metrics")
    jsonschema.Draft202012Validator.check_schema(rules)
    (pattern,) = rules["patternProperties"]
    written = set(metrics_document(report_of(targets=[Target("Dice", ("dice", "mean"), at_least=0)])))
    scores = {key for key in written if re.search(pattern, key)}
    assert scores == set(scores_of(PLAN)) >= {"dice", "hd_mm", "hd95_mm", "assd_mm", "size_difference_ml"}
    assert written - scores == set(rules["properties"]) - {
        "statements",
        "inference",
    }  # only where they were made or measured


def test_cases_csv_has_a_row_for_each_class_and_a_mean_for_each_case():
    report = report_of(miss_last=True)
    rows = list(csv.DictReader(io.StringIO(cases_csv(report.cases, PLAN))))
    assert len(rows) == 4 * 3
    assert [row["class"] for row in rows[:3]] == ["Front", "Back", "mean"]
    for row, scores in zip(rows[2::3], report.cases, strict=True):
        assert row["case"] == scores.case_id
        assert float(row["dice"]) == pytest.approx(scores.mean("dice"), rel=1e-5)
        assert float(row["ece_whole"]) == pytest.approx(scores.ece("whole"), rel=1e-5)
    missed = rows[-3]
    assert (missed["class"], missed["dice"], missed["hd95_mm"]) == ("Front", "0", "")


def test_targets_are_judged_by_the_figure_they_name():
    report = report_of()
    dice = report.summary["dice"]["mean"]
    assert Target("a", ("dice", "mean"), at_least=dice).outcome(report.summary) == "reached"
    assert Target("b", ("dice", "mean"), at_least=dice + 1e-6).outcome(report.summary) == "missed"
    assert Target("c", ("ece", "top_label"), at_most=1).outcome(report.summary) == "reached"
    assert Target("d", ("ece", "top_label"), at_most=0).outcome(report.summary) == "missed"


def test_a_figure_that_is_undefined_or_was_not_measured_reaches_no_target_and_misses_none():
    target = Target("a", ("ece_band", "top_label"), at_most=1)
    for summary in ({"ece_band": {"top_label": None}}, {"ece_band": {}}, {}):
        assert target.outcome(summary) == "undefined"
    assert target.outcome({"ece_band": {"top_label": 2.0}}) == "missed"


def test_the_worst_the_median_and_the_best_case_are_chosen_by_dice_whatever_the_order():
    cases = report_of(shifts=(1, 3, 0, 2, 2)).cases
    assert exemplary_cases(cases) == {"worst": "case_1", "median": "case_4", "best": "case_2"}
    assert exemplary_cases(reversed(cases)) == exemplary_cases(cases)
    assert exemplary_cases(cases[:4])["median"] == "case_3"  # Dice falls 2, 0, 3, 1: the lower of the middle two
    assert exemplary_cases(cases[:1]) == {"worst": "case_0"}
    assert exemplary_cases([]) == {}


def test_a_report_of_no_case_is_refused():
    with pytest.raises(ValueError, match="0 cases"):
        EvaluationReport(Evaluation(PLAN), ON)


def test_a_summary_that_breaks_the_schema_leaves_nothing_behind(tmp_path):
    report = report_of()
    broken = replace(report)
    vars(broken)["summary"] = {**report.summary, "dice": {"mean": 0.9}}
    with pytest.raises(InputRefusedError):
        write_evaluation(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path, monkeypatch, without_pages):
    (tmp_path / "metrics.json").write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_evaluation(report_of(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert (tmp_path / "metrics.json").read_text() == "old"
