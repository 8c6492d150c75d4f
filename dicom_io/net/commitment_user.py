"""Storage commitment (PS3.4 J) as user: asks an archive to say, instance by instance, that it keeps what was sent.

The report comes over the association that asked, or over one that the archive opens to a listener of ours; which, the archive
decides. Whatever it does, waiting ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, generate_uid
from pynetdicom import evt

from dicom_io.errors import NetworkError
from dicom_io.net.association import COMMITMENT, COMMITMENT_INSTANCE, Link, associated, checked_status, context
from dicom_io.net.commitment_provider import ALL_THERE, FAILURES_EXIST, REQUEST_COMMITMENT, Reference, reference
from dicom_io.net.destination import Destination
from dicom_io.net.messages import bound
from dicom_io.net.outcome import meaning
from dicom_io.net.outgoing import identified
from dicom_io.net.scp import Listen, Provider
from dicom_io.net.sending import UNCOMPRESSED
from dicom_io.net.service import (
    INVALID_ARGUMENT,
    NO_SUCH_EVENT,
    Request,
    RequestRefusedError,
    Service,
    handlers,
    items_of,
    text_of,
)

HOLD_S = 10.0
"""How long the association that asked is kept open for the report, in seconds, where a listener can take it too."""

_PAUSE_S = 0.05


@dataclass(frozen=True)
class Committed:
    """What an archive has said of the instances that it was asked about.

    Attributes:
        peer: Whom we asked.
        transaction_uid: Of the request.
        committed: SOP Instance UIDs that it says it keeps.
        failed: SOP Instance UID -> why it does not.
        unreported: SOP Instance UIDs of which it has said nothing in time; they may be there or not.
    """

    peer: str
    transaction_uid: str
    committed: tuple[str, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    unreported: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """It keeps them all."""
        return bool(self.committed) and not self.failed and not self.unreported


class Reports:
    """Takes the reports that we wait for; its `service` may stand in a provider that lives longer than one request."""

    def __init__(self) -> None:
        self._expected: dict[str, _Expected] = {}
        self._lock = threading.Lock()

    @property
    def service(self) -> Service:
        """For `Provider(services=...)`."""
        return Service(COMMITMENT, evt.EVT_N_EVENT_REPORT, self._answer)

    @contextmanager
    def listening(self, listen: Listen) -> Iterator[Reports]:
        """A provider that takes reports and nothing else. Raises NetworkError if the port is taken."""
        with Provider(None, listen, services=[self.service]):
            yield self

    @contextmanager
    def expecting(self, transaction_uid: str) -> Iterator[_Expected]:
        """Takes the report on one transaction; others are refused."""
        expected = _Expected()
        with self._lock:
            self._expected[transaction_uid] = expected
        try:
            yield expected
        finally:
            with self._lock:
                del self._expected[transaction_uid]

    def _answer(self, request: Request) -> None:
        if request.type_id not in (ALL_THERE, FAILURES_EXIST):
            raise RequestRefusedError(NO_SUCH_EVENT, f"the event type is {request.type_id}; 1 or 2 is needed")
        transaction_uid = text_of(request.content, "TransactionUID") or ""
        report = _Report(
            frozenset(map(reference, items_of(request.content, "ReferencedSOPSequence") or [])),
            {
                reference(item).sop_instance_uid: int(item.get("FailureReason") or 0x0110)
                for item in items_of(request.content, "FailedSOPSequence") or []
            },
        )
        with self._lock:
            expected = self._expected.get(transaction_uid)
        if expected is None:
            raise RequestRefusedError(INVALID_ARGUMENT, "no report on this transaction is waited for")
        if request.messages is None:
            expected.report = report
        else:  # not before it is answered, or the association might be released under the answer
            request.messages.afterwards(lambda: setattr(expected, "report", report))


def request_commitment(
    destination: Destination,
    files: Iterable[Path],
    *,
    listen: Listen | None = None,
    reports: Reports | None = None,
    wait_s: float = 60.0,
) -> Committed:
    """Asks an archive to commit itself to what was sent to it, and waits for what it says.

    Args:
        destination: Its peer speaks DIMSE.
        files: What was sent.
        listen: Where the archive reports to, as it knows our AE title; a provider listens there meanwhile. None: nowhere.
        reports: Those of a provider that listens already, in the place of `listen`.
        wait_s: Seconds to wait for the report once the request is answered. Where the archive can reach no listener, the
            association stays open so long; else for `HOLD_S` at most.

    Returns:
        What it said; without a report in time, all is `unreported`.

    Raises:
        UnreadableFileError: A file is no DICOM object; nothing was asked.
        NetworkError: No association, no answer, the request was refused, or the port of `listen` is taken.
        ValueError: There is no file.
    """
    references = tuple(dict.fromkeys(Reference(*identified(Path(file))) for file in files))
    if not references:
        raise ValueError("no file was given; at least one is needed to ask for its commitment")
    listens = listen is not None or reports is not None
    transaction_uid, reports = generate_uid(prefix=None), reports or Reports()
    listener = reports.listening(listen) if listen else nullcontext()
    with listener, reports.expecting(transaction_uid) as expected:
        answers = [(evt.EVT_CONN_OPEN, lambda event: bound(event.assoc)), *handlers([reports.service])]
        with associated(destination, [context(COMMITMENT, UNCOMPRESSED)], handlers=answers) as link:
            _ask(link, _action(transaction_uid, references))
            deadline = time.monotonic() + wait_s
            _wait(expected, min(deadline, time.monotonic() + HOLD_S) if listens else deadline, link)
        if listens:
            _wait(expected, deadline)
    return _committed(destination.label, transaction_uid, references, expected.report)


def _action(transaction_uid: str, references: Iterable[Reference]) -> Dataset:
    """The action information of PS3.4 table J.3-1."""
    action = Dataset()
    action.TransactionUID = transaction_uid
    items = []
    for one in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = UID(one.sop_class_uid), UID(one.sop_instance_uid)
        items.append(item)
    action.ReferencedSOPSequence = Sequence(items)
    return action


def _ask(link: Link, action: Dataset) -> None:
    answer, _ = link.ask(
        lambda association: association.send_n_action(action, REQUEST_COMMITMENT, COMMITMENT, COMMITMENT_INSTANCE)
    )
    status = checked_status(link, answer)
    if status:
        raise NetworkError(
            f"{link.destination.label} answered a commitment request with {meaning(status, 'commitment')}; success is needed; "
            "look into its log"
        )


def _wait(expected: _Expected, deadline: float, link: Link | None = None) -> None:
    """Until the report is there, it is too late, or the association is closed."""
    while expected.report is None and time.monotonic() < deadline and (link is None or link.is_open):
        time.sleep(_PAUSE_S)


def _committed(peer: str, transaction_uid: str, references: tuple[Reference, ...], report: _Report | None) -> Committed:
    """An instance is committed only where the report lists it, with its class, and not among the failed too."""
    if report is None:
        return Committed(peer, transaction_uid, (), unreported=tuple(one.sop_instance_uid for one in references))
    failed = {uid: meaning(report.failed[uid], "commitment") for _, uid in references if uid in report.failed}
    there = tuple(one.sop_instance_uid for one in references if one in report.there and one[1] not in failed)
    silent = tuple(uid for _, uid in references if uid not in failed and uid not in there)
    return Committed(peer, transaction_uid, there, failed, silent)


@dataclass(frozen=True)
class _Report:
    there: frozenset[Reference]
    failed: Mapping[str, int]


@dataclass
class _Expected:
    """A report that is waited for."""

    report: _Report | None = None
