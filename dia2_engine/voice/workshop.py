"""Where voices meet a checkpoint: preparing, loading and laying them out, without the language model or a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..config import EngineConfig
from ..context import TAIL_FRAMES
from ..errors import ConfigError, InvalidArgument
from ..model.checkpoint import CheckpointFiles
from ..model.encoder import MimiEncoder
from ..model.mimi import load_mimi_config
from ..model.tokenizer import load_tokenizer
from ..prefix import Heard, Prefix, build_prefix
from ..text.state_machine import INITIAL_PADDING_STEPS, TextMachine
from ..types import UserSpeech
from .plan import PrefixPlan, check_plan, plan_prefix, strip_control
from .prepare import Preparation, align_voice, prepare_voice
from .voice import (
    NO_VOICE,
    PreparedVoice,
    VoiceSource,
    codec_sha256,
    faded,
    load_prepared,
    load_voice_folder,
    padded,
    parse_words,
)


@dataclass(frozen=True)
class Layout:
    """A voice on the model's columns."""

    plan: PrefixPlan
    prefix: Prefix
    left_s: float  # speech that fits behind it


class Workshop:
    """A checkpoint's tokenizer, shapes and codec: all that voices need of it. Raises ConfigError."""

    def __init__(self, files: CheckpointFiles, settings: EngineConfig) -> None:
        self.files, self.model = files, files.config
        self.encode, tokens = load_tokenizer(files)
        codec = load_mimi_config(files.mimi / "config.json")
        self.sample_rate, self.frame_rate = codec.sample_rate, codec.frame_rate
        self.seamless = settings.boundary == "seamless"
        self.machine = TextMachine(
            tokens,
            lookahead_words=self.model.lookahead_words,
            max_padding=self.model.max_padding_steps,
            initial_padding=INITIAL_PADDING_STEPS,
        )  # without a word yet; copy it
        self._how = Preparation(
            sample_rate=codec.sample_rate,
            frame_samples=codec.frame_samples,
            cooldown_frames=settings.cooldown_frames,
            fade_ms=settings.fade_ms,
            plain=not self.seamless,
            codec_sha256=codec_sha256(files.mimi),
        )

    @cached_property
    def _encoder(self) -> MimiEncoder:
        return MimiEncoder.load(self.files.mimi, codebooks=self.model.codebooks)

    def prepare(self, source: VoiceSource) -> PreparedVoice:
        """Encode a voice's clips."""
        return prepare_voice(source, self.encode, self._encoder.encode, self._how)

    def hear(self, speech: UserSpeech, most_frames: int) -> Callable[[], Heard]:
        """Lay out what a session's user has said, with the cool-down of a voice; the result encodes it.

        Raises InvalidArgument for what is no recording of its words, or takes more than `most_frames`.
        """
        audio, frame_samples = speech.audio, self._how.frame_samples
        if audio.ndim != 1 or not len(audio) or not np.isfinite(audio).all():
            raise InvalidArgument("USER_AUDIO must be samples [n >= 1], all of them finite")
        frames = math.ceil(len(audio) / frame_samples)
        try:
            words = parse_words("the list", speech.words)
            if words[-1].start * self.sample_rate >= len(audio):
                last, seconds = words[-1], len(audio) / self.sample_rate
                raise InvalidArgument(
                    f"USER_WORDS has {last.text!r} at {last.start:g} s, and USER_AUDIO lasts {seconds:g} s"
                )
            plan = plan_prefix(
                [(words, frames)],
                self.encode,
                self.frame_rate,
                cooldown_frames=self._how.cooldown_frames,
                first_speaker=2,
            )
            plan = strip_control(plan, self.machine.tokens)
            check_plan(plan, self.machine, plan.frames)
        except ConfigError as error:
            raise InvalidArgument(f"USER_WORDS: {error}") from None
        if plan.frames > most_frames:
            asked_s, most_s = plan.frames / self.frame_rate, most_frames / self.frame_rate
            raise InvalidArgument(f"USER_AUDIO takes {asked_s:.1f} s with the pause behind it; allowed: {most_s:.1f} s")
        whole = padded([faded(audio, self._how.fade_samples)], plan.clip_frames, frame_samples)
        return lambda: Heard(self._encoder.encode(whole), plan.entries, plan.new_word_steps)

    def load_encoder(self) -> None:
        """Ahead of the first encoding, which would take seconds. Raises ConfigError."""
        _ = self._encoder

    def load(self, path: Path) -> PreparedVoice:
        """A voice from its folder (encoded now) or its prepared file."""
        if path.is_dir():
            return self.prepare(load_voice_folder(path, self.sample_rate))
        model = self.model
        return load_prepared(path, model.codebooks, model.codec_vocab, codec=self._how.codec_sha256)

    def lay_out(self, voice: PreparedVoice) -> Layout:
        """Align a voice and feed its text up to the cut. Raises ConfigError if it cannot be served safely."""
        model = self.model
        if voice.name == NO_VOICE:
            raise ConfigError(f"the voice name {NO_VOICE!r} is reserved")
        highest = int(voice.tokens.max())
        if highest >= model.codec_vocab:
            raise ConfigError(f"voice {voice.name!r} has the audio id {highest}; allowed: 0..{model.codec_vocab - 1}")
        plan = align_voice(voice, self.encode, self.machine, self.frame_rate, check=self.seamless)
        left_s = (model.max_context_steps - plan.frames - model.max_delay - TAIL_FRAMES) / self.frame_rate
        if left_s < 1:
            raise ConfigError(
                f"voice {voice.name!r} takes {plan.frames} of the model's {model.max_context_steps} steps of context "
                "and leaves no room for a request; use shorter clips"
            )
        machine = self.machine.copy()
        machine.entries.extend(plan.entries)
        prefix = build_prefix(machine, voice.tokens, plan.new_word_steps, model.delays, model.audio_bos)
        return Layout(plan, prefix, left_s)
