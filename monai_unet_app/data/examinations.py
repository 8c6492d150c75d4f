"""Every DICOM series of a folder with its examination, and with the refusal of the case to which it belongs."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dicom_io.errors import DicomIoError
from dicom_io.read import Examination, ReadOptions, examine
from dicom_io.reading.dicomdir import files_of_dicomdir, is_dicomdir
from dicom_io.reading.titles import SeriesTitle, title_of
from monai_unet_app.data.case_files import CaseFiles
from monai_unet_app.data.read import FILE_ENDINGS, has_ending


@dataclass(frozen=True)
class SeriesRow(Examination):
    """One series, or one broken file, with the examination on its headers.

    Attributes:
        outcome: As of `Examination`, but "refused" for readable headers if the pixels or the bundle refuse the case.
        reason: As of `Examination`; then why reading the case failed, or why the bundle refuses it.
        case: Id of the case to which the series belongs; None if it belongs to no case.
    """

    case: str | None = None

    @property
    def is_bad(self) -> bool:
        """Whether the series needs somebody's attention."""
        return self.outcome in ("refused", "broken")

    @cached_property
    def title(self) -> SeriesTitle:
        """The name that the scanner gave the series, without the patient's identity."""
        series = self.series
        return title_of(series.instances[0]) if series and series.instances else SeriesTitle()

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        series = self.series
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
            "shape": list(self.shape) if self.shape else None,
            "spacing_mm": [round(step, 4) for step in self.spacing_mm] if self.spacing_mm else None,
            "folder": os.path.commonpath([file.parent for file in series.files]) if series and series.files else None,
            "case": self.case,
        }


def dicom_series(data: Path, options: ReadOptions) -> list[SeriesRow]:
    """One row for each DICOM series at any depth below `data`, with the outcome of reading it; no rows without DICOM.

    Args:
        data: A folder, a file, or a DICOMDIR, which gives the series that it lists.
        options: How DICOM is read.
    """
    if not data.exists() or (data.is_file() and has_ending(data, FILE_ENDINGS)):
        return []
    try:
        # The whole folder is examined, because a DICOMDIR lists files and states no examination; other series are dropped
        listed = set(files_of_dicomdir(data)) if data.is_file() and is_dicomdir(data) else None
        rows = [SeriesRow(**vars(row)) for row in examine(data if listed is None else data.parent, options)]
        return [row for row in rows if listed is None or row.series is None or listed & set(row.series.files)]
    except DicomIoError:  # no DICOM, or a DICOMDIR that reading will refuse
        return []


def with_cases(
    rows: Sequence[SeriesRow], cases: Sequence[CaseFiles], refusals: Mapping[str, str], requested: Sequence[str] = ()
) -> list[SeriesRow]:
    """The rows with their cases, and with the refusal of each case that consists of one series.

    Args:
        rows: From `dicom_series`.
        cases: From `find_images`.
        refusals: Why a case is refused, by its id.
        requested: UIDs of the requested series; empty for any series.
    """
    named = [replace(row, case=_case_of(row, cases, requested)) for row in rows]
    # Of several series in a case it is not known which of them the refusal is about
    count = Counter(row.case for row in named)
    return [
        replace(row, outcome="refused", reason=refusals[row.case])
        if row.outcome == "readable" and row.case and row.case in refusals and count[row.case] == 1
        else row
        for row in named
    ]


def _case_of(row: SeriesRow, cases: Sequence[CaseFiles], requested: Sequence[str]) -> str | None:
    """The id of the case whose folder holds the series; the deepest such folder if there are several."""
    series = row.series
    if series is None or not series.files or row.outcome not in ("readable", "refused"):
        return None
    if requested and series.series_instance_uid not in requested:
        return None
    first = series.files[0].absolute()
    holding = [case for case in cases if case.image.absolute() in (first, *first.parents)]
    return max(holding, key=lambda case: len(case.image.absolute().parts)).id if holding else None
