"""A small delivered result to review: an oblique DICOM series of a made-up patient, two blocks, and all files of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from phantoms import lopsided_array, lopsided_labels, oblique_affine, write_mr_series
from result_phantoms import RESULT

from dicom_io.read import read_series
from dicom_io.seg import write_seg
from dicom_io.sr import write_sr
from dicom_io.volume import Volume
from monai_unet_app.data.nifti import write_nifti

LABELS = ("Front part", "Back part")
VOXELS = (18, 8)  # of lopsided_labels


@dataclass(frozen=True)
class Delivered:
    """A result on disk, and what it was made from."""

    result: Path
    series: Path
    volume: Volume
    labels: Volume


def deliver(folder: Path, header: Mapping[str, object] | None = None, **changes: Any) -> Delivered:
    """Writes series, SEG, SR, labels, probabilities and `result.json`; `changes` go into the latter."""
    series = folder / "series"
    write_mr_series(series, lopsided_array(), oblique_affine(), header=header)
    volume = read_series(series)
    labels = volume.with_array(lopsided_labels())
    out = folder / "results"
    out.mkdir(parents=True)
    write_seg(labels, volume, out / "case_seg.dcm", RESULT)
    write_sr(labels, volume, out / "case_sr.dcm", RESULT, seg=out / "case_seg.dcm")
    write_nifti(labels.array, volume, out / "case_seg.nii.gz")
    write_nifti(probabilities_of(labels.array), volume, out / "case_prob.nii.gz")
    files = {
        "nifti": "case_seg.nii.gz",
        "probabilities": "case_prob.nii.gz",
        "seg": "case_seg.dcm",
        "sr": "case_sr.dcm",
    }
    document = result_document(volume, files) | changes
    (out / "case_result.json").write_text(json.dumps(document))
    return Delivered(out / "case_result.json", series, volume, labels)


def deliver_counted(folder: Path) -> Delivered:
    """A result whose label file numbers two objects: the blocks of `lopsided_labels`."""
    row = {
        "number": 1,
        "label": "Nucleus",
        "channel": 0,
        "voxels": 26,
        "volume_ml": 0.1,
        "mean_probability": 0.9,
        "objects": 2,
    }
    return deliver(folder, structures=[row], wholes=[])


def probabilities_of(labels: np.ndarray) -> np.ndarray:
    """Shape (I, J, K, 3): 0.9 for the label of each voxel, but all alike in slice 4."""
    chances = np.full((*labels.shape, 3), 0.05, np.float32)
    np.put_along_axis(chances, labels[..., None].astype(int), 0.9, axis=3)
    chances[:, :, 4] = 1 / 3
    return chances


def whole_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What both are parts of, with a narrower interval than theirs together."""
    volume = sum(row["volume_ml"] for row in rows)
    ends = [round(0.9 * volume, 5), round(1.2 * volume, 5)]
    return {
        "label": "Lobe",
        "parts": [1, 2],
        "voxels": sum(VOXELS),
        "volume_ml": round(volume, 5),
        "volume_interval_ml": ends,
    }


def result_document(volume: Volume, files: Mapping[str, str]) -> dict[str, Any]:
    """As `predict` writes it, with intervals and a gate."""
    rows = [
        {
            "number": n,
            "label": label,
            "channel": n,
            "voxels": voxels,
            "volume_ml": round(voxels * volume.voxel_ml, 5),
            "mean_probability": 0.9,
            "volume_interval_ml": [round(0.8 * voxels * volume.voxel_ml, 5), round(1.3 * voxels * volume.voxel_ml, 5)],
            "verdict": "review" if n == 2 else "accept",
            "predicted_dice": 0.81 if n == 2 else 0.93,
            "dice_at_least": 0.62 if n == 2 else 0.85,
        }
        for n, (label, voxels) in enumerate(zip(LABELS, VOXELS, strict=True), start=1)
    ]
    source = volume.provenance
    return {
        "schema_version": "1.0",
        "case": "case",
        "software": {"name": "monai-unet-app", "version": "0.1.0"},
        "bundle": {"name": "a_network", "version": "1.2.3", "sha256": RESULT.bundle_sha256},
        "settings": {"device": "cpu", "tta": False},
        "source": {
            "kind": source.kind,
            "modality": source.modality,
            "study_instance_uid": source.study_instance_uid,
            "series_instance_uid": source.series_instance_uid,
            "instances": len(source.sop_instance_uids),
            "shape": list(volume.shape),
            "spacing": [round(step, 6) for step in volume.spacing_mm],
            "unit": "mm",
            "notes": [],
        },
        "structures": rows,
        "wholes": [whole_of(rows)],
        "assessment": {
            "verdict": "review",
            "reasons": ["Back part: predicted Dice 0.81, at least 0.62"],
            "interval_coverage": 0.9,
            "dice_coverage": 0.9,
            "shift": 1.1,
            "shift_limit": 1.9,
            "not_stated": {},
        },
        "seconds": {},
        "files": dict(files),
    }


def decision_on(delivered: Delivered, decision: str, **changes: Any) -> dict[str, Any]:
    """What the page sends about this result."""
    labels = delivered.result.parent / "case_seg.nii.gz"
    return {
        "schema_version": "1.0",
        "case": "case",
        "result_sha256": hashlib.sha256(delivered.result.read_bytes()).hexdigest(),
        "labels_sha256": hashlib.sha256(labels.read_bytes()).hexdigest() if labels.exists() else None,
        "decision": decision,
        "comment": "",
        "decided_at": "2026-11-21T02:15:30.250Z",
        "draft": False,
    } | changes
