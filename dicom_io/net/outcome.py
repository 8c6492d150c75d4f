"""What became of instances on the wire, said file by file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pynetdicom.status import (
    GENERAL_STATUS,
    QR_FIND_SERVICE_CLASS_STATUS,
    QR_GET_SERVICE_CLASS_STATUS,
    QR_MOVE_SERVICE_CLASS_STATUS,
    STORAGE_SERVICE_CLASS_STATUS,
    code_to_category,
)

from dicom_io.errors import DicomIoError

State = Literal["sent", "warning", "already there", "refused", "failed", "left out", "held back"]
DELIVERED: tuple[State, ...] = ("sent", "warning", "already there")
DUPLICATE_INSTANCE = 0x0111  # PS3.7 C.5.6

_TABLES = {
    "C-STORE": STORAGE_SERVICE_CLASS_STATUS,
    "C-FIND": QR_FIND_SERVICE_CLASS_STATUS,
    "C-MOVE": QR_MOVE_SERVICE_CLASS_STATUS,
    "C-GET": QR_GET_SERVICE_CLASS_STATUS,
    "commitment": {  # PS3.3 C.14.1.1 and PS3.7 annex C
        **GENERAL_STATUS,
        0x0122: ("Failure", "Referenced SOP Class Not Supported"),
        0x0131: ("Failure", "Duplicate Transaction UID"),
    },
    "STOW-RS": {**STORAGE_SERVICE_CLASS_STATUS, 0xC122: ("Failure", "Referenced Transfer Syntax Not Supported")},
}


class RefusedError(DicomIoError):
    """What the other side asks of us is not done.

    Attributes:
        status: DIMSE status that says so to it.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Outcome:
    """What became of one file that was to be sent.

    Attributes:
        kind: "SEG", "SR", ...; empty for an image.
        state: "sent": the other side has said that it has it. "warning": it has it, and changed or doubts something.
            "already there": it has this very instance and did not take it again. "refused": it said no. "failed":
            it never said that it has it, so it may or may not. "left out": it was not offered, because the destination
            does not want it. "held back": the destination wants it, and it was not offered, because it is a report and
            what it reports on is not there.
        status: DIMSE status or FailureReason, where one came.
        meaning: Of the status, or why the file was not sent.
        note: What was done to the file on the way, such as decompressing it, or what it refers to in vain.
    """

    file: Path
    sop_instance_uid: str
    kind: str
    state: State
    status: int | None = None
    meaning: str = ""
    note: str = ""

    @property
    def is_delivered(self) -> bool:
        """Whether the other side has said that it has an instance with this UID, so that references to it resolve."""
        return self.state in DELIVERED


@dataclass(frozen=True)
class Fetched:
    """What came from an archive.

    Attributes:
        folder: Where the instances are.
        files: One a received instance, in the order of arrival.
        new: How many of them were not there before.
        expected: How many the archive said it would send; None where it did not say.
        problems: What did not come or was refused, one sentence each.
    """

    folder: Path
    files: tuple[Path, ...]
    new: int
    expected: int | None
    problems: tuple[str, ...] = ()

    @property
    def received(self) -> int:
        """Instances that are on the disk now."""
        return len(self.files)

    @property
    def is_complete(self) -> bool:
        """Nothing went wrong, and no fewer came than were announced."""
        return not self.problems and (self.expected is None or self.received >= self.expected)


def meaning(status: int, service: str) -> str:
    """A status with the standard's words for it, such as "0xA700 (Failure: Refused: Out of Resources)"."""
    if status == DUPLICATE_INSTANCE and service != "commitment":
        return f"0x{status:04X} (Duplicate SOP Instance): it has an instance with this UID"
    text = _TABLES[service].get(status, ("", ""))[1]
    category = code_to_category(status)
    return f"0x{status:04X} ({category}{': ' + text if text else ''})"


def state_of(status: int) -> State:
    """How the status of a C-STORE, or the FailureReason of STOW-RS, reads (PS3.7 C.1 to C.3).

    A duplicate is a failure to the standard, but of the request and not of what was to be reached, if what is there is what was
    sent: `duplicates.judged` looks.
    """
    if status == DUPLICATE_INSTANCE:
        return "already there"
    return {"Success": "sent", "Warning": "warning"}.get(code_to_category(status), "refused")  # type: ignore[return-value]
