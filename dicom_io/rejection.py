"""A Key Object Selection that says that results are not to be used: the rejection note of IHE's IOCM profile."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicom_io import proof
from dicom_io.errors import GeometryProofError, LabelError
from dicom_io.objects import identity, proof_headers
from dicom_io.objects.odd_headers import refusing_odd_headers
from dicom_io.objects.patient_and_study import carry_over, transcribed
from dicom_io.objects.raw_parser import items, referenced_uids, text
from dicom_io.reading.headers import is_person_name

REASONS = {"quality": codes.DCM.RejectedForQualityReasons, "patient safety": codes.DCM.RejectedForPatientSafetyReasons}
"""Titles of CID 7010 that fit a result: 113001 and 113037."""

DESCRIPTION = "REJECTED, do not use: KO RESEARCH"
_CONTENT, _EVIDENCE, _TITLE, _CODE = 0x0040A730, 0x0040A375, 0x0040A043, 0x00080100


@dataclass(frozen=True)
class Program:
    """A program that rejects results by a rule; no person has looked at them."""

    name: str
    version: str


@dataclass(frozen=True)
class Rejection:
    """Who rejects results, when and why.

    Attributes:
        observer: The person's name as DICOM has it, Family^Given^Middle^Prefix^Suffix; or a program.
        organization: The organization that the person answers for; not written for a program.
        moment: Date and time of the rejection, with a time zone.
        comment: The reason in the person's own words, or what the program's rule is.
        reason: A key of REASONS.

    Raises:
        LabelError: The name is no person's, the moment has no time zone, or there is no such reason.
    """

    observer: str | Program
    organization: str
    moment: datetime
    comment: str = ""
    reason: str = "quality"

    def __post_init__(self) -> None:
        is_named = isinstance(self.observer, Program) or is_person_name(self.observer)
        if not is_named or self.moment.utcoffset() is None or self.reason not in REASONS:
            raise LabelError(
                f"a rejection has the reason {self.reason!r} and {'a' if is_named else 'no'} person's "
                f"name; Family^Given, a moment with a time zone and one of {', '.join(REASONS)} are needed; give them"
            )


@refusing_odd_headers
def write_rejection_note(rejected: Sequence[Path], path: Path, rejection: Rejection) -> Path:
    """Write a Key Object Selection (TID 2010) that rejects objects, in a series of its own.

    Args:
        rejected: DICOM files of one study, at least one: all that is not to be used any more.
        path: Target file, replaced if it exists.
        rejection: Who, when and why. Letters that the study's character set does not have are written without their marks,
            or as question marks.

    Returns:
        `path`. The same objects and rejection give the same bytes.

    Raises:
        LabelError: No file, or files of several studies.
        UnreadableFileError: A file cannot be read.
        GeometryProofError: The written note does not name exactly these objects; no file is left.
    """
    headers = tuple(identity.header_of(Path(file)) for file in rejected)
    studies = {str(header.StudyInstanceUID) for header in headers}
    if len(studies) != 1:
        raise LabelError(
            f"{len(headers)} files of {len(studies)} studies are rejected; some of one study are needed; write a note for each"
        )
    comment = transcribed(rejection.comment.strip(), headers[0])
    context, observer = _observer(rejection, headers[0])
    # highdicom refuses some unusual patients and studies that archives hold; `_stamp` puts them back as they are.
    bare = identity.neutral(headers)
    content = hd.ko.KeyObjectSelection(
        document_title=REASONS[rejection.reason], referenced_objects=bare, description=comment or None, **context
    )
    statement = (rejection.reason, *observer, comment, rejection.moment.isoformat())
    # Sorted, so that the order in which files are named changes no UID.
    uids = sorted(str(header.SOPInstanceUID) for header in headers)
    note = hd.ko.KeyObjectSelectionDocument(
        evidence=bare,
        content=content,
        series_instance_uid=identity.derived_uid("KO", "series", *uids, *statement),
        series_number=identity.series_number(headers[0], "KO"),
        sop_instance_uid=identity.derived_uid("KO", "instance", *uids, *statement),
        instance_number=1,
        manufacturer=str(headers[0].get("Manufacturer") or "monai-unet-app"),
    )
    for item in note.ContentSequence:
        if item.ValueType in ("IMAGE", "COMPOSITE"):  # TID 2010: no purpose of reference; highdicom writes one
            del item.ConceptNameCodeSequence
    _stamp(note, headers[0], rejection.moment)
    return proof.save_proved(note, path, lambda file: _prove(file, headers, REASONS[rejection.reason]))


def _observer(rejection: Rejection, header: Dataset) -> tuple[dict[str, hd.sr.ObserverContext], tuple[str, str]]:
    """Who rejects (TID 1002), as an argument of `KeyObjectSelection`; and the texts that identify them."""
    if isinstance(rejection.observer, Program):
        texts = (rejection.observer.name, rejection.observer.version)
        # TID 1004 has no version; the UID differs for each.
        device = hd.sr.DeviceObserverIdentifyingAttributes(uid=identity.derived_uid("device", *texts), name=texts[0])
        return {"observer_device_context": hd.sr.ObserverContext(codes.DCM.Device, device)}, texts
    texts = (transcribed(rejection.observer, header), transcribed(rejection.organization, header))
    person = hd.sr.PersonObserverIdentifyingAttributes(name=texts[0], organization_name=texts[1])
    return {"observer_person_context": hd.sr.ObserverContext(codes.DCM.Person, person)}, texts


def _stamp(note: Dataset, header: Dataset, moment: datetime) -> None:
    """Patient and study of what is rejected, and the moment of the rejection in the study's time zone, or this machine's."""
    carry_over(note, header)
    offset = str(header.get("TimezoneOffsetFromUTC") or "")
    local = moment.astimezone(datetime.strptime(offset, "%z").tzinfo if offset else None)
    note.ContentDate = note.SeriesDate = local.strftime("%Y%m%d")
    note.ContentTime = note.SeriesTime = local.strftime("%H%M%S")
    note.SeriesDescription = DESCRIPTION
    for item in (note, *(note.get("ContributingEquipmentSequence") or [])):  # highdicom reads the clock
        for keyword in ("InstanceCreationDate", "InstanceCreationTime", "ContributionDateTime"):
            item.pop(keyword, None)
    for keyword in ("ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber"):
        if header.get(keyword):
            setattr(note, keyword, header[keyword].value)


def _prove(path: Path, headers: Sequence[Dataset], title: Code) -> None:
    """Pass if the note, read by `raw_parser`, names the rejected objects and no others, and is of their patient and study."""
    with proof_headers.deleting(path, "rejection note") as written:
        rejected = sorted(str(header.SOPInstanceUID) for header in headers)
        for tag, where in ((_CONTENT, "content"), (_EVIDENCE, "evidence")):
            named = sorted(referenced_uids({tag: written.get(tag, [])}))
            if named != rejected:
                raise GeometryProofError(f"its {where} names {len(named)} objects, {len(rejected)} are rejected")
        code = text(items(written, _TITLE)[0], _CODE)
        if code != title.value:
            raise GeometryProofError(f"its title is {code}; {title.value} is needed")
        proof_headers.check_owner(written, headers[0], has_frame=False)
