"""Storage commitment (PS3.4 J) as provider: commits to what is on the disk, instance by instance.

A request is answered at once and reported on later, on an association that we request. The address comes from a table of AE
titles; where the table has none, the report goes over the association of the request, while that is open.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import build_role, evt

from dicom_io.errors import NetworkError
from dicom_io.net import dimse_n
from dicom_io.net.association import open_association, presentation_context
from dicom_io.net.destination import Destination
from dicom_io.net.dimse_n import Request, RequestRefusedError, Service, items_of, uid_of
from dicom_io.net.instance_file import InstanceRefusedError, read_uids
from dicom_io.net.outcome import meaning
from dicom_io.net.pynetdicom_patches import LimitedDimseProvider
from dicom_io.objects import functional_groups
from dicom_io.objects.encoding import data_set

PUSH_MODEL = UID("1.2.840.10008.1.20.1")
PUSH_MODEL_INSTANCE = UID("1.2.840.10008.1.20.1.1")  # PS3.4 J.3.5: its well-known SOP instance
DUPLICATE_TRANSACTION = 0x0131  # PS3.3 C.14.1.1
REQUEST_COMMITMENT = 1  # action type, PS3.4 J.3.2.1
ALL_COMMITTED, FAILURES_EXIST = 1, 2  # event types, PS3.4 J.3.3.1
TRIES = 3
PAUSE_S = 1.0

_ANSWER_S = 60.0
_POLL_S = 0.05
_COMMITTED = 0x0000
# Several files may have the UID, in several studies; the instance is committed if one of these files is whole.
_BEST_FIRST = (_COMMITTED, dimse_n.CLASS_CONFLICT, dimse_n.PROCESSING_FAILURE)

_logger = logging.getLogger(__name__)


class SopReference(NamedTuple):
    """One instance of a request or report."""

    sop_class_uid: str
    sop_instance_uid: str

    @classmethod
    def of(cls, item: Dataset) -> "SopReference":
        """The instance of an item. Raises RequestRefusedError where a UID is absent or invalid."""
        return cls(uid_of(item, "ReferencedSOPClassUID"), uid_of(item, "ReferencedSOPInstanceUID"))

    def item(self) -> Dataset:
        """The item of a ReferencedSOPSequence."""
        return functional_groups.reference(*self)


@dataclass(frozen=True)
class CommitmentRequest:
    """A request for storage commitment.

    Attributes:
        ae_title: AE title that the requestor gives itself; the report goes to it.
        transaction_uid: Unique for one `ae_title`.
        references: Each once, in the order of the request.
    """

    ae_title: str
    transaction_uid: str
    references: tuple[SopReference, ...]

    @property
    def key(self) -> tuple[str, str]:
        """What identifies the request."""
        return self.ae_title, self.transaction_uid


class Holdings(Protocol):
    """An index of instances, such as `instance_store.InstanceStore`."""

    def find(self, sop_instance_uids: Iterable[str], /) -> Mapping[str, Iterable[Path]]:
        """The files of the instances that are there."""


def commitment_report(request: CommitmentRequest, store: Holdings) -> Dataset:
    """The report on a request, from what is on the disk now.

    An instance counts only if its file is there, can be read to its end, and has this SOP class and UID. Each file is read.

    Args:
        request: The request.
        store: The index that should have the instances.

    Returns:
        The event information of PS3.4 table J.3-2: TransactionUID, ReferencedSOPSequence of the committed instances, and
        FailedSOPSequence with a FailureReason of 0x0112 (absent), 0x0119 (of another class) or 0x0110 (cannot be read, or
        is another instance). A sequence without items is left out.
    """
    files = store.find(reference.sop_instance_uid for reference in request.references)
    committed, failed = [], []
    for reference in request.references:
        item, reason = reference.item(), _failure_reason(reference, files.get(reference.sop_instance_uid, ()))
        if reason == _COMMITTED:
            committed.append(item)
        else:
            item.FailureReason = reason
            failed.append(item)
    report = data_set(TransactionUID=request.transaction_uid)
    if committed:
        report.ReferencedSOPSequence = committed
    if failed:
        report.FailedSOPSequence = failed
    return report


def event_type(report: Dataset) -> int:
    """1 if all instances are committed, 2 if some are not."""
    return FAILURES_EXIST if "FailedSOPSequence" in report else ALL_COMMITTED


def send_report(destination: Destination, report: Dataset) -> None:
    """Sends a report over an association of its own, on which we are the provider (role selection, PS3.7 D.3.3.4).

    A peer that ignores role selection gets the report all the same.

    Args:
        destination: Its peer speaks DIMSE.
        report: From `commitment_report`.

    Raises:
        NetworkError: No association, no answer, or the peer did not accept the report.
    """
    roles = [build_role(PUSH_MODEL, scu_role=False, scp_role=True)]
    with open_association(destination, [presentation_context(PUSH_MODEL)], roles=roles) as opened:
        answer, _ = opened.request(
            lambda association: association.send_n_event_report(
                report, event_type(report), PUSH_MODEL, PUSH_MODEL_INSTANCE
            )
        )
        status = opened.checked_status(answer)
    check_success(status, destination.label, "report")


class CommitmentProvider:
    """Takes requests for storage commitment, and reports on them; give its `service` to a provider."""

    def __init__(
        self,
        store: Holdings,
        addresses: Mapping[str, Destination],
        accepted: Callable[[CommitmentRequest], None] | None = None,
    ) -> None:
        """Prepares the provider.

        Args:
            store: The index of the instances.
            addresses: AE title -> destination of its reports, a peer that speaks DIMSE; looked up when a report is sent.
            accepted: Makes a request durable before it returns; only then the request is answered with success. A caller
                that gives this calls `report` later, once for each accepted request and again until it succeeds. It may be
                called again with the same request. It raises RequestRefusedError to refuse a request, with
                DUPLICATE_TRANSACTION where a transaction comes again with other references. Any other error is answered
                with 0x0110. None: requests are kept in memory and reported on here, `TRIES` times at most.
        """
        self._store, self._addresses = store, addresses
        self._memory = _MemoryQueue(self.report)
        self._accept = accepted or self._memory.accept
        self._requestors: dict[tuple[str, str], _Requestor] = {}
        self._lock = threading.Lock()

    @property
    def service(self) -> Service:
        """The service for `Provider(services=...)`."""
        return Service(PUSH_MODEL, evt.EVT_N_ACTION, self._answer, self._memory.close)

    def report(self, request: CommitmentRequest) -> Dataset:
        """Checks the instances of a request, sends the report, and returns it.

        If the request is being answered, the report waits for that.

        Raises:
            NetworkError: The report cannot be sent now. The request stays as it is: report again later.
        """
        requestor = self._answered_requestor(request)
        report = commitment_report(request, self._store)
        destination = self._addresses.get(request.ae_title)
        if destination is not None:
            send_report(destination, report)
        elif requestor is None:
            raise NetworkError(
                f"the AE title {request.ae_title} has no address, and the association over which it asked is closed; one of "
                "both is needed to report; give it an address"
            )
        else:
            status = requestor.dimse.report(PUSH_MODEL, PUSH_MODEL_INSTANCE, event_type(report), report, _ANSWER_S)
            check_success(status, request.ae_title, "report")
        # Only a report that was taken ends this; until then it may be sent again over the same association.
        with self._lock:
            self._requestors.pop(request.key, None)
        return report

    def _answer(self, request: Request) -> None:
        commitment = commitment_request(request)
        # The association is known before `_accept` runs, because its caller may report at once from another thread.
        with self._remembered(commitment, request.dimse):
            self._accept(commitment)

    @contextmanager
    def _remembered(self, request: CommitmentRequest, dimse: LimitedDimseProvider) -> Iterator[None]:
        """Keeps the association of a request while that is open; forgets it if the request is refused."""
        requestor = _Requestor(dimse)
        dimse.after_answer(requestor.is_answered.set)
        with self._lock:
            # Closed associations are forgotten here; nothing else removes those whose report went another way.
            before = {key: known for key, known in self._requestors.items() if known.is_connected}
            self._requestors = {**before, request.key: requestor}
        try:
            yield
        except BaseException:
            with self._lock:
                self._requestors.pop(request.key, None)
                if request.key in before:
                    self._requestors[request.key] = before[request.key]
            raise

    def _answered_requestor(self, request: CommitmentRequest) -> "_Requestor | None":
        """The open association of a request, once the request is answered: no report overtakes the answer."""
        with self._lock:
            requestor = self._requestors.get(request.key)
        deadline_s = time.monotonic() + _ANSWER_S
        while requestor is not None and requestor.is_connected and time.monotonic() < deadline_s:
            if requestor.is_answered.wait(_POLL_S):
                return requestor
        return None


def commitment_request(request: Request) -> CommitmentRequest:
    """The content of an N-ACTION.

    Raises:
        RequestRefusedError: Another action or instance, or a UID is absent or invalid.
    """
    if request.sop_instance_uid != PUSH_MODEL_INSTANCE:
        raise RequestRefusedError(
            dimse_n.NO_SUCH_INSTANCE, "storage commitment has one well-known instance, and this is a different one"
        )
    if request.type_id != REQUEST_COMMITMENT:
        raise RequestRefusedError(dimse_n.NO_SUCH_ACTION, f"the action type is {request.type_id}; 1 is needed")
    transaction = uid_of(request.content, "TransactionUID")
    items = items_of(request.content, "ReferencedSOPSequence") or []
    references = tuple(dict.fromkeys(map(SopReference.of, items)))
    if not references:
        raise RequestRefusedError(dimse_n.INVALID_ARGUMENT, "ReferencedSOPSequence names no instance")
    return CommitmentRequest(request.ae_title, transaction, references)


def check_success(status: int, peer: str, message: str) -> None:
    """Raises NetworkError for a status other than success; `message`: whether a "request" or a "report" was answered."""
    if status:
        raise NetworkError(
            f"{peer} answered a commitment {message} with {meaning(status, 'commitment')}; success is needed; see its log"
        )


def _failure_reason(reference: SopReference, files: Iterable[Path]) -> int:
    """0 if one of the files is the instance, else the FailureReason."""
    reasons = {_failure_reason_of(reference, file) for file in files}
    return min(reasons, key=_BEST_FIRST.index, default=dimse_n.NO_SUCH_INSTANCE)


def _failure_reason_of(reference: SopReference, file: Path) -> int:
    try:
        uids = read_uids(file, reference.sop_instance_uid)
    except InstanceRefusedError:
        return dimse_n.PROCESSING_FAILURE
    return _COMMITTED if uids.sop_class == reference.sop_class_uid else dimse_n.CLASS_CONFLICT


@dataclass(frozen=True)
class _Requestor:
    """The association over which a request came, and whether the request is answered."""

    dimse: LimitedDimseProvider
    is_answered: threading.Event = field(default_factory=threading.Event)

    @property
    def is_connected(self) -> bool:
        return bool(self.dimse.assoc.is_established)


class _MemoryQueue:
    """Requests that are kept in memory until one thread has reported on them."""

    def __init__(self, report: Callable[[CommitmentRequest], object]) -> None:
        self._report, self._pending, self._lock = report, dict[tuple[str, str], CommitmentRequest](), threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="commitment")
        self._closed = threading.Event()

    def accept(self, request: CommitmentRequest) -> None:
        with self._lock:
            if self._pending.get(request.key, request) != request:
                raise RequestRefusedError(DUPLICATE_TRANSACTION, "the transaction UID is in use for other references")
            self._pending[request.key] = request
        self._worker.submit(self._report_until_taken, request)

    def close(self) -> None:
        """Ends the reporting; requests that are not reported yet are dropped."""
        # Set first, this ends the pause between two tries, so that the shutdown does not wait for it.
        self._closed.set()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _report_until_taken(self, request: CommitmentRequest) -> None:
        for attempt in range(TRIES):
            if attempt and self._closed.wait(PAUSE_S * attempt):
                break
            try:
                self._report(request)
                break
            except Exception as error:  # a failed network or disk must not stop the other reports
                _logger.warning("a commitment report to %s failed: %s", request.ae_title, error)
        with self._lock:
            self._pending.pop(request.key, None)
