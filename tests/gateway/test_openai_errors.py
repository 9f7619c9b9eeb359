"""What OpenAI's client raises, where the gateway or what is behind it cannot do as told."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.server.conftest import Server, launched

from .conftest import LONG, Gateway
from .openai_calls import speaks

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with speaks(gateway) as client:
        yield client


BAD_FIELDS = [
    ({"model": None}, "model", "model is required"),
    ({"model": 7}, "model", "model is 7; allowed: a string"),
    ({"input": None}, "input", "input is required"),
    ({"input": "  "}, "input", 'input is "  "; allowed'),
    ({"input": "[S1] [S2]"}, "input", "no words"),
    ({"input": "x " * 6000}, "input", "12000 characters; allowed: 10000"),
    ({"voice": "bob"}, "voice", "known voices: anna, anna-and-ben, ben, carla, david, none"),
    ({"voice": 3}, "voice", "voice is 3; allowed"),
    ({"voice": {"id": "bob"}}, "voice", "known voices"),
    ({"voice": {"name": "anna"}}, "name", "allowed: id"),
    ({"voice": {}}, "id", "id is required"),
    ({"response_format": "ogg"}, "response_format", 'response_format is "ogg"; allowed: pcm'),
    ({"speed": 1.5}, "speed", "speed is 1.5; allowed: 1.0"),
    ({"speed": "fast"}, "speed", 'speed is "fast"; allowed: a number'),
    ({"instructions": "Whisper."}, "instructions", 'instructions is "Whisper."; allowed: none'),
    ({"stream_format": "websocket"}, "stream_format", "allowed: audio or sse"),
    ({"seed": 1.5}, "seed", "seed is 1.5; allowed: a whole number"),
    ({"seed": True}, "seed", "seed is true; allowed: a whole number"),
    ({"seed": -1}, "seed", "-1"),
    ({"seed": 2**80}, "seed", str(2**80)),
    ({"temperature": 3}, "temperature", "3"),
    ({"top_k": 10001}, "top_k", "10001"),
    ({"cfg_scale": -0.5}, "cfg_scale", "-0.5"),
    ({"language": "en"}, "language", '"language" is no field; allowed: model, input'),
]


@pytest.mark.parametrize(("fields", "param", "message"), BAD_FIELDS, ids=lambda value: str(value)[:30])
def test_a_wrong_field_is_named(client: openai.OpenAI, fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.audio.speech.create(model="tts-1", voice="anna", input="[S1] Hi.", extra_body=fields)
    assert (raised.value.param, raised.value.code, raised.value.type) == (
        param,
        "invalid_request",
        "invalid_request_error",
    )
    assert message in raised.value.message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"input": "\\ud800", "model": "m"}', b'{"\\ud800": 1}', b"[" * 100_000],
)
def test_a_body_that_is_no_request(gateway: Gateway, body: bytes) -> None:
    answer = httpx2.post(f"{gateway.url}/v1/audio/speech", content=body)
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_too_long(make_gateway: Callable[..., Gateway]) -> None:
    gateway = make_gateway(max_body_bytes=1000)
    with speaks(gateway) as client, pytest.raises(openai.APIStatusError) as raised:
        client.audio.speech.create(model="tts-1", voice="anna", input="x" * 1000)
    assert (raised.value.status_code, raised.value.code) == (413, "too_large")


def test_a_back_end_that_dies_is_told(make_gateway: Callable[..., Gateway], tmp_path: Path) -> None:
    with launched(tmp_path, "--models", "dia2_session") as mortal:
        gateway = make_gateway(backends=[mortal.grpc_url])
        with (
            speaks(gateway) as client,
            client.audio.speech.with_streaming_response.create(
                model="tts-1", voice="anna", input=LONG, response_format="pcm"
            ) as audio,
            client.audio.speech.with_streaming_response.create(
                model="tts-1", voice="anna", input=LONG, response_format="pcm", stream_format="sse"
            ) as events,
        ):
            pieces, lines = audio.iter_bytes(1), events.iter_lines()
            next(pieces), next(lines)
            os.killpg(mortal.pid, signal.SIGKILL)
            with pytest.raises(httpx2.RemoteProtocolError):  # a body that is cut is not taken for a whole one
                list(pieces)
            *_, last = (json.loads(line.removeprefix("data: ")) for line in lines if line)
            assert (last["type"], last["error"]["code"]) == ("error", "backend_failed")
            with pytest.raises(openai.InternalServerError) as none_left:
                client.audio.speech.create(model="tts-1", voice="anna", input="[S1] Hi.")
            assert none_left.value.status_code == 503


def test_keys_and_their_limits(make_gateway: Callable[..., Gateway], triton: Server) -> None:
    key = "dia2_test"
    sha256 = hashlib.sha256(key.encode()).hexdigest()
    gateway = make_gateway(keys={"tester": {"sha256": sha256, "concurrent_streams": 1}})
    with speaks(gateway, "wrong") as client:
        for call in (client.models.list, lambda: client.get("/audio/voices", cast_to=httpx2.Response)):
            with pytest.raises(openai.AuthenticationError):
                call()
        with pytest.raises(openai.AuthenticationError) as unauthorized:
            client.audio.speech.create(model="tts-1", voice="anna", input="[S1] Hi.")
        assert unauthorized.value.type == "authentication_error"
    with speaks(gateway, key) as client:
        with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="anna", input=LONG, response_format="pcm"
        ) as answer:
            pieces = answer.iter_bytes(1)  # kept: the client leaves when it is dropped
            assert next(pieces)
            with pytest.raises(openai.RateLimitError) as too_many:
                client.audio.speech.create(model="tts-1", voice="anna", input="[S1] Hi.")
        assert too_many.value.type == "rate_limit_error"
        assert int(too_many.value.response.headers["retry-after"]) >= 1
        triton.settle(live_streams=0)


def test_a_full_gateway(make_gateway: Callable[..., Gateway], triton: Server) -> None:
    gateway = make_gateway(streams_per_backend=1, queue=0)
    with speaks(gateway) as client:
        with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="anna", input=LONG, response_format="pcm"
        ) as answer:
            pieces = answer.iter_bytes(1)  # kept: the client leaves when it is dropped
            assert next(pieces)
            with pytest.raises(openai.InternalServerError) as full:
                client.audio.speech.create(model="tts-1", voice="anna", input="[S1] Hi.")
        assert (full.value.status_code, full.value.code) == (503, "overloaded")
        assert int(full.value.response.headers["retry-after"]) >= 1
        triton.settle(live_streams=0)
