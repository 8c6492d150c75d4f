"""What a shadow makes of a study beside what was delivered of it; nothing of it is written or sent."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dicom_io.errors import DicomIoError
from dicom_io.reading.series import SeriesRef, files_below, survey_files
from monai_unet_app.data.schemas import json_of
from monai_unet_app.errors import AppError, InputRefusedError, without_folders
from monai_unet_app.service.child_processes import Message
from monai_unet_app.service.evidence_against import combined

if TYPE_CHECKING:
    from dicom_io.coding import Segment
    from dicom_io.segmentation import Segmentation
    from dicom_io.volume import Volume
    from monai_unet_app.service.site import Rule
    from monai_unet_app.service.work import Worker

_logger = logging.getLogger(__name__)

CPU = "processor"
"""Key of `seconds` in `result.json`: processor time of the segmentation, which does not count while a process stands still."""


@dataclass(frozen=True)
class _Side:
    """What one bundle made of a series.

    Attributes:
        fault: Why it made nothing; else empty.
        verdict: Of its quality gate.
        dice: The mean of what it predicts of its structures.
        seconds: Of the processor.
        sizes: Label of a structure -> mL or pixels.
        segmentation: The labels; None where they cannot be read again.
    """

    fault: str = ""
    verdict: str = ""
    dice: float | None = None
    seconds: float | None = None
    sizes: Mapping[str, float] = field(default_factory=dict)
    segmentation: "Segmentation | None" = None


def compared(worker: "Worker", message: Message) -> Message:
    """{"compared": rule -> the comparison, see `evidence_against.combined`} of a study.

    Args:
        worker: Segments by the bundles that the message names.
        message: "study": folder of its instances; "slots": rule -> slot of the bundle that segments it once more; "results":
            rule, series and folder of each that was delivered; no folder where it was not processed.
    """
    series, found = survey_files(files_below(Path(message["study"]))).series, {}
    for rule in worker.site.rules:
        folders = [(uid, folder) for name, uid, folder in message["results"] if name == rule.name and uid]
        pairs = [pair for uid, folder in folders if (pair := _pair(worker, rule, series, uid, folder))]
        if pairs:
            is_challenger = message["slots"][rule.name] == "challenger"
            found[rule.name] = combined([_comparison(*(pair if is_challenger else pair[::-1])) for pair in pairs])
    return {"compared": found}


def _pair(
    worker: "Worker", rule: "Rule", series: Sequence[SeriesRef], uid: str, folder: str
) -> tuple[_Side, _Side] | None:
    """What was delivered of a series, and what the other bundle makes of it; None where that is no matter of the bundles."""
    from monai_unet_app.result_files import result_document
    from monai_unet_app.service.work import read_picked

    delivered = _Side(fault="not processed")
    try:
        volume = read_picked(rule, uid, series)
        if folder:
            delivered = _delivered(Path(folder), volume, worker.bundles[rule.name].segments)
    except (AppError, DicomIoError) as error:  # images for no bundle, or files of the result that are lost
        _logger.warning("rule %s, series %s is not compared: %s", rule.name, uid, error)
        return None
    try:
        case = worker.segment(volume, rule)
    except (AppError, DicomIoError) as error:
        return delivered, _Side(fault=without_folders(str(error), worker.site.node.folder))
    made = {"bundle": {}, "settings": {}, "seconds": dict(case.seconds)}
    document = result_document("", made, case.segmentation, case.assessment, {})
    return delivered, _side(document, case.segmentation)


def _delivered(folder: Path, volume: "Volume", segments: "Sequence[Segment]") -> _Side:
    """A result that was written; with its labels where they were written."""
    from monai_unet_app.review.reviewed_case import labels_file, read_segmentation

    # Of a result that was written in several ways binary comes before fractional
    file = min(folder.rglob("*_result.json"), default=folder / "result.json")
    if not file.is_file():
        raise InputRefusedError(f"{folder.name} has no result.json")
    document = json_of(file)
    labels = labels_file(file, document)
    return _side(document, read_segmentation(labels, volume, document, segments) if labels else None)


def _side(document: Mapping[str, Any], segmentation: "Segmentation | None" = None) -> _Side:
    rows = document["structures"]
    dice = [row.get("predicted_dice", row.get("typical_dice")) for row in rows]
    return _Side(
        verdict=(document["assessment"] or {}).get("verdict") or "",
        dice=round(fmean(dice), 4) if dice and None not in dice else None,
        seconds=document["seconds"].get(CPU),
        sizes={row["label"]: row.get("volume_ml", row.get("pixels")) for row in rows},
        segmentation=segmentation,
    )


def _comparison(champion: _Side, challenger: _Side) -> dict[str, Any]:
    from monai_unet_app.metrics.overlap import dice

    agreement, both = None, (champion.segmentation, challenger.segmentation)
    if both[0] and both[1]:
        pairs = zip(both[0].structures, both[1].structures, strict=True)
        boxes = ((one, other, one.box_with(other)) for one, other in pairs)
        agreement = round(min(dice(one.mask_in(box), other.mask_in(box)) for one, other, box in boxes), 4)
    sides = (champion, challenger)
    whole = all(side.dice is not None for side in sides)
    return {
        "fault": [side.fault for side in sides],
        "verdict": [side.verdict for side in sides],
        "dice": [side.dice for side in sides] if whole else None,
        "seconds": [side.seconds for side in sides] if all(side.seconds for side in sides) else None,
        "agreement": agreement,
        "sizes": {label: [side.sizes.get(label) for side in sides] for label in champion.sizes or challenger.sizes},
    }
