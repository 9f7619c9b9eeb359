"""Voices whose clips are cut off in a sound, as a careless editor leaves them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from dia2_engine.voice.voice import list_voices, load_voice_folder

_RATE = 24_000  # of what is written, whatever the clips have
_WINDOW = 240  # samples, 10 ms


def cut_voices(voices: Path, out: Path) -> list[Path]:
    """Copy the voice folders of `voices` to `out`, each clip up to where its last word is loudest; its words stay.

    Raises ConfigError for a voice that cannot be read.
    """
    return [_cut(path, out / name) for name, path in list_voices(voices).items() if path.is_dir()]


def _cut(folder: Path, out: Path) -> Path:
    source, voice = load_voice_folder(folder, _RATE), json.loads((folder / "voice.json").read_text("utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    for speaker, clip in zip(voice["speakers"], source.clips, strict=False):  # one clip may serve as both speakers
        last = clip.words[-1]
        start, end = round(last.start * _RATE), round(last.end * _RATE)
        power = np.convolve(clip.audio[start:end] ** 2, np.ones(_WINDOW), "valid")
        end = start + int(power.argmax()) + _WINDOW
        soundfile.write(out / speaker["clip"], clip.audio[:end], _RATE, subtype="PCM_16")
        speaker["words"][-1]["end"] = end / _RATE
    (out / "voice.json").write_text(json.dumps(voice, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return out
