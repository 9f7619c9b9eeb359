"""Voices on disk: a folder with clips and timed words, or one prepared `.safetensors`.

A prepared voice holds the prefix's audio tokens and its words; tokens are data, so a server starts from one without
a recogniser or an encoder. The alignment is made again at load, because it depends on the checkpoint's tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..audio.io import load_clip
from ..errors import ConfigError
from .plan import TimedWord

FORMAT = "dia2-voice-1"
NO_VOICE = "none"  # reserved: the model's own voice, which differs from request to request
CODEC = "codec_sha256"  # provenance key: which codec made the tokens
EncodeAudio = Callable[[NDArray[np.float32]], NDArray[np.int64]]  # samples [n] -> tokens [C, ceil(n / frame_samples)]


@dataclass(frozen=True)
class Clip:
    """One speaker's recording and what is said in it."""

    audio: NDArray[np.float32]  # [samples], mono at the codec's rate
    words: tuple[TimedWord, ...]
    source: str  # file name, for messages
    sha256: str


@dataclass(frozen=True)
class VoiceSource:
    """A voice as recorded: one or two clips."""

    name: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class PreparedVoice:
    """A voice as the model reads it."""

    name: str
    tokens: NDArray[np.int64]  # aligned [C, P], every id below the codec's vocabulary
    words: tuple[tuple[TimedWord, ...], ...]  # per clip
    clip_frames: tuple[int, ...]  # per clip, with the silence after it
    provenance: dict[str, str]  # hashes of what it was made from

    def save(self, path: Path) -> None:
        """Write `path` (`.safetensors`)."""
        words = [[{"text": w.text, "start": w.start, "end": w.end} for w in clip] for clip in self.words]
        metadata = {
            "format": FORMAT,
            "words": json.dumps(words),
            "clip_frames": json.dumps(self.clip_frames),
            **{f"provenance.{key}": value for key, value in self.provenance.items()},
        }
        # Not `save_file`: it makes files that only their owner can read, and the server may be somebody else.
        path.write_bytes(save({"tokens": np.ascontiguousarray(self.tokens, np.int32)}, metadata=metadata))


def load_voice_folder(folder: Path, sample_rate: int) -> VoiceSource:
    """Read `folder/voice.json` and its clips.

    Raises ConfigError naming the file, the field and what is wrong.
    """
    manifest = folder / "voice.json"
    try:
        raw = json.loads(manifest.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{manifest}: cannot be read as JSON: {error}") from None
    speakers = raw.get("speakers") if isinstance(raw, dict) else None
    if not isinstance(speakers, list) or len(speakers) not in (1, 2):
        raise ConfigError(f"{manifest}: 'speakers' must list one or two clips")
    clips = [_folder_clip(manifest, index, speaker, sample_rate) for index, speaker in enumerate(speakers)]
    second = raw.get("second_speaker", "same")
    if second not in ("same", "none"):
        raise ConfigError(f"{manifest}: 'second_speaker' is {second!r}; allowed: same, none")
    return voice_source(folder.name, clips, solo=second == "none")


def voice_source(name: str, clips: Sequence[Clip], *, solo: bool) -> VoiceSource:
    """A voice of one or two clips. One clip is speaker 2 as well, unless the voice is `solo`.

    One-speaker prefixes are reported to give speaker 2 a random voice.
    """
    both = (clips[0], clips[0]) if len(clips) == 1 and not solo else tuple(clips)
    return VoiceSource(name, both)


def _folder_clip(manifest: Path, index: int, speaker: Any, sample_rate: int) -> Clip:
    where = f"{manifest}: speakers[{index}]"
    if not isinstance(speaker, dict) or not isinstance(speaker.get("clip"), str):
        raise ConfigError(f"{where} needs 'clip', the name of a WAV or FLAC file")
    name = speaker["clip"]
    if "\0" in name or (manifest.parent / name).resolve().parent != manifest.parent.resolve():
        raise ConfigError(f"{where}: clip {name!r} must lie in the voice's own folder")
    return read_clip(manifest.parent / name, parse_words(where, speaker.get("words")), sample_rate)


def read_clip(path: Path, words: tuple[TimedWord, ...], sample_rate: int) -> Clip:
    """Read a recording of `words`. Raises ConfigError naming the file if it cannot be read."""
    audio = load_clip(path, sample_rate)
    return Clip(audio, words, path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def parse_words(where: str, raw: Any) -> tuple[TimedWord, ...]:
    """Timed words from JSON: a list of {"text", "start", "end"}, in order, in seconds."""
    if not isinstance(raw, list) or not raw:
        raise ConfigError(f"{where} needs 'words', a list of {{text, start, end}}")
    words: list[TimedWord] = []
    for position, item in enumerate(raw):
        if not _is_timed_word(item):
            raise ConfigError(f"{where}: words[{position}] is {item!r}; it needs text, start, end")
        word = TimedWord(item["text"].strip(), float(item["start"]), float(item["end"]))
        if not word.text or any(part in ("[S1]", "[S2]") for part in word.text.split()):
            raise ConfigError(f"{where}: words[{position}] has the text {word.text!r}; it must be a spoken word")
        if not 0 <= word.start <= word.end < float("inf"):
            raise ConfigError(f"{where}: words[{position}] runs from {word.start} to {word.end} s")
        if words and word.start < words[-1].start:
            raise ConfigError(f"{where}: words[{position}] starts at {word.start} s, before the word in front of it")
        words.append(word)
    return tuple(words)


def _is_timed_word(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("text"), str):
        return False
    times: list[Any] = [item.get("start"), item.get("end")]
    return all(type(time) in (int, float) and abs(time) < 1e9 for time in times)


def codec_sha256(mimi: Path) -> str:
    """Hash of a codec's weights: a prefix's tokens mean something to the codec that made them only.

    Raises ConfigError naming the file if it cannot be read.
    """
    path = mimi / "model.safetensors"
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def load_prepared(path: Path, codebooks: int, codec_vocab: int, *, codec: str = "") -> PreparedVoice:
    """Read a prepared voice and check that it fits the checkpoint. Raises ConfigError saying what does not.

    `codec` is the `codec_sha256` of the codec that will decode it; empty: not compared.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tokens = file.get_tensor("tokens")
        if metadata.get("format") != FORMAT:
            raise ConfigError(f"{path}: format is {metadata.get('format')!r}, not {FORMAT!r}")
        words = tuple(
            parse_words(f"{path}: clip {index}", clip) for index, clip in enumerate(json.loads(metadata["words"]))
        )
        clip_frames = tuple(int(n) for n in json.loads(metadata["clip_frames"]))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a prepared voice: {error}") from None
    provenance = {k.removeprefix("provenance."): v for k, v in metadata.items() if k.startswith("provenance.")}
    made_with = provenance.get(CODEC, "")
    if codec and made_with and made_with != codec:
        raise ConfigError(
            f"{path}: was prepared with another codec (sha256 {made_with[:12]}, the checkpoint's is {codec[:12]}) and "
            "would decode to noise; prepare it again with this checkpoint"
        )
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ConfigError(f"{path}: tokens are {tokens.dtype}, not integers")
    if tokens.ndim != 2 or tokens.shape[0] < codebooks or tokens.shape[1] < 1:
        raise ConfigError(f"{path}: tokens are {list(tokens.shape)}; the checkpoint needs [{codebooks}, frames]")
    tokens = tokens[:codebooks].astype(np.int64)
    if tokens.min() < 0 or tokens.max() >= codec_vocab:
        raise ConfigError(f"{path}: token ids run {tokens.min()}..{tokens.max()}; allowed: 0..{codec_vocab - 1}")
    fits = len(words) in (1, 2) and len(clip_frames) == len(words) and min(clip_frames) > 0
    if not fits or sum(clip_frames) != tokens.shape[1]:
        raise ConfigError(f"{path}: {len(words)} clips of {clip_frames} frames do not make {tokens.shape[1]} frames")
    return PreparedVoice(path.stem, tokens, words, clip_frames, provenance)


def list_voices(folder: Path) -> dict[str, Path]:
    """Voices in a folder, by name. A prepared file wins over a folder of the same name; hidden ones do not count."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() and (path / "voice.json").is_file():
            found.setdefault(path.name, path)
        elif path.suffix == ".safetensors":
            found[path.stem] = path
    return found


def faded(audio: NDArray[np.float32], fade_samples: int) -> NDArray[np.float32]:
    """`audio` with a raised-cosine fade to silence over its last samples, so that silence joins without a click."""
    count = min(fade_samples, len(audio))
    if count == 0:
        return audio
    ramp = 0.5 * (1 + np.cos(np.pi * np.arange(1, count + 1) / count))
    return np.concatenate([audio[: len(audio) - count], audio[len(audio) - count :] * ramp.astype(np.float32)])


def padded(parts: Sequence[NDArray[np.float32]], frames: Sequence[int], frame_samples: int) -> NDArray[np.float32]:
    """Clips one after another, each followed by silence up to its number of frames."""
    whole = [np.pad(part, (0, count * frame_samples - len(part))) for part, count in zip(parts, frames, strict=True)]
    return np.concatenate(whole)
