"""What the load benchmark works out: pure functions, checked against cases that can be done by hand."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from dia2_client import Chunk
from dia2_client.stats import StreamStats
from numpy.typing import NDArray

from benchmarks.charts import bar_chart, number_text, range_chart, round_step
from benchmarks.figures import LISTEN_S, Listener, Outcome, first_audible, heard_s, percentile, spread, summarise
from benchmarks.load import SCRIPT_WORDS, arrivals, script
from benchmarks.perf_analyzer import read_profile

RATE = 1000
EVER = (0.0, 1e9)


def listened(*chunks: tuple[float, NDArray[np.float32]], due_s: float = 0.0, late_s: float = 0.0) -> Listener:
    """(arrived_s, audio) of each chunk."""
    listener = Listener(RATE, due_s, late_s)
    for arrived_s, audio in chunks:
        listener.add(Chunk(audio, (), None, arrived_s))
    return listener


def silence(samples: int) -> NDArray[np.float32]:
    return np.zeros(samples, np.float32)


def tone(samples: int, level: float = 0.5) -> NDArray[np.float32]:
    return np.full(samples, level, np.float32)


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (0, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert percentile([3.0], 50) == percentile([3.0], 99) == 3.0
    assert percentile([1.0, 2.0], 50) == 1.0
    assert percentile([1.0, 2.0], 51) == 2.0
    assert spread([]) is None
    assert spread([2.0, 1.0]) == {"p50": 1.0, "p95": 2.0, "p99": 2.0}


def test_first_audible_is_the_first_window_above_the_threshold() -> None:
    audio = np.concatenate([silence(20), tone(10, 0.009), tone(10, 0.011), tone(10)])  # windows of 10 samples
    assert first_audible(audio, RATE, -40.0) == 30
    assert first_audible(audio, RATE, -41.0) == 20
    assert first_audible(audio, RATE, -20.0) == 40
    assert first_audible(audio, RATE, 0.0) is None
    assert first_audible(silence(0), RATE, -40.0) is None
    assert first_audible(tone(9), RATE, -40.0) is None  # no whole window


def test_a_sample_is_heard_when_all_before_it_has_been_played() -> None:
    chunks = [(1.0, 100), (1.05, 100), (1.5, 100)]  # played 1.0 to 1.1, 1.1 to 1.2, then nothing until 1.5
    assert heard_s(chunks, RATE, 0) == 1.0
    assert heard_s(chunks, RATE, 150) == pytest.approx(1.15)
    assert heard_s(chunks, RATE, 200) == 1.5
    assert heard_s(chunks, RATE, 299) == pytest.approx(1.599)
    assert heard_s(chunks, RATE, 300) is None


def test_a_stream_is_told_from_its_chunks() -> None:
    listener = listened((1.0, silence(100)), (1.05, tone(100)), (1.5, tone(100)), due_s=10.0, late_s=0.25)
    outcome = listener.outcome("ended", (11.2, 11.5), -40.0)
    assert outcome.first_chunk_s == 1.25  # from when it was due
    assert outcome.first_audible_s == pytest.approx(1.35)
    assert outcome.underruns == 1
    assert outcome.real_time_factor == pytest.approx(5.0)  # from when it was sent
    assert outcome.audio_s == pytest.approx(0.3)
    assert outcome.window_audio_s == pytest.approx(0.2)  # the last chunk came at 11.75
    assert listener.outcome("unfinished", EVER, -40.0).real_time_factor is None


def test_underruns_are_those_of_the_client_package() -> None:
    chunks = [(0.1 * index**1.3, tone(100)) for index in range(20)]
    stats = StreamStats(RATE)
    for arrived_s, audio in chunks:
        stats.add(Chunk(audio, (), None, arrived_s))
    assert listened(*chunks).outcome("ended", EVER, -40.0).underruns == stats.underruns > 0


def test_only_the_beginning_of_a_stream_is_kept() -> None:
    seconds = [(float(index), silence(RATE)) for index in range(4)]
    listener = listened(*seconds, (4.0, tone(RATE)))
    assert sum(audio.size for audio in listener.head) == LISTEN_S * RATE
    assert listener.outcome("ended", EVER, -40.0).first_audible_s is None


def test_requests_outside_the_window_count_for_nothing_but_their_audio() -> None:
    outcomes = [
        Outcome("ended", due_s=0.5, first_chunk_s=9.0, first_audible_s=9.0, audio_s=5.0, window_audio_s=3.0),
        Outcome("ended", 1.0, 0.1, 0.2, underruns=2, real_time_factor=0.5, audio_s=2.0, window_audio_s=2.0),
        Outcome("unfinished", 2.0, 0.3, None, underruns=1, audio_s=1.0, window_audio_s=1.0),
        Outcome("rejected", 2.5, message="full"),
        Outcome("rejected", 2.5, message="full"),
        Outcome("failed", 2.5, message="broken"),
        Outcome("ended", due_s=3.0, first_chunk_s=9.0, audio_s=5.0),
    ]
    row = summarise(outcomes, (1.0, 3.0))
    assert [row[name] for name in ("requests", "ended", "rejected", "failed", "unfinished")] == [5, 1, 2, 1, 1]
    assert row["messages"] == ["2 x full", "1 x broken"]
    assert row["first_chunk_ms"] == {"p50": 100.0, "p95": 300.0, "p99": 300.0}
    assert row["first_audible_ms"] == {"p50": 200.0, "p95": 200.0, "p99": 200.0}
    assert row["inaudible"] == 1
    assert (row["underruns"], row["streams_with_underruns"]) == (3, 2)
    assert row["real_time_factor"] == {"p50": 0.5, "p95": 0.5, "p99": 0.5}
    assert row["audio_s_mean"] == 2.0
    assert row["audio_s_per_s"] == 3.0
    nothing = summarise([], (0.0, 1.0))
    assert (nothing["requests"], nothing["first_chunk_ms"], nothing["audio_s_mean"]) == (0, None, None)


def test_scripts_and_arrivals_follow_from_the_seed() -> None:
    scripts = [script(7, index) for index in range(300)]
    assert scripts == [script(7, index) for index in range(300)]
    assert scripts[0] != script(8, 0)
    counts = {len(text.removeprefix("[S1] ").split()) for text, _ in scripts}
    assert (min(counts), max(counts)) == SCRIPT_WORDS
    assert all(0 <= seed < 2**63 for _, seed in scripts)

    times = arrivals(20.0, 100.0, seed=7)
    assert times == sorted(times) == arrivals(20.0, 100.0, seed=7) != arrivals(20.0, 100.0, seed=8)
    assert 0 < times[0] < times[-1] < 100.0
    assert len(times) == pytest.approx(2000, rel=0.1)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # of a Poisson process


def profile(*requests: dict[str, Any]) -> bytes:
    experiment = {"experiment": {"mode": "concurrency", "value": 2}, "window_boundaries": [0, 2 * 10**9]}
    return json.dumps({"experiments": [{**experiment, "requests": requests}]}).encode()


def response(audio: NDArray[np.float32]) -> dict[str, str]:
    pcm = np.rint(audio * 32767).astype("<i2").tobytes()
    return {"AUDIO_PCM16": base64.b64encode(pcm).decode(), "WORDS": "", "AUDIO": "raw"}


def test_a_profile_of_perf_analyzer_gives_the_same_figures() -> None:
    export = profile(
        {
            "timestamp": 10**9,
            "response_timestamps": [1_200_000_000, 1_250_000_000, 1_300_000_000],
            "response_outputs": [response(silence(100)), response(tone(300)), response(silence(0))],
        }
    )
    (row,) = read_profile(export.replace(b"raw", b"\xff\x01"), RATE, -40.0)  # raw tensors are not UTF-8
    assert (row["kind"], row["value"], row["requests"], row["underruns"]) == ("perf_analyzer", 2, 1, 0)
    assert row["first_chunk_ms"]["p50"] == pytest.approx(200)
    assert row["first_audible_ms"]["p50"] == pytest.approx(300)
    assert row["real_time_factor"]["p50"] == pytest.approx(0.625)
    assert row["audio_s_per_s"] == pytest.approx(0.2)


def test_a_profile_without_audio_gives_the_first_response() -> None:
    export = profile({"timestamp": 10**9, "response_timestamps": [1_100_000_000, 1_400_000_000]})
    (row,) = read_profile(export, RATE, -40.0)
    assert row["first_chunk_ms"]["p50"] == pytest.approx(100)
    assert row["first_audible_ms"] is row["real_time_factor"] is None


def test_numbers_and_steps_of_axes() -> None:
    assert [number_text(value) for value in (0, 0.01234, 1.5, 12.0, 123.4, 5432.1)] == [
        "0", "0.0123", "1.50", "12", "123", "5,432",
    ]  # fmt: skip
    assert [round_step(value, up=True) for value in (1.0, 1.1, 5.1, 0.03)] == pytest.approx([1, 2, 10, 0.05])
    assert [round_step(value, up=False) for value in (1.0, 1.9, 5.1, 0.03)] == pytest.approx([1, 1, 5, 0.02])


def test_charts_are_well_formed_and_hold_every_value() -> None:
    spreads = [{"p50": 100.0, "p95": 150.0, "p99": 20_000.0}, None, {"p50": 7.0, "p95": 7.0, "p99": 7.0}]
    chart = range_chart("ms", "streams", ["1", "<8>", "64"], {"a": spreads, "b": spreads}, width=600, line=50.0)
    assert Elements(chart).counts == {"svg": 1, "line": 13, "text": 13, "g": 4, "title": 4, "circle": 8}
    assert "p99 20,000" in chart
    assert "&lt;8&gt;" in chart
    assert Elements(bar_chart("s", "streams", ["1", "2"], [0.0, 3.0], width=600)).counts["rect"] == 2


class Elements(HTMLParser):
    """Counts elements, and insists that each is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
