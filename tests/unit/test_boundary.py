"""The boundary protocol over random shapes, voices and scripts, driven by a model that decides at random."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dia2_engine.boundary import BoundaryStream
from dia2_engine.config import Boundary
from dia2_engine.context import StreamLimits, steps_needed
from dia2_engine.grid import UNFILLED, Ids
from dia2_engine.prefix import Prefix, build_prefix
from dia2_engine.text.parser import parse_script
from dia2_engine.text.state_machine import Entry, TextMachine, TextTokens
from dia2_engine.types import BEFORE_START, FROM_PREFIX, SAMPLED
from dia2_engine.voice.plan import PrefixPlan, TimedWord, check_plan, plan_prefix

TOKENS = TextTokens(bos=1, new_word=2, pad=3, zero=7, spk1=90, spk2=91)
TEXT_VOCAB, CODEC_VOCAB, BOS = 100, 50, 50
FRAME_RATE = 12.5
TAIL = 6
CONTEXT = 260


def encode(text: str) -> list[int]:
    """One to four pieces a word, after a speaker tag if there is one; some characters have none."""
    ids: list[int] = []
    for word in text.split():
        if word in ("[S1]", "[S2]"):
            ids.append(TOKENS.spk1 if word == "[S1]" else TOKENS.spk2)
        else:
            ids += [8 + ord(char) % 80 for char in word if char.isprintable()][:4]
    return ids


def machine(lookahead: int) -> TextMachine:
    return TextMachine(TOKENS, lookahead_words=lookahead, max_padding=6, initial_padding=2)


@st.composite
def timed_clips(draw: st.DrawFn) -> tuple[list[TimedWord], int]:
    """A clip's words and its length in frames; words may crowd and may start in its last frame."""
    frames = draw(st.integers(1, 30))
    seconds = frames / FRAME_RATE
    starts = sorted(draw(st.lists(st.floats(0, seconds * 0.999), min_size=1, max_size=6)))
    words = draw(st.lists(st.sampled_from(["a", "Tom.", "hello", "I"]), min_size=len(starts), max_size=len(starts)))
    ends = [*starts[1:], seconds]
    return [TimedWord(w, s, e) for w, s, e in zip(words, starts, ends, strict=True)], frames


@dataclass(frozen=True)
class Setting:
    """One random deployment and voice."""

    delays: tuple[int, ...]
    lookahead: int
    prefix: Prefix | None
    entries: tuple[Entry, ...]  # of the prefix

    def open(self, script: str, *, boundary: Boundary, kick: bool, max_frames: int) -> BoundaryStream:
        text = self.prefix.machine.copy() if self.prefix else machine(self.lookahead)
        text.entries.extend(parse_script([script], encode, TOKENS, FRAME_RATE))
        return BoundaryStream(
            machine=text,
            delays=self.delays,
            bos=BOS,
            prefix=self.prefix,
            boundary=boundary,
            kick=kick,
            limits=StreamLimits(CONTEXT, max_frames, TAIL),
            fresh=machine(self.lookahead),
        )


@st.composite
def recorded_plans(draw: st.DrawFn, lookahead: int) -> PrefixPlan:
    """Voices as they are prepared: one or two clips."""
    clips = draw(st.lists(timed_clips(), min_size=1, max_size=2))
    plan = plan_prefix(clips, encode, FRAME_RATE, cooldown_frames=draw(st.integers(0, 12)))
    check_plan(plan, machine(lookahead), plan.frames)  # a fitted plan is always safe
    return plan


@st.composite
def shortest_plans(draw: st.DrawFn, lookahead: int) -> PrefixPlan:
    """Voices shorter than a recording can be, down to one frame: only what `check_plan` demands."""
    entries, steps, free = [], [], 0
    for _ in range(draw(st.integers(1, 3))):
        steps.append(free + draw(st.integers(0, 2)))
        entries.append(Entry(tuple(draw(st.lists(st.integers(8, 89), min_size=1, max_size=3))), "word", 0))
        # With a second stream a word's first piece takes the boundary's place in the main one.
        free = steps[-1] + len(entries[-1].tokens) + (lookahead == 0)
    plan = PrefixPlan(tuple(entries), tuple(steps), (free + draw(st.integers(0, 2)),))
    check_plan(plan, machine(lookahead), plan.frames)
    return plan


@st.composite
def deployments(draw: st.DrawFn) -> Setting:
    delays = tuple(draw(st.lists(st.integers(0, 20), min_size=1, max_size=5)))
    lookahead = draw(st.integers(0, 3))
    kind = draw(st.sampled_from([None, recorded_plans, shortest_plans]))
    if kind is None:
        return Setting(delays, lookahead, None, ())
    plan = draw(kind(lookahead))
    text = machine(lookahead)
    text.entries.extend(plan.entries)
    tokens = np.random.default_rng(draw(st.integers(0, 9))).integers(0, CODEC_VOCAB, (len(delays), plan.frames))
    prefix = build_prefix(text, tokens, plan.new_word_steps, delays, BOS)
    return Setting(delays, lookahead, prefix, plan.entries)


WORDS = st.sampled_from(
    ["Hello", "there,", "[S1]", "[S2]", '<break time="0.4s"/>', "<break time='1s'>", "<laugh>", "\U0001f600", "\x00",
     "\x07bell", "it\u2019s", "10:30", "\n", "\t", "\u200b", "na\u00efve", "[S3]", "x" * 40]
)  # fmt: skip
OVERLONG = st.lists(WORDS, min_size=1, max_size=6).map(lambda words: " ".join(words * 40))  # mostly beyond CONTEXT
SCRIPTS = st.lists(WORDS, max_size=14).map(" ".join) | st.text(max_size=60) | OVERLONG


@dataclass
class Played:
    """What a stream did, step by step."""

    columns: dict[int, Ids]  # by step, as the model read them
    samples: dict[int, Ids]  # by column, as the model sampled them
    frames: list[Ids]
    emitted_at: list[int]  # step after which each frame came out


def play(stream: BoundaryStream, seed: int) -> Played:
    """Drive a stream to its end with random actions and codes."""
    rng, codes = random.Random(seed), np.random.default_rng(seed)
    stream.turn()
    played = Played({}, {}, [], [])
    while stream.end is None:
        step = stream.step
        assert step < CONTEXT, "a position beyond the context"
        column = stream.column()
        assert ((column[:2] >= 0) & (column[:2] < TEXT_VOCAB)).all()
        assert ((column[2:] >= 0) & (column[2:] <= BOS)).all(), "a cell was read before it was written"
        played.columns[step] = column
        stream.take_action(rng.random() < 0.3)
        given, kind = stream.given()
        ids = codes.integers(0, CODEC_VOCAB, len(column) - 2)
        sampled = stream.grid.sampled(step + 1)
        assert ((kind == SAMPLED) == sampled).all()
        assert (given[kind == BEFORE_START] == BOS).all()
        assert ((given[kind == FROM_PREFIX] >= 0) & (given[kind == FROM_PREFIX] < CODEC_VOCAB)).all()
        if sampled[1:].any():
            assert stream.samples_audio()
        played.samples[step + 1] = ids
        frames = stream.advance()
        stream.take_codes(step + 1, ids)
        np.testing.assert_array_equal(np.where(sampled, ids, given), stream.grid.cells[:, step + 1])
        assert stream.step <= stream.most_steps, "more columns than were set aside for it"
        for frame in frames:
            played.frames.append(stream.grid.frame(frame))
            played.emitted_at.append(step)
    return played


def spoken_words(script: str) -> list[str]:
    return [entry.text for entry in parse_script([script], encode, TOKENS, FRAME_RATE) if entry.tokens]


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(deployments(), SCRIPTS, st.booleans(), st.integers(1, 200), st.integers(0, 2**32))
def test_seamless_streams_are_safe(deployment: Setting, script: str, kick: bool, max_frames: int, seed: int) -> None:
    stream = deployment.open(script, boundary="seamless", kick=kick, max_frames=max_frames)
    played = play(stream, seed)
    prefix = deployment.prefix
    first = prefix.frames if prefix else int(min(deployment.delays) == 0)
    assert stream.first_frame == first
    assert len(played.frames) == stream.frames_out <= max_frames

    for index, frame in enumerate(played.frames):
        # Complete, in range, and made of exactly the samples of its own columns: nothing of the prefix.
        want = [played.samples[first + index + delay][c] for c, delay in enumerate(deployment.delays)]
        assert frame.tolist() == want
        assert ((frame >= 0) & (frame < CODEC_VOCAB)).all()
        # And as early as it can be: right after the step that made its last cell.
        assert played.emitted_at[index] == first + index + max(deployment.delays) - 1

    for step, column in played.columns.items():
        for c, delay in enumerate(deployment.delays):
            frame_index = step - delay
            if frame_index < 0:
                assert column[2 + c] == BOS
            elif prefix and frame_index < prefix.frames:
                assert column[2 + c] == prefix.tokens[c, frame_index], "the prefix's tail must be teacher-forced"
            elif step in played.samples:
                assert column[2 + c] == played.samples[step][c]

    script_words = spoken_words(script)
    got = [text for text, _ in stream.words]
    assert got == script_words[: len(got)], "each word once, in order, none of the prefix's"
    starts = [start for _, start in stream.words]
    assert starts == sorted(set(starts))
    assert all(start >= first or prefix is None for start in starts)
    if stream.end == "stop":
        assert got == script_words
        assert all(start < first + stream.frames_out for start in starts), "a word starts in the audio that is sent"
    else:
        assert stream.frames_out == max_frames or stream.step == CONTEXT
    # (With no delay at all, frame P is made by step P-1, and a stream of one frame ends before the kick at step P.)
    if kick and prefix and script_words and stream.step > first and not script.lstrip().startswith("<break"):
        entry = parse_script([script], encode, TOKENS, FRAME_RATE)[0]
        assert not entry.tokens or starts[0] == first, "a kicked request starts at once"


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(deployments(), SCRIPTS)
def test_cut_and_replay_equal_the_whole_prefix(deployment: Setting, script: str) -> None:
    """Columns before the cut depend on no request; with the replay they are what feeding everything would give."""
    prefix = deployment.prefix
    if prefix is None:
        return
    stream = deployment.open(script, boundary="seamless", kick=True, max_frames=1)
    whole = machine(deployment.lookahead)
    whole.entries.extend(deployment.entries)
    whole.entries.extend(parse_script([script], encode, TOKENS, FRAME_RATE))
    text = [(TOKENS.bos, TOKENS.pad)]
    for step in range(prefix.frames):
        made = whole.step(step, step in prefix.word_steps, forced=True)
        text.append((made.main, made.second))
    columns = np.concatenate([prefix.columns, stream.turn().columns])
    assert len(columns) == stream.step
    assert columns[:, :2].tolist() == [list(pair) for pair in text[: len(columns)]]
    assert stream.text == text[stream.step]
    assert (columns[:, 2:] != UNFILLED).all()


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(deployments(), SCRIPTS, st.integers(0, 2**32))
def test_reference_streams_stay_legal(deployment: Setting, script: str, seed: int) -> None:
    stream = deployment.open(script, boundary="reference", kick=False, max_frames=500)
    played = play(stream, seed)
    for frame in played.frames:
        assert ((frame >= 0) & (frame < CODEC_VOCAB)).all()
    if stream.end == "stop":
        assert [text for text, _ in stream.words] == spoken_words(script)
    assert stream.step + stream.cache_shift <= CONTEXT + 1


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(deployments(), SCRIPTS, st.integers(0, 2**32))
def test_budget_is_the_fewest_steps(deployment: Setting, script: str, seed: int) -> None:
    """Admission refuses exactly what cannot end with `stop` within the context, whatever the model does."""
    prefix = deployment.prefix
    entries = parse_script([script], encode, TOKENS, FRAME_RATE)
    needed = steps_needed(entries, prefix.frames if prefix else 0, max(deployment.delays), TAIL)
    stream = deployment.open(script, boundary="seamless", kick=True, max_frames=10_000)
    played = play(stream, seed)
    if stream.end == "stop":
        assert max(played.columns) + 1 >= needed
    if needed > CONTEXT:
        assert stream.end == "length"
