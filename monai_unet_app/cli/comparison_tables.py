"""The output of `compare` and `subgroups`."""

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Column
from rich.text import Text

from monai_unet_app.cli.show import between, folded, line, p_value, paragraph, print_table, short, styled

if TYPE_CHECKING:
    from monai_unet_app.comparison.differences import Comparison, Difference
    from monai_unet_app.comparison.release_gate import ReleaseOutcome
    from monai_unet_app.comparison.subgroups import Subgroups

WORD_COLOURS = {"better": "green", "worse": "red", "too few": "yellow"}
SUBGROUP_COLUMNS = ("subjects", "mean", "95 % interval", "p", "Holm")
SUBGROUP_SCORES = ("dice", "boundary_iou", "hd95_mm", "hd95_px", "ece_whole", "ece_band")


def comparison_table(comparison: "Comparison") -> None:
    """A block for each score: its mean or top label, then the classes. A paragraph explains the words of the table."""
    _print_sides(comparison, "first", "second")
    numbers = (Column(name, justify="right", no_wrap=True) for name in ("first", "second", "difference"))
    tests = (Column(name, no_wrap=True) for name in ("95 % interval", "p", "Holm", "second"))
    by_score: dict[str, list[Difference]] = {}
    for entry in comparison.differences:
        by_score.setdefault(entry.score, []).append(entry)
    rows = (
        [f" {entry.class_name}" if number else score, *_difference_cells(entry)]
        for score, entries in by_score.items()
        for number, entry in enumerate([entries[-1], *entries[:-1]])  # the mean stands last
    )
    print_table((folded("score"), *numbers, *tests), rows, box=None, pad_edge=False, collapse_padding=True)
    paragraph(
        f"The second is better, worse or the same by the {100 * comparison.how.level:g} % interval of the difference, a "
        "bootstrap by subject (same: it holds 0), each row by itself. p: Wilcoxon signed-rank on subject means; Holm: the "
        "same, adjusted for this table. A word without a small p is weak evidence."
    )
    for reason in dict.fromkeys(entry.test.reason for entry in comparison.differences if entry.test.reason):
        line(f"no p: {reason}")
    for entry in comparison.differences:
        if entry.note:
            line(f"note: {entry.note}")


def _print_sides(comparison: "Comparison", first: str, second: str) -> None:
    pairs = comparison.pairs
    line(f"{first + ':':<8}{pairs.first.name}\n{second + ':':<8}{pairs.second.name}")
    line(f"on {len(pairs.subjects)} case(s) of {comparison.subjects} subject(s)")
    if pairs.left_out:
        line(f"left out, because only one side has them: {', '.join(pairs.left_out)}")


def _difference_cells(entry: "Difference") -> list[str | Text]:
    estimate, word = entry.estimate, Text(entry.word, WORD_COLOURS.get(entry.word, ""))
    means = [short(entry.first), short(entry.second), short(estimate.value, sign="+")]
    return [*means, between(estimate.low, estimate.high), p_value(entry.test.p), p_value(entry.test.p_holm), word]


def gate_lines(comparison: "Comparison", outcome: "ReleaseOutcome") -> None:
    """The outcome first, then a line for each score."""
    colour = {"passed": "green", "failed": "red"}.get(outcome.state, "yellow")
    styled(f"[{colour}]{outcome.state}[/{colour}]: {escape(outcome.reason)}")
    _print_sides(comparison, "old", "new")
    for score in outcome.scores:
        entry = score.difference
        change = f"{short(entry.estimate.value, sign='+')} ({between(entry.estimate.low, entry.estimate.high)})"
        line(f"{entry.score:<13}{short(entry.first)} -> {short(entry.second)}  {change}  {score.reason}")
    for score in outcome.scores:
        if score.difference.note:
            line(f"note: {score.difference.note}")


def subgroup_tables(subgroups: "Subgroups") -> None:
    """One table for each attribute, with its headline scores by group; too small groups are listed with their numbers."""
    for part in subgroups.attributes:
        line(f"{part.attribute} ({subgroups.class_name})")
        rows = []
        for score, test in part.tests.items():
            figures = {group.name: figure for group in part.groups if (figure := group.scores[score]) is not None}
            for number, (name, figure) in enumerate(figures.items() if score in SUBGROUP_SCORES else ()):
                head, *tests = ("", "", "") if number else (score, p_value(test.p), p_value(test.p_holm))
                cells = [str(figure.subjects), short(figure.value), between(figure.low, figure.high)]
                rows.append([head, name, *cells, *tests])
        columns = (Column(name, no_wrap=True) for name in SUBGROUP_COLUMNS)
        print_table(("score", folded("group"), *columns), rows, box=None, pad_edge=False)
        few = [group for group in part.groups if all(figure is None for figure in group.scores.values())]
        if few:
            names = ", ".join(f"{group.name} ({group.subjects})" for group in few)
            line(f"too few (below {subgroups.fewest}): {names}")
        for reason in dict.fromkeys(test.reason for test in part.tests.values() if test.reason):
            line(f"no p: {reason}")
        line("")
    paragraph("Intervals: bootstrap by subject. p: Kruskal-Wallis on subject means; Holm: adjusted for all tests here.")
