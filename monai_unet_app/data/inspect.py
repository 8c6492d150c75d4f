"""The fingerprint of a data set, and everything wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dicom_io.errors import DicomIoError
from dicom_io.read import ReadOptions, Verdict, examine
from dicom_io.volume import Volume
from monai_unet_app.data.cases import (
    FILE_ENDINGS,
    CaseFiles,
    case_id,
    find_cases,
    find_images,
    image_and_label_folders,
    subjects_of,
)
from monai_unet_app.data.labels import check_values, read_labels
from monai_unet_app.data.read import has_ending, read_volume
from monai_unet_app.data.rules import InputRules, check_rules
from monai_unet_app.errors import InputRefusedError

MOST_CLASSES = 30  # label values above are taken for numbers of objects
PERCENTILES = (0.5, 50.0, 99.5)


@dataclass(frozen=True)
class CaseFingerprint:
    """What one case looks like.

    Attributes:
        shape: Voxels along I, J, K.
        spacing_mm: Voxel spacing along I, J, K (1 for pictures, whose unit is the pixel).
        axes: Patient direction to which I, J, K point, as three letters of RLAPSI ("LPS"); "px" for pictures.
        channels: 1 for grey.
        modality: DICOM Modality or None.
        intensity: The 0.5th, 50th and 99.5th percentile.
        class_size: Size of each label value in mL (pixels for pictures); empty without a label.
        subject: Whose case it is, as in `subjects_of`.
    """

    id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    axes: str
    channels: int
    modality: str | None
    intensity: tuple[float, float, float]
    class_size: dict[int, float]
    subject: str


@dataclass(frozen=True)
class Fingerprint:
    """All cases that can be used, and what is wrong.

    Attributes:
        cases: One for each readable case.
        refused: Cases that cannot be used, one sentence each.
        odd: What may be right but should be looked at, one sentence each.
    """

    cases: tuple[CaseFingerprint, ...]
    refused: tuple[str, ...]
    odd: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything, the refused first."""
        return self.refused + self.odd

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON: the summary, the cases, the problems."""
        return {
            "summary": self.summary(),
            "cases": [asdict(case) for case in self.cases],
            "problems": list(self.problems),
        }

    def summary(self) -> dict[str, Any]:
        """Ranges over the cases; empty without a readable case."""
        if not self.cases:
            return {}
        volumes: dict[int, list[float]] = {}
        for case in self.cases:
            for value, size in case.class_size.items():
                volumes.setdefault(value, []).append(size)
        return {
            "cases": len(self.cases),
            "subjects": len({case.subject for case in self.cases}),
            "shape": _range([case.shape for case in self.cases]),
            "spacing_mm": _range([case.spacing_mm for case in self.cases]),
            "axes": dict(Counter(case.axes for case in self.cases)),
            "channels": dict(Counter(case.channels for case in self.cases)),
            "modality": dict(Counter(case.modality or "not said" for case in self.cases)),
            "intensity_p0.5_p50_p99.5": _range([case.intensity for case in self.cases]),
            "class_unit": "px" if all(case.axes == "px" for case in self.cases) else "mL",
            "class_size": {
                value: _range([[size] for size in sizes])
                for value, sizes in sorted(volumes.items())
                if value and value <= MOST_CLASSES
            },
        }


def find_to_inspect(
    data: Path, labels: Path | None = None, label_suffix: str = ""
) -> tuple[list[CaseFiles], list[str]]:
    """The cases of a folder, labelled or not, as far as they can be told, and labels without an image.

    Args:
        data: images/ and labels/ in a folder, a folder of images, DICOM, or one file.
        labels: Folder of labels, where they lie apart.
        label_suffix: As in `find_cases`.
    """
    images, labels = image_and_label_folders(data, labels)
    if labels is not None and not labels.is_dir() and not label_suffix:
        labels = None
    if labels is None and not label_suffix:
        found = find_images(images)
        return (find_cases(images, need_all=False) if any(case.label_objects for case in found) else found), []
    cases = find_cases(images, labels, label_suffix, need_all=False)
    used = {case.label for case in cases}
    lone = [file for file in sorted(labels.iterdir()) if file not in used and file.is_file()] if labels else []
    return cases, [f"label {case_id(file)} has no image; add it or move the label away" for file in lone]


def dicom_verdicts(data: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """One row for each DICOM series at `data`, however deep: what reading it would give, and why not; none without DICOM."""
    if not data.exists() or (data.is_file() and has_ending(data, FILE_ENDINGS)):
        return []
    try:
        return [_verdict_row(verdict) for verdict in examine(data, options)]
    except DicomIoError:  # no DICOM in it
        return []


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    series = verdict.series
    return {
        "series_instance_uid": series.series_instance_uid if series else None,
        "modality": series.modality if series else None,
        "files": series.instance_count if series else 1,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "shape": list(verdict.shape) if verdict.shape else None,
        "spacing_mm": [round(step, 4) for step in verdict.spacing_mm] if verdict.spacing_mm else None,
        "folder": str(series.files[0].parent) if series and series.files else None,
    }


def inspect_cases(
    cases: Sequence[CaseFiles],
    rules: InputRules | None = None,
    known: Iterable[int] | None = None,
    step: Callable[[str], None] = lambda case_id: None,
    options: ReadOptions | None = None,
) -> Fingerprint:
    """Reads every case once.

    Args:
        cases: Images, with or without labels.
        rules: A bundle's input rules; without them any readable image is fine.
        known: Label values that the bundle knows; None accepts any.
        step: Told each case's id when it has been read.
        options: How DICOM is read.
    """
    seen: list[CaseFingerprint] = []
    refused: list[str] = []
    labelled = any(case.label is not None for case in cases)
    subjects = subjects_of(cases)
    for case in cases:
        try:
            looks = _fingerprint(case, subjects[case.id], rules, known, options)
            if labelled and case.label is None:
                raise InputRefusedError(
                    "it has no label, other cases have; add one of the same name or move the image away"
                )
            seen.append(looks)
        except InputRefusedError as error:
            refused.append(f"{case.id}: {error}")
        step(case.id)
    return Fingerprint(tuple(seen), tuple(refused), tuple(_oddities(seen)))


def check_cases(rows: Sequence[Mapping[str, str]], bundle: Any) -> None:
    """Raises InputRefusedError listing every case that this bundle cannot be trained or measured on."""
    cases = [CaseFiles(row["id"], Path(row["image"]), Path(row["label"])) for row in rows]
    refused = inspect_cases(cases, bundle.rules, bundle.label_values).refused
    if refused:
        raise InputRefusedError(f"{len(refused)} of {len(cases)} case(s) cannot be used:\n  " + "\n  ".join(refused))


def _fingerprint(
    case: CaseFiles, subject: str, rules: InputRules | None, known: Iterable[int] | None, options: ReadOptions | None
) -> CaseFingerprint:
    volume = read_volume(case.image, options)
    if rules is not None:
        check_rules(volume, rules)
    elif (volume.array == volume.array.flat[0]).all():
        raise InputRefusedError(f"every voxel is {volume.array.flat[0]:g}, an image is needed; export it again")
    sizes: dict[int, float] = {}
    if case.label is not None:
        labels = read_labels(case.label, volume)
        if known is not None:
            check_values(labels, known, case.label.name)
        sizes = _class_sizes(labels)
    low, middle, high = (float(value) for value in np.percentile(volume.array, PERCENTILES))
    return CaseFingerprint(
        id=case.id,
        shape=volume.shape,
        spacing_mm=tuple(round(step, 4) for step in volume.spacing_mm),  # type: ignore[arg-type]
        axes=_axes(volume),
        channels=volume.array.shape[3] if volume.array.ndim == 4 else 1,
        modality=volume.provenance.modality,
        intensity=(low, middle, high),
        class_size=sizes,
        subject=subject,
    )


def _class_sizes(labels: Volume) -> dict[int, float]:
    values, counts = np.unique(labels.array.astype(int), return_counts=True)
    unit = 1.0 if labels.planar else labels.voxel_ml
    return {int(value): round(float(count) * unit, 4) for value, count in zip(values, counts, strict=True)}


def _axes(volume: Volume) -> str:
    if volume.planar:
        return "px"
    from nibabel.orientations import aff2axcodes

    return "".join(aff2axcodes(volume.affine_ras))


def _oddities(cases: Sequence[CaseFingerprint]) -> list[str]:
    """What may be right but should be looked at: spacing or class volumes far from the other cases'."""
    found = [f"look at {case.id}: its label is empty" for case in cases if set(case.class_size) == {0}]
    most = max((max(case.class_size, default=0) for case in cases), default=0)
    if most > MOST_CLASSES:
        found.append(
            f"look at the labels: their values go up to {most}, as those of counted objects do and classes do not"
        )
    if len(cases) < 4 or most > MOST_CLASSES:
        return found
    for value in sorted({value for case in cases for value in case.class_size if value}):
        sizes = {case.id: case.class_size.get(value, 0.0) for case in cases if case.class_size}
        middle = float(np.median(list(sizes.values())))
        found += [
            f"look at {name}: class {value} is {size:.4g}, the median of all cases {middle:.4g}"
            for name, size in sizes.items()
            if middle and not middle / 4 <= size <= middle * 4
        ]
    return found


def _range(rows: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    table = np.array(rows, dtype=float)
    return {
        "least": np.round(table.min(axis=0), 4).tolist(),
        "median": np.round(np.median(table, axis=0), 4).tolist(),
        "most": np.round(table.max(axis=0), 4).tolist(),
    }
