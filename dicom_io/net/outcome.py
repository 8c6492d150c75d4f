"""The outcome of sending or fetching, for each file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pynetdicom import status as statuses

from dicom_io.net.instance_file import DUPLICATE_INSTANCE

State = Literal["sent", "warning", "already there", "refused", "failed", "left out", "held back"]

_TABLES = {
    "C-STORE": statuses.STORAGE_SERVICE_CLASS_STATUS,
    "C-FIND": statuses.QR_FIND_SERVICE_CLASS_STATUS,
    "C-MOVE": statuses.QR_MOVE_SERVICE_CLASS_STATUS,
    "C-GET": statuses.QR_GET_SERVICE_CLASS_STATUS,
    "commitment": {  # PS3.3 C.14.1.1 and PS3.7 annex C
        **statuses.GENERAL_STATUS,
        0x0122: ("Failure", "Referenced SOP Class Not Supported"),
        0x0131: ("Failure", "Duplicate Transaction UID"),
    },
    "STOW-RS": {
        **statuses.STORAGE_SERVICE_CLASS_STATUS,
        0xC122: ("Failure", "Referenced Transfer Syntax Not Supported"),
    },
}


@dataclass(frozen=True)
class Outcome:
    """The outcome of sending one file.

    Attributes:
        kind: "SEG", "SR", ...; empty for an image.
        state: "sent": the other side acknowledged the file. "warning": acknowledged with a warning. "already there": the
            other side has this very instance and did not take it again. "refused": the other side answered with a failure.
            "failed": no acknowledgement came, so the file may or may not be there. "left out": not sent, because the
            destination does not want it. "held back": not sent, because it is a report and the objects that it was made
            from are not there.
        status: DIMSE status or FailureReason, if there was an answer.
        meaning: Meaning of the status, or why the file was not sent.
        note: A change to the file before sending, such as decompression, or references that will not resolve.
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
        """Whether the other side acknowledged an instance with this UID, so that references to it resolve."""
        return self.state in ("sent", "warning", "already there")


@dataclass(frozen=True)
class Fetched:
    """The instances that came from an archive.

    Attributes:
        folder: Folder of the instances.
        files: One file for each received instance, in the order of arrival.
        new: Number of files that were not there before.
        expected: Number of instances that the archive announced; None if it did not.
        problems: A sentence for each instance that did not come or was refused.
    """

    folder: Path
    files: tuple[Path, ...]
    new: int
    expected: int | None
    problems: tuple[str, ...] = ()

    @property
    def received(self) -> int:
        """Number of instances that are on the disk now."""
        return len(self.files)

    @property
    def is_complete(self) -> bool:
        """Whether nothing went wrong, and no fewer instances came than were announced."""
        return not self.problems and (self.expected is None or self.received >= self.expected)


def meaning(status: int, service: str) -> str:
    """A status with its name in the standard, such as "0xA700 (Failure: Refused: Out of Resources)"."""
    if status == DUPLICATE_INSTANCE and service != "commitment":
        return f"0x{status:04X} (Duplicate SOP Instance): it has an instance with this UID"
    text = _TABLES[service].get(status, ("", ""))[1]
    category = statuses.code_to_category(status)
    return f"0x{status:04X} ({category}{': ' + text if text else ''})"


def state_of(status: int) -> State:
    """The state for the status of a C-STORE or the FailureReason of STOW-RS (PS3.7 C.1 to C.3).

    In the standard a duplicate is a failure. Here it is "already there", and `duplicates.DuplicateCheck` finds out whether the
    archive really has the same instance.
    """
    if status == DUPLICATE_INSTANCE:
        return "already there"
    return {"Success": "sent", "Warning": "warning"}.get(statuses.code_to_category(status), "refused")  # type: ignore[return-value]
