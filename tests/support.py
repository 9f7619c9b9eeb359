"""What several tests need: engines on small checkpoints, and streams driven to their end."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dia2_engine import AudioChunk, Engine, EngineConfig, Event, Failed, Finished, Request, Telemetry
from dia2_engine.audio.io import load_clip
from dia2_engine.stream import Stream
from dia2_engine.types import UserSpeech

VECTORS = Path(__file__).parent / "data" / "parity"
LINE = "[S1] Hello there, how can I help you today?"


def write_voices(folder: Path, variant: str = "small") -> Path:
    """Two voices from the golden clips: `solo` (one clip, speaker 1 only) and `duo` (two clips)."""
    words = json.loads((VECTORS / variant / "prefix_words.json").read_text("utf-8"))
    files = {"solo": ["prefix_s1.wav"], "duo": ["prefix_s1.wav", "prefix_s2.wav"]}
    for name, clips in files.items():
        (folder / name).mkdir(parents=True)
        for clip in clips:
            shutil.copy(VECTORS / variant / clip, folder / name / clip)
        manifest: dict[str, Any] = {"speakers": [{"clip": c, "words": words[c]} for c in clips]}
        if len(clips) == 1:
            manifest["second_speaker"] = "none"
        (folder / name / "voice.json").write_text(json.dumps(manifest), "utf-8")
    return folder


def user_speech(variant: str = "small") -> UserSpeech:
    """What speaker 2 of the golden clips says."""
    words = json.loads((VECTORS / variant / "prefix_words.json").read_text("utf-8"))["prefix_s2.wav"]
    return UserSpeech(load_clip(VECTORS / variant / "prefix_s2.wav", 24_000), words)


def make_engine(variant: str = "small", telemetry: Telemetry | None = None, **settings: Any) -> Engine:
    return Engine(make_config(variant, **settings), telemetry)


def make_config(variant: str = "small", **settings: Any) -> EngineConfig:
    defaults: dict[str, Any] = {"device": "cpu", "run_ahead_s": 0.0, "debug": True}
    return EngineConfig(str(VECTORS / variant / "checkpoint"), **(defaults | settings))


class Recorder:
    """Collects the events of several streams; `engine.step`'s `emit`."""

    def __init__(self) -> None:
        self.events: dict[Stream, list[Event]] = {}

    def __call__(self, stream: Stream, event: Event) -> None:
        assert not self.ended(stream), f"{event} after the terminal event"
        self.events.setdefault(stream, []).append(event)

    def ended(self, stream: Stream) -> bool:
        events = self.events.get(stream, [])
        return bool(events) and isinstance(events[-1], Finished | Failed)

    def audio(self, stream: Stream) -> NDArray[np.float32]:
        return audio_of(self.events[stream])


def audio_of(events: Sequence[Event]) -> NDArray[np.float32]:
    chunks = [event.audio for event in events if isinstance(event, AudioChunk)]
    return np.concatenate(chunks) if chunks else np.zeros(0, np.float32)


def words_of(events: Sequence[Event]) -> list[tuple[str, float]]:
    return [(w.text, w.start_s) for event in events if isinstance(event, AudioChunk) for w in event.words]


def tokens_of(stream: Stream) -> NDArray[np.int64]:
    """The aligned frames [C, n] a stream has emitted."""
    first, count = stream.boundary.first_frame, stream.boundary.frames_out
    assert first is not None
    return np.stack([stream.boundary.grid.frame(first + i) for i in range(count)], axis=1)


def speak(engine: Engine, request: Request) -> tuple[Stream, list[Event]]:
    """One request, alone, to its end."""
    record = Recorder()
    stream = engine.parse(request)
    engine.start(stream)
    while not record.ended(stream):
        engine.step([stream], record)
    return stream, record.events[stream]


class Talk:
    """A session driven by hand, one step at a time, beside other streams."""

    def __init__(self, engine: Engine, others: Sequence[Stream] = (), *, voice: str = "duo", seed: int = 1) -> None:
        self.engine, self.record, self.others = engine, Recorder(), others
        self.stream = engine.open(Request("", voice=voice, seed=seed))
        for other in others:
            engine.start(other)

    def say(self, text: str, *, flush: bool = False, close: bool = False, user: UserSpeech | None = None) -> None:
        self.stream.inbox.extend(self.engine.read(self.stream, text, flush=flush, close=close, user=user))
        while self.stream.inbox:
            waiting = len(self.stream.inbox)
            self.stream.take_text()
            if len(self.stream.inbox) == waiting:  # for an encoding, or for all that was said before to be out
                wait([text.heard for text in self.stream.inbox if text.heard is not None])
                self.run()

    def run(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            if self.stream.slot < 0:
                if not self.stream.boundary.may_start or self.ended:
                    return
                self.engine.start(self.stream)
            if self.stream.boundary.waits and not self.stream.boundary.end:
                self.engine.step([], self.record)  # what a GPU has made is read one step late
                return
            going = [other for other in self.others if other.slot >= 0]
            self.engine.step([self.stream, *going], self.record)

    @property
    def ended(self) -> bool:
        return self.record.ended(self.stream)

    @property
    def events(self) -> list[Event]:
        return self.record.events[self.stream]


class Collector:
    """A worker's sink that waits for the terminal event and insists on there being one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._done = threading.Event()

    def __call__(self, event: Event) -> None:
        assert not self._done.is_set(), f"{event} after the terminal event"
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self._done.set()

    def wait(self, timeout_s: float = 60.0) -> list[Event]:
        assert self._done.wait(timeout_s), f"no terminal event; got {len(self.events)} events"
        return self.events
