"""Every DICOM series of a place with its verdict, and what became of the case that it belongs to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dicom_io.errors import DicomIoError
from dicom_io.read import ReadOptions, Verdict, examine
from dicom_io.reading.dicomdir import files_of_dicomdir, is_dicomdir
from dicom_io.reading.titles import SeriesTitle, title_of
from monai_unet_app.data.cases import FILE_ENDINGS, CaseFiles
from monai_unet_app.data.read import has_ending


@dataclass(frozen=True)
class SeriesRow:
    """One series, or one broken file.

    Attributes:
        verdict: What its headers say.
        case: The case that it is read for; None for what belongs to no case.
        refusal: Why reading that case was refused, or the bundle refuses it; empty where it was not.
    """

    verdict: Verdict
    case: str | None = None
    refusal: str = ""

    @property
    def outcome(self) -> str:
        """As `Verdict.outcome`; "refused" also for what only its pixels, or a bundle, make unusable."""
        return "refused" if self.refusal and self.verdict.outcome == "readable" else self.verdict.outcome

    @property
    def reason(self) -> str:
        """Why it is refused, set aside or broken; what was tolerated in a readable one."""
        return self.refusal if self.refusal and self.verdict.outcome == "readable" else self.verdict.reason

    @property
    def is_bad(self) -> bool:
        """Whether somebody has to do something about it."""
        return self.outcome in ("refused", "broken")

    @cached_property
    def title(self) -> SeriesTitle:
        """How the scanner called the series; without what in it is of the patient."""
        series = self.verdict.series
        return title_of(series.instances[0]) if series and series.instances else SeriesTitle()

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        series, verdict = self.verdict.series, self.verdict
        return {
            "series_instance_uid": series.series_instance_uid if series else None,
            "series_number": self.title.number or None,
            "series_description": self.title.description or None,
            "protocol_name": self.title.protocol or None,
            "series_time": self.title.time or None,
            "modality": series.modality if series else None,
            "files": series.instance_count if series else 1,
            "outcome": self.outcome,
            "reason": self.reason,
            "shape": list(verdict.shape) if verdict.shape else None,
            "spacing_mm": [round(step, 4) for step in verdict.spacing_mm] if verdict.spacing_mm else None,
            "folder": os.path.commonpath([file.parent for file in series.files]) if series and series.files else None,
            "case": self.case,
        }


def dicom_verdicts(data: Path, options: ReadOptions) -> list[SeriesRow]:
    """One row for each DICOM series at `data`, however deep: what reading it would give, and why not; none without DICOM.

    Args:
        data: A folder, a file, or a DICOMDIR: then the series that it lists.
        options: How DICOM is read.
    """
    if not data.exists() or (data.is_file() and has_ending(data, FILE_ENDINGS)):
        return []
    try:
        if not data.is_file() or not is_dicomdir(data):
            return [SeriesRow(verdict) for verdict in examine(data, options)]
        listed = set(files_of_dicomdir(data))
        found = [SeriesRow(verdict) for verdict in examine(data.parent, options)]
        return [row for row in found if row.verdict.series is None or listed & set(row.verdict.series.files)]
    except DicomIoError:  # no DICOM in it, or an index that reading will refuse
        return []


def with_cases(
    rows: Sequence[SeriesRow], cases: Sequence[CaseFiles], refusals: Mapping[str, str], wanted: Sequence[str] = ()
) -> list[SeriesRow]:
    """The rows with their cases, and with the refusals of cases that are one series.

    Args:
        rows: As `dicom_verdicts` gives them.
        cases: As `find_images` gives them.
        refusals: What is wrong with a case, by its id.
        wanted: The series that the cases were searched for; empty: any.
    """
    named = [replace(row, case=_case_of(row, cases, wanted)) for row in rows]
    count = {case.id: sum(row.case == case.id for row in named) for case in cases}
    return [
        replace(row, refusal=refusals.get(row.case, "")) if row.case is not None and count[row.case] == 1 else row
        for row in named
    ]


def _case_of(row: SeriesRow, cases: Sequence[CaseFiles], wanted: Sequence[str]) -> str | None:
    """The case whose folder is the lowest that holds the series."""
    series = row.verdict.series
    if series is None or not series.files or row.outcome not in ("readable", "refused"):
        return None
    if wanted and series.series_instance_uid not in wanted:
        return None
    first = series.files[0].absolute()
    around = [case for case in cases if case.image.absolute() in (first, *first.parents)]
    return max(around, key=lambda case: len(case.image.absolute().parts)).id if around else None
