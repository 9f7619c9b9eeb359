"""OpenAI's own client against the gateway and a real Triton."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import openai
import pytest
from av.container import InputContainer
from dia2_client import Client, pcm16
from numpy.typing import NDArray

from tests.gateway.conftest import LONG, SEED, Gateway
from tests.server.conftest import Server, launched

LINE = "[S1] Hello there, who is this?"
RATE = 24000
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "gateway.md"

pytestmark = pytest.mark.server


def speaks(gateway: Gateway, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with speaks(gateway) as client:
        yield client


def engine_audio(triton: Server, text: str, **options: Any) -> NDArray[np.float32]:
    """What the engine says to a caller who asks it directly."""
    with Client(triton.grpc_url) as client, client.session(**options) as session:
        session.send(text)
        session.close()
        return np.concatenate([chunk.audio for chunk in session])


@pytest.fixture(scope="module")
def spoken(triton: Server) -> NDArray[np.float32]:
    return engine_audio(triton, LINE, voice="anna", seed=SEED)


def decoded(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Samples of a file as FFmpeg hears it, and their rate."""
    with av.open(io.BytesIO(data)) as container:
        assert isinstance(container, InputContainer)
        (stream,) = container.streams.audio
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(stream)])
    scale = 32767 if samples.dtype == np.int16 else 1
    return (samples / scale).astype(np.float32), stream.rate


def band_levels_db(samples: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    """The power in each kHz from 100 Hz (Opus takes out what is constant) to 8.1 kHz."""
    power = np.abs(np.fft.rfft(samples)) ** 2 / (len(samples) * rate)
    frequencies = np.fft.rfftfreq(len(samples), 1 / rate)
    bands = [power[(frequencies >= low) & (frequencies < low + 1000)].sum() for low in range(100, 8100, 1000)]
    levels: NDArray[np.float64] = 10 * np.log10(np.array(bands))
    return levels


def test_the_samples_are_the_engines(client: openai.OpenAI, spoken: NDArray[np.float32]) -> None:
    answer = client.audio.speech.create(
        model="tts-1", voice="anna", input=LINE, response_format="pcm", extra_body={"seed": SEED}
    )
    assert answer.content == pcm16(spoken)
    assert answer.response.headers["content-type"] == "audio/pcm"


def test_the_example_of_the_documentation(gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, section = DOCUMENTATION.read_text("utf-8").split("\n## OpenAI\n")
    _, rest = section.split("```python\n", 1)
    example, _ = rest.split("```", 1)
    assert "http://localhost:8080" in example
    monkeypatch.chdir(tmp_path)
    exec(example.replace("http://localhost:8080", gateway.url), {})
    assert len(decoded((tmp_path / "hello.mp3").read_bytes())[0]) > 0


def test_sampling_options_reach_the_engine(client: openai.OpenAI, triton: Server) -> None:
    options = {"seed": 3, "temperature": 0.5, "top_k": 20, "cfg_scale": 1.5}
    answer = client.audio.speech.create(
        model="tts-1", voice={"id": "ben"}, input="[S1] Hi.", response_format="pcm", extra_body=options
    )
    assert answer.content == pcm16(engine_audio(triton, "[S1] Hi.", voice="ben", **options))


CONTENT_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
}


@pytest.mark.parametrize("response_format", CONTENT_TYPES)
def test_every_format_is_streamed_to_a_file(
    client: openai.OpenAI, spoken: NDArray[np.float32], response_format: Any, tmp_path: Path
) -> None:
    file = tmp_path / f"speech.{response_format}"
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="anna", input=LINE, response_format=response_format, extra_body={"seed": SEED}
    ) as answer:
        answer.stream_to_file(file)
        assert answer.headers["content-type"] == CONTENT_TYPES[response_format]
    heard, rate = decoded(file.read_bytes())
    if response_format in ("wav", "flac"):
        assert np.array_equal(heard, np.frombuffer(pcm16(spoken), np.int16) / np.float32(32767))
    assert len(heard) / rate == pytest.approx(len(spoken) / RATE, abs=0.075)  # delay and padding of MP3 and AAC
    assert np.abs(band_levels_db(heard, rate) - band_levels_db(spoken, RATE)).max() < 1.5


def test_mp3_is_the_default(client: openai.OpenAI) -> None:
    answer = client.audio.speech.create(model="tts-1", voice="anna", input="[S1] Hi.")
    assert answer.response.headers["content-type"] == "audio/mpeg"
    assert len(decoded(answer.content)[0]) > 0


def test_events(client: openai.OpenAI, spoken: NDArray[np.float32]) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts",
        voice="anna",
        input=LINE,
        response_format="pcm",
        stream_format="sse",
        extra_body={"seed": SEED},
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert len(deltas) > 1
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == pcm16(spoken)
    frames = len(spoken) // 1920
    usage = {"input_tokens": len(LINE), "output_tokens": frames, "total_tokens": len(LINE) + frames}
    assert done == {"type": "speech.audio.done", "usage": usage}


def test_several_callers_at_once(gateway: Gateway, triton: Server) -> None:
    async def say_all() -> list[bytes]:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="any", max_retries=0) as client:

            async def say(seed: int) -> bytes:
                answer = await client.audio.speech.create(
                    model="tts-1",
                    voice="anna",
                    input=f"[S1] Number {seed}.",
                    response_format="pcm",
                    extra_body={"seed": seed},
                )
                return answer.content

            return await asyncio.gather(*(say(seed) for seed in range(3)))

    for seed, audio in enumerate(asyncio.run(say_all())):
        assert audio == pcm16(engine_audio(triton, f"[S1] Number {seed}.", voice="anna", seed=seed))


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_a_caller_who_leaves_frees_the_slot(client: openai.OpenAI, triton: Server, stream_format: Any) -> None:
    before = triton.metrics()
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="anna", input=LONG, response_format="pcm", stream_format=stream_format
    ) as answer:
        pieces = answer.iter_bytes(1)  # kept: the client leaves when it is dropped
        assert next(pieces)
        assert triton.metrics()["live_streams"] == 1, "the audio must come while it is made"
    triton.settle(live_streams=0, cancelled_total=before["cancelled_total"] + 1)
    assert triton.metrics()["finished_total"] == before["finished_total"]
    assert client.audio.speech.create(model="tts-1", voice="anna", input="[S1] Hi.", response_format="pcm").content


def test_the_voices_and_their_aliases(make_gateway: Callable[..., Gateway], triton: Server) -> None:
    gateway = make_gateway(aliases={"alloy": "anna", "nova": "ben"})
    with speaks(gateway) as client:
        listed = client.get("/audio/voices", cast_to=httpx2.Response).json()["voices"]
        assert [voice["id"] for voice in listed] == ["anna", "anna-and-ben", "ben", "none", "alloy", "nova"]
        assert [voice["id"] for voice in listed if voice["default"]] == ["anna"]
        assert [(voice["id"], voice["alias_of"]) for voice in listed[4:]] == [("alloy", "anna"), ("nova", "ben")]
        said = client.audio.speech.create(
            model="tts-1", voice="nova", input="[S1] Hi.", response_format="pcm", extra_body={"seed": 5}
        )
        assert said.content == pcm16(engine_audio(triton, "[S1] Hi.", voice="ben", seed=5))


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "dia2"
    assert client.models.retrieve("dia2") == model
    with pytest.raises(openai.NotFoundError, match="dia2") as raised:
        client.models.retrieve("gpt-4o")
    assert (raised.value.code, raised.value.param) == ("not_found", "model")


BAD_FIELDS = [
    ({"model": None}, "model", "model is required"),
    ({"model": 7}, "model", "model is 7; allowed: a string"),
    ({"input": None}, "input", "input is required"),
    ({"input": "  "}, "input", 'input is "  "; allowed'),
    ({"input": "[S1] [S2]"}, "input", "no words"),
    ({"input": "x " * 6000}, "input", "12000 characters; allowed: 10000"),
    ({"voice": "bob"}, "voice", "known voices: anna, anna-and-ben, ben, none"),
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
