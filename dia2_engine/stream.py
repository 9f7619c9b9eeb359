"""One request's life in the engine: what it asked for, where it stands, and what it has sent."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .boundary import BoundaryStream, Prefix
from .runtime.runner import SlotSnapshot
from .types import AudioChunk, Word


@dataclass(frozen=True)
class Voice:
    """A voice ready to serve: its prefix, and the device state after it."""

    name: str
    prefix: Prefix
    snapshot: SlotSnapshot


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
    cancelled: bool = False
    ended: bool = False
    first_audio_s: float | None = None
    audio: list[NDArray[np.float32]] = field(default_factory=list)  # decoded frames not yet sent
    sent_frames: int = 0
    sent_words: int = 0

    def cancel(self) -> None:
        """Ask for the stream to end; it does within one frame, with `Failed(Cancelled)`. From any thread."""
        self.cancelled = True

    def take_chunk(self, frame_s: float) -> AudioChunk:
        """What has been decoded and not sent, with the words that start in it."""
        first = self.sent_frames
        self.sent_frames += len(self.audio)
        offset = self.boundary.first_frame or 0
        words = []
        for text, frame in self.boundary.words[self.sent_words :]:
            if frame - offset >= self.sent_frames:
                break
            words.append(Word(text, (frame - offset) * frame_s))
        self.sent_words += len(words)
        audio = np.concatenate(self.audio)
        self.audio.clear()
        return AudioChunk(audio, first, tuple(words))
