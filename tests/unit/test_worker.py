"""Threads around the engine: exactly one terminal event on every path, cancellation, a full queue, closing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dia2_engine import (
    AudioChunk,
    Cancelled,
    Event,
    Failed,
    Finished,
    InternalError,
    InvalidArgument,
    Request,
    Telemetry,
    Unavailable,
    Worker,
)
from dia2_engine.stream import Stream
from tests.support import LINE, Collector, audio_of, make_config, make_engine, speak

WAIT_S = 60.0


class Metrics(Telemetry):
    """Keeps what is reported, and lets a test wait for a gauge."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.observed: list[float] = []
        self._changed = threading.Condition()

    def gauge(self, name: str, value: float) -> None:
        with self._changed:
            self.values[name] = value
            self._changed.notify_all()

    def count(self, name: str, n: int = 1) -> None:
        with self._changed:
            self.values[name] = self.values.get(name, 0) + n
            self._changed.notify_all()

    def observe(self, name: str, value: float) -> None:
        self.observed.append(value)

    def wait(self, **wanted: float) -> None:
        with self._changed:
            found = self._changed.wait_for(lambda: wanted.items() <= self.values.items(), WAIT_S)
        assert found, (wanted, self.values)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def worker(metrics: Metrics) -> Iterator[Worker]:
    """As deployed: a frame is decoded while the next one is made."""
    worker = Worker(make_config(slots=2, queue=2, debug=False), metrics)
    assert worker.engine.runner.overlaps
    yield worker
    worker.close(WAIT_S)
    assert not any(thread.is_alive() for thread in worker._threads)


class Gate(Collector):
    """A sink that can hold the delivery thread at the first chunk, so that a test acts in mid-stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first = threading.Event()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        self.first.set()


LONG = "[S1] " + "hello " * 60


def test_streams_equal_the_engines_own(worker: Worker, metrics: Metrics) -> None:
    engine = make_engine(slots=1)
    requests = [Request(LINE, seed=seed) for seed in range(4)]
    sinks = [Collector() for _ in requests]
    for request, sink in zip(requests, sinks, strict=True):
        worker.submit(request, sink)
    for request, sink in zip(requests, sinks, strict=True):
        _, events = speak(engine, request)
        assert sink.wait()[-1] == events[-1]
        np.testing.assert_array_equal(audio_of(sink.events), audio_of(events))
    metrics.wait(live=0, queued=0, finished=4)
    assert len(metrics.observed) == 4
    assert metrics.values["frames"] * worker.frame_samples == sum(len(audio_of(s.events)) for s in sinks)


def test_a_full_worker_rejects_at_once_and_recovers(worker: Worker, metrics: Metrics) -> None:
    sinks = [Collector() for _ in range(4)]
    streams = [worker.submit(Request(LONG, seed=1), sink) for sink in sinks]
    rejected = Collector()
    with pytest.raises(Unavailable, match="queue is full"):
        worker.submit(Request(LINE), rejected)
    assert rejected.events == []
    for stream in streams:
        stream.cancel()
    for sink in sinks:
        sink.wait()
    metrics.wait(live=0, queued=0, rejected=1)
    with pytest.raises(InvalidArgument):
        worker.submit(Request(""), rejected)
    metrics.wait(invalid=1)
    again = Collector()
    worker.submit(Request(LINE, seed=1), again)
    assert isinstance(again.wait()[-1], Finished)


def test_bad_requests_never_reach_the_sink(worker: Worker) -> None:
    sink = Collector()
    with pytest.raises(InvalidArgument):
        worker.submit(Request("", seed=1), sink)
    assert sink.events == []


def test_cancel_before_first_audio_in_mid_stream_and_in_the_queue(worker: Worker, metrics: Metrics) -> None:
    running, starting, queued = Gate(), Collector(), Collector()
    first = worker.submit(Request(LONG, seed=1), running)
    assert running.first.wait(WAIT_S)
    second = worker.submit(Request(LONG, seed=2), starting)
    second.cancel()
    blocker = worker.submit(Request(LONG, seed=3), Collector())
    third = worker.submit(Request(LONG, seed=4), queued)
    third.cancel()
    for sink in (starting, queued):
        failure = sink.wait()[-1]
        assert isinstance(failure, Failed)
        assert isinstance(failure.error, Cancelled)
    first.cancel()
    events = running.wait()
    assert any(isinstance(event, AudioChunk) for event in events)
    assert isinstance(events[-1], Failed)
    blocker.cancel()
    metrics.wait(live=0, queued=0, cancelled=4)


@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_a_cancelled_stream_begins_no_further_frame(
    worker: Worker, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    """Cancelled at frame n, it ends, n + 1 on its way and unheard, and its slot is free. Its neighbour goes on."""
    seen: list[Any] = []
    emit = worker._emit

    def watch(stream: Stream, event: Any) -> None:
        if stream is cancelled:
            seen.append(event)
            if len(seen) == chunks:
                stream.cancel()
        emit(stream, event)

    monkeypatch.setattr(worker, "_emit", watch)
    neighbour, sink = Collector(), Collector()
    with worker._wake:  # so that the engine waits until both are known
        worker.submit(Request(LINE, seed=2), neighbour)
        cancelled = worker.submit(Request(LONG, seed=1), sink)
    assert isinstance(sink.wait()[-1], Failed)
    assert isinstance(seen[-1], Failed)
    assert len(seen) == chunks + 1
    assert cancelled.slot == -1
    assert cancelled.boundary.frames_out == cancelled.sent_frames + 1
    np.testing.assert_array_equal(
        audio_of(neighbour.wait()), audio_of(speak(make_engine(slots=1), Request(LINE, seed=2))[1])
    )
    metrics.wait(live=0, queued=0, cancelled=1, finished=1)


def test_polled_cancellation_ends_live_and_queued_streams(worker: Worker, metrics: Metrics) -> None:
    gone = threading.Event()
    sinks = [Gate() for _ in range(3)]
    for sink in sinks:
        worker.submit(Request(LONG, seed=1), sink, is_cancelled=gone.is_set)
    assert sinks[0].first.wait(WAIT_S)
    gone.set()
    for sink in sinks:
        assert isinstance(sink.wait()[-1], Failed)
    metrics.wait(live=0, queued=0, cancelled=3)


def test_a_poll_that_raises_disturbs_nobody(worker: Worker) -> None:
    def bad() -> bool:
        raise OSError("the pipe is gone")

    sink = Collector()
    worker.submit(Request(LINE, seed=1), sink, is_cancelled=bad)
    assert isinstance(sink.wait()[-1], Finished)


def test_cancel_after_the_end_is_nothing(worker: Worker, metrics: Metrics) -> None:
    sink = Collector()
    stream = worker.submit(Request("[S1] a", seed=1), sink)
    assert isinstance(sink.wait()[-1], Finished)
    stream.cancel()
    again = Collector()
    worker.submit(Request("[S1] a", seed=1), again)
    again.wait()
    assert "cancelled" not in metrics.values


@pytest.mark.parametrize("of", ["transform", "depform"])
def test_a_defect_in_a_pass_fails_its_streams_and_the_worker_goes_on(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    def explode(*args: object) -> None:
        raise RuntimeError("the device is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(worker.engine.runner._passes, of, explode)
        sink = Collector()
        worker.submit(Request(LINE, seed=1), sink)
        failure = sink.wait()[-1]
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, InternalError)
    again = Collector()
    worker.submit(Request(LINE, seed=1), again)
    assert isinstance(again.wait()[-1], Finished)


def test_a_defect_in_starting_fails_only_that_stream(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Gate()
    worker.submit(Request(LINE, seed=1), running)
    assert running.first.wait(WAIT_S)
    start = worker.engine.start

    def start_or_explode(stream: Stream) -> None:
        if stream.seed == 666:
            raise RuntimeError("no such slot")
        start(stream)

    monkeypatch.setattr(worker.engine, "start", start_or_explode)
    broken = Collector()
    worker.submit(Request(LINE, seed=666), broken)
    failure = broken.wait()[-1]
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, InternalError)
    assert isinstance(running.wait()[-1], Finished)


def test_a_sink_that_raises_disturbs_nobody(worker: Worker) -> None:
    def bad(event: Event) -> None:
        raise ValueError("receiver is broken")

    good = Collector()
    worker.submit(Request(LINE, seed=1), bad)
    worker.submit(Request(LINE, seed=2), good)
    assert isinstance(good.wait()[-1], Finished)


def test_closing_ends_every_stream_once_and_refuses_new_ones(metrics: Metrics) -> None:
    worker = Worker(make_config(slots=2, queue=4), metrics)
    sinks = [Gate() for _ in range(5)]
    for sink in sinks:
        worker.submit(Request(LONG, seed=1), sink)
    assert sinks[0].first.wait(WAIT_S)
    worker.close(WAIT_S)
    assert all(isinstance(sink.events[-1], Failed) for sink in sinks)
    with pytest.raises(Unavailable, match="shutting down"):
        worker.submit(Request(LINE), Collector())
    assert metrics.values["live"] == metrics.values["queued"] == 0


def test_the_stop_file_ends_every_stream_and_refuses_new_ones(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    worker = Worker(make_config(slots=1, queue=4, stop_file=str(stop)))
    live, waiting = Gate(), Gate()
    for sink in (live, waiting):
        worker.submit(Request(LONG, seed=1), sink)
    assert live.first.wait(WAIT_S)
    stop.touch()
    for sink in (live, waiting):
        end = sink.wait()[-1]
        assert isinstance(end, Failed)
        assert isinstance(end.error, Cancelled)
        assert str(end.error) == "the server is shutting down"
    with pytest.raises(Unavailable, match="shutting down"):
        worker.submit(Request(LINE), Collector())
    worker.close(WAIT_S)


def test_a_stream_waits_for_memory_and_never_runs_out_of_it(metrics: Metrics) -> None:
    """With memory for one whole context, streams of any length take turns, although there are slots for three."""
    worker = Worker(make_config(slots=3, queue=8, kv_gb=1e-6), metrics)
    try:
        long, short = Gate(), [Collector() for _ in range(2)]
        first = worker.submit(Request(LONG, seed=1), long)
        for seed, sink in enumerate(short):
            worker.submit(Request(LINE, seed=seed, max_seconds=0.5), sink)
        assert long.first.wait(WAIT_S)
        metrics.wait(live=1, queued=2)
        first.cancel()
        for sink in short:
            assert isinstance(sink.wait()[-1], Finished)
        assert worker.engine.runner.pages.free == 1
    finally:
        worker.close(WAIT_S)


def test_a_new_stream_goes_before_those_that_are_ahead() -> None:
    worker = Worker(make_config(slots=4))
    worker.close(WAIT_S)  # its threads are gone, and the engine is ours
    engine = worker.engine
    ahead, between, behind, new = (engine.parse(Request(LINE, seed=seed)) for seed in (1, 2, 3, 4))
    for stream in (ahead, between, behind, new):
        engine.start(stream)
    for stream, lead_s in ((ahead, 3600.0), (between, 0.4), (behind, 0.0)):
        stream.dry_s = time.monotonic() + lead_s

    def due(entering: Stream | None = None) -> set[Stream]:
        return set(worker._due(entering)[0])

    assert due() == {new, behind, between}, "one is about to run dry, so all that could use a step take it"
    engine.release(behind)
    assert due() == {new}, "nobody is: the new one has the device for itself"
    engine.release(new)
    assert due() == {ahead, between}
    assert due(entering=new) == set(), "one that is about to enter counts too"


def test_generation_runs_ahead_of_playback_only_so_far(metrics: Metrics) -> None:
    """What has been produced never exceeds what could have been played by more than the bound and one chunk."""
    run_ahead_s = 0.4
    worker = Worker(make_config(slots=1, run_ahead_s=run_ahead_s, max_chunk_frames=1), metrics)
    produced: list[tuple[float, float]] = []  # when, seconds of audio so far
    sent = worker._emit

    def watch(stream: Stream, event: Any) -> None:
        if isinstance(event, AudioChunk):
            produced.append((time.monotonic(), (event.first_frame + 1) * worker.engine.frame_s))
        sent(stream, event)

    worker._emit = watch  # type: ignore[method-assign]
    sink = Collector()
    worker.submit(Request(LINE, seed=1, max_seconds=1.2), sink)
    sink.wait()
    worker.close(WAIT_S)
    start = produced[0][0]
    assert all(audio_s - (when - start) <= run_ahead_s + 2 * worker.engine.frame_s for when, audio_s in produced)
