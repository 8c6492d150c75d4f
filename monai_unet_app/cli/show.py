"""The output for people: tables on stdout; progress bars and problems on stderr."""

import math
import os
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category

from rich.console import Console, ConsoleDimensions
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from monai_unet_app.machine_memory import peak_bytes
from monai_unet_app.progress_bars import Bars

if TYPE_CHECKING:
    from monai_unet_app.evaluate.evaluation import Evaluated


_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # the direction of what follows


def _shown(text: str) -> str:
    """The text without characters that a terminal obeys: a name in foreign data may hold them."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if (category(sign) == "Cc" and sign not in "\n\t") or sign in _TURNS else sign
        for sign in text
    )


_FILE_WIDTH = 400  # characters of a line in a file or pipe: wide enough for the names and reasons of a table


class _Screen(Console):
    def render_str(self, text: str, *given: Any, **more: Any) -> Text:
        return super().render_str(_shown(text), *given, **more)

    @property  # type: ignore[misc]
    def size(self) -> ConsoleDimensions:  # nothing sets it
        """Of the terminal; wide in a file or pipe, since rich takes 80 columns there and would cut names."""
        return super().size if self.is_terminal else ConsoleDimensions(_FILE_WIDTH, 25)


out = _Screen(emoji=False)  # ":x:" in a file name stays as it is
err = _Screen(emoji=False, stderr=True)
NAMES = 3  # of the files or cases in a group that are named


@contextmanager
def silence(silent: bool) -> Iterator[None]:
    """With `silent`, the consoles print nothing inside the block: with --json only the result or an error is printed."""
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


def styled(markup: str) -> None:
    """Prints one line of rich markup that is never folded, so that its parts can be copied."""
    out.print(markup, highlight=False, soft_wrap=True)


def wrote(files: Iterable[Path]) -> None:
    """Names the files that were written."""
    for file in files:
        line(f"wrote {file}")


def print_table(columns: Iterable[Column | str], rows: Iterable[Iterable[object]], **style: Any) -> None:
    """Prints a table on stdout, unless it has no rows.

    Brackets in a cell are no markup; a cell that is a `Text` may have a style.
    """
    table = Table(*columns, **style)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(_shown(str(cell))) for cell in row))
    if table.row_count:
        out.print(table)


def folded(name: str) -> Column:
    """A column whose long texts continue on the next line."""
    return Column(name, overflow="fold")


class Steps(Bars):
    """A progress bar over cases, on stderr, or dated lines. A call moves it on by one case.

    Args:
        text: Stands before the bar.
        total: Number of cases; None if it is not known.
    """

    def __init__(self, text: str, total: int | None) -> None:
        super().__init__(
            TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
            TimeRemainingColumn(), console=err, is_shown=not err.quiet, transient=True,
        )  # fmt: skip
        self.cases, self.done = self.add_task("", total=total, name=text), 0

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


class Cost:
    """What a block costs; on leaving it `document` holds seconds, core-seconds, and the peak of memory of the process in GB."""

    def __enter__(self) -> "Cost":
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        wall, core = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        peak = peak_bytes() / 1e9
        self.document = {"seconds": round(wall, 3), "core_seconds": round(core, 3), "peak_memory_gb": round(peak, 3)}

    def told(self, done: Sequence[Mapping[str, Any]]) -> str:
        """In a line, with the cost of a case and of a litre of image."""
        wall, core, peak = self.document.values()
        sources = [case["source"] for case in done]
        litres = sum(math.prod([*one["shape"], *one["spacing"]]) / 1e6 for one in sources if one["unit"] == "mm")
        a_litre = f", {core / litres:.1f} a litre" if litres else ""
        return (
            f"{wall:.1f} s, {core:.1f} core-seconds: {core / len(done):.1f} a case{a_litre}; "
            f"{core / wall / (os.cpu_count() or 1):.0%} of {os.cpu_count()} cores; {peak:.1f} GB at most"
        )


def problems_list(problems: Sequence[str]) -> None:
    if problems:
        err.print(f"[red]{len(problems)} problem(s):[/red]")
        for problem in problems:
            say(f"  {problem}")


def paragraph(text: str) -> None:
    """Prints indented text: folded between words on a terminal, one line in a file or pipe."""
    width = out.width - 2 if out.is_terminal else sys.maxsize
    for part in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False):
        out.print(f"  {part}", markup=False, highlight=False, soft_wrap=True)


def evaluation(done: "Evaluated") -> dict[str, Any]:
    """Shows what an evaluation has found, and gives the answer of the verb."""
    metrics_table(done.metrics)
    wrote(done.files)
    problems_list(done.problems)
    files = [str(file) for file in done.files]
    return {"metrics": dict(done.metrics), "files": files, "problems": list(done.problems)}


_SEVERAL = 2.0  # parts of a structure, on average


def metrics_table(metrics: Any) -> None:
    """Scores with their intervals, then one row for each class, so that any number of classes fits."""
    from monai_unet_app.metrics.score_registry import SCORES

    headings = {key: score.terminal for score in SCORES if score.terminal for key in score.keys if key in metrics}
    rows = [[key, *_mean_cells(metrics[key], "mean")] for key in headings]
    errors = {key: heading for key, heading in {"ece": "ECE", "ece_band": "band"}.items() if key in metrics}
    rows += [[f"{key} (top label)", *_mean_cells(metrics[key], "top_label")] for key in errors]
    parts = metrics["components"]
    if (parts["truth"]["mean"] or 0) >= _SEVERAL:  # of one part, the quality of parts says what Dice says
        rows.append(["panoptic_quality", *_mean_cells(parts["panoptic_quality"], "mean")])
    print_table((Column(name, no_wrap=True) for name in ("score", "mean", "95 % interval")), rows)
    headings |= errors
    _classes_table({heading: metrics[key]["per_class"] for key, heading in headings.items()})
    for key, heading in headings.items():
        if told := _cases_told(metrics[key].get("undefined_cases")):
            line(f"{heading} is undefined in {told}, where one of two masks is empty; they are not in its mean")
    nowhere = metrics.get("undefined") or {}
    absent = {name: count for name, count in (metrics.get("absent_cases") or {}).items() if name not in nowhere}
    if told := _cases_told(absent):
        line(f"truth and result are both empty in {told}; Dice counts as 1 there")
    if metrics["dice"]["mean_interval"] is None:
        line("no interval: at least six subjects are needed")


def _cases_told(counts: Mapping[str, int] | None) -> str:
    """ "3 case(s) of Liver, 1 of Cyst", of classes with any; at most three are named."""
    held = [f"{count} {'case(s) ' * (not number)}of {name}" for number, (name, count) in
            enumerate((name, count) for name, count in (counts or {}).items() if count)]  # fmt: skip
    return ", ".join(held[:NAMES]) + (f" and {len(held) - NAMES} more" if len(held) > NAMES else "")


def _classes_table(columns: Mapping[str, Mapping[str, float | None]]) -> None:
    """A row for each class; heading -> the score of each class. Headings are short: a row fits into 80 columns."""
    headings = [Column(heading, justify="right", no_wrap=True) for heading in columns]
    labels = next(iter(columns.values()))
    rows = ([label, *(_class_cell(column.get(label)) for column in columns.values())] for label in labels)
    print_table((folded("class"), *headings), rows, box=None, pad_edge=False)


def _mean_cells(score: Mapping[str, Any], key: str) -> tuple[str, str]:
    value, interval = score[key], score[f"{key}_interval"]
    between = "-" if not interval else f"{interval[0]:.4f} to {interval[1]:.4f}"
    return "-" if value is None else f"{value:.4f}", between


def _class_cell(value: float | None) -> str:
    # A distance of 100 or more has one decimal, or the row would not fit into 80 columns.
    return "-" if value is None else f"{value:.3f}" if value < 100 else f"{value:.1f}"


def figures_table(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """The figures of a bundle's metadata before and now; those out of fold, which are a block of their own, first."""
    rows = []
    folds = [figures.get("out_of_fold", {}) for figures in (before, now)]
    before, now = (
        {f"{key}, out of fold": block for key, block in own.items()} | dict(figures)
        for own, figures in zip(folds, (before, now), strict=True)
    )
    for key in now:
        cells = [_figure(figures.get(key)) for figures in (before, now)] if isinstance(now[key], dict) else []
        if any(cells):
            interval = now[key].get("interval_95")
            rows.append([key, *(cell or "-" for cell in cells), between(*interval) if interval else "-"])
    print_table(("figure", "before", "now", "95 % interval"), rows)


def _figure(block: object) -> str:
    """The mean of a score, or the calibrated error; empty if it has neither."""
    from monai_unet_app.bundle_folder import figure_of

    value = figure_of(block)
    return "" if value is None else f"{value:.4f}"


def statements_table(statements: dict[str, Any]) -> None:
    """The statements of a bundle about its results, one line each."""
    rows: list[Sequence[str]] = []
    for setting, stated in statements.items():
        of_what = {"sizes_off": "size", "sizes_off_elsewhere": "size", "counts_off": "number of objects"}
        for key, what in of_what.items():
            where = ", images from elsewhere" if key.endswith("elsewhere") else ""
            if sizes_off := stated.get(key):
                intervals, kept = sizes_off["relative"].items(), sizes_off["kept"]
                sizes = ", ".join(f"{name} {low:+.1%} to {high:+.1%}" for name, (low, high) in intervals)
                rows.append((setting, f"true {what}, {sizes_off['coverage']:.0%} of subjects{where}", sizes))
                if kept and not where:
                    parts = ", ".join(f"{name} {part:.0%}" for name, part in kept.items())
                    rows.append((setting, "share held by intervals fitted on others", parts))
        if mask_from := stated.get("mask_from"):
            cuts = ((name, cut) for name, cut in mask_from.items() if name != "risk")
            masks = ", ".join(
                f"{name} from p = {cut}" if cut else f"{name}: no probability is safe" for name, cut in cuts
            )
            rows.append((setting, f"mask that misses at most {mask_from['risk']:.0%}", masks))
        if gate := stated.get("gate"):
            bound = f"Dice at least predicted - {gate['margins_of_dice'][0]:.2f}; from {gate['results']} results"
            rows.append((setting, "quality gate", bound))
            if own := gate.get("left_out"):
                verdicts = ", ".join(
                    f"{n} {verdict}" for n, verdict in zip(own, ("accept", "review", "reject"), strict=True)
                )
                rows.append((setting, "its verdicts on subjects left out", verdicts))
                order = "{:.2f} (90 % interval from {:.2f})".format(*gate["skill"])
                rows.append((setting, "rank correlation with true Dice, left out", order))
            if (correlation := gate.get("rank_correlation")) is not None:
                rows.append(
                    (setting, "rank correlation of predicted Dice", f"{correlation:.2f} among sound images, left out")
                )
        if shift := stated.get("shift"):
            limit = f"distance above {shift['flagged_above']:.2g}; {shift['subjects']} subjects"
            rows.append((setting, "unlike the training", limit))
        rows += [(setting, f"{name}: not stated", reason) for name, reason in stated["not_stated"].items()]
    print_table(("setting", folded("statement"), folded("figures")), rows)


def size(row: Mapping[str, Any]) -> str:
    """The size of a structure, with the interval of its true size below; then the number of counted objects."""
    from monai_unet_app.confidence.size_words import amount, interval, interval_text, size_text, unit

    found = [(size_text(row), interval_text(amount(row), interval(row), unit(row)))]
    if "objects" in row:
        number = row["objects"]
        found += [(f"{number} object(s)", interval_text(number, row.get("objects_interval"), "objects"))]
    return "\n".join(text + f"\n({ends})" * bool(ends) for text, ends in found)


def _dice(row: Mapping[str, Any]) -> str:
    """The predicted Dice, or its bound where nothing better is known; empty without a gate."""
    if "predicted_dice" in row:
        return f"\nDice {row['predicted_dice']:.2f}"
    return f"\nDice > {row['dice_at_least']:.2f}" if "dice_at_least" in row else ""


def gate(row: Mapping[str, Any]) -> str:
    """What the quality gate says of a structure, with its Dice below."""
    return f"{row['verdict']}{_dice(row)}" if "verdict" in row else "-"


def verdict(case: Mapping[str, Any]) -> str:
    """The verdict on a result as a whole, as it stands in its record; empty where nothing is stated."""
    return (case["assessment"]["verdict"] or "not judged") if case["assessment"] else ""


def structures_table(done: Sequence[dict[str, Any]]) -> None:
    """A row for each structure of each case, and one for its result as a whole."""
    rows = []
    for case in done:
        name, seconds = case["case"], f"{sum(case['seconds'].values()):.1f}"
        for row in case["structures"]:
            inside = "-" if row["mean_probability"] is None else f"{row['mean_probability']:.3f}"
            rows.append((name, row["label"], size(row), inside, gate(row), seconds))
        rows += [(name, f"{row['label']}, whole", size(row), "", "", "") for row in case["wholes"]]
        if word := verdict(case):
            rows.append((name, "result", "", "", word, ""))
    print_table((folded("case"), folded("structure"), "size", "mean p", "gate", "seconds"), rows)


def reasons_list(done: Sequence[dict[str, Any]]) -> None:
    """Reasons to look at a result; those of a rejected result stand in its problem."""
    words = {"review": "[yellow]review[/yellow]", "accept": "note on", None: "[yellow]not judged[/yellow]"}
    for case in done:
        assessment = case["assessment"] or {}
        if assessment.get("verdict") != "reject" and assessment.get("reasons"):
            word = words[assessment["verdict"]]
            out.print(f"{word} {escape(case['case'])}: {escape('; '.join(assessment['reasons']))}", soft_wrap=True)


ABOUT_OTHERS = ("ignored", "set aside", "left out as byte-identical", "files beside it are not DICOM")
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


def short(value: float, sign: str = "") -> str:
    """Four decimals; two digits of a value that is too small for these."""
    if math.isnan(value):
        return "-"
    return f"{value:{sign}.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:{sign}.1e}"


def between(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"{short(low)} to {short(high)}"


def p_value(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
