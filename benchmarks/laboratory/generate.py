"""Speak requests by protocols: the real engine, in this process, with as many requests at once as it has slots."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from dia2_engine import AudioChunk, ConfigError, Engine, EngineConfig, Event, Failed, Finished, Request
from dia2_engine.audio.io import load_clip
from dia2_engine.model.checkpoint import find_checkpoint
from dia2_engine.model.encoder import MimiEncoder
from dia2_engine.model.mimi import load_mimi_config
from dia2_engine.stream import Stream
from dia2_engine.voice.voice import NO_VOICE, PreparedVoice, list_voices, load_prepared, load_voice_folder

from .outputs import CLIP, Codes, Output, Run
from .protocols import PROTOCOLS, Protocol

SOURCE, CODEC = (
    "source",
    "codec",
)  # in place of protocols: recordings of the requests, as they are and through the codec
_PREPARATION = {"cooldown_frames", "fade_ms", "boundary"}  # settings that a voice's preparation depends on
_ANY_RATE = 24_000  # only the words of a clip are read


@dataclass(frozen=True)
class Case:
    """A request in a voice; the same by every protocol, with the same noise."""

    request: int
    text: str
    voice: str
    seed: int


@dataclass(frozen=True)
class Chosen:
    """A voice, and what its clips say: one speaker's, or two."""

    path: Path
    clips: tuple[str, ...]


def read_requests(path: Path, count: int) -> list[str]:
    """The first sentences of a file, one a line. Raises ValueError if there are fewer."""
    lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not 0 < count <= len(lines):
        raise ValueError(f"{path} has {len(lines)} sentences; {count} are asked for")
    return lines[:count]


def pair(texts: Sequence[str], voices: Sequence[str], seed: int, *, every_voice: bool) -> list[Case]:
    """Each request in one voice, by turns, or in every one."""
    return [
        Case(index, text, voice, seed * 1_000_003 + index)
        for index, text in enumerate(texts)
        for voice in (voices if every_voice else [voices[index % len(voices)]])
    ]


def choose_voices(folder: Path, names: Sequence[str]) -> dict[str, Chosen]:
    """Voices by name; without names, those of one speaker. Raises ConfigError."""
    there = {name: Chosen(path, _clips(path)) for name, path in list_voices(folder).items()}
    missing = sorted(set(names) - there.keys())
    if missing or not there:
        raise ConfigError(f"{folder} has no voice {', '.join(missing)}; it has {', '.join(there) or 'none'}")
    return {name: there[name] for name in names or there if names or len(there[name].clips) == 1}


def _clips(path: Path) -> tuple[str, ...]:
    """What is said in each clip; one that serves as both speakers counts once."""
    if path.is_dir():
        spoken = [clip.words for clip in load_voice_folder(path, _ANY_RATE).clips]
    else:
        spoken = list(load_prepared(path, codebooks=1, codec_vocab=2**31).words)
    return tuple(dict.fromkeys(" ".join(word.text for word in words) for words in spoken))


class Laboratory:
    """Engines for the protocols, and the run that their outputs go to."""

    def __init__(self, run: Run, config: EngineConfig, voices: Mapping[str, Chosen]) -> None:
        self.run, self.config, self.voices = run, config, voices
        self.files = find_checkpoint(config.checkpoint, config.mimi or None)

    def generate(self, names: Sequence[str], cases: Sequence[Case]) -> None:
        """Make what is missing, protocol after protocol; those with equal settings of the engine share one."""
        made = self.run.outputs()
        missing = {name: [c for c in cases if (name, c.request, c.voice) not in made] for name in names}
        names = sorted((name for name in names if missing[name]), key=lambda name: sorted(PROTOCOLS[name].settings))
        for settings, group in groupby(names, key=lambda name: PROTOCOLS[name].settings):
            engine = Engine(replace(self.config, **settings))
            together = list(group)
            self._add_voices(engine, together)
            for name in together:
                self._generate(engine, name, missing[name])
            engine.close()

    def _add_voices(self, engine: Engine, names: Sequence[str]) -> None:
        made, prefixes = self.run.outputs(), self.run.prefixes()
        for voice, chosen in self.voices.items():
            if chosen.path.is_file() and any(PROTOCOLS[name].settings.keys() & _PREPARATION for name in names):
                raise ConfigError(f"{chosen.path} is prepared already; {', '.join(names)} would do that in another way")
            prepared = engine.workshop.load(chosen.path)
            engine.voices[voice] = engine.add_voice(prepared)
            if (CLIP, -1, voice) not in made:
                self.run.add(_clip(prepared))
            for name in names:
                # By the reference's protocol the codec starts from nothing.
                goes_on = PROTOCOLS[name].cloned and engine.config.boundary == "seamless"
                if goes_on and (name, voice) not in prefixes:
                    self.run.add_prefix(name, voice, prepared.tokens.tolist())

    def _generate(self, engine: Engine, name: str, cases: Sequence[Case]) -> None:
        began, audio_s = time.monotonic(), 0.0
        for count, output in enumerate(speak(engine, name, PROTOCOLS[name], cases), start=1):
            self.run.add(output)
            audio_s += len(output.codes[0]) * engine.frame_s if output.codes else 0.0
            took_s = time.monotonic() - began
            told = f"\r{name}: {count} of {len(cases)}, {audio_s:.0f} s of audio in {took_s:.0f} s"
            print(told, end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)

    def take_sources(self, folder: Path, cases: Sequence[Case]) -> None:
        """Add recordings of the requests, FOLDER/REQUEST-VOICE.wav with the request's number in four digits."""
        made = self.run.outputs()
        encoder = MimiEncoder.load(self.files.mimi, codebooks=self.files.config.codebooks)
        rate = load_mimi_config(self.files.mimi / "config.json").sample_rate
        for case in cases:
            path = folder / f"{case.request:04d}-{case.voice}.wav"
            if path.exists() and (CODEC, case.request, case.voice) not in made:
                source = Output(SOURCE, case.request, case.voice, case.text, wav=str(path.resolve()))
                codes: Codes = encoder.encode(load_clip(path, rate)).tolist()
                self.run.add(source)
                self.run.add(replace(source, protocol=CODEC, codes=codes, wav=""))


def _clip(prepared: PreparedVoice) -> Output:
    """The first speaker's clip, who is the one that speaks the requests."""
    text = " ".join(word.text for word in prepared.words[0])
    return Output(CLIP, -1, prepared.name, text, codes=prepared.tokens[:, : prepared.clip_frames[0]].tolist())


def speak(engine: Engine, name: str, protocol: Protocol, cases: Sequence[Case]) -> Iterator[Output]:
    """The cases' outputs, in the order in which they end. The engine must have no live streams."""
    streams = ((case, _stream(engine, protocol, case)) for case in cases)
    entering, going = next(streams, None), dict[Stream, Case]()
    first_word_s = dict[Stream, float]()
    ended: list[tuple[Stream, Finished]] = []

    def emit(stream: Stream, event: Event) -> None:
        if isinstance(event, Failed):
            raise RuntimeError(f"{name}, {going[stream]}: {event.error}")
        if isinstance(event, Finished):
            ended.append((stream, event))
        elif isinstance(event, AudioChunk) and event.words:
            first_word_s.setdefault(stream, event.words[0].start_s)

    while entering or going:
        while entering and engine.has_room_for(entering[1]):
            case, stream = entering
            going[stream] = case
            engine.start(stream)
            entering = next(streams, None)
        engine.step(engine.live, emit)
        for stream, event in ended:
            case = going.pop(stream)
            codes = protocol.deliver(stream.boundary, engine.model_config)
            engine.guard.codec(codes)
            yield Output(
                name,
                case.request,
                case.voice,
                case.text,
                seed=case.seed,
                reason=event.reason,
                first_word_s=round(first_word_s.pop(stream, 0.0), 3),
                codes=codes.tolist(),
            )
        ended.clear()


def _stream(engine: Engine, protocol: Protocol, case: Case) -> Stream:
    voice = case.voice if protocol.cloned else NO_VOICE
    stream = engine.parse(Request(case.text, voice=voice, seed=case.seed))
    protocol.spoil(stream.boundary, engine.config, engine.model_config)
    return stream
