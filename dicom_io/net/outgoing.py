"""Files to be sent: the kind of each file, whether the destination wants it, and the order of sending.

Images go first, then result objects in the order of the destination's profile, so that references resolve on arrival.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_io.errors import UnreadableFileError
from dicom_io.kinds import KIND, kind_of_class
from dicom_io.kinds.encodings import encoding_name
from dicom_io.net.destination import Profile
from dicom_io.net.outcome import Outcome, State
from dicom_io.reading.headers import is_uid
from dicom_io.reading.instances import image_type, load_dataset, refusing

OnOutcome = Callable[[Outcome], None]

_PROCESSED, _PROCESSOR = "121322", "109102"  # DCM: source image for image processing operation; processing equipment
_DIGEST = "bundle sha256 "  # how `identity.contribution` begins its description


@dataclass(frozen=True)
class Outgoing:
    """One file to be sent.

    Attributes:
        kind: Kind of result object; empty for an image.
        encoding: How a SEG is encoded, as `Profile.seg_encoding`; empty for all else.
        refers_to: SOP Instance UIDs of the instances that a report was made from; empty for kinds that refer to no other kind.
        note: Becomes a part of the note of its outcome.
    """

    file: Path
    sop_class_uid: UID
    sop_instance_uid: UID
    transfer_syntax_uid: UID
    kind: str
    encoding: str = ""
    refers_to: frozenset[str] = frozenset()
    note: str = ""

    def outcome(self, state: State, meaning: str = "", status: int | None = None, note: str = "") -> Outcome:
        notes = "; ".join(filter(None, (self.note, note)))
        return Outcome(self.file, self.sop_instance_uid, self.kind, state, status, meaning, notes)


def kind_of(header: Dataset) -> str:
    """The kind of result object that a data set is; empty for images and everything else.

    The SOP class decides, whatever program wrote the object, except for pictures: scanned films and photographs have a
    Secondary Capture class too, and may be the source of a result. A picture is an "SC" only if it has everything that
    `capture` writes: ImageType begins with DERIVED, SourceImageSequence names the processed image, and
    ContributingEquipmentSequence names, as processing equipment, a bundle by its digest. All other pictures count as images:
    sending one image too many is better than leaving a source out.
    """
    kind = kind_of_class(str(header.get("SOPClassUID") or ""))
    return "" if kind is None or (kind.shares_class and not _is_our_capture(header)) else kind.name


def _is_our_capture(header: Dataset) -> bool:
    sources = _for_purpose(header, "SourceImageSequence", _PROCESSED)
    processors = _for_purpose(header, "ContributingEquipmentSequence", _PROCESSOR)
    names_bundle = any(str(item.get("ContributionDescription") or "").startswith(_DIGEST) for item in processors)
    return image_type(header)[:1] == ("DERIVED",) and bool(sources) and names_bundle


def _for_purpose(header: Dataset, keyword: str, code: str) -> list[Dataset]:
    """The items of a sequence whose purpose of reference is a code of DCM."""
    return [
        item
        for item in header.get(keyword) or []
        for purpose in item.get("PurposeOfReferenceCodeSequence") or []
        if (purpose.get("CodeValue"), purpose.get("CodingSchemeDesignator")) == (code, "DCM")
    ]


def prepare_files(files: Iterable[Path], profile: Profile) -> tuple[list[Outgoing], list[Outcome]]:
    """The files that are sent, in their order, and the outcomes of the files that the destination does not want.

    Raises:
        UnreadableFileError: A file is no DICOM object; nothing has been sent then.
    """
    items = [_read(Path(file)) for file in files]
    # Images have no kind and go first.
    order = ("", *profile.objects)
    judged = [(item, _why_unwanted(item, profile)) for item in items]
    # Sorting is stable: files of the same kind keep the order in which they were given.
    chosen = sorted((item for item, reason in judged if not reason), key=lambda item: order.index(item.kind))
    missing = {str(item.sop_instance_uid): item.kind for item in items if item.kind not in order}
    outcomes = [item.outcome("left out", reason) for item, reason in judged if reason]
    return [replace(item, note=_note_on_references(item, missing)) for item in chosen], outcomes


def _note_on_references(item: Outgoing, missing: Mapping[str, str]) -> str:
    """The references of a report that will not resolve; `missing`: SOP Instance UID -> kind that is not sent."""
    kinds = sorted({missing[uid] for uid in item.refers_to & missing.keys()})
    return f"it refers to {' and '.join(kinds)}, which the destination does not take" if kinds else ""


def _why_unwanted(item: Outgoing, profile: Profile) -> str:
    """Why a destination does not want a file; empty if the destination wants it."""
    if item.kind and item.kind not in profile.objects:
        return f"the destination takes {', '.join(profile.objects)}"
    if item.kind == "SEG" and profile.seg_encoding not in (None, item.encoding):
        return f"the destination takes a SEG as {profile.seg_encoding}, this one is {item.encoding}; write it in that encoding"
    return ""


def read_sop_uids(file: Path) -> tuple[str, str]:
    """SOP class and instance UID of a DICOM file.

    Raises:
        UnreadableFileError: The file is no DICOM object, or a UID is invalid.
    """
    return _sop_uids(file, load_dataset(file))


def _sop_uids(file: Path, header: Dataset) -> tuple[str, str]:
    sop_class, instance = (str(header.get(keyword) or "") for keyword in ("SOPClassUID", "SOPInstanceUID"))
    if not is_uid(sop_class) or not is_uid(instance):
        raise UnreadableFileError(
            f"{file} names no SOP class and instance; a DICOM object is needed; leave it out, or repair the file"
        )
    return sop_class, instance


def _read(file: Path) -> Outgoing:
    header = load_dataset(file)
    sop_class, instance = map(UID, _sop_uids(file, header))
    syntax = UID(str(header.file_meta.TransferSyntaxUID))
    with refusing(file):
        kind = kind_of(header)
        encoding = encoding_name(str(header.get("SegmentationType") or ""), syntax) if kind == "SEG" else ""
        refers_to = _evidence(header) if kind and KIND[kind].refers_to else frozenset()
    return Outgoing(file, sop_class, instance, syntax, kind, encoding, refers_to)


def _evidence(header: Dataset) -> frozenset[str]:
    """The instances that a report was made from (PS3.3 C.17.2.3)."""
    return frozenset(
        str(instance.ReferencedSOPInstanceUID)
        for study in header.get("CurrentRequestedProcedureEvidenceSequence") or []
        for series in study.get("ReferencedSeriesSequence") or []
        for instance in series.get("ReferencedSOPSequence") or []
    )
