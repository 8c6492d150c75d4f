"""Checks whether an archive that refuses an instance as a duplicate (0x0111) really has this instance.

The archive may have another instance with the same UID. A result is fetched, if the archive allows it, and compared with the
sent instance. Images, and results that cannot be fetched, are looked up: the instance must be in the same study and series, and
the study must have the same PatientID. An archive that answers neither request cannot show that it has the instance, so the
instance is not delivered.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pydicom.dataset import Dataset, FileDataset
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
# An archive that writes an instance anew may state its own time here; the content is the same.
_OVERWRITTEN = frozenset(map(Tag, ("InstanceCreationDate", "InstanceCreationTime", "TimezoneOffsetFromUTC")))


class DuplicateCheck:
    """Asks an archive about instances that it refused as duplicates; each series and study is asked for once."""

    def __init__(self, find: Callable[[Query], Sequence[Dataset]], fetch: Callable[[Query, Path], Fetched]) -> None:
        self._find, self._fetch = find, fetch
        self._instances_of: dict[str, set[str]] = {}
        self._patients_of: dict[str, set[str]] = {}

    def resolve(self, item: Outgoing, outcome: Outcome) -> Outcome:
        """The outcome of a duplicate: "already there" if the archive has this very instance, else "refused" with the reason."""
        try:
            sent = load_dataset(item.file, with_pixels=True)
            # Images are only looked up: to fetch every image of a study would cost as much as to send it again.
            copy = self._copy(sent) if item.kind else None
            reason, note = (_difference(sent, copy), "") if copy is not None else self._look_up(sent)
        except (DicomIoError, *READ_ERRORS) as error:  # type: ignore[misc]
            problem = str(error) if isinstance(error, DicomIoError) else type(error).__name__
            reason, note = f"the archive could not be asked what it has ({problem})", ""
        if reason:
            return replace(outcome, state="refused", meaning=f"{outcome.meaning}, and {reason}")
        notes = "; ".join(filter(None, (outcome.note, note)))
        return replace(outcome, meaning=f"{outcome.meaning}, and it is this instance", note=notes)

    def _copy(self, sent: Dataset) -> FileDataset | None:
        """The archive's instance with the same UIDs; None if the archive does not send it."""
        query = Query("image", str(sent.StudyInstanceUID), str(sent.SeriesInstanceUID), str(sent.SOPInstanceUID))
        with tempfile.TemporaryDirectory(prefix="duplicate-") as folder:
            try:
                fetched = self._fetch(query, Path(folder))
                copies = [load_dataset(file, with_pixels=True) for file in fetched.files]
            # An archive that does not send the instance may still answer a query: then it is looked up.
            except DicomIoError:
                return None
            return next((copy for copy in copies if copy.get("SOPInstanceUID") == sent.SOPInstanceUID), None)

    def _look_up(self, sent: Dataset) -> tuple[str, str]:
        """(reason why the archive has another instance, or "" if it has the same; note for the outcome)."""
        study, series = str(sent.StudyInstanceUID), str(sent.SeriesInstanceUID)
        if series not in self._instances_of:
            answers = self._find(Query("image", study, series))
            self._instances_of[series] = {str(answer.get("SOPInstanceUID") or "") for answer in answers}
        if str(sent.SOPInstanceUID) not in self._instances_of[series]:
            return "it is not in this study and series: another instance has this UID", ""
        if study not in self._patients_of:
            answers = self._find(Query("study", study))
            self._patients_of[study] = {_text(answer, "PatientID") for answer in answers}
        if self._patients_of[study] != {_text(sent, "PatientID")}:
            return "its study has another PatientID", ""
        return "", "found in its study and series, not compared"


def _difference(sent: FileDataset, copy: FileDataset) -> str:
    """How an archive's copy differs from the instance that was sent; empty if they are equal.

    Archives may correct the attributes of patient and study. Of these only the identifiers of the owner are compared.
    """
    for keyword in (*_OWNER, *([_ISSUER] if _ISSUER in copy else [])):
        if _text(sent, keyword) != _text(copy, keyword):
            return f"its {keyword} differs"
    skipped = CARRIED_TAGS | _PIXELS | _OVERWRITTEN
    # Elements that only the copy has do not count: archives add elements of their own.
    for element in sent:
        # Group lengths (gggg,0000) are retired and depend on the encoding.
        if element.tag in skipped or element.tag.element == 0:
            continue
        other = copy.get(element.tag)
        # Archives drop empty attributes, or add them.
        is_empty = element.is_empty and (other is None or other.is_empty)
        if not is_empty and (other is None or element.value != other.value):
            return f"its {element.keyword or element.tag} differs"
    # Equal bytes in the same transfer syntax need no decoder, which may be absent for this syntax.
    same_syntax = sent.file_meta.get("TransferSyntaxUID") == copy.file_meta.get("TransferSyntaxUID")
    if same_syntax and all(sent.get(tag) == copy.get(tag) for tag in _PIXELS):
        return ""
    return "" if _pixels(sent) == _pixels(copy) else "its pixels differ"


def _pixels(dataset: FileDataset) -> bytes:
    """The pixels without compression and padding; empty if there are none."""
    tag = next((tag for tag in _PIXELS if tag in dataset), None)
    if tag is None:
        return b""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        decompress(dataset)
    # Writers pad a value of odd length to an even length (PS3.5 7.1.1). Rows and Columns, which were compared before,
    # set the true length, so all trailing zeros may go.
    return bytes(dataset[tag].value).rstrip(b"\0")


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()
