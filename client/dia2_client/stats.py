"""How well a stream kept up, from nothing but its chunks' arrival times."""

from __future__ import annotations

from dataclasses import dataclass

from .types import Chunk


@dataclass
class StreamStats:
    """Fed with each chunk in order. Times in seconds, counted from sending the request."""

    sample_rate: int
    chunks: int = 0
    samples: int = 0
    first_audio_s: float | None = None
    last_arrival_s: float = 0.0
    longest_gap_s: float = 0.0  # between two chunks
    underruns: int = 0  # chunks that came after a player, started at the first chunk, had run dry
    _played_until_s: float = 0.0

    def add(self, chunk: Chunk) -> None:
        if self.first_audio_s is None:
            self.first_audio_s = self._played_until_s = chunk.arrived_s
        else:
            self.longest_gap_s = max(self.longest_gap_s, chunk.arrived_s - self.last_arrival_s)
        if chunk.arrived_s > self._played_until_s:
            self.underruns += 1
            self._played_until_s = chunk.arrived_s
        self._played_until_s += chunk.audio.size / self.sample_rate
        self.chunks += 1
        self.samples += chunk.audio.size
        self.last_arrival_s = chunk.arrived_s

    @property
    def audio_s(self) -> float:
        """Length of the audio so far."""
        return self.samples / self.sample_rate

    @property
    def real_time_factor(self) -> float | None:
        """Seconds spent per second of audio: below 1 is faster than real time. None without audio."""
        return self.last_arrival_s / self.audio_s if self.samples else None

    def summary(self) -> str:
        """One line for people."""
        if self.first_audio_s is None or self.real_time_factor is None:
            return "no audio"
        return (
            f"{self.audio_s:.2f} s of audio in {self.last_arrival_s:.2f} s "
            f"(real-time factor {self.real_time_factor:.2f}), "
            f"first audio after {self.first_audio_s * 1000:.0f} ms, {_count(self.chunks, 'chunk')}, "
            f"longest gap {self.longest_gap_s * 1000:.0f} ms, {_count(self.underruns, 'underrun')}"
        )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
