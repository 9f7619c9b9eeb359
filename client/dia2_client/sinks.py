"""Where audio goes: a WAV file, raw PCM, the loudspeaker. Each is a context manager with `write(audio)`."""

from __future__ import annotations

import sys
import wave
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from .types import pcm16

RAW_SUFFIXES = (".raw", ".pcm")


class Sink(Protocol):
    """Takes the audio of one stream, chunk by chunk: float32 [samples], mono, -1..1."""

    def write(self, audio: NDArray[np.float32]) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class WavSink:
    """A 16-bit WAV that is complete after every write: header and data reach the file together."""

    def __init__(self, path: Path, sample_rate: int) -> None:
        """Creates or empties the file; raises OSError."""
        self._file = path.open("wb")
        self._wave: wave.Wave_write = wave.open(self._file, "wb")  # noqa: SIM115  (closed by __exit__)
        self._wave.setnchannels(1)
        self._wave.setsampwidth(2)
        self._wave.setframerate(sample_rate)
        self._wave.writeframes(b"")
        self._file.flush()

    def write(self, audio: NDArray[np.float32]) -> None:
        self._wave.writeframes(pcm16(audio))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wave.close()
        self._file.close()


class RawSink:
    """Little-endian 16-bit PCM without a header, to a file or (`-`) to standard output."""

    def __init__(self, path: str) -> None:
        """Creates or empties the file; raises OSError."""
        self._standard = path == "-"
        self._file: BinaryIO = sys.stdout.buffer if self._standard else open(path, "wb")  # noqa: SIM115

    def write(self, audio: NDArray[np.float32]) -> None:
        self._file.write(pcm16(audio))
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._standard:
            self._file.close()


class PlayerSink:
    """The default loudspeaker. A write waits while the device's buffer is full; leaving waits for the end."""

    def __init__(self, sample_rate: int) -> None:
        """Opens the device; raises OSError. Needs `sounddevice`."""
        import sounddevice

        self._broken: type[Exception] = sounddevice.PortAudioError
        try:
            self._device: Any = sounddevice.OutputStream(samplerate=sample_rate, channels=1, dtype="float32")
            self._device.start()
        except self._broken as error:
            raise OSError(f"cannot play: {error}") from None

    def write(self, audio: NDArray[np.float32]) -> None:
        try:
            self._device.write(audio.reshape(-1, 1))
        except self._broken as error:
            raise OSError(f"cannot play: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._device.stop()  # plays what is buffered
        else:
            self._device.abort()
        self._device.close()
