"""The accumulator: hand-made cases of known scores, in both forms of labels, in space and in the plane."""

import json

import numpy as np
import pytest

from monai_unet_app.metrics import (
    Bootstrap,
    CaseArrays,
    Evaluation,
    EvaluationPlan,
    boundary_iou,
    dice,
    expected_calibration_error,
    surface_band,
)

SPACING = (0.9, 1.2, 2.0)
PLAN = EvaluationPlan(("Anterior", "Posterior"))


def label_box(labels, value, start, size):
    labels[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = value


def softmax_of(labels, channels, sure=0.9):
    """Probabilities that put `sure` on the given label."""
    onehot = np.arange(channels).reshape(-1, 1, 1, 1) == labels
    return np.where(onehot, sure, (1 - sure) / (channels - 1)).astype(np.float32)


def lopsided_case(case_id="a", subject="s1", shift=1, **changes):
    """Two boxes; the prediction is moved along I by `shift` voxels."""
    truth, predicted = np.zeros((2, 18, 16, 12), np.uint8)
    for labels, start in ((truth, 3), (predicted, 3 + shift)):
        label_box(labels, 1, (start, 2, 3), (4, 6, 5))
        label_box(labels, 2, (start + 4, 2, 3), (6, 6, 5))
    arrays = {
        "truth": truth,
        "predicted": predicted,
        "probabilities": softmax_of(predicted, 3),
        "spacing_mm": SPACING,
        "voxel_ml": 0.00216,
    }
    return CaseArrays(case_id, subject, **(arrays | changes))


def test_scores_of_a_case_are_those_of_its_masks():
    case = lopsided_case()
    scores = Evaluation(PLAN).add(case)
    assert [entry.name for entry in scores.classes] == ["Anterior", "Posterior"]
    assert [entry.dice for entry in scores.classes] == pytest.approx([3 / 4, 5 / 6])
    assert scores.mean("dice") == pytest.approx((3 / 4 + 5 / 6) / 2)
    for value, entry in enumerate(scores.classes, start=1):
        masks = case.truth == value, case.predicted == value
        assert entry.boundary_iou == boundary_iou(*masks, SPACING, width_mm=1.0)
        assert entry.iou_boundary_min == min(entry.iou, entry.boundary_iou)
        assert entry.hd95 == pytest.approx(SPACING[0])
        assert entry.truth_size == pytest.approx(masks[0].sum() * 0.00216)
        assert entry.size_difference == 0


def test_calibration_is_counted_over_the_image_and_in_the_band_around_the_prediction():
    missed = lopsided_case().predicted
    missed = np.where(missed == 1, 0, missed)  # so that truth and prediction have unlike surfaces
    case = lopsided_case(predicted=missed, probabilities=softmax_of(missed, 3))
    scores = Evaluation(PLAN).add(case)
    assert set(scores.reliability) == {"whole", "band_2mm"}
    within = {
        "whole": np.ones(case.truth.shape, bool),
        "band_2mm": surface_band(case.predicted > 0, SPACING, 2.0),
    }
    for name, mask in within.items():
        accuracy = (case.truth == case.predicted)[mask].mean()
        assert scores.reliability[name].decisions == mask.sum()
        assert expected_calibration_error(scores.reliability[name]) == pytest.approx(abs(0.9 - accuracy), abs=1e-6)


def test_the_summary_pools_calibration_and_averages_scores_over_cases():
    evaluation = Evaluation(PLAN)
    cases = [lopsided_case(f"c{n}", f"s{n // 2}", shift=n % 3) for n in range(6)]
    for case in cases:
        evaluation.add(case)
    summary = evaluation.summary(Bootstrap(seed=1))
    means = [np.mean([dice(c.truth == v, c.predicted == v) for v in (1, 2)]) for c in cases]
    assert summary["dice"]["mean"] == pytest.approx(np.mean(means))
    assert set(summary["dice"]["per_class"]) == {"Anterior", "Posterior"}
    low, high = summary["dice"]["mean_interval"]
    assert low <= summary["dice"]["mean"] <= high
    assert low < high
    accuracy = np.mean([(c.truth == c.predicted).mean() for c in cases])
    assert summary["ece"]["top_label"] == pytest.approx(abs(0.9 - accuracy), abs=1e-6)
    assert summary["ece"]["population"] == "whole"
    assert summary["ece_band"]["population"] == "band_2mm"
    assert summary["calibration"]["whole"]["decisions"] == 6 * 18 * 16 * 12
    assert summary["calibration"]["whole"]["top_label"]["ece"] == pytest.approx(summary["ece"]["top_label"])
    assert summary["ece_band"]["mean"] == pytest.approx(np.mean(list(summary["ece_band"]["per_class"].values())))
    assert sum(b["count"] for b in summary["calibration"]["whole"]["bins"]) == 6 * 18 * 16 * 12


def test_the_class_wise_error_belongs_to_its_class():
    # Only "Posterior" is ever wrong: its own probability is off, that of "Anterior" is exact.
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[0] = 1
    p = np.zeros((3, 4, 4, 4), np.float32)
    p[1, 0], p[0, 1:], p[2, 1:] = 1.0, 0.7, 0.3
    case = CaseArrays("a", "s", truth, truth, p, (1, 1, 1), 0.001)
    evaluation = Evaluation(PLAN)
    evaluation.add(case)
    found = evaluation.summary()["ece"]
    assert found["per_class"] == pytest.approx({"Anterior": 0.0, "Posterior": 0.3 * 0.75})
    assert found["top_label"] == pytest.approx(0.3 * 0.75)


def test_labels_and_a_stack_of_masks_give_the_same_scores():
    case = lopsided_case()
    stacks = {name: np.stack([getattr(case, name) == v for v in (1, 2)]) for name in ("truth", "predicted")}
    from_labels, from_masks = Evaluation(PLAN).add(case), Evaluation(PLAN).add(lopsided_case(**stacks))
    assert from_labels.classes == from_masks.classes
    in_floats = lopsided_case(truth=case.truth.astype(np.float32))  # as tensors of MONAI hold them
    assert Evaluation(PLAN).add(in_floats).classes == from_labels.classes
    for name, counts in from_labels.reliability.items():
        assert np.array_equal(counts.count, from_masks.reliability[name].count)


def test_overlapping_labels_are_scored_a_label_at_a_time():
    plan = EvaluationPlan(("Tumour core", "Whole tumour"), exclusive=False)
    truth = np.zeros((2, 12, 11, 10), bool)
    truth[1, 2:10, 2:9, 2:8] = True
    truth[0, 4:8, 3:7, 3:7] = True  # inside the other
    predicted = truth.copy()
    predicted[0, 4:6] = False
    case = CaseArrays("a", "s", truth, predicted, np.where(predicted, 0.9, 0.1), (1, 1, 1), 0.001)
    scores = Evaluation(plan).add(case)
    assert [entry.dice for entry in scores.classes] == pytest.approx([2 / 3, 1.0])
    assert scores.reliability["whole"].decisions == truth.size
    expected = abs((truth == predicted).mean() - 0.9)
    assert expected_calibration_error(scores.reliability["whole"]) == pytest.approx(expected)


def test_planar_images_speak_in_pixels():
    plan = EvaluationPlan(("Vessel",), exclusive=False, planar=True)
    truth, predicted = np.zeros((2, 20, 18, 1), np.uint8)
    truth[4:10, 5:15], predicted[6:12, 5:15] = 1, 1
    p = np.where(predicted == 1, 0.8, 0.2)[None].astype(np.float32)
    evaluation = Evaluation(plan)
    scores = evaluation.add(CaseArrays("a", "s", truth, predicted, p, (0.3, 0.3, 1.0), 0.5))
    assert scores.classes[0].hd95 == 2.0
    assert scores.classes[0].truth_size == 60
    plane = truth[..., 0] == 1, predicted[..., 0] == 1
    assert scores.classes[0].boundary_iou == boundary_iou(*plane, (1, 1), width_mm=1.0) < scores.classes[0].iou
    assert scores.reliability["band_2px"].decisions == surface_band(plane[1], (1, 1), 2.0).sum()
    summary = evaluation.summary()
    assert summary["hd95_px"]["mean"] == 2.0
    assert "size_difference_px" in summary


def test_a_missed_structure_has_no_distance_and_is_counted_apart():
    evaluation = Evaluation(PLAN)
    evaluation.add(lopsided_case("seen", "s1", shift=1))
    missed = lopsided_case("missed", "s2")
    gone = np.where(missed.predicted == 1, 0, missed.predicted)
    evaluation.add(lopsided_case("missed", "s2", predicted=gone, probabilities=softmax_of(gone, 3)))
    block = evaluation.summary()["hd95_mm"]
    assert block["undefined_cases"] == {"Anterior": 1, "Posterior": 0}
    assert block["per_class"]["Anterior"] == pytest.approx(SPACING[0])
    assert evaluation.summary()["dice"]["per_class"]["Anterior"] == pytest.approx((3 / 4 + 0) / 2)


def test_an_undefined_figure_is_null_in_json():
    empty = np.zeros((6, 6, 6), np.uint8)
    evaluation = Evaluation(PLAN)
    evaluation.add(CaseArrays("a", "s", empty, empty, softmax_of(empty, 3), (1, 1, 1), 0.001))
    summary = json.loads(json.dumps(evaluation.summary(), allow_nan=False))
    assert summary["ece_band"]["top_label"] is None  # nothing predicted: no surface, no band
    assert summary["dice"]["mean"] == 1.0
    assert summary["dice"]["mean_interval"] is None


def test_probabilities_before_calibration_are_counted_beside():
    evaluation = Evaluation(PLAN)
    case = lopsided_case()
    evaluation.add(lopsided_case(uncalibrated=softmax_of(case.predicted, 3, sure=0.999)))
    before, after = evaluation.pooled_before(), evaluation.pooled()
    accuracy = (case.truth == case.predicted).mean()
    assert expected_calibration_error(before["whole"]) == pytest.approx(abs(0.999 - accuracy), abs=1e-6)
    assert expected_calibration_error(after["whole"]) == pytest.approx(abs(0.9 - accuracy), abs=1e-6)
    assert set(evaluation.summary()["calibration_before"]) == {"whole", "band_2mm"}
    evaluation.add(lopsided_case("b"))
    assert evaluation.pooled_before() is None


def test_two_evaluations_merge_into_one():
    cases = [lopsided_case(f"c{n}", f"s{n}", shift=n % 3) for n in range(4)]
    whole, first, second = Evaluation(PLAN), Evaluation(PLAN), Evaluation(PLAN)
    for n, case in enumerate(cases):
        whole.add(case)
        (first if n < 2 else second).add(case)
    assert Evaluation(PLAN, [*first.cases, *second.cases]).summary() == whole.summary()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"truth": np.full((18, 16, 12), 7, np.uint8)}, "label values 7; whole numbers from 0 to 2"),
        ({"truth": np.zeros((18, 16, 11), np.uint8)}, r"\(18, 16, 11\)"),
        ({"truth": np.full((18, 16, 12), 0.5, np.float32)}, "label values 0.5"),
        ({"truth": np.full((18, 16, 12), np.nan, np.float32)}, "label values nan"),
        ({"truth": np.ones((2, 18, 16, 12), bool)}, "two classes"),
        ({"probabilities": np.full((2, 18, 16, 12), 0.5, np.float32)}, "2 probability channels; 3"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused_and_not_counted(changes, says):
    evaluation = Evaluation(PLAN)
    with pytest.raises(ValueError, match=says):
        evaluation.add(lopsided_case(**changes))
    assert evaluation.cases == []


def test_a_case_counts_once():
    evaluation = Evaluation(PLAN)
    evaluation.add(lopsided_case("a"))
    with pytest.raises(ValueError, match="case a was added before"):
        evaluation.add(lopsided_case("a"))
