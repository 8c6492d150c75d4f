"""From an evaluation to files: metrics.json, cases.csv and one self-contained report.html."""

from .contents import CasePicture, EvaluationReport, MeasuredOn, Target, exemplary_cases
from .evaluation import write_evaluation

__all__ = ["CasePicture", "EvaluationReport", "MeasuredOn", "Target", "exemplary_cases", "write_evaluation"]
