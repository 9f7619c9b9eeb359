"""Rows of training against the engine: what it would feed, what it would sample, what it leaves to the model."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from dia2_engine.boundary import BoundaryStream
from dia2_engine.context import TAIL_FRAMES, StreamLimits
from dia2_engine.model.config import ModelConfig
from dia2_engine.prefix import Prefix, build_prefix
from dia2_engine.text.parser import parse_script
from dia2_engine.text.state_machine import TextMachine
from dia2_engine.types import FROM_PREFIX, SAMPLED
from training.lm.conversation import Conversation, Corpus
from training.lm.rows import FORCED, Builder, Rows
from training.lm.shape import FRAME_RATE, SPEAKER_TAGS, SPECIAL_TOKENS, Shape, Stack
from training.lm.tokenizer import save_tokenizer, train_tokenizer
from training.tokens import SILENCE_FRAMES, Utterance

STACK = Stack(layers=2, width=32, mlp=48, heads=4, kv_heads=2, head=8)
SHAPE = Shape(
    decoder=STACK,
    depformer=Stack(layers=2, width=24, mlp=32, heads=2, kv_heads=2, head=16),
    groups=(0, 1, 1),
    codebook_size=16,
    delays=(3, 5, 5, 5),
    steps=200,
)
TEXTS = [
    "Hello there, how are you?",
    "It left at 12.50 today!",
    "Extraordinarily incomprehensible conversations",
    "So be it.",
    "I'm O'Brien",
]
SPEAKERS = ("s1", "s2", "s3")
SEEDS = range(50)


def utterances() -> list[Utterance]:
    """Every speaker says every text. Codebook 0 counts the frames, codebook 1 names the speaker."""
    chance, said = random.Random(1), []
    for speaker, name in enumerate(SPEAKERS):
        for text in TEXTS:
            onsets_s = list(
                np.cumsum([chance.uniform(0.0, 0.1), *(chance.uniform(0.1, 0.5) for _ in text.split()[1:])])
            )
            end_s = float(onsets_s[-1]) + chance.uniform(0.2, 0.9)
            frames = int(np.ceil(end_s * FRAME_RATE)) + SILENCE_FRAMES
            codes = np.array(
                [
                    np.arange(frames) % 16,
                    np.full(frames, speaker),
                    *np.random.default_rng(1).integers(16, size=(2, frames)),
                ]
            )
            said.append(Utterance(text, name, [float(onset_s) for onset_s in onsets_s], end_s, codes.astype(np.int16)))
    return said


def write_run(folder: Path, shape: Shape = SHAPE) -> Path:
    """What a run's folder has from its beginning."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(TEXTS, 340)
    save_tokenizer(tokenizer, folder)
    (folder / "config.json").write_text(json.dumps(shape.config(tokenizer.get_vocab_size())), "utf-8")
    return folder


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(write_run(tmp_path_factory.mktemp("run")), Corpus(utterances()))


def engine_stream(builder: Builder, said: Conversation) -> tuple[BoundaryStream, Prefix | None]:
    """The stream that the engine makes of the voice and the script."""
    config, machine, prefix = builder.config, builder.machine.copy(), None
    if said.voice is not None:
        machine.entries.extend(said.voice.entries)
        tokens = said.codes[:, : said.voice.frames].astype(np.int64)
        prefix = build_prefix(machine, tokens, said.voice.new_word_steps, config.delays, config.audio_bos)
        machine = prefix.machine.copy()
    machine.entries.extend(parse_script([said.script], builder.encode, machine.tokens, FRAME_RATE))
    limits = StreamLimits(config.max_context_steps, 10**6, TAIL_FRAMES)
    stream = BoundaryStream(
        machine=machine,
        delays=config.delays,
        bos=config.audio_bos,
        prefix=prefix,
        boundary="seamless",
        kick=said.kick,
        limits=limits,
        fresh=builder.machine,
    )
    return stream, prefix


def is_free(machine: TextMachine, step: int, *, forced: bool) -> bool:
    """Whether it makes a difference which action the model proposes."""
    return not forced and machine.copy().step(step, True) != machine.copy().step(step, False)


def run_engine(builder: Builder, said: Conversation, row: Rows) -> int:
    """Compare a row with the engine's stream step by step; returns after how many steps the stream ended."""
    columns, actions = row.columns[0].astype(np.int64), row.actions[0]
    stream, prefix = engine_stream(builder, said)
    begin = 0
    if prefix is not None:
        fed = np.concatenate([prefix.columns, stream.turn().columns])
        begin = prefix.frames
        np.testing.assert_array_equal(columns[:begin], fed)
    else:
        assert not stream.turn().columns.size
    assert (actions[:begin] == FORCED).all()
    chance = random.Random(0)
    while stream.end is None:
        step = stream.step
        np.testing.assert_array_equal(columns[step], stream.column())
        kicked = said.kick and step == begin
        free = stream.machine.end_step is None and is_free(stream.machine, step, forced=kicked)
        assert (actions[step] != FORCED) == free
        # Where the row says that it makes no difference, it must make none.
        stream.take_action(bool(actions[step]) if free else chance.random() < 0.5)
        given, kind = stream.given()
        np.testing.assert_array_equal(kind != SAMPLED, stream.grid.sampled(step + 1) == 0)
        np.testing.assert_array_equal(columns[step + 1, 2:][kind == FROM_PREFIX], given[kind == FROM_PREFIX])
        assert (columns[step + 1, 2:][kind == SAMPLED] < builder.config.codec_vocab).all()
        stream.advance()
        stream.take_codes(step + 1, columns[step + 1, 2:])
    return stream.step


def test_a_row_is_what_the_engine_feeds_and_samples(builder: Builder) -> None:
    seen: set[tuple[object, ...]] = set()
    for seed in SEEDS:
        said = builder.writer.draw(seed)
        row = builder.lay_out(said)
        assert run_engine(builder, said, row) == row.heard[0]
        seen |= {("voice", said.voice is not None, said.kick), ("ends", bool(row.heard[0] < SHAPE.steps))}
    assert len(seen) == 5  # a kick needs a voice


def test_every_word_is_spoken_in_order(builder: Builder) -> None:
    for seed in SEEDS:
        said = builder.writer.draw(seed)
        row = builder.lay_out(said)
        script = parse_script([said.script], builder.encode, builder.machine.tokens, FRAME_RATE)
        entries = (*(said.voice.entries if said.voice else ()), *script)
        expected = [piece for entry in entries for piece in entry.tokens]
        main = [piece for piece in row.columns[0, 1:, 0].tolist() if piece != builder.machine.tokens.pad]
        assert main == expected[: len(main)]
        assert len(main) == len(expected) or row.heard[0] == SHAPE.steps


def test_the_script_is_that_of_the_audio(builder: Builder) -> None:
    """Each word of a script begins in the frame in which its utterance says so, spoken by its speaker."""
    onsets = {(said.speaker, said.text): [int(s * FRAME_RATE) for s in said.onsets_s] for said in utterances()}
    for seed in SEEDS:
        said = builder.writer.draw(seed)
        parts = re.split(r'<break time="([0-9.]+)s"/>', re.sub(r"\[S[12]\] ", "", said.script))
        starts, previous = list(said.starts), 0
        for index, part in enumerate(parts):
            if index % 2:
                begin = starts.pop(0)
                assert previous < begin
                assert starts[0] - begin == round(float(part) * FRAME_RATE)
            while part.strip() and not index % 2:
                text = next(text for text in TEXTS if part.strip().startswith(text))
                part = part.strip().removeprefix(text)
                count = len(text.split())
                own, starts = starts[:count], starts[count:]
                speaker = SPEAKERS[said.codes[1, own[0]]]
                assert said.codes[0, own].tolist() == [onset % 16 for onset in onsets[speaker, text]]
                previous = own[-1]
        assert not starts
        assert said.end > previous


def test_words_begin_at_their_audio_unless_the_machine_decides(builder: Builder) -> None:
    early = late = exact = 0
    for seed in SEEDS:
        said = builder.writer.draw(seed)
        actions = builder.lay_out(said).actions[0]
        script = parse_script([said.script], builder.encode, builder.machine.tokens, FRAME_RATE)
        stream, prefix = engine_stream(builder, said)
        stream.turn()
        for stream.step in range(prefix.frames if prefix else 0, len(actions)):
            stream.take_action(actions[stream.step] == 1)
        spoken = [start for entry, start in zip(script, said.starts, strict=True) if entry.tokens]
        for (_, frame), start in zip(stream.words, spoken, strict=False):
            exact, early, late = exact + (frame == start), early + (frame < start), late + (frame > start)
            assert frame >= start or actions[frame] == FORCED
            assert (actions[start:frame] != 0).all()  # nothing that is due is told to wait
    assert min(exact, early, late) > 20


def test_speakers_have_their_own_voices(builder: Builder) -> None:
    """The speakers of a row are two at most, and where there are clips of both, each speaks with its own voice."""
    kinds = set()
    for seed in range(200):
        said = builder.writer.draw(seed)
        voices = list(dict.fromkeys(said.codes[1].tolist()))
        assert len(voices) <= 2
        kinds.add((said.voice is None, len(voices), "[S2]" in said.script, "<break" in said.script))
        if said.voice and len(said.voice.clip_frames) == 2:
            first, second = said.codes[1, 0], said.codes[1, said.voice.clip_frames[0]]
            frame = said.voice.frames + SHAPE.delays[0]
            if "[S2]" not in said.script:
                assert (said.codes[1, frame:] == first).all()
            assert set(said.codes[1].tolist()) == {first, second}
    assert len(kinds) > 8


def test_the_same_seed_gives_the_same_row(builder: Builder) -> None:
    once, again, other = builder.rows([1, 2]), builder.rows([2]), builder.rows([3])
    assert np.array_equal(once.columns[1:], again.columns)
    assert np.array_equal(once.actions[1:], again.actions)
    assert np.array_equal(once.heard[1:], again.heard)
    assert not np.array_equal(again.columns, other.columns)


def test_the_tokenizer_gives_back_what_it_was_given(builder: Builder, tmp_path: Path) -> None:
    config: ModelConfig = builder.config
    tokenizer = train_tokenizer(TEXTS, 340)
    for text in ("O'Brien", "$1,250.75?", "naïve", "12.50", "HELLO", "(well...)"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(8))
    assert [tokenizer.token_to_id(tag) for tag in SPEAKER_TAGS] == [config.text_vocab - 2, config.text_vocab - 1]
    assert builder.encode("[S2] Hello") == [config.text_vocab - 1, *builder.encode("Hello")]
    assert len(builder.encode("1250")) == 4
