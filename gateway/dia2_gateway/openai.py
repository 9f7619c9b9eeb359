"""OpenAI's speech API: POST /v1/audio/speech, GET /v1/audio/voices, GET /v1/models."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Self

from dia2_client import SessionOptions
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from . import elevenlabs
from .errors import ApiError, BadRequest, NotFound
from .fields import Fields, refused, shown
from .formats import AudioFormat, Encoder
from .keys import read_key
from .speech import Caller, Speech, Utterance
from .streaming import StreamedResponse, answering

MODEL = {"id": "dia2", "object": "model", "created": 0, "owned_by": "nari-labs"}
DEFAULT_FORMAT = "mp3"  # OpenAI's
STREAM_FORMATS = ("audio", "sse")
FRAMES_PER_S = 12.5  # of the published models; only counted

OPENAI_FIELDS = ("model", "input", "voice", "response_format", "speed", "instructions", "stream_format")
EXTENSIONS = ("seed", "temperature", "top_k", "cfg_scale")

ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True)
class SpeechRequest:
    """The body of POST /v1/audio/speech."""

    input: str
    format: AudioFormat
    events: bool  # server-sent events instead of bare audio
    options: SessionOptions

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Raises BadRequest for the first field that is wrong."""
        fields = Fields.from_json(body, OPENAI_FIELDS + EXTENSIONS)
        fields.required_text("model")  # there is one, so that any name will do: clients have one of OpenAI's built in
        speed = fields.number("speed")
        if speed not in (None, 1):
            raise refused("speed", speed, "1.0; the model speaks at its own pace")
        if instructions := fields.text("instructions"):
            raise refused("instructions", instructions, "none; the model takes its manner from the voice")
        return cls(
            input=fields.required_text("input"),
            format=AudioFormat.parse(fields.text("response_format") or DEFAULT_FORMAT, "response_format"),
            events=fields.choice("stream_format", STREAM_FORMATS) == "sse",
            options=SessionOptions(
                voice=_voice(fields),
                seed=fields.whole("seed"),
                temperature=fields.number("temperature"),
                top_k=fields.whole("top_k"),
                cfg_scale=fields.number("cfg_scale"),
            ),
        )


def _voice(fields: Fields) -> str | None:
    """A name, or an object with one as its `id`."""
    if not isinstance(fields.get("voice"), dict):
        return fields.text("voice")
    return Fields(fields.get("voice"), ("id",)).required_text("id")


def error_response(error: ApiError) -> Response:
    """An error in OpenAI's shape."""
    return JSONResponse({"error": error_object(error)}, error.status, headers=error.headers)


def error_object(error: ApiError) -> dict[str, str | None]:
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    param = "input" if error.field == "text" else error.field  # the rest of the gateway speaks of the text
    return {"message": error.message, "type": kind, "param": param, "code": error.code}


answered = answering(error_response)


@answered
async def create_speech(request: Request) -> ASGIApp:
    speech: Speech = request.app.state.speech
    caller = speech.caller(request, read_key(request))
    wanted = SpeechRequest.from_json(await request.body())
    content_type = "text/event-stream" if wanted.events else wanted.format.content_type
    return StreamedResponse(
        _body(speech, caller, wanted),
        headers={"Content-Type": content_type, "Cache-Control": "no-store"},
        refusal=error_response,
        send_timeout_s=request.app.state.config.send_timeout_s,
    )


async def _body(speech: Speech, caller: Caller, wanted: SpeechRequest) -> AsyncGenerator[bytes, None]:
    """The encoded audio as it comes, bare or as events. Raises ApiError; events tell one themselves after the first."""
    encoder = Encoder(wanted.format, speech.sample_rate)
    framed = _delta_event if wanted.events else bytes
    utterance = speech.open(caller, **wanted.options)
    try:
        async with utterance:
            await utterance.send(wanted.input, close=True)
            async for chunk in utterance:
                if piece := encoder.encode(chunk.audio):
                    yield framed(piece)
        if not utterance.samples:
            raise BadRequest("input has no words to speak", field="input")
        if piece := encoder.finish():
            yield framed(piece)
        if wanted.events:
            yield _done_event(utterance)
    except ApiError as error:
        if not (wanted.events and utterance.samples):
            raise
        yield _event({"type": "error", "error": error_object(error)})


def _delta_event(piece: bytes) -> bytes:
    return _event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode("ascii")})


def _done_event(utterance: Utterance) -> bytes:
    """Usage in what there is to count: characters in, frames of the model out."""
    characters, frames = utterance.characters, round(utterance.seconds * FRAMES_PER_S)
    usage = {"input_tokens": characters, "output_tokens": frames, "total_tokens": characters + frames}
    return _event({"type": "speech.audio.done", "usage": usage})


def _event(value: Mapping[str, object]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@answered
async def list_voices(request: Request) -> ASGIApp:
    speech: Speech = request.app.state.speech
    speech.caller(request, read_key(request))
    voices = [{"id": voice.name, "name": voice.name, "default": voice.default} for voice in await speech.voices()]
    aliases = [
        {"id": alias, "name": alias, "default": False, "alias_of": name} for alias, name in speech.aliases.items()
    ]
    return JSONResponse({"voices": voices + aliases})


@answered
async def list_models(request: Request) -> ASGIApp:
    """Both APIs have this path. Who brings ElevenLabs' header gets ElevenLabs' answer."""
    if "xi-api-key" in request.headers:
        return await elevenlabs.list_models(request)
    request.app.state.speech.caller(request, read_key(request))
    return JSONResponse({"object": "list", "data": [MODEL]})


@answered
async def retrieve_model(request: Request) -> ASGIApp:
    request.app.state.speech.caller(request, read_key(request))
    name = request.path_params["model"]
    if name != MODEL["id"]:
        raise NotFound(f"model is {shown(name)}; there is: {MODEL['id']}", field="model")
    return JSONResponse(MODEL)


routes: list[BaseRoute] = [
    Route("/v1/audio/speech", create_speech, methods=["POST"]),
    Route("/v1/audio/voices", list_voices),
    Route("/v1/models", list_models),
    Route("/v1/models/{model}", retrieve_model),
]
