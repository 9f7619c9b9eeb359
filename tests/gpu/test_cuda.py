"""On a CUDA device: a fuzz in debug mode, bfloat16 near float32, batched near alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dia2_engine import Cancelled, Event, Failed, Finished, Request, Worker
from dia2_engine.stream import Stream
from tests.support import (
    LINE,
    Collector,
    Recorder,
    Talk,
    audio_of,
    make_config,
    make_engine,
    speak,
    tokens_of,
    user_speech,
    words_of,
    write_voices,
)

triton = pytest.importorskip("triton")  # comes with torch for CUDA
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

REQUESTS = 200
WORDS = ["hello", "there,", "[S1]", "[S2]", '<break time="0.4s"/>', "\U0001f600", "\x00", "it\u2019s", "10:30", "<pad>"]


@pytest.fixture(params=["small", "lowrank", "textdep"])
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def worker(variant: str, tmp_path: Path) -> Iterator[Worker]:
    voices = write_voices(tmp_path / "voices", variant)
    worker = Worker(make_config(variant, device="cuda", slots=16, queue=REQUESTS, voices=str(voices)))
    yield worker
    worker.close(60)


def test_a_fuzz_of_random_requests_raises_no_device_assert(worker: Worker) -> None:
    """Every id is checked at every place; a device-side assert would fail every later call, and the last one."""
    rng = random.Random(7)
    sinks = []
    for _ in range(REQUESTS):
        request = Request(
            "go " + " ".join(rng.choices(WORDS, k=rng.randrange(1, 12))),
            voice=rng.choice(["solo", "duo", "none"]),
            seed=rng.randrange(2**63),
            temperature=rng.choice([0.0, 0.3, 1.0, 2.0]),
            top_k=rng.choice([0, 1, 5, 50, 10_000]),
            cfg_scale=rng.choice([0.0, 1.0, 2.0, 10.0]),
            max_seconds=rng.choice([0.08, 1.0, 120.0]),
        )
        sink = Collector()
        stream = worker.submit(request, sink)
        if rng.random() < 0.1:
            stream.cancel()
        sinks.append(sink)
    for sink in sinks:
        end = sink.wait(300)[-1]
        assert isinstance(end, Finished) or (isinstance(end, Failed) and isinstance(end.error, Cancelled)), end
    torch.cuda.synchronize()
    last = Collector()
    worker.submit(Request(LINE, seed=1), last)
    assert isinstance(last.wait()[-1], Finished)


def test_float32_equals_the_cpu(variant: str) -> None:
    request = Request(LINE, seed=3, temperature=0.0)
    cpu, _ = speak(make_engine(variant, slots=1, dtype="float32"), request)
    cuda, _ = speak(make_engine(variant, slots=1, dtype="float32", device="cuda"), request)
    np.testing.assert_array_equal(tokens_of(cuda), tokens_of(cpu))


def test_bfloat16_logits_stay_near_float32(variant: str) -> None:
    hidden = {}
    for dtype in ("float32", "bfloat16"):
        engine = make_engine(variant, slots=1, dtype=dtype, device="cuda")
        stream = engine.parse(Request(LINE, seed=3))
        engine.start(stream)
        engine.step([stream], lambda *_: None)
        model = engine.runner.model.transformer
        with torch.inference_mode():
            hidden[dtype] = model.cb0_logits(model.norm(engine.runner.buffers.step.hidden[:2])).float()
        engine.release(stream)
    error = (hidden["bfloat16"] - hidden["float32"]).norm() / hidden["float32"].norm()
    assert error < 0.05, f"relative error {error:.3g}"


def test_graphs_equal_running_the_passes(variant: str, tmp_path: Path) -> None:
    voices = write_voices(tmp_path / "voices", variant)
    request = Request(LINE, voice="duo", seed=3, max_seconds=2.0)
    recorded, run = (
        speak(make_engine(variant, slots=3, device="cuda", voices=str(voices), cuda_graphs=on), request)
        for on in (True, False)
    )
    np.testing.assert_array_equal(tokens_of(recorded[0]), tokens_of(run[0]))
    np.testing.assert_array_equal(audio_of(recorded[1]), audio_of(run[1]))


def test_a_session_equals_the_cpus(variant: str, tmp_path: Path) -> None:
    """Text in pieces, flushes, a user who is heard, and fresh contexts, with steps read late: as on the CPU.

    In float32 and no longer than this: over more words some two ids come so close that the order of additions decides.
    (Relative noise of 2e-6 on all products changes nothing here.)
    """
    voices = write_voices(tmp_path / "voices", variant)
    heard = []
    for device in ("cpu", "cuda"):
        engine = make_engine(
            variant, slots=2, device=device, dtype="float32", voices=str(voices), debug=False, carry_over_s=4.0
        )
        engine._admission.model = replace(engine._admission.model, max_context_steps=260)
        talk = Talk(engine, voice="solo")
        for index in range(8):
            talk.say("Hello there, how are you? I am fi")
            talk.run(7)
            talk.say("ne, thanks. ", flush=index % 2 == 1, user=user_speech(variant) if index == 3 else None)
            talk.run()
        talk.say("", close=True)
        talk.run()
        heard.append(talk.events)
    assert words_of(heard[0]) == words_of(heard[1])
    assert heard[0][-1] == heard[1][-1]
    np.testing.assert_allclose(audio_of(heard[1]), audio_of(heard[0]), atol=1e-3)


def test_reading_a_step_late_changes_nothing(variant: str, tmp_path: Path) -> None:
    """Without debug a step is read, decoded and sent while the next one runs: the same tokens, audio and ends.

    In float32: streams enter a step later, so passes have other numbers of rows, which bfloat16 would show.
    """
    voices = write_voices(tmp_path / "voices", variant)
    requests = [
        Request(LINE, voice=("duo", "none")[seed % 2], seed=seed, max_seconds=0.5 + 0.4 * seed) for seed in range(6)
    ]

    def spoken(debug: bool) -> list[tuple[list[list[int]], NDArray[np.float32], Event]]:
        engine = make_engine(variant, slots=3, device="cuda", dtype="float32", voices=str(voices), debug=debug)
        record, streams = Recorder(), [engine.parse(request) for request in requests]
        waiting = list(streams)
        while waiting or engine.live:
            if waiting and engine.has_room_for(waiting[0]):
                engine.start(waiting.pop(0))
            engine.step(engine.live, record)
        return [(tokens_of(s).tolist(), record.audio(s), record.events[s][-1]) for s in streams]

    for late, at_once in zip(spoken(debug=False), spoken(debug=True), strict=True):
        assert late[0] == at_once[0]
        np.testing.assert_allclose(late[1], at_once[1], atol=1e-4)
        assert late[2] == at_once[2]


def test_a_stream_does_not_depend_on_its_neighbours_within_a_bucket(variant: str) -> None:
    """Bit for bit: neighbours of other seeds, in rows of the same pass."""
    engine = make_engine(variant, slots=4, device="cuda")

    def watched(*others: int) -> Stream:
        record, stream = Recorder(), engine.parse(Request(LINE, seed=3, max_seconds=2.0))
        neighbours = [engine.parse(Request("And so it goes. " * 12, seed=seed)) for seed in others]
        for each in (stream, *neighbours):
            engine.start(each)
        while not record.ended(stream):
            engine.step([stream, *neighbours], record)
        for neighbour in neighbours:
            engine.release(neighbour)
        return stream

    np.testing.assert_array_equal(tokens_of(watched(10, 11, 12)), tokens_of(watched(20, 21, 22)))


def test_a_request_compiles_captures_and_allocates_nothing(variant: str, tmp_path: Path) -> None:
    voices = write_voices(tmp_path / "voices", variant)
    engine = make_engine(variant, slots=2, device="cuda", voices=str(voices), debug=False)
    compiled: list[object] = []
    triton.knobs.compilation.listener = lambda **event: compiled.append(event)
    before = torch.cuda.memory_stats()
    try:
        speak(engine, Request(LINE, voice="duo", seed=3, max_seconds=1.0))
    finally:
        triton.knobs.compilation.listener = None
    after = torch.cuda.memory_stats()
    assert compiled == []
    for counter in ("allocation.all.allocated", "segment.all.allocated", "num_device_alloc"):
        assert after[counter] == before[counter], counter
