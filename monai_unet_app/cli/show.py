"""The output for people: tables on stdout; progress bars and problems on stderr."""

import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from monai_unet_app.calibration.form_comparison import FormScore
    from monai_unet_app.comparison.differences import Comparison, Difference
    from monai_unet_app.comparison.release_gate import Verdict
    from monai_unet_app.comparison.subgroups import Subgroups
    from monai_unet_app.data.verdicts import SeriesRow

out = Console(emoji=False)  # ":x:" in a file name stays as it is
err = Console(emoji=False, stderr=True)


@contextmanager
def silence(silent: bool) -> Iterator[None]:
    """With `silent`, nothing is printed on either console meanwhile: with --json only the result and an error are."""
    out.quiet = err.quiet = silent
    try:
        yield
    finally:
        out.quiet = err.quiet = False


def say(text: str) -> None:
    """Prints one line on stderr."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


def line(text: str) -> None:
    """Prints one line on stdout as it stands; brackets in a file name are no markup."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def wrote(files: Iterable[Path]) -> None:
    """Names the files that were written."""
    for file in files:
        line(f"wrote {file}")


def print_table(
    columns: Iterable[Column | str], rows: Iterable[Sequence[str]], console: Console | None = None, **style: Any
) -> None:
    """Prints a table on stdout or another console, unless it has no rows. Cells are markup of rich."""
    table = Table(*columns, **style)
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        (console or out).print(table)


def folded(name: str) -> Column:
    """A column whose long texts continue on the next line."""
    return Column(name, overflow="fold")


class Steps(Progress):
    """A progress bar over cases, on stderr. A call moves it on by one case.

    Args:
        text: Stands before the bar.
        total: Number of cases; None if nobody knows it.
    """

    def __init__(self, text: str, total: int | None) -> None:
        super().__init__(
            TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(), console=err, disable=err.quiet or not err.is_terminal, transient=True,
        )  # fmt: skip
        self.cases, self.done = self.add_task("", total=total), 0

    def __call__(self, description: str = "") -> None:
        self.done += 1
        self.update(self.cases, completed=self.done, description=description)

    def measured(self, case_id: str, dice: float | None) -> None:
        """Moves the bar on by a case that was measured or refused."""
        self(case_id if dice is None else f"{case_id} Dice {dice:.3f}")

    def windows(self, done: int, total: int) -> None:
        """Moves the bar on within a case, by its windows."""
        completed = self.done + done / max(total, 1)
        self.update(self.cases, completed=completed, description=f"window {done} of {total}")


def problems_list(problems: Sequence[str]) -> None:
    if problems:
        err.print(f"[red]{len(problems)} problem(s):[/red]")
        for problem in problems:
            err.print(f"  {escape(problem)}", soft_wrap=True, highlight=False)


def fingerprint_table(summary: dict[str, Any]) -> None:
    """Counts over all cases, one line each, and a table of ranges."""
    rows, counts = [], []
    for name, value in summary.items():
        if isinstance(value, dict) and "least" in value:
            rows += _ranges(name, value)
        elif name == "class_size":
            unit = summary["class_unit"]
            rows += [[f"class {n}, {unit}", *(_numbers(sizes[key]) for key in RANGE)] for n, sizes in value.items()]
        elif name != "class_unit":
            has_parts = isinstance(value, dict)
            text = ", ".join(f"{key} ({count})" for key, count in value.items()) if has_parts else str(value)
            counts.append(f"{name}: {text}")
    if counts:
        out.print("\n" + "\n".join(counts), highlight=False, markup=False)
    print_table((Column("", no_wrap=True), *RANGE), rows)


RANGE = ("least", "median", "most")


def _ranges(name: str, value: dict[str, list[float]]) -> list[list[str]]:
    """Rows of the table: one for a length or size, one for each percentile of the intensity."""
    if not name.startswith("intensity_"):
        return [[name.replace("_mm", ", mm"), *(_numbers(value[key]) for key in RANGE)]]
    percentiles = name.removeprefix("intensity_").split("_")
    return [[f"intensity {text}", *(_numbers([value[key][n]]) for key in RANGE)] for n, text in enumerate(percentiles)]


OUTCOME_COLOURS = {"readable": "green", "refused": "red", "broken": "red"}
NAMES = 3  # of the files or cases in a group that are named
FAULTS = 10  # of the faults of broken files that are listed


def series_blocks(rows: "Sequence[SeriesRow]", *, with_cases: bool) -> None:
    """Every DICOM series with its outcome, properties, folder, UID and reason; series with the same reason share it.

    Args:
        rows: In the order of their files.
        with_cases: Name the case of each series, which is needless for a single case.
    """
    counts = Counter(row.outcome for row in rows)
    if rows:
        line(", ".join(f"{counts[name]} {noun}" for name, noun in OUTCOME_NOUNS.items() if counts[name]))
    groups: dict[tuple[str, str], list[SeriesRow]] = {}
    for row in rows:
        if row.verdict.series is not None:
            groups.setdefault((row.outcome, _reason(row) or str(id(row))), []).append(row)
    for (outcome, _), group in groups.items():
        out.print()
        for row in group:
            _series_head(row, outcome, with_cases=with_cases)
        if reason := _reason(group[0]):
            _paragraph(f"{len(group)} series: {reason}" if len(group) > 1 else reason)
    _broken_files([row.reason for row in rows if row.verdict.series is None])


OUTCOME_NOUNS = {
    "readable": "series readable",
    "refused": "refused",
    "set aside": "set aside",
    "object": "of other objects",
    "broken": "broken file(s)",
}


def _series_head(row: "SeriesRow", outcome: str, *, with_cases: bool) -> None:
    series, colour = row.as_dict(), OUTCOME_COLOURS.get(outcome, "yellow")
    properties = [series["modality"] or "?", f"{series['files']} file" + ("" if series["files"] == 1 else "s")]
    properties += [" x ".join(map(str, series["shape"]))] if series["shape"] else []
    properties += [_numbers(series["spacing_mm"]) + " mm"] if series["spacing_mm"] else []
    _unfolded(f"[{colour}]{outcome:<9}[/{colour}] {escape(', '.join(properties))}")
    if title := row.title.line:
        _unfolded(f"  {escape(title)}")
    if with_cases and row.case:
        _unfolded(f"  case {escape(row.case)}")
    _unfolded(f"  {escape(series['folder'] or '-')}")
    _unfolded(f"  {escape(series['series_instance_uid'] or '(no SeriesInstanceUID)')}")


def _reason(row: "SeriesRow") -> str:
    """Why, in words that fit every series it happens to; empty for objects, whose modality says what they are."""
    series = row.verdict.series
    if row.outcome == "object" or series is None:
        return ""
    return row.reason.replace(series.name, "it") if series.series_instance_uid else row.reason


def _broken_files(reasons: Sequence[str]) -> None:
    """Broken files, those with the same fault together, the most frequent fault first."""
    groups: dict[str, list[str]] = {}
    for reason in reasons:
        name, separator, rest = reason.partition(" is broken (")
        groups.setdefault(separator.strip() + rest if separator else reason, []).append(name if separator else "-")
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    for fault, names in ordered[:FAULTS]:
        out.print()
        _unfolded(f"[red]broken[/red]    {len(names)} file" + ("" if len(names) == 1 else "s"))
        for name in names[:NAMES]:
            _unfolded(f"  {escape(name)}")
        if len(names) > NAMES:
            line(f"  and {len(names) - NAMES} more; --json names all")
        _paragraph(fault)
    if more := sum(len(names) for _, names in ordered[FAULTS:]):
        line(f"\nand {more} more broken file(s) with {len(ordered) - FAULTS} other faults; --json lists all")


def _unfolded(markup: str) -> None:
    """Prints one line that is never folded, so that its parts can be copied."""
    out.print(markup, highlight=False, soft_wrap=True)


def _paragraph(text: str) -> None:
    """Prints indented text: folded between words on a terminal, one line in a file or pipe."""
    width = out.width - 2 if out.is_terminal else sys.maxsize
    for part in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False):
        out.print(f"  {part}", markup=False, highlight=False, soft_wrap=True)


def inspect_problems(problems: Sequence[str], rows: "Sequence[SeriesRow]") -> None:
    """Prints the problems of cases that do not stand with a series already."""
    reasons = [row.reason for row in rows if row.is_bad]
    others = [problem for problem in problems if not any(reason in problem for reason in reasons)]
    problems_list(others)
    if reasons and not others:
        count = len(reasons)
        err.print(f"[red]{count} series or file(s) cannot be used;[/red] the reasons stand with them", highlight=False)


def _numbers(values: Sequence[float], between: str = " x ") -> str:
    return between.join(f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}" for value in values)


def metrics_table(metrics: Any) -> None:
    """Scores with their intervals, then one row for each class, so that any number of classes fits."""
    from monai_unet_app.metrics.score_registry import SCORES

    headings = {key: score.terminal for score in SCORES if score.terminal for key in score.keys if key in metrics}
    rows = [[key, *_mean_cells(metrics[key], "mean")] for key in headings]
    rows += [[f"{key} (top label)", *_mean_cells(metrics[key], "top_label")] for key in ("ece", "ece_band")]
    print_table((Column(name, no_wrap=True) for name in ("score", "mean", "95 % interval")), rows)
    headings |= {"ece": "ECE", "ece_band": "band"}
    _classes_table({heading: metrics[key]["per_class"] for key, heading in headings.items()})
    if metrics["dice"]["mean_interval"] is None:
        line("no interval: at least six subjects are needed")


def _classes_table(columns: Mapping[str, Mapping[str, float | None]]) -> None:
    """A row for each class; heading -> the score of each class. Headings are short: a row fits into 80 columns."""
    headings = [Column(heading, justify="right", no_wrap=True) for heading in columns]
    labels = next(iter(columns.values()))
    rows = ([escape(label), *(_class_cell(column.get(label)) for column in columns.values())] for label in labels)
    print_table((folded("class"), *headings), rows, box=None, pad_edge=False)


def _mean_cells(score: Mapping[str, Any], key: str) -> tuple[str, str]:
    value, interval = score[key], score[f"{key}_interval"]
    between = "-" if not interval else f"{interval[0]:.4f} to {interval[1]:.4f}"
    return "-" if value is None else f"{value:.4f}", between


def _class_cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 100 else f"{value:.1f}"


def figures_table(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """The figures of a bundle's metadata before and now."""
    rows = []
    for key in now:
        cells = [_figure(figures.get(key)) for figures in (before, now)] if isinstance(now[key], dict) else []
        if any(cells):
            interval = now[key].get("interval_95")
            rows.append([key, *(cell or "-" for cell in cells), _between(*interval) if interval else "-"])
    print_table(("figure", "before", "now", "95 % interval"), rows)


def _figure(block: object) -> str:
    """The mean of a score, or the calibrated error; empty if it has neither."""
    from monai_unet_app.bundle_folder import figure_of

    value = figure_of(block)
    return "" if value is None else f"{value:.4f}"


def forms_table(scores: "Sequence[FormScore]", word: str) -> None:
    """Forms of calibration with their scores; the word stands with the best form."""
    numbers = [Column(name, justify="right") for name in ("n", "halo", "NLL", "ECE", "band")]
    rows = []
    for score in scores:
        note = f"[green]{word}[/green]" if score.chosen else escape(score.why_not or "")
        figures = [f"{max(score.halo_mm):g}", f"{score.nll:.5f}", f"{score.ece:.4f}", f"{score.ece_band:.4f}"]
        rows.append([score.form, str(score.numbers), *figures, note])
    print_table(("form", *numbers, ""), rows, title="forms of calibration, on selection cases")


def statements_table(statements: dict[str, Any]) -> None:
    """The statements of a bundle about its results, one line each."""
    rows: list[Sequence[str]] = []
    for setting, stated in statements.items():
        if sizes_off := stated.get("sizes_off"):
            intervals = sizes_off["relative"].items()
            sizes = ", ".join(f"{name} {low:+.1%} to {high:+.1%}" for name, (low, high) in intervals)
            rows.append((setting, f"true size, {sizes_off['coverage']:.0%} of subjects", sizes))
        if mask_from := stated.get("mask_from"):
            cuts = ((name, cut) for name, cut in mask_from.items() if name != "risk")
            masks = ", ".join(f"{name} from p = {cut}" if cut else f"{name}: none is safe" for name, cut in cuts)
            rows.append((setting, f"mask that misses {mask_from['risk']:.0%} at most", masks))
        if gate := stated.get("gate"):
            bound = f"Dice at least predicted - {gate['margins_of_dice'][0]:.2f}; from {gate['results']} results"
            rows.append((setting, "quality gate", bound))
        if shift := stated.get("shift"):
            limit = f"distance above {shift['flagged_above']:.2g}; {shift['subjects']} subjects"
            rows.append((setting, "unlike the training", limit))
        rows += [(setting, f"{name}: not stated", reason) for name, reason in stated["not_stated"].items()]
    print_table(("setting", folded("statement"), folded("figures")), rows)


def _size(row: Mapping[str, Any]) -> str:
    """The size of a structure, with the interval of its true size below."""
    size = f"{row['volume_ml']:.3f} mL" if "volume_ml" in row else f"{row['pixels']} px"
    size += f" ({row['area_mm2']:.1f} mm2)" if "area_mm2" in row else ""
    interval = row.get("volume_interval_ml") or row.get("pixels_interval")
    digits = 3 if "volume_ml" in row else 0
    return size + (f"\n({interval[0]:.{digits}f} to {interval[1]:.{digits}f})" if interval else "")


def structures_table(done: Sequence[dict[str, Any]]) -> None:
    """A row for each structure of each case."""
    rows = []
    for case in done:
        name, seconds = escape(case["case"]), f"{sum(case['seconds'].values()):.1f}"
        for row in case["structures"]:
            gate = f"{row['verdict']}\nDice {row['predicted_dice']:.2f}" if "verdict" in row else "-"
            inside = "-" if row["mean_probability"] is None else f"{row['mean_probability']:.3f}"
            rows.append((name, row["label"], _size(row), inside, gate, seconds))
        rows += [(name, f"{row['label']}, whole", _size(row), "", "", "") for row in case["wholes"]]
    print_table((folded("case"), folded("structure"), "size", "mean p", "gate", "seconds"), rows)


def reasons_list(done: Sequence[dict[str, Any]]) -> None:
    """Reasons to look at a result; those of a rejected result stand in its problem."""
    words = {"review": "[yellow]review[/yellow]", "accept": "note on", None: "[yellow]not judged[/yellow]"}
    for case in done:
        assessment = case["assessment"] or {}
        if assessment.get("verdict") != "reject" and assessment.get("reasons"):
            word = words[assessment["verdict"]]
            out.print(f"{word} {escape(case['case'])}: {escape('; '.join(assessment['reasons']))}", soft_wrap=True)


ABOUT_OTHERS = ("passed by", "set aside", "left out as byte-identical", "files beside it are not DICOM")
"""Words in notes about files that are not part of the volume; such notes are not shown."""


def notes_list(done: Sequence[dict[str, Any]]) -> None:
    """Deviations that were tolerated or repaired in the images; cases with the same note share a line."""
    notes: dict[str, list[str]] = {}
    for case in done:
        for note in case["source"]["notes"]:
            if not any(words in note for words in ABOUT_OTHERS):
                notes.setdefault(note, []).append(case["case"])
    for note, cases in notes.items():
        more = f" and {len(cases) - NAMES} more" if len(cases) > NAMES else ""
        line(f"note on {', '.join(cases[:NAMES])}{more}: {note}")


WORD_COLOURS = {"better": "green", "worse": "red", "too few": "yellow"}


def comparison_table(comparison: "Comparison") -> None:
    """Every score, its mean or top label first and the classes below; a paragraph explains the words of the table."""
    _print_sides(comparison, "first", "second")
    numbers = (Column(name, justify="right", no_wrap=True) for name in ("first", "second", "difference"))
    tests = (Column(name, no_wrap=True) for name in ("95 % interval", "p", "Holm", "second"))
    by_score: dict[str, list[Difference]] = {}
    for entry in comparison.differences:
        by_score.setdefault(entry.score, []).append(entry)
    rows = (
        [f" {escape(entry.class_name)}" if number else score, *_difference_cells(entry)]
        for score, entries in by_score.items()
        for number, entry in enumerate([entries[-1], *entries[:-1]])  # the mean stands last
    )
    print_table((folded("score"), *numbers, *tests), rows, box=None, pad_edge=False, collapse_padding=True)
    _paragraph(
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
        line(f"left out, since one of them has no such case: {', '.join(pairs.left_out)}")


def _difference_cells(entry: "Difference") -> list[str]:
    estimate, colour = entry.estimate, WORD_COLOURS.get(entry.word)
    word = f"[{colour}]{entry.word}[/{colour}]" if colour else entry.word
    means = [_short(entry.first), _short(entry.second), _short(estimate.value, sign="+")]
    return [*means, _between(estimate.low, estimate.high), _p(entry.test.p), _p(entry.test.p_holm), word]


def gate_lines(comparison: "Comparison", verdict: "Verdict") -> None:
    """The verdict first, then a line for each score."""
    colour = {"passed": "green", "failed": "red"}.get(verdict.state, "yellow")
    out.print(f"[{colour}]{verdict.state}[/{colour}]: {escape(verdict.reason)}", highlight=False, soft_wrap=True)
    _print_sides(comparison, "old", "new")
    for score in verdict.scores:
        entry = score.difference
        change = f"{_short(entry.estimate.value, sign='+')} ({_between(entry.estimate.low, entry.estimate.high)})"
        line(f"{entry.score:<13}{_short(entry.first)} -> {_short(entry.second)}  {change}  {score.reason}")
    for score in verdict.scores:
        if score.difference.note:
            line(f"note: {score.difference.note}")


SUBGROUP_COLUMNS = ("subjects", "mean", "95 % interval", "p", "Holm")
SUBGROUP_SCORES = ("dice", "boundary_iou", "hd95_mm", "hd95_px", "ece_whole", "ece_band")


def subgroup_tables(subgroups: "Subgroups") -> None:
    """One table for each attribute, with its headline scores by group; too small groups are listed with their numbers."""
    for part in subgroups.attributes:
        line(f"{part.attribute} ({subgroups.class_name})")
        rows = []
        for score, test in part.tests.items():
            figures = {group.name: figure for group in part.groups if (figure := group.scores[score]) is not None}
            for number, (name, figure) in enumerate(figures.items() if score in SUBGROUP_SCORES else ()):
                head, *tests = ("", "", "") if number else (score, _p(test.p), _p(test.p_holm))
                cells = [str(figure.subjects), _short(figure.value), _between(figure.low, figure.high)]
                rows.append([head, escape(name), *cells, *tests])
        columns = (Column(name, no_wrap=True) for name in SUBGROUP_COLUMNS)
        print_table(("score", folded("group"), *columns), rows, box=None, pad_edge=False)
        few = [group for group in part.groups if all(figure is None for figure in group.scores.values())]
        if few:
            names = ", ".join(f"{group.name} ({group.subjects})" for group in few)
            line(f"too few (below {subgroups.fewest}): {names}")
        for reason in dict.fromkeys(test.reason for test in part.tests.values() if test.reason):
            line(f"no p: {reason}")
        line("")
    _paragraph(
        "Intervals: bootstrap by subject. p: Kruskal-Wallis on subject means; Holm: adjusted for all tests here."
    )


def _short(value: float, sign: str = "") -> str:
    """Four decimals; two digits of a value that is too small for these."""
    if isnan(value):
        return "-"
    return f"{value:{sign}.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:{sign}.1e}"


def _between(low: float, high: float) -> str:
    return "-" if isnan(low) else f"{_short(low)} to {_short(high)}"


def _p(value: float) -> str:
    return "-" if isnan(value) else f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
