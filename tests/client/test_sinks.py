from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from dia2_client import Speech, Word, pcm16
from dia2_client.sinks import RawSink, WavSink


def test_pcm_is_little_endian_rounded_and_clipped() -> None:
    audio = np.array([0, 1, -1, 2, -2, 0.5], np.float32)
    assert np.frombuffer(pcm16(audio), "<i2").tolist() == [0, 32767, -32767, 32767, -32767, 16384]


def read(path: Path) -> tuple[int, int, int, bytes]:
    with wave.open(str(path), "rb") as file:
        return file.getnchannels(), file.getsampwidth(), file.getframerate(), file.readframes(file.getnframes())


def test_a_wav_is_valid_after_every_write(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    audio = np.sin(np.arange(1000, dtype=np.float32))
    with WavSink(path, 24_000) as sink:
        assert read(path) == (1, 2, 24_000, b"")
        for start, end in ((0, 1), (1, 500), (500, 1000)):
            sink.write(audio[start:end])
            assert read(path) == (1, 2, 24_000, pcm16(audio[:end]))
            assert path.stat().st_size == 44 + 2 * end  # header and data, nothing else
    assert read(path) == (1, 2, 24_000, pcm16(audio))


def test_a_wav_survives_an_error_in_mid_stream(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"

    def fail() -> None:
        with WavSink(path, 8_000) as sink:
            sink.write(np.ones(3, np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert read(path) == (1, 2, 8_000, pcm16(np.ones(3, np.float32)))


def test_raw_is_the_samples_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.raw"
    with RawSink(str(path)) as sink:
        sink.write(np.array([0.5], np.float32))
        sink.write(np.array([-1.0], np.float32))
    assert path.read_bytes() == pcm16(np.array([0.5, -1.0], np.float32))


def test_the_plot_takes_any_length_and_any_word(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from dia2_client.plot import draw

    words = (Word("$5", 0.0), Word("and $6", 0.1))
    for name, samples in (("empty.png", 0), ("short.svg", 7), ("long.png", 100_003)):
        draw(Speech(np.zeros(samples, np.float32), words, 24_000, "stop"), tmp_path / name)
    assert (tmp_path / "long.png").read_bytes().startswith(b"\x89PNG")
    assert b"$5" in (tmp_path / "short.svg").read_bytes()
