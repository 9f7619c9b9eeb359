"""Samples from files, and to bytes. Audio is mono float32 in -1..1 everywhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ..errors import ConfigError


def load_clip(path: Path, sample_rate: int) -> NDArray[np.float32]:
    """Read a WAV, FLAC or other sound file as mono at `sample_rate`: float32 [n].

    Channels are averaged. Raises ConfigError naming the file if it cannot be read, is empty or holds samples
    that are not numbers.
    """
    try:
        channels, rate = soundfile.read(path, dtype="float32", always_2d=True)  # [n, channels]
    except (OSError, TypeError, soundfile.LibsndfileError) as error:
        raise ConfigError(f"{path}: cannot be read as audio: {error}") from None
    if not len(channels):
        raise ConfigError(f"{path}: holds no samples")
    if not np.isfinite(channels).all():
        raise ConfigError(f"{path}: holds samples that are not finite numbers")
    mono = channels.mean(axis=1, dtype=np.float32)
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
    return np.ascontiguousarray(mono, dtype=np.float32)


def pcm16(audio: NDArray[np.float32]) -> bytes:
    """Samples in -1..1 as signed 16-bit little-endian bytes; beyond full scale they are clipped."""
    pcm: NDArray[np.int16] = np.rint(np.clip(audio, -1.0, 1.0) * 32767.0).astype("<i2")
    return pcm.tobytes()
