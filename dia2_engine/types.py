"""What goes in and what comes out: plain values that every layer above the engine shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import Dia2Error

FinishReason = Literal["stop", "length"]

# What a cell of the delay grid comes from; the kernels know these numbers too.
SAMPLED, FROM_PREFIX, BEFORE_START = 0, 1, 2


@dataclass(frozen=True)
class Request:
    """One utterance. `None` means the server's default; ranges are checked at submission."""

    text: str
    voice: str | None = None
    seed: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    cfg_scale: float | None = None
    max_seconds: float | None = None


@dataclass(frozen=True)
class UserSpeech:
    """What the other side of a session has said, as speaker 2."""

    audio: NDArray[np.float32]  # [samples], mono at the codec's rate
    words: Sequence[Any]  # {"text": ..., "start": ..., "end": ...} each, in seconds from the first sample


@dataclass(frozen=True)
class Word:
    """A word of the script and when its audio starts, in seconds from the stream's first sample."""

    text: str
    start_s: float


@dataclass(frozen=True)
class AudioChunk:
    """Consecutive frames of one stream, and the words that start in them."""

    audio: NDArray[np.float32]  # [frames * frame_samples], mono, -1..1
    first_frame: int  # counted from the stream's start
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Finished:
    """The stream is complete. `length`: it was ended by the context or by `max_seconds`."""

    reason: FinishReason
    frames: int


@dataclass(frozen=True)
class Failed:
    """The stream ended early; `error.code` says why."""

    error: Dia2Error


Event = AudioChunk | Finished | Failed
