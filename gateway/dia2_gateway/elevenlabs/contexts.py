"""A context: what is said under one id, in one voice, until it is closed. It is one utterance."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ApiError, BadRequest
from ..formats import Encoder
from ..speech import Caller, Speech, Utterance
from . import shapes
from .alignment import Aligner, Character
from .wanted import StreamOptions

KEEP_ALIVE_S = 15.0  # a back end ends a session that has heard nothing for longer, 60 seconds by default
MAX_WAITING_CHARACTERS = 100_000  # that the back end has not taken yet
SENTENCE_ENDS = tuple(".?!…")
CLOSERS = "\"')]}\u201d\u2019\u00bb"  # that may stand behind the end of a sentence


class Inactive(ApiError):
    """Nothing was said, and nothing heard, for too long."""

    status: ClassVar[int] = 408
    code: ClassVar[str] = "input_timeout_exceeded"


@dataclass(frozen=True)
class Manner:
    """How a WebSocket speaks, and for whom."""

    speech: Speech
    caller: Caller
    voice_id: str
    options: StreamOptions


@dataclass(frozen=True)
class _Piece:
    text: str = ""
    flush: bool = False
    close: bool = False


class Context:
    """Takes text at any time, and hands on messages with the audio of it. `run()` is its life."""

    def __init__(self, manner: Manner, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        self.flushed = False  # its caller has asked for all that was said so far
        self._manner = manner
        self._send = send
        self._pieces: asyncio.Queue[_Piece] = asyncio.Queue()
        self._waiting_characters = 0
        self._error: ApiError | None = None
        self._speaking: asyncio.Task[None] | None = None
        self._aborted = False
        self.touch()

    def touch(self) -> None:
        """It is in use: its time of inactivity begins anew."""
        self._inactive_at_s = asyncio.get_running_loop().time() + self._manner.options.inactivity_timeout_s

    def say(self, text: str, *, flush: bool = False) -> None:
        """Speak this, too; with `flush`, all that was said so far, without waiting for more.

        Raises BadRequest if much more is said than the back end takes.
        """
        self.touch()
        self.flushed |= flush
        if self._manner.options.auto_mode and text.strip():
            flush |= text.rstrip().rstrip(CLOSERS).endswith(SENTENCE_ENDS)
            text = text if text[-1].isspace() else f"{text} "
        self._waiting_characters += len(text)
        if self._waiting_characters > MAX_WAITING_CHARACTERS:
            raise BadRequest(f"more than {MAX_WAITING_CHARACTERS} characters wait to be spoken", field="text")
        self._pieces.put_nowait(_Piece(text, flush))

    def close(self) -> None:
        """No more text; what was said is spoken."""
        self._pieces.put_nowait(_Piece(close=True))

    def abort(self, error: ApiError | None = None) -> None:
        """Stop at once, for that reason."""
        self._aborted = True
        self._error = error
        if self._speaking is not None:
            self._speaking.cancel()

    async def run(self) -> ApiError | None:
        """Speaks until all is spoken, or it is stopped; returns why it failed. When it returns, its place is free."""
        self._speaking = asyncio.create_task(self._speak())
        if self._aborted:
            self._speaking.cancel()
        try:
            await asyncio.wait([self._speaking])
        finally:
            self._speaking.cancel()
            await asyncio.wait([self._speaking])
        try:
            self._speaking.result()
        except asyncio.CancelledError:
            return self._error
        except ApiError as error:
            return error
        return None

    async def _speak(self) -> None:
        first = await self._next_piece(None)
        while not (first.text.strip() or first.close):  # a context begins with a space, and takes no place for it
            first = await self._next_piece(None)
        if not first.text:
            return
        speech, options = self._manner.speech, self._manner.options
        encoder, aligner = Encoder(options.format, speech.sample_rate), Aligner(speech.sample_rate)
        async with speech.open(self._manner.caller, voice=self._manner.voice_id, seed=options.seed) as utterance:
            writing = asyncio.create_task(self._write(utterance, first))
            try:
                async for chunk in utterance:
                    start_ms = aligner.time_ms
                    aligned = aligner.feed(len(chunk.audio), chunk.words)
                    await self._hand_on(encoder.encode(chunk.audio), aligned, start_ms)
            finally:
                writing.cancel()
                await asyncio.wait([writing])
                failure = None if writing.cancelled() else writing.exception()
        if failure is not None:
            raise failure
        await self._hand_on(encoder.finish(), aligner.finish(), aligner.time_ms)

    async def _hand_on(self, audio: bytes, aligned: Sequence[Character], start_ms: int) -> None:
        self.touch()
        if audio or aligned:
            absolute = self._manner.options.sync_alignment
            await self._send(shapes.audio_message(audio, aligned, start_ms, absolute=absolute))

    async def _write(self, utterance: Utterance, first: _Piece) -> None:
        """Passes on what is said. What goes wrong with it ends the audio, too."""
        piece = first
        try:
            while True:
                await utterance.send(piece.text, flush=piece.flush, close=piece.close)
                if piece.close:
                    return
                piece = await self._next_piece(utterance)
        except Exception:
            await utterance.cancel()
            raise

    async def _next_piece(self, utterance: Utterance | None) -> _Piece:
        """What is said next; keeps the utterance alive meanwhile. Raises Inactive."""
        clock = asyncio.get_running_loop()
        while (left_s := self._inactive_at_s - clock.time()) > 0:
            try:
                async with asyncio.timeout(min(left_s, KEEP_ALIVE_S)):
                    piece = await self._pieces.get()
                self._waiting_characters -= len(piece.text)
                return piece
            except TimeoutError:
                if utterance is not None:
                    await utterance.send("")
        raise Inactive(f"no text came for {self._manner.options.inactivity_timeout_s:g} s")
