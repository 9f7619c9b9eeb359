"""A caller of the native WebSocket, and what it hears."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from dia2_client import AsyncClient, pcm16
from websockets.asyncio.client import ClientConnection, connect

from tests.server.conftest import SETTLE_S, Server

Event = dict[str, Any]
LAST = ("done", "cancelled", "error")


@dataclass
class Heard:
    """All of one utterance, up to its last event."""

    audio: bytes = b""
    events: list[Event] = field(default_factory=list)  # those without audio

    @property
    def last(self) -> Event:
        return self.events[-1]

    @property
    def words(self) -> list[Event]:
        return [word for event in self.events if event["type"] == "words" for word in event["words"]]


class Talk:
    """One connection."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def receive(self) -> Event | bytes:
        async with asyncio.timeout(SETTLE_S):
            message = await self.socket.recv()
        return message if isinstance(message, bytes) else dict(json.loads(message))

    async def event(self) -> Event:
        """The next message, which must not be audio."""
        message = await self.receive()
        assert isinstance(message, dict), "audio came instead of an event"
        return message

    async def hear(self, heard: Heard | None = None) -> Heard:
        """Everything up to the last event of an utterance."""
        heard = heard or Heard()
        while not heard.events or heard.last["type"] not in LAST:
            message = await self.receive()
            if isinstance(message, bytes):
                heard.audio += message
            else:
                heard.events.append(message)
        return heard

    async def hear_audio(self) -> Heard:
        """Everything up to the first audio."""
        heard = Heard()
        while not heard.audio:
            message = await self.receive()
            if isinstance(message, bytes):
                heard.audio += message
            else:
                heard.events.append(message)
        return heard

    async def say(self, text: str, **fields: Any) -> Heard:
        await self.send("tts", text=text, **fields)
        return await self.hear()


@asynccontextmanager
async def talking(ws_url: str, query: str = "", **options: Any) -> AsyncIterator[Talk]:
    async with connect(f"{ws_url}/v1/stream{query}", compression=None, **options) as socket:
        yield Talk(socket)


async def directly(triton: Server, text: str, **options: Any) -> tuple[bytes, list[Event]]:
    """The same from Triton itself, without the gateway: PCM16 and words."""
    async with AsyncClient(triton.grpc_url) as client, client.session(**options) as session:
        await session.send(text)
        await session.close()
        audio = b"".join([pcm16(chunk.audio) async for chunk in session])
    return audio, [{"text": word.text, "start": word.start_s} for word in session.words]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run
