"""A bundle measured over labelled cases: which cases, their references, and the figures with their report."""

from .case_selection import LabelledCases, choose_cases, choose_out_of_fold, choose_results, chosen_rows
from .evaluation import EvaluationHandler, evaluate_cases, evaluate_results
from .label_folders import LabelFolders

__all__ = [
    "EvaluationHandler", "LabelFolders", "LabelledCases", "choose_cases", "choose_out_of_fold", "choose_results", "chosen_rows",
    "evaluate_cases", "evaluate_results",
]  # fmt: skip
