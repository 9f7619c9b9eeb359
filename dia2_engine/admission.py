"""From a request to a stream: every check that a caller's mistake can fail, before anything is allocated."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping

from .boundary import BoundaryStream, StreamLimits, steps_needed
from .config import REQUEST_RANGES, EngineConfig
from .errors import InvalidArgument
from .model.config import ModelConfig
from .stream import Stream, Voice
from .text.parser import Encode, parse_script
from .text.state_machine import MAX_PADDING_STEPS, TextMachine
from .types import Request
from .voice.voice import NO_VOICE

_ROUNDING = 1e-4  # relative: numbers arrive as float32, and 0.08 must still be one frame


class Admission:
    """Checks requests and lays out their streams. Stateless, so any thread may call it."""

    def __init__(
        self,
        config: EngineConfig,
        model: ModelConfig,
        voices: Mapping[str, Voice],
        default_voice: str,
        *,
        encode: Encode,
        machine: TextMachine,
        frame_s: float,
    ) -> None:
        """`machine` is an empty one, to copy."""
        self.config, self.model, self.voices, self.default_voice = config, model, voices, default_voice
        self._encode, self._machine, self._frame_s = encode, machine, frame_s

    def parse(self, request: Request) -> Stream:
        """The stream of a request. Raises InvalidArgument naming the field, its value and what is allowed."""
        config, model = self.config, self.model
        name = self.default_voice if request.voice is None else request.voice
        if name not in self.voices and name != NO_VOICE:
            raise InvalidArgument(f"VOICE is {name!r}; known voices: {', '.join((*self.voices, NO_VOICE))}")
        voice = self.voices.get(name)
        seed = _number("SEED", request.seed, *REQUEST_RANGES["seed"])
        temperature = _number("TEMPERATURE", request.temperature, *REQUEST_RANGES["temperature"])
        top_k = _number("TOP_K", request.top_k, *REQUEST_RANGES["top_k"])
        cfg_scale = _number("CFG_SCALE", request.cfg_scale, *REQUEST_RANGES["cfg_scale"])
        max_seconds = _number("MAX_SECONDS", request.max_seconds, self._frame_s, config.max_seconds)
        heat = (config.text_temperature, config.temperature) if temperature is None else (temperature, temperature)
        max_frames = math.floor((max_seconds or config.max_seconds) / self._frame_s + _ROUNDING)
        limits = StreamLimits(model.max_context_steps, max(1, max_frames), MAX_PADDING_STEPS)
        boundary = BoundaryStream(
            machine=self._read(request.text, name, voice),
            delays=model.delays,
            bos=model.audio_bos,
            prefix=voice.prefix if voice else None,
            boundary=config.boundary,
            kick=config.kick,
            limits=limits,
        )
        return Stream(
            voice=voice,
            boundary=boundary,
            seed=int.from_bytes(os.urandom(8), "little") >> 1 if seed is None else int(seed),
            cfg_scale=config.cfg_scale if cfg_scale is None else cfg_scale,
            temperatures=heat,
            top_k=config.top_k if top_k is None else int(top_k),
            submitted_s=time.monotonic(),
        )

    def _read(self, text: str, name: str, voice: Voice | None) -> TextMachine:
        """The voice's text machine with the script behind it, if they fit the context together."""
        if len(text) > self.config.max_text_chars:
            raise InvalidArgument(f"TEXT has {len(text)} characters; allowed: 1 to {self.config.max_text_chars}")
        entries = parse_script([text.strip()], self._encode, self._machine.tokens, 1 / self._frame_s)
        if not any(entry.tokens for entry in entries):
            raise InvalidArgument("TEXT has no words to speak; give at least one word outside of tags")
        frames = voice.prefix.frames if voice else 0
        needed = steps_needed(entries, frames, self.model.max_delay, MAX_PADDING_STEPS)
        if needed > self.model.max_context_steps:
            raise InvalidArgument(
                f"TEXT needs at least {needed - frames} steps of context ({len(entries)} words and breaks) and "
                f"{self.model.max_context_steps - frames} are left after the voice {name!r}; "
                "split it into shorter requests"
            )
        machine = (voice.prefix.machine if voice else self._machine).copy()
        machine.entries.extend(entries)
        return machine


def _number(field_name: str, value: float | None, low: float, high: float) -> float | None:
    slack = 0.0 if isinstance(value, int) else _ROUNDING
    if value is not None and not low - slack * abs(low) <= value <= high + slack * abs(high):  # also true for NaN
        shown = (
            f"{value}; allowed: {low} to {high}"
            if isinstance(value, int)
            else f"{value:g}; allowed: {low:g} to {high:g}"
        )
        raise InvalidArgument(f"{field_name} is {shown}")
    return value
