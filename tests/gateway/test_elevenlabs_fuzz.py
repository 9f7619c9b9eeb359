"""ElevenLabs' WebSockets and callers who say anything in any order: nothing is left behind, and nobody else suffers."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from dia2_client import pcm16
from websockets.exceptions import ConnectionClosed

from tests.gateway.conftest import Gateway
from tests.gateway.elevenlabs_calls import SHORT, Talk, engine_speech, talk
from tests.server.conftest import Server

pytestmark = pytest.mark.server

CONVERSATIONS = 40
MESSAGES = 12  # in each, at most
TEXTS: list[Any] = [
    " ",
    "",
    "Hello there. ",
    "one two three four five six ",
    "[S1] ",
    "<break time=",
    "\u00e9\u2603 ",
    None,
    3,
]
SETTINGS: list[dict[str, Any]] = [
    {},
    {},
    {"flush": True},
    {"flush": True},
    {"close_context": True},
    {"close_context": True},
    {"voice_settings": {"stability": 0.5}},
    {"voice_settings": {"speed": 2}},
    {"generation_config": {"chunk_length_schedule": []}},
    {"close_socket": True},
    {"flush": "no"},
]
RAW: list[str | bytes] = [
    "",
    "null",
    "{}",
    "[1]",
    '{"text": "\\ud800 "}',
    '{"context_id": {}}',
    '{"text": 1e999}',
    "[" * 5000,
    b"\xff",
]


def converse(talking: Talk, chance: random.Random) -> None:
    for _ in range(chance.randint(1, MESSAGES)):
        if chance.random() < 0.03:
            talking.socket.send(chance.choice(RAW))
            continue
        message = {**chance.choice(SETTINGS)}
        if chance.random() < 0.8:
            message["text"] = chance.choice(TEXTS)
        if chance.random() < 0.9:
            message["context_id"] = chance.choice("abc")
        talking.socket.send(json.dumps(message))
        if chance.random() < 0.3:
            with suppress(TimeoutError):
                talking.socket.recv(0.05)
    if chance.random() < 0.5:
        talking.socket.socket.close()  # drops the connection without a word


def one(ws_url: str, seed: int) -> None:
    chance = random.Random(seed)
    path = chance.choice(["stream-input", "multi-stream-input"])
    query = chance.choice([{}, {"auto_mode": "true"}, {"sync_alignment": "true", "output_format": "mp3_22050_32"}])
    with talk(ws_url, path, **query) as talking, suppress(ConnectionClosed):
        converse(talking, chance)


def test_whatever_is_said(gateway: Gateway, triton: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: one(gateway.ws_url, seed), range(CONVERSATIONS)))
    gateway.settle()
    triton.settle(live_streams=0, queued_streams=0)
    with talk(gateway.ws_url, seed=7) as talking:
        talking.say(context_id="a", text=f"{SHORT} ", flush=True)
        talking.say(context_id="a", close_context=True)
        assert talking.until_final("a").audio == pcm16(engine_speech(triton.grpc_url, SHORT).audio)
