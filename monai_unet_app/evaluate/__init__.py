"""A bundle measured over labelled cases: which cases, their references, and the figures with their report."""

from .case_selection import choose_cases, chosen_rows
from .evaluation import EvaluationHandler, LabelledCases, evaluate_cases

__all__ = ["EvaluationHandler", "LabelledCases", "choose_cases", "chosen_rows", "evaluate_cases"]
