"""Two evaluations of the same cases, paired case by case."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from monai_unet_app.errors import InputRefusedError
from monai_unet_app.metrics.score_registry import SCORES
from monai_unet_app.report.stored_evaluation import SETTINGS, SIX_DIGITS, StoredEvaluation, first_names

_DEFINED = ("empty", *(score.name for score in SCORES if score.better and score.definition), "ece", "ece_band")
"""Entries of the glossary that must be the same in both evaluations: those of the scores that are compared."""


@dataclass(frozen=True)
class Pairs:
    """Two evaluations of the same cases.

    Attributes:
        first: One evaluation.
        second: The other evaluation.
        subjects: Case id -> subject, in the order of the ids. Cases that share a person in either evaluation have the same
            subject.
        left_out: Cases of one evaluation only.
    """

    first: StoredEvaluation
    second: StoredEvaluation
    subjects: Mapping[str, str]
    left_out: tuple[str, ...]


def pair(first: StoredEvaluation, second: StoredEvaluation, *, common: bool, names: tuple[str, str]) -> Pairs:
    """The two evaluations case by case.

    Args:
        first: One evaluation.
        second: The other evaluation.
        common: Take the cases that both have and leave the others out.
        names: What a refusal calls the two evaluations.

    Raises:
        InputRefusedError: Other cases (unless `common`), other images or labels under the same names, other classes,
            lengths, bins or definitions.
    """
    _check_settings(first.document, second.document, names)
    left_out = sorted(first.table.subjects.keys() ^ second.table.subjects.keys())
    cases = sorted(first.table.subjects.keys() & second.table.subjects.keys())
    if left_out and not (common and cases):
        raise InputRefusedError(_other_cases(first, second, cases, names))
    digests = [evaluation.document["data"].get("sha256", "") for evaluation in (first, second)]
    # A digest is of all cases of an evaluation, so it says nothing where only a part of them is compared.
    if not left_out and all(digests) and digests[0] != digests[1]:
        raise InputRefusedError(
            f"the cases have the same names but different content (data sha256 {digests[0][:12]}... and {digests[1][:12]}...); "
            "the same images and labels are needed; evaluate both on one data set"
        )
    _check_truth(first, second, cases)
    return Pairs(first, second, _common_subjects(first.table.subjects, second.table.subjects, cases), tuple(left_out))


def _check_settings(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    settings = [(name, first[name], second[name]) for name in SETTINGS]
    glossaries = first["definitions"], second["definitions"]
    shared = [name for name in _DEFINED if all(name in glossary for glossary in glossaries)]
    settings += [(f"the definition of {name}", *(glossary[name] for glossary in glossaries)) for name in shared]
    for name, of_first, of_second in settings:
        if of_first != of_second:
            raise InputRefusedError(
                f"{name} is {of_first!r} in the {names[0]} evaluation and {of_second!r} in the {names[1]}; figures of one "
                "definition are needed; evaluate both with one version, on labels of the same meaning"
            )


def _other_cases(
    first: StoredEvaluation, second: StoredEvaluation, common: Sequence[str], names: tuple[str, str]
) -> str:
    lacks = [
        f"the {name} lacks {first_names(sorted(missing))}"
        for name, own, other in ((names[0], first, second), (names[1], second, first))
        if (missing := other.table.subjects.keys() - own.table.subjects.keys())
    ]
    advice = f"; monai-unet compare --common compares the {len(common)} that both have" if common else ""
    return (
        f"the evaluations have different cases: {'; '.join(lacks)}; the same cases in both are needed; evaluate both on one "
        f"data set{advice}"
    )


def _check_truth(first: StoredEvaluation, second: StoredEvaluation, cases: Sequence[str]) -> None:
    """Refuses reference masks of different sizes; the files hold no more about the label of a case."""
    for name in first.document["classes"]:
        in_first, in_second = (stored.table.values(stored.size_column, name) for stored in (first, second))
        apart = [case for case in cases if not np.isclose(in_first[case], in_second[case], rtol=SIX_DIGITS, atol=0)]
        if apart:
            raise InputRefusedError(
                f"the true {name} of {first_names(apart)} has another size in each evaluation ({apart[0]}: "
                f"{in_first[apart[0]]:g} and {in_second[apart[0]]:g}); the same labels are needed; evaluate both on "
                "one data set"
            )


def _common_subjects(first: Mapping[str, str], second: Mapping[str, str], cases: Sequence[str]) -> dict[str, str]:
    """Case id -> subject, also if the evaluations name people differently: cases that share a subject in either get the same.

    The people of both evaluations are joined where they share a case; the least name, so that the order of the rows does not
    matter.
    """
    people = DisjointSet()
    for case in cases:
        here, there = (first[case], True), (second[case], False)
        people.add(here)
        people.add(there)
        people.merge(here, there)
    return {case: min(name for name, is_first in people.subset((first[case], True)) if is_first) for case in cases}
