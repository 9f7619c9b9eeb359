"""Reading clips, and samples as bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from dia2_engine.audio.io import load_clip, pcm16
from dia2_engine.errors import ConfigError


def tone(rate: int, seconds: float = 0.5, hz: float = 440.0) -> NDArray[np.float64]:
    samples: NDArray[np.float64] = 0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)
    return samples


def test_a_clip_at_its_own_rate_is_read_exactly(tmp_path: Path) -> None:
    samples = np.array([0, 1, -1, 16384, -32768, 32767], dtype=np.int16)
    soundfile.write(tmp_path / "clip.wav", samples, 24000)
    clip = load_clip(tmp_path / "clip.wav", 24000)
    assert clip.dtype == np.float32
    assert np.array_equal(clip, samples / np.float32(32768))


@pytest.mark.parametrize("name", ["clip.wav", "clip.flac"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_other_rates_are_resampled(tmp_path: Path, rate: int, name: str) -> None:
    soundfile.write(tmp_path / name, tone(rate), rate)
    clip = load_clip(tmp_path / name, 24000)
    assert abs(len(clip) - 12000) <= 1
    inner = slice(1000, 11000)  # away from the resampler's edges
    assert np.abs(clip[inner] - tone(24000)[inner]).max() < 2e-3


def test_channels_are_averaged(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", np.stack([tone(24000), -tone(24000) / 2], axis=1), 24000)
    clip = load_clip(tmp_path / "clip.wav", 24000)
    assert clip.shape == (12000,)
    assert np.abs(clip - tone(24000) / 4).max() < 1e-4


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not audio", "utf-8")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 24000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 24000, subtype="FLOAT")
    for name, reason in (
        ("text.wav", "cannot be read as audio"),
        ("absent.wav", "cannot be read as audio"),
        (".", "cannot be read as audio"),
        ("empty.wav", "holds no samples"),
        ("nan.wav", "not finite"),
    ):
        with pytest.raises(ConfigError) as refused:
            load_clip(tmp_path / name, 24000)
        assert str(refused.value).startswith(f"{tmp_path / name}: ")
        assert reason in str(refused.value)


def test_pcm16_is_little_endian_and_clipped() -> None:
    audio = np.array([0.0, 1.0, -1.0, 2.0, -2.0, 0.5, 1 / 32767], dtype=np.float32)
    assert np.frombuffer(pcm16(audio), "<i2").tolist() == [0, 32767, -32767, 32767, -32767, 16384, 1]
    assert pcm16(audio[1:2]) == b"\xff\x7f"
    assert pcm16(audio[:0]) == b""
