"""Preparing and examining voices for one checkpoint, without loading the language model or needing a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..boundary import build_prefix
from ..config import EngineConfig
from ..engine import INITIAL_PADDING_STEPS, MAX_PADDING_STEPS, NO_VOICE
from ..errors import ConfigError
from ..model.checkpoint import find_checkpoint
from ..model.encoder import MimiEncoder
from ..model.mimi import load_mimi_config
from ..model.tokenizer import load_tokenizer
from ..text.state_machine import TextMachine
from .plan import PrefixPlan
from .prepare import Preparation, align_voice, prepare_voice
from .recording import Findings
from .voice import PreparedVoice, VoiceSource, codec_sha256, load_prepared

LARGE_SHARE = 0.5  # of the context


@dataclass
class Report:
    """How a voice lies on the model's columns, and what is wrong with it."""

    name: str
    voice: PreparedVoice | None = None
    plan: PrefixPlan | None = None
    cut: int = 0  # first column that depends on the request
    frame_rate: float = 0.0
    left_s: float = 0.0  # speech that fits behind it
    found: Findings = field(default_factory=Findings)


class Workshop:
    """A checkpoint's tokenizer, shapes and codec: all that preparing a voice needs. Raises ConfigError."""

    def __init__(self, settings: EngineConfig) -> None:
        self.files = find_checkpoint(settings.checkpoint, settings.mimi or None, weights=False)
        self.encode, self.tokens = load_tokenizer(self.files)
        codec = load_mimi_config(self.files.mimi / "config.json")
        self.sample_rate, self.frame_rate = codec.sample_rate, codec.frame_rate
        self._how = Preparation(
            sample_rate=codec.sample_rate,
            frame_samples=codec.frame_samples,
            cooldown_frames=settings.cooldown_frames,
            fade_ms=settings.fade_ms,
            codec_sha256=codec_sha256(self.files.mimi),
        )

    @cached_property
    def _encoder(self) -> MimiEncoder:
        return MimiEncoder.load(self.files.mimi, codebooks=self.files.config.codebooks)

    def prepare(self, source: VoiceSource) -> PreparedVoice:
        """Encode a voice's clips."""
        return prepare_voice(source, self.encode, self._encoder.encode, self._how)

    def load(self, path: Path) -> PreparedVoice:
        """Read a prepared voice as the server will."""
        config = self.files.config
        return load_prepared(path, config.codebooks, config.codec_vocab, codec=self._how.codec_sha256)

    def examine(self, voice: PreparedVoice) -> Report:
        """Align the voice and count what it leaves for a request. Raises ConfigError if it cannot be served."""
        config = self.files.config
        if voice.name == NO_VOICE:
            raise ConfigError(f"the voice name {NO_VOICE!r} is reserved")
        machine = TextMachine(
            self.tokens,
            lookahead_words=config.lookahead_words,
            max_padding=MAX_PADDING_STEPS,
            initial_padding=INITIAL_PADDING_STEPS,
        )
        plan = align_voice(voice, self.encode, machine, self.frame_rate)
        machine.entries.extend(plan.entries)
        left_s = (config.max_context_steps - plan.frames - config.max_delay - MAX_PADDING_STEPS) / self.frame_rate
        if left_s < 1:
            raise ConfigError(
                f"voice {voice.name!r} takes {plan.frames} of the model's {config.max_context_steps} steps of context "
                "and leaves no room for a request; use shorter clips"
            )
        prefix = build_prefix(machine, voice.tokens, plan.new_word_steps, config.delays, config.audio_bos)
        report = Report(voice.name, voice, plan, prefix.cut, self.frame_rate, left_s)
        if plan.frames > LARGE_SHARE * config.max_context_steps:
            share = plan.frames / config.max_context_steps
            report.found.warnings.append(f"it takes {share:.0%} of the model's context; a few seconds of speech do")
        return report
