"""What an archive has where it refuses an instance as a duplicate (0x0111): the same one, or another under its UID.

A result is fetched and compared with what was sent, where the archive lets it be fetched. Images, and what cannot be fetched,
are looked up: the instance must be found in the same study and series, and the study be of the same PatientID. An archive that
answers neither question cannot show that it has the instance, so the instance is not delivered.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom_io.errors import DicomIoError
from dicom_io.net.decompress import decompress
from dicom_io.net.outcome import Fetched, Outcome
from dicom_io.net.outgoing import Outgoing
from dicom_io.net.query import Query
from dicom_io.objects.patient_and_study import CARRIED_TAGS
from dicom_io.reading.instances import READ_ERRORS, load_dataset

_OWNER = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID")
_ISSUER = "IssuerOfPatientID"  # some archives drop it
_PIXELS = frozenset(map(Tag, ("PixelData", "FloatPixelData", "DoubleFloatPixelData")))
_OVERWRITTEN = frozenset(map(Tag, ("InstanceCreationDate", "InstanceCreationTime", "TimezoneOffsetFromUTC")))


class Archive:
    """What an archive answers about instances that it did not take; answers about series and studies are asked for once."""

    def __init__(self, find: Callable[[Query], Sequence[Dataset]], fetch: Callable[[Query, Path], Fetched]) -> None:
        self._find, self._fetch = find, fetch
        self._series: dict[str, set[str]] = {}
        self._patients: dict[str, set[str]] = {}

    def judged(self, item: Outgoing, outcome: Outcome) -> Outcome:
        """The outcome of a duplicate: "already there" if the archive has this very instance, else "refused" and why."""
        try:
            ours = load_dataset(item.file, with_pixels=True)
            found = self._copy(ours) if item.kind else None
            why, note = (_difference(ours, found), "") if found is not None else self._looked_up(ours)
        except (DicomIoError, *READ_ERRORS) as error:  # type: ignore[misc]
            told = str(error) if isinstance(error, DicomIoError) else type(error).__name__
            why, note = f"it could not be asked what that is ({told})", ""
        if why:
            return replace(outcome, state="refused", meaning=f"{outcome.meaning}, and {why}")
        told = "; ".join(filter(None, (outcome.note, note)))
        return replace(outcome, meaning=f"{outcome.meaning}, and it is this one", note=told)

    def _copy(self, ours: Dataset) -> Dataset | None:
        """What the archive has under the UIDs of an instance; None where it does not send it."""
        query = Query("image", str(ours.StudyInstanceUID), str(ours.SeriesInstanceUID), str(ours.SOPInstanceUID))
        with tempfile.TemporaryDirectory(prefix="duplicate-") as folder:
            try:
                fetched = self._fetch(query, Path(folder))
                found = [load_dataset(file, with_pixels=True) for file in fetched.files]
            except DicomIoError:
                return None
            return next((one for one in found if one.get("SOPInstanceUID") == ours.SOPInstanceUID), None)

    def _looked_up(self, ours: Dataset) -> tuple[str, str]:
        """(why an instance is not what the archive has, what the outcome says beside); the former empty if it is."""
        study, series = str(ours.StudyInstanceUID), str(ours.SeriesInstanceUID)
        if series not in self._series:
            answers = self._find(Query("image", study, series))
            self._series[series] = {str(one.get("SOPInstanceUID") or "") for one in answers}
        if str(ours.SOPInstanceUID) not in self._series[series]:
            return "it is not in this study and series: another instance has this UID", ""
        if study not in self._patients:
            answers = self._find(Query("study", study))
            self._patients[study] = {_text(one, "PatientID") for one in answers}
        if self._patients[study] != {_text(ours, "PatientID")}:
            return "its study is of another PatientID", ""
        return "", "found in its study and series, not compared"


def _difference(ours: Dataset, theirs: Dataset) -> str:
    """In what an archive's copy differs from what was sent; empty where in nothing that is ours.

    Patient and study, of which archives correct what they know better, count only in what says whose it is.
    """
    for keyword in (*_OWNER, *([_ISSUER] if _ISSUER in theirs else [])):
        if _text(ours, keyword) != _text(theirs, keyword):
            return f"its {keyword} is another one"
    skipped = CARRIED_TAGS | _PIXELS | _OVERWRITTEN
    for element in ours:
        if element.tag in skipped or element.tag.element == 0:
            continue
        value = theirs[element.tag].value if element.tag in theirs else None
        if element.value != value and not (_is_empty(element.value) and _is_empty(value)):
            return f"its {element.keyword or element.tag} is another one"
    if ours.file_meta.get("TransferSyntaxUID") == theirs.file_meta.get("TransferSyntaxUID"):
        same = all(ours.get(tag) == theirs.get(tag) for tag in _PIXELS)
        if same:
            return ""
    return "" if _pixels(ours) == _pixels(theirs) else "its pixels are others"


def _pixels(dataset: Dataset) -> bytes:
    """The pixels without compression and padding; empty where there are none."""
    tag = next((tag for tag in _PIXELS if tag in dataset), None)
    if tag is None:
        return b""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        decompress(dataset)  # type: ignore[arg-type]
    return bytes(dataset[tag].value).rstrip(b"\0")


def _is_empty(value: object) -> bool:
    return value is None or (hasattr(value, "__len__") and len(value) == 0)


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()
