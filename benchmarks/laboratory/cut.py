"""Voices whose clips are cut off in a sound, as a careless editor leaves them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from dia2_engine.audio.io import load_clip
from dia2_engine.voice.voice import list_voices, load_voice_folder

_WINDOW_S = 0.01


def cut_voices(voices: Path, out: Path) -> list[Path]:
    """Copy the voice folders of `voices` to `out`, each clip up to where its last word is loudest; its words stay.

    Raises ConfigError for a voice that cannot be read.
    """
    return [_cut(path, out / name) for name, path in list_voices(voices).items() if path.is_dir()]


def _cut(folder: Path, out: Path) -> Path:
    manifest = folder / "voice.json"
    load_voice_folder(folder, 24_000)  # complains of what is wrong with it
    voice = json.loads(manifest.read_text("utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    for speaker in voice["speakers"]:
        rate = soundfile.info(folder / speaker["clip"]).samplerate
        audio, last, window = load_clip(folder / speaker["clip"], rate), speaker["words"][-1], round(_WINDOW_S * rate)
        start = round(last["start"] * rate)
        power = np.convolve(audio[start : round(last["end"] * rate)] ** 2, np.ones(window), "valid")
        end = start + int(power.argmax()) + window
        soundfile.write(out / speaker["clip"], audio[:end], rate, subtype="PCM_16")
        last["end"] = end / rate
    (out / manifest.name).write_text(json.dumps(voice, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return out
