"""The output of `inspect`: every DICOM series with its outcome, and a table of ranges over all cases."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Column

from monai_unet_app.cli.show import NAMES, err, line, out, paragraph, print_table, problems_list, styled

if TYPE_CHECKING:
    from monai_unet_app.data.examinations import SeriesRow

RANGE = ("least", "median", "most")
OUTCOME_NOUNS = {
    "readable": "series readable",
    "refused": "refused",
    "set aside": "set aside",
    "object": "of other objects",
    "broken": "broken file(s)",
}
OUTCOME_COLOURS = {"readable": "green", "refused": "red", "broken": "red"}
FAULTS = 10  # of the faults of broken files that are listed


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


def _ranges(name: str, value: dict[str, list[float]]) -> list[list[str]]:
    """Rows of the table: one for a length or size, one for each percentile of the intensity of each channel."""
    if not name.startswith("intensity_"):
        return [[name.replace("_mm", ", mm"), *(_numbers(value[key]) for key in RANGE)]]
    percentiles = name.removeprefix("intensity_").split("_")
    channels = range(len(value["least"]) // len(percentiles))
    return [
        [
            f"intensity {text}" + (f", channel {channel + 1}" if len(channels) > 1 else ""),
            *(_numbers([value[key][channel * len(percentiles) + n]]) for key in RANGE),
        ]
        for channel in channels
        for n, text in enumerate(percentiles)
    ]


def series_blocks(rows: "Sequence[SeriesRow]", *, with_cases: bool) -> None:
    """Every DICOM series with its outcome, properties, folder, UID and reason; series with the same reason share it.

    Args:
        rows: In the order of their files.
        with_cases: Name the case of each series, which is needless for a single case.
    """
    counts = Counter[str](row.outcome for row in rows)
    if rows:
        line(", ".join(f"{counts[name]} {noun}" for name, noun in OUTCOME_NOUNS.items() if counts[name]))
    groups: dict[tuple[str, str], list[SeriesRow]] = {}
    for row in rows:
        if row.series is not None:
            # Series without a reason are not grouped: the id of the row is a key that no other row has.
            groups.setdefault((row.outcome, _reason(row) or str(id(row))), []).append(row)
    for group in groups.values():
        out.print()
        for row in group:
            _series_head(row, with_cases=with_cases)
        if reason := _reason(group[0]):
            paragraph(f"{len(group)} series: {reason}" if len(group) > 1 else reason)
    _broken_files([row.reason for row in rows if row.series is None])


def _series_head(row: "SeriesRow", *, with_cases: bool) -> None:
    series, colour = row.as_dict(), OUTCOME_COLOURS.get(row.outcome, "yellow")
    properties = [series["modality"] or "?", f"{series['files']} file" + ("" if series["files"] == 1 else "s")]
    properties += [" x ".join(map(str, series["shape"]))] if series["shape"] else []
    properties += [_numbers(series["spacing_mm"]) + " mm"] if series["spacing_mm"] else []
    styled(f"[{colour}]{row.outcome:<9}[/{colour}] {escape(', '.join(properties))}")
    if title := row.title.line:
        line(f"  {title}")
    if with_cases and row.case:
        line(f"  case {row.case}")
    line(f"  {series['folder'] or '-'}")
    line(f"  {series['series_instance_uid'] or '(no SeriesInstanceUID)'}")


def _reason(row: "SeriesRow") -> str:
    """The reason without the name of the series, so that series can share it. Empty for objects: their modality is enough."""
    series = row.series
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
        styled(f"[red]broken[/red]    {len(names)} file" + ("" if len(names) == 1 else "s"))
        for name in names[:NAMES]:
            line(f"  {name}")
        if len(names) > NAMES:
            line(f"  and {len(names) - NAMES} more; --json names all")
        paragraph(fault)
    if more := sum(len(names) for _, names in ordered[FAULTS:]):
        line(f"\nand {more} more broken file(s) with {len(ordered) - FAULTS} other faults; --json lists all")


def inspect_problems(problems: Sequence[str], rows: "Sequence[SeriesRow]") -> None:
    """Prints the problems of cases, without those that are printed with a series."""
    reasons = [row.reason for row in rows if row.is_bad]
    others = [problem for problem in problems if not any(reason in problem for reason in reasons)]
    problems_list(others)
    if reasons and not others:
        count = len(reasons)
        err.print(
            f"[red]{count} series or file(s) cannot be used;[/red] the reasons are listed with them", highlight=False
        )


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}" for value in values)
