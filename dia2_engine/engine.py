"""The engine: voices, slots and the frame loop. Synchronous; `worker.Worker` gives it a thread and callers.

script -> entries -> text machine -+
voice snapshot -> slot (KV, grid) -+-> extend / frame -> delay grid -> streaming codec -> chunks
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .boundary import BoundaryStream, Ids, Prefix, StreamLimits, build_prefix, steps_needed
from .config import REQUEST_RANGES, EngineConfig
from .errors import ConfigError, Dia2Error, InternalError, InvalidArgument
from .model.checkpoint import find_checkpoint, load_dia2
from .model.mimi import MimiDecoder
from .model.sampling import uniforms
from .model.tokenizer import load_tokenizer
from .runtime.guard import IdGuard
from .runtime.runner import ModelRunner, SlotSnapshot
from .telemetry import Telemetry
from .text.parser import parse_script
from .text.state_machine import TextMachine
from .types import AudioChunk, Event, Failed, Finished, Request, Word
from .voice.prepare import Preparation, align_voice, prepare_voice
from .voice.voice import EncodeAudio, PreparedVoice, list_voices, load_prepared, load_voice_folder

log = logging.getLogger(__name__)

NO_VOICE = "none"  # reserved: the model's own voice, which differs from request to request
MAX_PADDING_STEPS = 6  # longest wait between words; the reference's setting, which the model was trained with
INITIAL_PADDING_STEPS = 2
Emit = Callable[["Stream", Event], None]


@dataclass(frozen=True)
class Voice:
    """A voice ready to serve: its prefix, and the device state after it."""

    name: str
    prefix: Prefix
    snapshot: SlotSnapshot


@dataclass(eq=False)
class Stream:
    """One request, from submission to its terminal event."""

    request: Request
    voice: Voice | None
    boundary: BoundaryStream
    seed: int
    cfg_scale: float
    temperatures: tuple[float, float]  # text, audio
    top_k: int
    submitted_s: float
    slot: int = -1
    cancelled: bool = False
    ended: bool = False
    first_audio_s: float | None = None
    audio: list[NDArray[np.float32]] = field(default_factory=list)  # decoded frames not yet sent
    sent_frames: int = 0
    sent_words: int = 0

    def cancel(self) -> None:
        """Ask for the stream to end; it does within one frame, with `Failed(Cancelled)`. From any thread."""
        self.cancelled = True


class Engine:
    """Loads a checkpoint and its voices; then `parse` requests, `start` streams in slots, and `step`.

    `parse` may be called from any thread, everything else from one.
    """

    def __init__(self, config: EngineConfig, telemetry: Telemetry | None = None) -> None:
        started = time.monotonic()
        self.config = config
        self.telemetry = telemetry or Telemetry()
        device = _device(config.device)
        dtype = _dtype(config.dtype, device)
        if dtype == torch.float32:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        files = find_checkpoint(config.checkpoint, config.mimi or None)
        self.model_config = files.config
        self._encode, self.tokens = load_tokenizer(files)
        model = load_dia2(files, device=device, dtype=dtype)
        codec = MimiDecoder.load(files.mimi, codebooks=files.config.codebooks, device=device)
        self._check_codec(codec)
        self.sample_rate: int = codec.config.sample_rate
        self.frame_samples: int = codec.config.frame_samples
        self.frame_s = self.frame_samples / self.sample_rate
        self.runner = ModelRunner(model, codec, slots=config.slots, filter_k=config.cfg_filter_k)
        self.guard = IdGuard(files.config, debug=config.debug)
        self.slots: list[Stream | None] = [None] * config.slots
        log.info("model on %s in %s after %.1f s", device, dtype, time.monotonic() - started)
        self.voices = self._load_voices(files.mimi)
        self.default_voice = config.default_voice or next(iter(self.voices), NO_VOICE)
        if self.default_voice not in (*self.voices, NO_VOICE):
            raise ConfigError(f"default_voice is {self.default_voice!r}; known voices: {self._voice_names()}")
        log.info("%d voices ready after %.1f s: %s", len(self.voices), time.monotonic() - started, self._voice_names())

    # ---- voices

    def _load_voices(self, mimi: Path) -> dict[str, Voice]:
        if not self.config.voices:
            return {}
        encoder: EncodeAudio | None = None
        voices = {}
        for name, path in list_voices(Path(self.config.voices).expanduser()).items():
            if name == NO_VOICE:
                raise ConfigError(f"{path}: the voice name {NO_VOICE!r} is reserved")
            if path.is_dir():
                if encoder is None:
                    from .model.encoder import MimiEncoder

                    encoder = MimiEncoder.load(mimi, codebooks=self.model_config.codebooks).encode
                source = load_voice_folder(path, self.sample_rate)
                prepared = prepare_voice(source, self._encode, encoder, self.preparation())
            else:
                prepared = load_prepared(path, self.model_config.codebooks, self.model_config.codec_vocab)
            voices[name] = self.add_voice(prepared)
        return voices

    def preparation(self) -> Preparation:
        """How this engine makes prefixes from clips."""
        return Preparation(
            sample_rate=self.sample_rate,
            frame_samples=self.frame_samples,
            cooldown_frames=self.config.cooldown_frames,
            fade_ms=self.config.fade_ms,
            plain=self.config.boundary == "reference",
        )

    def add_voice(self, prepared: PreparedVoice) -> Voice:
        """Align a prepared voice and warm it up. Uses slot 0, so no stream may be live.

        Raises ConfigError if the voice cannot be served safely.
        """
        seamless = self.config.boundary == "seamless"
        config = self.model_config
        plan = align_voice(prepared, self._encode, self._machine(), 1 / self.frame_s, check=seamless)
        room = config.max_context_steps - plan.frames - config.max_delay - MAX_PADDING_STEPS
        if room < 1 / self.frame_s:
            raise ConfigError(
                f"voice {prepared.name!r} takes {plan.frames} of the model's {config.max_context_steps} steps of "
                "context and leaves no room for a request; use shorter clips"
            )
        machine = self._machine()
        machine.entries.extend(plan.entries)
        prefix = build_prefix(machine, prepared.tokens, plan.new_word_steps, config.delays, config.audio_bos)
        self.guard.columns(prefix.columns)
        self.guard.codec(prepared.tokens)
        self.runner.restore(0, None)
        self.runner.extend(0, prefix.columns, 0)
        if seamless:
            # The codec continues from the prefix; the reference decodes what it emits from nothing.
            self.runner.decode([0], prepared.tokens[None])
        return Voice(prepared.name, prefix, self.runner.snapshot(0, prefix.cut, codec=seamless))

    def _machine(self) -> TextMachine:
        return TextMachine(
            self.tokens,
            lookahead_words=self.model_config.lookahead_words,
            max_padding=MAX_PADDING_STEPS,
            initial_padding=INITIAL_PADDING_STEPS,
        )

    def _voice_names(self) -> str:
        return ", ".join((*self.voices, NO_VOICE))

    # ---- requests

    def parse(self, request: Request) -> Stream:
        """Check a request and lay out its stream; touches neither slots nor device.

        Raises InvalidArgument naming the field, its value and what is allowed.
        """
        config, model = self.config, self.model_config
        name = self.default_voice if request.voice is None else request.voice
        if name not in self.voices and name != NO_VOICE:
            raise InvalidArgument(f"VOICE is {name!r}; known voices: {self._voice_names()}")
        voice = self.voices.get(name)
        seed = _number("SEED", request.seed, *REQUEST_RANGES["seed"])
        temperature = _number("TEMPERATURE", request.temperature, *REQUEST_RANGES["temperature"])
        top_k = _number("TOP_K", request.top_k, *REQUEST_RANGES["top_k"])
        cfg_scale = _number("CFG_SCALE", request.cfg_scale, *REQUEST_RANGES["cfg_scale"])
        max_seconds = _number("MAX_SECONDS", request.max_seconds, self.frame_s, config.max_seconds)
        if len(request.text) > config.max_text_chars:
            raise InvalidArgument(f"TEXT has {len(request.text)} characters; allowed: 1 to {config.max_text_chars}")
        entries = parse_script([request.text.strip()], self._encode, self.tokens, 1 / self.frame_s)
        if not any(entry.tokens for entry in entries):
            raise InvalidArgument("TEXT has no words to speak; give at least one word outside of tags")

        frames = voice.prefix.frames if voice else 0
        machine = voice.prefix.machine.copy() if voice else self._machine()
        lengths = self._machine()
        lengths.entries.extend(entries)
        needed = steps_needed(lengths, frames, model.max_delay, MAX_PADDING_STEPS)
        if needed > model.max_context_steps:
            raise InvalidArgument(
                f"TEXT needs at least {needed - frames} steps of context ({len(entries)} words and breaks) and "
                f"{model.max_context_steps - frames} are left after the voice {name!r}; split it into shorter requests"
            )
        machine.entries.extend(entries)
        stream = BoundaryStream(
            machine=machine,
            delays=model.delays,
            bos=model.audio_bos,
            prefix=voice.prefix if voice else None,
            boundary="reference" if config.boundary == "reference" else "seamless",
            kick=config.kick,
            limits=StreamLimits(
                max_steps=model.max_context_steps,
                max_frames=max(1, math.floor((max_seconds or config.max_seconds) / self.frame_s + 1e-6)),
                tail_frames=MAX_PADDING_STEPS,
            ),
        )
        heat = (config.text_temperature, config.temperature) if temperature is None else (temperature, temperature)
        return Stream(
            request=request,
            voice=voice,
            boundary=stream,
            seed=int.from_bytes(os.urandom(8), "little") >> 1 if seed is None else int(seed),
            cfg_scale=config.cfg_scale if cfg_scale is None else cfg_scale,
            temperatures=heat,
            top_k=config.top_k if top_k is None else int(top_k),
            submitted_s=time.monotonic(),
        )

    # ---- slots

    @property
    def live(self) -> list[Stream]:
        """Streams that hold a slot."""
        return [stream for stream in self.slots if stream is not None]

    @property
    def has_free_slot(self) -> bool:
        return None in self.slots

    def start(self, stream: Stream) -> None:
        """Give a stream the lowest free slot: copy its voice's snapshot, then one pass over the tail's columns."""
        slot = self.slots.index(None)
        boundary = stream.boundary
        self.guard.columns(boundary.replay)
        self.runner.restore(slot, stream.voice.snapshot if stream.voice else None)
        if stream.voice:
            self.runner.extend(slot, boundary.replay, stream.voice.prefix.cut)
        self.runner.buffers.settings(
            slot, cfg_scale=stream.cfg_scale, temperatures=stream.temperatures, top_k=stream.top_k
        )
        stream.slot = slot
        self.slots[slot] = stream
        self._stage_inert(stream)

    def _stage_inert(self, stream: Stream) -> None:
        """While a stream takes no step, its row writes where its next step will: nothing it has seen is touched."""
        boundary = stream.boundary
        self.runner.buffers.where.host[stream.slot] = boundary.step + boundary.cache_shift

    def release(self, stream: Stream) -> None:
        """Free a stream's slot; what it leaves there is inert."""
        if stream.slot >= 0:
            self.slots[stream.slot] = None
            self.runner.buffers.where.host[stream.slot] = 0
            stream.slot = -1

    # ---- the frame loop

    def step(self, streams: Sequence[Stream], emit: Emit) -> None:
        """Advance some live streams by one column each; chunks, ends and failures go to `emit`.

        A stream that fails is released and does not disturb the others.
        """
        streams = self._stage(streams, emit)
        if not streams:
            return
        streams = self._transform(streams, emit)
        self._depform(streams, emit)
        self._decode([stream for stream in streams if stream.slot >= 0], emit)

    def _stage(self, streams: Sequence[Stream], emit: Emit) -> list[Stream]:
        buffers, staged = self.runner.buffers, []
        for stream in streams:
            boundary, slot = stream.boundary, stream.slot
            column = boundary.column()
            if self._guarded(stream, emit, self.guard.columns, column):
                buffers.columns.host[slot] = column
                buffers.positions.host[slot] = boundary.step
                staged.append(stream)
        if staged:
            slots = [stream.slot for stream in staged]
            seeds = np.array([stream.seed for stream in staged], np.uint64)
            steps = np.array([stream.boundary.step for stream in staged])
            buffers.uniforms.host[slots] = uniforms(seeds, steps, 1 + self.model_config.codebooks)
        return staged

    def _transform(self, streams: list[Stream], emit: Emit) -> list[Stream]:
        actions = self.runner.transform(self._rows(streams))
        advanced = []
        for stream in streams:
            action = int(actions[stream.slot])
            stream.boundary.take_action(action == self.model_config.action_new_word)
            text = np.asarray(stream.boundary.text, np.int64)
            if self._guarded(stream, emit, self.guard.text, text):
                self.runner.buffers.text.host[stream.slot] = text
                advanced.append(stream)
        return advanced

    def _depform(self, streams: list[Stream], emit: Emit) -> None:
        buffers = self.runner.buffers
        sampling = []
        for stream in streams:
            known, mask = stream.boundary.known_codes()
            if self._guarded(stream, emit, self.guard.depformer_input, known):
                buffers.known.host[stream.slot], buffers.known_mask.host[stream.slot] = known, mask
                if stream.boundary.samples_audio():
                    sampling.append(stream)
        if sampling:
            self.runner.depform(self._rows(sampling))
        streams = [stream for stream in streams if stream.slot >= 0]
        if not streams:
            return
        codes = self.runner.codes(self._rows(streams))
        for stream in streams:
            ids, boundary = codes[stream.slot], stream.boundary
            used = ids[boundary.grid.sampled(boundary.step + 1)]
            if self._guarded(stream, emit, self.guard.sampled, used):
                boundary.take_codes(ids)
                self._stage_inert(stream)

    def _decode(self, streams: list[Stream], emit: Emit) -> None:
        """Decode the frames that have become complete, one of every stream at a time, and send what makes a chunk."""
        ready: dict[Stream, list[Ids]] = {}
        for stream in streams:
            frames = stream.boundary.pop_frames()
            for ids in frames:
                if not self._guarded(stream, emit, self.guard.codec, ids):
                    break
            else:
                ready[stream] = frames
        self.telemetry.count("frames", sum(map(len, ready.values())))
        while batch := [stream for stream, frames in ready.items() if frames]:
            codes = np.stack([ready[stream].pop(0) for stream in batch])[:, :, None]
            audio = self.runner.decode([stream.slot for stream in batch], codes)
            for stream, samples in zip(batch, audio, strict=True):
                stream.audio.append(samples)
        for stream in ready:
            self._send(stream, emit)

    def _send(self, stream: Stream, emit: Emit) -> None:
        end = stream.boundary.end
        frames = len(stream.audio)
        # The first chunks are one frame; later ones grow with what the listener has in hand.
        if frames and (end or frames >= min(self.config.max_chunk_frames, max(1, stream.sent_frames // 2))):
            if stream.first_audio_s is None:
                stream.first_audio_s = time.monotonic()
                self.telemetry.observe("first_audio_s", stream.first_audio_s - stream.submitted_s)
            emit(stream, self._chunk(stream, frames))
        if end:
            emit(stream, Finished(end, stream.sent_frames))
            self.release(stream)

    def _chunk(self, stream: Stream, frames: int) -> AudioChunk:
        first = stream.sent_frames
        stream.sent_frames += frames
        offset = stream.boundary.first_frame or 0
        words = []
        while stream.sent_words < len(stream.boundary.words):
            text, step = stream.boundary.words[stream.sent_words]
            if step - offset >= stream.sent_frames:
                break
            words.append(Word(text, (step - offset) * self.frame_s))
            stream.sent_words += 1
        audio = np.concatenate(stream.audio)
        stream.audio.clear()
        return AudioChunk(audio, first, tuple(words))

    def _rows(self, streams: Sequence[Stream]) -> int:
        return max(stream.slot for stream in streams) + 1

    def _guarded(self, stream: Stream, emit: Emit, check: Callable[[Ids], None], ids: Ids) -> bool:
        try:
            check(ids)
        except InternalError as error:
            self.telemetry.count("illegal_ids")
            self.fail(stream, error, emit)
            return False
        return True

    def fail(self, stream: Stream, error: Dia2Error, emit: Emit) -> None:
        """End one stream with an error and free its slot."""
        emit(stream, Failed(error))
        self.release(stream)

    def _check_codec(self, codec: MimiDecoder) -> None:
        if codec.config.codebook_size < self.model_config.codec_vocab:
            raise ConfigError(
                f"the model samples ids 0..{self.model_config.codec_vocab - 1} but the codec's codebooks have "
                f"{codec.config.codebook_size} entries"
            )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device is {name!r} but no CUDA device is available; allowed here: cpu")
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name == "bfloat16" and device.type == "cpu":
        raise ConfigError("dtype is 'bfloat16' but the CPU runs float32 only; allowed: auto, float32")
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _number(field_name: str, value: float | None, low: float, high: float) -> float | None:
    if value is not None and not low <= value <= high:  # also true for NaN
        raise InvalidArgument(f"{field_name} is {value:g}; allowed: {low:g} to {high:g}")
    return value
