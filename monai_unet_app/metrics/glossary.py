"""What each figure is, in a sentence of its own; it goes wherever the figures go."""

from __future__ import annotations

from .plan import EvaluationPlan
from .reliability import PARTS


def definitions(plan: EvaluationPlan) -> dict[str, str]:
    """One sentence for each figure: what it is, in which unit, with which policy."""
    return _policies() | _score_definitions(plan) | _calibration_definitions(plan)


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


def _score_definitions(plan: EvaluationPlan) -> dict[str, str]:
    unit, d = plan.unit, plan.boundary_width
    asked = {
        "centreline_dice": "Harmonic mean of the part of the predicted centre-line that lies in the true mask and of the "
        "part of the true one that lies in the predicted mask (clDice); centre-lines by thinning voxels.",
    }
    return {
        "pixel_accuracy": "Part of the voxels whose label is right, background included; of overlapping labels, of all.",
        "boundary_iou": f"IoU of the voxels of each mask within {d:g} {unit} (centre to centre) of its "
        "border voxels; border: the mask minus its face-connected erosion, with the image's edge as outside.",
        "iou_boundary_min": "The smaller of IoU and boundary IoU, case by case.",
        "surface_dice": f"Part of the border voxels of both masks within "
        f"{plan.surface_tolerance:g} {unit} of the other's.",
        "surface_dice_at": f"The same within {', '.join(plan.tolerance_names)}.",
        **(asked if plan.centreline else {}),
        "hd": f"Largest border-to-border distance, {unit}.",
        "hd95": f"Larger of the two 95th percentiles of border-to-border distances, {unit}.",
        "assd": f"Mean border-to-border distance, both directions pooled, {unit}.",
        "size_difference": f"Predicted minus true size, {'pixels' if plan.planar else 'mL'}.",
        "components": "Parts of a mask that touch by faces, edges or corners. A true one is found, and a predicted one "
        "right, if the two have an IoU above 0.5; the others are missed, and invented. sensitivity: found / true, 1 where "
        "there is none; f1: (found + right) / (true + predicted); panoptic_quality: mean IoU of the found ones times f1; "
        "both 1 where neither mask has a part.",
    }


def _calibration_definitions(plan: EvaluationPlan) -> dict[str, str]:
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
