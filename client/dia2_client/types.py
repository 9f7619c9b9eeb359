"""What a stream is made of: plain values, shared by the blocking and the asyncio client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "cancelled"]


class Options(TypedDict, total=False):
    """Keyword options of one utterance. What is left out is the server's choice; it checks the ranges."""

    voice: str | None
    seed: int | None  # the same seed gives the same audio
    temperature: float | None
    top_k: int | None
    cfg_scale: float | None
    max_seconds: float | None  # ends the audio there, with finish_reason "length"
    words: bool  # ask for word onsets (default True)


@dataclass(frozen=True)
class Word:
    """A word of the script and when it starts, in seconds from the stream's first sample."""

    text: str
    start_s: float


@dataclass(frozen=True)
class Chunk:
    """Consecutive audio of one stream, and the words that start in it."""

    audio: NDArray[np.float32]  # [samples], mono, -1..1
    words: tuple[Word, ...]
    first_frame: int | None  # index of the chunk's first frame (80 ms each), where the server tells
    arrived_s: float  # seconds from sending the request to this chunk's arrival


@dataclass(frozen=True)
class Speech:
    """A whole utterance, as `say()` returns it."""

    audio: NDArray[np.float32]  # [samples], mono, -1..1
    words: tuple[Word, ...]
    sample_rate: int
    finish_reason: FinishReason | None  # None where the server cannot tell


def join(chunks: list[Chunk], sample_rate: int, finish_reason: FinishReason | None) -> Speech:
    """Chunks in order, as one piece."""
    audio = np.concatenate([np.zeros(0, np.float32), *(chunk.audio for chunk in chunks)])
    words = tuple(word for chunk in chunks for word in chunk.words)
    return Speech(audio, words, sample_rate, finish_reason)


def pcm16(audio: NDArray[np.float32]) -> bytes:
    """Little-endian 16-bit PCM of `audio` [samples]; what lies outside -1..1 is clipped."""
    samples: NDArray[np.int16] = np.rint(np.clip(audio, -1.0, 1.0) * 32767.0).astype("<i2")
    return samples.tobytes()
