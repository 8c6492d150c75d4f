"""From a DICOM result back to what made it: the bundle by its digest, its training and calibration, and the source series."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from dicom_io.errors import DicomIoError
from dicom_io.kinds import KIND
from dicom_io.reading.instances import load_dataset
from dicom_io.sr import CLASSES, MeasurementGroup, read_sr
from monai_unet_app.bundle_folder import CALIBRATION_RECORD, BundleFiles, bundle_files, bundle_folders
from monai_unet_app.data.digest import file_sha256
from monai_unet_app.errors import AppError, InputRefusedError
from monai_unet_app.service import audit

_PROCESSING_EQUIPMENT = "109102"  # DCM
_SHA256 = re.compile(r"bundle sha256 (?P<digest>[0-9a-f]{64})")


def trace(path: Path, trail: Path | None = None) -> dict[str, Any]:
    """What a SEG, SR or other result of this software says of its making, and what is known here of the bundle it names.

    Args:
        path: A DICOM file.
        trail: Audit trail of the node that made it; its lines about the study are added, after the chain was followed.

    Returns:
        "object" (class, UIDs), "made_by" (name, version, sha256, settings, quality), "sources" (image series -> instances),
        "segmentations" (UIDs of the SEGs that a report measured), "groups" (what it measured of what), "bundle" (None if no
        bundle of this sha256 is here: sha256 of training data and recipe, commit and versions of the code that trained it,
        calibration report, figures), "audit".

    Raises:
        InputRefusedError: It is no DICOM, or none of ours; or the trail is broken.
    """
    try:
        header = load_dataset(path, with_pixels=False)
        groups = read_sr(path).groups if header.get("SOPClassUID") in CLASSES else ()
    except DicomIoError as error:
        raise InputRefusedError(str(error)) from error
    maker = _maker(header, path)
    digest = str(maker["sha256"])
    return {
        "object": {
            "sop_class": header.SOPClassUID.name,
            "sop_instance_uid": str(header.SOPInstanceUID),
            "study_instance_uid": str(header.StudyInstanceUID),
            "predecessor": [str(uid) for uid in _predecessors(header)],
        },
        "made_by": maker,
        "sources": _sources(header),
        "segmentations": [
            str(one.ReferencedSOPInstanceUID) for _, ones in _by_series(header) for one in ones if _is_segmentation(one)
        ],
        "groups": [_told_of(group) for group in groups],
        "bundle": _bundle_of(digest),
        "audit": _audit_lines(trail, str(header.StudyInstanceUID)) if trail else None,
    }


def _maker(header: Dataset, path: Path) -> dict[str, Any]:
    for item in header.get("ContributingEquipmentSequence") or []:
        said = str(item.get("ContributionDescription") or "")
        found = _SHA256.match(said)
        if found:
            rest = [part.strip() for part in said.split(";")[1:]]
            return {
                "name": str(item.get("ManufacturerModelName") or ""),
                "version": str(item.get("SoftwareVersions") or ""),
                "sha256": found["digest"],
                "settings": [part for part in rest if "=" in part and not part.startswith("quality:")],
                "quality": next((part.removeprefix("quality: ") for part in rest if part.startswith("quality:")), None),
            }
    raise InputRefusedError(
        f"{path.name} names no bundle that made it; a SEG, SR or other object that monai-unet wrote is needed; check the file"
    )


def _told_of(group: MeasurementGroup) -> dict[str, Any]:
    return {
        "tracking_id": group.tracking_id,
        "segments": [number for one in group.segments for number in one.segments],
        "measurements": [
            {
                "name": ", ".join(code.meaning for code in (one.name, one.derivation) if code is not None),
                "value": one.value,
                "unit": one.unit.value if one.unit is not None else None,
            }
            for one in group.measurements
        ],
    }


def _predecessors(header: Dataset) -> Iterable[str]:
    for study in header.get("PredecessorDocumentsSequence") or []:
        for series in study.get("ReferencedSeriesSequence") or []:
            for instance in series.get("ReferencedSOPSequence") or []:
                yield str(instance.ReferencedSOPInstanceUID)


def _sources(header: Dataset) -> dict[str, int]:
    """Series of images that it refers to -> instances of it."""
    counts = {series: [not _is_segmentation(one) for one in ones].count(True) for series, ones in _by_series(header)}
    return {series: count for series, count in counts.items() if count}


def _by_series(header: Dataset) -> Iterator[tuple[str, Sequence[Dataset]]]:
    """Every series that it refers to, with the instances that it names of it."""
    series = list(header.get("ReferencedSeriesSequence") or [])
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "StudiesContainingOtherReferencedInstancesSequence"):
        series += [one for study in header.get(keyword) or [] for one in study.get("ReferencedSeriesSequence") or []]
    for one in series:
        instances = one.get("ReferencedInstanceSequence") or one.get("ReferencedSOPSequence") or []
        yield str(one.get("SeriesInstanceUID") or ""), instances


def _is_segmentation(instance: Dataset) -> bool:
    return instance.get("ReferencedSOPClassUID") in KIND["SEG"].sop_classes


def _bundle_of(digest: str) -> dict[str, Any] | None:
    for folder in bundle_folders().values():
        try:
            files = bundle_files(folder)
            if files.sha256 == digest:
                return _record_of(files)
        except (AppError, OSError):
            continue  # a bundle that is damaged is not the one
    return None


def _record_of(files: BundleFiles) -> dict[str, Any]:
    run, report = _json(files.root / "models/run.json"), files.root / "models" / CALIBRATION_RECORD
    measured = files.metadata.get("eval_metrics") or {}
    return {
        "name": files.name,
        "version": files.version,
        "training_data_sha256": run.get("data_sha256"),
        "recipe_sha256": run.get("recipe_sha256"),
        "training_cases": sum(case.get("partition") == "train" for case in (run.get("cases") or {}).values()),
        "trained_by": [
            {name: session.get(name) for name in ("started", "git_commit", "versions", "device", "precision")}
            for session in run.get("sessions") or ()
        ],
        "calibration": _calibration_of(report) if report.is_file() else None,
        "measured": {
            name: measured[name] for name in measured if name.startswith("ece_") or name in ("dice", "subjects")
        },
    }


def _calibration_of(report: Path) -> dict[str, Any]:
    """What the report of a bundle's calibration says, and which file it is."""
    fit = _json(report)
    cases = fit.get("cases") or {}
    return {
        "file": f"models/{report.name}",
        "sha256": file_sha256(report),
        "cases": len(cases),
        "subjects": len({case.get("subject") for case in cases.values()}),
        **{name: fit.get(name) for name in ("parameters", "nll_before", "nll_after")},
    }


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _audit_lines(trail: Path, study: str) -> list[dict[str, Any]]:
    audit.verify(trail)
    return [line for line in audit.entries(trail) if line.get("study") == study or study in (line.get("studies") or ())]
