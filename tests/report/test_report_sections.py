"""What a report says: every figure where it belongs, and nothing in place of what is not known."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from made_up import STATEMENTS, boxes, case_of, plain_report, report_of
from matplotlib.colors import to_rgb
from skimage.color import rgb2lab

from dicom_io.coding import DISPLAY_COLOURS
from monai_unet_app.confidence.assessment import Assessment, StructureAssessment
from monai_unet_app.confidence.quality import Grade
from monai_unet_app.confidence.statement_audit import Outcome, StructureTruth, summarise_statements
from monai_unet_app.metrics.bootstrap import Bootstrap
from monai_unet_app.metrics.case_scores import CaseArrays, CaseScores
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.summary import Evaluation
from monai_unet_app.report.blocks import Cell, Facts, Heading, Picture, Table, Text
from monai_unet_app.report.case_pictures import TRUTH_COLOUR
from monai_unet_app.report.charts import accuracy_band, reliability_figure, risk_coverage_figure, tolerance_figure
from monai_unet_app.report.evaluation_report import Target
from monai_unet_app.report.evaluation_writer import metrics_document
from monai_unet_app.report.sections import head, sections
from monai_unet_app.report.statement_section import statement_blocks


def table_headed(blocks, word):
    (found,) = [block for block in blocks if isinstance(block, Table) and word in block.head]
    return {row[0]: dict(zip(found.head, row, strict=True)) for row in found.rows}


def text_of(cell):
    return cell.text if isinstance(cell, Cell) else cell


def headings(blocks):
    return [block.text for block in blocks if isinstance(block, Heading)]


# --- classes that are not there


def test_a_class_that_no_case_has_is_named_with_the_reason_and_counts_nowhere():
    blocks = sections(plain_report(("Front", "Ghost", "Back")))  # only values 1 and 2 are drawn: the third is the ghost
    blocks = sections(plain_report(("Front", "Back", "Ghost")))
    (reasons,) = [b.entries for b in blocks if isinstance(b, Facts) and "Ghost" in b.entries]
    assert "no case has a voxel" in reasons["Ghost"]
    for word in ("Recall", "HD95\nmm", "F1"):
        row = table_headed(blocks, word)["Ghost"]
        assert {text_of(cell) for name, cell in row.items() if name != "Class" and "ECE" not in name} == {"–"}
    # Boxes of 4 voxels moved by 0, 1, 2, 1: Dice 1, 0.75, 0.5, 0.75, in each class that is there.
    cases = table_headed(blocks, "Case")
    assert [row["Dice"] for row in cases.values()] == ["0.500", "0.750", "0.750", "1.000"]
    (picture,) = [block for block in blocks if isinstance(block, Picture)]
    assert picture.caption == "Worst: case_2. Dice 0.500 (Front 0.500, Back 0.500)"


def test_cases_that_lack_a_class_are_told_with_the_dice_of_the_others():
    both, front = boxes((5, 1), (9, 2)), boxes((5, 1))
    moved = boxes((6, 1), (10, 2))
    report = report_of(
        [case_of("a", "s", both, moved, 2), case_of("b", "t", front, front, 2)], EvaluationPlan(("Front", "Back"))
    )
    (said,) = [b.text for b in sections(report) if isinstance(b, Text) and "counts as 1" in b.text]
    assert "Back in 1 case." in said
    # Case a: 0.75 in both classes; case b without its absent class: 1.
    assert "Dice without these: 0.875" in said


# --- parts


def test_parts_that_are_missed_and_invented_are_counted():
    truth, predicted = boxes((2, 1), (12, 1)), boxes((2, 1), (22, 1))
    row = table_headed(sections(report_of([case_of("a", "s", truth, predicted, 1)], EvaluationPlan(("Front",)))), "F1")[
        "Front"
    ]
    assert [text_of(row[name]) for name in ("True\nparts", "Predicted\nparts", "Missed", "Invented")] == [
        "2.00",
        "2.00",
        "1.00",
        "1.00",
    ]
    assert [text_of(row[name]) for name in ("Sensitivity", "F1", "Panoptic\nquality")] == ["0.500"] * 3


# --- calibration


def test_all_populations_stand_in_the_table_with_both_kinds_of_ace():
    report = plain_report()
    rows = table_headed(sections(report), "Population")
    assert list(rows) == [
        "Whole image",
        "Within 2 mm of the predicted surface",
        "Probability of foreground above 0.01",
        "Box of the prediction and 10 mm around it",
    ]
    for row, block in zip(rows.values(), report.summary["calibration"].values(), strict=True):
        assert row["ACE\nequal width"].text == f"{block['top_label']['ace']:.4f}"
        assert row["ACE\nequal mass"].text == f"{block['top_label']['ace_equal_mass']:.4f}"
        assert row["Decisions"] == f"{block['decisions']:,}"


def scored(name: str, subject: str, right: bool) -> CaseScores:
    """400 voxels, each predicted with 0.7; all of them come true, or none does."""
    truth = np.zeros((20, 20, 1), np.uint8)
    predicted = np.full_like(truth, 0 if right else 1)
    plan = EvaluationPlan(("Front",))
    sure = np.where(np.arange(2).reshape(-1, 1, 1, 1) == predicted, 0.7, 0.3)
    return Evaluation(plan).add(CaseArrays(name, subject, truth, predicted, sure, (1, 1, 1), 0.001))


def test_the_band_of_a_bin_is_drawn_by_subject_not_by_voxel():
    low, high = accuracy_band([scored("a", "s", True), scored("b", "t", False)], "whole", Bootstrap(level=0.5))
    filled = int(0.7 * 15)
    # One subject came true as a whole, the other failed as a whole: drawn twice each with a chance of 1/4, so 0 and 1.
    # A binomial interval of the 800 voxels would be 0.465 to 0.535.
    assert (low[filled], high[filled]) == (0, 1)
    assert np.isnan(np.delete(low, filled)).all()
    assert np.isnan(np.delete(high, filled)).all()


def test_one_subject_has_no_band_however_many_cases_it_has():
    low, high = accuracy_band([scored("a", "s", True), scored("b", "s", False)], "whole", Bootstrap(level=0.5))
    assert np.isnan(low).all()
    assert np.isnan(high).all()
    alone = report_of([case_of("a", "s", boxes((5, 1)), boxes((6, 1)), 1)], EvaluationPlan(("Front",)))
    assert not any("Band:" in getattr(block, "caption", "") for block in sections(alone))
    assert any("Band:" in getattr(block, "caption", "") for block in sections(plain_report(how=Bootstrap(level=0.5))))


def test_a_report_on_too_few_people_says_that_it_has_no_intervals():
    said = [block.text for block in sections(plain_report()) if isinstance(block, Text)]
    assert any("No interval is given: 2 subjects were measured, at least 6 are needed." in text for text in said)


def test_the_band_is_drawn_around_the_curve_it_belongs_to():
    report = plain_report(how=Bootstrap(level=0.5))
    pooled = {name: report.evaluation.counts[name] for name in report.plan.populations}
    bands = {name: accuracy_band(report.cases, name, report.how) for name in pooled}
    figure = reliability_figure(pooled, None, dict.fromkeys(pooled, ""), bands=bands)
    for axis, (name, counts) in zip(figure.axes[:2], pooled.items(), strict=True):
        filled = counts.count[0] > 0
        drawn = {tuple(point) for line in axis.collections[1].get_segments() for point in line}
        ends = {
            (x, y) for side in bands[name] for x, y in zip(counts.mean_confidence()[filled], side[filled], strict=True)
        }
        assert drawn == {point for point in ends if point == point}


# --- outlines


def test_the_curve_of_outlines_is_surface_dice_at_each_tolerance_whatever_their_order():
    plan = EvaluationPlan(("Front",), tolerances=(3.0, 0.5, 1.0))
    truth, predicted = boxes((5, 1)), boxes((6, 1))
    report = report_of([case_of("a", "s", truth, predicted, 1), case_of("b", "t", truth, truth, 1)], plan)
    (axis,) = tolerance_figure(report.summary, plan).axes
    curve, square = axis.lines
    # A box of 4 x 4 x 3 voxels moved by one voxel of 1 mm along I: from 1 mm on every border voxel is near the other's.
    assert curve.get_xdata().tolist() == [0.5, 1.0, 3.0]
    assert curve.get_ydata()[1:].tolist() == [1, 1]
    assert curve.get_ydata()[0] < 1
    assert square.get_xdata() == [1.0]
    assert square.get_ydata() == pytest.approx([report.summary["boundary_iou"]["mean"]])


def test_the_outlines_of_a_class_that_is_not_there_are_not_defined():
    report = plain_report(("Front", "Back", "Ghost"))
    axes = tolerance_figure(report.summary, report.plan).axes
    assert [axis.get_title(loc="left") for axis in axes] == ["Front", "Back", "Ghost"]
    assert [len(axis.lines) for axis in axes] == [2, 2, 0]
    assert [text.get_text() for text in axes[2].texts] == ["not defined"]


# --- statements


def test_without_statements_there_is_no_word_about_them():
    blocks = sections(plain_report())
    assert "What the bundle states about its own results" not in headings(blocks)
    assert not any("gate" in getattr(block, "text", "") for block in blocks)


def test_the_gates_verdicts_stand_in_the_head_and_in_their_section():
    blocks = sections(plain_report(statements=STATEMENTS))
    counts = "28 accepted, 6 for review, 2 rejected"
    (head,) = [n for n, block in enumerate(blocks) if counts in getattr(block, "text", "")]
    assert head < blocks.index(Heading("Each class"))
    (facts,) = [block.entries for block in blocks if isinstance(block, Facts) and "Verdicts" in block.entries]
    assert facts["Verdicts"] == counts
    assert "0.71" in facts["Predicted and true Dice"]
    bound = "85.0 % (stated: 90 %; 95 % interval 60.0 to 97.0; 20 subjects)"
    assert facts["True Dice at or above the bound"] == bound
    bad, good = [text for name, text in facts.items() if "held back" in name]
    assert (bad, good) == ("there was none", "12.5 % of 24")


def judged(structure, predicted, verdict):
    grade = Grade(predicted, predicted - 0.1, verdict, ())
    return StructureAssessment(10.0, (8.0, 12.0), True, structure, "a", grade)


def test_what_was_counted_of_real_results_is_what_the_section_tells():
    risk = SimpleNamespace(risk=0.1, thresholds={1: 0.2, 2: None})
    stated = SimpleNamespace(why_not={}, sizes=SimpleNamespace(coverage=0.9), wholes=None, counts=None, risk=risk,
                             gate=SimpleNamespace(coverage=0.9), shift=SimpleNamespace(limit=1.5), elsewhere=None)  # fmt: skip
    both = (judged(1, 0.9, "accept"), judged(2, 0.8, "accept"))
    outcomes = [
        Outcome(
            "s", Assessment(stated, both, None), (StructureTruth(0.95, 10.0, 0.05), StructureTruth(0.85, 9.0, 0.05))
        ),
        Outcome("t", Assessment(stated, (judged(1, 0.6, "review"),), None), (StructureTruth(0.9, 11.0, 0.05),)),
        Outcome("u", Assessment(stated, (judged(1, 0.4, "reject"),), None), (StructureTruth(0.5, 20.0, 0.05),)),
    ]
    counted = summarise_statements(outcomes, stated, {1: "Front", 2: "Back"})
    assert counted["gate"].keys() == STATEMENTS["gate"].keys()
    for name in ("sizes", "cautious"):
        assert counted[name]["Front"].keys() == STATEMENTS[name]["Front"].keys()
    assert counted["shift"]["wider_intervals"] is False
    blocks = statement_blocks(counted)
    row = table_headed(blocks, "Kept?")["Front"]  # of three subjects one lies beyond its interval
    assert (row["Observed"].text, row["Subjects"], row["Half width"]) == ("66.7 %", "3", "20.0 %")
    (facts,) = [block.entries for block in blocks if isinstance(block, Facts) and "Verdicts" in block.entries]
    assert facts["Verdicts"] == "1 accepted, 1 for review, 1 rejected"  # cases, not their four classes
    assert [text for name, text in facts.items() if "held back" in name] == ["100.0 % of 1", "33.3 % of 3"]
    assert Text("0 of 3 images flagged (distance above 1.5).") in blocks


def test_a_cautious_mask_that_no_cut_makes_is_not_stated():
    stated = SimpleNamespace(
        why_not={},
        sizes=None,
        wholes=None,
        counts=None,
        risk=SimpleNamespace(risk=0.1, thresholds={1: None}),
        gate=None,
        shift=None,
    )
    counted = summarise_statements([], stated, {1: "Front"})
    assert counted == {"not_stated": {"risk": "no probability is low enough to miss 10% at most"}}


def test_what_could_not_be_measured_or_was_seen_stands_under_a_conclusion_that_is_not_green():
    report = replace(plain_report(), targets=(Target("Dice", ("dice", "mean"), at_least=0.0),))
    assert head(report)[1].tone == "good"
    on = replace(report.measured_on, not_measured=("a", "b"), seen={"train": 3})
    flattered = head(replace(report, measured_on=on))
    assert (flattered[1].tone, flattered[1].text[-5:]) == ("", " but:")
    told = [text for _, _, text in flattered[2].entries]
    assert told == [
        "2 cases could not be measured: a, b",
        "the bundle was made with some of these cases (3 in its partition train): results on new cases will be worse",
    ]
    data = metrics_document(replace(report, measured_on=on))["data"]
    assert (data["not_measured"], data["seen"]) == (["a", "b"], {"train": 3})


@pytest.mark.parametrize(("subjects", "word"), [(8, "too few to decide"), (9, "yes")])
def test_a_statement_is_kept_by_so_many_subjects_as_could_have_broken_it(subjects, word):
    said = {
        "wanted": 0.9,
        "observed": 1.0,
        "interval": [0.6, 1.0],
        "subjects": subjects,
        "cases": 9,
        "mean_half_width": 0.1,
    }
    row = table_headed(statement_blocks({"not_stated": {}, "sizes": {"Front": said}}), "Kept?")["Front"]
    assert row["Kept?"].text == word


@pytest.mark.parametrize(
    ("observed", "interval", "word", "tone"),
    [
        (0.95, [0.75, 1.0], "yes", "good"),
        (0.90, [0.70, 0.98], "yes", "good"),
        (0.85, [0.62, 0.97], "may be chance", ""),
        (0.50, [0.30, 0.70], "no", "bad"),
        (None, None, "–", ""),
    ],
)
def test_a_coverage_below_what_was_stated_is_a_broken_statement_only_where_chance_does_not_explain_it(
    observed, interval, word, tone
):
    said = {
        "wanted": 0.9,
        "observed": observed,
        "interval": interval,
        "subjects": 20,
        "cases": 31,
        "mean_half_width": None,
    }
    row = table_headed(statement_blocks({"not_stated": {}, "sizes": {"Front": said}}), "Kept?")["Front"]
    assert row["Kept?"] == Cell(word, tone=tone)
    of_objects = statement_blocks({"not_stated": {}, "counts": {"Front": said}})
    assert headings(of_objects)[1:] == ["Intervals of the number of objects"]
    assert table_headed(of_objects, "Kept?")["Front"] == row
    assert row["Half width"] == "–"


def test_what_is_not_stated_comes_with_the_reason():
    blocks = statement_blocks(STATEMENTS)
    assert Facts({"Images unlike the training's": "the bundle names no feature_layer"}) in blocks
    assert headings(blocks)[1:] == ["Intervals of sizes", "Cautious masks", "Quality gate", "Not stated"]
    shift = replace_shift(flagged=3, cases=31, limit=1.337)
    said = "3 of 31 images flagged (distance above 1.3)."
    assert Text(said) in statement_blocks(shift)
    for flagged, wider, more in (
        (3, True, ""),
        (0, False, ""),
        (3, False, " The stated intervals were not made for such images."),
    ):
        shift = replace_shift(flagged=flagged, cases=31, limit=1.337, wider_intervals=wider)
        assert Text(said.replace("3 of", f"{flagged} of") + more) in statement_blocks(shift)


def replace_shift(**shift):
    return {**STATEMENTS, "not_stated": {}, "shift": shift}


def test_risk_is_drawn_against_coverage_and_against_what_no_order_would_give():
    (axis,) = risk_coverage_figure(STATEMENTS["gate"]["risk_coverage"]).axes
    flat, curve = axis.lines
    assert curve.get_xdata().tolist() == [25, 50, 75, 100]
    assert curve.get_ydata().tolist() == [0.05, 0.06, 0.08, 0.12]
    assert list(flat.get_ydata()) == [0.12, 0.12]


def test_a_gate_that_graded_nothing_draws_no_curve():
    gate = {**STATEMENTS["gate"], "aurc": None, "spearman": None, "risk_coverage": {"coverage": [], "risk": []}}
    blocks = statement_blocks({"not_stated": {}, "gate": gate})
    assert not any(hasattr(block, "draw") for block in blocks)
    (facts,) = [block.entries for block in blocks if isinstance(block, Facts)]
    assert facts["Mean risk over all coverages (AURC)"] == "–"


def test_who_set_the_targets_is_said():
    from monai_unet_app.report.evaluation_report import Target

    report = plain_report(targets=[Target("Dice", ("dice", "mean"), at_least=0.5)], targets_from="the bundle's own")
    assert Text("Targets: the bundle's own.", note=True) in sections(report)
    assert not any(re.match("Targets:", getattr(b, "text", "")) for b in sections(replace(report, targets=())))


def test_thirty_two_classes_have_colours_that_are_told_apart() -> None:
    lab = rgb2lab(np.array([[to_rgb(colour) for colour in (*DISPLAY_COLOURS, TRUTH_COLOUR)]]))[0]
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(len(lab), 1)]
    assert len(set(DISPLAY_COLOURS)) == 32
    assert apart.min() > 25  # CIE76; 2.3 is the least that is seen side by side
