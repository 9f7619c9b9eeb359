"""Pipecat's own services against the gateway and a real Triton: agents that speak, and are interrupted."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import openai
import pytest
from dia2_client import pcm16
from numpy.typing import NDArray

from tests.gateway.conftest import LONG, Gateway
from tests.gateway.elevenlabs_calls import RATE, SHORT, WAIT_S, assert_sounds_like, engine_speech, samples
from tests.server.conftest import Server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Pipecat, when it is imported: audioop is deprecated
    import aiohttp
    from pipecat.frames.frames import (
        EndFrame,
        ErrorFrame,
        Frame,
        InterruptionFrame,
        LLMFullResponseEndFrame,
        LLMFullResponseStartFrame,
        LLMTextFrame,
        TTSAudioRawFrame,
        TTSStoppedFrame,
        TTSTextFrame,
    )
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineParams, PipelineWorker
    from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
    from pipecat.services.elevenlabs.tts import ElevenLabsHttpTTSService, ElevenLabsTTSService
    from pipecat.services.openai.tts import OpenAITTSService
    from pipecat.services.tts_service import TextAggregationMode, TTSService
    from pipecat.workers.runner import WorkerRunner

pytestmark = [pytest.mark.server, pytest.mark.filterwarnings("ignore::DeprecationWarning:pipecat")]
TURNS = (SHORT, "Another one speaks.")


class Agent(FrameProcessor):
    """Stands where a pipeline's speaker would, and notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.worker: Any = None
        self.frames: list[Frame] = []
        self._changed = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.note(frame)
        await self.push_frame(frame, direction)

    def note(self, frame: Frame) -> None:
        self.frames.append(frame)
        self._changed.set()

    async def say(self, text: str) -> None:
        """One answer of a language model, word by word."""
        words = [f"{word} " for word in text.split()]
        await self.worker.queue_frames(
            [LLMFullResponseStartFrame(), *map(LLMTextFrame, words), LLMFullResponseEndFrame()]
        )

    async def interrupt(self) -> None:
        await self.worker.queue_frame(InterruptionFrame())

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not done():
                assert not self.of(ErrorFrame), self.of(ErrorFrame)
                self._changed.clear()
                await self._changed.wait()

    def of(self, kind: type[Frame]) -> list[Any]:
        return [frame for frame in self.frames if isinstance(frame, kind)]

    @property
    def audio(self) -> NDArray[np.int16]:
        return samples(b"".join(frame.audio for frame in self.of(TTSAudioRawFrame)))

    @property
    def words(self) -> list[str]:
        return " ".join(frame.text for frame in self.of(TTSTextFrame)).split()


@asynccontextmanager
async def agent(service: TTSService) -> AsyncIterator[Agent]:
    """A pipeline with that service, running."""
    listener = Agent()
    worker = PipelineWorker(
        Pipeline([service, listener]), cancel_on_idle_timeout=False, params=PipelineParams(audio_out_sample_rate=RATE)
    )
    listener.worker = worker
    started = asyncio.Event()

    async def note_start(worker: PipelineWorker, frame: Frame) -> None:
        started.set()

    async def note_error(worker: PipelineWorker, frame: ErrorFrame) -> None:
        listener.note(frame)

    worker.add_event_handler("on_pipeline_started", note_start)
    worker.add_event_handler("on_pipeline_error", note_error)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    try:
        async with asyncio.timeout(WAIT_S):
            await started.wait()
        yield listener
    finally:
        await worker.queue_frame(EndFrame())
        await running


def websocket_service(gateway: Gateway, **options: Any) -> TTSService:
    """The client has no option for a seed, but puts the model's name into the URL as it is."""
    settings = ElevenLabsTTSService.Settings(voice="anna", model="dia2&seed=7", stability=0.5, similarity_boost=0.7)
    return ElevenLabsTTSService(api_key="any", url=gateway.ws_url, settings=settings, **options)


def test_websocket_service_speaks_turns(gateway: Gateway, triton: Server) -> None:
    async def converse() -> None:
        async with agent(websocket_service(gateway)) as one:
            for turn in TURNS:
                one.frames.clear()
                await one.say(turn)
                await one.until(lambda: bool(one.of(TTSStoppedFrame)))
                assert one.audio.tobytes() == pcm16(expected[turn].audio)
                assert one.words == turn.split()
                first_ns = one.of(TTSTextFrame)[0].pts
                onsets_s = [(frame.pts - first_ns) / 1e9 for frame in one.of(TTSTextFrame)]
                assert onsets_s == [
                    pytest.approx(word.start_s - expected[turn].words[0].start_s, abs=0.002)
                    for word in expected[turn].words
                ]

    expected = {turn: engine_speech(triton.grpc_url, turn) for turn in TURNS}
    asyncio.run(converse())


def test_websocket_service_speaks_sentences_and_tokens(gateway: Gateway) -> None:
    async def converse(mode: TextAggregationMode) -> None:
        async with agent(websocket_service(gateway, text_aggregation_mode=mode)) as one:
            await one.say(" ".join(TURNS))
            await one.until(lambda: bool(one.of(TTSStoppedFrame)))
            assert one.words == " ".join(TURNS).split()

    for mode in (TextAggregationMode.SENTENCE, TextAggregationMode.TOKEN):
        asyncio.run(converse(mode))


def test_websocket_service_is_interrupted(gateway: Gateway, triton: Server) -> None:
    async def converse() -> None:
        async with agent(websocket_service(gateway)) as one:
            for _ in range(2):
                await one.say(LONG)
                await one.until(lambda: bool(one.of(TTSAudioRawFrame)))
                await one.interrupt()
                await asyncio.to_thread(triton.settle, live_streams=0, queued_streams=0)
                one.frames.clear()
                await one.say(SHORT)
                await one.until(lambda: bool(one.of(TTSStoppedFrame)))
                assert one.audio.tobytes() == expected
                one.frames.clear()

    expected = pcm16(engine_speech(triton.grpc_url, SHORT).audio)
    asyncio.run(converse())


async def _speaks_and_is_interrupted(service: TTSService, expected: dict[str, Any], triton: Server) -> None:
    async with agent(service) as one:
        for turn in TURNS:
            one.frames.clear()
            await one.say(turn)
            await one.until(lambda: bool(one.of(TTSStoppedFrame)))
            assert_sounds_like(one.audio, expected[turn].audio)
        one.frames.clear()
        await one.say(LONG)
        await one.until(lambda: bool(one.of(TTSAudioRawFrame)))
        await one.interrupt()
        await asyncio.to_thread(triton.settle, live_streams=0, queued_streams=0)
        one.frames.clear()
        await one.say(SHORT)
        await one.until(lambda: bool(one.of(TTSStoppedFrame)))
        assert_sounds_like(one.audio, expected[SHORT].audio)


def test_http_service(gateway: Gateway, triton: Server) -> None:
    async def converse() -> None:
        async with aiohttp.ClientSession() as session:
            settings = ElevenLabsHttpTTSService.Settings(voice="anna", stability=0.5)
            service = ElevenLabsHttpTTSService(
                api_key="any", aiohttp_session=session, base_url=gateway.url, settings=settings
            )
            await _speaks_and_is_interrupted(service, expected, triton)

    expected = {turn: engine_speech(triton.grpc_url, turn) for turn in TURNS}
    asyncio.run(converse())


def test_openai_service(make_gateway: Callable[..., Gateway], triton: Server) -> None:
    async def converse() -> None:
        async with openai.DefaultAsyncHttpxClient() as http:
            settings = OpenAITTSService.Settings(voice="alloy")
            url = f"{gateway.url}/v1"
            service = OpenAITTSService(api_key="any", base_url=url, http_client=http, settings=settings)
            await _speaks_and_is_interrupted(service, expected, triton)

    gateway = make_gateway(aliases={"alloy": "anna"})
    expected = {turn: engine_speech(triton.grpc_url, turn) for turn in TURNS}
    asyncio.run(converse())
