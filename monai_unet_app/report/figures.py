"""The charts of a report: matplotlib figures, made without pyplot, so nothing global is touched.

They become inline SVG whose colours and font are variables of the page: they follow its light and dark theme.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from monai_unet_app.metrics import CaseScores, EvaluationPlan, ReliabilityCounts, expected_calibration_error

SCARCE = 50  # bins with fewer decisions are drawn hollow: their accuracy is hardly known
ROWS_SHOWN = 24


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
DARK = Palette("#e6e9ed", "#9aa4b0", "#333a42", "#6cabff", "#f0a267", "#15181c")


def reliability_figure(
    after: Mapping[str, ReliabilityCounts],
    before: Mapping[str, ReliabilityCounts] | None,
    titles: Mapping[str, str],
    palette: Palette = Palette(),
) -> Figure:
    """One column a population: accuracy against confidence above, how many decisions below.

    Args:
        after: Counts of each population, as delivered.
        before: The same before calibration, or None.
        titles: Heading of each population.
        palette: Colours.
    """
    figure = Figure(figsize=(4.7 * len(after), 5.4), layout="constrained")
    axes = figure.subplots(2, len(after), sharex=True, squeeze=False, height_ratios=(3.2, 1))
    for column, (name, counts) in enumerate(after.items()):
        earlier = before[name] if before else None
        _draw_reliability(axes[0, column], counts, earlier, palette)
        _draw_histogram(axes[1, column], counts, palette)
        axes[0, column].set_title(titles[name], color=palette.ink, fontsize=12, loc="left", pad=10)
    axes[0, 0].set_ylabel("came true", color=palette.ink)
    axes[1, 0].set_ylabel("share of voxels", color=palette.ink)
    return figure


def distribution_figure(cases: Sequence[CaseScores], plan: EvaluationPlan, palette: Palette = Palette()) -> Figure:
    """Every case as a dot, a row a class: Dice left, boundary IoU right; bar: quartiles, tick: median."""
    rows = min(len(plan.class_names), ROWS_SHOWN)
    figure = Figure(figsize=(9.4, 1.5 + 0.75 * rows), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    headings = {"dice": "Dice", "boundary_iou": f"Boundary IoU, {plan.boundary_width:g} {plan.unit}"}
    for axis, (score, heading) in zip(axes, headings.items(), strict=True):
        _style(axis, palette)
        for n in range(rows):
            values = np.array([getattr(case.classes[n], score) for case in cases])
            _draw_row(axis, n, values, palette)
        axis.set_title(heading, color=palette.ink, fontsize=12, loc="left", pad=8)
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5]))
        axis.set_xlim(right=1.005)
    axes[0].set_yticks(range(rows), plan.class_names[:rows], color=palette.ink, fontsize=11)
    axes[0].set_ylim(rows - 0.5, -0.5)
    return figure


def svg(figure: Figure, label: str) -> str:
    """The figure as an inline <svg> of an HTML page: no address, no date, colours and font taken from the
    page.

    Args:
        figure: Drawn with the default palette.
        label: What is to be seen, for those who cannot see it.
    """
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    referred = set(re.findall(r"#([\w.-]+)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referred else "", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", text)
    for entry in fields(Palette):
        text = text.replace(str(entry.default), f"var(--{entry.name})")
    height_free = re.sub(r'<svg height="[^"]*"', "<svg", re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text))
    return height_free.replace("<svg", f'<svg role="img" aria-label="{_attribute(label)}"', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


# --- reliability


def _draw_reliability(
    axis: Axes, counts: ReliabilityCounts, before: ReliabilityCounts | None, palette: Palette
) -> None:
    _style(axis, palette)
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


def _draw_curve(
    axis: Axes, counts: ReliabilityCounts, colour: str, palette: Palette, marker: str, style: object
) -> None:
    """Mean confidence against accuracy of filled bins; scarce ones hollow and off the line."""
    number = counts.count[0]
    used = number > 0
    x, y, sure = counts.mean_confidence()[used], counts.accuracy()[used], (number >= SCARCE)[used]
    axis.plot(x[sure], y[sure], color=colour, lw=1.6, ls=style, zorder=3)
    faces = [colour if certain else palette.ground for certain in sure]
    axis.scatter(x, y, s=30, marker=marker, c=faces, edgecolors=colour, linewidths=1.4, zorder=4, clip_on=False)


def _draw_histogram(axis: Axes, counts: ReliabilityCounts, palette: Palette) -> None:
    """Share of the decisions in each bin, logarithmic: nearly all of a volume is sure background."""
    _style(axis, palette)
    share = counts.count[0] / max(1, counts.decisions)
    edges = np.linspace(0, 1, counts.bins + 1)
    axis.bar(edges[:-1], share, width=np.diff(edges) * 0.88, align="edge", color=palette.first, alpha=0.75)
    axis.set_yscale("log")
    lowest = max(share[share > 0].min(initial=1.0), 1e-7)
    axis.set_ylim(0.5 * 10 ** np.floor(np.log10(lowest)), 1.6)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis.yaxis.set_major_locator(mpl.ticker.LogLocator(numticks=4))
    axis.minorticks_off()
    axis.grid(True, axis="y", color=palette.grid, lw=0.8)
    axis.set_axisbelow(True)
    axis.set_xlabel("confidence", color=palette.ink)


# --- distribution


def _draw_row(axis: Axes, row: int, values: NDArray[np.float64], palette: Palette) -> None:
    low, middle, high = np.percentile(values, [25, 50, 75])
    spread = 0.28 * _spread_out(len(values))
    axis.scatter(values, row + spread, s=20, color=palette.first, alpha=0.6, linewidths=0, zorder=2)
    axis.plot([low, high], [row, row], color=palette.ink, lw=5, solid_capstyle="butt", alpha=0.3, zorder=3)
    axis.plot([middle, middle], [row - 0.3, row + 0.3], color=palette.ink, lw=2, zorder=4)
    axis.grid(True, axis="x", color=palette.grid, lw=0.8)


def _spread_out(number: int) -> NDArray[np.float64]:
    """Shape (number,), -1 to 1, even and without pattern: the golden ratio's multiples."""
    return 2 * np.mod(np.arange(number) * 0.6180339887498949, 1.0) - 1


def _style(axis: Axes, palette: Palette) -> None:
    axis.set_facecolor("none")
    axis.tick_params(colors=palette.muted, labelcolor=palette.muted, labelsize=10, length=0)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(palette.grid)
