"""One self-contained page, verdict first: offline, light and dark, fit to print.

The page loads nothing (its own policy forbids it), runs no script, and holds no path, and no identity beyond
the names of cases that it was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from typing import Any

from monai_unet_app.metrics import CaseScores, EvaluationPlan, definitions
from monai_unet_app.metrics.evaluation import score_keys

from .contents import CasePicture, EvaluationReport, Target
from .figures import ROWS_SHOWN, SCARCE, distribution_figure, reliability_figure, svg
from .pictures import CLASS_COLOURS, TRUTH_COLOUR, case_figure, png_uri

_WORST_SHOWN = 10


def render_html(report: EvaluationReport) -> str:
    """The whole report as the text of one HTML file."""
    sections = (
        _head(report),
        _class_table(report),
        _distribution(report),
        _calibration(report),
        _pictures(report),
        _case_tables(report),
        _provenance(report),
    )
    title = f"Evaluation of {report.measured_on.bundle_name}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{escape(title)}</title>\n<style>{_style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(report: EvaluationReport) -> str:
    on, summary, plan = report.measured_on, report.summary, report.plan
    band = f"ECE, {plan.band_width:g} {plan.unit} around the predicted surface"
    tiles = (
        _tile("Dice, mean", summary["dice"]["mean"], summary["dice"]["mean_interval"], 3),
        _tile(
            f"Boundary IoU, {plan.boundary_width:g} {plan.unit}, mean",
            summary["boundary_iou"]["mean"],
            summary["boundary_iou"]["mean_interval"],
            3,
        ),
        _tile("ECE, whole image", summary["ece"]["top_label"], summary["ece"]["top_label_interval"], 4),
        _tile(band, summary["ece_band"]["top_label"], summary["ece_band"]["top_label_interval"], 4),
    )
    cases = _plural(len(report.cases), "case") + " of " + _plural(report.subjects, "subject")
    return (
        f"<h1>{escape(on.bundle_name)} {escape(on.bundle_version)}, {cases}</h1>\n{verdict(report)}\n"
        f'<div class="tiles">{"".join(tiles)}</div>'
    )


def verdict(report: EvaluationReport) -> str:
    """Were the targets reached? Without targets: the figure that matters most."""
    if not report.targets:
        dice = report.summary["dice"]
        text = f"Mean Dice {_number(dice['mean'], 3)}{_between(dice['mean_interval'], 3)}"
        return f'<p class="verdict">{text}</p>'
    missed = [target for target in report.targets if not target.reached(report.summary)]
    number = len(report.targets)
    if missed:
        text, tone = f"{len(missed)} of {_plural(number, 'target')} missed", "bad"
    else:
        text, tone = ("The target is reached" if number == 1 else f"All {number} targets are reached"), "good"
    lines = "".join(f"<li>{_target_line(target, report.summary)}</li>" for target in report.targets)
    return f'<p class="verdict {tone}">{text}</p>\n<ul class="targets">{lines}</ul>'


def _target_line(target: Target, summary: Mapping[str, Any]) -> str:
    reached = target.reached(summary)
    mark = '<span class="good">✓ reached</span>' if reached else '<span class="bad">✗ missed</span>'
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("at least", target.at_least), ("at most", target.at_most))
        if bound is not None
    ]
    return f"{mark}: {escape(target.name)} {_number(target.value(summary), 4)} ({' and '.join(bounds)})"


def _class_table(report: EvaluationReport) -> str:
    plan, summary, keys = report.plan, report.summary, score_keys(report.plan)
    columns = {
        "dice": ("Dice", 3),
        "boundary_iou": (f"Boundary IoU<br>{plan.boundary_width:g} {plan.unit}", 3),
        "iou_boundary_min": ("min(IoU,<br>boundary IoU)", 3),
        "surface_dice": (f"Surface Dice<br>{plan.surface_tolerance:g} {plan.unit}", 3),
        keys["hd95"]: (f"HD95<br>{plan.unit}", 2),
        keys["size_difference"]: (f"Size error<br>{'pixels' if plan.planar else 'mL'}", 3),
        "ece": ("ECE<br>whole", 4),
        "ece_band": ("ECE<br>band", 4),
    }
    rows = [
        [escape(name), *(_with_interval(summary[key], name, digits) for key, (_, digits) in columns.items())]
        for name in plan.class_names
    ]
    rows.append(["Mean", *(_with_interval(summary[key], None, digits) for key, (_, digits) in columns.items())])
    table = _table(["Class", *(name for name, _ in columns.values())], rows, mean_last=True)
    return (
        "<h2>Each class</h2>\n"
        f'<p class="note">Means over cases; below them the {100 * report.how.level:g} % interval, drawn by '
        "subject. ECE here is one class against the rest, pooled over all cases; the tiles above show the "
        f"top label. {_undefined(report)}</p>\n{table}"
    )


def _undefined(report: EvaluationReport) -> str:
    lost = report.summary[score_keys(report.plan)["hd95"]]["undefined_cases"]
    named = ", ".join(f"{escape(name)} in {_plural(number, 'case')}" for name, number in lost.items() if number)
    return f"Without a distance, since one of the two masks is empty: {named}." if named else ""


def _distribution(report: EvaluationReport) -> str:
    figure = distribution_figure(report.cases, report.plan)
    chart = svg(figure, "Dice and boundary IoU of every case, a row a class")
    caption = "One dot a case. Bar: the middle half of the cases; tick: the median."
    if len(report.plan.class_names) > ROWS_SHOWN:
        caption += f" The first {ROWS_SHOWN} of {len(report.plan.class_names)} classes are drawn."
    return f"<h2>All cases</h2>\n{_figure(chart, caption)}"


def _calibration(report: EvaluationReport) -> str:
    plan = report.plan
    where = {
        plan.populations[0]: "Whole image",
        plan.band: f"Within {plan.band_width:g} {plan.unit} of the predicted surface",
    }
    figure = reliability_figure(report.reliability, report.reliability_before, where)
    chart = svg(figure, "Reliability diagrams: how often came true what was predicted with a given confidence")
    caption = (
        f"Top label, {plan.bins} equal-width bins, pooled over all cases. "
        f"Hollow marks: bins with fewer than {SCARCE} decisions."
    )
    tables = {
        "before calibration": report.summary.get("calibration_before"),
        "": report.summary["calibration"],
    }
    rows = [
        [f"{place}{', ' + when if when else ''}", *_calibration_cells(table[name])]
        for name, place in where.items()
        for when, table in tables.items()
        if table
    ]
    head = ["Population", "ECE", "ACE", "MCE", "ECE per case", "Brier", "NLL", "Decisions"]
    return (
        "<h2>Can the probabilities be trusted?</h2>\n"
        "<p>A point on the diagonal means that what was predicted with this confidence came true as often. "
        "Below it the model is too sure, above it not sure enough.</p>\n"
        f"{_figure(chart, caption)}\n{_table(head, rows)}"
    )


def _calibration_cells(block: Mapping[str, Any]) -> list[str]:
    top = block["top_label"]
    values = (top["ece"], top["ace"], top["mce"], block["per_case"]["ece"], block["brier"], block["nll"])
    return [*(_number(value, 4) for value in values), f"{block['decisions']:,}"]


def _pictures(report: EvaluationReport) -> str:
    if not report.pictures:
        return ""
    colours = [(TRUTH_COLOUR, "Truth")] + [
        (CLASS_COLOURS[n % len(CLASS_COLOURS)], f"Predicted: {name}") for n, name in enumerate(report.plan.class_names)
    ]
    keys = "".join(f'<li><i style="background:{colour}"></i>{escape(name)}</li>' for colour, name in colours)
    scores = {case.case_id: case for case in report.cases}
    figures = "\n".join(_picture(picture, scores.get(picture.case_id), report.plan) for picture in report.pictures)
    cut = "" if report.plan.planar else " The planes cut where the truth is largest, at true proportions."
    return (
        f'<h2>Worst, median and best case</h2>\n<p class="note">By mean Dice.{cut}</p>\n'
        f'<ul class="key">{keys}</ul>\n{figures}'
    )


def _picture(picture: CasePicture, scores: CaseScores | None, plan: EvaluationPlan) -> str:
    said = f"{picture.role.capitalize()}: {picture.case_id}"
    if scores is not None:
        each = ", ".join(f"{entry.name} {entry.dice:.3f}" for entry in scores.classes[:8])
        said += f". Dice {scores.mean('dice'):.3f}" + (f" ({each})" if len(scores.classes) > 1 else "")
    uri = png_uri(case_figure(picture, plan))
    alt = f"{picture.role} case with the outlines of truth and prediction"
    return _figure(f'<img src="{uri}" alt="{escape(alt)}">', escape(said), kind="case")


def _case_tables(report: EvaluationReport) -> str:
    ranked = sorted(report.cases, key=lambda case: (case.mean("dice"), case.case_id))
    first, rest = ranked[:_WORST_SHOWN], ranked[_WORST_SHOWN:]
    if not rest:
        return f"<h2>Cases, lowest first</h2>\n{_case_table(first, report.plan)}"
    more = f"<summary>{_plural(len(rest), 'more case')}</summary>{_case_table(rest, report.plan)}"
    heading = f"<h2>The {len(first)} lowest cases</h2>"
    return f"{heading}\n{_case_table(first, report.plan)}\n<details>{more}</details>"


def _case_table(cases: Iterable[CaseScores], plan: EvaluationPlan) -> str:
    rows = [
        [
            escape(case.case_id),
            escape(case.subject),
            _number(case.mean("dice"), 3),
            _number(case.mean("boundary_iou"), 3),
            _number(case.mean("hd95"), 2),
            *(_number(case.ece(population), 4) for population in plan.populations),
        ]
        for case in cases
    ]
    return _table(["Case", "Subject", "Dice", "Boundary IoU", f"HD95 {plan.unit}", "ECE whole", "ECE band"], rows)


def _provenance(report: EvaluationReport) -> str:
    on, how = report.measured_on, report.how
    facts = {
        "Bundle": f"{on.bundle_name} {on.bundle_version}",
        "Bundle sha256": on.bundle_sha256,
        "Data": on.data_name,
        "Data sha256": on.data_sha256,
        "Part": on.partition or "not stated",
        "Cases": f"{len(report.cases)} of {_plural(report.subjects, 'subject')}",
        "Intervals": f"{100 * how.level:g} %, {how.resamples} resamples, seed {how.seed}",
        "Made": f"{report.created:%Y-%m-%d %H:%M} UTC",
    }
    return (
        f"<h2>What was measured on what</h2>\n{_definition_list(facts)}\n"
        f"<h2>Definitions</h2>\n{_definition_list(definitions(report.plan))}"
    )


def _definition_list(entries: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items()) + "</dl>"


def _tile(name: str, value: float | None, interval: list[float] | None, digits: int) -> str:
    below = f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else "no interval"
    figure = f"<b>{_number(value, digits)}</b>"
    return f'<div class="tile"><span>{escape(name)}</span>{figure}<span>{below}</span></div>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], mean_last: bool = False) -> str:
    """A table of ready cells; the last row is set off where it is the mean of the others."""
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    if mean_last:
        lines[-1] = lines[-1].replace("<tr>", '<tr class="mean">', 1)
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "\n".join(lines)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _figure(content: str, caption: str, kind: str = "chart") -> str:
    return f'<figure class="{kind}">{content}<figcaption class="note">{caption}</figcaption></figure>'


def _with_interval(block: Mapping[str, Any], name: str | None, digits: int) -> str:
    """A score of one class, or its mean, with the interval below it."""
    value = block["mean"] if name is None else block["per_class"][name]
    interval = block["mean_interval"] if name is None else block["per_class_interval"][name]
    below = f"<small>{interval[0]:.{digits}f} to {interval[1]:.{digits}f}</small>" if interval else ""
    return _number(value, digits) + below


def _between(interval: list[float] | None, digits: int) -> str:
    return f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})" if interval else ""


def _number(value: float | None, digits: int) -> str:
    """The value, or a dash where it is undefined (None, NaN or infinite)."""
    defined = value is not None and abs(value) < float("inf")
    return f"{value:.{digits}f}" if defined else "–"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _style() -> str:
    return (files(__package__) / "report.css").read_text(encoding="utf-8")
