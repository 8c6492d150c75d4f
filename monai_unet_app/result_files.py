"""The files of a result: how they appear all at once, and what `result.json` says of their image and of what is stated."""

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dicom_io.kinds import RESULT_KINDS
from dicom_io.objects.source_grid import second_opinion_note
from dicom_io.segmentation import Segmentation
from dicom_io.volume import Provenance, Volume
from monai_unet_app import __version__
from monai_unet_app.confidence.assessment import Assessment
from monai_unet_app.data.schemas import json_of

SCHEMA_VERSION = "1.0"


def publish(folder: Path, output: Path, case_id: str) -> None:
    """Moves the files of a case into the output, in place of all files of the same case that an earlier run left there."""
    record = output / f"{case_id}_result.json"
    # The order matters after a crash: the old record goes before the files that it names, and the new record comes
    # after its files
    stale = _named_by(record, case_id)
    record.unlink(missing_ok=True)
    for path in stale:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in sorted(folder.iterdir(), key=lambda path: path.name == record.name):
        target = output / path.name
        # os.replace cannot put a folder in place of one that holds files
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(path, target)


def _named_by(record: Path, case_id: str) -> list[Path]:
    """The files and folders of this case that an earlier `result.json` names, only those beside it."""
    try:
        files = json_of(record)["files"].values()
        tops = {Path(name).parts[0] for name in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):  # absent, or not one of ours
        return []
    # Only names that begin with this case's id: a foreign record must not make us delete other files
    return [record.parent / top for top in sorted(tops) if top.startswith(f"{case_id}_")]


def _source_document(image: Volume, files: Collection[str]) -> dict[str, Any]:
    """What `result.json` says of the image of a result, of which these formats were written."""
    source = image.provenance
    return {
        "kind": source.kind,
        "modality": source.modality,
        "study_instance_uid": source.study_instance_uid,
        "series_instance_uid": source.series_instance_uid,
        "instances": len(set(source.sop_instance_uids)),
        "shape": list(image.shape),
        "spacing": [round(step, 6) for step in image.spacing_mm],
        "unit": image.length_unit,
        "notes": [*source.notes, *_sizes_note(source, files), *_places_note(image, files)],
    }


ON_SLICES = tuple(kind for kind in RESULT_KINDS if kind.on_slices)
"""Kinds of objects that lie on the slices of their source, whatever grid the result was computed on."""


def _sizes_note(source: Provenance, files: Collection[str]) -> list[str]:
    """A note on which sizes belong to which grid, if some of the files lie on another grid than the others."""
    sliced = [kind.name for kind in ON_SLICES if kind.format in files]
    if not source.resampled or not sliced:
        return []
    return [
        f"sizes here and in the SR are of the resampled grid; {' and '.join(sliced)} lie on the original slices, where "
        "the volume of the structures may differ"
    ]


def _places_note(volume: Volume, files: Collection[str]) -> list[str]:
    """A note for DICOM objects that lie on slices, if ITK could not confirm the positions of these slices."""
    note = second_opinion_note(volume) if any(kind.format in files for kind in ON_SLICES) else None
    return [note] if note else []


def size_document(volume: Volume, voxels: int) -> dict[str, float]:
    """The size in millilitres; of a picture in pixels, and in mm² if its header has PixelSpacing."""
    if not volume.planar:
        return {"volume_ml": round(voxels * volume.voxel_ml, 5)}
    pixel_mm = volume.provenance.pixel_mm
    area = {"area_mm2": round(voxels * pixel_mm[0] * pixel_mm[1], 5)} if pixel_mm else {}
    return {"pixels": voxels, **area}


def _assessment_document(assessment: Assessment | None) -> dict[str, Any] | None:
    """The bundle's statements about the result as a whole, and why others are missing."""
    if assessment is None:
        return None
    stated = assessment.confidence
    fine = stated.gate.fine if stated.gate else None
    return {
        "verdict": assessment.verdict,
        "reasons": list(assessment.reasons),
        "interval_coverage": stated.sizes.coverage if stated.sizes else None,
        **({"interval_images": "elsewhere"} if stated.is_elsewhere else {}),
        "dice_coverage": stated.gate.coverage if stated.gate else None,
        **({"dice_rank_correlation": round(fine.rank_correlation, 4)} if fine and fine.features else {}),
        "shift": None if assessment.shift is None else round(assessment.shift, 4),
        "shift_limit": round(stated.shift.limit, 4) if stated.shift else None,
        "not_stated": dict(stated.why_not),
    }


def structure_rows(
    segmentation: Segmentation, assessment: Assessment | None, thresholds: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """A row for each structure: number (label value and SegmentNumber), name, voxels, size, mean probability, statements.

    Args:
        segmentation: The result.
        assessment: What is stated of it; None where nothing is.
        thresholds: At which probability each structure was cut, where that is not 0.5 for all.
    """
    cuts = dict(enumerate(thresholds, 1))
    return [
        {
            "number": structure.number,
            "label": structure.label,
            "channel": structure.channel,
            "voxels": structure.voxels,
            **size_document(segmentation.image, structure.voxels),
            **({"objects": count} if (count := structure.objects) is not None else {}),
            "mean_probability": _rounded(structure.confidence) if structure.evidence else None,
            **({"threshold": cut} if (cut := cuts.get(structure.number, 0.5)) != 0.5 else {}),
            **_stated_of(segmentation.image, assessment, structure.number),
        }
        for structure in segmentation.structures
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _whole_rows(segmentation: Segmentation, assessment: Assessment | None) -> list[dict[str, Any]]:
    """A row for each whole: its label, the numbers of its parts, and the size of the parts together with its interval."""
    structures, wholes = segmentation.structures, segmentation.wholes
    intervals = [whole.size_interval for whole in assessment.wholes] if assessment else [None] * len(wholes)
    rows = []
    for whole, interval in zip(wholes, intervals, strict=True):
        voxels = sum(structure.voxels for structure in structures if structure.number in whole.numbers)
        row = {"label": whole.label, "parts": list(whole.numbers), "voxels": voxels}
        image = segmentation.image
        rows.append(row | size_document(image, voxels) | _interval_document(image, interval))
    return rows


def result_document(
    case_id: str,
    made: Mapping[str, Any],
    segmentation: Segmentation,
    assessment: Assessment | None,
    files: Mapping[str, str],
    thresholds: Sequence[float] = (),
) -> dict[str, Any]:
    """The content of `result.json`. It has the UIDs of study and series, and nothing that identifies the patient.

    Args:
        case_id: The beginning of the files' names.
        made: "bundle", "settings" and "seconds": by what, how, and what took how long.
        segmentation: The result.
        assessment: What is stated of it; None where nothing is.
        files: Format -> name of the file.
        thresholds: As of `structure_rows`.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "case": case_id,
        "software": {"name": "monai-unet-app", "version": __version__},
        **made,
        "source": _source_document(segmentation.image, files),
        "structures": structure_rows(segmentation, assessment, thresholds),
        "wholes": _whole_rows(segmentation, assessment),
        "assessment": _assessment_document(assessment),
        "files": dict(files),
    }


def _interval_document(volume: Volume, ends: tuple[float, float] | None) -> dict[str, list[float]]:
    """An interval of a size; nothing where none is stated."""
    name = "pixels_interval" if volume.planar else "volume_interval_ml"
    return {name: [round(end, 5) for end in ends]} if ends else {}


def _stated_of(volume: Volume, assessment: Assessment | None, number: int) -> dict[str, Any]:
    """The bundle's statements about a structure: size interval, figures of the gate, sides where the image cuts it off."""
    if assessment is None:
        return {}
    structure = assessment.structures[number - 1]
    grade, cut = structure.grade, structure.cut
    return {
        **_interval_document(volume, structure.size_interval),
        **({"objects_interval": list(structure.count_interval)} if structure.count_interval else {}),
        **({"verdict": structure.verdict} if structure.verdict else {}),
        **({"predicted_dice" if grade.is_shown else "typical_dice": round(grade.dice, 4)} if grade else {}),
        **({"dice_at_least": round(grade.at_least, 4)} if grade else {}),
        **({"cut_off": list(cut.sides)} if cut else {}),
    }
