"""Counts how often the statements of a bundle come true, on cases whose truth is known."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from monai_unet_app.metrics.missed import MissedVoxels

from .assessment import Assessment, StructureAssessment
from .conformal import observed_coverage
from .quality import GateVerdict

GOOD, BAD = 0.8, 0.6
"""True Dice above which a result should not be held back, and below which it should be held back."""

_VERDICTS: tuple[GateVerdict, ...] = get_args(GateVerdict)


@dataclass(frozen=True)
class StructureOutcome:
    """One structure of one result: what was stated of it, and what is true.

    Attributes:
        subject: The person that the case is of.
        stated: What was stated. Its verdict is that of the gate, and `review` at least for a structure that is cut off.
        case_verdict: The final verdict on the whole result; None without one.
        dice: The true Dice.
        size: True size, mL or pixels; None in a case with ignored voxels, which may hold more of the structure.
        missed: Part of the truth that the cautious mask misses; None without such a mask, or without truth.
        shifted: Whether the image was flagged; None without a detector.
    """

    subject: str
    stated: StructureAssessment
    case_verdict: GateVerdict | None
    dice: float
    size: float | None
    missed: float | None
    shifted: bool | None


@dataclass(frozen=True)
class WholeOutcome:
    """A whole in one result: what was stated of the size of its parts together, and what is true.

    Attributes:
        subject: The person that the case is of.
        name: The whole.
        size: True size, mL or pixels; None in a case with ignored voxels.
        interval: The stated interval, or None.
    """

    subject: str
    name: str
    size: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class StructureTruth:
    """What is true of one structure of one result; the attributes are those of `StructureOutcome`."""

    dice: float
    size: float | None
    missed: float | None


def audit_wholes(subject: str, assessment: Assessment, true: Sequence[StructureTruth]) -> list[WholeOutcome]:
    """Whether the statements about wholes came true in one case; arguments as of `audit_statements`."""
    return [
        WholeOutcome(
            subject, stated.whole.name, _total([true[n - 1].size for n in stated.whole.numbers]), stated.size_interval
        )
        for stated in assessment.wholes
    ]


def _total(sizes: Sequence[float | None]) -> float | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def audit_statements(subject: str, assessment: Assessment, true: Sequence[StructureTruth]) -> list[StructureOutcome]:
    """Whether the statements about the structures of one case came true.

    Args:
        subject: The person that the case is of.
        assessment: What was stated.
        true: What is true of each structure, in the order of their numbers.
    """
    shifted = assessment.is_shifted if assessment.confidence.shift else None
    return [
        StructureOutcome(subject, stated, assessment.verdict, truth.dice, truth.size, truth.missed, shifted)
        for stated, truth in zip(assessment.structures, true, strict=True)
    ]


def missed_voxels(assessment: Assessment, truth: NDArray[Any]) -> MissedVoxels:
    """Counts what the cautious masks miss, once it is given the probabilities; `missed_parts` takes it from there.

    Args:
        assessment: What was stated.
        truth: The reference, as `MissedVoxels` takes it.
    """
    return MissedVoxels(truth, len(assessment.structures), _thresholds(assessment))


def missed_parts(assessment: Assessment, missed: MissedVoxels) -> list[float | None]:
    """`StructureTruth.missed` of each structure, by what `missed_voxels` has counted."""
    risk, thresholds = assessment.confidence.risk, _thresholds(assessment)
    of_structures = [risk.thresholds.get(stated.number) if risk else None for stated in assessment.structures]
    return [
        None if cut is None or math.isnan(parts[0]) else float(parts[thresholds.index(cut)])
        for cut, parts in zip(of_structures, missed.parts, strict=True)
    ]


def _thresholds(assessment: Assessment) -> list[float]:
    """The thresholds of all cautious masks, rising, each once."""
    risk = assessment.confidence.risk
    return sorted({cut for cut in risk.thresholds.values() if cut is not None}) if risk else []


def summarise_statements(
    rows: Sequence[StructureOutcome],
    assessment: Assessment,
    labels: Mapping[int, str],
    wholes: Sequence[WholeOutcome] = (),
) -> dict[str, Any]:
    """How often the statements came true, ready for JSON: `statements` of metrics.json.

    Args:
        rows: The structures of all cases.
        assessment: Of any of the cases: what was promised.
        labels: Structure number -> its name.
        wholes: The wholes of all cases.
    """
    confidence = assessment.confidence
    summary: dict[str, Any] = {"not_stated": dict(confidence.why_not)}
    parts = [(name, [row for row in rows if row.stated.number == number]) for number, name in labels.items()]
    is_cautious = confidence.risk is not None and any(p is not None for p in confidence.risk.thresholds.values())
    if confidence.risk and not is_cautious:
        summary["not_stated"]["risk"] = f"no probability is low enough to miss {confidence.risk.risk:.0%} at most"
    if confidence.sizes:
        coverage = confidence.sizes.coverage
        summary["sizes"] = {
            name: _sizes([(row.subject, row.size, row.stated.size_interval) for row in part], coverage)
            for name, part in parts
        }
    if confidence.wholes:
        for name in dict.fromkeys(whole.name for whole in wholes):
            sizes = [(whole.subject, whole.size, whole.interval) for whole in wholes if whole.name == name]
            summary.setdefault("sizes", {})[name] = _sizes(sizes, confidence.wholes.coverage)
    if confidence.risk and is_cautious:
        summary["cautious"] = {name: {"risk": confidence.risk.risk, **_missed(part)} for name, part in parts}
    if confidence.gate:
        summary["gate"] = _gate(rows, confidence.gate.coverage)
    if confidence.shift:
        first = [row for row in rows if row.stated.number == rows[0].stated.number]  # every structure repeats the flag
        flags = [row.shifted for row in first if row.shifted is not None]
        wider = {"wider_intervals": confidence.elsewhere is not None} if confidence.sizes else {}
        summary["shift"] = {"flagged": sum(flags), "cases": len(flags), "limit": confidence.shift.limit, **wider}
    return summary


def risk_coverage(confidence: ArrayLike, loss: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean loss of the results that remain when only the most confident part is used.

    Args:
        confidence: Shape (N,). Higher is more confident; ties stay in their order.
        loss: Shape (N,), for instance 1 - Dice.

    Returns:
        Coverage 1/N to 1, and the mean loss (selective risk) at each, both of shape (N,).

    Source: Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017.
    """
    order = np.argsort(-np.asarray(confidence, dtype=np.float64), kind="stable")
    count = np.arange(1, len(order) + 1)
    return count / max(len(order), 1), np.cumsum(np.asarray(loss, dtype=np.float64)[order]) / count


def area_under_risk_coverage(confidence: ArrayLike, loss: ArrayLike) -> float:
    """AURC, 0 to 1: mean of the selective risk over all coverages; arguments (N,) as of `risk_coverage`; NaN if N is 0."""
    risk = risk_coverage(confidence, loss)[1]
    return float(risk.mean()) if risk.size else math.nan


def _sizes(sizes: Sequence[tuple[str, float | None, tuple[float, float] | None]], promised: float) -> dict[str, Any]:
    """How often intervals held the true sizes, and how wide they are; rows of (subject, true size, interval)."""
    stated = [(subject, size, *interval) for subject, size, interval in sizes if interval and size is not None]
    covered = [low <= size <= high for _, size, low, high in stated]
    # Half the width over the centre. An interval of 0 to 0, where nothing is expected, has no relative width.
    widths = [(high - low) / (high + low) for *_, low, high in stated if high]
    return {
        **asdict(observed_coverage(covered, [subject for subject, *_ in stated], promised)),
        "mean_half_width": float(np.mean(widths)) if widths else None,
    }


def _missed(rows: Sequence[StructureOutcome]) -> dict[str, Any]:
    missed = [row.missed for row in rows if row.missed is not None]
    return {"mean_missed": float(np.mean(missed)) if missed else None, "cases": len(missed)}


def _gate(rows: Sequence[StructureOutcome], promised: float) -> dict[str, Any]:
    graded = [(row, row.stated.grade) for row in rows if row.stated.grade is not None]
    verdicts = [row.stated.verdict for row, _ in graded]
    true = np.array([row.dice for row, _ in graded])
    predicted = np.array([grade.dice for _, grade in graded], dtype=np.float64)
    flagged = np.array([verdict != "accept" for verdict in verdicts], dtype=bool)
    coverage, risk = risk_coverage(predicted, 1 - true)
    bound = [row.dice >= grade.at_least for row, grade in graded]
    # A result has one verdict, which every structure repeats: it is counted with the first structure.
    cases = [row.case_verdict for row, _ in graded if row.stated.number == graded[0][0].stated.number]
    return {
        "verdicts": {word: verdicts.count(word) for word in _VERDICTS},
        "case_verdicts": {word: cases.count(word) for word in _VERDICTS},
        "spearman": _spearman(predicted, true),
        "bound": asdict(observed_coverage(bound, [row.subject for row, _ in graded], promised)),
        "flagged_of_bad": _share(flagged[true < BAD]),
        "held_of_good": _share(flagged[true > GOOD]),
        "aurc": area_under_risk_coverage(predicted, 1 - true) if graded else None,
        "risk_coverage": {"coverage": coverage.round(6).tolist(), "risk": risk.round(6).tolist()},
    }


def _spearman(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    """None where it is not defined: fewer than three results, or all alike."""
    if len(first) < 3 or not np.ptp(first) or not np.ptp(second):
        return None
    return float(stats.spearmanr(first, second)[0])


def _share(flags: NDArray[np.bool_]) -> dict[str, Any]:
    return {"share": float(flags.mean()) if flags.size else None, "results": int(flags.size)}
