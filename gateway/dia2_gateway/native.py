"""The gateway's own WebSocket, /v1/stream: JSON in, audio and words out. docs/gateway.md describes it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from dia2_client import Word
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from .errors import ApiError, BadRequest
from .fields import Fields, refused
from .formats import Encoder
from .keys import read_key
from .speech import Caller, Speech
from .turn import OPTIONS, Start, Turn

FIELDS = {
    "start": ("type", *OPTIONS),
    "text": ("type", "text"),
    "flush": ("type",),
    "close": ("type",),
    "cancel": ("type", "played_s"),
    "tts": ("type", "text", *OPTIONS),
}
GOODBYE = 1000  # the code of a connection that was idle

Event = dict[str, Any]


class Conversation:
    """One WebSocket: utterances, one after the other.

    One task listens. Each utterance has a task that speaks, and within it one that hands its text to the back end. So
    a cancel, or a caller who leaves, is noticed at once whatever else is waited for.
    """

    def __init__(self, websocket: WebSocket, speech: Speech, caller: Caller, idle_timeout_s: float) -> None:
        self._websocket = websocket
        self._speech = speech
        self._caller = caller
        self._idle_timeout_s = idle_timeout_s
        self._start: Start | None = None  # of the next utterance
        self._turn: Turn | None = None  # the live utterance
        self._task: asyncio.Task[None] | None = None  # that speaks it
        self._skipping = False  # what comes next was meant for an utterance that has ended early

    async def run(self) -> None:
        """Until the caller leaves, or takes nothing for too long."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._listen()
                if self._task is not None:
                    self._task.cancel()
        except* WebSocketDisconnect:
            pass

    async def _listen(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._idle_timeout_s):
                    message = await self._websocket.receive()
            except TimeoutError:
                if self._turn is None:
                    await self._websocket.close(GOODBYE, "idle")
                    return
                continue
            if message["type"] == "websocket.disconnect":
                return
            try:
                await self._take(message)
            except ApiError as error:
                await self._tell(_error(error))

    async def _take(self, message: Message) -> None:
        """Does what a message says. Raises ApiError if it cannot be done, and then nothing is.

        Nothing here waits, but for the end of an utterance that was cancelled: what comes behind is for the next one.
        """
        if message.get("text") is None:
            raise BadRequest("messages are text, not binary")
        kind = Fields.from_json(message["text"], None).text("type")
        if kind not in FIELDS:
            raise refused("type", kind, ", ".join(FIELDS))
        fields = Fields.from_json(message["text"], FIELDS[kind])
        if self._turn is not None and self._turn.cancelled and kind != "cancel":
            assert self._task is not None
            await asyncio.wait([self._task])
        if self._skipping and kind in ("text", "flush", "close"):
            self._skipping = kind != "close"
            return
        self._skipping = False
        if kind in ("start", "tts"):
            if self._turn is not None:
                raise BadRequest("an utterance is live; wait for done, or cancel it", field="type")
            start = Start.read(fields)
            self._speech.resolve_voice(start.options["voice"])
            if kind == "tts":
                self._begin(start, fields.required_text("text"), close=True)
            else:
                self._start = start
        elif kind == "text":
            self._add(_text(fields))
        elif kind == "cancel":
            await self._cancel(fields)
        else:
            self._add("", flush=kind == "flush", close=kind == "close")

    def _add(self, text: str, *, flush: bool = False, close: bool = False) -> None:
        """Text for the live utterance, or the beginning of one."""
        if self._turn is not None:
            self._turn.add(text, flush=flush, close=close)
            return
        if flush or close:
            raise BadRequest(f"there is nothing to {'flush' if flush else 'close'}: no text has come", field="type")
        if text:  # language models like to begin with nothing
            self._begin(self._start or Start.read(Fields({}, ())), text)

    def _begin(self, start: Start, text: str, *, close: bool = False) -> None:
        """An utterance, with its first text. Raises BadRequest."""
        turn = Turn(start, self._speech.open(self._caller, **start.options), self._caller.allowance)
        turn.add(text, close=close)
        self._start = None
        self._turn = turn
        self._task = self._tasks.create_task(self._speak(turn))

    async def _cancel(self, fields: Fields) -> None:
        played_s = fields.number("played_s")
        if played_s is not None and played_s < 0:
            raise refused("played_s", played_s, "0 or more: seconds of the utterance's audio that were played")
        turn = self._turn
        if turn is None:  # its utterance has ended meanwhile
            await self._tell(_cancelled((), 0.0))
        elif not turn.cancelled:
            turn.cancelled, turn.played_s = True, played_s
            if turn.entered:
                await turn.utterance.cancel()
            elif turn.entering is not None:
                turn.entering.cancel()

    async def _speak(self, turn: Turn) -> None:
        """Tells all of one utterance. The last event says how it ended, and that its place is free again."""
        utterance = turn.utterance
        try:
            turn.entering = asyncio.current_task()
            if turn.cancelled:  # before it began
                raise asyncio.CancelledError
            async with utterance:
                turn.entered = True
                await self._tell(self._started(turn))
                writing = self._tasks.create_task(self._write(turn))
                try:
                    await self._hear(turn)
                finally:
                    writing.cancel()
            if turn.cancelled:
                words = utterance.words if turn.played_s is None else utterance.spoken(turn.played_s)
                await self._end(turn, _cancelled(words, utterance.seconds))
            else:
                reason = utterance.finish_reason or "stop"
                await self._end(turn, {"type": "done", "reason": reason, "seconds": utterance.seconds})
        except ApiError as error:
            await self._end(turn, _error(error, utterance.id))
        except asyncio.CancelledError:
            if not turn.cancelled or turn.entered:
                raise  # the conversation ends
            await self._end(turn, _cancelled((), 0.0))

    async def _write(self, turn: Turn) -> None:
        """Hands the text to the back end."""
        async with aclosing(turn.pieces()) as pieces:
            async for text, flush, close in pieces:
                try:
                    await turn.utterance.send(text, flush=flush, close=close)
                except ApiError as error:
                    if turn.utterance.failure is not None or turn.cancelled or self._turn is not turn:
                        return  # how it ended is told where it is heard
                    await self._tell(_error(error))

    async def _hear(self, turn: Turn) -> None:
        """Sends the audio, each piece behind the words that begin in it."""
        encoder = Encoder(turn.start.format, self._speech.sample_rate)
        async for chunk in turn.utterance:
            if chunk.words and turn.start.words:
                await self._tell({"type": "words", "words": _words(chunk.words)})
            await self._play(turn, encoder.encode(chunk.audio))
        if turn.utterance.samples and not turn.cancelled:
            await self._play(turn, encoder.finish())

    async def _play(self, turn: Turn, audio: bytes) -> None:
        if not audio:
            return
        if turn.start.binary:
            await self._websocket.send_bytes(audio)
        else:
            await self._tell({"type": "audio", "audio": base64.b64encode(audio).decode("ascii")})

    async def _end(self, turn: Turn, event: Event) -> None:
        self._turn = None
        self._skipping = not (turn.closed or turn.cancelled)
        await self._tell(event)

    def _started(self, turn: Turn) -> Event:
        format, voice = turn.start.format, turn.start.options["voice"] or self._speech.default_voice
        told = {"id": turn.utterance.id, "sample_rate": format.sample_rate, "format": format.name, "voice": voice}
        return {"type": "started", **told}

    async def _tell(self, event: Event) -> None:
        await self._websocket.send_text(json.dumps(event))


def _text(fields: Fields) -> str:
    """It may be white space, which ends a word."""
    text = fields.text("text")
    if text is None:
        raise BadRequest("text is required", field="text")
    return text


def _words(words: Sequence[Word]) -> list[Event]:
    return [{"text": word.text, "start": word.start_s} for word in words]


def _cancelled(words: Sequence[Word], seconds: float) -> Event:
    return {"type": "cancelled", "spoken": _words(words), "seconds": seconds}


def _error(error: ApiError, utterance_id: str | None = None) -> Event:
    """With an id: the error has ended that utterance. Without: it is about one message, and nothing has changed."""
    event: Event = {"type": "error", "code": error.code, "message": error.message}
    further = {"field": error.field, "retry_after_s": error.retry_after_s, "id": utterance_id}
    return event | {name: value for name, value in further.items() if value is not None}


async def stream(websocket: WebSocket) -> None:
    """One connection to /v1/stream."""
    speech: Speech = websocket.app.state.speech
    try:
        caller = speech.caller(websocket, read_key(websocket))
    except ApiError as error:
        await websocket.send_denial_response(JSONResponse(_error(error), error.status, headers=error.headers))
        return
    await websocket.accept()
    await Conversation(websocket, speech, caller, websocket.app.state.config.idle_timeout_s).run()


routes: list[BaseRoute] = [WebSocketRoute("/v1/stream", stream)]
