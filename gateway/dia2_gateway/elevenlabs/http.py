"""ElevenLabs over HTTP: speech, bare or with the times of its characters; voices and models."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from dia2_client import Chunk, SessionOptions
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from ..errors import ApiError, BadRequest
from ..formats import AudioFormat, Encoder
from ..keys import read_key
from ..speech import Caller, Speech
from ..streaming import StreamedResponse, answering
from . import shapes
from .alignment import Aligner, whole
from .wanted import SpeechRequest, audio_format, check_voice

NDJSON = "application/x-ndjson"  # lines of JSON

Piece = tuple[bytes, Chunk | None]  # encoded audio, and the chunk that it came with; None: what is left at the end


def error_response(error: ApiError) -> Response:
    """An error in ElevenLabs' shape."""
    return JSONResponse(shapes.error_body(error), error.status, headers=error.headers)


answered = answering(error_response)


@dataclass(frozen=True)
class Job:
    """A text, how it is to be spoken, and for whom."""

    speech: Speech
    caller: Caller
    text: str
    format: AudioFormat
    options: SessionOptions

    @classmethod
    async def read(cls, request: Request) -> Job:
        """Raises ApiError."""
        speech: Speech = request.app.state.speech
        caller = speech.caller(request, read_key(request))
        voice_id = request.path_params["voice_id"]
        check_voice(speech, voice_id)
        format = audio_format(request.query_params)
        wanted = SpeechRequest.from_json(await request.body())
        return cls(speech, caller, wanted.text, format, {**wanted.options, "voice": voice_id})

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The encoded audio as it comes. Raises ApiError."""
        encoder = Encoder(self.format, self.speech.sample_rate)
        spoken = False
        async with self.speech.open(self.caller, **self.options) as utterance:
            await utterance.send(self.text, close=True)
            async for chunk in utterance:
                spoken = True
                yield encoder.encode(chunk.audio), chunk
        if not spoken:
            raise BadRequest("text has no words to speak", field="text")
        yield encoder.finish(), None


async def _bare(job: Job) -> AsyncGenerator[bytes, None]:
    async with aclosing(job.pieces()) as pieces:
        async for audio, _ in pieces:
            if audio:
                yield audio


async def _timed(job: Job) -> AsyncGenerator[bytes, None]:
    """A line of JSON for each piece, with the characters that are spoken in it."""
    aligner = Aligner(job.speech.sample_rate)
    async with aclosing(job.pieces()) as pieces:
        async for audio, chunk in pieces:
            aligned = aligner.feed(len(chunk.audio), chunk.words) if chunk else aligner.finish()
            if audio or aligned:
                yield _line(shapes.timed_audio(audio, aligned))


async def _timed_whole(job: Job) -> AsyncGenerator[bytes, None]:
    """One JSON object, when all has been spoken."""
    parts, chunks = [], []
    async with aclosing(job.pieces()) as pieces:
        async for audio, chunk in pieces:
            parts.append(audio)
            if chunk:
                chunks.append(chunk)
    words = [word for chunk in chunks for word in chunk.words]
    seconds = sum(len(chunk.audio) for chunk in chunks) / job.speech.sample_rate
    yield _line(shapes.timed_audio(b"".join(parts), whole(words, seconds)))


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _speaking(
    body: Callable[[Job], AsyncGenerator[bytes, None]], content_type: str | None = None
) -> Callable[[Request], Awaitable[ASGIApp]]:
    """The handler of a POST that answers with `body`, whose content type is the format's unless told."""

    @answered
    async def speak(request: Request) -> ASGIApp:
        job = await Job.read(request)
        return StreamedResponse(
            body(job),
            headers={"Content-Type": content_type or job.format.content_type, "Cache-Control": "no-store"},
            refusal=error_response,
            send_timeout_s=request.app.state.config.send_timeout_s,
        )

    return speak


@answered
async def list_voices(request: Request) -> ASGIApp:
    """The list of API v1 and v2. It is short, so that it is never cut into pages."""
    voices = await _voices(request)
    return JSONResponse({"voices": voices, "has_more": False, "total_count": len(voices), "next_page_token": None})


@answered
async def retrieve_voice(request: Request) -> ASGIApp:
    voices = {voice["voice_id"]: voice for voice in await _voices(request)}
    voice_id = request.path_params["voice_id"]
    check_voice(request.app.state.speech, voice_id)
    return JSONResponse(voices[voice_id])


async def _voices(request: Request) -> list[dict[str, Any]]:
    speech: Speech = request.app.state.speech
    speech.caller(request, read_key(request))
    voices = [shapes.voice(info) for info in await speech.voices()]
    return voices + [shapes.alias(name, target) for name, target in speech.aliases.items()]


@answered
async def list_models(request: Request) -> ASGIApp:
    """GET /v1/models, a path that OpenAI's API has, too: its route is there."""
    speech: Speech = request.app.state.speech
    caller = speech.caller(request, read_key(request))
    return JSONResponse([shapes.model(caller.allowance.limits.characters_per_request or None)])


SPEAK = "/v1/text-to-speech/{voice_id}"

routes: list[BaseRoute] = [
    Route(SPEAK, _speaking(_bare), methods=["POST"]),
    Route(f"{SPEAK}/stream", _speaking(_bare), methods=["POST"]),
    Route(f"{SPEAK}/with-timestamps", _speaking(_timed_whole, "application/json"), methods=["POST"]),
    Route(f"{SPEAK}/stream/with-timestamps", _speaking(_timed, NDJSON), methods=["POST"]),
    Route("/v1/voices", list_voices),
    Route("/v2/voices", list_voices),
    Route("/v1/voices/{voice_id}", retrieve_voice),
]
