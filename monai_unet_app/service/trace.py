"""From a DICOM result back to its origin: the bundle by its digest, its training and calibration, and the source series."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from dicom_io.errors import DicomIoError
from dicom_io.kinds import KIND
from dicom_io.reading.headers import referenced_series
from dicom_io.reading.instances import load_dataset
from dicom_io.sr import CLASSES, MeasurementGroup, read_sr
from monai_unet_app.bundle_folder import CALIBRATION_RECORD, BundleFiles, bundle_files, bundle_folders
from monai_unet_app.data.digest import file_sha256
from monai_unet_app.data.schemas import json_of
from monai_unet_app.errors import AppError, InputRefusedError
from monai_unet_app.service import audit

_SHA256 = re.compile(r"bundle sha256 (?P<digest>[0-9a-f]{64})")


def trace(path: Path, trail: Path | None = None) -> dict[str, Any]:
    """The origin of a SEG, SR or other result of this software, with the local records of the bundle that it names.

    Args:
        path: A DICOM file.
        trail: Audit trail of the node that made the result. Its digests are verified, and its lines about the study are added.

    Returns:
        "object" (class, UIDs), "made_by" (name, version, sha256, settings, quality), "sources" (image series -> number of
        instances), "segmentations" (UIDs of the SEGs that a report measured), "groups" (the measurements of a report),
        "groups_unread" (why the measurements of a report cannot be read, else None), "bundle" (None if no local bundle has this
        sha256; else sha256 of training data and recipe, commit and versions of the code that trained it, calibration report,
        figures), "audit".

    Raises:
        InputRefusedError: The file is no DICOM, or no result of this software; or the trail is broken.
    """
    try:
        header = load_dataset(path)
    except DicomIoError as error:
        raise InputRefusedError(str(error)) from error
    maker = _maker(header, path)
    groups, unread = _measurement_groups(header, path)
    references = referenced_series(header)
    return {
        "object": {
            "sop_class": header.SOPClassUID.name,
            "sop_instance_uid": str(header.SOPInstanceUID),
            "study_instance_uid": str(header.StudyInstanceUID),
            "predecessor": list(_predecessors(header)),
        },
        "made_by": maker,
        "sources": _sources(references),
        "segmentations": [
            str(instance.ReferencedSOPInstanceUID)
            for _, instances in references
            for instance in instances
            if _is_segmentation(instance)
        ],
        "groups": [_group_facts(group) for group in groups],
        "groups_unread": unread,
        "bundle": _local_bundle(maker["sha256"]),
        "audit": audit_lines(trail, str(header.StudyInstanceUID)) if trail else None,
    }


def _measurement_groups(header: Dataset, path: Path) -> tuple[Sequence[MeasurementGroup], str | None]:
    """The measurement groups of a report, and why they cannot be read; the rest of the file can be traced all the same."""
    try:
        return (read_sr(path).groups, None) if header.get("SOPClassUID") in CLASSES else ((), None)
    except DicomIoError as error:
        return (), str(error)


def _maker(header: Dataset, path: Path) -> dict[str, Any]:
    # The writers name the bundle in the Contributing Equipment Sequence (SOP Common Module, PS3.3 C.12.1).
    for item in header.get("ContributingEquipmentSequence") or []:
        description = str(item.get("ContributionDescription") or "")
        if match := _SHA256.match(description):
            settings = [part.strip() for part in description.split(";")[1:]]
            quality = [part.removeprefix("quality: ") for part in settings if part.startswith("quality:")]
            return {
                "name": str(item.get("ManufacturerModelName") or ""),
                "version": str(item.get("SoftwareVersions") or ""),
                "sha256": match["digest"],
                "settings": [part for part in settings if "=" in part and not part.startswith("quality:")],
                "quality": quality[0] if quality else None,
            }
    raise InputRefusedError(
        f"{path.name} names no bundle that made it; a SEG, SR or other object that monai-unet wrote is needed; check the file"
    )


def _group_facts(group: MeasurementGroup) -> dict[str, Any]:
    return {
        "tracking_id": group.tracking_id,
        "segments": [number for reference in group.segments for number in reference.segments],
        "measurements": [
            {
                "name": ", ".join(code.meaning for code in (row.name, row.derivation) if code is not None),
                "value": row.value,
                "unit": row.unit.value if row.unit is not None else None,
            }
            for row in group.measurements
        ],
    }


def _predecessors(header: Dataset) -> Iterator[str]:
    for study in header.get("PredecessorDocumentsSequence") or []:
        for series in study.get("ReferencedSeriesSequence") or []:
            for instance in series.get("ReferencedSOPSequence") or []:
                yield str(instance.ReferencedSOPInstanceUID)


def _sources(references: Sequence[tuple[str, Sequence[Dataset]]]) -> dict[str, int]:
    """Series of images -> number of referenced instances."""
    counts = {uid: sum(not _is_segmentation(instance) for instance in instances) for uid, instances in references}
    return {uid: count for uid, count in counts.items() if count}


def _is_segmentation(instance: Dataset) -> bool:
    return instance.get("ReferencedSOPClassUID") in KIND["SEG"].sop_classes


def _local_bundle(sha256: str) -> dict[str, Any] | None:
    from monai_unet_app.confidence.results_bundle import results_bundle  # it needs what the node does without

    for folder in bundle_folders().values():
        try:
            files = results_bundle(folder) or bundle_files(folder)
            if files.sha256 == sha256:
                return bundle_facts(files)
        except (AppError, OSError):
            continue  # a damaged bundle is not the one that made the result
    return None


def bundle_facts(files: BundleFiles) -> dict[str, Any]:
    run, report = _json(files.root / "models/run.json"), files.root / "models" / CALIBRATION_RECORD
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
        "calibration": _calibration_facts(report) if report.is_file() else None,
        "measured": {
            name: value
            for name, value in files.measured.items()
            if name.startswith("ece_") or name in ("dice", "subjects")
        },
    }


def _calibration_facts(report: Path) -> dict[str, Any]:
    """The calibration report of a bundle in short, with its sha256."""
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
        return dict(json_of(path))
    except (OSError, ValueError, TypeError):  # absent, or no JSON object
        return {}


def audit_lines(trail: Path, study: str) -> list[dict[str, Any]]:
    """The lines of a trail about a study. Raises InputRefusedError if the trail was tampered with."""
    audit.verify(trail)
    return [line for line in audit.entries(trail) if line.get("study") == study or study in (line.get("studies") or ())]
