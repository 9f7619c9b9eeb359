from __future__ import annotations

import sys
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from dia2_client import Speech, Word, pcm16
from dia2_client.sinks import PlayerSink, RawSink, WavSink


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


class NoLoudspeaker(Exception):
    """What sounddevice raises."""


class Loudspeaker:
    """Stands in for a sounddevice.OutputStream, since a machine that runs tests has no loudspeaker."""

    def __init__(self, **format_: Any) -> None:
        self.format, self.played, self.calls = format_, np.zeros((0, 1), np.float32), ["open"]
        opened.append(self)

    def write(self, audio: np.ndarray[Any, Any]) -> None:
        if not np.isfinite(audio).all():
            raise NoLoudspeaker("unplugged")
        self.played = np.concatenate([self.played, audio])

    def __getattr__(self, name: str) -> Any:
        return lambda: self.calls.append(name)


opened: list[Loudspeaker] = []


@pytest.fixture
def sounddevice(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    module = SimpleNamespace(PortAudioError=NoLoudspeaker, OutputStream=Loudspeaker)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    opened.clear()
    return module


def test_playing_takes_every_chunk_and_waits_for_the_end(sounddevice: SimpleNamespace) -> None:
    audio = np.sin(np.arange(1000, dtype=np.float32))
    with PlayerSink(24_000) as sink:
        sink.write(audio[:1])
        sink.write(audio[1:])
    (device,) = opened
    assert device.format == {"samplerate": 24_000, "channels": 1, "dtype": "float32"}
    assert device.calls == ["open", "start", "stop", "close"]
    np.testing.assert_array_equal(device.played[:, 0], audio)


def test_an_interrupted_player_falls_silent_at_once(sounddevice: SimpleNamespace) -> None:
    def interrupt() -> None:
        with PlayerSink(24_000):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert opened[0].calls == ["open", "start", "abort", "close"]


def test_a_device_that_fails_is_an_os_error(sounddevice: SimpleNamespace) -> None:
    def play() -> None:
        with PlayerSink(24_000) as sink:
            sink.write(np.array([np.nan], np.float32))

    with pytest.raises(OSError, match="cannot play: unplugged"):
        play()
    assert opened[0].calls[-1] == "close"

    def absent(**format_: Any) -> None:
        raise NoLoudspeaker("no default output device")

    sounddevice.OutputStream = absent
    with pytest.raises(OSError, match="cannot play: no default output device"):
        PlayerSink(24_000)


def test_the_plot_takes_any_length_and_any_word(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from dia2_client.plot import draw

    words = (Word("$5", 0.0), Word("and $6", 0.1))
    for name, samples in (("empty.png", 0), ("short.svg", 7), ("long.png", 100_003)):
        draw(Speech(np.zeros(samples, np.float32), words, 24_000, "stop"), tmp_path / name)
    assert (tmp_path / "long.png").read_bytes().startswith(b"\x89PNG")
    assert b"$5" in (tmp_path / "short.svg").read_bytes()
