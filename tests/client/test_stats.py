from __future__ import annotations

import numpy as np
import pytest
from dia2_client import Chunk
from dia2_client.stats import StreamStats

RATE = 1000


def stats_of(*arrivals: tuple[float, float]) -> StreamStats:
    """(arrived_s, length_s) per chunk."""
    stats = StreamStats(RATE)
    for arrived_s, length_s in arrivals:
        stats.add(Chunk(np.zeros(round(length_s * RATE), np.float32), (), None, arrived_s))
    return stats


def test_a_stream_that_keeps_up() -> None:
    stats = stats_of((0.2, 0.1), (0.25, 0.5), (0.5, 0.4))
    assert stats.first_audio_s == 0.2
    assert (stats.chunks, stats.audio_s) == (3, 1.0)
    assert stats.real_time_factor == pytest.approx(0.5)
    assert stats.longest_gap_s == pytest.approx(0.25)
    assert stats.underruns == 0
    assert stats.summary() == (
        "1.00 s of audio in 0.50 s (real-time factor 0.50), first audio after 200 ms, 3 chunks, "
        "longest gap 250 ms, 0 underruns"
    )


def test_an_underrun_is_a_chunk_that_came_after_the_player_ran_dry() -> None:
    # plays 1.0-1.1, dry, 1.3-1.4, in time, dry
    stats = stats_of((1.0, 0.1), (1.3, 0.1), (1.35, 0.1), (2.0, 0.1))
    assert stats.underruns == 2


def test_audio_that_ran_ahead_covers_a_long_gap() -> None:
    stats = stats_of((0.1, 5.0), (5.0, 0.1))
    assert stats.underruns == 0
    assert stats.longest_gap_s == pytest.approx(4.9)


def test_one_chunk_has_no_gap_and_no_chunk_no_figures() -> None:
    assert stats_of((0.1, 1.0)).longest_gap_s == 0
    assert "1 chunk," in stats_of((0.1, 1.0)).summary()
    nothing = stats_of()
    assert (nothing.first_audio_s, nothing.real_time_factor, nothing.summary()) == (None, None, "no audio")
