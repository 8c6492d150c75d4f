"""Storage commitment (PS3.4 J) as provider: what is on the disk is said to be there, instance by instance.

A request is answered at once and reported on later, on an association of ours to who asked. Its address comes from a table of
AE titles; where there is none, the report goes over the association that asked, while that is open.
"""

from __future__ import annotations

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
from pydicom.sequence import Sequence
from pydicom.uid import UID
from pynetdicom import build_role, evt

from dicom_io.errors import NetworkError
from dicom_io.net.association import COMMITMENT, COMMITMENT_INSTANCE, associated, checked_status, context
from dicom_io.net.destination import Destination
from dicom_io.net.messages import Messages
from dicom_io.net.outcome import meaning
from dicom_io.net.sending import UNCOMPRESSED
from dicom_io.net.service import (
    CLASS_CONFLICT,
    INVALID_ARGUMENT,
    NO_SUCH_ACTION,
    NO_SUCH_INSTANCE,
    PROCESSING_FAILURE,
    Request,
    RequestRefusedError,
    Service,
    items_of,
    text_of,
)
from dicom_io.net.store import InstanceRefusedError, uids_of
from dicom_io.reading.headers import is_uid

DUPLICATE_TRANSACTION = 0x0131  # PS3.3 C.14.1.1
REQUEST_COMMITMENT = 1  # action type, PS3.4 J.3.2.1
ALL_THERE, FAILURES_EXIST = 1, 2  # event types, PS3.4 J.3.3.1
TRIES = 3
PAUSE_S = 1.0

_ANSWER_S = 60.0
_THERE = 0x0000
_WORST_LAST = (_THERE, CLASS_CONFLICT, PROCESSING_FAILURE)

_logger = logging.getLogger(__name__)


class Reference(NamedTuple):
    """One instance that is asked for."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class CommitmentRequest:
    """A request for storage commitment.

    Attributes:
        ae_title: Who asked, by the title that it gave itself; the report goes to it.
        transaction_uid: Unique for one `ae_title`.
        references: Each once, in the order of the request.
    """

    ae_title: str
    transaction_uid: str
    references: tuple[Reference, ...]


class Holdings(Protocol):
    """What knows where instances are, such as `store.InstanceStore`."""

    def find(self, sop_instance_uids: Iterable[str], /) -> Mapping[str, Iterable[Path]]:
        """The files of the instances that are there."""


Accepted = Callable[[CommitmentRequest], None]


def judged(request: CommitmentRequest, store: Holdings) -> Dataset:
    """The report on a request, from what is on the disk now.

    An instance counts only if its file is there, can be read to its end, and has this SOP class and UID. Each file is read.

    Args:
        request: What is asked for.
        store: Where it should be.

    Returns:
        The event information of PS3.4 table J.3-2: TransactionUID, ReferencedSOPSequence of what is there, and
        FailedSOPSequence with a FailureReason of 0x0112 (not there), 0x0119 (of another class) or 0x0110 (cannot be read, or
        is another instance). A sequence without items is left out.
    """
    files = store.find(reference.sop_instance_uid for reference in request.references)
    reasons = {one: _reason(one, files.get(one.sop_instance_uid, ())) for one in request.references}
    report = Dataset()
    report.TransactionUID = request.transaction_uid
    there = [_item(one) for one, reason in reasons.items() if reason == _THERE]
    failed = [_item(one, reason) for one, reason in reasons.items() if reason != _THERE]
    if there:
        report.ReferencedSOPSequence = Sequence(there)
    if failed:
        report.FailedSOPSequence = Sequence(failed)
    return report


def event_type(report: Dataset) -> int:
    """1 where all is there, 2 where something failed."""
    return FAILURES_EXIST if "FailedSOPSequence" in report else ALL_THERE


def send_report(destination: Destination, report: Dataset) -> None:
    """Reports to who asked, over an association of its own on which we are the provider (role selection, PS3.7 D.3.3.4).

    A peer that passes over role selection gets the report all the same.

    Args:
        destination: Its peer speaks DIMSE.
        report: Of `judged`.

    Raises:
        NetworkError: No association, no answer, or it did not take the report.
    """
    roles = [build_role(COMMITMENT, scu_role=False, scp_role=True)]
    with associated(destination, [context(COMMITMENT, UNCOMPRESSED)], roles=roles) as link:
        answer, _ = link.ask(
            lambda association: association.send_n_event_report(
                report, event_type(report), COMMITMENT, COMMITMENT_INSTANCE
            )
        )
        status = checked_status(link, answer)
    _must_be_taken(status, destination.label)


class CommitmentProvider:
    """Takes requests for storage commitment, and reports on them; give its `service` to a provider."""

    def __init__(self, store: Holdings, addresses: Mapping[str, Destination], accepted: Accepted | None = None) -> None:
        """Prepares it.

        Args:
            store: Where the instances are.
            addresses: AE title -> where its reports go, a peer that speaks DIMSE; looked up when a report is made.
            accepted: Makes a request durable before it returns; only then it is answered with success. Whoever gives this
                calls `report` later, once for each request that was accepted and again until it succeeds. It may be
                called again with the same request, and raises RequestRefusedError to refuse one, with
                DUPLICATE_TRANSACTION where a transaction comes again with other references. What else it raises is
                answered with 0x0110. None: requests are kept in memory and reported on here, `TRIES` times at most.
        """
        self._store, self._addresses = store, addresses
        self._memory = _Memory(self.report) if accepted is None else None
        self._accepted = self._memory.accepted if self._memory else accepted
        self._asked: dict[tuple[str, str], _Asked] = {}
        self._lock = threading.Lock()

    @property
    def service(self) -> Service:
        """For `Provider(services=...)`."""
        return Service(COMMITMENT, evt.EVT_N_ACTION, self._answer, self.close)

    def report(self, request: CommitmentRequest) -> Dataset:
        """Judges a request and reports on it; the report.

        It waits until the request is answered, where that is going on.

        Raises:
            NetworkError: It cannot be reported now. The request stays as it is: report again later.
        """
        asked = self._wait_until_answered(request)
        report = judged(request, self._store)
        destination = self._addresses.get(request.ae_title)
        if destination is not None:
            send_report(destination, report)
        elif asked is None:
            raise NetworkError(
                f"the AE title {request.ae_title} has no address, and the association over which it asked is closed; one of "
                "both is needed to report; give it an address"
            )
        else:
            code = asked.messages.report(COMMITMENT, COMMITMENT_INSTANCE, event_type(report), report, _ANSWER_S)
            _must_be_taken(code, request.ae_title)
        with self._lock:
            self._asked.pop(_key(request), None)
        return report

    def close(self) -> None:
        """Ends the reporting from memory; what has not been reported is not."""
        if self._memory is not None:
            self._memory.close()

    def _answer(self, request: Request) -> None:
        wanted = commitment_request(request)
        assert self._accepted is not None
        with self._remembered(wanted, request.messages):
            self._accepted(wanted)

    @contextmanager
    def _remembered(self, wanted: CommitmentRequest, messages: Messages | None) -> Iterator[None]:
        """Keeps in mind over which association a request came, while that is open; not if it is refused."""
        if messages is None:
            yield
            return
        asked = _Asked(messages)
        messages.afterwards(asked.answered.set)
        with self._lock:
            before = {key: one for key, one in self._asked.items() if one.messages.assoc.is_established}
            self._asked = {**before, _key(wanted): asked}
        try:
            yield
        except BaseException:
            with self._lock:
                self._asked.pop(_key(wanted), None)
                if _key(wanted) in before:
                    self._asked[_key(wanted)] = before[_key(wanted)]
            raise

    def _wait_until_answered(self, request: CommitmentRequest) -> _Asked | None:
        """The association over which a request came, where it is open; no report overtakes the answer."""
        with self._lock:
            asked = self._asked.get(_key(request))
        deadline = time.monotonic() + _ANSWER_S
        while asked is not None and asked.messages.assoc.is_established and time.monotonic() < deadline:
            if asked.answered.wait(0.05):
                return asked
        return None


def commitment_request(request: Request) -> CommitmentRequest:
    """What an N-ACTION asks for.

    Raises:
        RequestRefusedError: Another action or instance, or a UID is missing or is none.
    """
    if request.sop_instance_uid != COMMITMENT_INSTANCE:
        raise RequestRefusedError(NO_SUCH_INSTANCE, "storage commitment has one well-known instance, this is another")
    if request.type_id != REQUEST_COMMITMENT:
        raise RequestRefusedError(NO_SUCH_ACTION, f"the action type is {request.type_id}; 1 is needed")
    transaction = _uid(request.content, "TransactionUID")
    items = items_of(request.content, "ReferencedSOPSequence") or []
    references = tuple(dict.fromkeys(reference(item) for item in items))
    if not references:
        raise RequestRefusedError(INVALID_ARGUMENT, "ReferencedSOPSequence names no instance")
    return CommitmentRequest(request.ae_title, transaction, references)


def reference(item: Dataset) -> Reference:
    """One item of a sequence of references. Raises RequestRefusedError where a UID is none."""
    return Reference(_uid(item, "ReferencedSOPClassUID"), _uid(item, "ReferencedSOPInstanceUID"))


def _uid(dataset: Dataset, keyword: str) -> str:
    found = text_of(dataset, keyword) or ""
    if not is_uid(found):
        raise RequestRefusedError(INVALID_ARGUMENT, f"{keyword} is no UID")
    return found


def _key(request: CommitmentRequest) -> tuple[str, str]:
    return request.ae_title, request.transaction_uid


def _reason(wanted: Reference, files: Iterable[Path]) -> int:
    """0 where one of the files is the instance, else the FailureReason."""
    found = {_reason_of_file(wanted, file) for file in files}
    return min(found, key=_WORST_LAST.index, default=NO_SUCH_INSTANCE)


def _reason_of_file(wanted: Reference, file: Path) -> int:
    try:
        _, _, sop_instance_uid, sop_class_uid = uids_of(file)
    except InstanceRefusedError:
        return PROCESSING_FAILURE
    if sop_instance_uid != wanted.sop_instance_uid:
        return PROCESSING_FAILURE
    return _THERE if sop_class_uid == wanted.sop_class_uid else CLASS_CONFLICT


def _item(one: Reference, reason: int = _THERE) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = UID(one.sop_class_uid), UID(one.sop_instance_uid)
    if reason != _THERE:
        item.FailureReason = reason
    return item


def _must_be_taken(status: int, who: str) -> None:
    if status:
        raise NetworkError(
            f"{who} answered a commitment report with {meaning(status, 'commitment')}; success is needed; look into its log"
        )


@dataclass(frozen=True)
class _Asked:
    """The association over which a request came, and whether the request is answered."""

    messages: Messages
    answered: threading.Event = field(default_factory=threading.Event)


class _Memory:
    """Requests that are kept in memory until they are reported, by one thread."""

    def __init__(self, report: Callable[[CommitmentRequest], object]) -> None:
        self._report, self._pending, self._lock = report, dict[tuple[str, str], CommitmentRequest](), threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="commitment")
        self._closed = threading.Event()

    def accepted(self, request: CommitmentRequest) -> None:
        with self._lock:
            known = self._pending.get(_key(request), request)
            if known != request:
                raise RequestRefusedError(DUPLICATE_TRANSACTION, "the transaction UID is in use for other references")
            self._pending[_key(request)] = request
        self._worker.submit(self._report_in_the_end, request)

    def close(self) -> None:
        self._closed.set()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _report_in_the_end(self, request: CommitmentRequest) -> None:
        for attempt in range(TRIES):
            if attempt and self._closed.wait(PAUSE_S * attempt):
                break
            try:
                self._report(request)
                break
            except Exception as error:  # a network, a disk: others wait for their report
                _logger.warning("a commitment report to %s failed: %s", request.ae_title, error)
        with self._lock:
            self._pending.pop(_key(request), None)
