"""A WebSocket that speaks JSON."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from ..errors import BadRequest

MAX_REASON_BYTES = 123  # of a close frame


class Gone(Exception):
    """The caller has disconnected, or takes nothing any more."""


class Socket:
    """Several tasks may send. One should always receive, or nobody notices that the caller has gone."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def receive(self, timeout_s: float | None = None) -> str:
        """The next message. Raises Gone, BadRequest if it is not text, and TimeoutError."""
        async with asyncio.timeout(timeout_s):
            message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise Gone
        text: str | None = message.get("text")
        if text is None:
            raise BadRequest("messages must be text, not binary")
        return text

    async def until_gone(self) -> None:
        """Takes no notice of further messages; raises Gone when the caller disconnects."""
        while (await self._websocket.receive())["type"] != "websocket.disconnect":
            pass
        raise Gone

    async def send(self, message: dict[str, Any]) -> None:
        """Raises Gone."""
        try:
            await self._websocket.send_json(message)
        except (WebSocketDisconnect, RuntimeError):  # RuntimeError: Starlette has already told of the disconnect
            raise Gone from None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Raises Gone."""
        try:
            await self._websocket.close(code, reason.encode()[:MAX_REASON_BYTES].decode("utf-8", "ignore"))
        except (WebSocketDisconnect, RuntimeError):
            raise Gone from None
