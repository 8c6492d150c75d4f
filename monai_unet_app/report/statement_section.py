"""The section of the report on the bundle's statements about its own results, and how often they came true.

The numbers are those of `confidence.statement_audit.summarise_statements`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from monai_unet_app.confidence.conformal import subjects_needed
from monai_unet_app.confidence.statement_audit import BAD, GOOD

from .blocks import Block, Cell, Chart, Facts, Heading, Table, Text
from .charts import risk_coverage_figure
from .words import between, number, percent, plural

_PARTS = {"accept": "accepted", "review": "for review", "reject": "rejected"}
_STATEMENTS = {
    "sizes": "Intervals of sizes",
    "counts": "Intervals of the number of objects",
    "risk": "Cautious masks",
    "gate": "Quality gate",
    "shift": "Images unlike the training's",
}
_INTERVALS = {"sizes": "size", "counts": "number of objects"}


def statement_blocks(statements: Mapping[str, Any]) -> list[Block]:
    """Every statement with its outcome, and the statements that are not made, with the reason."""
    blocks: list[Block] = [Heading("What the bundle states about its own results")]
    for name, of_what in _INTERVALS.items():
        if statements.get(name):
            blocks += _intervals(_STATEMENTS[name], of_what, statements[name])
    if statements.get("cautious"):
        blocks += _cautious(statements["cautious"])
    if statements.get("gate"):
        blocks += _gate(statements["gate"])
    if statements.get("shift"):
        shift = statements["shift"]
        flagged = (
            f"{shift['flagged']} of {plural(shift['cases'], 'image')} flagged (distance above {shift['limit']:.2g})."
        )
        if shift["flagged"] and not shift.get("wider_intervals", True):
            flagged += " The stated intervals were not made for such images."
        blocks += [Heading(_STATEMENTS["shift"], small=True), Text(flagged)]
    if statements["not_stated"]:
        reasons = {_STATEMENTS.get(name, name): reason for name, reason in statements["not_stated"].items()}
        blocks += [Heading("Not stated", small=True), Facts(reasons)]
    return blocks


def verdict_counts(gate: Mapping[str, Any]) -> str:
    """The verdicts on the cases, such as "28 accepted, 6 for review, 2 rejected"; in old files those on their classes."""
    counts = gate.get("case_verdicts", gate["verdicts"])
    return ", ".join(f"{counts.get(key, 0)} {word}" for key, word in _PARTS.items())


def _intervals(heading: str, of_what: str, stated: Mapping[str, Any]) -> list[Block]:
    rows = [
        (name, *_coverage_cells(statement), percent(statement["mean_half_width"], 1))
        for name, statement in stated.items()
    ]
    return [
        Heading(heading, small=True),
        Text(
            f"Each result comes with an interval for the true {of_what}. The table shows how many intervals hold it, by "
            "subject; below it is the 95 % confidence interval (Clopper-Pearson). "
            "Half width: part of the interval's centre, mean over cases.",
            note=True,
        ),
        Table(("Class", "Stated", "Observed", "Kept?", "Subjects", "Cases", "Half width"), tuple(rows)),
    ]


def _coverage_cells(statement: Mapping[str, Any]) -> tuple[str | Cell, ...]:
    return (
        percent(statement["wanted"]),
        Cell(percent(statement["observed"], 1), _between_percents(statement["interval"])),
        _outcome(statement),
        str(statement["subjects"]),
        str(statement["cases"]),
    )


def _outcome(statement: Mapping[str, Any]) -> Cell:
    """Whether the statement came true, if there are enough subjects to tell."""
    if statement["observed"] is None:
        return Cell("–")
    if statement["subjects"] < subjects_needed(statement["wanted"]):
        return Cell("too few to decide")
    if statement["observed"] >= statement["wanted"]:
        return Cell("yes", tone="good")
    # Less than stated; the statement is wrong only if the interval by chance lies below it as well.
    return Cell("no", tone="bad") if statement["interval"][1] < statement["wanted"] else Cell("may be chance")


def _cautious(cautious: Mapping[str, Any]) -> list[Block]:
    rows = [
        (name, percent(statement["risk"]), percent(statement["mean_missed"], 1), str(statement["cases"]))
        for name, statement in cautious.items()
    ]
    return [
        Heading(_STATEMENTS["risk"], small=True),
        Text(
            "Part of the truth that the cautious mask misses, mean over the cases that have the structure.", note=True
        ),
        Table(("Class", "Stated, at most", "Missed", "Cases"), tuple(rows)),
    ]


def _gate(gate: Mapping[str, Any]) -> list[Block]:
    bound = gate["bound"]
    ends = _between_percents(bound["interval"])
    within = f"; 95 % interval {ends}" if ends else ""
    facts = {
        "Verdicts": verdict_counts(gate),
        "Predicted and true Dice": f"rank correlation (Spearman) {number(gate['spearman'], 2)}",
        "True Dice at or above the bound": f"{percent(bound['observed'], 1)} (stated: {percent(bound['wanted'])}{within}; "
        f"{plural(bound['subjects'], 'subject')})",
        f"Bad results (Dice below {BAD:g}) held back": _share(gate["flagged_of_bad"]),
        f"Good results (Dice above {GOOD:g}) held back": _share(gate["held_of_good"]),
        "Mean risk over all coverages (AURC)": number(gate["aurc"], 4),
    }
    blocks: list[Block] = [Heading(_STATEMENTS["gate"], small=True), Facts(facts)]
    if gate["risk_coverage"]["coverage"]:
        label = "Risk against coverage: mean of 1 - Dice among the results kept, when the most certain part is kept"
        caption = "A result is one class of one case. It should rise from left to right: the most certain are best."
        blocks.append(Chart(partial(risk_coverage_figure, gate["risk_coverage"]), label, caption, width=0.5))
    return blocks


def _between_percents(interval: Sequence[float] | None) -> str:
    return between(interval and [100 * end for end in interval], 1)


def _share(counted: Mapping[str, Any]) -> str:
    if counted["share"] is None:
        return "there was none"
    return f"{percent(counted['share'], 1)} of {counted['results']}"
