#!/usr/bin/env python3
"""Synthesise the example voices in voices/ with espeak-ng: clips with exactly timed words.

    apt-get install espeak-ng                  # the committed clips were made with 1.51
    python scripts/make_example_voices.py      # rewrites voices/anna, voices/ben and voices/anna-and-ben

The voices are a formant synthesiser's, no person's, so nobody's consent is needed. espeak-ng is GPL-3 software;
its licence covers the program, and the Free Software Foundation's GPL FAQ says that it does not in general extend
to the program's output. That is what we rely on to publish the clips; we claim no rights in them ourselves.

espeak-ng reports where each word begins. A word's start is its first audible sample from there (a "t" begins
with a silent closure), its end the last one before the next word. The same espeak-ng gives the same bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

TimedWord = dict[str, str | float]

SAMPLE_RATE = 24000
LEAD_IN_S = 0.16  # silence before the first word
TAIL_S = 0.40  # silence after the last: its frames must outlast the last word's step
PEAK = 0.7
AUDIBLE = 0.01  # of full scale, after scaling to PEAK

LICENSE = "CC0-1.0"
SOURCE = (
    "Synthesised with espeak-ng {version} by scripts/make_example_voices.py (voice {voice}, pitch {pitch}, "
    "{rate} words a minute), word times from its word events; a synthetic voice, of no real person."
)


@dataclass(frozen=True)
class Speaker:
    """One synthetic speaker and the line that the clip says."""

    description: str
    voice: str  # espeak-ng voice and variant
    pitch: int  # 0 to 99
    rate: int  # words a minute
    text: str


SPEAKERS = {
    "anna": Speaker(
        "A high, bright American phone agent",
        "en-us+linda",
        pitch=55,
        rate=150,
        text="Hello, thank you for calling. My name is Anna, and I can help you today.",
    ),
    "ben": Speaker(
        "A low, calm British phone agent",
        "en-gb-x-rp+m3",
        pitch=35,
        rate=150,
        text="Good morning, this is Ben speaking. Please give me one moment to look.",
    ),
}


@dataclass(frozen=True)
class Clip:
    """Samples at 24 kHz in -1..1, and the words with start and end in seconds."""

    audio: npt.NDArray[np.float64]
    words: list[TimedWord]


class Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # of the word's first character, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms from the start of the audio
        ("sample", ctypes.c_int),  # for the library's own use
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


WORD_EVENT = 1
END_OF_EVENTS = 0
SYNCHRONOUS = 2
CHARS_UTF8 = 1
RATE, PITCH, WORD_GAP = 1, 3, 7  # espeak_PARAMETER
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


class Espeak:
    """The espeak-ng library, loaded and initialised."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self._rate = int(self._library.espeak_Initialize(SYNCHRONOUS, 0, None, 0))
        if self._rate <= 0:
            raise RuntimeError("espeak-ng could not start: is its data installed?")
        self._library.espeak_Info.restype = ctypes.c_char_p
        self.version = str(self._library.espeak_Info(None).decode()).split()[0]

    def say(self, speaker: Speaker) -> tuple[npt.NDArray[np.float64], list[tuple[int, float]]]:
        """Samples at 24 kHz in -1..1, and per word event its character offset and its start in seconds."""
        samples: list[npt.NDArray[np.int16]] = []
        starts: list[tuple[int, float]] = []

        def collect(wav: Any, count: int, events: Any) -> int:
            if wav and count:
                samples.append(np.ctypeslib.as_array(wav, (count,)).copy())
            index = 0
            while events[index].type != END_OF_EVENTS:
                if events[index].type == WORD_EVENT:
                    starts.append((events[index].text_position - 1, events[index].audio_position / 1000))
                index += 1
            return 0

        callback = Callback(collect)
        self._library.espeak_SetSynthCallback(callback)
        if self._library.espeak_SetVoiceByName(speaker.voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {speaker.voice}")
        for parameter, value in ((RATE, speaker.rate), (PITCH, speaker.pitch), (WORD_GAP, 1)):
            self._library.espeak_SetParameter(parameter, value, 0)
        text = speaker.text.encode()
        if self._library.espeak_Synth(text, len(text) + 1, 0, 0, 0, CHARS_UTF8, None, None) != 0:
            raise RuntimeError("espeak-ng failed")
        self._library.espeak_Synchronize()
        audio = np.concatenate(samples).astype(np.float64) / 32768
        return soxr.resample(audio, self._rate, SAMPLE_RATE, quality="VHQ"), starts


def timed_words(text: str, audio: npt.NDArray[np.float64], starts: list[tuple[int, float]]) -> list[TimedWord]:
    """Every word with its start and end in seconds; raises ValueError unless each has its own event."""
    by_offset = dict(starts)
    words = text.split()
    offsets = [0]
    for word in words[:-1]:
        offsets.append(text.index(" ", offsets[-1] + len(word)) + 1)
    missing = [word for word, offset in zip(words, offsets, strict=True) if offset not in by_offset]
    if missing:
        raise ValueError(f"espeak-ng ran these words into their neighbours: {missing}; change the text")
    limits_s = [by_offset[offset] for offset in offsets] + [len(audio) / SAMPLE_RATE]
    timed: list[TimedWord] = []
    for word, (begin_s, end_s) in zip(words, pairwise(limits_s), strict=True):
        first, last = round(begin_s * SAMPLE_RATE), round(end_s * SAMPLE_RATE)
        audible = first + np.flatnonzero(np.abs(audio[first:last]) > AUDIBLE)
        start, end = int(audible[0]) / SAMPLE_RATE, (int(audible[-1]) + 1) / SAMPLE_RATE
        timed.append({"text": word, "start": round(start, 3), "end": round(end, 3)})
    return timed


def make_clip(espeak: Espeak, speaker: Speaker) -> Clip:
    """Synthesise the speaker's line, at its final level and between its silences."""
    audio, starts = espeak.say(speaker)
    audio = audio * (PEAK / np.max(np.abs(audio)))
    audible = np.flatnonzero(np.abs(audio) > AUDIBLE)
    begin, end = int(audible[0]), int(audible[-1]) + 1
    lead_in, tail = (np.zeros(round(seconds * SAMPLE_RATE)) for seconds in (LEAD_IN_S, TAIL_S))
    clip = np.concatenate([lead_in, audio[begin:end], tail])
    shift_s = LEAD_IN_S - begin / SAMPLE_RATE
    starts = [(offset, max(0.0, start_s + shift_s)) for offset, start_s in starts]
    return Clip(clip, timed_words(speaker.text, clip, starts))


def write_voice(folder: Path, names: list[str], clips: dict[str, Clip], version: str) -> None:
    """Write the clips of these speakers and their voice.json."""
    folder.mkdir(parents=True, exist_ok=True)
    speakers = [SPEAKERS[name] for name in names]
    for name in names:
        soundfile.write(folder / f"{name}.wav", clips[name].audio, SAMPLE_RATE, subtype="PCM_16")
    voice: dict[str, Any] = {
        "description": "; ".join(speaker.description for speaker in speakers),
        "license": LICENSE,
        "source": " ".join(SOURCE.format(version=version, voice=s.voice, pitch=s.pitch, rate=s.rate) for s in speakers),
        "speakers": [{"clip": f"{name}.wav", "words": clips[name].words} for name in names],
    }
    if len(names) == 1:
        voice["second_speaker"] = "same"
    (folder / "voice.json").write_text(json.dumps(voice, indent=1) + "\n", encoding="utf-8")
    print(f"{folder}: {sum(len(clips[name].audio) for name in names) / SAMPLE_RATE:.2f} s")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Synthesise the example voices with espeak-ng.")
    default = Path(__file__).resolve().parent.parent / "voices"
    parser.add_argument("--out", type=Path, default=default, help="folder of voices (default: voices/)")
    out: Path = parser.parse_args(argv).out
    espeak = Espeak()
    clips = {name: make_clip(espeak, speaker) for name, speaker in SPEAKERS.items()}
    for names in (["anna"], ["ben"], ["anna", "ben"]):
        write_voice(out / "-and-".join(names), names, clips, espeak.version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
