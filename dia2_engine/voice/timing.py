"""Timed words of a clip: from JSON in the forms that recognisers write, or from a recogniser itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .plan import TimedWord
from .voice import parse_words


def read_words(path: Path) -> tuple[TimedWord, ...]:
    """Timed words from a file: a list of {text, start, end}, or Whisper's JSON (words, or segments with words).

    Raises ConfigError naming the file and the word that is wrong.
    """
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    return parse_words(str(path), _listed(path, raw))


def _listed(path: Path, raw: Any) -> Any:
    if not isinstance(raw, dict):
        return raw
    if isinstance(raw.get("words"), list):
        words = raw["words"]
    elif isinstance(raw.get("segments"), list):
        segments = raw["segments"]
        bare = [i for i, s in enumerate(segments) if not isinstance(s, dict) or not isinstance(s.get("words"), list)]
        if bare:
            raise ConfigError(f"{path}: segments[{bare[0]}] has no 'words'; ask Whisper for word timestamps")
        words = [word for segment in segments for word in segment["words"]]
    else:
        raise ConfigError(f"{path}: holds neither a list of words, nor 'words', nor 'segments'")
    return [_renamed(word) for word in words]


def _renamed(word: Any) -> Any:
    """Whisper says `word` where a voice says `text`."""
    if isinstance(word, dict) and "word" in word and "text" not in word:
        return {**word, "text": word["word"]}
    return word


def transcribe(path: Path, model: str) -> tuple[TimedWord, ...]:
    """Timed words as faster-whisper hears them; `model` is a size it knows ("small.en") or a folder.

    Raises ConfigError if the package is missing, the model cannot be loaded, or no word is heard.
    """
    try:
        from faster_whisper import WhisperModel
    except ImportError:
        raise ConfigError(f"--whisper needs faster-whisper: {sys.executable} -m pip install faster-whisper") from None
    try:
        recogniser = WhisperModel(model)
        segments, _ = recogniser.transcribe(str(path), language="en", word_timestamps=True)
        heard = [word for segment in segments for word in segment.words or ()]  # recognition runs here
    except Exception as error:
        raise ConfigError(f"Whisper {model!r} cannot transcribe {path}: {type(error).__name__}: {error}") from None
    if not heard:
        raise ConfigError(f"{path}: Whisper {model!r} hears no words in it")
    raw = [{"text": word.word, "start": float(word.start), "end": float(word.end)} for word in heard]
    return parse_words(f"{path} as heard by Whisper", raw)
