"""Sessions of both clients with one face, for tests that hold for either."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from dia2_client import (
    AsyncClient,
    AsyncSession,
    Chunk,
    Client,
    Session,
)

from .peer import WAIT_S, Call, Peer


class Threaded:
    """A blocking session with the face of an asyncio one: each call in a thread of its own."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._session, name)
        return partial(asyncio.to_thread, value) if name in ("send", "flush", "close", "cancel") else value

    def __aiter__(self) -> Threaded:
        return self

    async def __anext__(self) -> Chunk:
        chunk = await asyncio.to_thread(next, self._session, None)
        if chunk is None:
            raise StopAsyncIteration
        return chunk


@asynccontextmanager
async def blocking(url: str, timeout_s: float = WAIT_S, **options: Any) -> AsyncIterator[Threaded]:
    with Client(url, timeout_s=timeout_s) as client, client.session(**options) as session:
        yield Threaded(session)


@asynccontextmanager
async def asynchronous(url: str, timeout_s: float = WAIT_S, **options: Any) -> AsyncIterator[AsyncSession]:
    async with AsyncClient(url, timeout_s=timeout_s) as client, client.session(**options) as session:
        yield session


Begin = Callable[..., AbstractAsyncContextManager[Any]]


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * WAIT_S):
            await main

    asyncio.run(bounded())


def played(chunks: list[Chunk]) -> list[float]:
    return [round(float(chunk.audio[0]), 2) for chunk in chunks]


async def heard(session: Any) -> list[Chunk]:
    return [chunk async for chunk in session]


def requests_of(peer: Peer, count: int) -> list[Any]:
    return [peer.next() for _ in range(count)]


def unanswering(call: Call) -> None:
    """Takes everything and says nothing, until the client cancels."""
    for _ in call:
        pass
    call.over.wait(WAIT_S)
