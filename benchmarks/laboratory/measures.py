"""What is measured of one output: pure functions of its samples, and of the words that were heard in it.

A *burst* is told by three features of half a second of audio: its level, how sharply its spectrum rises again and
again, and how exactly it repeats itself after one frame of the codec, as audio does that is made of one id over and
over. Natural speech begins abruptly too, so a feature is compared with its own distribution over the rest of the
output and over the voices' clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]
Floats = NDArray[np.float64]

FEATURES = ("level", "flux", "repetition")
SEGMENT_S = 0.5
SEGMENT_HOP_S = 0.1
WINDOW_S, HOP_S = 0.02, 0.01
_BANDS, _LOWEST_HZ, _HIGHEST_HZ = 24, 100.0, 11_000.0
_FLOOR_DB = -40.0  # of a band, below where it is loud: rises from further down are not heard
_INAUDIBLE_DB = -30.0  # of a segment, below the loud parts of the output: even silence repeats itself
_LEAST = (-math.inf, -math.inf, math.atanh(0.5))  # FEATURES: repetition is so near 0 in speech that 0.1 is far out
_PERFECT = 0.9999  # correlation
_ONSETS = 5  # in a segment: the steepest rises, of which the mean is taken; natural speech has one or two as steep
_FENCE = 3.0  # Tukey's outer fence, in interquartile ranges above the upper quartile: "far out"


def repeated(heard: Sequence[str], prefix: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The words of the voice's prefix that are heard although the request does not have them; empty if there are none.

    heard, prefix, wanted: normalised words. It takes three of the prefix's words in a row anywhere; two that begin with
    the first or second word heard; or the prefix's very last word as the first or second heard. The first word heard
    may be what is left of one that was cut, and a prefix that is heard at all is heard up to its end.
    """
    for start in range(len(heard)):
        length = _run(heard[start:], prefix)
        run = list(heard[start : start + length])
        if length >= (2 if start < 2 else 3) and not _contains(wanted, run):
            return run
    return [word for word in heard[:2] if word in prefix[-1:] and word not in wanted]


def _run(heard: Sequence[str], prefix: Sequence[str]) -> int:
    """How many of the first words heard stand in the prefix in the same order, without a gap."""
    length = 0
    while length < len(heard) and _contains(prefix, heard[: length + 1]):
        length += 1
    return length


def _contains(words: Sequence[str], run: Sequence[str]) -> bool:
    return any(list(words[at : at + len(run)]) == list(run) for at in range(len(words) - len(run) + 1))


@dataclass(frozen=True)
class Segments:
    """FEATURES of half-second segments of one output."""

    start: list[float]  # [3]: of the first segment
    rest: list[list[float]]  # [n, 3]: of those behind it, every SEGMENT_HOP_S


def segments(audio: Audio, rate: int, frame_samples: int) -> Segments:
    """Measure the segments of an output, of which the first is what is to be judged. audio: [samples]

    - level: of the loudest window, in dB above what the loud windows of the rest have
    - flux: how much a band's level rises in a hop, in dB, mean of the bands; of this the mean of the steepest hops
    - repetition: the correlation r with the audio one frame of the codec before, as Fisher's z = artanh r, which has no
      bound and about the same spread everywhere; 0 where the segment is hardly heard
    """
    size, hop = round(SEGMENT_S * rate), round(SEGMENT_HOP_S * rate)
    padded = np.pad(audio, (0, max(0, size + round(WINDOW_S * rate) - len(audio)))).astype(np.float64)
    levels, bands = _spectrum(padded, rate)
    per_segment, step = round(SEGMENT_S / HOP_S), round(SEGMENT_HOP_S / HOP_S)
    rest = slice(per_segment, None) if len(levels) >= 2 * per_segment else slice(None)
    loud = float(np.quantile(levels[rest], 0.9))
    audible = np.maximum(bands, np.quantile(bands[rest], 0.9, axis=0) + _FLOOR_DB)
    flux = np.maximum(np.diff(audible, axis=0), 0).mean(axis=1)

    def measure(index: int) -> list[float]:
        part = padded[index * hop : index * hop + size]
        level = levels[index * step : index * step + per_segment]
        rises = np.sort(flux[index * step : index * step + per_segment - 1])
        heard = 10 * math.log10(np.mean(10 ** (level / 10))) > loud + _INAUDIBLE_DB
        repetition = _correlation(part[frame_samples:], part[:-frame_samples]) if heard else 0.0
        return [round(value, 3) for value in (float(level.max()) - loud, float(rises[-_ONSETS:].mean()), repetition)]

    count = (len(levels) - per_segment) // step + 1
    behind = range(round(SEGMENT_S / SEGMENT_HOP_S), count)
    return Segments(measure(0), [measure(index) for index in behind])


def _spectrum(audio: Floats, rate: int) -> tuple[Floats, Floats]:
    """Levels [windows] and levels of bands [windows, bands], in dB."""
    size, hop = round(WINDOW_S * rate), round(HOP_S * rate)
    windows = np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]
    power = np.abs(np.fft.rfft(windows * np.hanning(size))) ** 2
    edges = np.unique(np.round(np.geomspace(_LOWEST_HZ, _HIGHEST_HZ, _BANDS + 1) * size / rate).astype(int))
    bands = np.add.reduceat(power, edges, axis=1)[:, :-1]
    return 10 * np.log10(power.sum(axis=1) + 1e-9), 10 * np.log10(bands + 1e-9)


def _correlation(one: Floats, other: Floats) -> float:
    correlation = float(one @ other / math.sqrt((one @ one) * (other @ other) + 1e-12))
    return math.atanh(max(-_PERFECT, min(_PERFECT, correlation)))


def burst(measured: Segments, clips: Sequence[Segments]) -> list[str]:
    """The FEATURES by which an output begins with a burst; empty if it does not.

    By a feature it does if that lies beyond the outer fence of its distribution over all segments of the `clips` and
    those of the output behind its first half second, and beyond the median of the latter: what is odd from beginning
    to end is no burst. (Not beyond all of them, since a burst may last.) A repetition must also be one of half the
    amplitude.
    """
    own = np.array(measured.rest).reshape(-1, len(FEATURES))
    natural = [np.array([clip.start, *clip.rest]) for clip in clips]
    lower, upper = np.quantile(np.concatenate([own, *natural]), (0.25, 0.75), axis=0)
    limits = np.maximum(upper + _FENCE * (upper - lower), _LEAST)
    if len(own):
        limits = np.maximum(limits, np.median(own, axis=0))
    return [name for name, value, limit in zip(FEATURES, measured.start, limits, strict=True) if value > limit]


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson's score), which is right for rates of zero too."""
    if not count:
        return 0.0, 1.0
    z = 1.959964
    rate, spread = hits / count, z * z / count
    centre, half = rate + spread / 2, z * math.sqrt((rate * (1 - rate) + spread / 4) / count)
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


def median(values: Sequence[float]) -> tuple[float, float, float]:
    """The median and its 95 % interval when outputs are drawn anew (bootstrap)."""
    drawn = np.random.default_rng(0).choice(np.asarray(values), size=(2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(np.median(values)), float(low), float(high)
