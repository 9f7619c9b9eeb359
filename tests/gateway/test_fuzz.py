"""Callers that do everything wrong. Nothing of them is left, and nobody else hears of it."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.server.conftest import Server

from .conftest import LINE, LONG, SEED, Gateway, eventually
from .talk import LAST, Talk, directly, in_loop, talking

pytestmark = pytest.mark.server

CALLERS = 1000
TOGETHER = 32


def left(gateway: Gateway) -> dict[str, float]:
    """What a caller could leave behind."""
    seen = gateway.metrics()
    counts = {name: seen[name] for name in ("tasks", "websockets", "waiting")}
    return {**counts, "live": gateway.live(), "connections": connections(gateway)}


def connections(gateway: Gateway) -> int:
    """Sockets that the gateway has, as the kernel sees them; not those that only wait for late packets."""
    listen, time_wait, place = "0A", "06", f":{address(gateway)[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(place) and row[3] not in (listen, time_wait) for row in rows)


def check_left(gateway: Gateway, before: dict[str, float]) -> None:
    eventually(lambda: all(left(gateway)[name] <= before[name] for name in before), f"{left(gateway)}, was {before}")


def address(gateway: Gateway) -> tuple[str, int]:
    return "127.0.0.1", int(gateway.url.rpartition(":")[2])


def any_message(chance: random.Random) -> str | bytes:
    """Mostly wrong: in its JSON, its type, its fields, or its place."""
    values: list[Any] = [None, True, -1, 1e308, "", " ", "Hello there, how are you? ", "é\x00", [], {}, "anna", 10**30]
    names = ["text", "voice", "seed", "format", "words", "audio", "played_s", "top_k", "temperature", "more"]
    fields = {chance.choice(names): chance.choice(values) for _ in range(chance.randrange(3))}
    kinds = ["start", "text", "text", "flush", "close", "cancel", "tts", "stop", 7, None]
    message = json.dumps({"type": chance.choice(kinds), **fields})
    match chance.randrange(8):
        case 0:
            return message[: chance.randrange(len(message))]
        case 1:
            return message.encode()
        case 2:
            return chance.choice(
                ["", "[]", "null", '"', "NaN", "{" * 1000, '{"type": "text", "type": "close"}', "\ufeff{}"]
            )
        case _:
            return message


async def is_live(talk: Talk) -> bool:
    """Whether an utterance is; reads all that was sent before the answer."""
    live = False
    await talk.send("start")  # has no answer, unless
    await talk.send("enough?")
    while True:
        event = await talk.receive()
        if isinstance(event, dict) and event["type"] == "error":
            live = live or "an utterance is live" in event["message"]
            if "enough?" in event["message"]:
                return live


@in_loop
async def test_messages_in_any_order(gateway: Gateway, triton: Server) -> None:
    """Every connection survives them, and then speaks as if nothing had been."""
    audio, _ = await directly(triton, LINE, seed=SEED)

    async def fuzz(seed: int) -> None:
        chance = random.Random(seed)
        async with talking(gateway.ws_url) as talk:

            async def drain() -> None:
                while True:
                    await talk.receive()

            draining = asyncio.create_task(drain())
            for _ in range(60):
                await talk.socket.send(any_message(chance))
            draining.cancel()
            await asyncio.gather(draining, return_exceptions=True)
            await talk.send("cancel")  # whatever lives
            while await is_live(talk):
                pass
            heard = await talk.say(LINE, seed=SEED)
            assert heard.audio == audio, heard.events

    await asyncio.gather(*(fuzz(seed) for seed in range(12)))
    gateway.settle()


@in_loop
async def test_a_message_that_is_too_long_ends_its_connection_alone(gateway: Gateway) -> None:
    async with talking(gateway.ws_url) as other, talking(gateway.ws_url) as talk:
        await talk.send("text", text="a" * 70_000)
        with pytest.raises(ConnectionClosed) as closed:
            await talk.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert (await other.say("One two three four.")).last["type"] == "done"


@in_loop
async def test_half_closed_and_half_spoken_connections(gateway: Gateway) -> None:
    before = left(gateway)
    body = json.dumps({"model": "dia2", "input": LONG, "response_format": "pcm"}).encode()
    head = b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    upgrade = (
        b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    beginnings = [
        b"",
        b"GET / HT",
        head % len(body),
        head % len(body) + body[:20],
        head % len(body) + body,
        head % 10**12,
        upgrade[:40],
        upgrade,
        upgrade + b"\x81\xfe",  # the beginning of a frame
        upgrade + b"\x81\x05Hello",  # which a client must mask
        upgrade + b"\xff\xff\xff\xff",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # TLS
        b"\x00" * 5000,
    ]
    for beginning in beginnings:
        for polite in (True, False):
            with socket.create_connection(address(gateway)) as one:
                one.sendall(beginning)
                if polite:
                    one.shutdown(socket.SHUT_WR)  # but it would still read
                    one.settimeout(30)
                    while one.recv(65_536):
                        pass
    check_left(gateway, before)


@pytest.mark.parametrize("road", ["websocket", "http"])
@in_loop
async def test_who_does_not_read_is_cut_off(make_gateway: Callable[..., Gateway], triton: Server, road: str) -> None:
    gateway = make_gateway(send_timeout_s=0.5)
    before = left(gateway)
    asked = {"text": LONG, "format": "pcm_48000", "audio": "json"}
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(address(gateway))
        if road == "websocket":
            socket_of_it = await connect(f"{gateway.ws_url}/v1/stream", sock=slow, compression=None, max_queue=1)
            await socket_of_it.send(json.dumps({"type": "tts", **asked}))
        else:
            body = json.dumps({"model": "dia2", "input": LONG, "response_format": "wav"}).encode()
            slow.sendall(
                b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
        eventually(lambda: gateway.live() == 1)
        eventually(lambda: left(gateway)["live"] == 0)
        triton.settle(live_streams=0, queued_streams=0)
        check_left(gateway, before)  # its socket, too, though it is still open here
        if road == "websocket":
            socket_of_it.transport.abort()


@in_loop
async def test_a_thousand_come_and_go(gateway: Gateway, triton: Server) -> None:
    """While one listens undisturbed."""
    audio, _ = await directly(triton, LINE, seed=SEED)
    gate = asyncio.Semaphore(TOGETHER)
    over = asyncio.Event()

    async def come_and_go(n: int) -> None:
        async with gate:
            match n % 8:
                case 0 | 1:  # a connection, and no word
                    _, writer = await asyncio.open_connection(*address(gateway))
                    writer.transport.abort()
                case 2:  # half a request
                    _, writer = await asyncio.open_connection(*address(gateway))
                    writer.write(b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n{")
                    await writer.drain()
                    writer.transport.abort()
                case 3:  # a request that nobody waits for
                    body = json.dumps({"model": "dia2", "input": LINE, "response_format": "pcm"}).encode()
                    reader, writer = await asyncio.open_connection(*address(gateway))
                    head = b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
                    writer.write(head % len(body) + body)
                    await writer.drain()
                    if n % 16 == 3:
                        await reader.read(1)
                    writer.transport.abort()
                case 4 | 5:  # a WebSocket that says nothing, or nonsense
                    async with talking(gateway.ws_url) as talk:
                        if n % 8 == 5:
                            await talk.socket.send("{")
                        talk.socket.transport.abort()
                case _:  # an utterance that is abandoned: in the queue, before or after its first audio
                    async with talking(gateway.ws_url) as talk:
                        await talk.send("tts" if n % 8 == 6 else "text", text=LONG)
                        if n % 3 == 0:
                            while not isinstance(event := await talk.receive(), bytes) and event["type"] not in LAST:
                                pass
                        talk.socket.transport.abort()

    async def listen() -> int:
        times = 0
        while not over.is_set():
            async with talking(gateway.ws_url) as talk:
                heard = await talk.say(LINE, seed=SEED)
            if heard.last.get("code") != "overloaded":  # the abandoned may have filled the queue
                assert heard.audio == audio, heard.events
                times += 1
        return times

    listening = asyncio.create_task(listen())
    await asyncio.gather(*(come_and_go(n) for n in range(CALLERS // 4)))
    gateway.settle()
    resident_bytes = gateway.metrics()["process_resident_memory_bytes"]
    before = left(gateway)
    await asyncio.gather(*(come_and_go(n) for n in range(CALLERS // 4, CALLERS)))
    over.set()
    assert await listening > 0
    check_left(gateway, {**before, "live": 0, "waiting": 0, "websockets": 0})
    grown_bytes = gateway.metrics()["process_resident_memory_bytes"] - resident_bytes
    assert grown_bytes < 20e6, f"{grown_bytes / 1e6:.1f} MB after {CALLERS} callers"
