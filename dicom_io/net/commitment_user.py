"""Storage commitment (PS3.4 J) as user: asks an archive to commit itself, instance by instance, to what was sent.

The report comes over the association of the request, or over an association that the archive opens to a listener of ours; the
archive chooses. In any case the waiting ends.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.uid import generate_uid
from pynetdicom import evt

from dicom_io.net import dimse_n
from dicom_io.net.association import OpenAssociation, open_association, presentation_context
from dicom_io.net.commitment_provider import (
    ALL_COMMITTED,
    FAILURES_EXIST,
    PUSH_MODEL,
    PUSH_MODEL_INSTANCE,
    REQUEST_COMMITMENT,
    SopReference,
    check_success,
)
from dicom_io.net.destination import Destination
from dicom_io.net.outcome import meaning
from dicom_io.net.outgoing import read_sop_uids
from dicom_io.net.pynetdicom_patches import limit_association
from dicom_io.net.scp import Listen, Provider
from dicom_io.objects.encoding import data_set

HOLD_S = 10.0
"""Seconds that the association of the request stays open for the report, where a listener can take the report too."""

_POLL_S = 0.05


@dataclass(frozen=True)
class CommitmentResult:
    """The report of an archive on the instances of a request.

    Attributes:
        peer: The archive.
        transaction_uid: UID of the request.
        committed: SOP Instance UIDs that the archive keeps.
        failed: SOP Instance UID -> reason why the archive does not keep it.
        unreported: SOP Instance UIDs without a report in time; the archive may keep them or not.
    """

    peer: str
    transaction_uid: str
    committed: tuple[str, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    unreported: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether the archive keeps all instances."""
        return bool(self.committed) and not self.failed and not self.unreported


class ReportListener:
    """Takes the reports that we wait for; its `service` may stand in a provider that lives longer than one request."""

    def __init__(self) -> None:
        self._pending: dict[str, list[_Report]] = {}
        self._lock = threading.Lock()

    @property
    def service(self) -> dimse_n.Service:
        """The service for `Provider(services=...)`."""
        return dimse_n.Service(PUSH_MODEL, evt.EVT_N_EVENT_REPORT, self._answer)

    @contextmanager
    def listening(self, listen: Listen) -> "Iterator[ReportListener]":
        """A provider that takes only reports. Raises NetworkError if the port is taken."""
        with Provider(None, listen, services=[self.service]):
            yield self

    @contextmanager
    def expecting(self, transaction_uid: str) -> "Iterator[list[_Report]]":
        """Takes the report on one transaction, once it has come; other transactions are refused."""
        reports: list[_Report] = []
        with self._lock:
            self._pending[transaction_uid] = reports
        try:
            yield reports
        finally:
            with self._lock:
                del self._pending[transaction_uid]

    def _answer(self, request: dimse_n.Request) -> None:
        if request.type_id not in (ALL_COMMITTED, FAILURES_EXIST):
            raise dimse_n.RequestRefusedError(
                dimse_n.NO_SUCH_EVENT, f"the event type is {request.type_id}; 1 or 2 is needed"
            )
        transaction_uid = dimse_n.text_of(request.content, "TransactionUID") or ""
        report = _Report(
            frozenset(map(SopReference.of, dimse_n.items_of(request.content, "ReferencedSOPSequence") or [])),
            {
                SopReference.of(item).sop_instance_uid: int(item.get("FailureReason") or 0x0110)
                for item in dimse_n.items_of(request.content, "FailedSOPSequence") or []
            },
        )
        with self._lock:
            reports = self._pending.get(transaction_uid)
        if reports is None:
            raise dimse_n.RequestRefusedError(dimse_n.INVALID_ARGUMENT, "no report on this transaction is expected")
        # Not before the report is answered, or the association might be released under the answer.
        request.dimse.after_answer(lambda: reports.append(report))


def request_commitment(
    destination: Destination, files: Iterable[Path], *, reports: ReportListener | None = None, wait_s: float = 60.0
) -> CommitmentResult:
    """Asks an archive to commit itself to what was sent to it, and waits for the report.

    Args:
        destination: Its peer speaks DIMSE.
        files: The files that were sent.
        reports: The listener of a provider that the archive reports to, under our AE title; see `ReportListener.listening`.
            None: the archive can report only over the association of the request.
        wait_s: Seconds to wait for the report once the request is answered. Without `reports` the association stays open so
            long; else for `HOLD_S` at most.

    Returns:
        The report; without a report in time, all instances are `unreported`.

    Raises:
        UnreadableFileError: A file is no DICOM object; no request was sent.
        NetworkError: No association, no answer, or the request was refused.
        ValueError: There is no file.
    """
    references = tuple(dict.fromkeys(SopReference(*read_sop_uids(Path(file))) for file in files))
    if not references:
        raise ValueError("no file was given; at least one is needed to ask for its commitment")
    listens = reports is not None
    # prefix=None makes a UID below 2.25 from a random UUID (PS3.5 B.2), which needs no root of an organization.
    transaction_uid, reports = generate_uid(prefix=None), reports or ReportListener()
    # The transaction is known before the request goes out: an archive may report at once.
    with reports.expecting(transaction_uid) as received:
        handlers = [
            (evt.EVT_CONN_OPEN, lambda event: limit_association(event.assoc)),
            *dimse_n.service_handlers([reports.service]),
        ]
        with open_association(destination, [presentation_context(PUSH_MODEL)], handlers=handlers) as opened:
            _send_request(opened, transaction_uid, references)
            deadline_s = time.monotonic() + wait_s
            # While the association is open, the report may come over it; afterwards only the listener can take it.
            _wait(received, min(deadline_s, time.monotonic() + HOLD_S) if listens else deadline_s, opened)
        if listens:
            _wait(received, deadline_s)
    return _result(destination.label, transaction_uid, references, received)


def _send_request(opened: OpenAssociation, transaction_uid: str, references: Iterable[SopReference]) -> None:
    items = [reference.item() for reference in references]
    action = data_set(TransactionUID=transaction_uid, ReferencedSOPSequence=items)  # PS3.4 table J.3-1
    answer, _ = opened.request(
        lambda association: association.send_n_action(action, REQUEST_COMMITMENT, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    )
    check_success(opened.checked_status(answer), opened.destination.label, "request")


def _wait(received: "list[_Report]", deadline_s: float, opened: OpenAssociation | None = None) -> None:
    """Waits until the report is there, the deadline has passed, or the association is closed."""
    while not received and time.monotonic() < deadline_s and (opened is None or opened.is_open):
        time.sleep(_POLL_S)


def _result(
    peer: str, transaction_uid: str, references: tuple[SopReference, ...], received: "list[_Report]"
) -> CommitmentResult:
    """An instance is committed only if the last report lists it with its class, and not among the failed instances too."""
    if not received:
        return CommitmentResult(peer, transaction_uid, (), unreported=tuple(uid for _, uid in references))
    report = received[-1]
    # An instance that the report lists twice, as committed and as failed, counts as failed.
    failed = {uid: meaning(report.failed[uid], "commitment") for _, uid in references if uid in report.failed}
    committed = tuple(
        reference.sop_instance_uid
        for reference in references
        if reference in report.committed and reference.sop_instance_uid not in failed
    )
    unreported = tuple(uid for _, uid in references if uid not in failed and uid not in committed)
    return CommitmentResult(peer, transaction_uid, committed, failed, unreported)


@dataclass(frozen=True)
class _Report:
    """The committed instances, and SOP Instance UID -> FailureReason of the others."""

    committed: frozenset[SopReference]
    failed: Mapping[str, int]
