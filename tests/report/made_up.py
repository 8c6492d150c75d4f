"""Made-up reports whose figures are known from geometry, and made-up statements."""

from __future__ import annotations

from typing import Any

import numpy as np

from monai_unet_app.metrics.bootstrap import Bootstrap
from monai_unet_app.metrics.case_scores import CaseArrays
from monai_unet_app.metrics.plan import EvaluationPlan
from monai_unet_app.metrics.summary import Evaluation
from monai_unet_app.report.evaluation_report import CasePicture, EvaluationReport, MeasuredOn

ON = MeasuredOn("lobes_mri_unet3d", "1.2.0", "ab" * 32, "Phantoms", "cd" * 32, "test")
SPACING = (1.0, 1.5, 3.0)
INFERENCE: dict[str, Any] = {
    "parameters": 1_234_567,
    "weights_mb": 2.51,
    "device": "cpu",
    "seconds_per_image": 0.84,
    "seconds_per_litre": 31.4,
    "seam_difference": {"mean": 0.0123, "voxels": 4321, "places": 7},
}
STATEMENTS: dict[str, Any] = {
    "not_stated": {"shift": "the bundle names no feature_layer"},
    "sizes": {
        name: {"wanted": 0.9, "observed": observed, "interval": interval, "subjects": 20, "cases": 31, "mean_half_width": half}
        for name, observed, interval, half in (("Front", 0.95, [0.75, 1.0], 0.123), ("Back", 0.5, [0.3, 0.7], 0.2))
    },
    "cautious": {"Front": {"risk": 0.1, "mean_missed": 0.042, "cases": 31}},
    "gate": {
        "verdicts": {"accept": 28, "review": 6, "reject": 2},
        "case_verdicts": {"accept": 28, "review": 6, "reject": 2},
        "spearman": 0.71,
        "bound": {"wanted": 0.9, "observed": 0.85, "interval": [0.6, 0.97], "subjects": 20, "cases": 36},
        "flagged_of_bad": {"share": None, "results": 0},
        "held_of_good": {"share": 0.125, "results": 24},
        "aurc": 0.0815,
        "risk_coverage": {"coverage": [0.25, 0.5, 0.75, 1.0], "risk": [0.05, 0.06, 0.08, 0.12]},
    },
}  # fmt: skip


def boxes(*starts: tuple[int, int], length: int = 4) -> np.ndarray:
    """Label values of shape (30, 12, 6): for each (start along I, value) a box of length x 4 x 3 voxels."""
    labels = np.zeros((30, 12, 6), np.uint8)
    for start, value in starts:
        labels[start : start + length, 4:8, 2:5] = value
    return labels


def case_of(
    name: str, subject: str, truth: np.ndarray, predicted: np.ndarray, classes: int, sure: float = 0.9
) -> CaseArrays:
    """A case whose probabilities are `sure` of what was predicted."""
    rest = (1 - sure) / classes
    probabilities = np.where(np.arange(classes + 1).reshape(-1, 1, 1, 1) == predicted, sure, rest)
    return CaseArrays(name, subject, truth, predicted, probabilities, SPACING, 0.0045)


def report_of(
    cases: list[CaseArrays], plan: EvaluationPlan, picture: int | None = None, **more: Any
) -> EvaluationReport:
    """A report of these cases; `picture` is the index of the one that is shown as the worst."""
    evaluation = Evaluation(plan)
    for case in cases:
        evaluation.add(case)
    shown = []
    if picture is not None:
        case = cases[picture]
        shown = [CasePicture(case.case_id, "worst", case.truth.astype(float), case.truth, case.predicted, SPACING)]
    return EvaluationReport(evaluation, ON, pictures=shown, **{"how": Bootstrap(resamples=40)} | more)


def plain_report(classes: tuple[str, ...] = ("Front", "Back"), **more: Any) -> EvaluationReport:
    """Four cases of two subjects, predictions moved by 0, 1, 2 and 1 voxels."""
    plan = EvaluationPlan(classes)
    values = range(1, min(len(classes), 2) + 1)
    cases = []
    for n, shift in enumerate((0, 1, 2, 1)):
        truth, predicted = (boxes(*((5 + moved + 4 * value, value) for value in values)) for moved in (0, shift))
        cases.append(case_of(f"case_{n}", f"person_{n // 2}", truth, predicted, len(classes)))
    return report_of(cases, plan, picture=2, **more)
