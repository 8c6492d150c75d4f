"""Everything that we change inside pynetdicom 3.0.4. No other module touches its private parts or subclasses its classes.

- `ReactorCheckpoint`: the reactor thread may take the answer that a `send_*` method waits for. Pull request #351 added the
  checkpoint, issue #875 shows the symptom; the race itself is not reported.
- `LimitedDimseProvider`: (1) a data set of any size is kept in memory before a handler is asked: issue #517, closed by #526,
  which writes to disk without a limit. (2) The fragments of messages that two threads send are mixed (PS3.7 6.3.1): no issue;
  #137 is about threads. (3) Answers to our event reports lie among the requests of the peer: no issue.
- `limit_association`: (1) an N-EVENT-REPORT is served in a thread of its own, which then marks the reactor as running while
  another thread has paused it: pull request #379 added the thread, issue #820 shows the deadlock. (2) A PDU may announce any
  size: no issue. (3) It is read in pieces of 4 KiB, and Nagle's algorithm delays small messages: issue #650 is about the speed.
- `answer_to_request`: an association that is rejected before the thread that asked wakes up counts as never connected, and the
  answer stays in a queue: no issue.
- `limit_read_time`: the rest of a PDU is waited for without limit: no issue; #811 is about the same place.
- `AssociationServer`: (1) the TLS handshake blocks the thread that accepts connections: no issue; fo-dicom #1766 is the same in
  another library. (2) Silent connections count as associations: no issue. (3) Each connection, before anybody has asked for
  anything, copies all supported contexts with their UIDs, which is four fifths of the work of a C-ECHO: issue #16. (4) All
  garbage of the program is collected after 60 rounds of waiting, although nobody has called: issue #328 is the reason.
- `quiet_logs`: identifiers with names of patients are logged: no issue, because `pynetdicom._config` has an option.

`tests/dicom_io/net/test_pynetdicom_patches.py` shows for each that unpatched pynetdicom still does so. When such a test fails
after an update, remove the patch.
"""

import io
import logging
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from socketserver import BaseServer
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.pdu_primitives import A_ASSOCIATE, P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import uid_to_service_class
from pynetdicom.transport import ThreadedAssociationServer

from dicom_io.errors import NetworkError
from dicom_io.net.connections import Connections
from dicom_io.net.limits import Budget, IncomingDataSet, Limits

_LARGEST_READ = 2**20  # an A-ASSOCIATE-RQ with 128 contexts of 40 transfer syntaxes has 0.2 MB
_LARGEST_MESSAGE_ID = 65_535  # US
_POLL_S = 0.05
_USUAL_LIMITS = Limits()

_logger = logging.getLogger(__name__)


def quiet_logs() -> None:
    """Keeps identifiers, which hold names of patients, out of pynetdicom's logs."""
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False


class ReactorCheckpoint:
    """Stops pynetdicom's reactor thread while we wait for an answer, in place of the `threading.Event` that it brings.

    With the event there is a moment in which the thread has passed the checkpoint and still counts as stopped. Under load it
    then takes an answer for a request now and then, and the caller waits in vain. Here `clear` returns only when the thread
    stands still.
    """

    def __init__(self, association: threading.Thread) -> None:
        self._thread, self._condition = association, threading.Condition()
        self._is_open, self._is_waiting = True, False

    def set(self) -> None:
        """Lets the thread go on."""
        with self._condition:
            self._is_open = True
            self._condition.notify_all()

    def clear(self) -> None:
        """Stops the thread; it stands still, or has ended, when this returns."""
        with self._condition:
            self._is_open = False
            # A thread that ends notifies nobody, so the wait looks at it again and again. If the thread calls this
            # itself, there is nobody to wait for.
            while not self._is_waiting and self._thread.is_alive() and threading.current_thread() is not self._thread:
                self._condition.wait(_POLL_S)

    def wait(self, timeout: float | None = None) -> bool:
        """Called by the thread in each of its rounds."""
        with self._condition:
            self._is_waiting = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._is_open, timeout)
            self._is_waiting = False
            return self._is_open

    def is_set(self) -> bool:
        """Whether the thread may go on."""
        return self._is_open


def use_safe_checkpoint(association: Association) -> None:
    """Gives an established association of ours a `ReactorCheckpoint`."""
    association._reactor_checkpoint = ReactorCheckpoint(association)  # type: ignore[assignment]


def limit_read_time(association: Association, seconds: float) -> None:
    """Bounds each read of a connected association, or a peer that stops within a PDU is waited for without end."""
    transport = association.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.settimeout(seconds)


def answer_to_request(association: Association) -> A_ASSOCIATE | None:
    """What the peer answered to a request of ours for an association, also where pynetdicom did not come to look at it."""
    waiting = association.dul.peek_next_pdu()
    return association.acceptor.primitive or (waiting if isinstance(waiting, A_ASSOCIATE) else None)


class _MessageQueue(queue.Queue[Any]):
    """Received messages. Answers to our event reports have a queue of their own, so that no request is taken for one."""

    def __init__(self) -> None:
        super().__init__()
        self.report_answers: queue.Queue[Any] = queue.Queue()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if isinstance(item[1], N_EVENT_REPORT) and not item[1].is_valid_request:
            self.report_answers.put(item[1])
        else:
            super().put(item, block, timeout)


class LimitedDimseProvider(DIMSEServiceProvider):
    """The DIMSE provider of one association, with limits, and with event reports beside requests in both directions.

    A data set is refused when it begins or while it grows. The rest of it is read off the wire and dropped, so it costs neither
    memory nor disk.
    """

    def __init__(self, association: Association, limits: Limits, check_room: Callable[[], str]) -> None:
        """Takes the place of `association.dimse`, see `limit_association`."""
        super().__init__(association)
        self.msg_queue = self._queue = _MessageQueue()
        self._budget = Budget(limits, check_room, lambda: isinstance(self.message, C_STORE_RQ))
        self._report_id = 0
        self._sending, self._reporting = threading.Lock(), threading.Lock()
        self._serving = threading.local()

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Adds a fragment to the message that is coming in."""
        if self.message is None:
            # The data set of ours is in its place before the first fragment, so that every byte counts.
            self.message = DIMSEMessage()
            self.message.data_set = IncomingDataSet(self._budget.refuse_start, self._budget.refuse_fragment)
        super().receive_primitive(primitive)

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Sends a message whole before another begins (PS3.7 6.3.1); after an answer, makes the calls of `after_answer`."""
        with self._sending:
            super().send_msg(primitive, context_id)
        if primitive.MessageIDBeingRespondedTo is not None:
            calls, self._serving.calls = getattr(self._serving, "calls", []), []
            for call in calls:
                call()

    def after_answer(self, call: Callable[[], None]) -> None:
        """Makes a call once the request that this thread serves is answered."""
        self._serving.calls = [*getattr(self._serving, "calls", []), call]

    def report(
        self, sop_class_uid: str, sop_instance_uid: str, event_type: int, content: Dataset, wait_s: float
    ) -> int:
        """Sends an N-EVENT-REPORT, also while the other side sends; the status of its answer.

        Raises:
            NetworkError: The association is closed, or no answer came.
        """
        with self._reporting:
            contexts = (known for known in self.assoc.accepted_contexts if known.abstract_syntax == sop_class_uid)
            context = next(contexts, None)
            if not self.assoc.is_established or context is None or context.context_id is None:
                raise NetworkError(
                    "the association of the request is closed; an open association is needed for the report; configure an "
                    "address for this AE title"
                )
            syntax = context.transfer_syntax[0]
            request = N_EVENT_REPORT()
            self._report_id = self._report_id % _LARGEST_MESSAGE_ID + 1
            request.MessageID, request.EventTypeID = self._report_id, event_type
            request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(sop_class_uid), UID(sop_instance_uid)
            encoded = encode(content, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
            request.EventInformation = io.BytesIO(encoded or b"")
            self.send_msg(request, context.context_id)
            return self._report_answer(wait_s)

    def _report_answer(self, wait_s: float) -> int:
        deadline_s = time.monotonic() + wait_s
        while time.monotonic() < deadline_s and self.assoc.is_established:
            try:
                answer = self._queue.report_answers.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            # An answer to an earlier report, which came after its time limit, is passed over.
            if answer.Status is not None and answer.MessageIDBeingRespondedTo == self._report_id:
                return int(answer.Status)
        raise NetworkError(
            f"no answer to an event report came within {wait_s:g} s, or the association was closed; an answer is needed; "
            "report again"
        )


def limit_association(
    association: Association, limits: Limits = _USUAL_LIMITS, check_room: Callable[[], str] = lambda: ""
) -> None:
    """Puts limits on an association that is not negotiated yet, and lets event reports come and go beside requests.

    It also sends small messages at once (TCP_NODELAY), and reads as much as is there instead of 4 KiB at a time.

    Args:
        association: The association of an `evt.EVT_CONN_OPEN`.
        limits: How much may come in.
        check_room: Called when an instance begins to come in; returns why there is no room, or "".
    """
    association.dimse = LimitedDimseProvider(association, limits, check_room)
    serve = association._serve_request

    def serve_request(message: Any, context_id: int) -> None:
        # pynetdicom serves a report in a thread of its own and then sets `_is_paused = False`, whatever another thread waits
        # for: a thread that sends or releases at that moment would wait without end
        if isinstance(message, N_EVENT_REPORT):
            _answer_report(association, message, context_id)
        else:
            serve(message, context_id)

    setattr(association, "_serve_request", serve_request)  # noqa: B010  # mypy takes no method for another
    transport = association.dul.socket
    if transport is not None and transport.socket is not None:
        setattr(transport, "recv", lambda count: read_at_most(transport.socket, count))  # noqa: B010
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _answer_report(association: Association, message: N_EVENT_REPORT, context_id: int) -> None:
    """Answers an N-EVENT-REPORT; aborts the association if its class or context cannot have event reports."""
    context = next((known for known in association.accepted_contexts if known.context_id == context_id), None)
    try:
        if context is None:
            raise LookupError("its presentation context was not accepted")
        uid_to_service_class(str(message.AffectedSOPClassUID))(association).SCP(message, context)
    # pynetdicom does the same with a request that its service cannot handle: it aborts the association. An error must
    # not end the thread that reads the messages.
    except Exception as error:
        _logger.warning("aborted an association: its event report fits no service (%s)", type(error).__name__)
        association.abort()


def read_at_most(connection: socket.socket | None, count: int) -> bytearray:
    """`count` bytes of a connection, or fewer if the connection ends.

    Raises:
        OSError: `count` is more than any PDU that we take has (PS3.8 9.3.1); pynetdicom then closes the connection.
    """
    if connection is None or count > _LARGEST_READ:
        raise OSError(f"a PDU of {count} bytes is announced, {_LARGEST_READ} at most are taken")
    content, have = bytearray(count), 0
    view = memoryview(content)
    while have < count and (got := connection.recv_into(view[have:])):
        have += got
    # A bytearray cannot be shortened while a view of it exists.
    view.release()
    del content[have:]
    return content


class _SharedContexts(list[PresentationContext]):
    """The contexts of a server. pynetdicom makes a deep copy for each connection; nothing changes them, so a list will do."""

    def __deepcopy__(self, memo: dict[int, Any]) -> list[PresentationContext]:
        return list(self)


class AssociationServer(ThreadedAssociationServer):
    """pynetdicom's server; a caller that stays silent, or stops within a handshake, does not keep other callers out."""

    def __init__(
        self,
        ae: AE,
        address: tuple[str, int],
        contexts: Sequence[PresentationContext],
        handlers: list[Any],
        connections: Connections,
        tls_context: ssl.SSLContext | None,
    ) -> None:
        self.tls_context, self.connections = tls_context, connections
        self._has_garbage = False
        super().__init__(ae, address, ae.ae_title, _SharedContexts(contexts), evt_handlers=handlers)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._has_garbage = True  # what an association leaves behind
        self.connections.add(client_address[:2], request)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Makes the TLS handshake in the thread of the connection."""
        request.settimeout(self.ae.network_timeout)
        if self.tls_context is not None:
            # Wrapping detaches the plain socket, which then counts as closed. So the TLS socket takes its place
            # before the handshake, which may last.
            request = self.tls_context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
            self.connections.add(client_address[:2], request)
            request.do_handshake()
        super().finish_request(request, client_address)

    def service_actions(self) -> None:
        self.connections.close_late()
        if self._has_garbage:
            super().service_actions()
            collected = self._gc[0] == 0
            self._has_garbage = not (collected and self.connections.is_idle)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _logger.warning("a connection from %s failed (TLS handshake or time)", client_address[0])

    def shutdown(self) -> None:
        BaseServer.shutdown(self)  # pynetdicom's own also looks for the server in a list that ours is not in
        self.server_close()
