"""What people see: tables on stdout; progress bars and problems on stderr."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from monai_unet_app.calibration.forms import FormScore
    from monai_unet_app.comparison import Comparison, Difference, Subgroups, Verdict
    from monai_unet_app.data.verdicts import SeriesRow

out = Console()
err = Console(stderr=True)


def say(options: argparse.Namespace) -> Callable[[str], None]:
    """A function that prints one line on stderr; silent with --json."""
    return lambda text: None if options.json else err.print(escape(text), highlight=False, soft_wrap=True)


def line(text: str) -> None:
    """One line on stdout as it is, whatever brackets a file name has."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


class Steps:
    """A progress bar over cases, on stderr; calling it moves it on by one."""

    def __init__(self, text: str, total: int, quiet: bool) -> None:
        self.bar = Progress(
            TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(), console=err, disable=quiet or not err.is_terminal, transient=True,
        )  # fmt: skip
        self.task, self.done = self.bar.add_task("", total=total), 0

    def __enter__(self) -> Steps:
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def __call__(self, description: str = "") -> None:
        self.done += 1
        self.bar.update(self.task, completed=self.done, description=description)

    def measured(self, case_id: str, dice: float | None) -> None:
        """Moves it on by a case that was measured, or refused."""
        self(case_id if dice is None else f"{case_id} Dice {dice:.3f}")

    def windows(self, done: int, total: int) -> None:
        """How far the case at work is: the bar moves on within it."""
        part = self.done + done / max(total, 1)
        self.bar.update(self.task, completed=part, description=f"window {done} of {total}")


def progress(text: str, total: int, options: argparse.Namespace) -> Steps:
    return Steps(text, total, options.json)


def problems_list(problems: Sequence[str]) -> None:
    if problems:
        err.print(f"[red]{len(problems)} problem(s):[/red]")
        for problem in problems:
            err.print(f"  {escape(problem)}", soft_wrap=True, highlight=False)


def fingerprint_table(summary: dict[str, Any]) -> None:
    """What all cases have in common, a line each, and their ranges."""
    table = Table(Column("", no_wrap=True), "least", "median", "most")
    counts = []
    for name, value in summary.items():
        if isinstance(value, dict) and "least" in value:
            for title, figures in _ranges(name, value):
                table.add_row(title, *figures)
        elif name == "class_size":
            for label, sizes in value.items():
                table.add_row(f"class {label}, {summary['class_unit']}", *(_numbers(sizes[key]) for key in RANGE))
        elif name != "class_unit":
            text = (
                ", ".join(f"{key} ({count})" for key, count in value.items()) if isinstance(value, dict) else str(value)
            )
            counts.append(f"{name}: {text}")
    if counts:
        out.print("\n" + "\n".join(counts), highlight=False, markup=False)
    if table.row_count:
        out.print(table)


RANGE = ("least", "median", "most")


def _ranges(name: str, value: dict[str, list[float]]) -> list[tuple[str, list[str]]]:
    """Rows of the table: lengths and sizes in one, percentiles of the intensity a row each."""
    if not name.startswith("intensity_"):
        return [(name.replace("_mm", ", mm"), [_numbers(value[key]) for key in RANGE])]
    percentiles = name.removeprefix("intensity_").split("_")
    return [(f"intensity {text}", [_numbers([value[key][n]]) for key in RANGE]) for n, text in enumerate(percentiles)]


OUTCOME_COLOURS = {"readable": "green", "refused": "red", "broken": "red"}
NAMES = 3  # of a group of files or cases: so many are named
FAULTS = 10  # of broken files: so many kinds are told


def series_blocks(rows: Sequence[SeriesRow], *, with_cases: bool) -> None:
    """Every DICOM series: its verdict and what it is, its folder, its UID, and why; like reasons are told once.

    Args:
        rows: In the order of their files.
        with_cases: Name the case of each; where there is but one, that goes without saying.
    """
    counts = Counter(row.outcome for row in rows)
    if rows:
        line(", ".join(f"{counts[name]} {noun}" for name, noun in OUTCOME_NOUNS.items() if counts[name]))
    groups: dict[tuple[str, str], list[SeriesRow]] = {}
    for row in rows:
        if row.verdict.series is not None:
            groups.setdefault((row.outcome, _reason(row) or str(id(row))), []).append(row)
    for (outcome, _), alike in groups.items():
        out.print()
        for row in alike:
            _series_head(row, outcome, with_cases=with_cases)
        if reason := _reason(alike[0]):
            _paragraph(f"{len(alike)} series: {reason}" if len(alike) > 1 else reason)
    _broken_files([row.reason for row in rows if row.verdict.series is None])


OUTCOME_NOUNS = {
    "readable": "series readable",
    "refused": "refused",
    "set aside": "set aside",
    "object": "of other objects",
    "broken": "broken file(s)",
}


def _series_head(row: SeriesRow, outcome: str, *, with_cases: bool) -> None:
    found, colour = row.as_dict(), OUTCOME_COLOURS.get(outcome, "yellow")
    what = [found["modality"] or "?", f"{found['files']} file" + ("" if found["files"] == 1 else "s")]
    what += [" x ".join(map(str, found["shape"]))] if found["shape"] else []
    what += [_numbers(found["spacing_mm"]) + " mm"] if found["spacing_mm"] else []
    _whole(f"[{colour}]{outcome:<9}[/{colour}] {escape(', '.join(what))}")
    if title := row.title.line:
        _whole(f"  {escape(title)}")
    if with_cases and row.case:
        _whole(f"  case {escape(row.case)}")
    _whole(f"  {escape(found['folder'] or '-')}")
    _whole(f"  {escape(found['series_instance_uid'] or '(no SeriesInstanceUID)')}")


def _reason(row: SeriesRow) -> str:
    """Why, in words that fit every series it happens to; empty for objects, whose modality says what they are."""
    series = row.verdict.series
    if row.outcome == "object" or series is None:
        return ""
    return row.reason.replace(series.name, "it") if series.series_instance_uid else row.reason


def _broken_files(reasons: Sequence[str]) -> None:
    """Broken files, those with the same fault together, the most frequent fault first."""
    groups: dict[str, list[str]] = {}
    for reason in reasons:
        name, mark, rest = reason.partition(" is broken (")
        groups.setdefault(mark.strip() + rest if mark else reason, []).append(name if mark else "-")
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    for fault, names in ordered[:FAULTS]:
        out.print()
        _whole(f"[red]broken[/red]    {len(names)} file" + ("" if len(names) == 1 else "s"))
        for name in names[:NAMES]:
            _whole(f"  {escape(name)}")
        if len(names) > NAMES:
            line(f"  and {len(names) - NAMES} more; --json names all")
        _paragraph(fault)
    if more := sum(len(names) for _, names in ordered[FAULTS:]):
        line(f"\nand {more} more broken file(s) with {len(ordered) - FAULTS} other faults; --json tells all")


def _whole(markup: str) -> None:
    """One line that is never folded: what stands in it can be copied."""
    out.print(markup, highlight=False, soft_wrap=True)


def _paragraph(text: str) -> None:
    """Indented text: folded between words on a terminal, one line in a file or pipe."""
    width = out.width - 2 if out.is_terminal else sys.maxsize
    for part in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False):
        out.print(f"  {part}", markup=False, highlight=False, soft_wrap=True)


def inspect_problems(problems: Sequence[str], rows: Sequence[SeriesRow]) -> None:
    """What is wrong with cases, but for what stands with the series already."""
    said = [row.reason for row in rows if row.is_bad]
    rest = [problem for problem in problems if not any(reason in problem for reason in said)]
    problems_list(rest)
    if said and not rest:
        err.print(
            f"[red]{len(said)} series or file(s) cannot be used;[/red] the reasons stand with them", highlight=False
        )


def _numbers(values: Sequence[float], between: str = " x ") -> str:
    return between.join(f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}" for value in values)


def metrics_table(metrics: Any) -> None:
    """Scores with their intervals; then the classes, a row each, so that any number of them fits."""
    from monai_unet_app.metrics.score_registry import SCORES

    headings = {key: score.terminal for score in SCORES if score.terminal for key in score.keys if key in metrics}
    table = Table(*(Column(name, no_wrap=True) for name in ("score", "mean", "95 % interval")))
    for key in headings:
        table.add_row(key, *_mean_cells(metrics[key]["mean"], metrics[key]["mean_interval"]))
    for key in ("ece", "ece_band"):
        table.add_row(f"{key} (top label)", *_mean_cells(metrics[key]["top_label"], metrics[key]["top_label_interval"]))
    out.print(table)
    headings |= {"ece": "ECE", "ece_band": "band"}
    _classes_table({heading: metrics[key]["per_class"] for key, heading in headings.items()})
    if metrics["dice"]["mean_interval"] is None:
        line("no interval: at least six subjects are needed")


def _classes_table(columns: Mapping[str, Mapping[str, float | None]]) -> None:
    """A row for each class; heading -> the score of each class. Headings are short: a row fits into 80 columns."""
    headings = [Column(heading, justify="right", no_wrap=True) for heading in columns]
    table = Table(Column("class", overflow="fold"), *headings, box=None, pad_edge=False)
    for label in next(iter(columns.values())):
        table.add_row(escape(label), *(_class_cell(column.get(label)) for column in columns.values()))
    out.print(table)


def _mean_cells(value: float | None, interval: Any) -> tuple[str, str]:
    between = "-" if not interval else f"{interval[0]:.4f} to {interval[1]:.4f}"
    return "-" if value is None else f"{value:.4f}", between


def _class_cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 100 else f"{value:.1f}"


def figures_table(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Figures of a bundle's metadata as they were and as they are."""
    table = Table("figure", "before", "now", "95 % interval")
    for key in now:
        cells = [_figure(figures.get(key, {})) for figures in (before, now)] if isinstance(now[key], dict) else []
        if any(cells):
            ends = now[key].get("interval_95")
            table.add_row(key, *(cell or "-" for cell in cells), _between(*ends) if ends else "-")
    out.print(table)


def _figure(block: Mapping[str, Any]) -> str:
    """The mean of a score, or the calibrated error; empty where it is neither, or undefined."""
    value = block.get("mean", block.get("calibrated"))
    return "" if value is None else f"{value:.4f}"


def forms_table(scores: Sequence[FormScore], word: str) -> None:
    """Forms of calibration and what they came to; the word stands with the best of them."""
    numbers = [Column(name, justify="right") for name in ("n", "halo", "NLL", "ECE", "band")]
    table = Table("form", *numbers, "", title="forms of calibration, on selection cases")
    for score in scores:
        halo = max(score.halo_mm)
        mark = f"[green]{word}[/green]" if score.chosen else escape(score.why_not or "")
        figures = [f"{score.nll:.5f}", f"{score.ece:.4f}", f"{score.ece_band:.4f}"]
        table.add_row(score.form, str(score.numbers), f"{halo:g}", *figures, mark)
    out.print(table)


def statements_table(statements: dict[str, Any]) -> None:
    """What a bundle states of its results, a line a statement."""
    table = Table("setting", Column("statement", overflow="fold"), Column("figures", overflow="fold"))
    for setting, said in statements.items():
        if "sizes_off" in said:
            ends = said["sizes_off"]["relative"].items()
            sizes = ", ".join(f"{name} {low:+.1%} to {high:+.1%}" for name, (low, high) in ends)
            table.add_row(setting, f"true size, {said['sizes_off']['coverage']:.0%} of subjects", sizes)
        if "mask_from" in said:
            cuts = {name: cut for name, cut in said["mask_from"].items() if name != "risk"}
            told = ", ".join(f"{name} from p = {cut}" if cut else f"{name}: none is safe" for name, cut in cuts.items())
            table.add_row(setting, f"mask that misses {said['mask_from']['risk']:.0%} at most", told)
        if "gate" in said:
            table.add_row(
                setting,
                "quality gate",
                f"Dice at least predicted - {said['gate']['margins_of_dice'][0]:.2f}; from {said['gate']['results']} results",
            )
        if "shift" in said:
            told = f"distance above {said['shift']['flagged_above']:.2g}; {said['shift']['subjects']} subjects"
            table.add_row(setting, "unlike the training", told)
        for name, reason in said["not_stated"].items():
            table.add_row(setting, f"{name}: not stated", reason)
    out.print(table)


def _size(row: Mapping[str, Any]) -> str:
    """Of a structure, with the interval that holds the true one below it."""
    size = f"{row['volume_ml']:.3f} mL" if "volume_ml" in row else f"{row['pixels']} px"
    size += f" ({row['area_mm2']:.1f} mm2)" if "area_mm2" in row else ""
    ends = row.get("volume_interval_ml") or row.get("pixels_interval")
    digits = 3 if "volume_ml" in row else 0
    return size + (f"\n({ends[0]:.{digits}f} to {ends[1]:.{digits}f})" if ends else "")


def structures_table(done: Sequence[dict[str, Any]]) -> None:
    table = Table(
        Column("case", overflow="fold"), Column("structure", overflow="fold"), "size", "mean p", "gate", "seconds"
    )
    for case in done:
        for row in case["structures"]:
            gate = f"{row['verdict']}\nDice {row['predicted_dice']:.2f}" if "verdict" in row else "-"
            inside = "-" if row["mean_probability"] is None else f"{row['mean_probability']:.3f}"
            table.add_row(
                escape(case["case"]), row["label"], _size(row), inside, gate, f"{sum(case['seconds'].values()):.1f}"
            )
        for row in case["wholes"]:
            table.add_row(escape(case["case"]), f"{row['label']}, whole", _size(row), "", "", "")
    if table.row_count:
        out.print(table)


def reasons_list(done: Sequence[dict[str, Any]]) -> None:
    """What speaks against results; of a rejected one its problem says it."""
    for case in done:
        said = case["assessment"] or {}
        if said.get("verdict") != "reject" and said.get("reasons"):
            words = {"review": "[yellow]review[/yellow]", "accept": "note on", None: "[yellow]not judged[/yellow]"}
            word = words[said["verdict"]]
            out.print(f"{word} {escape(case['case'])}: {escape('; '.join(said['reasons']))}", soft_wrap=True)


ABOUT_OTHERS = ("passed by", "set aside", "left out as byte-identical", "files beside it are not DICOM")
"""Notes of a reader on what is not part of the volume: they change nothing in it."""


def notes_list(done: Sequence[dict[str, Any]]) -> None:
    """What a reader tolerated or repaired in the images, and what follows for the results; like notes together."""
    notes: dict[str, list[str]] = {}
    for case in done:
        for note in case["source"]["notes"]:
            if not any(words in note for words in ABOUT_OTHERS):
                notes.setdefault(note, []).append(case["case"])
    for note, cases in notes.items():
        more = f" and {len(cases) - NAMES} more" if len(cases) > NAMES else ""
        line(f"note on {', '.join(cases[:NAMES])}{more}: {note}")


WORD_COLOURS = {"better": "green", "worse": "red", "too few": "yellow"}


def comparison_table(found: Comparison) -> None:
    """Every score, its mean or top label first and the classes below; what the words rest on stands under it."""
    _compared(found, "first", "second")
    table = Table(
        Column("score", overflow="fold"), *(Column(name, justify="right", no_wrap=True) for name in ("first", "second")),
        Column("difference", justify="right", no_wrap=True), Column("95 % interval", no_wrap=True),
        *(Column(name, no_wrap=True) for name in ("p", "Holm", "second")), box=None, pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    rows: dict[str, list[Difference]] = {}
    for entry in found.differences:
        rows.setdefault(entry.score, []).append(entry)
    for score, entries in rows.items():
        for number, entry in enumerate([entries[-1], *entries[:-1]]):  # the mean stands last
            table.add_row(f" {escape(entry.class_name)}" if number else score, *_difference_cells(entry))
    out.print(table)
    _paragraph(
        f"The second is better, worse or the same by the {100 * found.how.level:g} % interval of the difference, a bootstrap "
        "by subject (same: it holds 0), each row by itself. p: Wilcoxon signed-rank on subject means; Holm: the "
        "same, adjusted for this table. A word without a small p is weak evidence."
    )
    for reason in dict.fromkeys(entry.test.reason for entry in found.differences if entry.test.reason):
        line(f"no p: {reason}")
    for entry in found.differences:
        if entry.note:
            line(f"note: {entry.note}")


def _compared(found: Comparison, first: str, second: str) -> None:
    pairs = found.pairs
    line(f"{first + ':':<8}{pairs.first.name}\n{second + ':':<8}{pairs.second.name}")
    line(f"on {len(pairs.subjects)} case(s) of {found.subjects} subject(s)")
    if pairs.left_out:
        line(f"left out, since one has no such case: {', '.join(pairs.left_out)}")


def _difference_cells(entry: Difference) -> list[str]:
    estimate, colour = entry.estimate, WORD_COLOURS.get(entry.word)
    word = f"[{colour}]{entry.word}[/{colour}]" if colour else entry.word
    means = [_short(entry.first), _short(entry.second), _short(estimate.value, sign="+")]
    return [*means, _between(estimate.low, estimate.high), _p(entry.test.p), _p(entry.test.p_holm), word]


def gate_lines(found: Comparison, verdict: Verdict) -> None:
    """The verdict first, then a line for each score."""
    colour = {"passed": "green", "failed": "red"}.get(verdict.state, "yellow")
    out.print(f"[{colour}]{verdict.state}[/{colour}]: {escape(verdict.reason)}", highlight=False, soft_wrap=True)
    _compared(found, "old", "new")
    for score in verdict.scores:
        entry = score.difference
        change = f"{_short(entry.estimate.value, sign='+')} ({_between(entry.estimate.low, entry.estimate.high)})"
        line(f"{entry.score:<13}{_short(entry.first)} -> {_short(entry.second)}  {change}  {score.reason}")
    for score in verdict.scores:
        if score.difference.note:
            line(f"note: {score.difference.note}")


SUBGROUP_COLUMNS = ("subjects", "mean", "95 % interval", "p", "Holm")
SUBGROUP_SCORES = ("dice", "boundary_iou", "hd95_mm", "hd95_px", "ece_whole", "ece_band")


def subgroup_tables(found: Subgroups) -> None:
    """One table an attribute: headline scores by group; groups that are too small by name and number."""
    for part in found.attributes:
        line(f"{part.attribute} ({found.class_name})")
        table = Table(
            "score", Column("group", overflow="fold"), *(Column(name, no_wrap=True) for name in SUBGROUP_COLUMNS),
            box=None, pad_edge=False,
        )  # fmt: skip
        for score, test in part.tests.items():
            figures = {group.name: figure for group in part.groups if (figure := group.scores[score]) is not None}
            for number, (name, figure) in enumerate(figures.items() if score in SUBGROUP_SCORES else ()):
                told = ("", "", "") if number else (score, _p(test.p), _p(test.p_holm))
                cells = [str(figure.subjects), _short(figure.value), _between(figure.low, figure.high)]
                table.add_row(told[0], escape(name), *cells, *told[1:])
        if table.row_count:
            out.print(table)
        few = [group for group in part.groups if all(figure is None for figure in group.scores.values())]
        if few:
            line(f"too few (below {found.fewest}): " + ", ".join(f"{group.name} ({group.subjects})" for group in few))
        for reason in dict.fromkeys(test.reason for test in part.tests.values() if test.reason):
            line(f"no p: {reason}")
        line("")
    _paragraph(
        "Intervals: bootstrap by subject. p: Kruskal-Wallis on subject means; Holm: adjusted for all tests here."
    )


def _short(value: float, sign: str = "") -> str:
    """Four decimals, or two digits of what is smaller than that shows."""
    if value != value:
        return "-"
    return f"{value:{sign}.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:{sign}.1e}"


def _between(low: float, high: float) -> str:
    return "-" if low != low else f"{_short(low)} to {_short(high)}"


def _p(value: float) -> str:
    return "-" if value != value else f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
