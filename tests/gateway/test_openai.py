"""OpenAI's own client against the gateway and a real Triton."""

from __future__ import annotations

import asyncio
import base64
import io
import json
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

from tests.server.conftest import Server

from .conftest import LONG, SEED, Gateway
from .openai_calls import speaks

LINE = "[S1] Hello there, who is this?"
RATE = 24000
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "gateway.md"

pytestmark = pytest.mark.server


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
        names = ["anna", "anna-and-ben", "ben", "carla", "david", "none"]
        assert [voice["id"] for voice in listed] == [*names, "alloy", "nova"]
        assert [voice["id"] for voice in listed if voice["default"]] == ["anna"]
        assert [(voice["id"], voice["alias_of"]) for voice in listed[6:]] == [("alloy", "anna"), ("nova", "ben")]
        said = client.audio.speech.create(
            model="tts-1", voice="nova", input="[S1] Hi.", response_format="pcm", extra_body={"seed": 5}
        )
        assert said.content == pcm16(engine_audio(triton, "[S1] Hi.", voice="ben", seed=5))


def test_who_brings_elevenlabs_header_gets_elevenlabs_models(gateway: Gateway) -> None:
    (model,) = httpx2.get(f"{gateway.url}/v1/models", headers={"xi-api-key": "any"}).json()
    assert model["model_id"] == "dia2"


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "dia2"
    assert client.models.retrieve("dia2") == model
    with pytest.raises(openai.NotFoundError, match="dia2") as raised:
        client.models.retrieve("gpt-4o")
    assert (raised.value.code, raised.value.param) == ("not_found", "model")
