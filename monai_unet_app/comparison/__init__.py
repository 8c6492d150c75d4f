"""Two evaluations compared pair by pair, one evaluation by subgroups, and a gate for releases. Reads what `evaluate` wrote.

`paired_evaluations` reads and pairs, `differences` compares, `release_gate` decides, `attributes` and `subgroups` look at
groups of people, `rank_tests` is how both tell chance from change, `files` writes.
"""

from .attributes import Attributes, dicom_attributes, read_attributes
from .differences import Comparison, Difference, compare
from .files import write_comparison, write_subgroups
from .paired_evaluations import EvaluationFiles, is_evaluation, read_evaluation
from .release_gate import FIGURES, Verdict, gate
from .subgroups import Subgroups, subgroups

__all__ = [
    "FIGURES",
    "Attributes",
    "Comparison",
    "Difference",
    "EvaluationFiles",
    "Subgroups",
    "Verdict",
    "compare",
    "dicom_attributes",
    "gate",
    "is_evaluation",
    "read_attributes",
    "read_evaluation",
    "subgroups",
    "write_comparison",
    "write_subgroups",
]
