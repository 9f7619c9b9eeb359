"""From a request to a stream: every check that a caller's mistake can fail, before anything is allocated."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

from .boundary import BoundaryStream
from .config import REQUEST_RANGES, EngineConfig
from .context import TAIL_FRAMES, StreamLimits, carried_room, steps_needed
from .errors import InvalidArgument
from .model.config import ModelConfig
from .prefix import Heard
from .stream import Stream, Text, Voice
from .text.parser import Encode, ScriptReader, parse_script
from .text.state_machine import Entry, TextMachine
from .types import Request, UserSpeech
from .voice.voice import NO_VOICE

_NO_LIMIT_S = 1e15
_MOST_UNHEARD = 4  # recordings of the user that may wait in one session
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
        hear: Callable[[UserSpeech, int], Future[Heard]],
        frame_s: float,
    ) -> None:
        """`machine` is an empty one, to copy; `hear` checks and encodes what may last so many frames."""
        self.config, self.model, self.voices, self.default_voice = config, model, voices, default_voice
        self._encode, self._machine, self._hear, self._frame_s = encode, machine, hear, frame_s

    def parse(self, request: Request) -> Stream:
        """The stream of a request. Raises InvalidArgument naming the field, its value and what is allowed."""
        name, voice = self._voice(request.voice)
        self._check_length(request.text)
        entries = parse_script([request.text.strip()], self._encode, self._machine.tokens, 1 / self._frame_s)
        if not any(entry.tokens for entry in entries):
            raise InvalidArgument("TEXT has no words to speak; give at least one word outside of tags")
        if not self._carried_frames(voice):
            self._check_context(entries, name, voice)
        return self._stream(request, voice, entries)

    def open(self, request: Request) -> Stream:
        """The stream of a session, whose text comes through `read`. Raises InvalidArgument like `parse`."""
        _, voice = self._voice(request.voice)
        if not self._carried_frames(voice):
            raise InvalidArgument("VOICE leaves too little of the model's context for a session; use a shorter one")
        stream, tokens = self._stream(request, voice, None), self._machine.tokens
        stream.reader = ScriptReader(self._encode, tokens, 1 / self._frame_s, tokens.spk1)
        return stream

    def read(
        self,
        stream: Stream,
        text: str,
        *,
        flush: bool = False,
        close: bool = False,
        user: UserSpeech | None = None,
    ) -> list[Text]:
        """A piece of a session's text, and what the user said before it.

        Raises InvalidArgument, and then the piece changes nothing.
        """
        reader = stream.reader
        assert reader is not None, "only sessions are told more text"
        self._check_length(text if user else reader.rest + text)
        waiting = len(stream.boundary.machine.entries) + sum(len(text.entries) for text in tuple(stream.inbox))
        if waiting > self.config.max_text_chars:
            raise InvalidArgument(
                f"TEXT came while {waiting} words wait to be spoken; allowed: at most {self.config.max_text_chars}"
            )
        pieces, heard = [], None
        if user is not None:
            unheard = sum(text.heard is not None for text in tuple(stream.inbox))
            if unheard >= _MOST_UNHEARD:
                raise InvalidArgument(
                    f"USER_AUDIO came while {unheard} others wait for their turn; allowed: at most {_MOST_UNHEARD}"
                )
            heard = self._hear(user, stream.boundary.limits.heard_frames)
            pieces.append(Text(reader.read("", to_its_end=True), flush=True))
            reader.is_followed_by(self._machine.tokens.spk2)
        return [*pieces, Text(reader.read(text, to_its_end=flush or close), flush, close, heard)]

    def _stream(self, request: Request, voice: Voice | None, entries: Sequence[Entry] | None) -> Stream:
        """A stream of the entries behind the voice's own; None: they come later, and its length has no limit."""
        config, model = self.config, self.model
        machine = (voice.prefix.machine if voice else self._machine).copy()
        machine.entries.extend(entries or ())
        machine.open = entries is None
        seed = _number("SEED", request.seed, *REQUEST_RANGES["seed"])
        temperature = _number("TEMPERATURE", request.temperature, *REQUEST_RANGES["temperature"])
        top_k = _number("TOP_K", request.top_k, *REQUEST_RANGES["top_k"])
        cfg_scale = _number("CFG_SCALE", request.cfg_scale, *REQUEST_RANGES["cfg_scale"])
        max_seconds = _number("MAX_SECONDS", request.max_seconds, self._frame_s, config.max_seconds)
        heat = (config.text_temperature, config.temperature) if temperature is None else (temperature, temperature)
        most_s = max_seconds or (config.max_seconds if entries is not None else _NO_LIMIT_S)
        max_frames = max(1, math.floor(most_s / self._frame_s + _ROUNDING))
        boundary = BoundaryStream(
            machine=machine,
            delays=model.delays,
            bos=model.audio_bos,
            prefix=voice.prefix if voice else None,
            boundary=config.boundary,
            kick=config.kick,
            limits=StreamLimits(
                model.max_context_steps, max_frames, TAIL_FRAMES, self._carried_frames(voice), self._room(voice)
            ),
            fresh=self._machine,
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

    def _voice(self, name: str | None) -> tuple[str, Voice | None]:
        name = self.default_voice if name is None else name
        if name not in self.voices and name != NO_VOICE:
            raise InvalidArgument(f"VOICE is {name!r}; known voices: {', '.join((*self.voices, NO_VOICE))}")
        return name, self.voices.get(name)

    def _check_length(self, text: str) -> None:
        if len(text) > self.config.max_text_chars:
            raise InvalidArgument(f"TEXT has {len(text)} characters; allowed: 1 to {self.config.max_text_chars}")

    def _carried_frames(self, voice: Voice | None) -> int:
        """What a stream takes along into a fresh context; 0 if streams end with their context."""
        if self.config.boundary != "seamless":
            return 0
        frames = min(round(self.config.carry_over_s / self._frame_s), self._room(voice))
        return frames if frames > self.model.max_delay else 0

    def _room(self, voice: Voice | None) -> int:
        prefix_frames = voice.prefix.frames if voice else 0
        model = self.model
        return carried_room(model.max_context_steps, prefix_frames, model.max_delay, model.max_padding_steps)

    def _check_context(self, entries: Sequence[Entry], name: str, voice: Voice | None) -> None:
        frames = voice.prefix.frames if voice else 0
        needed = steps_needed(entries, frames, self.model.max_delay, TAIL_FRAMES)
        if needed > self.model.max_context_steps:
            raise InvalidArgument(
                f"TEXT needs at least {needed - frames} steps of context ({len(entries)} words and breaks) and "
                f"{self.model.max_context_steps - frames} are left after the voice {name!r}; "
                "split it into shorter requests"
            )


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
