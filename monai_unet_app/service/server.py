"""The HTTP server's connections: nobody holds one without asking for something, and no address holds all of them.

uvicorn waits without end for a request's head, and counts whoever has not asked for anything yet against its one limit. Here a
head must come within seconds; a new connection that finds no room ends the one that has waited longest without asking, or whose
answer is held back because its token was wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

DELAYED = "monai_unet.delayed"
"""Key of a request's scope: true where its answer is only held back as a punishment."""

_STALL_S = 30.0  # in which an answer must go on being read
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\nConnection: close\r\n"
    b'Content-Length: 61\r\n\r\n{"detail": "too many requests are being answered; ask later"}'
)

_logger = logging.getLogger(__name__)


class Connections:
    """The open connections; used by the one thread of the server."""

    def __init__(self, most: int, most_per_address: int, head_s: float) -> None:
        """None yet.

        Args:
            most: At one time.
            most_per_address: At one time from one address.
            head_s: Seconds in which the head of a request must come.
        """
        self.head_s = head_s
        self._most, self._most_per_address = most, most_per_address
        self._open: dict[Connection, None] = {}

    def make(self, **words: Any) -> asyncio.Protocol:
        """A new connection, as uvicorn makes one."""
        return Connection(self, **words)

    def opened(self, new: Connection) -> bool:
        """Whether there is room for a new connection; if need be another one is ended for it."""
        same = [one for one in self._open if one.host == new.host]
        if len(same) >= self._most_per_address:
            return self._end_one(same) and self.opened(new)
        if len(self._open) >= self._most:
            waiting = Counter(one.host for one in self._open if one.gives_way)
            most = max(waiting.values(), default=0)
            crowd = [one for one in self._open if waiting[one.host] == most]
            return self._end_one(crowd) and self.opened(new)
        self._open[new] = None
        return True

    def closed(self, one: Connection) -> None:
        """It is gone."""
        self._open.pop(one, None)

    def _end_one(self, crowd: list[Connection]) -> bool:
        """Ends the connection that has waited longest of those that give way; False if none does."""
        waiting = [one for one in crowd if one.gives_way]
        if not waiting:
            return False
        longest = min(waiting, key=lambda one: one.waits_since)
        self.closed(longest)
        longest.transport.abort()
        return True


class Connection(H11Protocol):
    """One connection.

    Attributes:
        host: Address of the other side.
        waits_since: By the loop's clock, when it last had an answer, or was made.
    """

    def __init__(self, connections: Connections, **words: Any) -> None:
        super().__init__(**words)
        self.host, self.waits_since = "", self.loop.time()
        self._connections = connections
        self._timers: dict[str, asyncio.TimerHandle] = {}  # "head" and "stall"
        self._has_begun = False

    @property
    def is_waiting(self) -> bool:
        """Whether no request of it is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def gives_way(self) -> bool:
        """Whether it may be ended for another: no request of it is being answered, or its answer is only held back."""
        return self.is_waiting or bool(self.cycle.scope.get(DELAYED))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.host = self.client[0] if self.client else ""
        if self._connections.opened(self):
            self._wait()
        else:
            transport.write(_FULL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.closed(self)
        for name in ("head", "stall"):
            self._stop(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.is_waiting and not self._has_begun:
            self._has_begun = True
            self._start("head", self._connections.head_s)
        try:
            super().data_received(data)
        except Exception as error:  # uvicorn cannot say 400 once an answer has begun, and asyncio would log what came
            _logger.warning("ended a connection that broke the protocol (%s)", type(error).__name__)
            self.transport.abort()
        if not self.is_waiting:
            self._stop("head")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.is_waiting:
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start("stall", _STALL_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("stall")

    def _wait(self) -> None:
        self.waits_since, self._has_begun = self.loop.time(), False
        self._start("head", self._connections.head_s)

    def _start(self, timer: str, seconds: float) -> None:
        self._stop(timer)
        self._timers[timer] = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self, timer: str) -> None:
        if timer in self._timers:
            self._timers.pop(timer).cancel()


def loop_of(head_s: float) -> asyncio.AbstractEventLoop:
    """An event loop whose servers wait so long for a TLS handshake; asyncio's own wait a minute, and uvicorn sets nothing."""

    class Loop(asyncio.SelectorEventLoop):
        async def create_server(self, *args: Any, **words: Any) -> Any:  # type: ignore[override]
            if words.get("ssl") is not None:
                words["ssl_handshake_timeout"] = head_s
            return await super().create_server(*args, **words)

    return Loop()
