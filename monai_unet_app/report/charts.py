"""The charts of a report: matplotlib figures, made without pyplot, which would keep them in a global state.

They become inline SVG whose colours and font are variables of the page, so that they follow its light and dark theme.
"""

import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from monai_unet_app.metrics.bootstrap import Bootstrap, bootstrap_sums
from monai_unet_app.metrics.case_scores import CaseScores
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.reliability import TOP_LABEL, ReliabilityCounts, expected_calibration_error

SCARCE = 50  # bins with fewer decisions are drawn hollow, since their accuracy is hardly known
ROWS_SHOWN = 24
COLUMNS = 3  # of the small charts of outlines
Band = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Palette:
    """Colours of a chart. The defaults stand for the variables of the page; see `svg`."""

    ink: str = "#010a01"
    muted: str = "#010a02"
    grid: str = "#010a03"
    first: str = "#010a04"
    second: str = "#010a05"
    ground: str = "#010a06"


LIGHT = Palette("#1b1f24", "#5b6470", "#dfe3e8", "#1a61d4", "#b4541a", "#ffffff")


def reliability_figure(
    after: Mapping[str, ReliabilityCounts],
    before: Mapping[str, ReliabilityCounts] | None,
    titles: Mapping[str, str],
    palette: Palette = Palette(),
    bands: Mapping[str, Band] | None = None,
) -> Figure:
    """A column for each population: accuracy against confidence above, the number of decisions below.

    Args:
        after: Counts of each population, as delivered.
        before: The same before calibration, or None.
        titles: Heading of each population.
        palette: Colours.
        bands: For each population the ends of the interval of the accuracy in `after`, as `accuracy_band` gives them; or None.
    """
    figure = Figure(figsize=(4.7 * len(after), 5.4), layout="constrained")
    axes = figure.subplots(2, len(after), sharex=True, squeeze=False, height_ratios=(3.2, 1))
    for column, (name, counts) in enumerate(after.items()):
        earlier = before[name] if before else None
        if bands:
            _draw_band(axes[0, column], counts, bands[name], palette)
        _draw_reliability(axes[0, column], counts, earlier, palette)
        _draw_histogram(axes[1, column], counts, palette)
        axes[0, column].set_title(titles[name], color=palette.ink, fontsize=12, loc="left", pad=10)
    axes[0, 0].set_ylabel("came true", color=palette.ink)
    axes[1, 0].set_ylabel("share of voxels", color=palette.ink)
    return figure


def accuracy_band(cases: Sequence[CaseScores], population: str, how: Bootstrap) -> Band:
    """The interval of the accuracy in each bin of confidence, by a bootstrap that draws subjects.

    The voxels of a case are right or wrong together, so an interval that takes each voxel for an independent draw (binomial in
    each bin) is far too narrow. Here a subject is drawn with all voxels of all of its cases.

    Returns:
        Lower and upper ends of the top label's bins, shape (B,) each, 0 to 1; NaN where fewer than `fewest_subjects` subjects
        have a voxel in the bin.
    """
    counts = [case.bins[population] for case in cases]
    number = np.array([entry.count[TOP_LABEL] for entry in counts], dtype=np.float64)
    right = np.array([entry.correct[TOP_LABEL] for entry in counts], dtype=np.float64)
    ends = []
    for b in range(number.shape[1]):
        # A case without a voxel in this bin says nothing about its accuracy, so its subject does not count towards the
        # fewest.
        filled = np.flatnonzero(number[:, b]).tolist()
        rows = np.stack([right[filled, b], number[filled, b]], axis=1)
        estimate = bootstrap_sums(rows, [cases[n].subject for n in filled], lambda sums: sums[:, 0] / sums[:, 1], how)
        ends.append((estimate.low, estimate.high))
    low, high = np.array(ends).T
    return low, high


def tolerance_figure(summary: Mapping[str, Any], plan: EvaluationPlan, palette: Palette = Palette()) -> Figure:
    """A small chart for each class: surface Dice against the tolerance as a curve, boundary IoU as a mark at its width.

    Bands and bars are the intervals. A class without scores is marked as not defined.

    Args:
        summary: As `Evaluation.summary` gives it.
        plan: Its tolerances, in any order.
        palette: Colours.
    """
    names = plan.class_names[:ROWS_SHOWN]
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 0.35 + 2.35 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for n, axis in enumerate(axes.flat):
        if n >= len(names):
            axis.set_visible(False)
            continue
        style_axis(axis, palette)
        axis.set_title(names[n], color=palette.ink, fontsize=11, loc="left", pad=6, parse_math=False)
        _draw_tolerances(axis, names[n], summary, plan, palette)
    for axis in axes[:, 0]:
        axis.set_ylim(_lowest(summary, names), 1.005)
    for n in range(columns):
        lowest = axes[(len(names) - 1 - n) // columns, n]
        lowest.set_xlabel(f"tolerance, {plan.units.length}", color=palette.ink)
        lowest.tick_params(labelbottom=True)
    return figure


def risk_coverage_figure(curve: Mapping[str, Sequence[float]], palette: Palette = Palette()) -> Figure:
    """Mean of 1 - Dice of the results that are kept, against the part that is kept, the surest results first.

    Args:
        curve: "coverage" and "risk", of equal length, from the surest result alone to all results.
        palette: Colours.
    """
    figure = Figure(figsize=(5.2, 3.3), layout="constrained")
    axis = figure.subplots()
    style_axis(axis, palette)
    coverage, risk = 100 * np.asarray(curve["coverage"]), np.asarray(curve["risk"])
    without_order = "all results: as of any part,\nif the order told nothing"
    axis.axhline(risk[-1], color=palette.muted, lw=1, ls=(0, (1, 2)), zorder=1, label=without_order)
    axis.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=palette.muted)
    axis.plot(coverage, risk, color=palette.first, lw=1.6, zorder=3)
    axis.scatter(coverage, risk, s=14, color=palette.first, linewidths=0, zorder=4, clip_on=False)
    axis.set(xlim=(0, 100), ylim=(0, 1.35 * max(float(risk.max()), 1e-3)))
    axis.set_xlabel("kept, % of results, the most certain first", color=palette.ink)
    axis.set_ylabel("mean of 1 - Dice among them", color=palette.ink)
    axis.grid(True, color=palette.grid, lw=0.8)
    return figure


def distribution_figure(
    cases: Sequence[CaseScores], plan: EvaluationPlan, palette: Palette = Palette(), undefined: Collection[str] = ()
) -> Figure:
    """Every case as a dot, in a row for each class: Dice left, boundary IoU right; bar: quartiles, tick: median.

    The rows of `undefined` classes stay empty.
    """
    rows = min(len(plan.class_names), ROWS_SHOWN)
    figure = Figure(figsize=(9.4, 1.5 + 0.75 * rows), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    headings = {"dice": "Dice", "boundary_iou": f"Boundary IoU, {plan.boundary_width:g} {plan.units.length}"}
    for axis, (score, heading) in zip(axes, headings.items(), strict=True):
        style_axis(axis, palette)
        for n, name in enumerate(plan.class_names[:rows]):
            if name in undefined:
                axis.text(
                    0.02, n, "not defined", color=palette.muted, transform=axis.get_yaxis_transform(), va="center"
                )
                continue
            values = np.array([getattr(case.classes[n], score) for case in cases])
            _draw_row(axis, n, values, palette)
        axis.set_title(heading, color=palette.ink, fontsize=12, loc="left", pad=8)
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5]))
        axis.set_xlim(right=1.005)
    axes[0].set_yticks(range(rows), plan.class_names[:rows], color=palette.ink, fontsize=11, parse_math=False)
    # Upside down, so that the first class is at the top, as in the tables.
    axes[0].set_ylim(rows - 0.5, -0.5)
    return figure


def svg(figure: Figure, label: str) -> str:
    """The figure as an inline <svg> of an HTML page: no address, no date; colours and font are those of the page.

    Args:
        figure: Drawn with the default palette.
        label: Description of the figure for readers who cannot see it.
    """
    stream = io.StringIO()
    # Texts stay texts, so that the page's font applies; with a fixed salt the ids, and so the bytes, are always the
    # same.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # The style of a figure would apply to the whole page; in HTML an inline drawing needs no namespaces, which look
    # like addresses to load.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    # Several figures stand on the page: an id without a reference could only clash with those of the others.
    referred = set(re.findall(r"#([\w.-]+)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in referred else "", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    for entry in fields(Palette):
        text = text.replace(str(entry.default), f"var(--{entry.name})")
    # Without width and height the drawing takes the width of its place; its viewBox keeps the proportions.
    height_free = re.sub(r'<svg height="[^"]*"', "<svg", re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text))
    return height_free.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


# --- reliability


def _draw_reliability(
    axis: Axes, counts: ReliabilityCounts, before: ReliabilityCounts | None, palette: Palette
) -> None:
    style_axis(axis, palette)
    axis.plot([0, 1], [0, 1], color=palette.muted, lw=1, ls=(0, (1, 2)), zorder=1)
    lines = []
    if before is not None:
        _draw_curve(axis, before, palette.second, palette, marker="s", style=(0, (4, 2)))
        lines.append((f"before calibration, ECE {expected_calibration_error(before):.4f}", palette.second))
    _draw_curve(axis, counts, palette.first, palette, marker="o", style="-")
    name = "as delivered" if before is not None else "pooled"
    lines.append((f"{name}, ECE {expected_calibration_error(counts):.4f}", palette.first))
    for n, (text, colour) in enumerate(lines):
        axis.text(0.035, 0.95 - 0.075 * n, text, color=colour, transform=axis.transAxes, va="top", fontsize=10)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.grid(True, color=palette.grid, lw=0.8)


def _draw_band(axis: Axes, counts: ReliabilityCounts, band: Band, palette: Palette) -> None:
    """The interval of each bin, joined where neighbouring bins have one."""
    used = counts.count[TOP_LABEL] > 0
    x, (low, high) = counts.mean_confidence()[used], (end[used] for end in band)
    axis.fill_between(x, low, high, color=palette.first, alpha=0.2, linewidth=0, zorder=2)
    axis.vlines(x, low, high, color=palette.first, alpha=0.45, lw=1, zorder=2)


def _draw_curve(
    axis: Axes, counts: ReliabilityCounts, colour: str, palette: Palette, marker: str, style: object
) -> None:
    """Mean confidence against accuracy of the filled bins; bins with few decisions are hollow and off the line."""
    number = counts.count[0]
    used = number > 0
    x, y, sure = counts.mean_confidence()[used], counts.accuracy()[used], (number >= SCARCE)[used]
    axis.plot(x[sure], y[sure], color=colour, lw=1.6, ls=style, zorder=3)
    faces = [colour if certain else palette.ground for certain in sure]
    axis.scatter(x, y, s=30, marker=marker, c=faces, edgecolors=colour, linewidths=1.4, zorder=4, clip_on=False)


def _draw_histogram(axis: Axes, counts: ReliabilityCounts, palette: Palette) -> None:
    """Share of the decisions in each bin, on a logarithmic scale: nearly all of a volume is sure background."""
    style_axis(axis, palette)
    share = counts.count[0] / max(1, counts.decisions)
    edges = np.linspace(0, 1, counts.bins + 1)
    axis.bar(edges[:-1], share, width=np.diff(edges) * 0.88, align="edge", color=palette.first, alpha=0.75)
    lowest = max(share[share > 0].min(initial=1.0), 1e-7)
    axis.set_ylim(0.5 * 10 ** np.floor(np.log10(lowest)), 1.6)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis.yaxis.set_major_locator(mpl.ticker.LogLocator(numticks=4))
    axis.minorticks_off()
    axis.grid(True, axis="y", color=palette.grid, lw=0.8)
    axis.set_axisbelow(True)
    axis.set_xlabel("confidence", color=palette.ink)


# --- outlines


def _draw_tolerances(axis: Axes, name: str, summary: Mapping[str, Any], plan: EvaluationPlan, palette: Palette) -> None:
    scores = [summary["surface_dice_at"][tolerance] for tolerance in plan.tolerance_names]
    values = [score["per_class"][name] for score in scores]
    if any(value is None for value in values):
        axis.text(0.5, 0.5, "not defined", color=palette.muted, transform=axis.transAxes, ha="center", va="center")
        return
    order = np.argsort(plan.tolerances)
    x, y = np.array(plan.tolerances)[order], np.array(values)[order]
    ends = [score["per_class_interval"][name] for score in scores]
    if all(ends):
        low, high = np.array(ends)[order].T
        axis.fill_between(x, low, high, color=palette.first, alpha=0.2, linewidth=0, zorder=2)
    axis.plot(x, y, color=palette.first, lw=1.6, marker="o", ms=4, zorder=3, clip_on=False)
    boundary = summary["boundary_iou"]
    value, interval = boundary["per_class"][name], boundary["per_class_interval"][name]
    if interval:
        axis.vlines(plan.boundary_width, *interval, color=palette.second, lw=1.6, zorder=3)
    axis.plot(plan.boundary_width, value, color=palette.second, marker="s", ms=5, ls="none", zorder=4)
    labels = (("surface Dice", palette.first), (f"boundary IoU {value:.3f}", palette.second))
    for n, (text, colour) in enumerate(labels):
        axis.text(0.97, 0.17 - 0.11 * n, text, color=colour, transform=axis.transAxes, ha="right", fontsize=9)
    axis.set_xlim(0, 1.04 * max(*plan.tolerances, plan.boundary_width))
    axis.grid(True, color=palette.grid, lw=0.8)


def _lowest(summary: Mapping[str, Any], names: Sequence[str]) -> float:
    """The lower end of the scale, a round number that leaves room for the words below the curves."""
    blocks = [summary["boundary_iou"], *summary["surface_dice_at"].values()]
    ends = [block["per_class_interval"][name] or [block["per_class"][name]] for block in blocks for name in names]
    least = min((end[0] for end in ends if end[0] is not None), default=1.0)
    return max(0.0, float(np.floor(10 * (least - 0.3 * (1 - least))) / 10) - 0.1)


# --- distribution


def _draw_row(axis: Axes, row: int, values: NDArray[np.float64], palette: Palette) -> None:
    low, middle, high = np.percentile(values, [25, 50, 75])
    spread = 0.28 * _spread_out(len(values))
    axis.scatter(values, row + spread, s=20, color=palette.first, alpha=0.6, linewidths=0, zorder=2)
    axis.plot([low, high], [row, row], color=palette.ink, lw=5, solid_capstyle="butt", alpha=0.3, zorder=3)
    axis.plot([middle, middle], [row - 0.3, row + 0.3], color=palette.ink, lw=2, zorder=4)
    axis.grid(True, axis="x", color=palette.grid, lw=0.8)


def _spread_out(number: int) -> NDArray[np.float64]:
    """Shape (number,), -1 to 1, evenly spread without a pattern: the fractional parts of multiples of the golden ratio."""
    return np.asarray(2 * np.mod(np.arange(number) * 0.6180339887498949, 1.0) - 1)


def style_axis(axis: Axes, palette: Palette) -> None:
    axis.set_facecolor("none")
    axis.tick_params(colors=palette.muted, labelcolor=palette.muted, labelsize=10, length=0)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(palette.grid)
