"""Listen to the outputs of a run, in several processes."""

from __future__ import annotations

import multiprocessing
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch

from benchmarks.figures import first_audible
from dia2_engine.audio.io import load_clip
from dia2_engine.model.checkpoint import find_checkpoint
from dia2_engine.model.mimi import MimiDecoder
from training.recogniser import Listener, Recogniser

from .measures import Audio, segments
from .outputs import CLIP, Codes, Heard, Output, Run

AUDIBLE_DBFS = -40.0


@dataclass(frozen=True)
class Ears:
    """What a process needs to listen."""

    checkpoint: str  # whose codec decodes; empty: only sound files are heard
    mimi: str
    whisper: Path  # where the recogniser's file is put together
    audio: Path | None  # where sounds are written


class Codec:
    """The engine's streaming decoder, going on behind what stands in front of an output."""

    def __init__(self, checkpoint: str, mimi: str) -> None:
        files = find_checkpoint(checkpoint, mimi or None, weights=False)
        self._decoder = MimiDecoder.load(files.mimi, codebooks=files.config.codebooks)
        self.sample_rate, self.frame_samples = self._decoder.config.sample_rate, self._decoder.config.frame_samples

    @torch.inference_mode()
    def decode(self, codes: Codes, prefix: Codes | None) -> Audio:
        """Samples of an output's codes [C][n]."""
        state, slot = self._decoder.new_state(1), torch.zeros(1, dtype=torch.int64)
        if prefix is not None:
            self._decoder.decode(torch.tensor(prefix)[None], state, slot)
        audio: Audio = self._decoder.decode(torch.tensor(codes)[None], state, slot)[0].numpy()
        return audio


class Hearer:
    """One process's recogniser, speaker encoder and codec."""

    def __init__(self, ears: Ears) -> None:
        self._ears = ears
        self._codec = Codec(ears.checkpoint, ears.mimi) if ears.checkpoint else None
        self._recogniser, self._listener = Recogniser(ears.whisper), Listener()

    def hear(self, output: Output, prefix: Codes | None) -> Heard:
        rate, frame_samples = (self._codec.sample_rate, self._codec.frame_samples) if self._codec else (24_000, 1920)
        if output.codes is None:
            audio = load_clip(Path(output.wav), rate)
        else:
            assert self._codec is not None, "a run with codes needs their checkpoint"
            audio = self._codec.decode(output.codes, prefix)
        if self._ears.audio:
            path = self._ears.audio / output.protocol / f"{max(0, output.request):04d}-{output.voice}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, audio, rate, subtype="PCM_16")
        measured, audible = segments(audio, rate, frame_samples), first_audible(audio, rate, AUDIBLE_DBFS)
        return Heard(
            output.protocol,
            output.request,
            output.voice,
            self._recogniser.hear(audio, rate),
            [round(float(value), 5) for value in self._listener.voice(audio, rate)],
            measured.start,
            measured.rest,
            None if audible is None else round(1000 * audible / rate, 1),
            round(len(audio) / rate, 3),
        )


_hearer: Hearer  # of a process of the pool


def _enter(ears: Ears) -> None:
    global _hearer
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # the speaker encoder's packages
    _hearer = Hearer(ears)


def _hear(output: Output, prefix: Codes | None) -> Heard:
    return _hearer.hear(output, prefix)


def listen(run: Run, ears: Ears, workers: int) -> None:
    """Hear what has not been heard yet, clips first."""
    heard, prefixes = run.heard(), run.prefixes()
    missing = [output for key, output in run.outputs().items() if key not in heard]
    missing.sort(key=lambda output: output.protocol != CLIP)
    if not missing:
        return
    if not (ears.whisper / "model.bin").exists():
        Recogniser(ears.whisper)  # puts its file together, which the processes must not do at once
    began = time.monotonic()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _enter, (ears,)) as pool:
        jobs = [pool.submit(_hear, output, prefixes.get((output.protocol, output.voice))) for output in missing]
        for count, job in enumerate(as_completed(jobs), start=1):
            run.add_heard(job.result())
            left_s = (time.monotonic() - began) / count * (len(jobs) - count)
            print(f"\rheard {count} of {len(jobs)}, {left_s:.0f} s left   ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
