"""The HTTP server and its limits on connections: an idle connection gives way, and no address may hold all connections.

uvicorn waits without limit for the head of a request, and counts connections without a request against its only limit. Here the
head of a request must come within seconds. A new connection that finds no room ends the connection that has waited longest
without a request, or whose answer is delayed because its token was wrong. Where none gives way, it gets one of a few kept
connections, which are for one request each and only for those that ask how the node is.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from monai_unet_app.errors import AppError
from monai_unet_app.service.site import HttpConfig

DELAYED = "monai_unet.delayed"
"""Key of a request's scope: true while its answer is delayed because its token was wrong."""

KEPT = "monai_unet.kept"
"""Key of a request's scope: true if it came over a kept connection."""

FULL_BODY = b'{"detail": "too many requests are being answered; ask later"}'
"""The answer where all connections are in use."""

_MOST_KEPT = 4  # kept connections at one time
_STALL_S = 30.0  # the longest time for which a client may read nothing of its answer
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(FULL_BODY), FULL_BODY)
)

_logger = logging.getLogger(__name__)


class HttpServer:
    """The HTTP server, which runs in a thread of its own from the beginning of `with` to its end."""

    def __init__(self, app: FastAPI, config: HttpConfig) -> None:
        self._config = config
        settings = uvicorn.Config(
            app,
            http=cast(Any, partial(Connection, HttpConnections(config))),
            ws="none",
            host=config.host,
            port=config.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=10,
            ssl_certfile=config.tls.certificate if config.tls else None,
            ssl_keyfile=config.tls.key if config.tls else None,
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._run, name="http server", daemon=True)

    @property
    def port(self) -> int:
        """The TCP port on which it listens."""
        return int(self._server.servers[0].sockets[0].getsockname()[1])

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: loop_of(self._config.head_s)) as runner:
            runner.run(self._server.serve())

    def __enter__(self) -> "HttpServer":
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise AppError(
                    f"the HTTP API cannot listen on {self._config.host}:{self._config.port}; a free port of this machine is "
                    "needed; stop the program that uses it, or choose another port"
                )
            time.sleep(0.02)
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.should_exit = True
        self._thread.join()


class HttpConnections:
    """The open connections; only the server's thread uses them."""

    def __init__(self, config: HttpConfig) -> None:
        """No connection yet; `config` has their limits."""
        self.config = config
        self._open: dict[Connection, None] = {}
        self._kept: dict[Connection, None] = {}

    def opened(self, new: "Connection") -> bool:
        """Whether there is room for a new connection, or a kept one; if necessary, another connection is ended for it."""
        if self._has_room(new):
            return True
        # Whoever waits in a kept connection is told that there is no room for more
        if len(self._kept) >= _MOST_KEPT and not self._end_longest_waiting(self._kept, _FULL):
            return False
        new.is_kept = True
        self._kept[new] = None
        return True

    def _has_room(self, new: "Connection") -> bool:
        same_host = [connection for connection in self._open if connection.host == new.host]
        # The caller's own address gives way first.
        if len(same_host) >= self.config.most_per_address:
            return self._end_longest_waiting(same_host) and self._has_room(new)
        if len(self._open) >= self.config.most_connections:
            return self._end_longest_waiting(self._open) and self._has_room(new)
        self._open[new] = None
        return True

    def closed(self, connection: "Connection") -> None:
        """Forgets a connection."""
        self._open.pop(connection, None)
        self._kept.pop(connection, None)

    def _end_longest_waiting(self, connections: "Iterable[Connection]", last_word: bytes = b"") -> bool:
        """Ends the connection that has waited longest among those that give way; False if none of them does.

        Args:
            connections: Some of the open ones.
            last_word: What a client is told that has asked for nothing yet.
        """
        waiting = [connection for connection in connections if connection.gives_way]
        if not waiting:
            return False
        # Of the address with most of them: nobody can push others out by opening many connections (decision 0027).
        count = Counter(connection.host for connection in waiting)
        longest = min(waiting, key=lambda connection: (-count[connection.host], connection.waits_since))
        self.closed(longest)
        if last_word and longest.cycle is None:
            longest.transport.write(last_word)
            longest.transport.close()
        else:
            # Not close(), which would wait until the client has read what was written to it.
            longest.transport.abort()
        return True


class Connection(H11Protocol):
    """A connection.

    Attributes:
        host: Address of the client.
        waits_since: When its last answer was complete, or when it was opened, by the clock of the event loop.
        is_kept: It was opened when all connections were in use, for a request that asks how the node is.
    """

    def __init__(self, connections: HttpConnections, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.host, self.waits_since, self.is_kept = "", self.loop.time(), False
        self._connections = connections
        self._timers: dict[str, asyncio.TimerHandle] = {}  # "head" and "stall"
        self._has_begun = False
        answer = self.app

        async def answer_marked(scope: Any, receive: Any, send: Any) -> None:
            scope[KEPT] = self.is_kept
            await answer(scope, receive, send)

        self.app = answer_marked

    @property
    def is_waiting(self) -> bool:
        """Whether no request of the connection is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def gives_way(self) -> bool:
        """Whether it may be ended for another connection: no request is being answered, or the answer is only delayed."""
        return self.is_waiting or bool(self.cycle.scope.get(DELAYED))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn types it
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
        # The time for a head runs from its first byte and does not begin anew: bytes that trickle in gain no time.
        if self.is_waiting and not self._has_begun:
            self._has_begun = True
            self._start("head", self._connections.config.head_s)
        try:
            super().data_received(data)
        except Exception as error:  # uvicorn cannot answer 400 once an answer has begun; asyncio would log the data
            _logger.warning("closed a connection that violated the protocol (%s)", type(error).__name__)
            self.transport.abort()
        if not self.is_waiting:
            self._stop("head")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.is_waiting:
            self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        # Called when the client reads too slowly; without a limit, it could hold its connection for ever.
        self._start("stall", _STALL_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("stall")

    def _wait(self) -> None:
        self.waits_since, self._has_begun = self.loop.time(), False
        self._start("head", self._connections.config.head_s)

    def _start(self, timer: str, seconds: float) -> None:
        self._stop(timer)
        self._timers[timer] = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self, timer: str) -> None:
        if timer in self._timers:
            self._timers.pop(timer).cancel()


def loop_of(head_s: float) -> asyncio.AbstractEventLoop:
    """An event loop whose servers wait at most `head_s` for a TLS handshake; asyncio waits a minute, uvicorn sets no limit."""

    class Loop(asyncio.SelectorEventLoop):
        async def create_server(self, *args: Any, **options: Any) -> Any:
            if options.get("ssl") is not None:
                options["ssl_handshake_timeout"] = head_s
            return await super().create_server(*args, **options)

    return Loop()
