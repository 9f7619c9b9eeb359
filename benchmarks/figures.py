"""What is reported about streams: pure functions of when their chunks arrived, and of what was in them.

Times are in seconds from the moment at which a request was due, unless a name says otherwise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from dia2_client import Chunk
from dia2_client.stats import StreamStats
from numpy.typing import NDArray

LISTEN_S = 2.0  # audio of each stream that is kept, to look for the first audible sample
LEVEL_S = 0.01  # the level is taken over windows of this length, side by side

Status = Literal["ended", "rejected", "failed", "unfinished"]


@dataclass(frozen=True)
class Outcome:
    """How one request went."""

    status: Status
    due_s: float  # from the start of the load
    first_chunk_s: float | None = None
    first_audible_s: float | None = None  # None also where nothing was audible within LISTEN_S
    underruns: int = 0
    real_time_factor: float | None = None
    audio_s: float = 0.0
    window_audio_s: float = 0.0  # of it, what arrived while the load was being counted
    message: str = ""  # of a request that was rejected or failed


class Listener:
    """One stream as it arrives. `add` is cheap; the work is in `outcome`, for when the load is over."""

    def __init__(self, sample_rate: int, due_s: float, late_s: float = 0.0) -> None:
        self.stats = StreamStats(sample_rate)
        self.due_s = due_s
        self.late_s = late_s  # how much later than due the request was sent
        self.chunks: list[tuple[float, int]] = []  # (arrived_s, samples)
        self.head: list[NDArray[np.float32]] = []  # the first LISTEN_S of audio

    def add(self, chunk: Chunk) -> None:
        if self.stats.samples < LISTEN_S * self.stats.sample_rate:
            self.head.append(chunk.audio)
        self.chunks.append((self.late_s + chunk.arrived_s, chunk.audio.size))
        self.stats.add(chunk)

    def outcome(self, status: Status, window: tuple[float, float], audible_dbfs: float, message: str = "") -> Outcome:
        """`window`: from when to when audio is counted, in seconds from the start of the load."""
        rate = self.stats.sample_rate
        counted = sum(samples for arrived_s, samples in self.chunks if window[0] <= self.due_s + arrived_s < window[1])
        audible_s = None
        if self.head:
            audible = first_audible(np.concatenate(self.head), rate, audible_dbfs)
            audible_s = None if audible is None else heard_s(self.chunks, rate, audible)
        return Outcome(
            status=status,
            due_s=self.due_s,
            first_chunk_s=self.chunks[0][0] if self.chunks else None,
            first_audible_s=audible_s,
            underruns=self.stats.underruns,
            real_time_factor=self.stats.real_time_factor if status == "ended" else None,
            audio_s=self.stats.audio_s,
            window_audio_s=counted / rate,
            message=message,
        )


def first_audible(audio: NDArray[np.float32], sample_rate: int, threshold_dbfs: float) -> int | None:
    """Where the first window of LEVEL_S begins whose root mean square is above the threshold.

    0 dBFS is the level of a square wave of full scale. None if there is no such window. audio: [samples]
    """
    length = round(LEVEL_S * sample_rate)
    windows = audio[: audio.size // length * length].astype(np.float64).reshape(-1, length)
    loud = np.flatnonzero((windows**2).mean(axis=1) > 10 ** (threshold_dbfs / 10))
    return int(loud[0]) * length if loud.size else None


def heard_s(chunks: Sequence[tuple[float, int]], sample_rate: int, sample: int) -> float | None:
    """When a listener hears this sample, who plays each chunk once it is there and the one before has been played.

    chunks: (arrived_s, samples) in order. None if the sample is not in them.
    """
    played_until_s, begin = -math.inf, 0
    for arrived_s, samples in chunks:
        starts_s = max(arrived_s, played_until_s)
        if begin <= sample < begin + samples:
            return starts_s + (sample - begin) / sample_rate
        played_until_s, begin = starts_s + samples / sample_rate, begin + samples
    return None


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: the smallest of the values that at least `percent` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and p99; None without values."""
    return {f"p{percent}": percentile(values, percent) for percent in (50, 95, 99)} if values else None


def summarise(outcomes: Sequence[Outcome], window: tuple[float, float]) -> dict[str, Any]:
    """The figures of one load: of the requests that were due within the window (begin, end; seconds)."""
    counted = [outcome for outcome in outcomes if window[0] <= outcome.due_s < window[1]]
    first_ms = [1000 * outcome.first_chunk_s for outcome in counted if outcome.first_chunk_s is not None]
    audible_ms = [1000 * outcome.first_audible_s for outcome in counted if outcome.first_audible_s is not None]
    factors = [outcome.real_time_factor for outcome in counted if outcome.real_time_factor is not None]
    lengths_s = [outcome.audio_s for outcome in counted if outcome.status == "ended"]
    statuses = Counter(outcome.status for outcome in counted)
    messages = Counter(outcome.message for outcome in counted if outcome.message)
    return {
        "requests": len(counted),
        **{status: statuses[status] for status in ("ended", "rejected", "failed", "unfinished")},
        "messages": [f"{count} x {message}" for message, count in messages.most_common(3)],
        "first_chunk_ms": spread(first_ms),
        "first_audible_ms": spread(audible_ms),
        "inaudible": len(first_ms) - len(audible_ms),
        "underruns": sum(outcome.underruns for outcome in counted),
        "streams_with_underruns": sum(outcome.underruns > 0 for outcome in counted),
        "real_time_factor": spread(factors),
        "audio_s_mean": sum(lengths_s) / len(lengths_s) if lengths_s else None,
        "audio_s_per_s": sum(outcome.window_audio_s for outcome in outcomes) / (window[1] - window[0]),
    }
