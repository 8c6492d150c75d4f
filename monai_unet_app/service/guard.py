"""The checks that every request passes before its route runs: token, origin, and the size and duration of its body.

No byte of a request's body is read before its token is known. If a route fails, the answer does not quote the error, which may
hold a DICOM header; the log states the error's class and place.
"""

import asyncio
import errno
import logging
import sqlite3
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

from monai_unet_app.errors import AppError
from monai_unet_app.service.access import ASK, is_from_elsewhere, token_of
from monai_unet_app.service.audit import AuditTrail, TrailError
from monai_unet_app.service.database import is_locked
from monai_unet_app.service.server import DELAYED, FULL_BODY, KEPT
from monai_unet_app.service.site import HttpConfig
from monai_unet_app.service.tokens import Tokens

OPEN_PATHS = ("/health", "/ready")
"""Paths that need no token, and for which connections are kept when all others are in use."""

MOST_TEXT_BYTES = 1 << 20
"""The largest body of a request that brings no file."""

TRAIL_FAULT = "a fault of the node: its audit trail cannot be written"

_TEXT_S = 30.0  # within which such a body must come
_TAKE_FILES = ("/studies", "/results/{number}/decision", "/results/{number}/verdict")
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
_INTERVAL_S = 60.0  # from an address's first line in the audit trail to the second, which counts all attempts since
_MOST_ADDRESSES = 20  # with lines of their own within that interval
_OTHERS = "others"
_MOST_DELAYED = 8  # answers to one address that are delayed at one time

_logger = logging.getLogger(__name__)


class FailedLogins:
    """Records the addresses that sent an invalid token; the audit trail gets few lines, however many such requests come."""

    def __init__(self, audit: AuditTrail) -> None:
        self._audit = audit
        self._unrecorded: dict[str, int] = {}  # attempts by address, for a minute after the address's first line
        self._summaries: set[asyncio.Task[None]] = set()
        self._delayed: Counter[str] = Counter()  # answers by address that are delayed now

    async def record(self, address: str, reason: str) -> bool:
        """Records an attempt, and waits: the more attempts there were in the last minute, the longer.

        Returns:
            False if it did not wait, because the most answers to this address are delayed already.
        """
        name = address if address in self._unrecorded or len(self._unrecorded) < _MOST_ADDRESSES else _OTHERS
        count = self._unrecorded.get(name, -1) + 1
        self._unrecorded[name] = count
        if count == 0:
            summary = asyncio.create_task(self._write_summary(name))
            self._summaries.add(summary)  # the event loop itself keeps no task alive
            summary.add_done_callback(self._summaries.discard)
            await self._write(address=name, tries=1, reason=reason)
        if self._delayed[name] >= _MOST_DELAYED:
            return False
        self._delayed[name] += 1
        try:
            await asyncio.sleep(min(_FIRST_PAUSE_S * 2 ** min(count, 8), _LONGEST_PAUSE_S))
        finally:
            self._delayed[name] -= 1
            self._delayed += Counter()  # drops the addresses at 0
        return True

    async def _write_summary(self, name: str) -> None:
        await asyncio.sleep(_INTERVAL_S)
        if (tries := self._unrecorded.pop(name)) > 0:
            await self._write(address=name, tries=tries, reason="further attempts in the same minute")

    async def _write(self, **facts: Any) -> None:
        try:
            await run_in_threadpool(self._audit.write_or_keep, "login failed", **facts)
        except (OSError, AppError, sqlite3.Error) as error:  # the answer to the caller is the same
            _logger.error("a failed login could not be recorded (%s)", type(error).__name__)


class Guard:
    """ASGI middleware before all routes: refuses requests without a valid token, adds headers, answers if a route fails."""

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
                if scope.get(KEPT):
                    headers["Connection"] = "close"
            await send(message)
            has_begun = True

        try:
            answer = await self._refusal(Request(scope)) or self._app
            await answer(scope, receive, send_on)
        except ClientDisconnect:
            return
        except Exception as error:
            if isinstance(error, LocalProtocolError) and not has_begun:
                return  # the rest of the request was no HTTP; uvicorn has answered that already
            _log_failure(scope, error)
            if not has_begun:
                await _failure_answer(error)(scope, receive, send_on)

    async def _refusal(self, request: Request) -> Response | None:
        """The answer to a request without a valid token or without room; None for others, whose `state.holder` is then set."""
        if request.scope["path"] in OPEN_PATHS:
            return None
        if request.scope.get(KEPT):
            return Response(FULL_BODY, 503, _LATER, "application/json")
        # Before the token: a browser sends the password that it remembers along with the form of any site.
        if is_from_elsewhere(request):
            return JSONResponse(
                {"detail": "the request comes from a page of another site; only pages of the node are allowed"}, 403
            )
        token = token_of(request.headers.get("Authorization", ""))
        holder = await run_in_threadpool(self._tokens.holder_of, token) if token else None
        if holder is not None and not holder.is_expired:
            request.state.holder = holder
            return None
        reason = "no such token" if holder is None else f"the token of {holder.name} was valid until {holder.expires}"
        # Only wrong tokens are delayed and recorded: a request without a token guesses nothing.
        if token:
            request.scope[DELAYED] = True  # a connection whose answer is delayed takes no room from others
            if not await self._failed.record(request.client.host if request.client else "", reason):
                return JSONResponse({"detail": "too many wrong tokens come from this address; ask later"}, 429, _LATER)
        needed = (
            "a token is needed"
            if holder is None
            else f"the token was valid until {holder.expires}; a new token is needed"
        )
        return JSONResponse({"detail": needed}, 401, ASK)


def _log_failure(scope: Scope, error: Exception) -> None:
    """Logs which route failed and where, without the text of the error."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    route = getattr(scope.get("route"), "path", "no route")
    where = f"{frame.name}, {Path(frame.filename).name} line {frame.lineno}"
    _logger.error("could not answer %s %s: %s in %s", scope["method"], route, type(error).__name__, where)


def _failure_answer(error: Exception) -> Response:
    """The answer where a route failed, without the text of the error."""
    # 507 Insufficient Storage (RFC 4918, 11.5): the request is right, and may be sent again when there is room.
    is_sqlite_full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    if is_sqlite_full or (isinstance(error, OSError) and error.errno in _NO_ROOM):
        return JSONResponse({"detail": "the node's disk is full; send it again later"}, 507)
    if isinstance(error, TrailError):
        return JSONResponse({"detail": f"{TRAIL_FAULT}; nothing was done; tell an administrator"}, 503, _LATER)
    if is_locked(error):
        return JSONResponse(
            {"detail": "another program keeps the node's database locked; ask again later"}, 503, _LATER
        )
    return JSONResponse(
        {"detail": "the node could not answer; the log has the place of the fault; tell an administrator"}, 500
    )


class BoundedRoute(APIRoute):
    """A route that bounds the size of a request's body and the time for which it may come."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function that answers a request."""
        answer = super().get_route_handler()

        async def answer_bounded(request: Request) -> Response:
            config: HttpConfig = request.app.state.config
            if self.path in _TAKE_FILES and not is_json(request):
                return await answer(_bounded(request, config.most_upload_gb * 1e9, config.most_upload_s, config))
            return await answer(_bounded(request, MOST_TEXT_BYTES, min(_TEXT_S, config.most_upload_s), config))

        return answer_bounded


def _bounded(request: Request, most_bytes: float, most_s: float, config: HttpConfig) -> Request:
    """The request, whose body is read within bounds.

    Reading more than `most_bytes` of it raises a 413; reading after `most_s` seconds, or when it has come too slowly for
    `slow_upload_s` seconds, raises a 408.
    """
    clock, rate = asyncio.get_running_loop().time, 1000 * config.least_upload_kb_per_second
    left, end = most_bytes, clock() + most_s
    # Each wait takes from it, and each byte gives back the time that it may take
    patience_s = config.slow_upload_s

    async def receive() -> Any:
        nonlocal left, patience_s
        begin = clock()
        try:
            async with asyncio.timeout_at(min(end, begin + patience_s)):
                message = await request.receive()
        except TimeoutError as error:
            raise HTTPException(408, _why_late(clock() >= end, config)) from error
        # Counted as it comes: a chunked body has no Content-Length, and a Content-Length may be wrong.
        length = len(message.get("body", b""))
        left -= length
        if left < 0:
            raise HTTPException(413, "the upload is larger than this node allows; split it")
        patience_s = min(config.slow_upload_s, patience_s - (clock() - begin) + length / rate)
        return message

    return Request(request.scope, receive)


def _why_late(is_over: bool, config: HttpConfig) -> str:
    if is_over:
        return "the upload took longer than this node allows"
    return (
        f"the upload was slower than {config.least_upload_kb_per_second:g} kB/s for {config.slow_upload_s:g} s; send it "
        "again over a faster line"
    )


def is_json(request: Request) -> bool:
    """Whether the body is declared as JSON."""
    return request.headers.get("Content-Type", "").startswith("application/json")
