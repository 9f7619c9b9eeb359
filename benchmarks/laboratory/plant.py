"""Speech with faults in it, to see what the detectors see: synthesised requests, whole and with one thing wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from training.data.clips import CLIP_RATE, HELD_OUT_SPEAKERS, Speaker, Synthesiser

from .outputs import CLIP, Output, Run

Audio = NDArray[np.float32]

CLIPS = (
    "Welcome to the garden centre, this is Laura, and we are open until nine tonight.",
    "You have reached the front desk of the hotel, and I am happy to take your booking.",
    "Hi there, it is Oscar from the workshop, your bicycle has been repaired.",
    "This is the weather service with the latest forecast for the northern islands.",
)
FRAME = 1920  # samples
COOLDOWN_FRAMES, DELAY_FRAMES, STUTTER_FRAMES = 6, 18, 6


@dataclass(frozen=True)
class Said:
    """A sentence in a voice."""

    audio: Audio
    last_word: int  # its first sample


def _say(synthesiser: Synthesiser, text: str, speaker: Speaker) -> Said:
    samples, starts = synthesiser.say(text, speaker)
    return Said(samples.astype(np.float32) / 32768, starts[-1])


def plant(run: Run, data: Path, texts: Sequence[str]) -> None:
    """Requests by turns in the voices of HELD_OUT_SPEAKERS; the kinds of fault stand where protocols do."""
    names = [speaker.name for speaker in HELD_OUT_SPEAKERS]
    transcripts = {name: [text] for name, text in zip(names, CLIPS, strict=True)}
    run.begin({"planted": "synthesised speech", "requests": len(texts), "transcripts": transcripts})
    if run.outputs():
        return
    synthesiser, noise = Synthesiser(data, seed=1), np.random.default_rng(1)
    clips = [_say(synthesiser, text, speaker) for text, speaker in zip(CLIPS, HELD_OUT_SPEAKERS, strict=True)]
    made = [
        _written(run, Output(CLIP, -1, name, text), clip.audio)
        for name, text, clip in zip(names, CLIPS, clips, strict=True)
    ]
    for index, text in enumerate(texts):
        voice = index % len(names)
        try:
            said = _say(synthesiser, text, HELD_OUT_SPEAKERS[voice]).audio
            other = _say(synthesiser, text, HELD_OUT_SPEAKERS[(voice + 1) % len(names)]).audio
        except ValueError:  # its words cannot be told apart
            continue
        for kind, audio in faults(said, other, clips[voice], noise).items():
            made.append(_written(run, Output(kind, index, names[voice], text), audio))
    for output in made:  # at the end: one sentence's noise depends on those before it, so this stage begins anew
        run.add(output)


def faults(said: Audio, other: Audio, clip: Said, noise: np.random.Generator) -> dict[str, Audio]:
    """The request as it is, and with one fault each: in front of it, in its first half second, or all through it."""
    cooldown = np.zeros(COOLDOWN_FRAMES * FRAME, np.float32)
    loud = float(np.sqrt(np.mean(said**2)))
    frames = clip.audio[: len(clip.audio) // FRAME * FRAME].reshape(-1, FRAME)
    voiced = frames[int(np.argsort((frames**2).mean(axis=1))[len(frames) * 4 // 5])]
    puff = (noise.standard_normal(FRAME) * np.exp(-np.arange(FRAME) / 400) * 2 * loud).astype(np.float32)
    return {
        "as it is": said,
        "clip's tail": np.concatenate([np.concatenate([clip.audio, cooldown])[-DELAY_FRAMES * FRAME :], said]),
        "clip's last word": np.concatenate([clip.audio[clip.last_word :], said]),
        "stutter": np.concatenate([np.tile(voiced, STUTTER_FRAMES), said]),
        "puffs of noise": np.concatenate([np.tile(puff, STUTTER_FRAMES), said]),
        "8 dB louder": np.concatenate([said[: FRAME * STUTTER_FRAMES] * 10**0.4, said[FRAME * STUTTER_FRAMES :]]),
        "other voice": other,
        "1 s late": np.concatenate([np.zeros(CLIP_RATE, np.float32), said]),
    }


def _written(run: Run, output: Output, audio: Audio) -> Output:
    path = run.folder / "planted" / f"{output.protocol}-{output.request:04d}-{output.voice}.wav"
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, audio, CLIP_RATE, subtype="PCM_16")
    return replace(output, wav=str(path.resolve()))
