"""Translates between Triton's Python backend and `dia2_engine.Worker`; nothing is decided here.

The model of both `dia2_stream` and `dia2_session`, which is told by its `sequence_batching`. `execute()` hands each
request to the worker and returns at once; audio follows from the worker's delivery threads. Every request gets exactly
one FINAL, on every path. Only the files of this folder import `triton_python_backend_utils`.
"""

from __future__ import annotations

import itertools
import json
import logging
import traceback
from dataclasses import replace
from typing import Any

import triton_python_backend_utils as pb_utils

from dia2_engine.config import EngineConfig
from dia2_engine.errors import Cancelled, Dia2Error, InternalError, InvalidArgument
from dia2_engine.stream import Stream
from dia2_engine.types import Failed, Request, UserSpeech
from dia2_engine.worker import Worker

from .metrics import Metrics
from .reply import Reply

OPTIONS = ("seed", "temperature", "top_k", "cfg_scale", "max_seconds")


class TritonPythonModel:
    """One engine per model instance, which is one process per GPU (or one on the CPU)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load everything. An error keeps the model from becoming ready and shows in the server's log."""
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")  # progress, into the server's log
        model = json.loads(args["model_config"])
        config = EngineConfig.from_mapping({name: value["string_value"] for name, value in model["parameters"].items()})
        if args["model_instance_kind"] == "GPU" and config.device in ("auto", "cuda"):
            config = replace(config, device=f"cuda:{args['model_instance_device_id']}")
        self._max_text_bytes = 4 * config.max_text_chars  # no UTF-8 character is longer than 4 bytes
        self._ids = itertools.count(1)  # ours: a client's request id may repeat and must never be a key
        self._worker = Worker(config, Metrics(args["model_instance_name"]))
        self._serve = self._serve_text
        if "sequence_batching" in model:
            self._serve = self._serve_piece
            self._worker.prepare_sessions()
        self._sessions: dict[str | int, tuple[Stream, Reply]] = {}  # those that may get more text, by sequence id

    def execute(self, requests: list[Any]) -> None:
        """Submit and return; never raises, because that would answer requests that are already streaming."""
        for request in requests:
            reply = Reply(next(self._ids), request)
            try:
                self._serve(request, reply)
            except Dia2Error as error:
                reply(Failed(error))
            except Exception:
                pb_utils.Logger.log_error(f"stream {reply.id}: {traceback.format_exc()}")
                reply(Failed(InternalError("internal error; the server's log has the details")))

    def finalize(self) -> None:
        """Cancel what is left and join the worker's threads."""
        self._worker.close(deadline_s=5.0)

    def _serve_text(self, request: Any, reply: Reply) -> None:
        reply.choose_outputs(request)
        if reply.asks_for_voices:
            reply.tell_voices(self._worker.voices, self._worker.default_voice)
        else:
            self._worker.submit(self._request(request), reply, reply.is_cancelled)

    def _serve_piece(self, request: Any, reply: Reply) -> None:
        """A piece of a session's text. The first one's reply carries the audio; the others are answered at once."""
        if _scalar(request, "START"):
            self._begin(request, reply)
        else:
            self._continue(request)
            reply(None)

    def _begin(self, request: Any, reply: Reply) -> None:
        flush, end, session_id = _scalar(request, "FLUSH"), _scalar(request, "END"), request.correlation_id()
        # Triton ends the sequence that had the id until now, and sends us what is still to come of both.
        if session_id in self._sessions:
            replaced = Cancelled(f"another session has begun with the sequence_id {session_id!r}")
            self._sessions[session_id][1](Failed(replaced))  # nothing happens if it has ended by itself
        self._sessions = {key: session for key, session in self._sessions.items() if not session[1].closed}
        reply.choose_outputs(request)
        if reply.asks_for_voices:
            reply.tell_voices(self._worker.voices, self._worker.default_voice)
            return
        stream = self._worker.open(self._request(request), reply, reply.is_cancelled, user=_user_speech(request))
        if flush or end:
            self._worker.say(stream, "", flush=bool(flush), close=bool(end))
        if not end:
            self._sessions[session_id] = stream, reply

    def _continue(self, request: Any) -> None:
        flush, end, session_id = _scalar(request, "FLUSH"), _scalar(request, "END"), request.correlation_id()
        over = InvalidArgument(f"sequence_id is {session_id!r}; that session is over, or never began")
        try:
            stream, reply = self._sessions.pop(session_id) if end else self._sessions[session_id]
        except KeyError:
            raise over from None
        if reply.closed:
            raise over
        try:
            try:
                text, user = self._piece(request), _user_speech(request)
                self._worker.say(stream, text, flush=bool(flush), close=bool(end), user=user)
            except InvalidArgument:
                if end:  # nothing more can come, so what there is gets spoken
                    self._worker.say(stream, "", close=True)
                raise
        except Cancelled:  # it ended this moment
            raise over from None

    def _request(self, request: Any) -> Request:
        """The engine's view of a request; only what Triton and the engine cannot check is checked here."""
        options = {name: _scalar(request, name.upper()) for name in OPTIONS}
        return Request(self._piece(request), _text(request, "VOICE", 256), **options)

    def _piece(self, request: Any) -> str:
        text = _text(request, "TEXT", self._max_text_bytes)
        if text is None:
            raise InvalidArgument("TEXT is missing; it is required")
        return text


def _scalar(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().item()


def _user_speech(request: Any) -> UserSpeech | None:
    audio, words = (pb_utils.get_input_tensor_by_name(request, name) for name in ("USER_AUDIO", "USER_WORDS"))
    if (audio is None) != (words is None):
        raise InvalidArgument(f"{'USER_AUDIO' if audio is None else 'USER_WORDS'} is missing; the two come together")
    if audio is None or words is None:
        return None
    try:
        return UserSpeech(audio.as_numpy().copy(), [json.loads(word) for word in words.as_numpy()])
    except ValueError as error:
        raise InvalidArgument(f"USER_WORDS is not one JSON object for each word ({error})") from None


def _text(request: Any, name: str, limit_bytes: int) -> str | None:
    value = _scalar(request, name)
    if value is not None and len(value) > limit_bytes:
        raise InvalidArgument(f"{name} has {len(value)} bytes; allowed: at most {limit_bytes}")
    try:
        return None if value is None else str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{name} is not UTF-8 ({error.reason} at byte {error.start})") from None
