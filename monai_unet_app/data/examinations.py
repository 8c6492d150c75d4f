"""Every DICOM series of a folder with its examination, and with the refusal of the case to which it belongs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dicom_io.errors import DicomIoError
from dicom_io.read import Examination, ReadOptions, examine
from dicom_io.reading.dicomdir import files_of_dicomdir, is_dicomdir
from dicom_io.reading.titles import SeriesTitle, title_of
from monai_unet_app.data.case_files import FILE_ENDINGS, CaseFiles
from monai_unet_app.data.read import has_ending


@dataclass(frozen=True)
class SeriesRow:
    """One series, or one broken file.

    Attributes:
        examination: The examination on its headers.
        case: Id of the case to which the series belongs; None if it belongs to no case.
        refusal: Why reading the case failed, or why the bundle refuses the case; empty for an accepted case.
    """

    examination: Examination
    case: str | None = None
    refusal: str = ""

    @property
    def outcome(self) -> str:
        """As `Examination.outcome`, but "refused" for readable headers if the pixels or the bundle refuse the case."""
        return "refused" if self._is_refused_later else self.examination.outcome

    @property
    def reason(self) -> str:
        """Why the series is refused, set aside or broken; for a readable series the tolerated deviations."""
        return self.refusal if self._is_refused_later else self.examination.reason

    @property
    def _is_refused_later(self) -> bool:
        return bool(self.refusal) and self.examination.outcome == "readable"

    @property
    def is_bad(self) -> bool:
        """Whether the series needs somebody's attention."""
        return self.outcome in ("refused", "broken")

    @cached_property
    def title(self) -> SeriesTitle:
        """The name that the scanner gave the series, without the patient's identity."""
        series = self.examination.series
        return title_of(series.instances[0]) if series and series.instances else SeriesTitle()

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        series, examination = self.examination.series, self.examination
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
            "shape": list(examination.shape) if examination.shape else None,
            "spacing_mm": [round(step, 4) for step in examination.spacing_mm] if examination.spacing_mm else None,
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
        if not data.is_file() or not is_dicomdir(data):
            return [SeriesRow(examination) for examination in examine(data, options)]
        # The whole folder is examined, because a DICOMDIR lists files and states no examination; other series are dropped
        listed = set(files_of_dicomdir(data))
        rows = [SeriesRow(examination) for examination in examine(data.parent, options)]
        return [row for row in rows if row.examination.series is None or listed & set(row.examination.series.files)]
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
    count = {case.id: sum(row.case == case.id for row in named) for case in cases}
    return [
        replace(row, refusal=refusals.get(row.case, "")) if row.case is not None and count[row.case] == 1 else row
        for row in named
    ]


def _case_of(row: SeriesRow, cases: Sequence[CaseFiles], requested: Sequence[str]) -> str | None:
    """The id of the case whose folder holds the series; the deepest such folder if there are several."""
    series = row.examination.series
    if series is None or not series.files or row.outcome not in ("readable", "refused"):
        return None
    if requested and series.series_instance_uid not in requested:
        return None
    first = series.files[0].absolute()
    holding = [case for case in cases if case.image.absolute() in (first, *first.parents)]
    return max(holding, key=lambda case: len(case.image.absolute().parts)).id if holding else None
