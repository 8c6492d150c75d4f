"""The page about drift: for each rule what has changed since when, and how good its results are still."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dicom_io.files import write_whole
from monai_unet_app.lifecycle.drift import ALARM, Values
from monai_unet_app.lifecycle.expected_dice import COVERAGE
from monai_unet_app.lifecycle.watch import LAST, RuleWatch, quantities_of
from monai_unet_app.report.blocks import Block, Cell, Chart, Conclusion, Heading, Table, Text, Tiles, Title
from monai_unet_app.report.charts import Palette, style_axis
from monai_unet_app.report.html import page

_MOST_ROWS = 12


def write_drift_page(rules: Sequence[RuleWatch], path: Path) -> None:
    """Writes one self-contained HTML page; it names results by their numbers, and no study and no patient."""
    blocks: list[Block] = [Title("Drift"), _conclusion(rules)]
    for rule in rules:
        blocks += _blocks(rule)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page("Drift", blocks))


def _conclusion(rules: Sequence[RuleWatch]) -> Conclusion:
    drifted = [rule.rule for rule in rules if rule.state == "drift"]
    unwatched = [rule.rule for rule in rules if rule.state == "no reference"]
    if drifted:
        return Conclusion(f"{', '.join(drifted)}: what the node sees has changed.", "bad")
    if unwatched:
        return Conclusion(f"{', '.join(unwatched)}: no reference is frozen, so no drift can be found.")
    return Conclusion("Nothing has changed since the references were frozen.", "good")


def _blocks(rule: RuleWatch) -> list[Block]:
    blocks: list[Block] = [Heading(rule.rule), Text(rule.sentence[:1].upper() + rule.sentence[1:] + "."), _tiles(rule)]
    drift = rule.drift
    if drift is None:
        return [
            *blocks,
            Text("An approver freezes it: POST /rules/RULE/reference, see docs/how-to/life-cycle.md.", note=True),
        ]
    if len(drift.scores):
        caption = (
            f"An alarm is given where the score reaches {ALARM:g}. While nothing changes that happens at most once in "
            f"{ALARM:g} results on average, for all quantities together."
        )
        blocks.append(Chart(lambda palette: _score_figure(drift.scores, palette), "score of the drift test", caption))
    if drift.quantity:
        values = quantities_of(rule.seen)[drift.quantity]
        marks = (rule.reference, drift.since or 0)
        caption = (
            f"{drift.quantity} of each result; the first line ends the reference, the second is where drift began."
        )
        blocks.append(Chart(lambda palette: _quantity_figure(values, marks, palette), drift.quantity, caption))
    if drift.changes:
        rows = [
            (one.name, one.word or "median", f"{one.before:.3g}", f"{one.since:.3g}", f"{one.p:.1g}")
            for one in drift.changes
        ]
        head = ("since then different", "value", "before", "since", "by chance")
        blocks.append(Table(head, tuple(rows[:_MOST_ROWS]), words=2))
    if rule.windows:
        tests = [
            (
                one.name,
                Cell(f"{one.psi:.2f}", f"{one.psi_interval[0]:.2f} to {one.psi_interval[1]:.2f}"),
                f"{one.p:.2g}",
            )
            for one in rule.windows[:_MOST_ROWS]
        ]
        blocks.append(Table((f"last {LAST} results against the reference", "PSI", "p of one test"), tuple(tests)))
        note = f"{len(rule.windows)} quantities were tested; by chance one in a hundred has a p below 0.01."
        blocks.append(Text(note, note=True))
    return blocks


def _tiles(rule: RuleWatch) -> Tiles:
    score = f"{rule.drift.scores[-1]:.3g}" if rule.drift and len(rule.drift.scores) else "–"
    tiles = [
        ("results", str(len(rule.seen)), f"{rule.reference} of them the reference"),
        ("score", score, f"alarm at {ALARM:g}"),
    ]
    if dice := rule.expected:
        about = f"{dice.low:.2f} to {dice.high:.2f} ({COVERAGE:.0%}), {dice.reviewed} of {dice.results} reviewed"
        tiles.append(("expected Dice", f"{dice.mean:.2f}", about))
    return Tiles(tuple(tiles))


def _figure(palette: Palette) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.0, 2.6), layout="constrained")
    axis = figure.subplots()
    style_axis(axis, palette)
    axis.set_xlabel("result", color=palette.ink)
    return figure, axis


def _score_figure(scores: Sequence[float] | np.ndarray, palette: Palette) -> Figure:
    figure, axis = _figure(palette)
    axis.semilogy(np.arange(1, len(scores) + 1), np.maximum(scores, 0.1), color=palette.first, lw=1.6)
    axis.axhline(ALARM, color=palette.second, lw=1.2, ls="--")
    axis.set_ylabel("score", color=palette.ink)
    axis.set_xlabel("result after the reference", color=palette.ink)
    return figure


def _quantity_figure(values: Values, marks: Sequence[int], palette: Palette) -> Figure:
    figure, axis = _figure(palette)
    words = sorted({value for value in values if isinstance(value, str)})
    places = [
        (n, words.index(one) if isinstance(one, str) else one) for n, one in enumerate(values, 1) if one is not None
    ]
    axis.plot(*zip(*places, strict=True), color=palette.first, marker="o", ms=4, ls="")
    for mark in marks:
        axis.axvline(mark + 0.5, color=palette.second, lw=1.2, ls="--")
    if words:
        axis.set_yticks(range(len(words)), [word or "(none)" for word in words], color=palette.ink, parse_math=False)
    return figure
