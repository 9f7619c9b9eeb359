"""What can be wrong with a recording before any model sees it: level, clipping, silence, sample rate, timing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from ..audio.io import load_clip
from ..errors import ConfigError
from .plan import TimedWord

LOWEST_RATE = 16_000  # below, consonants are missing that the model would have to invent
FULL_SCALE = 0.999
MOST_CLIPPED = 0.001  # share of samples
SILENT_PEAK_DB = -60.0
LOW_PEAK_DB = -30.0
FLOOR_DB = -40.0  # relative to the clip's peak: below is a pause
LONGEST_EDGE_S = 1.0  # of silence in front or behind
LATE_END_S = 0.1  # a last word's end is often measured a little late
_WINDOW_S = 0.02


@dataclass
class Findings:
    """What a check found. With an error the voice cannot be served; a warning is for the one who listens."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_recording(path: Path, words: Sequence[TimedWord]) -> Findings:
    """Check one clip as recorded (before resampling). Raises ConfigError if it cannot be read at all."""
    found = Findings()
    rate = _sample_rate(path)
    audio = load_clip(path, rate)
    peak_db = _db(float(np.abs(audio).max()))
    if peak_db < SILENT_PEAK_DB:
        found.errors.append(f"{path.name}: is silent (peak {peak_db:.0f} dBFS)")
        return found
    if peak_db < LOW_PEAK_DB:
        found.warnings.append(f"{path.name}: is very quiet (peak {peak_db:.0f} dBFS); record it louder")
    if rate < LOWEST_RATE:
        found.warnings.append(f"{path.name}: has {rate} Hz; below {LOWEST_RATE} Hz a voice sounds dull")
    clipped = float(np.mean(np.abs(audio) >= FULL_SCALE))
    if clipped > MOST_CLIPPED:
        found.warnings.append(f"{path.name}: {clipped:.1%} of its samples are at full scale; it is clipped")
    _check_pauses(path.name, audio, rate, words, found)
    return found


def _check_pauses(
    name: str, audio: NDArray[np.float32], rate: int, words: Sequence[TimedWord], found: Findings
) -> None:
    seconds = len(audio) / rate
    size = max(1, round(rate * _WINDOW_S))
    loud, window_s = _loud(audio, size), size / rate
    heard = np.flatnonzero(loud)
    edges = {"begins": heard[0] * window_s, "ends": seconds - (heard[-1] + 1) * window_s}
    for where, silence_s in edges.items():
        if silence_s > LONGEST_EDGE_S:
            found.warnings.append(f"{name}: {where} with {silence_s:.1f} s of silence; cut it")
    for word in words:
        if word.start >= seconds:
            found.errors.append(f"{name}: lasts {seconds:.2f} s but {word.text!r} starts at {word.start:.2f} s")
        elif word.end > seconds + LATE_END_S:
            found.warnings.append(f"{name}: lasts {seconds:.2f} s but {word.text!r} ends at {word.end:.2f} s")
        elif not loud[int(word.start / window_s) : int(word.end / window_s) + 1].any():
            found.warnings.append(f"{name}: is silent where {word.text!r} should be, at {word.start:.2f} s")


def _loud(audio: NDArray[np.float32], size: int) -> NDArray[np.bool_]:
    """Which windows of `size` samples are more than a pause, [windows]."""
    peaks = np.abs(np.pad(audio, (0, -len(audio) % size))).reshape(-1, size).max(axis=1)
    loud: NDArray[np.bool_] = peaks >= peaks.max() * 10 ** (FLOOR_DB / 20)
    return loud


def _sample_rate(path: Path) -> int:
    try:
        return int(soundfile.info(path).samplerate)
    except (OSError, TypeError, soundfile.LibsndfileError) as error:
        raise ConfigError(f"{path}: cannot be read as audio: {error}") from None


def _db(amplitude: float) -> float:
    return 20 * math.log10(max(amplitude, 1e-9))
