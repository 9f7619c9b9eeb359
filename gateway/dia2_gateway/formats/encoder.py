"""Encodes a stream while it comes.

    float32 samples ─▶ Resampler ─▶ codec ─▶ framing ─▶ bytes

Everything here keeps its state from chunk to chunk: however a stream is cut, its bytes are the same, and nothing is
padded before its end. Each part hands on at once what is complete.
"""

from __future__ import annotations

from typing import Protocol

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.audio.resampler import AudioResampler
from dia2_client import pcm16
from numpy.typing import NDArray

from .audio_format import AudioFormat
from .framing import OPUS_RATE, OggOpus, adts_frame, flac_header, wav_header

Samples = NDArray[np.float32]  # [n], mono, -1..1

# Of FFmpeg's resampler: flat up to 0.9 of the lower band's edge, more than 90 dB down at 1.1. The delay is half the
# filter: 4 ms to or from 8 kHz, less for higher rates. (soxr is steeper, but its streams hold back up to 70 ms.)
RESAMPLER = {"filter_size": "64", "cutoff": "0.97"}
BLOCK_MS = 20  # of FLAC and Opus: a divisor of the engine's 80 ms, so that a chunk leaves nothing behind


class Encoder:
    """One per stream. Not for use by two threads at once."""

    def __init__(self, format: AudioFormat, source_rate: int = 24000) -> None:
        self.format = format
        self._codec, rate = _codec(format, source_rate)
        self._resampler = Resampler(source_rate, rate) if rate != source_rate else None
        self._header: bytes = self._codec.header

    def encode(self, samples: Samples) -> bytes:
        """What is complete with these samples; maybe nothing, since codecs have delay. First of all the header."""
        if self._resampler is not None:
            samples = self._resampler.feed(samples)
        return self._take_header() + self._codec.encode(samples)

    def finish(self) -> bytes:
        """The rest of the stream. Call it once, and nothing after it."""
        rest = self._take_header()
        if self._resampler is not None:
            rest += self._codec.encode(self._resampler.finish())
        return rest + self._codec.finish()

    def _take_header(self) -> bytes:
        header, self._header = self._header, b""
        return header


class Resampler:
    """From one rate to another: n samples give n * to_rate / from_rate, rounded to a whole sample (up or down)."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self._from_rate = from_rate
        self._resampler = AudioResampler(format="flt", layout="mono", rate=to_rate, options=RESAMPLER)

    def feed(self, samples: Samples) -> Samples:
        if not len(samples):
            return samples
        return _joined(self._resampler.resample(_frame(samples, "flt", self._from_rate)))

    def finish(self) -> Samples:
        return _joined(self._resampler.resample(None))


class Codec(Protocol):
    """Samples at the codec's rate to bytes."""

    header: bytes

    def encode(self, samples: Samples) -> bytes: ...

    def finish(self) -> bytes: ...


class Pcm:
    """16-bit little-endian, rounded as the engine does."""

    def __init__(self, header: bytes = b"") -> None:
        self.header = header

    def encode(self, samples: Samples) -> bytes:
        return pcm16(samples)

    def finish(self) -> bytes:
        return b""


class Packets:
    """An encoder of FFmpeg, whose packets need nothing around them: mu-law, A-law, FLAC, MP3."""

    def __init__(self, context: AudioCodecContext, header: bytes = b"") -> None:
        self.header = header
        self._context = context

    def encode(self, samples: Samples) -> bytes:
        return b"".join(map(self._framed, self._packets(samples)))

    def finish(self) -> bytes:
        return b"".join(map(self._framed, _flushed(self._context)))

    def _packets(self, samples: Samples) -> list[bytes]:
        """The context cuts samples into blocks of its size by itself, and keeps the rest."""
        if not len(samples):
            return []
        frame = _frame(samples, self._context.format.name, self._context.sample_rate)
        return [bytes(packet) for packet in self._context.encode(frame)]

    def _framed(self, packet: bytes) -> bytes:
        return packet


class Adts(Packets):
    """AAC."""

    def _framed(self, packet: bytes) -> bytes:
        return adts_frame(packet, self._context.sample_rate)


class Opus(Packets):
    """Opus in Ogg: the pre-skip at the beginning and the position of the last page make the length exact."""

    def __init__(self, context: AudioCodecContext) -> None:
        self._ogg = OggOpus(context.extradata or b"")
        super().__init__(context, self._ogg.header())
        self._scale = OPUS_RATE // context.sample_rate
        self._fed_samples = 0
        self._position_samples = 0

    def encode(self, samples: Samples) -> bytes:
        self._fed_samples += len(samples)
        return super().encode(samples)

    def finish(self) -> bytes:
        end_samples = self._ogg.pre_skip_samples + self._fed_samples * self._scale
        if not self._fed_samples:  # players refuse a file without a packet, so this one has one, cut off whole
            self._packets(np.zeros(1, np.float32))
        *packets, last = _flushed(self._context) or [b""]
        pages = [self._framed(packet) for packet in packets]
        return b"".join(pages) + self._ogg.packet(last, end_samples, last=True)

    def _framed(self, packet: bytes) -> bytes:
        self._position_samples += OPUS_RATE * BLOCK_MS // 1000
        return self._ogg.packet(packet, self._position_samples)


def _codec(format: AudioFormat, source_rate: int) -> tuple[Codec, int]:
    """The codec of a format and the sample rate, in Hz, that goes into it."""
    rate = format.sample_rate
    block = {"frame_size": str(rate * BLOCK_MS // 1000)}
    match format.codec:
        case "pcm":
            return Pcm(), rate
        case "wav":
            return Pcm(wav_header(rate)), rate
        case "ulaw":
            return Packets(_context("pcm_mulaw", "s16", rate)), rate
        case "alaw":
            return Packets(_context("pcm_alaw", "s16", rate)), rate
        case "flac":
            context = _context("flac", "s16", rate, options=block)
            return Packets(context, flac_header(context.extradata or b"")), rate
        case "mp3":
            # Without the bit reservoir a frame never waits for the next. Above 7, LAME's quality costs more time and
            # gains nothing that a measurement shows at these rates.
            options = {"reservoir": "0", "compression_level": "7"}
            return Packets(_context("libmp3lame", "fltp", rate, format.bitrate, options)), rate
        case "opus":
            # An Opus decoder gives 48 kHz whatever goes in; the engine's 24 kHz go in as they are.
            rate = source_rate if source_rate in (8000, 12000, 16000, 24000) else OPUS_RATE
            options = {"application": "audio", "frame_duration": str(BLOCK_MS)}
            return Opus(_context("libopus", "flt", rate, format.bitrate, options)), rate
        case "aac":
            return Adts(_context("aac", "fltp", rate, format.bitrate, {"aac_coder": "fast"})), rate


def _context(
    name: str, sample_format: str, rate: int, bitrate: int | None = None, options: dict[str, str] | None = None
) -> AudioCodecContext:
    context = av.CodecContext.create(name, "w")
    assert isinstance(context, AudioCodecContext)
    context.sample_rate = rate
    context.layout = "mono"
    context.format = sample_format
    if bitrate is not None:
        context.bit_rate = bitrate
    context.options = options or {}
    context.open()
    return context


def _flushed(context: AudioCodecContext) -> list[bytes]:
    """The last packets. (FLAC's is empty: it only carries the length, which a stream cannot go back to write.)"""
    return [bytes(packet) for packet in context.encode(None) if packet.size]


def _frame(samples: Samples, sample_format: str, rate: int) -> av.AudioFrame:
    values = np.frombuffer(pcm16(samples), np.int16) if sample_format == "s16" else samples
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(values[np.newaxis]), format=sample_format, layout="mono")
    frame.sample_rate = rate
    return frame


def _joined(frames: list[av.AudioFrame]) -> Samples:
    return np.concatenate([np.zeros(0, np.float32), *(frame.to_ndarray()[0] for frame in frames)])
