"""From an evaluation to files: metrics.json, cases.csv, one self-contained report.html, and report.pdf."""

from .case_pictures import case_figure
from .evaluation_report import CasePicture, EvaluationReport, MeasuredOn, Target, exemplary_cases
from .evaluation_writer import write_evaluation

__all__ = [
    "CasePicture",
    "EvaluationReport",
    "MeasuredOn",
    "Target",
    "case_figure",
    "exemplary_cases",
    "write_evaluation",
]
