"""The names of formats: `pcm_24000`, `ulaw_8000`, `wav`, `mp3_44100_128`, `opus_48000_64`, ..."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..errors import BadRequest
from ..fields import shown

Codec = Literal["pcm", "ulaw", "alaw", "wav", "flac", "mp3", "opus", "aac"]

PCM_RATES = (24000, 8000, 16000, 22050, 32000, 44100, 48000)


@dataclass(frozen=True)
class _Offer:
    """What a codec can be asked for; the first rate and the first bitrate are its defaults."""

    content_type: str
    rates: tuple[int, ...]
    kbps: tuple[int, ...] = ()  # none: the rate decides


OFFERS: dict[Codec, _Offer] = {
    "pcm": _Offer("audio/pcm", PCM_RATES),
    "wav": _Offer("audio/wav", PCM_RATES),
    "flac": _Offer("audio/flac", PCM_RATES),
    "ulaw": _Offer("audio/basic", (8000,)),
    "alaw": _Offer("audio/x-alaw-basic", (8000,)),
    "mp3": _Offer("audio/mpeg", (24000, 22050, 44100), (128, 32, 48, 64, 96, 192)),
    "opus": _Offer("audio/ogg", (48000,), (64, 32, 96, 128, 192)),
    # At 24 kHz the first 80 ms of audio would give nothing to send: a frame has 1024 samples, and waits for the next.
    "aac": _Offer("audio/aac", (48000, 44100), (96, 64, 128, 192)),
}
MPEG2_MAX_KBPS = 160  # of MP3 below 32 kHz


@dataclass(frozen=True)
class AudioFormat:
    """A codec with its rate; equal formats give equal bytes for equal samples."""

    codec: Codec
    sample_rate: int  # of the decoded audio, Hz
    bitrate: int | None = None  # bit/s; None where the sample rate decides

    @property
    def content_type(self) -> str:
        return OFFERS[self.codec].content_type

    @property
    def name(self) -> str:
        """The full name, which `parse` reads."""
        parts = [self.codec, str(self.sample_rate)]
        if self.bitrate is not None:
            parts.append(str(self.bitrate // 1000))
        return "_".join(parts)

    @classmethod
    def parse(cls, name: str, field: str) -> AudioFormat:
        """The format `CODEC[_RATE[_KBPS]]`; raises BadRequest for `field`, with what is allowed."""
        if name not in BY_NAME:
            raise BadRequest(f"{field} is {shown(name)}; allowed: {allowed()}", field=field)
        return BY_NAME[name]


def _named() -> Iterator[tuple[str, AudioFormat]]:
    """Every format with each of its names: what is a default can be left out from the end."""
    for codec, offer in OFFERS.items():
        for rate in offer.rates:
            for kbps in offer.kbps or (None,):
                if codec == "mp3" and rate < 32000 and kbps and kbps > MPEG2_MAX_KBPS:
                    continue
                format = AudioFormat(codec, rate, kbps and kbps * 1000)
                yield format.name, format
                if kbps and kbps == offer.kbps[0]:
                    yield f"{codec}_{rate}", format
                if format == AudioFormat(codec, offer.rates[0], offer.kbps[0] * 1000 if offer.kbps else None):
                    yield codec, format


BY_NAME = dict(_named())


def allowed() -> str:
    """All names in short, for messages and the documentation."""
    patterns = []
    for codec, offer in OFFERS.items():
        pattern = f"{codec}[_{'|'.join(map(str, sorted(offer.rates)))}"
        pattern += f"[_{'|'.join(map(str, sorted(offer.kbps)))}]]" if offer.kbps else "]"
        patterns.append(pattern)
    return ", ".join(patterns) + f" (mp3 below 32 kHz: at most {MPEG2_MAX_KBPS})"
