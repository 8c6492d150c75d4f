"""A query of an archive, by C-FIND or QIDO-RS.

Source: PS3.4 C.6.2 (Study Root), PS3.18 10.6.
"""

import re
from dataclasses import dataclass, fields
from typing import Literal

from pydicom.dataset import Dataset

from dicom_io.errors import DicomIoError
from dicom_io.objects.encoding import data_set
from dicom_io.reading.headers import is_uid, shown

Level = Literal["study", "series", "image"]

RETURNED: dict[str, tuple[str, ...]] = {
    level: tuple(keywords.split())
    for level, keywords in {
        "study": "StudyInstanceUID StudyDate StudyTime AccessionNumber PatientID PatientName ModalitiesInStudy "
        "StudyDescription NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances",
        "series": "StudyInstanceUID SeriesInstanceUID Modality SeriesNumber SeriesDescription "
        "NumberOfSeriesRelatedInstances",
        "image": "StudyInstanceUID SeriesInstanceUID SOPInstanceUID SOPClassUID InstanceNumber",
    }.items()
}
"""The attributes that are requested at each level."""

_DATES = re.compile(r"\d{8}|\d{8}-|-\d{8}|\d{8}-\d{8}")  # PS3.4 C.2.2.2.5
UIDS = {
    "study_instance_uid": "StudyInstanceUID",
    "series_instance_uid": "SeriesInstanceUID",
    "sop_instance_uid": "SOPInstanceUID",
}
"""Attribute of a `Query` -> keyword, from the study down."""
_KEYWORDS = UIDS | {
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "accession_number": "AccessionNumber",
    "study_date": "StudyDate",
    "study_description": "StudyDescription",
}
ABOVE: dict[Level, tuple[str, ...]] = {
    "study": (),
    "series": ("study_instance_uid",),
    "image": ("study_instance_uid", "series_instance_uid"),
}
"""The UIDs above each level, which a query at that level needs."""


class QueryError(DicomIoError):
    """A query that an archive cannot answer."""


@dataclass(frozen=True)
class Query:
    """Conditions that must all hold; an empty attribute is no condition. `*` and `?` stand for any text, except in UIDs.

    Attributes:
        level: Level of the matches. "series" needs a study, "image" a study and a series.
        patient_id: This and the next two identify the patient; they are never repeated in a message.
        study_date: YYYYMMDD, or a range YYYYMMDD-YYYYMMDD, either end of which may be absent.
        modality: Modality of a series, at level "study" of any series of the study.
        limit: Most matches; 0: no limit.
    """

    level: Level = "study"
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    sop_instance_uid: str = ""
    patient_id: str = ""
    patient_name: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_description: str = ""
    modality: str = ""
    limit: int = 0

    def __post_init__(self) -> None:
        for name in UIDS:
            if getattr(self, name) and not is_uid(getattr(self, name)):
                raise QueryError(f"{name} is {getattr(self, name)!r}; a UID of digits and points is needed; correct it")
        study, series, instance = self.study_instance_uid, self.series_instance_uid, self.sop_instance_uid
        if (instance and not series) or (series and not study):
            raise QueryError(
                "an instance or series is named without its parents; the UIDs of its study and series are needed "
                "too; add what is missing, a query (find) shows it"
            )
        absent = [UIDS[name] for name in ABOVE[self.level] if not getattr(self, name)]
        if absent:
            raise QueryError(
                f"the query at level {self.level} has no {absent[0]}; it is needed; look at the level above first"
            )
        if self.study_date and not _DATES.fullmatch(self.study_date):
            raise QueryError(
                f"the study date is {shown(self.study_date)}; YYYYMMDD or a range YYYYMMDD-YYYYMMDD, either end of which may "
                "be absent, is needed; correct it"
            )

    @property
    def has_conditions(self) -> bool:
        """False if everything in the archive would match."""
        return any(getattr(self, field.name) for field in fields(self) if field.name not in ("level", "limit"))

    def conditions(self) -> dict[str, str]:
        """DICOM keyword -> wanted value."""
        conditions = {keyword: getattr(self, name) for name, keyword in _KEYWORDS.items() if getattr(self, name)}
        if self.modality:
            # Modality is a key of the series level; its counterpart at the study level is ModalitiesInStudy.
            conditions["ModalitiesInStudy" if self.level == "study" else "Modality"] = self.modality
        return conditions

    def identifier(self) -> Dataset:
        """The Identifier of a C-FIND: the conditions, and empty attributes for those to be returned (PS3.4 C.4.1.1.3)."""
        conditions = self.conditions()
        attributes = dict.fromkeys(RETURNED[self.level], "") | conditions
        identifier = data_set(QueryRetrieveLevel=self.level.upper(), **attributes)
        # Text beyond ASCII needs the name of its character set (PS3.4 C.4.1.1.3.1).
        if not all(value.isascii() for value in conditions.values()):
            identifier.SpecificCharacterSet = "ISO_IR 192"
        return identifier


def retrieve_identifier(query: Query) -> Dataset:
    """The Identifier of a C-MOVE or C-GET: the unique keys down to the lowest UID (PS3.4 C.4.2.1.4)."""
    keys = {keyword: value for keyword, value in query.conditions().items() if keyword in UIDS.values()}
    return data_set(QueryRetrieveLevel=retrieve_level(query).upper(), **keys)


def retrieve_level(query: Query) -> Level:
    """The level that the UIDs of a query name.

    Raises:
        QueryError: The query names no study.
    """
    if not query.study_instance_uid:
        raise QueryError("no study is named; its UID is needed to fetch; a query (find) shows it")
    return "image" if query.sop_instance_uid else "series" if query.series_instance_uid else "study"
