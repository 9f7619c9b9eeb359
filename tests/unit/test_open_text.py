"""Text that comes while it is spoken, over random shapes, voices, scripts and arrivals, without a model."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dia2_engine.boundary import BoundaryStream
from dia2_engine.context import StreamLimits, carried_room
from dia2_engine.grid import Ids
from dia2_engine.prefix import Heard, build_prefix
from dia2_engine.text.parser import ScriptReader, parse_script
from dia2_engine.text.state_machine import Entry

from .test_boundary import (
    BOS,
    CODEC_VOCAB,
    CONTEXT,
    FRAME_RATE,
    SCRIPTS,
    TAIL,
    TEXT_VOCAB,
    TOKENS,
    Setting,
    deployments,
    encode,
    machine,
    spoken_words,
)

MANY = 1 << 40  # frames: no limit


def open_stream(deployment: Setting, *, kick: bool = True, script: str | None = None) -> BoundaryStream:
    """A session; or, with a script, the request that has all of it at once."""
    text = deployment.prefix.machine.copy() if deployment.prefix else machine(deployment.lookahead)
    text.open = script is None
    text.entries.extend(parse_script([script or ""], encode, TOKENS, FRAME_RATE))
    room = carried_room(
        CONTEXT, deployment.prefix.frames if deployment.prefix else 0, max(deployment.delays), text.max_padding
    )
    return BoundaryStream(
        machine=text,
        delays=deployment.delays,
        bos=BOS,
        prefix=deployment.prefix,
        boundary="seamless",
        kick=kick,
        limits=StreamLimits(CONTEXT, MANY, TAIL, min(room, 60), room),
        fresh=machine(deployment.lookahead),
    )


@dataclass
class Session:
    """A stream with its reader, and a model that decides at random, but always the same in the same place."""

    stream: BoundaryStream
    seed: int
    reader: ScriptReader = field(default_factory=lambda: ScriptReader(encode, TOKENS, FRAME_RATE, TOKENS.spk1))
    started: bool = False
    contexts: int = 0
    columns: list[list[int]] = field(default_factory=list)  # that the model has read, in order
    fed: dict[int, list[int]] = field(default_factory=dict)  # what stands in the KV cache, by position
    frames: list[list[int]] = field(default_factory=list)  # emitted
    words: list[str] = field(default_factory=list)
    decoded: list[list[int]] = field(default_factory=list)  # by the codec: what is emitted and what is heard of others
    decoded_before: int = 0  # this context
    heard: Heard | None = None  # last

    def say(self, text: str, *, flush: bool = False, close: bool = False) -> None:
        self.stream.append(self.reader.read(text, to_its_end=flush or close))
        if flush:
            self.stream.flush()
        if close:
            self.stream.close()

    def hear(self, frames: int, words: int) -> None:
        """Somebody else speaks, as soon as all that the session has to say is out."""
        self.say("", flush=True)
        self.run()
        assert self.stream.is_said
        shape = len(self.stream.grid.delays), frames
        tokens = np.random.default_rng([self.seed, frames]).integers(0, CODEC_VOCAB, shape)
        entries = tuple(Entry((TOKENS.spk2, 40 + word, 41 + word), f"their{word}", 2) for word in range(words))
        self.heard = Heard(tokens, entries, tuple(5 * word + 1 for word in range(words)))
        self.stream.hear(self.heard)

    def run(self, steps: int = MANY) -> None:
        """Steps until it waits or ends, or so many."""
        while steps and self.stream.end is None and not self.stream.waits:
            if not self.started and not self.stream.may_start:
                return
            self.started = True
            self._turn()
            self._step()
            steps -= 1

    def _turn(self) -> None:
        while self.stream.turns:
            replay = self.stream.turn()
            if replay.from_voice:
                self.contexts += 1
                self.decoded_before = len(self.decoded)
                prefix = self.stream._prefix
                self.fed = dict(enumerate(prefix.columns.tolist() if prefix else []))
            assert replay.start <= len(self.fed), "a hole in the cache"
            self._feed(replay.start, replay.columns)
            self.decoded += replay.heard.T.tolist()
            if replay.heard.shape[1]:
                self._check_heard()

    def _check_heard(self) -> None:
        """The model has read, behind what was said, what was heard: its words, each at its own step."""
        assert self.heard is not None
        first = (self.stream.first_frame or 0) + self.stream.frames_out - self.heard.frames
        main = [self.fed[position][0] if position in self.fed else -1 for position in range(CONTEXT)]
        for entry, step in zip(self.heard.entries, self.heard.steps, strict=True):
            start = first + step + (1 if self.stream.machine.lookahead_words else 2)
            assert main[start : start + len(entry.tokens)] == list(entry.tokens)

    def _feed(self, start: int, columns: Ids) -> None:
        for position, column in enumerate(columns.tolist(), start):
            assert 0 <= min(column[:2]) <= max(column[:2]) < TEXT_VOCAB
            assert 0 <= min(column[2:]) <= max(column[2:]) <= BOS, "a cell was read before it was written"
            assert position < CONTEXT
            self.fed[position] = column

    def _step(self) -> None:
        stream, step = self.stream, self.stream.step
        for position in [p for p in self.fed if p > step]:
            del self.fed[position]  # what an earlier end left there is overwritten before it is read
        column = stream.column()
        self._feed(step, column[None])
        assert sorted(self.fed) == list(range(step + 1)), "all positions before a step have been fed"
        self.columns.append(column.tolist())
        rng = random.Random(hash((self.seed, self.contexts, step)))
        stream.take_action(rng.random() < 0.3)
        given, kind = stream.given()
        sampled = stream.grid.sampled(step + 1)
        assert ((kind == 0) == sampled).all()
        ids = np.random.default_rng([self.seed, self.contexts, step]).integers(0, CODEC_VOCAB, len(column) - 2)
        frames = stream.advance()
        stream.take_codes(step + 1, ids)
        np.testing.assert_array_equal(np.where(sampled, ids, given), stream.grid.cells[:, step + 1])
        for index in frames:
            frame = stream.grid.frame(index)
            assert ((frame >= 0) & (frame < CODEC_VOCAB)).all()
            self.frames.append(frame.tolist())
            self.decoded.append(frame.tolist())
        offset = stream.first_frame or 0
        while stream.words and stream.words[0][1] - offset < len(self.frames):
            self.words.append(stream.words.popleft()[0])


def cut(text: str, seed: int) -> list[str]:
    """The text in random pieces, some of them empty."""
    rng = random.Random(seed)
    places = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(12)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(deployments(), SCRIPTS, st.booleans(), st.integers(0, 2**32))
def test_text_in_pieces_gives_what_the_whole_gives(deployment: Setting, script: str, kick: bool, seed: int) -> None:
    """However it is cut and whenever it comes: the model reads the same columns, so it makes the same audio."""
    if not spoken_words(script):
        return
    whole = Session(open_stream(deployment, kick=kick, script=script), seed)
    whole.run()
    assert whole.stream.end == "stop"
    assert whole.words == spoken_words(script)
    rng = random.Random(seed)
    session = Session(open_stream(deployment, kick=kick), seed)
    for piece in cut(script, seed):
        session.say(piece)
        session.run(rng.choice([0, 1, 5, 40, MANY]))
    session.say("", close=True)
    session.run()
    assert session.stream.end == "stop"
    assert session.columns == whole.columns
    assert session.frames == whole.frames
    assert session.words == whole.words


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(deployments(), SCRIPTS, st.integers(0, 2**32))
def test_a_flush_speaks_what_the_text_so_far_gives(deployment: Setting, script: str, seed: int) -> None:
    """All of it comes out as if the text ended there, and then the session waits instead of ending."""
    if not spoken_words(script):
        return
    whole = Session(open_stream(deployment, script=script), seed)
    whole.run()
    session = Session(open_stream(deployment), seed)
    session.say(script, flush=True)
    session.run()
    assert session.stream.end is None
    assert session.stream.waits
    assert session.frames == whole.frames
    assert session.words == whole.words
    session.say("", close=True)
    assert session.stream.end == "stop"
    assert session.frames == whole.frames


PIECES = st.lists(
    st.tuples(
        SCRIPTS.map(lambda script: script[:80]) | st.sampled_from(["hel", "lo ", " ", ""]),
        st.sampled_from(["", "", "flush"]),
        st.sampled_from([0, 1, 3, 10, 30, 100, MANY]),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(deployments(), PIECES, st.integers(0, 2**32))
def test_any_order_of_pieces_flushes_and_steps_speaks_every_word_once(
    deployment: Setting, pieces: Sequence[tuple[str, str, int]], seed: int
) -> None:
    """Nothing is read before it is written, nothing beyond the context, and no frame that is out is changed."""
    session, said = Session(open_stream(deployment), seed), []
    for text, flush, steps in pieces:
        frames = list(session.frames)
        session.say(text, flush=flush == "flush")
        said.append(text + (" " if flush else ""))
        session.run(steps)
        assert session.frames[: len(frames)] == frames
    session.say("", close=True)
    session.run()
    words = said_words(said, pieces)
    assert session.words == words
    if words:
        assert session.stream.end == "stop"


HEARD = st.tuples(st.integers(0, 4), st.integers(0, 30))  # words, and frames of silence behind them


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    deployments(), st.lists(st.tuples(SCRIPTS.map(lambda script: script[:60]), HEARD), max_size=6), st.integers(0, 99)
)
def test_others_are_heard_between_turns(
    deployment: Setting, turns: Sequence[tuple[str, tuple[int, int]]], seed: int
) -> None:
    """What they say is in the model's and the codec's past like a voice's prefix, and none of it is emitted."""
    session, said = Session(open_stream(deployment), seed), []
    for text, (words, silence) in turns:
        session.hear(5 * words + silence + 3, words)
        session.say(text, flush=True)
        said += spoken_words(text)
        session.run()
        assert session.words == said
        past = session.decoded[session.decoded_before :]
        end = (session.stream.first_frame or 0) + session.stream.frames_out
        assert [session.stream.grid.frame(frame).tolist() for frame in range(end - len(past), end)] == past
    session.say("", close=True)
    session.run()
    assert session.words == said
    assert session.stream.end == "stop" or not session.started


def test_others_are_heard_behind_a_voice_whose_last_word_begins_in_its_last_frame(subtests: pytest.Subtests) -> None:
    """With an instant codebook that frame's step comes after the replay."""
    for delays, lookahead in itertools.product([(0,), (0, 2)], [0, 1, 2]):
        with subtests.test(delays=delays, lookahead=lookahead):
            text = machine(lookahead)
            entries = [Entry((8,), "the", 0), Entry((9,), "voice", 0)]
            text.entries.extend(entries)
            prefix = build_prefix(text, np.full((len(delays), 4), 7), [1, 3], delays, BOS)
            session = Session(open_stream(Setting(delays, lookahead, prefix, tuple(entries))), 0)
            session.hear(8, 1)
            session.say("Hello", close=True)
            session.run()
            assert session.words == ["Hello"]


def said_words(said: Sequence[str], pieces: Sequence[tuple[str, str, int]]) -> list[str]:
    """What a reader that ends its words at each flush reads."""
    reader = ScriptReader(encode, TOKENS, FRAME_RATE, TOKENS.spk1)
    entries = []
    for text, flush, _ in pieces:
        entries += reader.read(text, to_its_end=flush == "flush")
    entries += reader.read("", to_its_end=True)
    return [entry.text for entry in entries if entry.tokens]


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(deployments(), st.integers(100, 400), st.integers(0, 2**32))
def test_a_script_beyond_the_context_is_spoken_without_a_seam(deployment: Setting, count: int, seed: int) -> None:
    """Every word once and in order, every frame from its own cells, in as many contexts as it takes."""
    words = [f"w{index % 7}." if index % 9 == 8 else f"w{index % 7}" for index in range(count)]
    session = Session(open_stream(deployment, script=" ".join(words)), seed)
    session.run()
    assert session.stream.end == "stop"
    assert session.words == words
    assert session.contexts >= count * 3 // CONTEXT


def test_a_pause_longer_than_a_context_is_kept(subtests: pytest.Subtests) -> None:
    for lookahead in (0, 2):
        with subtests.test(lookahead=lookahead):
            deployment = Setting((0, 2, 2), lookahead, None, ())
            session = Session(open_stream(deployment, script='one <break time="60s"/> two three'), 1)
            session.run()
            assert session.words == ["one", "two", "three"]
            assert 750 < len(session.frames) < 800
            assert session.contexts > 3
