"""Files on their way out: what each one is, whether the destination wants it, and in which order they go.

Images first, then result objects in the order of the destination's profile, so that what is referred to is there first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_io.errors import UnreadableFileError
from dicom_io.kinds import kind_of_class
from dicom_io.kinds.encodings import encoding_name
from dicom_io.net.destination import Profile
from dicom_io.net.outcome import Outcome, State
from dicom_io.reading.headers import is_uid
from dicom_io.reading.instances import image_type, load_dataset, refusing

Each = Callable[[Outcome], None]

_PROCESSED, _PROCESSOR = "121322", "109102"  # DCM: source image for image processing operation; processing equipment
_DIGEST = "bundle sha256 "  # how `identity.contribution` begins its description


@dataclass(frozen=True)
class Outgoing:
    """One file to be sent.

    Attributes:
        kind: Of the result object; empty for an image.
        encoding: How a SEG is encoded, as `Profile.seg_encoding`; empty for all else.
        refers_to: SOP Instance UIDs of what a report says something about; empty for all else.
        note: What its outcome says beside the answer.
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

    The SOP class says it, whoever wrote the object, except for pictures: of a Secondary Capture class are scanned films and
    photographs too, which may be the very source of a result. A picture is an "SC" only where it has all that
    `capture` writes: ImageType begins with DERIVED, SourceImageSequence names the image that was processed,
    and ContributingEquipmentSequence names, as processing equipment, a bundle by its digest. All other pictures are images:
    to send one too many is better than to leave a source out.
    """
    kind = kind_of_class(str(header.get("SOPClassUID") or ""))
    return "" if kind is None or (kind.shares_class and not _is_our_capture(header)) else kind.name


def _is_our_capture(header: Dataset) -> bool:
    sources = _for_purpose(header, "SourceImageSequence", _PROCESSED)
    makers = _for_purpose(header, "ContributingEquipmentSequence", _PROCESSOR)
    names_bundle = any(str(one.get("ContributionDescription") or "").startswith(_DIGEST) for one in makers)
    return image_type(header)[:1] == ("DERIVED",) and bool(sources) and names_bundle


def _for_purpose(header: Dataset, keyword: str, code: str) -> list[Dataset]:
    """The items of a sequence whose purpose of reference is a code of DCM."""
    return [
        item
        for item in header.get(keyword) or []
        for purpose in item.get("PurposeOfReferenceCodeSequence") or []
        if (purpose.get("CodeValue"), purpose.get("CodingSchemeDesignator")) == (code, "DCM")
    ]


def prepared(files: Iterable[Path], profile: Profile) -> tuple[list[Outgoing], list[Outcome]]:
    """What goes out, in its order, and what the destination does not want.

    Raises:
        UnreadableFileError: A file is no DICOM object; nothing has been sent then.
    """
    found = [_outgoing(Path(file)) for file in files]
    order = ("", *profile.objects)
    reasons = {id(one): _why_unwanted(one, profile) for one in found}
    wanted = sorted((one for one in found if not reasons[id(one)]), key=lambda one: order.index(one.kind))
    left_out = {str(one.sop_instance_uid): str(one.kind) for one in found if one.kind not in order}
    noted = [replace(one, note=_note_on(one, left_out)) for one in wanted]
    return noted, [one.outcome("left out", reason) for one in found if (reason := reasons[id(one)])]


def _note_on(one: Outgoing, left_out: Mapping[str, str]) -> str:
    """What a report refers to in vain: SOP Instance UID -> kind of what the destination does not take."""
    kinds = sorted({left_out[uid] for uid in one.refers_to & left_out.keys()})
    return f"it refers to {' and '.join(kinds)}, which the destination does not take" if kinds else ""


def _why_unwanted(one: Outgoing, profile: Profile) -> str:
    """Why a destination does not want a file; empty for one that it wants."""
    if one.kind and one.kind not in profile.objects:
        return f"the destination takes {', '.join(profile.objects)}"
    if one.kind == "SEG" and profile.seg_encoding not in (None, one.encoding):
        return f"the destination takes a SEG as {profile.seg_encoding}, this one is {one.encoding}; have it written so"
    return ""


def identified(file: Path) -> tuple[str, str]:
    """SOP class and instance UID of a DICOM file.

    Raises:
        UnreadableFileError: It is none, or one of them is no UID.
    """
    return _identified(file, load_dataset(file, with_pixels=False))


def _identified(file: Path, header: Dataset) -> tuple[str, str]:
    sop_class, instance = (str(header.get(keyword) or "") for keyword in ("SOPClassUID", "SOPInstanceUID"))
    if not is_uid(sop_class) or not is_uid(instance):
        raise UnreadableFileError(
            f"{file} names no SOP class and instance; a DICOM object is needed; leave it out, or mend the file"
        )
    return sop_class, instance


def _outgoing(file: Path) -> Outgoing:
    header = load_dataset(file, with_pixels=False)
    uids = _identified(file, header)
    syntax = UID(str(header.file_meta.TransferSyntaxUID))
    with refusing(file):
        kind = kind_of(header)
        encoding = encoding_name(str(header.get("SegmentationType") or ""), syntax) if kind == "SEG" else ""
        refers_to = _evidence(header) if kind == "SR" else frozenset()
    return Outgoing(file, UID(uids[0]), UID(uids[1]), syntax, kind, encoding, refers_to)


def _evidence(header: Dataset) -> frozenset[str]:
    """The instances that a report was made from (PS3.3 C.17.2.3)."""
    return frozenset(
        str(instance.ReferencedSOPInstanceUID)
        for study in header.get("CurrentRequestedProcedureEvidenceSequence") or []
        for series in study.get("ReferencedSeriesSequence") or []
        for instance in series.get("ReferencedSOPSequence") or []
    )
