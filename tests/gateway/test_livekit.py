"""LiveKit's own plugins against the gateway and a real Triton: speech streams, and interruptions."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from dia2_client import pcm16
from numpy.typing import NDArray

from tests.gateway.conftest import LONG, Gateway
from tests.gateway.elevenlabs_calls import RATE, SHORT, WAIT_S, assert_sounds_like, engine_speech, samples
from tests.server.conftest import Server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of LiveKit, when it is imported
    import aiohttp
    from livekit.agents import tts
    from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT
    from livekit.plugins import elevenlabs, openai

pytestmark = pytest.mark.server
TURNS = (SHORT, "Another one speaks.")


class Listener:
    """Notes what a stream of speech gives."""

    def __init__(self) -> None:
        self.audio = b""
        self.rate = 0  # Hz
        self.words: list[tuple[str, float]] = []

    def note(self, event: tts.SynthesizedAudio) -> None:
        self.audio += bytes(event.frame.data)
        self.rate = event.frame.sample_rate
        for word in event.frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, []):
            self.words.append((str(word).strip(), word.start_time))

    async def listen(self, stream: tts.SynthesizeStream | tts.ChunkedStream) -> None:
        async with asyncio.timeout(WAIT_S):
            async for event in stream:
                self.note(event)

    @property
    def samples(self) -> NDArray[np.int16]:
        return samples(self.audio)


def websocket(gateway: Gateway, session: aiohttp.ClientSession, **options: Any) -> elevenlabs.TTS:
    """The client has no option for a seed, but puts the model's name into the URL as it is."""
    options = {"voice_id": "anna", "model": "dia2&seed=7", "encoding": "pcm_24000", **options}
    settings = elevenlabs.VoiceSettings(stability=0.5, similarity_boost=0.7)
    return elevenlabs.TTS(
        api_key="any", base_url=f"{gateway.url}/v1", http_session=session, voice_settings=settings, **options
    )


async def speak(service: tts.TTS[Any], text: str) -> Listener:
    """One answer of a language model, word by word."""
    listener = Listener()
    async with service.stream() as stream:
        for word in text.split():
            stream.push_text(f"{word} ")
        stream.end_input()
        await listener.listen(stream)
    return listener


def test_websocket_speaks_turns(gateway: Gateway, triton: Server) -> None:
    async def converse() -> None:
        async with aiohttp.ClientSession() as session:
            service = websocket(gateway, session)
            for turn, speech in expected.items():
                heard = await speak(service, turn)
                assert heard.audio == pcm16(speech.audio)
                assert [word for word, _ in heard.words] == [word.text for word in speech.words]
                assert [start_s for _, start_s in heard.words] == pytest.approx([word.start_s for word in speech.words])
            await service.aclose()

    expected = {turn: engine_speech(triton.grpc_url, turn) for turn in TURNS}
    asyncio.run(converse())


def test_websocket_speaks_sentences_and_words(gateway: Gateway) -> None:
    async def converse() -> None:
        async with aiohttp.ClientSession() as session:
            for options in ({}, {"chunk_length_schedule": [50, 120]}):
                service = websocket(gateway, session, **options)
                heard = await speak(service, " ".join(TURNS))
                assert [word for word, _ in heard.words] == " ".join(TURNS).split()
                await service.aclose()

    asyncio.run(converse())


def test_websocket_with_the_default_encoding(gateway: Gateway, triton: Server) -> None:
    async def converse() -> None:
        async with aiohttp.ClientSession() as session:
            service = websocket(gateway, session, encoding="mp3_22050_32")
            heard = await speak(service, SHORT)
            assert_sounds_like(heard.samples, expected.audio, heard.rate)
            assert len(heard.samples) / heard.rate == pytest.approx(len(expected.audio) / RATE, abs=0.1)
            await service.aclose()

    expected = engine_speech(triton.grpc_url, SHORT)
    asyncio.run(converse())


async def interrupt(stream: tts.SynthesizeStream | tts.ChunkedStream) -> None:
    """In the middle of what it says."""
    async with asyncio.timeout(WAIT_S):
        await anext(aiter(stream))
    await stream.aclose()


def test_websocket_is_interrupted(gateway: Gateway, triton: Server) -> None:
    async def converse() -> None:
        async with aiohttp.ClientSession() as session:
            service = websocket(gateway, session, auto_mode=False)
            for _ in range(2):
                stream = service.stream()
                stream.push_text(LONG)  # the language model has not come to its end
                await interrupt(stream)
                await asyncio.to_thread(triton.settle, live_streams=0, queued_streams=0)
                heard = await speak(service, SHORT)
                assert heard.audio == expected
            await service.aclose()

    expected = pcm16(engine_speech(triton.grpc_url, SHORT).audio)
    asyncio.run(converse())


def test_interrupted_sentences_are_spoken_to_their_end_beside_the_next_turn(gateway: Gateway, triton: Server) -> None:
    """In its automatic mode the plugin flushes each sentence, and what was flushed is not taken back."""

    async def converse() -> None:
        async with aiohttp.ClientSession() as session:
            service = websocket(gateway, session)
            stream = service.stream()
            stream.push_text("This one goes on a bit longer, and is not heard to its end. And another ")
            await interrupt(stream)
            heard = await speak(service, SHORT)
            assert heard.audio == expected
            await asyncio.to_thread(triton.settle, live_streams=0, queued_streams=0)
            await service.aclose()

    expected = pcm16(engine_speech(triton.grpc_url, SHORT).audio)
    asyncio.run(converse())


async def _speaks_and_is_interrupted(service: tts.TTS[Any], expected: dict[str, Any], triton: Server) -> None:
    for turn, speech in expected.items():
        listener = Listener()
        async with service.synthesize(turn) as stream:
            await listener.listen(stream)
        assert_sounds_like(listener.samples, speech.audio, listener.rate)
    await interrupt(service.synthesize(LONG))
    await asyncio.to_thread(triton.settle, live_streams=0, queued_streams=0)


@pytest.mark.parametrize("encoding", ["pcm_24000", "mp3_22050_32"])
def test_http(gateway: Gateway, triton: Server, encoding: str) -> None:
    async def converse() -> None:
        async with aiohttp.ClientSession() as session:
            service = websocket(gateway, session, encoding=encoding)
            await _speaks_and_is_interrupted(service, expected, triton)
            voices = await service.list_voices()
            assert "anna" in {voice.id for voice in voices}
            await service.aclose()

    expected = {turn: engine_speech(triton.grpc_url, turn) for turn in TURNS}
    asyncio.run(converse())


@pytest.mark.parametrize("response_format", ["mp3", "pcm"])
def test_openai(make_gateway: Callable[..., Gateway], triton: Server, response_format: str) -> None:
    async def converse() -> None:
        service = openai.TTS(base_url=f"{gateway.url}/v1", api_key="any", voice="ash", response_format=response_format)
        await _speaks_and_is_interrupted(service, expected, triton)
        await service.aclose()

    gateway = make_gateway(aliases={"ash": "anna"})
    expected = {turn: engine_speech(triton.grpc_url, turn) for turn in TURNS}
    asyncio.run(converse())
