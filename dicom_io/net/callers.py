"""The connections of a provider, so that callers who say nothing keep nobody else out.

A caller has some seconds for the TLS handshake and its A-ASSOCIATE-RQ. Until its association is accepted it does not count as a
sender; there may be so many of such callers, and one more ends the connection of the one that has waited longest, from the
address that has most of them. The timer of PS3.8 9.1.5 (ARTIM) does not do this: it does not run while half a PDU is read.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

Address = tuple[str, int]

MOST_WAITING = 64
"""Connections at one time whose association is not accepted yet."""

_KEPT_FREE = 5  # one in so many associations is kept free for other addresses

_logger = logging.getLogger(__name__)


@dataclass
class _Waiting:
    """A connection whose association is not accepted yet; `since` is of the monotonic clock."""

    connection: socket.socket
    since: float = field(default_factory=time.monotonic)


class Callers:
    """Who is connected; several threads may use it."""

    def __init__(self, most_senders: int, say_s: float) -> None:
        """Nobody yet.

        Args:
            most_senders: Associations at one time.
            say_s: Seconds in which an association must be accepted.
        """
        self._most_senders, self._say_s = most_senders, say_s
        self._waiting: dict[Address, _Waiting] = {}
        self._senders: list[Any] = []
        self._lock = threading.Lock()

    def connected(self, address: Address, connection: socket.socket) -> None:
        """A connection was made, or goes on as another socket (TLS)."""
        with self._lock:
            known = self._waiting.get(address)
            if known is not None:
                known.connection = connection
                return
            self._forget_closed()
            if len(self._waiting) >= MOST_WAITING:
                self._end(self._next_to_go())
            self._waiting[address] = _Waiting(connection)

    def admit(self, association: Any) -> bool:
        """Whether an association that is asked for may be made; it counts from now on.

        One address gets no more than four in five of `most_senders`, so that others find room.
        """
        host = association.requestor.address
        with self._lock:
            self._senders = [one for one in self._senders if one.is_alive()]
            of_host = sum(one.requestor.address == host for one in self._senders)
            most = self._most_senders
            if len(self._senders) >= most or of_host >= most - most // _KEPT_FREE:
                return False
            self._senders.append(association)
            return True

    def accepted(self, address: Address) -> None:
        """Its association is accepted: it may be silent for as long as any sender."""
        with self._lock:
            self._waiting.pop(address, None)

    def end_late(self) -> None:
        """Ends connections that have waited too long."""
        with self._lock:
            self._forget_closed()
            late = time.monotonic() - self._say_s
            for address in [address for address, one in self._waiting.items() if one.since < late]:
                self._end(address)

    def _forget_closed(self) -> None:
        self._waiting = {address: one for address, one in self._waiting.items() if one.connection.fileno() >= 0}

    def _next_to_go(self) -> Address:
        """The one that has waited longest, from the address that has most of them; they are in the order in which they came."""
        count = Counter(host for host, _ in self._waiting)
        most = max(count.values())
        return next(address for address in self._waiting if count[address[0]] == most)

    def _end(self, address: Address) -> None:
        with contextlib.suppress(OSError):  # whoever reads from it hears its end, and closes it
            self._waiting.pop(address).connection.shutdown(socket.SHUT_RDWR)
        _logger.info("ended a connection from %s that had not said who it is", address[0])
