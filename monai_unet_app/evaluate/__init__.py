"""A bundle measured over labelled cases: which cases, their references, and the figures with their report."""

from .case_selection import LabelledCases, choose_cases, choose_out_of_fold, chosen_rows
from .evaluation import EvaluationHandler, evaluate_cases

__all__ = ["EvaluationHandler", "LabelledCases", "choose_cases", "choose_out_of_fold", "chosen_rows", "evaluate_cases"]
