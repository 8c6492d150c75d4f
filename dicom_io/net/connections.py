"""The connections of a provider: a caller that stays silent does not keep other callers out.

A caller has some seconds for the TLS handshake and its A-ASSOCIATE-RQ. It counts as a sender only once its association is
requested. At most `MOST_PENDING` connections are pending; when another caller connects, the oldest connection of the address
with the most pending connections is closed. The timer of PS3.8 9.1.5 (ARTIM) does not do this: it does not run while half a
PDU is read.
"""

import contextlib
import logging
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

Address = tuple[str, int]

MOST_PENDING = 64
"""Connections at one time whose association is not accepted yet."""

_ENDING_S, _POLL_S = 0.5, 0.01
_RESERVED_SHARE = 5  # one association in five is kept free for other addresses

_logger = logging.getLogger(__name__)


@dataclass
class _Pending:
    """A connection whose association is not accepted yet; `since_s` is monotonic time."""

    connection: socket.socket
    since_s: float = field(default_factory=time.monotonic)


class Connections:
    """The pending connections and the associations of a provider; several threads may use it."""

    def __init__(self, most_senders: int, negotiation_s: float) -> None:
        """No connections yet.

        Args:
            most_senders: Associations at one time.
            negotiation_s: Seconds in which an association must be accepted.
        """
        self._most_senders, self._negotiation_s = most_senders, negotiation_s
        self._pending: dict[Address, _Pending] = {}
        self._associations: list[Any] = []
        self._lock = threading.Lock()

    def add(self, address: Address, connection: socket.socket) -> None:
        """Notes a new connection, or the TLS socket that takes the place of a connection."""
        with self._lock:
            known = self._pending.get(address)
            if known is not None:
                known.connection = connection
                return
            self._forget_ended()
            if len(self._pending) >= MOST_PENDING:
                self._close(self._next_to_close())
            self._pending[address] = _Pending(connection)

    def admit(self, association: Any) -> bool:
        """Whether a requested association fits; if so, it counts from now on.

        One address gets at most four in five of `most_senders`, so that others find room. The thread of an association lives on
        for a moment after its caller has released it, and the caller may call again at once; so this waits for a moment.
        """
        deadline_s = time.monotonic() + _ENDING_S
        while not (fits := self._fits(association)) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        return fits

    def _fits(self, association: Any) -> bool:
        host = association.requestor.address
        with self._lock:
            self._forget_ended()
            of_host = sum(known.requestor.address == host for known in self._associations)
            most = self._most_senders
            if len(self._associations) >= most or of_host >= most - most // _RESERVED_SHARE:
                return False
            self._associations.append(association)
            return True

    def accept(self, association: Any) -> None:
        """Notes that an association is accepted: from now on only the idle time limits its connection."""
        caller = association.requestor
        with self._lock:
            self._pending.pop((caller.address, caller.port), None)

    def close_late(self) -> None:
        """Closes the connections that have been pending for too long."""
        with self._lock:
            self._forget_ended()
            deadline_s = time.monotonic() - self._negotiation_s
            for address in [address for address, pending in self._pending.items() if pending.since_s < deadline_s]:
                self._close(address)

    @property
    def is_idle(self) -> bool:
        """Whether no connection is pending and no association runs."""
        with self._lock:
            self._forget_ended()
            return not self._pending and not self._associations

    def _forget_ended(self) -> None:
        # The descriptor of a closed socket is -1.
        self._pending = {
            address: pending for address, pending in self._pending.items() if pending.connection.fileno() >= 0
        }
        # An association holds what it has received of a message that did not end.
        self._associations = [known for known in self._associations if known.is_alive()]

    def _next_to_close(self) -> Address:
        """The oldest connection of the address with the most pending connections; the dictionary is in order of arrival."""
        count = Counter(host for host, _ in self._pending)
        most = max(count.values())
        return next(address for address in self._pending if count[address[0]] == most)

    def _close(self, address: Address) -> None:
        with contextlib.suppress(OSError):  # the thread that reads from the socket sees its end, and closes it
            self._pending.pop(address).connection.shutdown(socket.SHUT_RDWR)
        _logger.info("closed a connection from %s: no association within the time limit", address[0])
