"""One request's life in the engine: what it asked for, where it stands, and what it has sent."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .boundary import BoundaryStream
from .context import Replay
from .prefix import Heard, Prefix
from .runtime.runner import SlotSnapshot
from .text.parser import ScriptReader
from .text.state_machine import Entry
from .types import AudioChunk, Word


@dataclass(frozen=True)
class Voice:
    """A voice ready to serve: its prefix, and the device state after it."""

    name: str
    prefix: Prefix
    snapshot: SlotSnapshot


@dataclass(frozen=True)
class Text:
    """A piece of a session's text, and what the stream is to hear before that."""

    entries: Sequence[Entry]
    flush: bool = False
    close: bool = False
    heard: Future[Heard] | None = None


@dataclass(eq=False)
class Stream:
    """From submission to the terminal event."""

    voice: Voice | None
    boundary: BoundaryStream
    seed: int
    cfg_scale: float
    temperatures: tuple[float, float]  # text, audio
    top_k: int
    submitted_s: float
    slot: int = -1  # none
    cancelled: str = ""  # why
    ended: bool = False
    first_audio_s: float | None = None
    dry_s: float = -math.inf  # when a listener will have played all that was sent; -inf: there is nobody listening yet
    heard_frames: int = 0  # sent since then
    replay: Replay | None = None  # what is still to be fed before the next step
    audio: list[NDArray[np.float32]] = field(default_factory=list)  # decoded frames not yet sent
    sent_frames: int = 0
    reader: ScriptReader | None = None  # of a session, whose text comes while it is spoken
    inbox: deque[Text] = field(default_factory=deque)  # text that the engine has not taken yet
    closed: bool = False  # no more will come
    text_s: float = field(default_factory=time.monotonic)  # when text came last

    def cancel(self, reason: str = "the request was cancelled") -> None:
        """Ask for the stream to end; it does within one frame, with `Failed(Cancelled)`. From any thread."""
        self.cancelled = self.cancelled or reason

    def take_text(self) -> None:
        """Hand what has come to the boundary stream. From the engine's thread. Raises what hearing somebody raised.

        What somebody else said waits until it is encoded and all that the stream had to say before is out, and what
        came after it waits with it.
        """
        if self.slot >= 0 and self.boundary.waits and self.dry_s < time.monotonic():
            self.dry_s, self.heard_frames = -math.inf, 0  # it is to be heard as soon as a new one
        while self.inbox:
            heard = self.inbox[0].heard
            if heard is not None and not (heard.done() and self.boundary.is_said):
                return
            text = self.inbox.popleft()
            if heard is not None:
                self.boundary.hear(heard.result())
            self.boundary.append(text.entries)
            if text.flush:
                self.boundary.flush()
            if text.close:
                self.boundary.close()

    def take_chunk(self, frame_s: float) -> AudioChunk:
        """What has been decoded and not sent, with the words that start in it."""
        first = self.sent_frames
        self.sent_frames += len(self.audio)
        self.heard_frames += len(self.audio)
        self.dry_s = max(self.dry_s, time.monotonic()) + len(self.audio) * frame_s
        offset = self.boundary.first_frame or 0
        words = []
        ahead = self.boundary.words
        while ahead and ahead[0][1] - offset < self.sent_frames:
            text, frame = ahead.popleft()
            words.append(Word(text, (frame - offset) * frame_s))
        audio = self.audio[0] if len(self.audio) == 1 else np.concatenate(self.audio)
        self.audio.clear()
        return AudioChunk(audio, first, tuple(words))
