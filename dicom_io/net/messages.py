"""What comes in over an association, bounded while it comes.

pynetdicom keeps the data set of a message in memory, whatever its size, and only then asks what is to be done with it. Here
that is asked when a data set begins; what is refused is read off the wire and dropped, so it costs neither memory nor disk.
"""

from __future__ import annotations

import io
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.sop_class import uid_to_service_class

from dicom_io.errors import NetworkError

LARGEST_INSTANCE = 4 * 2**30
LARGEST_OTHER = 16 * 2**20
"""The most bytes of a data set that is no instance, such as the references of a commitment request."""

_LARGEST_READ = 2**20  # an A-ASSOCIATE-RQ with 128 contexts of 40 transfer syntaxes has 0.2 MB

_MOST_MESSAGES = 65_535  # US

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How much is taken before a sender is refused with 0xA700 (out of resources); None: any amount.

    Attributes:
        instances: Of one association.
        association_bytes: Of all data sets of one association, as they come over the wire.
        instance_bytes: Of one data set.

    Raises:
        ValueError: One is less than 1.
    """

    instances: int | None = None
    association_bytes: int | None = None
    instance_bytes: int | None = LARGEST_INSTANCE

    def __post_init__(self) -> None:
        for name, most in vars(self).items():
            if most is not None and most < 1:
                raise ValueError(
                    f"the limit of {name} is {most}; at least 1 is needed, or None for any amount; correct it"
                )


class Intake(io.BytesIO):
    """The data set of one message on its way in.

    Attributes:
        refused: Why nothing of it is kept; empty while it is.
    """

    def __init__(self, begin: Callable[[], str], grow: Callable[[int, int], str]) -> None:
        """An empty one.

        Args:
            begin: Asked before its first fragment is kept; says why it may not be, or nothing.
            grow: The same before each fragment, told the bytes of the data set with it, and those of the fragment.
        """
        super().__init__()
        self.refused, self._is_begun, self._begin, self._grow = "", False, begin, grow

    def write(self, content: Any, /) -> int:
        """Keeps a fragment, or drops all there is."""
        if not self._is_begun:
            self._is_begun, self.refused = True, self._begin()
        self.refused = self.refused or self._grow(self.tell() + len(content), len(content))
        if not self.refused:
            return super().write(content)
        self.seek(0)
        self.truncate()
        return len(content)


class _Inbox(queue.Queue[Any]):
    """Messages that came. Answers to our event reports lie apart, where no request of the peer is taken for one."""

    def __init__(self) -> None:
        super().__init__()
        self.reported: queue.Queue[Any] = queue.Queue()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        is_answer = isinstance(item[1], N_EVENT_REPORT) and not item[1].is_valid_request
        if is_answer:
            self.reported.put(item[1])
        else:
            super().put(item, block, timeout)


class Messages(DIMSEServiceProvider):
    """pynetdicom's DIMSE provider of one association, with limits, and with reports beside requests in both directions."""

    def __init__(self, association: Association, limits: Limits, room: Callable[[], str]) -> None:
        """Stands in for `association.dimse`, see `bound`."""
        super().__init__(association)
        self.msg_queue = self._inbox = _Inbox()
        self._limits, self._room = limits, room
        self._instances = self._bytes = self._reports = 0
        self._sending, self._reporting = threading.Lock(), threading.Lock()
        self._serving = threading.local()

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Adds a fragment to the message that is coming in."""
        if self.message is None:
            self.message = DIMSEMessage()
            self.message.data_set = Intake(self._begin, self._grow)
        super().receive_primitive(primitive)

    def send_msg(self, primitive: Any, context_id: int) -> None:
        """Sends a message whole before another begins (PS3.7 6.3.1), then does what was to wait for it."""
        with self._sending:
            super().send_msg(primitive, context_id)
        if primitive.MessageIDBeingRespondedTo is not None:
            calls, self._serving.afterwards = getattr(self._serving, "afterwards", []), []
            for call in calls:
                call()

    def afterwards(self, call: Callable[[], None]) -> None:
        """Has something done once the request is answered that this thread serves."""
        self._serving.afterwards = [*getattr(self._serving, "afterwards", []), call]

    def report(
        self, sop_class_uid: str, sop_instance_uid: str, event_type: int, content: Dataset, wait_s: float
    ) -> int:
        """Sends an N-EVENT-REPORT, while the other side may be sending; the status of its answer.

        Raises:
            NetworkError: The association is closed, or no answer came.
        """
        with self._reporting:
            context = next((one for one in self.assoc.accepted_contexts if one.abstract_syntax == sop_class_uid), None)
            if not self.assoc.is_established or context is None or context.context_id is None:
                raise NetworkError(
                    "the association that asked is closed; an open one is needed to report on it; let its AE title have an "
                    "address"
                )
            syntax = context.transfer_syntax[0]
            request = N_EVENT_REPORT()
            self._reports = self._reports % _MOST_MESSAGES + 1
            request.MessageID, request.EventTypeID = self._reports, event_type
            request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(sop_class_uid), UID(sop_instance_uid)
            encoded = encode(content, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
            request.EventInformation = io.BytesIO(encoded or b"")
            self.send_msg(request, context.context_id)
            return self._answer(wait_s)

    def _answer(self, wait_s: float) -> int:
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and self.assoc.is_established:
            try:
                answer = self._inbox.reported.get(timeout=0.05)
            except queue.Empty:
                continue
            if answer.Status is not None and answer.MessageIDBeingRespondedTo == self._reports:
                return int(answer.Status)
        raise NetworkError(
            f"no answer to an event report came within {wait_s:g} s, or the association was closed; an answer is needed; "
            "report again"
        )

    def _begin(self) -> str:
        """Why the data set that begins may not come in; empty if it may."""
        if not isinstance(self.message, C_STORE_RQ):
            return ""
        if self._limits.instances is not None and self._instances >= self._limits.instances:
            return f"more than {self._limits.instances} instances in one association"
        try:
            refused = self._room()
        except Exception as error:  # whatever it is, nobody says that there is room
            refused = f"whether there is room cannot be told ({type(error).__name__})"
        self._instances += not refused
        return refused

    def _grow(self, size: int, more: int) -> str:
        """Why a data set may not become so large; empty if it may."""
        most, total = self._limits, self._limits.association_bytes
        if not isinstance(self.message, C_STORE_RQ):
            return f"a data set of more than {LARGEST_OTHER} bytes" if size > LARGEST_OTHER else ""
        self._bytes += more
        if most.instance_bytes is not None and size > most.instance_bytes:
            return f"an instance of more than {most.instance_bytes} bytes"
        return f"more than {total} bytes in one association" if total is not None and self._bytes > total else ""


def bound(association: Association, limits: Limits = Limits(), room: Callable[[], str] = lambda: "") -> None:
    """Puts limits on an association that is not yet negotiated, and lets reports come and go beside requests.

    It also sends small messages at once (TCP_NODELAY), and reads as much as is there instead of 4 KiB at a time.

    Args:
        association: For `evt.EVT_CONN_OPEN`.
        limits: Of what comes in over it.
        room: Asked when an instance begins to come in; says why there is no room, or nothing.
    """
    association.dimse = Messages(association, limits, room)
    serve = association._serve_request
    # pynetdicom serves a report in a thread of its own and then says that the association is not paused, whatever another
    # thread waits for: who sends or releases at that moment would wait without end
    setattr(  # noqa: B010
        association,
        "_serve_request",
        lambda message, context_id: (
            _take_report(association, message, context_id)
            if isinstance(message, N_EVENT_REPORT)
            else serve(message, context_id)
        ),
    )
    transport = association.dul.socket
    if transport is not None and transport.socket is not None:
        setattr(transport, "recv", lambda count: _read(transport.socket, count))  # noqa: B010
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _take_report(association: Association, message: N_EVENT_REPORT, context_id: int) -> None:
    """Answers an N-EVENT-REPORT; the association is aborted where its class or context cannot have one."""
    context = next((one for one in association.accepted_contexts if one.context_id == context_id), None)
    try:
        if context is None:
            raise LookupError("its presentation context was not accepted")
        uid_to_service_class(str(message.AffectedSOPClassUID))(association).SCP(message, context)
    except Exception as error:
        _logger.warning("aborted an association for an event report that fits nothing (%s)", type(error).__name__)
        association.abort()


def _read(connection: socket.socket | None, count: int) -> bytearray:
    """So many bytes, or fewer where the connection ends.

    Raises:
        OSError: More is announced than any PDU that we take has (PS3.8 9.3.1); pynetdicom then closes the connection.
    """
    if connection is None or count > _LARGEST_READ:
        raise OSError(f"a PDU of {count} bytes is announced, {_LARGEST_READ} at most are taken")
    content, have = bytearray(count), 0
    view = memoryview(content)
    while have < count and (got := connection.recv_into(view[have:])):
        have += got
    view.release()
    del content[have:]
    return content
