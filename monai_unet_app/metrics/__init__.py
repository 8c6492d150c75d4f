"""Scores and calibration figures on bare arrays. Imports nothing else of the project.

`overlap` and `boundary` compare two masks, `reliability` counts what probabilities come to, `statistics` says
how sure a mean is, and `Evaluation` does all of it, case after case.
"""

from .boundary import boundary_iou, surface_band
from .cases import WHOLE, CaseArrays, CaseScores, ClassScores, EvaluationPlan, score_case
from .evaluation import Evaluation, definitions
from .overlap import dice, iou
from .reliability import ReliabilityCounts, count_reliability, expected_calibration_error
from .statistics import Bootstrap, Estimate, bootstrap_mean, bootstrap_paired_difference

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
    "count_reliability",
    "definitions",
    "dice",
    "expected_calibration_error",
    "iou",
    "score_case",
    "surface_band",
]
