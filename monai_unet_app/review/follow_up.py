"""DICOM objects that follow from a decision: a verified report, a corrected result, and a note that rejects earlier objects."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.coding import Segment, Whole
from dicom_io.kinds import FORMATS, RESULT_KINDS
from dicom_io.net.destination import Profile
from dicom_io.net.outgoing import prepare_files
from dicom_io.objects.identity import INCOMPLETE, ResultInfo
from dicom_io.objects.labels import Fractions
from dicom_io.objects.patient_and_study import transcribed
from dicom_io.objects.result_content import ReportFacts, ResultContent
from dicom_io.reading.instances import load_dataset
from dicom_io.rejection import Rejection, write_rejection_note
from dicom_io.seg import described_segments
from dicom_io.sr import Verification, write_verified_sr
from monai_unet_app.errors import refusing_as

from .correction import Correction
from .reviewed_case import named_file, read_result

ALL_FRAMES = "-all-frames"
"""Ending of the name of a folder whose SEG has a frame for every slice and segment."""


@dataclass(frozen=True)
class FollowUp:
    """The consequences of a decision.

    Attributes:
        verification: Name, organization, time and comment of the reviewer.
        accepted: True: the report is verified.
        correction: The corrected masks, from which the corrected objects are made; None without a correction.
        delivered: The result was sent, so that a rejection note is needed unless it is accepted.
        superseded: `result.json` files of earlier versions that were sent; the note names their objects too.
    """

    verification: Verification
    accepted: bool
    correction: Correction | None
    delivered: bool
    superseded: tuple[Path, ...] = ()


def write_follow_up(follow_up: FollowUp, result: Path, output: Path, name: str) -> dict[str, Path]:
    """Writes the objects that follow from a decision about a result, and gives the files by kind.

    "verified": the VERIFIED report. "corrected seg", "corrected sr" and so on: the same kinds of objects as the result has,
    made from the corrected masks. The corrected report has new measurements, is VERIFIED, and names the old report as its
    predecessor. "rejection": a Key Object Selection that rejects the objects of the result.

    Args:
        follow_up: The consequences of the decision.
        result: The `result.json`, beside its files.
        output: Gets the objects, `<name>_sr_verified.dcm`, `<name>_corrected_<kind>.dcm`, `<name>_rejection.dcm`.
        name: The beginning of the files' names.

    Raises:
        InputRefusedError: An object cannot be written; the message says why.
    """
    document, written = read_result(result), dict[str, Path]()
    output.mkdir(parents=True, exist_ok=True)
    with refusing_as(document["case"]):
        if follow_up.accepted and "sr" in document["files"]:
            report = named_file(result, document, "sr")
            written["verified"] = write_verified_sr(report, output / f"{name}_sr_verified.dcm", follow_up.verification)
        if follow_up.correction is not None:
            written |= _write_corrected(follow_up.correction, follow_up.verification, result, document, output / name)
        objects = _objects(result, document) if follow_up.delivered else []
        objects += [file for before in follow_up.superseded for file in _objects(before, read_result(before))]
        objects = list({instance_uid(file): file for file in reversed(objects)}.values())[::-1]  # each object once
        if not follow_up.accepted and objects:
            by = follow_up.verification
            rejection = Rejection(by.observer, by.organization, by.moment, by.comment)
            written["rejection"] = write_rejection_note(objects, output / f"{name}_rejection.dcm", rejection)
    return written


def _objects(result: Path, document: Mapping[str, Any]) -> list[Path]:
    """The DICOM files of a result."""
    named = [result.parent / str(document["files"][name]) for name in FORMATS if name in document["files"]]
    return [file for path in named for file in (sorted(path.rglob("*.dcm")) if path.is_dir() else [path])]


def instance_uid(file: Path) -> str:
    """SOPInstanceUID of a DICOM file."""
    return str(load_dataset(file).SOPInstanceUID)


def _write_corrected(
    correction: Correction, verification: Verification, result: Path, document: Mapping[str, Any], stem: Path
) -> dict[str, Path]:
    """Writes the kinds of objects that the result has from the corrected masks; none without a SEG and a DICOM source."""
    volume = correction.segmentation.image
    if "seg" not in document["files"] or volume.provenance.kind != "dicom":
        return {}
    # Objects refer to one series: the first of several channels
    volume = volume if volume.in_colour else volume.channel(0)
    before = named_file(result, document, "seg")
    kinds = [kind for kind in RESULT_KINDS if kind.from_labels and kind.format in document["files"]]
    paths = {kind.name: stem.with_name(f"{stem.name}_corrected_{kind.format}{kind.ending}") for kind in kinds}
    info, segmentation = _info(before, verification, document), correction.segmentation
    if segmentation.objects is not None:
        kind_of_objects = replace(info.segments[0], number=1, label=str(document["structures"][0]["label"]))
        segmentation = replace(segmentation, segments=(kind_of_objects,)).by_object()
        info = replace(info, segments=segmentation.segments)
    ((sent,), _) = prepare_files([before], Profile())
    earlier = named_file(result, document, "sr") if "SR" in paths else None
    content = ResultContent(
        volume.with_array(segmentation.label_volume.array),
        volume,
        info,
        paths,
        encoding=sent.encoding,  # type: ignore[arg-type]  # that of the SEG before, since its destination takes it
        empty_frames=before.parent.name.endswith(ALL_FRAMES),
        probabilities=lambda: Fractions(
            len(segmentation.structures),
            lambda n: volume.with_array(segmentation.structures[n].mask_on_grid.astype(np.float32)),
        ),
        report=ReportFacts(
            wholes_ml=dict.fromkeys(segmentation.wholes) or _wholes(document, info.segments), earlier=earlier
        ),
    )
    for kind in kinds:
        if kind.name == "SR":
            with tempfile.TemporaryDirectory(prefix=".part-", dir=stem.parent) as folder:
                # A report becomes VERIFIED by a new version; the unverified report is never sent and is removed
                unsent = Path(folder, "sr.dcm")
                kind.write_result(content, unsent)
                write_verified_sr(unsent, paths["SR"], verification, unsent=True)
        else:
            kind.write_result(content, paths[kind.name])
    return {f"corrected {kind.format}": paths[kind.name] for kind in kinds}


def _info(before: Path, verification: Verification, document: Mapping[str, Any]) -> ResultInfo:
    """The facts about a result that a person corrected; the segments are those of the SEG before."""
    header, bundle = load_dataset(before), document["bundle"]
    kind = f"CORRECTED, {INCOMPLETE}," if INCOMPLETE in str(header.get("SeriesDescription")) else "CORRECTED"
    return ResultInfo(
        segments=described_segments(before),
        algorithm_name=bundle["name"],
        algorithm_version=bundle["version"],
        bundle_sha256=bundle["sha256"],
        settings=(("corrected from", str(header.SOPInstanceUID)),),
        algorithm_type="SEMIAUTOMATIC",
        series_description=f"{kind} {bundle['name']}",
        quality="corrected by a reviewer",
        content_creator=transcribed(verification.observer, header),
    )


def _wholes(document: Mapping[str, Any], segments: tuple[Segment, ...]) -> dict[Whole, None]:
    """The wholes of the result, without intervals: those belong to the sizes that the model computed."""
    wholes = dict[Whole, None]()
    for row in document.get("wholes") or []:
        parts = [segment for segment in segments if segment.number in row["parts"]]
        first, regions = parts[0], {segment.anatomic_region for segment in parts}
        modifiers = {segment.anatomic_region_modifier for segment in parts}
        # The region of the parts holds for the whole only if all parts have the same
        region = first.anatomic_region if len(regions) == 1 else None
        modifier = first.anatomic_region_modifier if region is not None and len(modifiers) == 1 else None
        wholes[Whole(row["label"], tuple(row["parts"]), first.category, first.type, region, modifier)] = None
    return wholes
