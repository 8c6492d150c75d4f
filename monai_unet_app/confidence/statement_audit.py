"""Did a bundle's statements come true? Counted on cases whose truth is known."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from dicom_io.segmentation import Segmentation
from monai_unet_app.metrics.overlap import dice

from .assessment import Assessment
from .conformal import Coverage, observed_coverage
from .quality import Verdict

GOOD, BAD = 0.8, 0.6
"""A result above the first should not be held back, one below the second should be."""


_VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class StructureOutcome:
    """One structure of one result with what was stated of it and what is true.

    Attributes:
        subject: Of whom.
        structure: Its number.
        dice: The true one.
        predicted_dice, at_least, verdict: What the gate said; None without one.
        size: True size, mL or pixels.
        interval: What was stated of it, or None.
        missed: Part of the truth that the cautious mask misses; None without such a mask, or without truth.
        shifted: Whether the image was flagged; None without a detector.
    """

    subject: str
    structure: int
    dice: float
    predicted_dice: float | None
    at_least: float | None
    verdict: str | None
    case_verdict: str | None
    size: float
    interval: tuple[float, float] | None
    missed: float | None
    shifted: bool | None


@dataclass(frozen=True)
class WholeOutcome:
    """Structures that are parts of one, in one result: what was stated of their size and what is true.

    Attributes:
        subject: Of whom.
        name: What they are parts of.
        size: Their true size together, mL or pixels.
        interval: What was stated of it, or None.
    """

    subject: str
    name: str
    size: float
    interval: tuple[float, float] | None


def audit_wholes(subject: str, assessment: Assessment, truth: Segmentation) -> list[WholeOutcome]:
    """Whether the statements about wholes came true in one case; arguments as of `audit_statements`."""
    sizes = [true.size for true in truth.structures]
    return [
        WholeOutcome(subject, stated.whole.name, sum(sizes[n - 1] for n in stated.whole.numbers), stated.size_interval)
        for stated in assessment.wholes
    ]


def audit_statements(
    subject: str, assessment: Assessment, segmentation: Segmentation, truth: Segmentation
) -> list[StructureOutcome]:
    """Whether the statements about the structures of one case came true.

    Args:
        subject: The person that the case is of.
        assessment: What was stated.
        segmentation: The result, with probabilities.
        truth: The reference, of the same image and segments.
    """
    stated, outcomes = assessment.confidence, []
    for said, structure, true in zip(assessment.structures, segmentation.structures, truth.structures, strict=True):
        cut = stated.risk.thresholds.get(said.number) if stated.risk else None
        inside = structure.probability_on_grid[true.box][true.mask]
        outcomes.append(
            StructureOutcome(
                subject=subject,
                structure=said.number,
                dice=dice(true.mask_on_grid, structure.mask_on_grid),
                predicted_dice=said.grade.dice if said.grade else None,
                at_least=said.grade.at_least if said.grade else None,
                verdict=said.verdict,
                case_verdict=assessment.verdict,
                size=true.size,
                interval=said.size_interval,
                missed=None if cut is None or not true.voxels else float(np.mean(inside < cut)),
                shifted=assessment.is_shifted if stated.shift else None,
            )
        )
    return outcomes


def summarise_statements(
    rows: Sequence[StructureOutcome],
    assessment: Assessment,
    labels: Mapping[int, str],
    wholes: Sequence[WholeOutcome] = (),
) -> dict[str, Any]:
    """How the statements fared, ready for JSON: `statements` of metrics.json.

    Args:
        rows: Of all cases.
        assessment: Of any of them: what was promised.
        labels: Structure number -> its name.
        wholes: Of all cases.
    """
    stated = assessment.confidence
    summary: dict[str, Any] = {"not_stated": dict(stated.why_not)}
    is_cautious = stated.risk is not None and any(cut is not None for cut in stated.risk.thresholds.values())
    if stated.risk and not is_cautious:
        summary["not_stated"]["risk"] = f"no probability is low enough to miss {stated.risk.risk:.0%} at most"
    if stated.sizes:
        summary["sizes"] = {name: _sizes(part, stated.sizes.coverage) for name, part in _parts(rows, labels)}
    if stated.wholes:
        for name in dict.fromkeys(row.name for row in wholes):
            own = [row for row in wholes if row.name == name]
            summary["sizes"][name] = _sizes(own, stated.wholes.coverage)
    if stated.risk and is_cautious:
        summary["cautious"] = {name: {"risk": stated.risk.risk, **_missed(part)} for name, part in _parts(rows, labels)}
    if stated.gate:
        summary["gate"] = _gate(rows, stated.gate.coverage)
    if stated.shift:
        flags = [row.shifted for row in rows if row.shifted is not None and row.structure == rows[0].structure]
        summary["shift"] = {"flagged": sum(flags), "cases": len(flags), "limit": stated.shift.limit}
    return summary


def risk_coverage(confidence: ArrayLike, loss: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean loss of the results kept, when only the surest part is kept.

    Args:
        confidence: Shape (N,). Higher is surer; equals stand in the order they come in.
        loss: Shape (N,), for instance 1 - Dice.

    Returns:
        Coverage 1/N to 1, and the mean loss (selective risk) at each, both of shape (N,).

    Source: Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017.
    """
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")
    kept = np.arange(1, len(order) + 1)
    return kept / max(len(order), 1), np.cumsum(np.asarray(loss, dtype=np.float64)[order]) / kept


def area_under_risk_coverage(confidence: ArrayLike, loss: ArrayLike) -> float:
    """AURC, 0 to 1: mean of the selective risk over all coverages; arguments (N,) as of `risk_coverage`; NaN if N is 0."""
    risk = risk_coverage(confidence, loss)[1]
    return float(risk.mean()) if risk.size else math.nan


def _parts(rows: Sequence[StructureOutcome], labels: Mapping[int, str]) -> list[tuple[str, list[StructureOutcome]]]:
    return [(name, [row for row in rows if row.structure == number]) for number, name in labels.items()]


def _sizes(rows: Sequence[StructureOutcome] | Sequence[WholeOutcome], wanted: float) -> dict[str, Any]:
    stated = [(row, *row.interval) for row in rows if row.interval]
    covered = [low <= row.size <= high for row, low, high in stated]
    widths = [(high - low) / (high + low) for _, low, high in stated if high]
    half = float(np.mean(widths)) if widths else None
    return {
        **_coverage(observed_coverage(covered, [row.subject for row, *_ in stated], wanted)),
        "mean_half_width": half,
    }


def _missed(rows: Sequence[StructureOutcome]) -> dict[str, Any]:
    found = [row.missed for row in rows if row.missed is not None]
    return {"mean_missed": float(np.mean(found)) if found else None, "cases": len(found)}


def _coverage(found: Coverage) -> dict[str, Any]:
    known = math.isfinite(found.observed)
    return {
        "wanted": found.wanted,
        "observed": found.observed if known else None,
        "interval": [found.low, found.high] if known else None,
        "subjects": found.subjects,
        "cases": found.cases,
    }


def _gate(rows: Sequence[StructureOutcome], wanted: float) -> dict[str, Any]:
    graded = [row for row in rows if row.predicted_dice is not None and row.at_least is not None]
    true = np.array([row.dice for row in graded])
    predicted = np.array([row.predicted_dice for row in graded], dtype=np.float64)
    flagged = np.array([row.verdict != "accept" for row in graded], dtype=bool)
    kept, risk = risk_coverage(predicted, 1 - true)
    bound = [row.dice >= (row.at_least or 0.0) for row in graded]
    cases = [row.case_verdict for row in graded if row.structure == graded[0].structure]
    return {
        "verdicts": {word: sum(row.verdict == word for row in graded) for word in _VERDICTS},
        "case_verdicts": {word: cases.count(word) for word in _VERDICTS},
        "spearman": _spearman(predicted, true),
        "bound": _coverage(observed_coverage(bound, [row.subject for row in graded], wanted)),
        "flagged_of_bad": _share(flagged[true < BAD]),
        "held_of_good": _share(flagged[true > GOOD]),
        "aurc": area_under_risk_coverage(predicted, 1 - true) if graded else None,
        "risk_coverage": {"coverage": kept.round(6).tolist(), "risk": risk.round(6).tolist()},
    }


def _spearman(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    """None where it is not defined: fewer than three results, or all alike."""
    if len(first) < 3 or not np.ptp(first) or not np.ptp(second):
        return None
    return float(stats.spearmanr(first, second)[0])


def _share(flags: NDArray[np.bool_]) -> dict[str, Any]:
    return {"share": float(flags.mean()) if flags.size else None, "results": int(flags.size)}
