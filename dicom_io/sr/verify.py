"""The verified version of a report, with the name and the comment of the person who verified it."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicom_io import proof
from dicom_io.errors import LabelError
from dicom_io.objects import identity
from dicom_io.objects.encoding import data_set
from dicom_io.objects.functional_groups import reference
from dicom_io.objects.odd_headers import refusing_odd_headers
from dicom_io.objects.patient_and_study import can_hold, transcribed
from dicom_io.reading.headers import is_person_name
from dicom_io.sr.proof import prove_verified
from dicom_io.sr.write import load_report

LONGEST_NAME = 64  # PN, LO: PS3.5 6.2


@dataclass(frozen=True)
class Verification:
    """The person who verified a report, with organization, moment and comment.

    Attributes:
        observer: The person's name as DICOM has it, Family^Given^Middle^Prefix^Suffix; 1 to 64 characters.
        organization: The organization that the person answers for; 1 to 64 characters.
        moment: The moment of the verification, with a time zone.
        comment: A comment on the result; may be empty.

    Raises:
        LabelError: A name is empty, too long or of several lines, the observer's name is not that of a person, or the
            moment has no time zone.
    """

    observer: str
    organization: str
    moment: datetime
    comment: str = ""

    def __post_init__(self) -> None:
        for field in ("observer", "organization"):
            name = getattr(self, field)
            if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable() or "\\" in name:
                raise LabelError(
                    f"the {field} of a verification has {len(name)} characters; 1 to {LONGEST_NAME} printable ones without a "
                    "backslash are needed, because a verified report names the responsible person; give the name"
                )
        if not is_person_name(self.observer):
            raise LabelError(
                "the observer of a verification has no person's name; Family^Given is needed, because a person is "
                "responsible for a "
                "verified report; give the name in the form of DICOM"
            )
        if self.moment.utcoffset() is None:
            raise LabelError("the moment of a verification has no time zone; one is needed; give it, or use UTC")


@refusing_odd_headers
def write_verified_sr(report: Path, path: Path, verification: Verification, *, unsent: bool = False) -> Path:
    """Write a new version of a report: VERIFIED and FINAL, with person, moment and comment; everything else stays as it was.

    The new version is in a series of its own, so that lists of series tell it from the unverified report: the description of
    the series begins with VERIFIED, and its number is BY_A_PERSON higher.

    Args:
        report: From `write_sr`, or any other complete Comprehensive 3D SR that is not verified. It stays as it is.
        path: Target file, replaced if it exists.
        verification: The person and the comment. Letters of the comment that the report's character set does not have are
            written without their marks, or as question marks.
        unsent: The report was never sent. The verified version then does not name it, but names its predecessors.

    Returns:
        `path`. The new version names the old version as its predecessor, unless `unsent`. The same report and verification give
        the same bytes.

    Raises:
        LabelError: The report is of another class, incomplete or verified already, or its character set cannot hold a name.
        UnreadableFileError: The report cannot be read.
        GeometryProofError: The written file differs in more than verification changes; no file is left.
    """
    document = load_report(report)
    _check_verifiable(document, report)
    predecessors = list(document.get("PredecessorDocumentsSequence") or []) if unsent else [_predecessor_item(document)]
    observer = data_set(
        VerifyingObserverName=_as_text(verification.observer, document),
        VerifyingOrganization=_as_text(verification.organization, document),
        # DT with the offset from UTC (PS3.5 6.2).
        VerificationDateTime=verification.moment.strftime("%Y%m%d%H%M%S%z"),
        VerifyingObserverIdentificationCodeSequence=[],  # Type 2, PS3.3 C.17.2
    )
    facts = (
        str(observer[tag].value) for tag in ("VerifyingObserverName", "VerifyingOrganization", "VerificationDateTime")
    )
    comment = [transcribed(verification.comment, document)] if verification.comment.strip() else []
    # Other content is another instance; the same verification of the same report is the same instance.
    document.SOPInstanceUID = identity.derived_uid("SR", "verified", str(document.SOPInstanceUID), *facts, *comment)
    document.SeriesInstanceUID = identity.derived_uid("SR", "verified series", str(document.SeriesInstanceUID))
    document.SeriesNumber = _verified_number(document)
    document.SeriesDescription = _verified_description(document)
    for text in comment:
        document.ContentSequence.append(_comment(text, transcribed(verification.observer, document)))
    document.file_meta.MediaStorageSOPInstanceUID = document.SOPInstanceUID
    document.InstanceNumber = int(document.get("InstanceNumber") or 0) + 1
    document.VerificationFlag, document.PreliminaryFlag = "VERIFIED", "FINAL"
    document.VerifyingObserverSequence = [observer]
    if predecessors:
        document.PredecessorDocumentsSequence = predecessors
    return proof.save_proved(document, path, lambda file: prove_verified(file, report, comment))


def _verified_number(document: Dataset) -> int:
    """BY_A_PERSON higher than the report's own number, unless this is a corrected report, which has BY_A_PERSON already."""
    number = int(document.get("SeriesNumber") or 0)
    return number + (0 if number >= identity.BY_A_PERSON else identity.BY_A_PERSON)


def _verified_description(document: Dataset) -> str:
    """VERIFIED and the report's description, cut in the middle so that its end ("7 images, SR RESEARCH") stays."""
    description = str(document.get("SeriesDescription") or "SR")
    head, comma, tail = description.partition(", ")
    room = LONGEST_NAME - len("VERIFIED ") - len(comma + tail)
    return f"VERIFIED {head[: max(room, 0)]}{comma}{tail}"[:LONGEST_NAME]


def _comment(text: str, name: str) -> Dataset:
    """A comment and its author, because the author of the rest of the report is a device."""
    item = hd.sr.TextContentItem(codes.DCM.Comment, text, hd.sr.RelationshipTypeValues.CONTAINS)
    person = hd.sr.PersonObserverIdentifyingAttributes(name=name)
    item.ContentSequence = hd.sr.ContentSequence(hd.sr.ObserverContext(codes.DCM.Person, person))
    return item


def _check_verifiable(document: Dataset, report: Path) -> None:
    flags = document.get("CompletionFlag"), document.get("VerificationFlag")
    if flags != ("COMPLETE", "UNVERIFIED"):
        raise LabelError(
            f"the report {report.name} is {flags[0]} and {flags[1]}; one that is COMPLETE and UNVERIFIED is needed to be "
            "verified; take the report that the software wrote"
        )


def _as_text(name: str, document: Dataset) -> str:
    """The name, if the report's character set can hold it; pydicom would write question marks for other letters."""
    if not can_hold(name, document):
        raise LabelError(
            f"a name of the verification has characters that the report's character set "
            f"({document.get('SpecificCharacterSet') or 'ASCII'}) does not hold; one in its letters is needed; transcribe it"
        )
    return name


def _predecessor_item(document: Dataset) -> Dataset:
    """The report itself, as an item of PredecessorDocumentsSequence (PS3.3 table C.17-3)."""
    instance = reference(document.SOPClassUID, document.SOPInstanceUID)
    series = data_set(SeriesInstanceUID=document.SeriesInstanceUID, ReferencedSOPSequence=[instance])
    return data_set(StudyInstanceUID=document.StudyInstanceUID, ReferencedSeriesSequence=[series])
