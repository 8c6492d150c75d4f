"""The scores of a class, as `scores.toml` lists them: name, unit, place in the report, and the sentence that explains each.

To add a score (paths are those of the repository):
1. Write its function in monai_unet_app/metrics (`overlap.py`, `boundary.py` or a module of its own), and a test in
   tests/metrics.
2. In `case_scores.py` give `ClassScores` its name: a field that `_score_class` fills, or a property of fields that are there.
3. Add an entry to `scores.toml`; `Score` below explains each key. metrics.json, cases.csv and the glossary of the report follow
   from `name` and `definition`; `table` and `column` add a column to the report, `terminal` a column to the terminal, `better`
   a row to comparisons (an evaluation that was made without the score can then no longer be compared), `is_target` a target.
4. Run `pytest tests/metrics`. The tests print the line for monai_unet_app/schemas/metrics.schema.json, and ask for a row in the
   table of docs/metrics.md. The keys in docs/outputs.md are listed by hand.

A score has one name: the attribute of `ClassScores`, the entry in the glossary and the row in docs/metrics.md. Its key in
metrics.json and cases.csv is that name followed by the unit, if it has one: `hd95` is `hd95_mm`, or `hd95_px` for pictures.
"""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from operator import attrgetter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .case_scores import CaseScores, ClassScores
from .plan import PICTURE, VOLUME, EvaluationPlan, Units

Read = Callable[[ClassScores], float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A score of a class: how it is named, read and shown.

    In `definition` and `column`, attributes of the `EvaluationPlan` in braces are filled in, such as `{plan.units.length}`.

    Attributes:
        name: Attribute of `ClassScores`, or of what `within` names.
        title: What people call it in a sentence.
        definition: Its sentence in the glossary of the report. Empty for the overlap scores that everybody knows.
        unit: "length" or "size", empty for a plain number. A length is not defined where one of the two masks is empty.
        table: The table of the report that has a column for it; empty where none has.
        column: Heading of that column.
        digits: Decimals in that column.
        terminal: Heading of its column in the terminal, a few letters long; empty leaves it out.
        better: Which values are better, for scores that a comparison of two evaluations shows; empty leaves it out.
        is_target: A target for the evaluation may name it. Only for scores from 0 to 1.
        asked_by: The switch of the `EvaluationPlan` without which it is not taken; empty for scores that are always taken.
        within: The attribute of `ClassScores` that holds it; empty for `ClassScores` itself.
    """

    name: str
    title: str = ""
    definition: str = ""
    unit: Literal["", "length", "size"] = ""
    table: Literal["", "classes", "outlines", "components"] = ""
    column: str = ""
    digits: int = 3
    terminal: str = ""
    better: Literal["", "higher", "lower"] = ""
    is_target: bool = False
    asked_by: str = ""
    within: str = ""

    def key(self, units: Units) -> str:
        """Its name in metrics.json and cases.csv."""
        return f"{self.name}_{getattr(units, self.unit)}" if self.unit else self.name

    @property
    def keys(self) -> tuple[str, ...]:
        """Its possible keys: of volumes and of pictures."""
        return tuple(dict.fromkeys(map(self.key, (VOLUME, PICTURE))))

    @property
    def read(self) -> Read:
        """Takes the score from the scores of a class."""
        return attrgetter(f"{self.within}.{self.name}" if self.within else self.name)

    def decimals(self, plan: EvaluationPlan) -> int:
        """Decimals in the report; a size in pixels is a whole number."""
        return 0 if self.unit == "size" and plan.units == PICTURE else self.digits


_ALL = tuple(
    Score(**entry) for entry in tomllib.loads((files(__package__) / "scores.toml").read_text(encoding="utf-8"))["score"]
)
SCORES = tuple(score for score in _ALL if not score.within)
"""The scores of a class, in the order of every file and table."""
COMPONENT_SCORES = tuple(score for score in _ALL if score.within)
"""The properties of `ComponentScores` that are reported, in the order of every file and table."""


def scores_of(plan: EvaluationPlan) -> dict[str, Score]:
    """Key -> score, for the scores that a plan takes."""
    taken = (score for score in SCORES if not score.asked_by or getattr(plan, score.asked_by))
    return {score.key(plan.units): score for score in taken}


def key_of(name: str, plan: EvaluationPlan) -> str:
    """The key of a score by its name."""
    return next(score.key(plan.units) for score in SCORES if score.name == name)


def tolerance_readers(plan: EvaluationPlan) -> dict[str, Read]:
    """Tolerance with its unit -> how surface Dice at this tolerance is read."""

    # A function of its own binds n; a lambda in the comprehension would always read the last n.
    def at(n: int) -> Read:
        return lambda entry: entry.surface_dice_at[n]

    return {name: at(n) for n, name in enumerate(plan.tolerance_names)}


def column_readers(plan: EvaluationPlan) -> dict[str, Read]:
    """Column of cases.csv -> how it is read: `SCORES`, "surface_dice_at_<tolerance>" and "components_<name>"."""
    single = {key: score.read for key, score in scores_of(plan).items()}
    at = {f"surface_dice_at_{name}": read for name, read in tolerance_readers(plan).items()}
    return single | at | {f"components_{score.name}": score.read for score in COMPONENT_SCORES}


def score_table(read: Read, cases: Sequence[CaseScores], plan: EvaluationPlan) -> Floats:
    """Shape (cases, classes): a score of each class in each case; infinite where a distance does not exist."""
    rows = [[float(read(entry)) for entry in case.classes] for case in cases]
    return np.array(rows, dtype=np.float64).reshape(len(cases), len(plan.class_names))


def presence(cases: Sequence[CaseScores], plan: EvaluationPlan) -> NDArray[np.bool_]:
    """Shape (cases, classes): whether the case has a voxel of the class, true or predicted."""
    return score_table(lambda entry: not entry.absent, cases, plan) > 0


def means_of_rows(table: Floats) -> Floats:
    """Shape (cases, classes) to (cases,): mean of the finite values in each row; NaN for a row without any."""
    used = np.isfinite(table)  # np.nanmean would count infinite distances, and warn of empty rows
    number = used.sum(axis=1)
    total = np.where(used, table, 0.0).sum(axis=1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
