"""The content of a report, section by section, conclusion first; `html` and `pdf` give it its appearance.

It holds no path and no identity except the names of cases.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dicom_io.coding import DISPLAY_COLOURS
from monai_unet_app.metrics.bootstrap import fewest_subjects
from monai_unet_app.metrics.case_scores import CaseScores, ClassScores
from monai_unet_app.metrics.glossary import score_definitions
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.reliability import ReliabilityCounts
from monai_unet_app.metrics.score_registry import COMPONENT_SCORES, key_of, scores_of

from . import charts
from .blocks import (
    Block,
    Cell,
    Chart,
    Conclusion,
    Facts,
    Folded,
    Heading,
    Legend,
    Lines,
    Picture,
    Table,
    Text,
    Tiles,
    Title,
    Tone,
)
from .case_pictures import CONFUSED_COLOUR, INVENTED_COLOUR, MISSED_COLOUR, TRUTH_COLOUR, case_figure
from .evaluation_report import CasePicture, EvaluationReport, Outcome, Target
from .statement_section import statement_blocks, verdict_counts
from .words import between, number, percent, plural

_WORST_SHOWN, _NAMED = 10, 5
_MARKS: Mapping[Outcome, tuple[Tone, str]] = {
    "reached": ("good", "✓ reached"),
    "missed": ("bad", "✗ missed"),
    "undefined": ("", "– not defined"),
}


def sections(report: EvaluationReport) -> list[Block]:
    """The whole report."""
    return [
        *head(report),
        *_classes(report),
        *_all_cases(report),
        *_outlines(report),
        *_components(report),
        *(_calibration(report) if report.plan.probabilities else []),
        *(statement_blocks(report.statements) if report.statements else []),
        *_pictures(report),
        *_case_tables(report),
        *_provenance(report),
    ]


# --- the conclusion


def head(report: EvaluationReport) -> list[Block]:
    """The subject of the report, whether the targets were reached, and the four most important figures."""
    on = report.measured_on
    cases = f"{plural(len(report.cases), 'case')} of {plural(report.subjects, 'subject')}"
    blocks: list[Block] = [Title(f"{on.bundle_name} {on.bundle_version}, {cases}"), conclusion(report)]
    if but := _limits(report):
        blocks.append(Lines(but))
    if report.targets:
        blocks.append(Lines(tuple(_target_line(target, report.summary) for target in report.targets)))
    if report.targets and report.targets_from:
        blocks.append(Text(f"Targets: {report.targets_from}.", note=True))
    if gate := (report.statements or {}).get("gate"):
        blocks.append(Text(f"The bundle's quality gate on these results: {verdict_counts(gate)}."))
    return [*blocks, Tiles(_tiles(report))]


def _limits(report: EvaluationReport) -> tuple[tuple[Tone, str, str], ...]:
    """The limits of the figures: cases that are missing, and cases for which the figures are too good."""
    on, limits = report.measured_on, list[tuple[Tone, str, str]]()
    if on.not_measured:
        names = ", ".join(on.not_measured[:_NAMED]) + (", ..." if len(on.not_measured) > _NAMED else "")
        limits.append(("bad", "!", f"{plural(len(on.not_measured), 'case')} could not be measured: {names}"))
    if on.seen:
        how = " and ".join(f"{count} in its partition {part}" for part, count in on.seen.items())
        limits.append(
            ("bad", "!", f"the bundle was made with some of these cases ({how}): results on new cases will be worse")
        )
    return tuple(limits)


def conclusion(report: EvaluationReport) -> Conclusion:
    """Whether the targets were reached; without targets the most important figure."""
    if not report.targets:
        return Conclusion(f"Mean Dice {_mean_and_interval(report.summary['dice'])}")
    outcomes = [target.outcome(report.summary) for target in report.targets]
    missed, undefined = outcomes.count("missed"), outcomes.count("undefined")
    if not missed and not undefined:
        all_reached = "The target is reached" if len(outcomes) == 1 else f"All {len(outcomes)} targets are reached"
        return Conclusion(f"{all_reached}, but:") if _limits(report) else Conclusion(all_reached, "good")
    rest = f", {undefined} not defined" if undefined else ""
    if missed:
        return Conclusion(f"{missed} of {plural(len(outcomes), 'target')} missed{rest}", "bad")
    return Conclusion(f"{outcomes.count('reached')} of {plural(len(outcomes), 'target')} reached{rest}")


def _target_line(target: Target, summary: Mapping[str, Any]) -> tuple[Tone, str, str]:
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (("at least", target.at_least), ("at most", target.at_most))
        if bound is not None
    ]
    (tone, mark), value = _MARKS[target.outcome(summary)], target.value(summary)
    figure = "" if value is None else f" {number(value, 4)}"
    return tone, mark, f"{target.name}{figure} ({' and '.join(bounds)})"


def _tiles(report: EvaluationReport) -> tuple[tuple[str, str, str], ...]:
    summary, plan = report.summary, report.plan
    figures = (
        ("Dice, mean", "dice", "mean", 3),
        (f"Boundary IoU, {plan.boundary_width:g} {plan.units.length}, mean", "boundary_iou", "mean", 3),
        ("ECE, whole image", "ece", "top_label", 4),
        (f"ECE, {plan.band_width:g} {plan.units.length} around the predicted surface", "ece_band", "top_label", 4),
    )
    return tuple(
        (name, number(summary[key][part], digits), between(summary[key][f"{part}_interval"], digits) or "no interval")
        for name, key, part, digits in figures
        if key in summary
    )


# --- scores


def _classes(report: EvaluationReport) -> list[Block]:
    columns = _columns("classes", report.plan)
    note = f"Means over cases; below them the {percent(report.how.level)} interval, drawn by subject."
    if report.plan.probabilities:
        columns |= {"ece": ("ECE\nwhole", 4), "ece_band": ("ECE\nband", 4)}
        note += " ECE here is one class against the rest, pooled over all cases; the figures above show the top label."
    fewest = fewest_subjects(report.how.level)
    if report.subjects < fewest:
        note += (
            f" No interval is given: {plural(report.subjects, 'subject')} were measured, at least {fewest} are needed."
        )
    table = _by_class(columns, report.summary, report.plan)
    return [Heading("Each class"), Text(note, note=True), table, *_undefined(report)]


def _columns(table: str, plan: EvaluationPlan) -> dict[str, tuple[str, int]]:
    """Key -> heading and digits, for the scores that the score registry puts into a table."""
    return {
        key: (score.column.format(plan=plan), score.decimals(plan))
        for key, score in scores_of(plan).items()
        if score.table == table
    }


def _by_class(columns: Mapping[str, tuple[str, int]], blocks: Mapping[str, Any], plan: EvaluationPlan) -> Table:
    """A row for each class, and for the mean of several; `columns` holds heading and digits for each of the `blocks`."""

    def row(name: str | None) -> tuple[str | Cell, ...]:
        return name or "Mean", *(_score(blocks[key], name, digits) for key, (_, digits) in columns.items())

    head, several = ("Class", *(heading for heading, _ in columns.values())), len(plan.class_names) > 1
    rows = tuple(row(name) for name in (*plan.class_names, *([None] if several else [])))
    return Table(head, rows, last_is_mean=several)


def _score(block: Mapping[str, Any], name: str | None, digits: int) -> Cell:
    """A score of one class, or its mean, with the interval below it."""
    value = block["mean"] if name is None else block["per_class"][name]
    interval = block["mean_interval"] if name is None else block["per_class_interval"][name]
    return Cell(number(value, digits), between(interval, digits))


def _without_distance(report: EvaluationReport) -> list[Block]:
    lost = report.summary[key_of("hd95", report.plan)]["undefined_cases"]
    named = _in_cases(lost)
    return [Text(f"Without a distance, since one of the two masks is empty: {named}.", note=True)] if named else []


def _undefined(report: EvaluationReport) -> list[Block]:
    """Classes without scores, with the reason, and classes that are absent in some cases."""
    undefined, absent = report.summary["undefined"], report.summary["absent_cases"]
    blocks: list[Block] = []
    if undefined:
        blocks += [Heading("Not defined", small=True), Facts(undefined)]
    if named := _in_cases({name: cases for name, cases in absent.items() if name not in undefined}):
        figure = _mean_and_interval(report.summary["dice"]["present_only"])
        blocks.append(
            Text(
                f"Neither in the truth nor predicted, which counts as 1: {named}. Dice without these: {figure}.",
                note=True,
            )
        )
    return blocks


def _all_cases(report: EvaluationReport) -> list[Block]:
    caption = "One dot for each case. Bar: the middle half of the cases; tick: the median." + _how_many_drawn(
        report.plan
    )
    draw = partial(charts.distribution_figure, report.cases, report.plan, undefined=tuple(report.summary["undefined"]))
    return [Heading("All cases"), Chart(draw, "Dice and boundary IoU of every case, a row for each class", caption)]


def _outlines(report: EvaluationReport) -> list[Block]:
    plan = report.plan
    note = (
        "The curve is the part of both borders that lies within a tolerance of the other's (surface Dice); the square is "
        f"boundary IoU at {plan.boundary_width:g} {plan.units.length}. Where the curve is high from the start, the outlines "
        "agree."
    )
    caption = f"Bands and bars: {percent(report.how.level)} interval, drawn by subject." + _how_many_drawn(plan)
    width = min(charts.COLUMNS, len(plan.class_names)) / charts.COLUMNS
    draw = partial(charts.tolerance_figure, report.summary, plan)
    label = "Surface Dice against the tolerance, and boundary IoU, a chart for each class"
    return [
        Heading("How accurate are the outlines?"),
        Text(note),
        Chart(draw, label, caption, width),
        _by_class(_columns("outlines", plan), report.summary, plan),
        *_without_distance(report),
    ]


def _how_many_drawn(plan: EvaluationPlan) -> str:
    if len(plan.class_names) <= charts.ROWS_SHOWN:
        return ""
    return f" The first {charts.ROWS_SHOWN} of {len(plan.class_names)} classes are drawn."


def _components(report: EvaluationReport) -> list[Block]:
    columns = {score.name: (score.column, score.digits) for score in COMPONENT_SCORES}
    note = (
        "Connected parts of each class, or its objects where these are counted; means over cases. A part is found where one of "
        "the other mask overlaps it with an IoU above 0.5; true parts that are not found are missed, predicted parts without a "
        "match are invented."
    )
    table = _by_class(columns, report.summary["components"], report.plan)
    return [Heading("Part by part"), Text(note, note=True), table]


# --- calibration


def populations_in_words(plan: EvaluationPlan) -> dict[str, str]:
    """Name of each population of calibration -> its voxels, in words."""
    return {
        plan.populations[0]: "Whole image",
        plan.band: f"Within {plan.band_width:g} {plan.units.length} of the predicted surface",
        plan.likely: f"Probability of foreground above {plan.likely_above:g}",
        plan.box: f"Box of the prediction and {plan.box_margin:g} {plan.units.length} around it",
    }


def _calibration(report: EvaluationReport) -> list[Block]:
    words = populations_in_words(report.plan)
    pooled = _headlines(report.evaluation.counts, report.plan)
    bands = {name: charts.accuracy_band(report.cases, name, report.how) for name in pooled}
    # NaN is not equal to itself: `banded` says whether any bin has an interval.
    banded = any(low[low == low].size for low, _ in bands.values())
    earlier = report.evaluation.counts_before
    before = _headlines(earlier, report.plan) if earlier else None
    # Drawn later by each page: HTML takes its own variables as colours, PDF fixed colours.
    draw = partial(charts.reliability_figure, pooled, before, words, bands=bands if banded else None)
    caption = (
        f"Top label, {report.plan.bins} equal-width bins, pooled over all cases. "
        f"Hollow marks: bins with fewer than {charts.SCARCE} decisions."
    )
    if banded:
        caption += f" Band: {percent(report.how.level)} interval of each bin, drawn by subject."
    label = "Reliability diagrams: how often a prediction with a given confidence was right"
    note = "ACE is a plain mean over bins: of equal width (as MONAI), or of equal mass (as Nixon)."
    if "calibration_before" in report.summary:
        note = f"Below each figure is its value before calibration. {note}"
    return [
        Heading("Can the probabilities be trusted?"),
        Text(
            "A point on the diagonal means that predictions with this confidence were right with this frequency. "
            "Below it the model is overconfident, above it underconfident."
        ),
        Chart(draw, label, caption),
        Text(note, note=True),
        _calibration_table(report, words),
    ]


def _headlines(counts: Mapping[str, ReliabilityCounts], plan: EvaluationPlan) -> dict[str, ReliabilityCounts]:
    """The counts of the two populations that are drawn."""
    return {name: counts[name] for name in plan.populations}


def _calibration_table(report: EvaluationReport, words: Mapping[str, str]) -> Table:
    after, before = report.summary["calibration"], report.summary.get("calibration_before") or {}

    def row(name: str) -> tuple[str | Cell, ...]:
        return words[name], *_calibration_cells(after[name], before.get(name)), f"{after[name]['decisions']:,}"

    rows = tuple(row(name) for name in report.plan.every_population)
    equal = ("ACE\nequal width", "ACE\nequal mass")
    return Table(("Population", "ECE", *equal, "MCE", "ECE, mean\nof cases", "Brier", "NLL", "Decisions"), rows)


def _calibration_cells(after: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[Cell]:
    """The figures of a population, and below them the figures before calibration."""
    figures = _calibration_figures(after)
    below = [f"was {figure}" for figure in _calibration_figures(before)] if before else [""] * len(figures)
    return list(map(Cell, figures, below))


def _calibration_figures(block: Mapping[str, Any]) -> list[str]:
    top = block["top_label"]
    values = (top["ece"], top["ace"], top["ace_equal_mass"], top["mce"], block["per_case"]["ece"])
    return [number(value, 4) for value in (*values, block["brier"], block["nll"])]


# --- cases


def _pictures(report: EvaluationReport) -> list[Block]:
    if not report.pictures:
        return []
    outlines = [(TRUTH_COLOUR, "Truth")] + [
        (DISPLAY_COLOURS[n % len(DISPLAY_COLOURS)], f"Predicted: {name}")
        for n, name in enumerate(report.plan.class_names)
    ]
    errors = [(INVENTED_COLOUR, "Invented"), (MISSED_COLOUR, "Missed")]
    if len(report.plan.class_names) > 1:
        errors.append((CONFUSED_COLOUR, "One class confused with another"))
    cut = "" if report.pictures[0].is_flat else " The planes are where the truth is largest, in true proportions."
    scores = {case.case_id: case for case in report.cases}
    return [
        Heading("Worst, median and best case"),
        Text(f"By mean Dice.{cut}", note=True),
        Legend((*outlines, *errors)),
        *(_picture(picture, scores.get(picture.case_id), report) for picture in report.pictures),
    ]


def _picture(picture: CasePicture, scores: CaseScores | None, report: EvaluationReport) -> Picture:
    caption = f"{picture.role.capitalize()}: {picture.case_id}"
    if scores is not None:
        defined = _defined(scores, report)
        each = ", ".join(f"{entry.name} {entry.dice:.3f}" for entry in defined[:8])
        caption += f". Dice {number(_mean(scores, 'dice', report), 3)}" + (f" ({each})" if len(defined) > 1 else "")
    draw = partial(case_figure, picture, report.plan.class_names, errors=True)
    return Picture(draw, f"{picture.role} case: outlines of truth and prediction, and where they differ", caption)


def _mean(case: CaseScores, score: str, report: EvaluationReport) -> float:
    """Mean score of a case over the classes that are defined in the summary."""
    return replace(case, classes=_defined(case, report)).mean(score)


def _defined(case: CaseScores, report: EvaluationReport) -> tuple[ClassScores, ...]:
    return tuple(entry for entry in case.classes if entry.name not in report.summary["undefined"])


def _case_tables(report: EvaluationReport) -> list[Block]:
    ranked = sorted(report.cases, key=lambda case: (_mean(case, "dice", report), case.case_id))
    first, rest = ranked[:_WORST_SHOWN], ranked[_WORST_SHOWN:]
    if not rest:
        return [Heading("Cases, lowest first"), _case_table(first, report)]
    more = plural(len(rest), "more case")
    return [
        Heading(f"The {len(first)} lowest cases"),
        _case_table(first, report),
        Folded(more, _case_table(rest, report), f"{more}: see cases.csv."),
    ]


def _case_table(cases: Iterable[CaseScores], report: EvaluationReport) -> Table:
    def row(case: CaseScores) -> tuple[str, ...]:
        scores = (
            (_mean(case, score, report), digits) for score, digits in (("dice", 3), ("boundary_iou", 3), ("hd95", 2))
        )
        errors = ((case.ece(population), 4) for population in report.plan.populations)
        return case.case_id, case.subject, *(number(*figure) for figure in (*scores, *errors))

    head = ("Case", "Subject", "Dice", "Boundary IoU", f"HD95 {report.plan.units.length}")
    errors = ("ECE whole", "ECE band") if report.plan.probabilities else ()
    return Table((*head, *errors), tuple(row(case) for case in cases))


# --- where it comes from


def _provenance(report: EvaluationReport) -> Sequence[Block]:
    on, how = report.measured_on, report.how
    facts = {
        "Bundle": f"{on.bundle_name} {on.bundle_version}",
        "Bundle sha256": on.bundle_sha256,
        "Data": on.data_name,
        "Data sha256": on.data_sha256,
        "Part": on.partition or "not stated",
        "Settings": "; ".join(f"{name}={value}" for name, value in on.settings.texts()),
        "Cases": f"{len(report.cases)} of {plural(report.subjects, 'subject')}",
        **inference_facts(report.inference),
        "Intervals": f"{percent(how.level)}, {how.resamples} resamples, seed {how.seed}",
        "Made": f"{report.created:%Y-%m-%d %H:%M} UTC",
    }
    return [
        Heading("What was measured, and on which data"),
        Facts(facts),
        Heading("Definitions"),
        Facts(score_definitions(report.plan)),
    ]


def inference_facts(inference: Mapping[str, Any] | None) -> dict[str, str]:
    """Size, time and seams of the network in words; empty where they were not measured."""
    if inference is None:
        return {}
    litre, seams = inference["seconds_per_litre"], inference["seam_difference"]
    time = f"{inference['seconds_per_image']:.3g} s for an image" + (
        f", {litre:.3g} s for a litre" if litre is not None else ""
    )
    facts = {
        "Network": f"{inference['parameters'] / 1e6:.3g} million parameters, {inference['weights_mb']:.3g} MB",
        "Time": f"{time} (medians, on {inference['device']})",
    }
    if seams is not None:
        found = f"{seams['mean']:.2g} of probability, at {plural(seams['places'], 'place')}" if seams["places"] else ""
        facts["Difference at the seams of windows"] = found or "none: there is no seam inside a structure"
    return facts


def _in_cases(counts: Mapping[str, int]) -> str:
    """The classes that are counted in some cases, each with its number of cases."""
    return ", ".join(f"{name} in {plural(cases, 'case')}" for name, cases in counts.items() if cases)


def _mean_and_interval(block: Mapping[str, Any]) -> str:
    interval = block["mean_interval"]
    return number(block["mean"], 3) + (f" ({between(interval, 3)})" if interval else "")
