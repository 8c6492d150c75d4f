"""Scores and calibration figures on bare arrays. Imports nothing else of the project.

`overlap`, `boundary`, `components` and `centreline` compare two masks, `reliability` counts what probabilities come
to in each of the `populations`, `bootstrap` says how sure a mean is, and `Evaluation` does all of it, case after
case, as an `EvaluationPlan` says. `seams` and `uncertainty` look at probabilities alone.
"""

from .bootstrap import Bootstrap, Estimate, bootstrap_mean, bootstrap_paired_difference, fewest_subjects
from .boundary import boundary_iou, coco_boundary_iou, surface_band
from .case_scores import CaseArrays, CaseScores, ClassScores, score_case
from .centreline import centreline_dice
from .glossary import score_definitions
from .overlap import dice, iou
from .plan import WHOLE, EvaluationPlan
from .reliability import (
    ReliabilityCounts,
    count_reliability,
    equal_mass_calibration_error,
    expected_calibration_error,
)
from .seams import seam_error
from .summary import Evaluation
from .uncertainty import normalised_entropy

__all__ = [
    "WHOLE",
    "Bootstrap",
    "CaseArrays",
    "CaseScores",
    "ClassScores",
    "Estimate",
    "Evaluation",
    "EvaluationPlan",
    "ReliabilityCounts",
    "bootstrap_mean",
    "bootstrap_paired_difference",
    "boundary_iou",
    "centreline_dice",
    "coco_boundary_iou",
    "count_reliability",
    "dice",
    "equal_mass_calibration_error",
    "expected_calibration_error",
    "fewest_subjects",
    "iou",
    "normalised_entropy",
    "score_case",
    "score_definitions",
    "seam_error",
    "surface_band",
]
