"""What every request and WebSocket goes through, outermost first: Context, SameOrigin, Bounds. Plain ASGI."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import is_loopback
from .errors import ApiError, Forbidden, TooLarge
from .metrics import Metrics

log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Context:
    """Gives each an id, the caller's own if it brings one, counts it, and logs it when it has ended."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        began_s = time.monotonic()
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
                status = message.get("status", 101)
                MutableHeaders(raw=message.setdefault("headers", [])).append(REQUEST_ID, request_id)
            await send(message)

        live = self._metrics.connections if scope["type"] == "websocket" else None
        if live is not None:
            live.inc()
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if live is not None:
                live.dec()
            route = getattr(scope.get("route"), "path", "none")  # not the path: there are too many of those
            self._metrics.requests.labels(route, status).inc()
            told = {
                "request": request_id,
                "method": scope.get("method", "WEBSOCKET"),
                "path": scope["path"],
                "status": status,
                "duration_s": round(time.monotonic() - began_s, 3),
                "client": scope["client"][0] if scope.get("client") else None,
            }
            log.info("request", extra=told)


class SameOrigin:
    """Refuses what web pages of other origins ask for, unless these are allowed. What is not a browser has no origin.

    A browser asks no permission before it opens a WebSocket or sends a simple POST for a foreign page. On a machine
    where keys are off, any page that its user visits could otherwise speak through the gateway. Such a page can also
    have its own name resolve to this machine, and so have one origin with the gateway. Hence `only_loopback`, for where
    keys are off: the name that was called must be one of this machine.
    """

    def __init__(
        self, app: ASGIApp, allowed: Collection[str], only_loopback: bool, refusal: Callable[[ApiError], Response]
    ) -> None:
        self._app = app
        self._allowed = allowed
        self._only_loopback = only_loopback
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] in ("http", "websocket") else Headers()
        host, origin = headers.get("host"), headers.get("origin")
        if self._only_loopback and host is not None and not is_loopback(_name(f"//{host}")):
            told = f"Host is {host!r}; allowed where there are no keys: a name of this machine, such as localhost"
        elif origin is not None and not self._is_allowed(origin, host or ""):
            told = f"Origin is {origin!r}; allowed: the gateway's own, and those of the setting cors_origins"
        else:
            await self._app(scope, receive, send)
            return
        await self._refusal(Forbidden(told))(scope, receive, send)

    def _is_allowed(self, origin: str, host: str) -> bool:
        return "*" in self._allowed or origin in self._allowed or origin.partition("://")[2].lower() == host.lower()


def _name(url: str) -> str:
    """The host name in it; "" if there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class Bounds:
    """Bounds the size of a request's body, and the time that a message to a WebSocket may take to be taken."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, send_timeout_s: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        taken_bytes = 0

        async def receive_bounded() -> Message:
            nonlocal taken_bytes
            message = await receive()
            taken_bytes += len(message.get("body", b""))
            if taken_bytes > self._max_body_bytes:
                raise TooLarge(f"the body is longer than {self._max_body_bytes} bytes")
            return message

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._send_timeout_s):
                    await send(message)
            except TimeoutError:
                # What a server that notices a lost connection raises; Starlette makes a WebSocketDisconnect of it.
                raise OSError("the caller takes nothing") from None

        if scope["type"] == "http":
            await self._app(scope, receive_bounded, send)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send_in_time)
        else:
            await self._app(scope, receive, send)
