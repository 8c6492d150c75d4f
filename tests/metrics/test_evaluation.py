"""The accumulator: hand-made cases of known scores, in both forms of labels, in space and in the plane."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from monai_unet_app.metrics import boundary
from monai_unet_app.metrics.bootstrap import Bootstrap
from monai_unet_app.metrics.boundary import SurfacePair, normalised_surface_dice, surface_band, surface_distances
from monai_unet_app.metrics.case_scores import CaseArrays, CaseCounter
from monai_unet_app.metrics.centreline import centreline_dice
from monai_unet_app.metrics.glossary import score_definitions
from monai_unet_app.metrics.outputs import OVERLAPPING, outputs_of
from monai_unet_app.metrics.overlap import dice
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.reliability import expected_calibration_error
from monai_unet_app.metrics.summary import Evaluation

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
        "spacing": SPACING,
        "voxel_size": 0.00216,
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
        assert entry.boundary_iou == SurfacePair(*masks, SPACING).boundary_iou(1.0)
        assert entry.iou_boundary_min == min(entry.iou, entry.boundary_iou)
        assert entry.hd95 == pytest.approx(SPACING[0])
        assert entry.truth_size == pytest.approx(masks[0].sum() * 0.00216)
        assert entry.size_difference == 0


def test_the_size_difference_is_predicted_minus_true() -> None:
    case = lopsided_case()
    smaller = case.predicted.copy()
    smaller[:6] = 0  # the front structure loses planes, the one behind it does not
    lost = np.count_nonzero(case.predicted == 1) - np.count_nonzero(smaller == 1)
    scores = Evaluation(PLAN).add(replace(case, predicted=smaller))
    assert lost > 0
    assert [entry.size_difference for entry in scores.classes] == pytest.approx([-lost * 0.00216, 0])
    exchanged = Evaluation(PLAN).add(replace(case, truth=smaller))
    assert [entry.size_difference for entry in exchanged.classes] == pytest.approx([lost * 0.00216, 0])


def test_calibration_is_counted_over_the_image_and_in_the_band_around_the_prediction():
    missed = lopsided_case().predicted
    missed = np.where(missed == 1, 0, missed)  # so that truth and prediction have unlike surfaces
    case = lopsided_case(predicted=missed, probabilities=softmax_of(missed, 3))
    evaluation = Evaluation(PLAN)
    evaluation.add(case)
    assert set(evaluation.counts) == {"whole", "band_2mm", "likely_0.01", "box_10mm"}
    within = {
        "whole": np.ones(case.truth.shape, bool),
        "band_2mm": surface_band(case.predicted > 0, SPACING, 2.0),
    }
    for name, mask in within.items():
        accuracy = (case.truth == case.predicted)[mask].mean()
        assert evaluation.counts[name].decisions == mask.sum()
        assert evaluation.cases[0].errors[name]["ece"] == pytest.approx(abs(0.9 - accuracy), abs=1e-6)


def test_the_summary_pools_calibration_and_averages_scores_over_cases():
    evaluation = Evaluation(PLAN)
    cases = [lopsided_case(f"c{n}", f"s{n // 2}", shift=n % 3) for n in range(12)]
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
    assert summary["calibration"]["whole"]["decisions"] == 12 * 18 * 16 * 12
    assert summary["calibration"]["whole"]["top_label"]["ece"] == pytest.approx(summary["ece"]["top_label"])
    assert summary["ece_band"]["mean"] == pytest.approx(np.mean(list(summary["ece_band"]["per_class"].values())))
    assert sum(b["count"] for b in summary["calibration"]["whole"]["bins"]) == 12 * 18 * 16 * 12


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
    overlapping, case = EvaluationPlan(PLAN.class_names, outputs=OVERLAPPING), lopsided_case()
    case = replace(case, probabilities=case.probabilities[1:])
    stacks = {name: np.stack([getattr(case, name) == v for v in (1, 2)]) for name in ("truth", "predicted")}
    both = Evaluation(overlapping), Evaluation(overlapping)
    from_labels, from_masks = both[0].add(case), both[1].add(replace(case, **stacks))
    assert from_labels.classes == from_masks.classes == Evaluation(PLAN).add(lopsided_case()).classes
    in_floats = lopsided_case(truth=case.truth.astype(np.float32))  # as tensors of MONAI hold them
    assert Evaluation(PLAN).add(in_floats).classes == from_labels.classes
    for name, counts in both[0].counts.items():
        assert np.array_equal(counts.count, both[1].counts[name].count)


def test_overlapping_labels_are_scored_a_label_at_a_time():
    plan = EvaluationPlan(("Tumour core", "Whole tumour"), outputs=OVERLAPPING)
    truth = np.zeros((2, 12, 11, 10), bool)
    truth[1, 2:10, 2:9, 2:8] = True
    truth[0, 4:8, 3:7, 3:7] = True  # inside the other
    predicted = truth.copy()
    predicted[0, 4:6] = False
    case = CaseArrays("a", "s", truth, predicted, np.where(predicted, 0.9, 0.1), (1, 1, 1), 0.001)
    evaluation = Evaluation(plan)
    scores = evaluation.add(case)
    assert [entry.dice for entry in scores.classes] == pytest.approx([2 / 3, 1.0])
    assert evaluation.counts["whole"].decisions == truth.size
    expected = abs((truth == predicted).mean() - 0.9)
    assert scores.ece("whole") == pytest.approx(expected)


def test_planar_images_speak_in_pixels():
    plan = EvaluationPlan(("Vessel",), outputs=OVERLAPPING, planar=True)
    truth, predicted = np.zeros((2, 20, 18), np.uint8)
    truth[4:10, 5:15], predicted[6:12, 5:15] = 1, 1
    p = np.where(predicted == 1, 0.8, 0.2)[None].astype(np.float32)
    evaluation = Evaluation(plan)
    scores = evaluation.add(CaseArrays("a", "s", truth, predicted, p, (1.0, 1.0), 1.0))
    assert scores.classes[0].hd95 == 2.0
    assert scores.classes[0].truth_size == 60
    plane = truth == 1, predicted == 1
    assert scores.classes[0].boundary_iou == SurfacePair(*plane, (1, 1)).boundary_iou(1.0) < scores.classes[0].iou
    assert evaluation.counts["band_2px"].decisions == surface_band(plane[1], (1, 1), 2.0).sum()
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
    assert summary["dice"]["mean"] is None  # nothing was there, nothing was predicted
    assert summary["dice"]["mean_interval"] is None


# --- classes that are absent


def without(case, *values, side=("truth", "predicted")):
    """The same case with classes removed from truth, prediction or both."""
    return {name: np.where(np.isin(getattr(case, name), values), 0, getattr(case, name)) for name in side}


def test_a_class_that_no_case_holds_is_undefined_and_no_part_of_a_mean():
    evaluation = Evaluation(PLAN)
    for n in range(3):
        evaluation.add(lopsided_case(f"c{n}", f"s{n}", **without(lopsided_case(), 2)))
    summary = json.loads(json.dumps(evaluation.summary(Bootstrap(seed=1)), allow_nan=False))
    assert list(summary["undefined"]) == ["Posterior"]
    assert "no case has a voxel" in summary["undefined"]["Posterior"]
    assert summary["absent_cases"] == {"Anterior": 0, "Posterior": 3}
    scores = ("dice", "boundary_iou", "hd95_mm", "size_difference_ml")
    blocks = [
        *(summary[key] for key in scores),
        *summary["surface_dice_at"].values(),
        *summary["components"].values(),
    ]
    assert len(blocks) == 4 + 5 + 7
    for block in blocks:
        assert block["per_class"]["Posterior"] is None
        assert block["per_class_interval"]["Posterior"] is None
        assert block["mean"] == pytest.approx(block["per_class"]["Anterior"])
        assert "present_only" not in block
    assert summary["dice"]["mean"] == pytest.approx(3 / 4)
    assert summary["ece"]["per_class"]["Posterior"] is not None  # its probabilities were there to be judged


def test_a_class_that_is_absent_in_some_cases_counts_there_as_one_and_is_told_without_them():
    evaluation = Evaluation(PLAN)
    evaluation.add(lopsided_case("a", "s1"))
    evaluation.add(lopsided_case("b", "s2", **without(lopsided_case(), 1)))
    summary = evaluation.summary()
    assert summary["absent_cases"] == {"Anterior": 1, "Posterior": 0}
    assert summary["undefined"] == {}
    assert summary["dice"]["per_class"] == pytest.approx({"Anterior": (3 / 4 + 1) / 2, "Posterior": 5 / 6})
    present = summary["dice"]["present_only"]
    assert present["per_class"] == pytest.approx({"Anterior": 3 / 4, "Posterior": 5 / 6})
    assert present["mean"] == pytest.approx(((3 / 4 + 5 / 6) / 2 + 5 / 6) / 2)


def test_a_class_that_was_missed_or_invented_is_not_absent():
    for side, invented in (("truth", True), ("predicted", False)):
        evaluation = Evaluation(PLAN)
        evaluation.add(lopsided_case("a", "s", **without(lopsided_case(), 1, side=(side,))))
        summary = evaluation.summary()
        assert summary["absent_cases"]["Anterior"] == 0
        assert summary["dice"]["per_class"]["Anterior"] == 0.0
        assert summary["components"]["invented"]["per_class"]["Anterior"] == invented
        assert "present_only" not in summary["dice"]


# --- what a summary holds beside the single scores


def test_components_are_counted_for_each_class_and_case():
    def case(case_id, subject, found):
        truth, predicted = np.zeros((2, 30, 20, 12), np.uint8)
        for start in ((1, 1, 1), (10, 1, 1), (20, 1, 1)):
            label_box(truth, 1, start, (4, 4, 4))
        for start in ((1, 1, 1), (10, 1, 1), (20, 1, 1))[:found]:
            label_box(predicted, 1, start, (4, 4, 4))
        label_box(predicted, 1, (27, 12, 8), (2, 2, 2))
        return CaseArrays(case_id, subject, truth, predicted, softmax_of(predicted, 2), SPACING, 0.001)

    evaluation = Evaluation(EvaluationPlan(("Lesion",)))
    evaluation.add(case("a", "s1", 3))
    evaluation.add(case("b", "s2", 1))
    found = {key: block["mean"] for key, block in evaluation.summary()["components"].items()}
    assert found == pytest.approx(
        {
            "truth": 3,
            "predicted": (4 + 2) / 2,
            "missed": (0 + 2) / 2,
            "invented": 1,
            "sensitivity": (1 + 1 / 3) / 2,
            "f1": (6 / 7 + 2 / 5) / 2,
            "panoptic_quality": (6 / 7 + 2 / 5) / 2,  # what was found was found exactly
        }
    )


def test_surface_dice_is_given_at_every_tolerance_and_the_largest_distance_beside_hd95():
    plan = EvaluationPlan(("Anterior", "Posterior"), tolerances=(0.5, 0.9, 1.8))
    evaluation = Evaluation(plan)
    case = lopsided_case(shift=2)
    entry = evaluation.add(case).classes[0]
    masks = case.truth == 1, case.predicted == 1
    distances = surface_distances(*masks, SPACING)
    expected = [normalised_surface_dice(distances, tolerance_mm=t) for t in (0.5, 0.9, 1.8)]
    assert entry.surface_dice_at == tuple(expected)
    assert expected[0] < expected[1] < expected[2] == 1.0
    summary = evaluation.summary()
    assert list(summary["surface_dice_at"]) == ["0.5mm", "0.9mm", "1.8mm"]
    assert summary["surface_dice_at"]["0.9mm"]["per_class"]["Anterior"] == pytest.approx(expected[1])
    assert summary["hd_mm"]["per_class"]["Anterior"] == pytest.approx(2 * SPACING[0])
    assert summary["hd_mm"]["undefined_cases"] == {"Anterior": 0, "Posterior": 0}


def test_one_distance_map_a_mask_serves_all_surface_scores(monkeypatch):
    maps = []
    measure = boundary._distance_to
    monkeypatch.setattr(boundary, "_distance_to", lambda *given: maps.append(given) or measure(*given))
    Evaluation(PLAN).add(lopsided_case())
    assert len(maps) == 2 * len(PLAN.class_names)


def test_centre_lines_are_compared_only_where_the_plan_asks():
    asked = EvaluationPlan(("Anterior", "Posterior"), centreline=True)
    case = lopsided_case()
    expected = [centreline_dice(case.truth == value, case.predicted == value) for value in (1, 2)]
    evaluation = Evaluation(asked)
    assert [entry.centreline_dice for entry in evaluation.add(case).classes] == expected
    assert evaluation.summary()["centreline_dice"]["mean"] == pytest.approx(np.mean(expected))
    assert "centreline_dice" in score_definitions(asked)
    plain = Evaluation(PLAN)
    assert plain.add(case).classes[0].centreline_dice is None
    assert "centreline_dice" not in plain.summary()
    assert "centreline_dice" not in score_definitions(PLAN)


def test_everything_a_summary_names_is_defined():
    evaluation = Evaluation(PLAN)
    evaluation.add(lopsided_case())
    summary, said = evaluation.summary(), score_definitions(PLAN)
    plain = {"dice", "iou", "precision", "recall", "calibration", "whole", "band_2mm"}  # said by their names
    named = {key.removesuffix("_mm").removesuffix("_ml") for key in summary} | set(summary["calibration"])
    assert named - plain <= set(said)
    assert set(summary["calibration"]["whole"]["top_label"]) <= set(said)


# --- voxels that do not count


def field_of_view():
    """Half of a case's field, cut across both boxes and slantwise."""
    i, j, _ = np.indices((18, 16, 12))
    return (i + j > 8) & (i < 11)


def test_whatever_lies_outside_the_valid_voxels_changes_no_figure():
    case, valid = lopsided_case(uncalibrated=softmax_of(lopsided_case().predicted, 3, sure=0.99)), field_of_view()
    evaluations = Evaluation(PLAN), Evaluation(PLAN)
    expected = evaluations[1].add(replace(case, valid=valid))
    p, before = case.probabilities.copy(), case.uncalibrated.copy()
    p[:, ~valid], before[:, ~valid] = np.nan, -3.0
    ignored = replace(
        case,
        valid=valid,
        truth=np.where(valid, case.truth, 255),
        predicted=np.where(valid, case.predicted, 2),
        probabilities=p,
        uncalibrated=before,
    )
    found = evaluations[0].add(ignored)
    assert found.classes == expected.classes
    for name in PLAN.every_population:
        for table in ("counts", "counts_before"):
            one, other = (getattr(evaluation, table)[name] for evaluation in evaluations)
            assert np.array_equal(one.narrow_count, other.narrow_count)
            assert np.array_equal(one.narrow_correct, other.narrow_correct)
    assert evaluations[0].counts["whole"].decisions == valid.sum()
    assert found.classes != Evaluation(PLAN).add(case).classes


def test_a_wrong_voxel_inside_counts_and_the_same_outside_does_not():
    truth = np.zeros((18, 16, 12), np.uint8)
    label_box(truth, 1, (2, 2, 2), (4, 5, 6))
    valid = np.ones(truth.shape, bool)
    valid[12:] = False
    plan = EvaluationPlan(("Box",))

    def scores(place):
        predicted = truth.copy()
        predicted[place] = 1
        case = CaseArrays("a", "s", truth, predicted, softmax_of(truth, 2), SPACING, 0.001, valid=valid)
        return Evaluation(plan).add(case).classes[0]

    outside, inside = scores((15, 8, 8)), scores((10, 8, 8))
    assert (outside.dice, outside.hd, outside.components.invented, outside.size_difference) == (1.0, 0.0, 0, 0.0)
    assert inside.dice == pytest.approx(240 / 241)
    assert (inside.components.invented, inside.hd > 5) == (1, True)


def test_at_the_edge_of_the_valid_voxels_a_mask_has_its_border_as_at_the_images_edge():
    truth, predicted = np.zeros((2, 18, 16, 12), np.uint8)
    label_box(truth, 1, (2, 3, 3), (12, 6, 5))
    label_box(predicted, 1, (3, 3, 3), (13, 6, 5))
    valid = np.ones(truth.shape, bool)
    valid[9:] = False
    plan = EvaluationPlan(("Box",))
    case = CaseArrays("a", "s", truth, predicted, softmax_of(predicted, 2), SPACING, 0.001)
    cut = CaseArrays(
        "a", "s", truth[:9], predicted[:9], softmax_of(predicted[:9], 2), SPACING, 0.001
    )  # the image itself ends there
    evaluations = Evaluation(plan), Evaluation(plan)
    found, expected = evaluations[0].add(replace(case, valid=valid)), evaluations[1].add(cut)
    assert found.classes == expected.classes
    assert found.classes[0].hd == pytest.approx(SPACING[0])
    for name in plan.every_population:
        assert np.array_equal(*(evaluation.counts[name].narrow_count for evaluation in evaluations))


def test_valid_voxels_hold_for_overlapping_labels_and_planar_pictures_too():
    plan = EvaluationPlan(("Vessel",), outputs=OVERLAPPING, planar=True)
    truth, predicted = np.zeros((2, 20, 18), np.uint8)
    truth[4:10, 5:15], predicted[4:10, 5:15] = 1, 1
    predicted[15, 3] = 1
    valid = np.ones(truth.shape, bool)
    valid[12:] = False
    p = np.where(predicted == 1, 0.8, 0.2)[None].astype(np.float32)
    case = CaseArrays("a", "s", truth, predicted, p, (1.0, 1.0), 1.0, valid=valid)
    masks = {name: getattr(case, name).astype(bool)[None] for name in ("truth", "predicted")}
    for given in (case, replace(case, **masks)):
        evaluation = Evaluation(plan)
        entry = evaluation.add(given)
        assert (entry.classes[0].dice, entry.classes[0].predicted_size) == (1.0, 60)
        assert evaluation.counts["whole"].decisions == 12 * 18


@pytest.mark.parametrize(
    ("valid", "says"),
    [
        (np.ones((18, 16, 11), bool), r"\(18, 16, 11\)"),
        (np.ones((18, 16, 12), np.uint8), "uint8"),
        (np.zeros((18, 16, 12), bool), "0 valid voxels"),
    ],
)
def test_valid_voxels_that_are_no_mask_of_the_grid_are_refused(valid, says):
    with pytest.raises(ValueError, match=says):
        Evaluation(PLAN).add(lopsided_case(valid=valid))


def test_probabilities_before_calibration_are_counted_beside():
    evaluation = Evaluation(PLAN)
    case = lopsided_case()
    evaluation.add(lopsided_case(uncalibrated=softmax_of(case.predicted, 3, sure=0.999)))
    before, after = evaluation.counts_before, evaluation.counts
    accuracy = (case.truth == case.predicted).mean()
    assert expected_calibration_error(before["whole"]) == pytest.approx(abs(0.999 - accuracy), abs=1e-6)
    assert expected_calibration_error(after["whole"]) == pytest.approx(abs(0.9 - accuracy), abs=1e-6)
    for table in ("calibration", "calibration_before"):
        assert set(evaluation.summary()[table]) == {"whole", "band_2mm", "likely_0.01", "box_10mm"}
    evaluation.add(lopsided_case("b"))
    assert evaluation.counts_before is None
    evaluation.add(lopsided_case("c", uncalibrated=softmax_of(case.predicted, 3, sure=0.999)))
    assert evaluation.counts_before is None
    assert "calibration_before" not in evaluation.summary()


def test_the_mean_error_of_cases_is_taken_over_their_own_counts():
    alone = []
    evaluation = Evaluation(PLAN)
    for n, sure in enumerate((0.9, 0.6)):
        case = lopsided_case(f"c{n}", f"s{n}", probabilities=softmax_of(lopsided_case().predicted, 3, sure))
        alone.append(abs(sure - (case.truth == case.predicted).mean()))
        evaluation.add(case)
    block = evaluation.summary()["calibration"]["whole"]
    assert block["per_case"]["ece"] == block["per_case"]["ace_equal_mass"] == pytest.approx(np.mean(alone), abs=1e-6)


def test_little_is_kept_of_a_case_however_many_classes_it_has():
    names = tuple(f"c{n}" for n in range(105))
    labels = np.random.default_rng(0).integers(0, 106, (6, 7, 8)).astype(np.uint8)
    p = softmax_of(labels, 106, sure=0.5)
    evaluation = Evaluation(EvaluationPlan(names))
    evaluation.add(CaseArrays("warm", "s", labels, labels, p, SPACING, 0.001, p))
    tracemalloc.start()
    evaluation.add(CaseArrays("a", "s", labels, labels, p, SPACING, 0.001, p))
    evaluation.add(CaseArrays("b", "s", labels, labels, p, SPACING, 0.001, p))
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # The pooled counts were made anew by both cases; they do not grow.
    pooled = sum(
        array.nbytes
        for counts in (*evaluation.counts.values(), *evaluation.counts_before.values())
        for array in (counts.narrow_count, counts.narrow_correct, counts.narrow_confidence)
    )
    assert pooled > 7e6
    assert (kept - pooled) / 2 < 0.5e6


# --- slab by slab


def smooth_case(exclusive=True, case_id="a", valid=None, shape=(23, 17, 14)):
    """Random smooth probabilities of three classes and the background, calibrated and not, of truth and prediction."""
    rng = np.random.default_rng(3)
    raw = 6 * ndimage.gaussian_filter(rng.normal(size=(3, 4, *shape)), (0, 0, *(2 for _ in shape))) * 8
    truth, logits, other = raw
    if exclusive:
        p, before = (np.exp(part) / np.exp(part).sum(axis=0) for part in (logits, other))
        labels = truth.argmax(0), p.argmax(0)
    else:
        p, before = (1 / (1 + np.exp(-part[1:])) for part in (logits, other))
        labels = truth[1:] > 0, p >= 0.5
    p, before = p.astype(np.float32), before.astype(np.float32)
    return CaseArrays(case_id, "s", *labels, p, SPACING[: len(shape)], 0.002, before, valid)


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_in_any_order_give_the_counts_of_the_whole(axis, exclusive):
    plan = EvaluationPlan(("A", "B", "C"), outputs=outputs_of(exclusive), likely_above=0.3, box_margin=1.0)
    valid = np.random.default_rng(1).random((23, 17, 14)) > 0.2
    case = smooth_case(exclusive, valid=valid)
    whole = Evaluation(plan)
    expected = whole.add(case)
    counter = CaseCounter(replace(case, probabilities=None, uncalibrated=None), plan)
    for start, stop in ((5, 6), (0, 5), (9, 99), (6, 9)):
        slab = tuple(slice(start, stop) if n == axis else slice(None) for n in range(3))
        counter.add(slab, case.probabilities[(slice(None), *slab)], case.uncalibrated[(slice(None), *slab)])
    by_slabs = Evaluation(plan)
    found = by_slabs.add_counted(counter)
    assert found.classes == expected.classes
    assert found.pixel_accuracy == expected.pixel_accuracy
    for name in plan.every_population:
        for table in ("counts", "counts_before"):
            one, other = (getattr(evaluation, table)[name] for evaluation in (by_slabs, whole))
            assert other.decisions > 0
            assert np.array_equal(one.narrow_count, other.narrow_count)
            assert np.array_equal(one.narrow_correct, other.narrow_correct)
            assert one.narrow_confidence == pytest.approx(other.narrow_confidence, rel=1e-9, abs=0)
            assert (one.brier_sum, one.nll_sum) == pytest.approx((other.brier_sum, other.nll_sum), rel=1e-9)


def test_a_case_is_scored_only_when_each_voxel_was_counted():
    case = smooth_case()
    plan = EvaluationPlan(("A", "B", "C"))
    counter = CaseCounter(case, plan)
    lower, upper = (slice(0, 9), *[slice(None)] * 2), (slice(9, 23), *[slice(None)] * 2)
    counter.add(lower, case.probabilities[:, :9], case.uncalibrated[:, :9])
    with pytest.raises(ValueError, match=f"of {9 * 17 * 14} voxels.*{23 * 17 * 14} are needed"):
        counter.scores()
    counter.add(upper, case.probabilities[:, 9:])
    with pytest.raises(ValueError, match=f"before calibration of {9 * 17 * 14};"):
        counter.scores()
    with pytest.raises(ValueError, match="probabilities have shape"):
        counter.add(upper, case.probabilities[:, :9])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"truth": np.full((18, 16, 12), 7, np.uint8)}, "label values 7; whole numbers from 0 to 2"),
        ({"truth": np.zeros((18, 16, 11), np.uint8)}, r"\(18, 16, 11\)"),
        ({"truth": np.full((18, 16, 12), 0.5, np.float32)}, "label values 0.5"),
        ({"truth": np.full((18, 16, 12), np.nan, np.float32)}, "label values nan"),
        ({"truth": np.ones((2, 18, 16, 12), bool)}, r"\(2, 18, 16, 12\); \(18, 16, 12\) is needed"),
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
    with pytest.raises(ValueError, match="case a was already added"):
        evaluation.add(lopsided_case("a"))
