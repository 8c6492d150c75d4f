"""The scores of a class by name: what each is called in summaries and tables, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from .case_scores import CaseScores, ClassScores
from .plan import EvaluationPlan

Score = Callable[[ClassScores], float]
Floats = NDArray[np.float64]

DISTANCES = ("hd", "hd95", "assd")
COMPONENT_SCORES = ("truth", "predicted", "missed", "invented", "sensitivity", "f1", "panoptic_quality")
"""Properties of `ComponentScores` that are told."""


def score_keys(plan: EvaluationPlan) -> dict[str, str]:
    """Attribute of `ClassScores` -> its name in summaries and tables, with the unit where it has one."""
    plain = ("dice", "iou", "boundary_iou", "iou_boundary_min", "precision", "recall", "surface_dice")
    asked = ("centreline_dice",) if plan.centreline else ()
    units = dict.fromkeys(DISTANCES, plan.unit) | {"size_difference": plan.size_unit}
    return {score: score for score in (*plain, *asked)} | {score: f"{score}_{unit}" for score, unit in units.items()}


def single_scores(plan: EvaluationPlan) -> dict[str, Score]:
    """Name -> score, for all of `score_keys`."""
    return {key: attrgetter(attribute) for attribute, key in score_keys(plan).items()}


def tolerance_scores(plan: EvaluationPlan) -> dict[str, Score]:
    """Tolerance with its unit -> surface Dice at it."""

    def at(n: int) -> Score:
        return lambda entry: entry.surface_dice_at[n]

    return {name: at(n) for n, name in enumerate(plan.tolerance_names)}


def component_scores() -> dict[str, Score]:
    """Name -> what is told of the components."""
    return {name: attrgetter(f"components.{name}") for name in COMPONENT_SCORES}


def all_scores(plan: EvaluationPlan) -> dict[str, Score]:
    """Name of a column -> score: the single ones, "surface_dice_at_<tolerance>" and "components_<name>"."""
    at = {f"surface_dice_at_{name}": score for name, score in tolerance_scores(plan).items()}
    parts = {f"components_{name}": score for name, score in component_scores().items()}
    return single_scores(plan) | at | parts


def score_table(score: Score, cases: Sequence[CaseScores], plan: EvaluationPlan) -> Floats:
    """Shape (cases, classes): a score as it was taken, infinite where a distance does not exist."""
    rows = [[float(score(entry)) for entry in case.classes] for case in cases]
    return np.array(rows, dtype=np.float64).reshape(len(cases), len(plan.class_names))


def presence(cases: Sequence[CaseScores], plan: EvaluationPlan) -> NDArray[np.bool_]:
    """Shape (cases, classes): whether the case has a voxel of the class, true or predicted."""
    return score_table(lambda entry: not entry.absent, cases, plan) > 0


def means_of_rows(table: Floats) -> Floats:
    """Shape (cases, classes) to (cases,): mean over what is finite; NaN where nothing is."""
    used = np.isfinite(table)
    number = used.sum(axis=1)
    total = np.where(used, table, 0.0).sum(axis=1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
