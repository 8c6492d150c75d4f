"""Counts how often the statements of a bundle come true, on cases whose truth is known."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dicom_io.coding import Whole
from monai_unet_app.metrics.missed import MissedVoxels

from .assessment import Assessment, StructureAssessment
from .conformal import observed_coverage
from .fine import rank_correlation
from .quality import GateVerdict
from .statements import Confidence

GOOD, BAD = 0.8, 0.6
"""True Dice above which a result should not be held back, and below which it should be held back."""

_VERDICTS: tuple[GateVerdict, ...] = get_args(GateVerdict)


@dataclass(frozen=True)
class StructureTruth:
    """What is true of one structure of one result.

    Attributes:
        dice: The true Dice.
        size: True size, mL or pixels; None in a case with ignored voxels, which may hold more of the structure.
        missed: Part of the truth that the cautious mask misses; None without such a mask, or without truth.
        objects: True number of objects; None where none are numbered.
    """

    dice: float
    size: float | None
    missed: float | None
    objects: int | None = None


@dataclass(frozen=True)
class Outcome:
    """One result: what was stated of it, and what is true.

    Attributes:
        subject: The person that the case is of.
        assessment: What was stated.
        true: What is true of each structure, in the order of their numbers.
    """

    subject: str
    assessment: Assessment
    true: Sequence[StructureTruth]

    def size_of(self, whole: Whole) -> float | None:
        """True size of the parts of a whole together, mL or pixels; None in a case with ignored voxels."""
        sizes = [size for number in whole.numbers if (size := self.true[number - 1].size) is not None]
        return sum(sizes) if len(sizes) == len(whole.numbers) else None


class Row(NamedTuple):
    """One structure of one result: the subject, what was stated, and what is true."""

    subject: str
    stated: StructureAssessment
    true: StructureTruth


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
    outcomes: Sequence[Outcome], confidence: Confidence, labels: Mapping[int, str]
) -> dict[str, Any]:
    """How often the statements came true, ready for JSON: `statements` of metrics.json.

    Args:
        outcomes: All cases.
        confidence: Of any of the cases: what was promised.
        labels: Structure number -> its name.
    """
    summary: dict[str, Any] = {"not_stated": dict(confidence.why_not)}
    rows = [
        Row(case.subject, *pair)
        for case in outcomes
        for pair in zip(case.assessment.structures, case.true, strict=True)
    ]
    parts = {name: [row for row in rows if row.stated.number == number] for number, name in labels.items()}
    is_cautious = confidence.risk is not None and any(p is not None for p in confidence.risk.thresholds.values())
    if confidence.risk and not is_cautious:
        summary["not_stated"]["risk"] = f"no probability is low enough to miss {confidence.risk.risk:.0%} at most"
    if confidence.sizes:
        coverage = confidence.sizes.coverage
        summary["sizes"] = {
            name: _sizes([(row.subject, row.true.size, row.stated.size_interval) for row in part], coverage)
            for name, part in parts.items()
        }
    if confidence.counts:
        coverage = confidence.counts.coverage
        summary["counts"] = {
            name: _sizes([(row.subject, row.true.objects, row.stated.count_interval) for row in part], coverage)
            for name, part in parts.items()
        }
    if confidence.wholes:
        wholes = [(case, stated) for case in outcomes for stated in case.assessment.wholes]
        for name in dict.fromkeys(stated.whole.name for _, stated in wholes):
            own = [(case, stated) for case, stated in wholes if stated.whole.name == name]
            sizes = [(case.subject, case.size_of(stated.whole), stated.size_interval) for case, stated in own]
            summary.setdefault("sizes", {})[name] = _sizes(sizes, confidence.wholes.coverage)
    if confidence.risk and is_cautious:
        summary["cautious"] = {name: {"risk": confidence.risk.risk, **_missed(part)} for name, part in parts.items()}
    if confidence.gate:
        verdicts = [case.assessment.verdict for case in outcomes]
        summary["gate"] = _gate(rows, verdicts, confidence.gate.coverage)
    if confidence.shift:
        flags = [case.assessment.is_shifted for case in outcomes]
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


def _missed(rows: Sequence[Row]) -> dict[str, Any]:
    missed = [row.true.missed for row in rows if row.true.missed is not None]
    return {"mean_missed": float(np.mean(missed)) if missed else None, "cases": len(missed)}


def _gate(rows: Sequence[Row], case_verdicts: list[GateVerdict | None], promised: float) -> dict[str, Any]:
    graded = [(row, grade) for row in rows if (grade := row.stated.grade) is not None]
    verdicts = [row.stated.verdict for row, _ in graded]
    dice = np.array([row.true.dice for row, _ in graded])
    predicted = np.array([grade.dice for _, grade in graded], dtype=np.float64)
    flagged = np.array([verdict != "accept" for verdict in verdicts], dtype=bool)
    coverage, risk = risk_coverage(predicted, 1 - dice)
    bound = [row.true.dice >= grade.at_least for row, grade in graded]
    return {
        "verdicts": {word: verdicts.count(word) for word in _VERDICTS},
        "case_verdicts": {word: case_verdicts.count(word) for word in _VERDICTS},
        "spearman": rank_correlation(predicted, dice),
        "bound": asdict(observed_coverage(bound, [row.subject for row, _ in graded], promised)),
        "flagged_of_bad": _share(flagged[dice < BAD]),
        "held_of_good": _share(flagged[dice > GOOD]),
        "aurc": float(risk.mean()) if graded else None,  # the area under the curve of risk and coverage
        "risk_coverage": {"coverage": coverage.round(6).tolist(), "risk": risk.round(6).tolist()},
    }


def _share(flags: NDArray[np.bool_]) -> dict[str, Any]:
    return {"share": float(flags.mean()) if flags.size else None, "results": int(flags.size)}
