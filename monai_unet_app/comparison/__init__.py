"""Two evaluations compared pair by pair, one evaluation by subgroups, and a gate for releases. Reads what `evaluate` wrote.

`stored_evaluation` reads, `pairing` pairs, `differences` compares, `release_gate` decides, `attributes` and `subgroups` look at
groups of people, `rank_tests` tells chance from change, `comparison_writer` writes.
"""

from .attributes import Attributes, dicom_attributes, read_attributes
from .comparison_writer import write_comparison, write_subgroups
from .differences import Comparison, Difference, compare
from .release_gate import GATED_SCORES, Verdict, gate
from .stored_evaluation import StoredEvaluation, is_evaluation, read_evaluation
from .subgroups import Subgroups, subgroups

__all__ = [
    "GATED_SCORES",
    "Attributes",
    "Comparison",
    "Difference",
    "StoredEvaluation",
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
