"""What people see: tables on stdout; progress bars and problems on stderr."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

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
        self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> Steps:
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def __call__(self, description: str = "") -> None:
        self.bar.update(self.task, advance=1, description=description)

    def windows(self, done: int, total: int) -> None:
        """How far the case at work is."""
        self.bar.update(self.task, description=f"window {done} of {total}")


def progress(text: str, total: int, options: argparse.Namespace) -> Steps:
    return Steps(text, total, options.json)


def problems_list(problems: Sequence[str]) -> None:
    if problems:
        err.print(f"[red]{len(problems)} problem(s):[/red]")
        for problem in problems:
            err.print(f"  {escape(problem)}", soft_wrap=True, highlight=False)


def fingerprint_table(summary: dict[str, Any]) -> None:
    table = Table("", "least", "median", "most")
    counts = []
    for name, value in summary.items():
        if isinstance(value, dict) and "least" in value:
            between = ", " if name.startswith("intensity") else " x "
            table.add_row(name, *(_numbers(value[key], between) for key in ("least", "median", "most")))
        elif name == "class_unit":
            continue
        elif name == "class_size":
            for label, sizes in value.items():
                figures = (_numbers(sizes[key]) for key in ("least", "median", "most"))
                table.add_row(f"class {label}, {summary['class_unit']}", *figures)
        else:
            text = (
                ", ".join(f"{key} ({count})" for key, count in value.items()) if isinstance(value, dict) else str(value)
            )
            counts.append(f"{name}: {text}")
    if counts:
        out.print("\n".join(counts), highlight=False)
    if table.row_count:
        out.print(table)


OUTCOME_COLOURS = {"readable": "green", "refused": "red", "broken": "red"}


def series_table(rows: Sequence[dict[str, Any]]) -> None:
    """Every DICOM series with its verdict; the reason below it."""
    if not rows:
        return
    table = Table(Column("DICOM series", overflow="fold"), "what", Column("verdict", overflow="fold"))
    for row in rows:
        what = f"{row['modality'] or '?'}, {row['files']} file" + ("" if row["files"] == 1 else "s")
        if row["shape"]:
            what += "\n" + " x ".join(map(str, row["shape"]))
        if row["spacing_mm"]:
            what += "\n" + _numbers(row["spacing_mm"]) + " mm"
        colour = OUTCOME_COLOURS.get(row["outcome"], "yellow")
        verdict = f"[{colour}]{row['outcome']}[/{colour}]" + (f"\n{escape(row['reason'])}" if row["reason"] else "")
        table.add_row(escape(row["series_instance_uid"] or "-"), what, verdict)
    out.print(table)


def _numbers(values: Sequence[float], between: str = " x ") -> str:
    return between.join(f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}" for value in values)


def metrics_table(metrics: Any) -> None:
    table = Table("score", "mean", "95 % interval", *metrics["dice"]["per_class"])
    for key in ("dice", "iou", "boundary_iou", "precision", "recall", *(k for k in metrics if k.startswith("hd95"))):
        _metric_row(table, key, metrics[key], metrics[key]["mean"], metrics[key]["mean_interval"])
    for key in ("ece", "ece_band"):
        block = metrics[key]
        _metric_row(table, f"{key} (top label)", block, block["top_label"], block["top_label_interval"])
    out.print(table)


def _metric_row(table: Table, name: str, block: Any, value: float | None, interval: Any) -> None:
    between = "-" if not interval else f"{interval[0]:.4f} to {interval[1]:.4f}"
    cells = [("-" if number is None else f"{number:.4f}") for number in (value, *block["per_class"].values())]
    table.add_row(name, cells[0], between, *cells[1:])


def structures_table(done: Sequence[dict[str, Any]]) -> None:
    table = Table("case", "structure", "size", "mean probability", "seconds")
    for case in done:
        for row in case["structures"]:
            size = f"{row['volume_ml']:.3f} mL" if "volume_ml" in row else f"{row['pixels']} px"
            size += f" ({row['area_mm2']:.1f} mm2)" if "area_mm2" in row else ""
            inside = "-" if row["mean_probability"] is None else f"{row['mean_probability']:.3f}"
            table.add_row(escape(case["case"]), row["label"], size, inside, f"{sum(case['seconds'].values()):.1f}")
    if table.row_count:
        out.print(table)
