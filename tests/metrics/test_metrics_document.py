"""metrics.json and cases.csv of what is undefined, absent or asked for."""

import csv
import io
import json

import numpy as np
import pytest

from monai_unet_app.data.schemas import validate
from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.bootstrap import Bootstrap
from monai_unet_app.metrics.case_scores import CaseArrays
from monai_unet_app.metrics.outputs import OVERLAPPING
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.summary import Evaluation
from monai_unet_app.report.evaluation_report import EvaluationReport, MeasuredOn
from monai_unet_app.report.evaluation_writer import cases_csv, metrics_document, write_evaluation

ON = MeasuredOn("lobes_mri_unet3d", "1.2.0", "ab" * 32, "Phantoms", "cd" * 32, "test")
PLAN = EvaluationPlan(("Front", "Back", "Never"))


def phantom(n, plan, back=True):
    """Two boxes side by side, moved along I in the prediction; nothing of the last class; an island of the first."""
    shape, spacing, size = ((16, 14), (1, 1), 1.0) if plan.planar else ((16, 14, 10), (1, 1.5, 2), 0.003)
    truth, predicted = np.zeros((2, *shape), np.uint8)
    for labels, start in ((truth, 2), (predicted, 3)):
        labels[start : start + 4, 4:10] = 1
        labels[start + 4 : start + 8, 4:10] = 2 * back
    predicted[14, 1] = 1
    values = np.arange(0 if plan.outputs.one_map else 1, len(plan.class_names) + 1).reshape(-1, *(1 for _ in shape))
    p = np.where(values == predicted, 0.9, 0.1 / max(1, len(values) - 1))
    masks = [np.stack([labels == v for v in values.ravel()]) for labels in (truth, predicted)]
    arrays = (truth, predicted) if plan.outputs.one_map else masks
    return CaseArrays(f"case_{n}", f"person_{n}", *arrays, p, spacing, size, p)


def report_of(plan=PLAN, back=(True, False, True)):
    evaluation = Evaluation(plan)
    for n, there in enumerate(back):
        evaluation.add(phantom(n, plan, there))
    return EvaluationReport(evaluation, ON, how=Bootstrap(resamples=30))


def rows_of(report):
    rows = csv.DictReader(io.StringIO(cases_csv(report.cases, report.plan)))
    return {(row["case"], row["class"]): row for row in rows}


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        EvaluationPlan(PLAN.class_names, centreline=True, tolerances=(), box_margin=0.0),
        EvaluationPlan(PLAN.class_names, outputs=OVERLAPPING, planar=True, centreline=True, likely_above=1e-5),
    ],
    ids=["plain", "asked for", "planar"],
)
@pytest.mark.parametrize("back", [(True, False, True), (False,)])
def test_what_is_undefined_absent_or_asked_for_obeys_the_schema(plan, back):
    validate(json.loads(json.dumps(metrics_document(report_of(plan, back)), allow_nan=False)), "metrics")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("undefined", "Never"), ""),
        (("absent_cases", "Never"), -1),
        (("components", "truth", "mean"), "3"),
        (("calibration", "truth_or_prediction"), {}),
        (("surface_dice_at", "1.0"), {}),
        (("calibration", "whole", "top_label", "ace_equal_mass"), "small"),
    ],
)
def test_a_document_that_breaks_the_rules_of_these_is_refused(place, value):
    document = metrics_document(report_of())
    entry = document
    for key in place[:-1]:
        entry = entry[key]
    entry[place[-1]] = value
    with pytest.raises(InputRefusedError):
        validate(document, "metrics")


@pytest.mark.parametrize("key", ["dices", "hd95", "hd95_ml", "size_difference_mm"])
def test_a_score_of_another_name_or_unit_is_refused(key):
    document = metrics_document(report_of())
    with pytest.raises(InputRefusedError, match=f"'{key}'"):
        validate(document | {key: document["dice"]}, "metrics")


def test_a_class_that_no_case_holds_has_a_reason_in_the_document_and_empty_fields_in_the_table(tmp_path, without_pages):
    report = report_of()
    metrics, *_ = write_evaluation(report, tmp_path)
    found = json.loads(metrics.read_text())
    assert set(found["undefined"]) == {"Never"}
    assert found["dice"]["per_class"]["Never"] is None
    assert found["absent_cases"] == {"Front": 0, "Back": 1, "Never": 3}
    assert found["dice"]["present_only"]["per_class"]["Back"] < found["dice"]["per_class"]["Back"]
    row = rows_of(report)["case_0", "Never"]
    assert {row[key] for key in ("dice", "hd_mm", "components_f1", "surface_dice_at_2mm")} == {""}
    assert (row["truth_size_ml"], row["predicted_size_ml"]) == ("0", "0")
    assert row["ece_whole"] != ""


@pytest.mark.parametrize("plan", [PLAN, EvaluationPlan(PLAN.class_names, outputs=OVERLAPPING, planar=True)])
def test_the_table_has_the_size_that_the_probabilities_say(plan):
    report = report_of(plan)
    rows, unit = rows_of(report), plan.units.size
    for n, case in enumerate((phantom(0, plan), phantom(1, plan, False))):
        channels = case.probabilities[-len(plan.class_names) :].reshape(len(plan.class_names), -1)
        for name, sum_of_probabilities in zip(plan.class_names, channels.sum(axis=1), strict=True):
            found = float(rows[f"case_{n}", name][f"expected_size_{unit}"])
            assert found == pytest.approx(sum_of_probabilities * case.voxel_size, rel=1e-5)


def test_the_means_of_the_table_are_those_of_the_document():
    report = report_of()
    rows, summary = rows_of(report), report.summary
    for column, block in {
        "dice": summary["dice"],
        "hd_mm": summary["hd_mm"],
        "surface_dice_at_0.5mm": summary["surface_dice_at"]["0.5mm"],
        "components_invented": summary["components"]["invented"],
    }.items():
        means = [float(rows[case.case_id, "mean"][column]) for case in report.cases]
        assert np.mean(means) == pytest.approx(block["mean"], rel=1e-5)
        front = [float(rows[case.case_id, "Front"][column]) for case in report.cases]
        assert np.mean(front) == pytest.approx(block["per_class"]["Front"], rel=1e-5)


def test_the_table_has_components_tolerances_and_what_was_asked_for():
    plain, asked = report_of(), report_of(EvaluationPlan(PLAN.class_names, centreline=True))
    row = rows_of(plain)["case_0", "Front"]
    counted = ("truth", "predicted", "missed", "invented")
    assert [row[f"components_{name}"] for name in counted] == ["1", "2", "0", "1"]
    assert float(row["components_sensitivity"]) == 1.0
    assert float(row["components_f1"]) == pytest.approx(2 / 3, rel=1e-5)
    assert {f"surface_dice_at_{tolerance:g}mm" for tolerance in PLAN.tolerances} <= set(row)
    assert "centreline_dice" not in row
    assert 0 <= float(rows_of(asked)["case_0", "Front"]["centreline_dice"]) <= 1
