"""Measures on subjects what an engine that computes in fewer bits does to results, and notes it beside the exports."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monai_unet_app.bundle import Bundle
from monai_unet_app.comparison.differences import compare
from monai_unet_app.comparison.release_gate import gate
from monai_unet_app.confidence.fitted_to import fitted_to
from monai_unet_app.confidence.statement_audit import Outcome
from monai_unet_app.confidence.statements import stated_key
from monai_unet_app.config import PredictConfig, ResultSettings
from monai_unet_app.data.schemas import write_json
from monai_unet_app.errors import UsageError
from monai_unet_app.evaluate import evaluate_cases
from monai_unet_app.evaluate.case_selection import LabelledCases
from monai_unet_app.export import begun_certificate
from monai_unet_app.inference.engines.certificate import PARITY, export_named

MARGINS = {"dice": 0.001, "boundary_iou": 0.002, "ece_whole": 0.0005, "ece_band": 0.003}
"""Score -> the largest loss that may not be excluded, means over cases, 95 % by subject."""

MOST_CHANGED = 0.05
"""The largest part of the cases in which a statement may differ."""


def certify(
    bundle: Bundle,
    data: LabelledCases,
    settings: ResultSettings,
    step: Callable[[str, float | None], None] = lambda case_id, dice: None,
) -> dict[str, Any]:
    """Segments every case by torch in float32 and with these settings, and writes what differs into `models/parity.json`.

    Args:
        bundle: In a folder, on the device of the engine.
        data: Cases that the bundle has not seen; what it states is valid for them.
        settings: Engine, precision and averages over mirror images.
        step: Called with the id and the mean Dice of every case, twice.

    Returns:
        The entry of the certificate, as the schema of parity.json describes it.

    Raises:
        UsageError: The settings are what results are compared with.
        InputRefusedError: No case could be measured.
        BundleError, UsageError: As `exported_engine`.
    """
    usual = ResultSettings(tta=settings.tta)
    if settings.precision == usual.precision:
        raise UsageError(
            f"{settings.engine} in {usual.precision} is held against torch whenever it is loaded; a certificate is for fewer "
            "bits; give --precision bfloat16 or int8"
        )
    bundle.engine(settings)
    with tempfile.TemporaryDirectory(prefix="monai-unet-certify-") as folder:
        sides = [Path(folder) / name for name in ("usual", "fewer_bits")]
        runs = PredictConfig(usual), PredictConfig(settings, certifying=True)
        done = [evaluate_cases(bundle, data, side, run=run, each=step) for side, run in zip(sides, runs, strict=True)]
        comparison = compare(*sides)
    outcome = gate(comparison, MARGINS, len({*done[0].problems, *done[1].problems}))
    changed = statements_changed(done[0].outcomes, done[1].outcomes)
    document = begun_certificate(bundle)
    entry = {
        "export_sha256": export_named(bundle, settings.engine, settings.precision),
        "fitted_to": fitted_to(bundle, stated_key(bundle, settings)),
        "data": comparison.as_dict()["first"]["data"],
        "cases": len(comparison.pairs.subjects),
        "subjects": comparison.subjects,
        **outcome.as_dict(),
        "changed": changed,
    }
    if max(changed.values(), default=0) > MOST_CHANGED * entry["cases"] and entry["outcome"] == "passed":
        entry |= {
            "outcome": "failed",
            "reason": f"statements differ in more than {MOST_CHANGED:.0%} of the cases: {_told(changed)}",
        }
    document["results"] = document.get("results", {}) | {
        f"{settings.engine} {settings.precision} {settings.key}": entry
    }
    write_json(document, bundle.root / PARITY, "parity", indent=None)
    return entry


def statements_changed(one: Mapping[str, Outcome], other: Mapping[str, Outcome]) -> dict[str, int]:
    """In how many cases differ: the verdict, the flag of an unlike image, whether an interval holds the true size."""
    changed = dict.fromkeys(("verdict", "flag", "interval"), 0)
    for case in one.keys() & other.keys():
        first, second = one[case], other[case]
        changed["verdict"] += first.assessment.verdict != second.assessment.verdict
        changed["flag"] += first.assessment.is_shifted != second.assessment.is_shifted
        changed["interval"] += _held(first) != _held(second)
    return changed


def _held(outcome: Outcome) -> list[bool | None]:
    """Of each structure, whether its interval holds its true size; None where either is unknown."""
    pairs = zip(outcome.assessment.structures, outcome.true, strict=True)
    return [
        None if stated.size_interval is None or true.size is None
        else stated.size_interval[0] <= true.size <= stated.size_interval[1]
        for stated, true in pairs
    ]  # fmt: skip


def _told(changed: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in changed.items())
