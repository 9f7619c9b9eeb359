"""The engine on golden checkpoints: batching, snapshots, isolation, guards, budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dia2_engine import (
    AudioChunk,
    Cancelled,
    Engine,
    Event,
    Failed,
    Finished,
    IdOutOfRange,
    InvalidArgument,
    Request,
)
from dia2_engine.grid import Ids
from dia2_engine.stream import Stream
from tests.support import LINE, Recorder, audio_of, make_engine, speak, tokens_of, words_of, write_voices

REQUESTS = [
    Request(LINE, voice="solo", seed=1, cfg_scale=2.0),
    Request("[S1] Hello world", voice="duo", seed=2, cfg_scale=1.0),
    Request("[S1] a", voice="solo", seed=3, cfg_scale=3.0, top_k=5),
    Request("[S1] Please hold. [S2] Sure, no problem at all.", voice="duo", seed=4, cfg_scale=6.0, temperature=1.3),
    Request('One two <break time="1.0s"/> three four five', voice="none", seed=5, temperature=0.0),
    Request("[S2] It\u2019s ten o\u2019clock: time to go", voice="solo", seed=6, cfg_scale=2.0, top_k=0),
    Request("no speaker tag here", voice="none", seed=7, cfg_scale=1.5),
    Request("[S1] Thanks for waiting! Goodbye and good night.", voice="duo", seed=8),
]


@pytest.fixture(scope="module", params=["small", "lowrank", "textdep"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    voices = write_voices(tmp_path_factory.mktemp("voices"), request.param)
    return make_engine(request.param, slots=8, voices=str(voices))


@pytest.fixture(autouse=True)
def _slots_end_up_free(engine: Engine) -> Any:
    yield
    assert engine.live == []


def run_together(engine: Engine, requests: list[Request], arrivals: list[int]) -> tuple[Recorder, list[Stream]]:
    """Start each request at its step and run them side by side to their ends."""
    record, streams = Recorder(), [engine.parse(request) for request in requests]
    for turn in range(10_000):
        for stream, arrival in zip(streams, arrivals, strict=True):
            if arrival == turn:
                engine.start(stream)
        if turn > max(arrivals) and not engine.live:
            return record, streams
        engine.step(engine.live, record)
    raise AssertionError("the streams do not end")


def assert_same(record: Recorder, stream: Stream, single: Stream, events: list[Event]) -> None:
    """What a stream among others has given is what `single` gave, token by token and sample by sample."""
    np.testing.assert_array_equal(tokens_of(stream), tokens_of(single))
    assert record.events[stream][-1] == events[-1]
    assert words_of(record.events[stream]) == words_of(events)
    np.testing.assert_array_equal(record.audio(stream), audio_of(events))


def test_batched_equals_alone(engine: Engine) -> None:
    alone = [speak(engine, request) for request in REQUESTS]
    record, streams = run_together(engine, REQUESTS, arrivals=[0, 3, 3, 10, 17, 1, 25, 40])
    for stream, (single, events) in zip(streams, alone, strict=True):
        assert_same(record, stream, single, events)


@pytest.mark.parametrize("engine", ["small", "textdep"], indirect=True)
def test_decoding_beside_the_next_step_changes_nothing(
    engine: Engine, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """On the CPU as on a GPU; with a neighbour that is cancelled while its frame is on its way."""
    variant = request.node.callspec.params["engine"]
    overlapping = make_engine(variant, slots=8, voices=str(write_voices(tmp_path, variant)), debug=False)
    assert overlapping._overlaps
    assert not engine._overlaps
    record, streams = Recorder(), [overlapping.parse(request) for request in REQUESTS]
    for turn in range(10_000):
        if turn % 3 == 0 and turn // 3 < len(streams):
            overlapping.start(streams[turn // 3])
        if turn == 60:
            overlapping.fail(streams[4], Cancelled("cancelled"), record)
        overlapping.step(overlapping.live, record)
        if not overlapping.live and turn > 60:
            break
    assert isinstance(record.events[streams.pop(4)][-1], Failed)
    for stream, alone in zip(streams, REQUESTS[:4] + REQUESTS[5:], strict=True):
        assert_same(record, stream, *speak(engine, alone))


@pytest.mark.parametrize("engine", ["small"], indirect=True)
def test_same_seed_same_audio_other_seed_other_audio(engine: Engine) -> None:
    first, again, other = (speak(engine, Request(LINE, voice="solo", seed=seed))[1] for seed in (5, 5, 6))
    np.testing.assert_array_equal(audio_of(first), audio_of(again))
    assert not np.array_equal(audio_of(first)[:1920], audio_of(other)[:1920])
    unseeded, another = (audio_of(speak(engine, Request(LINE, voice="solo"))[1]) for _ in range(2))
    assert not np.array_equal(unseeded[:1920], another[:1920])


@pytest.mark.parametrize("name", ["solo", "duo"])
def test_snapshot_and_replay_equal_feeding_everything(engine: Engine, name: str) -> None:
    """KV rows after restore and one-pass replay are those of feeding the whole prefix column by column."""
    voice = engine.voices[name]
    stream = engine.parse(Request(LINE, voice=name, seed=1))
    engine.start(stream)
    columns, runner = stream.boundary.step, engine.runner
    assert columns == voice.prefix.frames
    restored = runner.snapshot(stream.slot, columns, codec=False)
    replay = engine.parse(Request(LINE, voice=name, seed=1)).boundary.turn()
    for step, column in enumerate(np.concatenate([voice.prefix.columns, replay.columns])):
        runner.extend(stream.slot, column[None], step)
    fed = runner.snapshot(stream.slot, columns, codec=False)
    torch.testing.assert_close(fed.keys, restored.keys, rtol=0, atol=1e-5)
    torch.testing.assert_close(fed.values, restored.values, rtol=0, atol=1e-5)
    engine.release(stream)


def test_codec_continues_from_the_prefix(engine: Engine) -> None:
    """Streamed audio equals decoding prefix and request as one sequence, from the prefix's end on."""
    voice = engine.voices["solo"]
    stream, events = speak(engine, Request(LINE, voice="solo", seed=1))
    codes = np.concatenate([voice.prefix.tokens, tokens_of(stream)], axis=1)
    engine.runner.restore(0, None)
    whole = engine.runner.decode([0], codes[None])[0]
    np.testing.assert_allclose(audio_of(events), whole[voice.prefix.frames * engine.frame_samples :], atol=1e-4)


def test_chunks_are_exact_and_consecutive(engine: Engine) -> None:
    _, events = speak(engine, Request(LINE, voice="duo", seed=3))
    chunks = [event for event in events if isinstance(event, AudioChunk)]
    assert len(chunks[0].audio) == engine.frame_samples, "the first chunk is one frame"
    expected = 0
    for chunk in chunks:
        assert chunk.first_frame == expected
        assert len(chunk.audio) % engine.frame_samples == 0
        expected += len(chunk.audio) // engine.frame_samples
        for word in chunk.words:
            assert chunk.first_frame * engine.frame_s <= word.start_s < expected * engine.frame_s
    assert events[-1] == Finished("stop", expected)


# ---- isolation


def test_a_neighbours_end_cancel_and_error_change_nothing(engine: Engine) -> None:
    alone, events = speak(engine, REQUESTS[0])
    record = Recorder()
    watched, ends, cancelled, broken = (engine.parse(REQUESTS[i]) for i in (0, 2, 3, 7))
    for stream in (ends, cancelled, broken, watched):
        engine.start(stream)
    for turn in range(10_000):
        if turn == 5:
            engine.fail(cancelled, Cancelled("cancelled"), record)
        if turn == 9:
            broken.boundary.grid.cells[0, broken.boundary.step] = -2
        engine.step(engine.live, record)
        if not engine.live:
            break
    np.testing.assert_array_equal(tokens_of(watched), tokens_of(alone))
    np.testing.assert_array_equal(record.audio(watched), audio_of(events))
    assert isinstance(record.events[ends][-1], Finished)
    failure = record.events[broken][-1]
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, IdOutOfRange)


def test_paused_streams_keep_their_place(engine: Engine) -> None:
    """A stream that takes no step while others do goes on as if nothing had happened."""
    alone, events = speak(engine, REQUESTS[0])
    record = Recorder()
    stream, other = engine.parse(REQUESTS[0]), engine.parse(REQUESTS[3])
    engine.start(stream)
    engine.start(other)
    turn = 0
    while engine.live:
        turn += 1
        engine.step([s for s in engine.live if s is not stream or turn % 3 == 0], record)
    np.testing.assert_array_equal(tokens_of(stream), tokens_of(alone))
    np.testing.assert_array_equal(record.audio(stream), audio_of(events))


# ---- guards


def spoil_text(stream: Stream, engine: Engine) -> None:
    stream.boundary.text = (engine.model_config.text_vocab, 3)


def spoil_audio(stream: Stream, engine: Engine) -> None:
    stream.boundary.grid.cells[1, stream.boundary.step] = engine.model_config.audio_vocab


def spoil_prefix_tail(stream: Stream, engine: Engine) -> None:
    stream.boundary.grid.cells[:, stream.boundary.step + 1] = engine.model_config.audio_bos


def spoil_frame(stream: Stream, engine: Engine) -> None:
    grid = stream.boundary.grid

    def write(column: int, ids: Ids) -> None:
        grid.cells[:, column] = engine.model_config.audio_pad

    grid.write = write  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        (spoil_text, "text embedding"),
        (spoil_audio, "transformer audio embedding"),
        (spoil_prefix_tail, "depformer input"),
        (spoil_frame, "codec"),
    ],
)
def test_illegal_ids_fail_the_one_request(engine: Engine, spoil: Any, place: str) -> None:
    record = Recorder()
    bad, good = engine.parse(REQUESTS[0]), engine.parse(REQUESTS[2])
    engine.start(bad)
    engine.start(good)
    spoil(bad, engine)
    while engine.live:
        engine.step(engine.live, record)
    failure = record.events[bad][-1]
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, IdOutOfRange)
    assert failure.error.place == place
    limit = failure.error.limit
    assert str(failure.error) == f"{place}: id {failure.error.token_id} is outside 0..{limit - 1}"
    assert isinstance(record.events[good][-1], Finished)


def test_special_ids_never_reach_the_codec_even_without_debug(tmp_path: Path) -> None:
    engine = make_engine(slots=1, debug=False)
    record, stream = Recorder(), engine.parse(Request(LINE, seed=1))
    engine.start(stream)
    spoil_frame(stream, engine)
    while engine.live:
        engine.step(engine.live, record)
    failure = record.events[stream][-1]
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, IdOutOfRange)
    assert (failure.error.place, failure.error.token_id) == ("codec", engine.model_config.audio_pad)
    assert audio_of(record.events[stream]).size == 0


# ---- budget and bad requests


@pytest.mark.parametrize("engine", ["small"], indirect=True)
def test_the_context_ends_a_stream_with_length(tmp_path: Path) -> None:
    """Without carrying over, a script that fits only if the model hurries ends inside the context whatever happens."""
    engine = make_engine("small", voices=str(write_voices(tmp_path / "voices", "small")), carry_over_s=0.0)
    context = engine.model_config.max_context_steps
    words = 0
    while True:
        try:
            engine.parse(Request("hello " * (words + 10), voice="duo"))
            words += 10
        except InvalidArgument:
            break
    stream, events = speak(engine, Request("hello " * words, voice="duo", seed=1, temperature=2.0))
    assert stream.boundary.step <= context
    finish = events[-1]
    assert isinstance(finish, Finished)
    spoken = [text for text, _ in words_of(events)]
    assert spoken == ["hello"] * len(spoken)
    if finish.reason == "length":
        assert finish.frames == context - engine.model_config.max_delay - engine.voices["duo"].prefix.frames + 1
    else:
        assert len(spoken) == words


def test_max_seconds_ends_a_stream_with_length(engine: Engine) -> None:
    _, events = speak(engine, Request(LINE, voice="solo", seed=1, max_seconds=0.5))
    assert events[-1] == Finished("length", 6)
    assert len(audio_of(events)) == 6 * engine.frame_samples


def test_bounds_that_arrive_as_float32_are_inside(engine: Engine) -> None:
    _, events = speak(engine, Request(LINE, voice="solo", max_seconds=float(np.float32(0.08))))
    assert events[-1] == Finished("length", 1)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(""), "TEXT has no words"),
        (Request("   \n\t "), "TEXT has no words"),
        (Request('[S1] <break time="1.0s"/> [S2]'), "TEXT has no words"),
        (Request("x" * 10_001), "TEXT has 10001 characters; allowed: 1 to 10000"),
        (Request("hi", voice="nobody"), "VOICE is 'nobody'; known voices: duo, solo, none"),
        (Request("hi", seed=-1), "SEED is -1; allowed: 0 to 9223372036854775807"),
        (Request("hi", temperature=float("nan")), "TEMPERATURE is nan; allowed: 0 to 2"),
        (Request("hi", temperature=2.1), "TEMPERATURE is 2.1; allowed: 0 to 2"),
        (Request("hi", top_k=-1), "TOP_K is -1; allowed: 0 to 10000"),
        (Request("hi", cfg_scale=float("inf")), "CFG_SCALE is inf; allowed: 0 to 10"),
        (Request("hi", max_seconds=0.0), "MAX_SECONDS is 0; allowed: 0.08 to 1800"),
        (Request("hi", max_seconds=1801.0), "MAX_SECONDS is 1801; allowed: 0.08 to 1800"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_requests_name_field_value_and_range(engine: Engine, request_: Request, message: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        engine.parse(request_)
    assert str(raised.value).startswith(message)
    assert raised.value.code == "INVALID_ARG"
