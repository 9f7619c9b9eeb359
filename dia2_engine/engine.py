"""The engine: voices, slots and the frame loop. Synchronous; `worker.Worker` gives it a thread and callers.

script -> entries -> text machine -+
voice snapshot -> slot (KV, grid) -+-> extend / frame -> delay grid -> streaming codec -> chunks
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from .admission import Admission
from .config import EngineConfig
from .context import Replay
from .errors import ConfigError, Dia2Error, InternalError
from .grid import Ids
from .model.checkpoint import find_checkpoint, load_dia2
from .model.mimi import MimiDecoder
from .model.sampling import uniforms
from .prefix import Heard
from .runtime.guard import IdGuard
from .runtime.runner import ModelRunner
from .stream import Stream, Text, Voice
from .telemetry import Telemetry
from .types import FROM_PREFIX, Event, Failed, Finished, Request, UserSpeech
from .voice.voice import NO_VOICE, PreparedVoice, list_voices
from .voice.workshop import Workshop

log = logging.getLogger(__name__)

Emit = Callable[[Stream, Event], None]
_T = TypeVar("_T")
_COLUMNS_AT_ONCE = 128  # of what is known, before the others make their next step; a few ms on a GPU
_FRAMES_AT_ONCE = 16


@dataclass(frozen=True)
class _Made:
    """What a step made for one stream."""

    stream: Stream
    row: int  # of the step's results
    codes: Callable[[], Ids]  # the step's ids [rows, C]
    column: int  # that the ids belong to
    frames: range  # that they complete


class _Settings:
    """Of the stream in each slot, so that a step's rows are gathered at once."""

    def __init__(self, slots: int) -> None:
        self.seeds = np.zeros(slots, np.uint64)
        self.cfg_scale = np.zeros(slots, np.float32)
        self.temperatures = np.zeros((slots, 2), np.float32)
        self.top_k = np.zeros((slots, 2), np.int32)

    def put(self, slot: int, stream: Stream) -> None:
        self.seeds[slot], self.cfg_scale[slot] = stream.seed, stream.cfg_scale
        self.temperatures[slot], self.top_k[slot] = stream.temperatures, stream.top_k


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
        self.workshop = Workshop(files, config)
        model = load_dia2(files, device=device, dtype=dtype)
        codec = MimiDecoder.load(files.mimi, codebooks=files.config.codebooks, device=device)
        self._check_codec(codec)
        self.sample_rate: int = codec.config.sample_rate
        self.frame_samples: int = codec.config.frame_samples
        self.frame_s = self.frame_samples / self.sample_rate
        self.runner = ModelRunner(
            model,
            codec,
            slots=config.slots,
            filter_k=config.cfg_filter_k,
            cuda_graphs=config.cuda_graphs,
            kv_gb=config.kv_gb,
        )
        self.guard = IdGuard(files.config, debug=config.debug)
        self.slots: list[Stream | None] = [None] * config.slots
        # A step's codes are read while the next one runs; in debug mode they are checked before that.
        self._overlaps = self.runner.overlaps and not config.debug
        self._unfinished: list[_Made] = []
        self._settings = _Settings(config.slots)
        self._encoding = ThreadPoolExecutor(1, "dia2-encoding")  # of what users say, which takes longer than a frame
        log.info("model on %s in %s after %.1f s", device, dtype, time.monotonic() - started)
        paths = list_voices(Path(config.voices).expanduser()) if config.voices else {}
        self.voices = {name: self.add_voice(self.workshop.load(path)) for name, path in paths.items()}
        self.default_voice = config.default_voice or next(iter(self.voices), NO_VOICE)
        if self.default_voice not in (*self.voices, NO_VOICE):
            known = ", ".join((*self.voices, NO_VOICE))
            raise ConfigError(f"default_voice is {self.default_voice!r}; known voices: {known}")
        log.info("%d voices ready after %.1f s", len(self.voices), time.monotonic() - started)
        self._admission = Admission(
            config,
            files.config,
            self.voices,
            self.default_voice,
            encode=self.workshop.encode,
            machine=self.workshop.machine,
            hear=self._hear,
            frame_s=self.frame_s,
        )

    def add_voice(self, prepared: PreparedVoice) -> Voice:
        """Lay a voice out and warm it up. Uses slot 0, so no stream may be live.

        Raises ConfigError if the voice cannot be served safely.
        """
        prefix = self.workshop.lay_out(prepared).prefix
        self.guard.columns(prefix.columns)
        self.guard.codec(prefix.tokens)
        self.runner.open(0, prefix.frames)
        self.runner.restore(0, None)
        self.runner.extend(0, prefix.columns, 0)
        seamless = self.config.boundary == "seamless"
        if seamless:
            # The codec continues from the prefix; the reference decodes what it emits from nothing.
            self.runner.decode([0], prefix.tokens[None])
        snapshot = self.runner.snapshot(0, prefix.cut, codec=seamless)
        self.runner.close(0)
        return Voice(prepared.name, prefix, snapshot)

    def parse(self, request: Request) -> Stream:
        """Check a request and lay out its stream; touches neither slots nor device.

        Raises InvalidArgument naming the field, its value and what is allowed.
        """
        return self._admission.parse(request)

    def prepare_sessions(self) -> None:
        """Load what only sessions need. Raises ConfigError, also where the settings allow none."""
        if self.config.boundary != "seamless" or not self.config.carry_over_s:
            settings = f"boundary is {self.config.boundary!r} and carry_over_s is {self.config.carry_over_s:g}"
            raise ConfigError(f"{settings}; sessions need 'seamless' and more than 0")
        self.workshop.load_encoder()

    def open(self, request: Request) -> Stream:
        """Lay out a session, whose text comes through `read`; raises like `parse`."""
        return self._admission.open(request)

    def read(
        self, stream: Stream, text: str, *, flush: bool = False, close: bool = False, user: UserSpeech | None = None
    ) -> list[Text]:
        """What a piece of text, and of speech before it, says to a session's stream; one thread at a time.

        Raises InvalidArgument.
        """
        return self._admission.read(stream, text, flush=flush, close=close, user=user)

    def _hear(self, user: UserSpeech, most_frames: int) -> Future[Heard]:
        return self._encoding.submit(self.workshop.hear(user, most_frames))

    def close(self) -> None:
        """Encode nothing more."""
        self._encoding.shutdown(wait=False, cancel_futures=True)

    # ---- slots

    @property
    def live(self) -> list[Stream]:
        """Streams that hold a slot."""
        return [stream for stream in self.slots if stream is not None]

    def has_room_for(self, stream: Stream) -> bool:
        """Whether there are a free slot and the memory that the stream may ever need: then it will not run out."""
        return None in self.slots and self.runner.has_room(stream.boundary.most_steps)

    def start(self, stream: Stream) -> None:
        """Give a stream the lowest free slot: copy its voice's snapshot, then a pass over the tail's columns."""
        slot = self.slots.index(None)
        self.runner.open(slot, stream.boundary.most_steps)
        self.slots[slot], stream.slot = stream, slot
        self._settings.put(slot, stream)
        self._turn(stream, codec=True)
        self._feed(stream)

    def _turn(self, stream: Stream, *, codec: bool = False) -> None:
        """Learn what is known before the stream's next step. The codec goes on where it is, but at the start."""
        replay = stream.boundary.turn()
        self.guard.columns(replay.columns)
        self.guard.codec(replay.heard)
        if replay.from_voice:
            self.runner.restore(stream.slot, stream.voice.snapshot if stream.voice else None, codec=codec)
        stream.replay = replay

    def _feed(self, stream: Stream) -> None:
        """Feed the next of what is known: so much at once that the others' frames do not wait for long."""
        replay = stream.replay
        assert replay is not None
        columns, heard = replay.columns[:_COLUMNS_AT_ONCE], replay.heard[:, :_FRAMES_AT_ONCE]
        self.runner.extend(stream.slot, columns, replay.start)
        if heard.size:
            self.runner.decode([stream.slot], heard[None])
        left = replay.columns[len(columns) :], replay.heard[:, heard.shape[1] :]
        if any(part.size for part in left):
            stream.replay = Replay(replay.start + len(columns), left[0], False, left[1])
        else:
            stream.replay = None
            self.runner.enter(stream.slot, stream.boundary.column()[2:])

    def release(self, stream: Stream) -> None:
        """Free a stream's slot; what it leaves there is inert."""
        if stream.slot >= 0:
            self.slots[stream.slot] = None
            self.runner.close(stream.slot)
            stream.slot = -1

    # ---- the frame loop

    @property
    def unfinished(self) -> list[Stream]:
        """Streams whose last step is still to be read: `step` again, if only with no streams."""
        return [made.stream for made in self._unfinished if made.stream.slot >= 0]

    def step(self, streams: Sequence[Stream], emit: Emit) -> None:
        """Advance some live streams by one column each; chunks, ends and failures go to `emit`.

        Where the runner overlaps, what this step makes is read, decoded and sent by the next call, while that one's
        step runs. A stream that fails is released and does not disturb the others; one that has reached its end makes
        no further steps.
        """
        self._prepare(streams, emit)
        staged = self._stage(streams, emit)
        sampling = sum(stream.boundary.samples_audio() for stream in staged)
        reads_text = self.model_config.depformer_text
        if staged:
            self.runner.transform(len(staged))
            if not reads_text:
                self._depform(sampling)  # the text machines run while the device does
                codes = self.runner.fetch(len(staged))
        self._finish(self._unfinished, emit)
        self._unfinished = []
        self._take_actions(staged, emit)
        if staged and reads_text:
            self._depform(sampling)
            codes = self.runner.fetch(len(staged))
        made = [self._advance(stream, row, codes) for row, stream in enumerate(staged) if stream.slot >= 0]
        if self._overlaps:
            self._unfinished = made
        else:
            self._finish(made, emit)

    def _prepare(self, streams: Sequence[Stream], emit: Emit) -> None:
        """Feed the columns that some streams must see before this step, and end what ends without one."""
        turning = [s for s in streams if s.boundary.end is None and (s.replay is not None or s.boundary.turns)]
        closed = [stream for stream in streams if stream.boundary.end is not None]
        if not turning and not closed:
            return
        self._finish(self._unfinished, emit)  # the columns hold what the last step made
        self._unfinished = []
        for stream in turning:
            if stream.slot >= 0 and (stream.replay is not None or self._guarded(stream, emit, self._turn, stream)):
                self._feed(stream)
        for stream in closed:
            if stream.slot >= 0:
                self._send(stream, emit)

    def _stage(self, streams: Sequence[Stream], emit: Emit) -> list[Stream]:
        """What the host knows of the step, a row for each stream; those that sample audio come first."""
        going = [s for s in streams if s.slot >= 0 and not s.boundary.end and not s.boundary.waits and not s.replay]
        going = [stream for stream in going if self._is_legal(stream, emit)]
        going.sort(key=lambda stream: not stream.boundary.samples_audio())
        if not going:
            return going
        self.runner.wait()  # for the step before, which reads its inputs there
        inputs, rows = self.runner.buffers.inputs, len(going)
        slots = [stream.slot for stream in going]
        inputs.slots[:rows] = slots
        inputs.positions[:rows] = steps = np.array([stream.boundary.step for stream in going])
        inputs.where[:rows] = steps + np.array([stream.boundary.cache_shift for stream in going])
        inputs.text[:rows] = [stream.boundary.text for stream in going]
        for row, stream in enumerate(going):
            inputs.given[row], inputs.given_kind[row] = stream.boundary.given()
        settings = self._settings
        inputs.cfg_scale[:rows] = settings.cfg_scale[slots]
        inputs.temperatures[:rows], inputs.top_k[:rows] = settings.temperatures[slots], settings.top_k[slots]
        inputs.uniforms[:rows] = uniforms(settings.seeds[slots], steps, 1 + self.model_config.codebooks)
        return going

    def _is_legal(self, stream: Stream, emit: Emit) -> bool:
        """In debug mode: whether all that the step will read is."""
        if not self.guard.debug:
            return True
        given, kind = stream.boundary.given()
        return self._guarded(stream, emit, self.guard.columns, stream.boundary.column()) and self._guarded(
            stream, emit, self.guard.depformer_input, given[kind == FROM_PREFIX]
        )

    def _depform(self, rows: int) -> None:
        if rows:
            self.runner.depform(rows)

    def _take_actions(self, staged: list[Stream], emit: Emit) -> None:
        if not staged:
            return
        text, new_word = self.runner.buffers.inputs.next_text, self.model_config.action_new_word
        for row, (stream, action) in enumerate(zip(staged, self.runner.actions(len(staged)).tolist(), strict=True)):
            stream.boundary.take_action(action == new_word)
            if not self.guard.debug or self._guarded(stream, emit, self.guard.text, np.array(stream.boundary.text)):
                text[row] = stream.boundary.text

    @staticmethod
    def _advance(stream: Stream, row: int, codes: Callable[[], Ids]) -> _Made:
        frames = stream.boundary.advance()
        return _Made(stream, row, codes, stream.boundary.step, frames)

    def _finish(self, made: Sequence[_Made], emit: Emit) -> None:
        """Read what a step made, decode the frames it has completed, and send what makes a chunk."""
        made = [row for row in made if row.stream.slot >= 0]  # some have been cancelled since
        if not made:
            return
        codes = made[0].codes()
        ready: dict[Stream, list[Ids]] = {}
        for row in made:
            stream, ids = row.stream, codes[row.row]
            grid = stream.boundary.grid
            if self.guard.debug:
                sampled = grid.sampled(row.column)
                if not self._guarded(stream, emit, self.guard.sampled, ids[sampled]):
                    continue
            stream.boundary.take_codes(row.column, ids)
            ready[stream] = [grid.frame(index) for index in row.frames]
        ready = self._without_illegal(ready, emit)
        if frames_ready := sum(map(len, ready.values())):
            self.telemetry.count("frames", frames_ready)
        while batch := [stream for stream, frames in ready.items() if frames]:
            ids = np.stack([ready[stream].pop(0) for stream in batch])[:, :, None]
            audio = self.runner.decode([stream.slot for stream in batch], ids)
            for stream, samples in zip(batch, audio, strict=True):
                stream.audio.append(samples)
        for stream in ready:
            self._send(stream, emit)

    def _without_illegal(self, frames: dict[Stream, list[Ids]], emit: Emit) -> dict[Stream, list[Ids]]:
        """Fails the streams of which a frame must not reach the codec, and leaves the others."""
        together = [frame for each in frames.values() for frame in each]
        try:
            self.guard.codec(np.array(together, np.int64))  # at once: there is next to never one to be found
            return frames
        except InternalError:
            check = self.guard.codec
            return {s: each for s, each in frames.items() if all(self._guarded(s, emit, check, f) for f in each)}

    def _send(self, stream: Stream, emit: Emit) -> None:
        end = stream.boundary.end
        frames = len(stream.audio)
        # The first chunks are one frame; later ones grow with what the listener has in hand.
        enough = min(self.config.max_chunk_frames, max(1, stream.heard_frames // 2))
        if frames and (end or stream.boundary.waits or frames >= enough):
            if stream.first_audio_s is None:
                stream.first_audio_s = time.monotonic()
                self.telemetry.observe("first_audio_s", stream.first_audio_s - stream.submitted_s)
            emit(stream, stream.take_chunk(self.frame_s))
        if end:
            emit(stream, Finished(end, stream.sent_frames))
            self.release(stream)

    def _guarded(self, stream: Stream, emit: Emit, check: Callable[[_T], None], ids: _T) -> bool:
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
