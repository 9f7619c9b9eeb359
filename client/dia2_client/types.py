"""What a stream is made of: plain values, shared by the blocking and the asyncio client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "cancelled"]


class SessionOptions(TypedDict, total=False):
    """Keyword options of a session. What is left out is the server's choice; it checks the ranges."""

    voice: str | None
    seed: int | None  # the same seed gives the same audio
    temperature: float | None
    top_k: int | None
    cfg_scale: float | None


class Options(SessionOptions, total=False):
    """Keyword options of one utterance: those of a session, and"""

    max_seconds: float | None  # ends the audio there, with finish_reason "length"
    words: bool  # ask for word onsets (default True)


@dataclass(frozen=True)
class VoiceInfo:
    """A voice of the server."""

    name: str
    default: bool  # whether it speaks where none is named


@dataclass(frozen=True)
class Word:
    """A word of the script and when it starts, in seconds from the stream's first sample."""

    text: str
    start_s: float


@dataclass(frozen=True)
class TimedWord:
    """A word that a session's user has said, with its times in the recording, in seconds."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class UserSpeech:
    """What the other side of a session has said."""

    audio: NDArray[np.float32]  # [samples], mono at the session's sample rate
    words: Sequence[TimedWord]


@dataclass(frozen=True)
class Chunk:
    """Consecutive audio of one stream, and the words that start in it."""

    audio: NDArray[np.float32]  # [samples], mono, -1..1
    words: tuple[Word, ...]
    first_frame: int | None  # index of the chunk's first frame (80 ms each), where the server tells
    arrived_s: float  # seconds from sending the request (the session's first) to this chunk's arrival


@dataclass(frozen=True)
class Speech:
    """A whole utterance, as `say()` returns it."""

    audio: NDArray[np.float32]  # [samples], mono, -1..1
    words: tuple[Word, ...]
    sample_rate: int
    finish_reason: FinishReason | None  # None where the server cannot tell


class Transcript:
    """The words of a session, as its chunks bring them."""

    def __init__(self) -> None:
        self._words: list[Word] = []

    @property
    def words(self) -> tuple[Word, ...]:
        """Every word of the chunks so far, in order; `start_s` counts from the session's first sample."""
        return tuple(self._words)

    def spoken(self, played_s: float) -> tuple[Word, ...]:
        """The words that a listener has begun to hear: those that start before `played_s`.

        `played_s` is how much of the session's audio has been played, in seconds (samples played / sample rate, and
        not the time since the start: a player that ran dry was silent meanwhile).
        """
        return tuple(word for word in self._words if word.start_s < played_s)


def join(chunks: list[Chunk], sample_rate: int, finish_reason: FinishReason | None) -> Speech:
    """Chunks in order, as one piece."""
    audio = np.concatenate([np.zeros(0, np.float32), *(chunk.audio for chunk in chunks)])
    words = tuple(word for chunk in chunks for word in chunk.words)
    return Speech(audio, words, sample_rate, finish_reason)


def pcm16(audio: NDArray[np.float32]) -> bytes:
    """Little-endian 16-bit PCM of `audio` [samples]; what lies outside -1..1 is clipped."""
    samples: NDArray[np.int16] = np.rint(np.clip(audio, -1.0, 1.0) * 32767.0).astype("<i2")
    return samples.tobytes()
