"""What every request passes before a route sees it: who asks, from where, how much and how long; and what stays inside.

Nothing of a request's body is read for somebody without a token. What goes wrong in a route is answered without its reason,
which may hold what a header said, and logged by its kind and place.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from h11 import LocalProtocolError
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monai_unet_app.service.access import ASK, is_from_elsewhere, token_of
from monai_unet_app.service.audit import AuditTrail
from monai_unet_app.service.server import DELAYED
from monai_unet_app.service.site_file import HttpConfig
from monai_unet_app.service.tokens import Tokens

OPEN_PATHS = ("/health", "/ready")
"""What is answered to anybody."""

MOST_WORDS_BYTES = 1 << 20
"""Of the body of a request that brings no file."""

_WORDS_S = 30.0  # in which such a body must come
_TAKE_FILES = ("/studies", "/results/{number}/verdict")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer the buttons of a page send "Origin: null"
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
}
_HSTS = {"Strict-Transport-Security": "max-age=31536000"}  # RFC 6797; a year
_LATER = {"Retry-After": "5"}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 4.0
_TOLD_S = 60.0  # from the first line on an address to the second, which counts all since
_MOST_TOLD = 20  # addresses with lines of their own in that time
_OTHERS = "others"
_MOST_HELD = 8  # answers that are held back at one time for one address

_logger = logging.getLogger(__name__)


class FailedLogins:
    """Writes down which addresses came with a token that lets nobody in; few lines, however many such requests there are."""

    def __init__(self, audit: AuditTrail) -> None:
        self._audit = audit
        self._unwritten: dict[str, int] = {}  # by address, for a minute after its first line
        self._later: set[asyncio.Task[None]] = set()
        self._held: Counter[str] = Counter()  # by address, answers that are held back now

    async def note(self, address: str, why: str) -> bool:
        """One more. Waits before it ends, the longer the more there were in the last minute.

        Returns:
            False where it did not wait, since as many answers to this address as may be are held back already.
        """
        name = address if address in self._unwritten or len(self._unwritten) < _MOST_TOLD else _OTHERS
        count = self._unwritten.get(name, -1) + 1
        self._unwritten[name] = count
        if count == 0:
            self._later.add(asyncio.create_task(self._write_later(name)))
            await self._write(address=name, tries=1, reason=why)
        if self._held[name] >= _MOST_HELD:
            return False
        self._held[name] += 1
        try:
            await asyncio.sleep(min(_FIRST_PAUSE_S * 2 ** min(count, 8), _LONGEST_PAUSE_S))
        finally:
            self._held[name] -= 1
            self._held += Counter()  # without those at 0
        return True

    async def _write_later(self, name: str) -> None:
        await asyncio.sleep(_TOLD_S)
        self._later.discard(asyncio.current_task())  # type: ignore[arg-type]
        if (tries := self._unwritten.pop(name)) > 0:
            await self._write(address=name, tries=tries, reason="more of the same minute")

    async def _write(self, **facts: Any) -> None:
        try:
            await run_in_threadpool(self._audit.write, "login failed", **facts)
        except OSError as error:  # the answer is the same
            _logger.error("a failed login could not be written down (%s)", type(error).__name__)


class Guard:
    """ASGI middleware before all routes: refuses who may not ask, adds headers to answers, and answers where a route fails."""

    def __init__(self, app: ASGIApp, config: HttpConfig, tokens: Tokens, audit: AuditTrail) -> None:
        self._app, self._tokens, self._failed = app, tokens, FailedLogins(audit)
        self._headers = _HEADERS | (_HSTS if config.tls is not None else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_on(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)
            has_begun = True

        try:
            answer = await self._refusal(Request(scope)) or self._app
            await answer(scope, receive, send_on)
        except ClientDisconnect:
            return
        except Exception as error:
            if isinstance(error, LocalProtocolError) and not has_begun:
                return  # the rest of the request was no HTTP, and is answered so already
            _log_failure(scope, error)
            if not has_begun:
                await _failure_answer(error)(scope, receive, send_on)

    async def _refusal(self, request: Request) -> Response | None:
        """The answer to whoever may not ask; None to others, whose holder is then in the request's state."""
        if request.scope["path"] in OPEN_PATHS:
            return None
        if is_from_elsewhere(request):
            return JSONResponse({"detail": "a page of another site asks; the node's own pages may"}, 403)
        token = token_of(request.headers.get("Authorization", ""))
        holder = await run_in_threadpool(self._tokens.holder_of, token) if token else None
        if holder is not None and not holder.is_expired:
            request.state.holder = holder
            return None
        why = "no such token" if holder is None else f"the token of {holder.name} held until {holder.expires}"
        if token:
            request.scope[DELAYED] = True  # whoever is held back takes no place from others
            if not await self._failed.note(request.client.host if request.client else "", why):
                return JSONResponse({"detail": "too many wrong tokens come from this address; ask later"}, 429, _LATER)
        told = "a token is needed" if holder is None else f"the token held until {holder.expires}; a new one is needed"
        return JSONResponse({"detail": told}, 401, ASK)


def _log_failure(scope: Scope, error: Exception) -> None:
    """Writes down which route failed and where, without what the error says."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    route = getattr(scope.get("route"), "path", "no route")
    _logger.error(
        "could not answer %s %s: %s in %s, %s line %s",
        scope["method"],
        route,
        type(error).__name__,
        where.name,
        Path(where.filename).name,
        where.lineno,
    )


def _failure_answer(error: Exception) -> Response:
    """The answer where a route failed, without what the error says."""
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return JSONResponse({"detail": "the node's disk is full; send it again later"}, 507)
    return JSONResponse({"detail": "the node could not answer; its log says where; tell an administrator"}, 500)


class BoundedRoute(APIRoute):
    """A route through which comes a body of bounded size, in bounded time, whoever reads it and into what."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        answer = super().get_route_handler()

        async def answer_bounded(request: Request) -> Response:
            config: HttpConfig = request.app.state.config
            if self.path in _TAKE_FILES and not is_json(request):
                return await answer(_bounded(request, config.most_upload_gb * 1e9, config.most_upload_s))
            return await answer(_bounded(request, MOST_WORDS_BYTES, min(_WORDS_S, config.most_upload_s)))

        return answer_bounded


def _bounded(request: Request, most_bytes: float, most_s: float) -> Request:
    """The request; whoever reads more of its body, or longer at it, gets a 413 or a 408."""
    left, end = most_bytes, asyncio.get_running_loop().time() + most_s

    async def receive() -> Any:
        nonlocal left
        try:
            async with asyncio.timeout_at(end):
                message = await request.receive()
        except TimeoutError as error:
            raise HTTPException(408, "the upload took longer than this node waits") from error
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, "the upload is larger than this node takes; split it")
        return message

    return Request(request.scope, receive)


def is_json(request: Request) -> bool:
    """Whether the body is said to be JSON."""
    return request.headers.get("Content-Type", "").startswith("application/json")
