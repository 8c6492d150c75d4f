"""From an evaluation to files: metrics.json, cases.csv, one self-contained report.html, and report.pdf."""

from .contents import CasePicture, EvaluationReport, MeasuredOn, Target, exemplary_cases
from .evaluation import write_evaluation
from .pictures import case_figure

__all__ = [
    "CasePicture",
    "EvaluationReport",
    "MeasuredOn",
    "Target",
    "case_figure",
    "exemplary_cases",
    "write_evaluation",
]
