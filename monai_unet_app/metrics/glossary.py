"""The glossary: one sentence for each score. It is written into every file that holds the scores."""

from .plan import EvaluationPlan
from .reliability import PARTS
from .score_registry import scores_of


def score_definitions(plan: EvaluationPlan) -> dict[str, str]:
    """One sentence for each score: what it is, in which unit, with which policy."""
    return _policies() | _definitions_of_classes(plan) | _definitions_of_calibration(plan)


def _policies() -> dict[str, str]:
    return {
        "level": "Scores are means over cases; calibration is pooled over all cases unless it says per case.",
        "interval": "Percentile bootstrap that draws subjects again, each with all of its cases.",
        "empty": "Both masks empty: 1. One empty: 0. Distances: both empty 0, one empty undefined and counted apart.",
        "absent_cases": "Cases without a voxel of the class, true or predicted: they count as both masks empty.",
        "present_only": "Under dice, where a class has absent cases: the same without them.",
        "undefined": "Classes that are absent in every case: their scores are null and no part of any mean over classes. "
        "The calibration of their probabilities is defined all the same.",
        "valid": "Voxels that a case leaves out (an ignore label, outside the field of view) are cut out of both masks "
        "before anything is measured, and out of every population. Where a mask runs out of the valid voxels it has a "
        "border, as at the image's edge; the band has no surface there.",
    }


def _definitions_of_classes(plan: EvaluationPlan) -> dict[str, str]:
    sentences = {
        "pixel_accuracy": "Part of the voxels whose label is right, background included; of overlapping labels, of all.",
    }
    for score in scores_of(plan).values():
        if score.definition:
            sentences[score.name] = score.definition.format(plan=plan)
        if score.name == "surface_dice":
            sentences["surface_dice_at"] = f"The same within {', '.join(plan.tolerance_names)}."
    return sentences | {
        "components": "Parts of a mask that touch by faces, edges or corners. A true one is found, and a predicted one "
        "right, if the two have an IoU above 0.5; the others are missed, and invented. sensitivity: found / true, 1 where "
        "there is none; f1: (found + right) / (true + predicted); panoptic_quality: mean IoU of the found ones times f1; "
        "both 1 where neither mask has a part.",
    }


def _definitions_of_calibration(plan: EvaluationPlan) -> dict[str, str]:
    unit = plan.unit
    decision = "voxel" if plan.exclusive else "voxel and label"
    likely = "what the background leaves" if plan.exclusive else "the largest of the labels"
    return {
        "ece": f"Top label, {plan.bins} equal-width bins, pooled over every {decision} of the source grid; "
        "per_class is one class against the rest.",
        "ece_band": f"As ece, over voxels whose centre lies within {plan.band_width:g} {unit} of the centre "
        "of a face of the predicted foreground, on either side; the image's edge is no face.",
        plan.likely: f"Population: voxels whose probability of foreground ({likely}), as delivered, is above "
        f"{plan.likely_above:g}.",
        plan.box: f"Population: voxels at most {plan.box_margin:g} {unit} along any axis beyond the box of the predicted "
        "foreground.",
        "ace": "Plain mean of the gaps of the equal-width bins that are not empty (as MONAI and Barfoot).",
        "ace_equal_mass": f"Mean gap of {plan.bins} bins that each hold the same share of the decisions (as Nixon), cut from "
        f"finer counts (1/{PARTS * plan.bins}, finer towards 0 and 1); a finer count on a cut is shared out in proportion.",
        "mce": "Largest gap of a bin that is not empty.",
        "brier": "Mean squared error of the probabilities"
        + (", summed over the channels." if plan.exclusive else ", a mean over labels."),
        "nll": "Mean -log of the probability given to what was true, in nats, floored at 2^-24.",
    }
