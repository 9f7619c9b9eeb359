"""How a handler answers over HTTP: an error in its API's shape, and a body that is made while it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import wraps

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import ApiError

Handler = Callable[[Request], Awaitable[ASGIApp]]


def answering(refusal: Callable[[ApiError], Response]) -> Callable[[Handler], Handler]:
    """A decorator of handlers, whose ApiErrors are then answered by `refusal`."""

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        async def answer(request: Request) -> ASGIApp:
            try:
                return await handler(request)
            except ApiError as error:
                return refusal(error)

        return answer

    return decorate


class StreamedResponse:
    """Sends the pieces of a generator as they come; an ASGI application, as Starlette's responses are.

    The status is open until the first piece: an `ApiError` before it is answered by `refusal(error)`. After it HTTP
    has no way to tell; the connection is cut, so that the caller does not take a part for the whole.

    When the caller disconnects, or takes nothing for `send_timeout_s`, the generator is closed at once, and with it
    what it holds. The request's body must have been read.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        *,
        headers: Mapping[str, str],
        refusal: Callable[[ApiError], Response],
        send_timeout_s: float,
    ) -> None:
        self._pieces = pieces
        self._headers = headers
        self._refusal = refusal
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(scope, receive, send))
        watching = asyncio.ensure_future(_until_disconnected(receive))
        watching.add_done_callback(lambda _: sending.cancel())
        try:
            await sending
        except asyncio.CancelledError:
            if not watching.done():
                raise  # not the caller has gone, but the server ends
        finally:
            watching.cancel()

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        async with aclosing(self._pieces) as pieces:
            try:
                async for piece in pieces:
                    if not started:
                        await send(self._start())
                        started = True
                    if not await self._sent(piece, send):
                        return
            except ApiError as error:
                if not started:
                    await self._refusal(error)(scope, receive, send)
                return  # a body without its last piece: the server cuts the connection
        if not started:
            await send(self._start())
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _start(self) -> dict[str, object]:
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self._headers.items()]
        return {"type": "http.response.start", "status": 200, "headers": headers}

    async def _sent(self, piece: bytes, send: Send) -> bool:
        """Whether the caller has taken it in time."""
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except TimeoutError:
            return False
        return True


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
