"""One utterance of a conversation over the native WebSocket: how it shall sound, and its text on the way in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Self

from dia2_client import SessionOptions

from .errors import BadRequest
from .fields import Fields
from .formats import AudioFormat
from .limits import Allowance
from .utterance import Utterance

DEFAULT_FORMAT = "pcm_24000"
MAX_WAITING_CHARACTERS = 100_000  # that the back end has not taken yet
MAX_PIECE_CHARACTERS = 2_000  # up to which text that waits is handed on as one piece

OPTIONS = ("voice", "seed", "temperature", "top_k", "cfg_scale", "format", "words", "audio")


@dataclass(frozen=True)
class Start:
    """How an utterance shall sound and be sent."""

    options: SessionOptions
    format: AudioFormat
    words: bool  # tell them
    binary: bool  # audio as binary messages, else as JSON

    @classmethod
    def read(cls, fields: Fields) -> Self:
        """From the fields OPTIONS, all optional. Raises BadRequest."""
        audio = fields.choice("audio", ("binary", "json"))
        words = fields.boolean("words")
        options = SessionOptions(
            voice=fields.text("voice"),
            seed=fields.whole("seed"),
            temperature=fields.number("temperature"),
            top_k=fields.whole("top_k"),
            cfg_scale=fields.number("cfg_scale"),
        )
        format = AudioFormat.parse(fields.text("format") or DEFAULT_FORMAT, "format")
        return cls(options, format, words is not False, audio != "json")


class Turn:
    """The text that has come for an utterance, until the back end takes it."""

    def __init__(self, start: Start, utterance: Utterance, allowance: Allowance) -> None:
        self.start = start
        self.utterance = utterance
        self.entering: asyncio.Task[None] | None = None  # that waits for the utterance's place
        self.entered = False  # it has its place
        self.closed = False  # no more text will come
        self.cancelled = False
        self.played_s: float | None = None  # when it was cancelled
        self._allowance = allowance
        self._waiting: list[tuple[str, bool]] = []  # each with whether a flush follows it
        self._more = asyncio.Event()

    def add(self, text: str, *, flush: bool = False, close: bool = False) -> None:
        """Takes text, at once. Raises BadRequest, and then has not taken it."""
        if self.closed:
            raise BadRequest("the utterance was closed and is still spoken; wait for done, or cancel it", field="type")
        waiting = len(text) + sum(len(piece) for piece, _ in self._waiting)
        if waiting > MAX_WAITING_CHARACTERS:
            raise BadRequest(f"{waiting} characters wait to be spoken; allowed: {MAX_WAITING_CHARACTERS}", field="text")
        self._allowance.check_characters(self.utterance.characters + waiting)
        if self._waiting and not self._waiting[-1][1] and len(self._waiting[-1][0]) + len(text) < MAX_PIECE_CHARACTERS:
            text = self._waiting.pop()[0] + text
        self._waiting.append((text, flush))
        self.closed = close
        self._more.set()

    async def pieces(self) -> AsyncGenerator[tuple[str, bool, bool], None]:
        """(text, flush, close) as it comes, until the close. What waits together is put together."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._waiting:
                text, flush = self._waiting.pop(0)
                last = self.closed and not self._waiting
                yield text, flush, last
                if last:
                    return
