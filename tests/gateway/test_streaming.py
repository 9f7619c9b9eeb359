"""A response whose body is made while it is sent, seen from the ASGI server's side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from dia2_gateway.errors import BackendFailed, BadRequest
from dia2_gateway.streaming import StreamedResponse
from starlette.responses import PlainTextResponse

Message = dict[str, Any]
TIMEOUT_S = 10  # fail rather than hang


class Pieces:
    """A body of two pieces, which fails or waits forever where told, and knows that it was closed."""

    def __init__(self, fails: int = -1, waits: int = -1) -> None:
        self.fails, self.waits = fails, waits
        self.closed = False

    async def body(self) -> AsyncGenerator[bytes, None]:
        try:
            for number in range(2):
                if number == self.fails:
                    raise (BadRequest if number == 0 else BackendFailed)("no")
                if number == self.waits:
                    await asyncio.Event().wait()
                yield b"piece%d" % number
        finally:
            self.closed = True


def answer(
    pieces: Pieces, send: Callable[[Message], Awaitable[None]], gone: asyncio.Event, send_timeout_s: float = TIMEOUT_S
) -> Awaitable[None]:
    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    response = StreamedResponse(
        pieces.body(),
        headers={"Content-Type": "audio/pcm"},
        refusal=lambda error: PlainTextResponse(error.message, error.status),
        send_timeout_s=send_timeout_s,
    )
    return asyncio.wait_for(response({"type": "http", "method": "POST"}, receive, send), TIMEOUT_S)  # type: ignore[arg-type]


def sent_of(pieces: Pieces) -> list[Message]:
    """All that an ASGI server is told."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        await answer(pieces, send, asyncio.Event())

    asyncio.run(run())
    assert pieces.closed
    return sent


def test_pieces_are_sent_as_they_come() -> None:
    start, *body = sent_of(Pieces())
    assert (start["status"], start["headers"]) == (200, [(b"content-type", b"audio/pcm")])
    assert [(piece["body"], piece["more_body"]) for piece in body] == [
        (b"piece0", True),
        (b"piece1", True),
        (b"", False),
    ]


def test_an_error_before_the_first_piece_has_its_status() -> None:
    start, body = sent_of(Pieces(fails=0))
    assert (start["status"], body["body"]) == (400, b"no")


def test_an_error_behind_it_leaves_the_body_incomplete() -> None:
    start, *body = sent_of(Pieces(fails=1))
    assert start["status"] == 200
    assert [(piece["body"], piece["more_body"]) for piece in body] == [(b"piece0", True)]


@pytest.mark.parametrize("waits", [0, 1])
def test_a_caller_who_leaves_closes_the_body_at_once(waits: int) -> None:
    pieces = Pieces(waits=waits)

    async def run() -> None:
        gone = asyncio.Event()
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)
            gone.set()

        if waits == 0:
            gone.set()
        await answer(pieces, send, gone)
        assert len(sent) == (2 if waits else 0)

    asyncio.run(run())
    assert pieces.closed


def test_a_caller_who_takes_nothing_is_left() -> None:
    pieces = Pieces()

    async def run() -> None:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        await answer(pieces, send, asyncio.Event(), send_timeout_s=0.01)

    asyncio.run(run())
    assert pieces.closed
