"""What the laboratory tells of an output, on sounds and words that were made for it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.laboratory.measures import FEATURES, Segments, burst, median, repeated, segments, wilson

RATE, FRAME = 24_000, 1920
SEEDS = 6
PREFIX = ["good", "morning", "this", "is", "ben", "speaking", "please", "give", "me", "one", "moment", "to", "look"]
WANTED = ["is", "there", "one", "moment", "to", "spare", "on", "friday"]
Audio = NDArray[np.float32]


@pytest.mark.parametrize(
    ("heard", "words"),
    [
        ("is there one moment to spare on friday", ""),
        ("moment to look is there one moment to spare on friday", "moment to look"),
        ("to look is there one moment to spare on friday", "to look"),
        ("uh to look is there one moment", "to look"),  # what is left of a word that was cut, first
        ("is there one moment to look on friday", "one moment to look"),  # not the request's, though it begins like it
        ("look is there one moment to spare on friday", "look"),  # the last word, left over
        ("uh look is there one moment to spare on friday", "look"),
        ("is there look one moment to spare on friday", ""),
        ("is there one moment to spare on friday look", ""),  # one word may be chance
        ("is there to look on friday", ""),  # two may be, in the middle
        ("is there give me one on friday", "give me one"),
        ("uh dear this is there one moment", ""),
        ("", ""),
    ],
)
def test_words_of_the_prefix_are_found(heard: str, words: str) -> None:
    assert repeated(heard.split(), PREFIX, WANTED) == words.split()


def test_a_last_word_that_the_request_has_too_is_no_repetition() -> None:
    assert repeated(["look", "here"], PREFIX, ["look", "there"]) == []


def speech(seed: int, seconds: float = 4.0) -> Audio:
    """Syllables: harmonics with a gliding pitch and changing formants, about four a second."""
    rng, pieces = np.random.default_rng(seed), list[NDArray[np.float64]]()
    while sum(len(piece) for piece in pieces) < seconds * RATE:
        length = int(RATE * rng.uniform(0.12, 0.25))
        at = np.arange(length) / RATE
        pitch = rng.uniform(90, 160) + rng.uniform(-60, 60) * at
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        weights = rng.uniform(0.1, 1.0, 20) / np.arange(1, 21)
        voiced = sum(weight * np.sin(order * phase) for order, weight in enumerate(weights, start=1))
        envelope = np.minimum(1, np.minimum(at, at[::-1]) / 0.03)
        pieces += [0.1 * rng.uniform(0.5, 1.0) * voiced * envelope, np.zeros(int(RATE * rng.uniform(0.02, 0.12)))]
    made = np.concatenate(pieces)[: int(seconds * RATE)]
    audio: Audio = (made + 1e-4 * rng.standard_normal(len(made))).astype(np.float32)
    return audio


CLIPS = [segments(speech(seed), RATE, FRAME) for seed in range(100, 104)]


def judged(audio: Audio) -> list[str]:
    return burst(segments(audio, RATE, FRAME), CLIPS)


def test_clean_starts_are_no_bursts() -> None:
    late = np.zeros(RATE // 2, np.float32)
    for seed in range(SEEDS):
        assert judged(speech(seed)) == []
        assert judged(np.concatenate([late, speech(seed)])) == [], "silence repeats itself too, unheard"


@pytest.mark.parametrize("frames", [6, 18])
def test_one_frame_over_and_over_is_a_burst(frames: int) -> None:
    """As audio of one id is, over and over; also where it lasts far into the rest of the output."""
    for seed in range(SEEDS):
        frame = max(speech(seed + 50).reshape(-1, FRAME), key=lambda frame: float(np.abs(frame).max()))
        assert "repetition" in judged(np.concatenate([np.tile(frame, frames), speech(seed)]))


def test_onset_after_onset_is_a_burst() -> None:
    rng = np.random.default_rng(1)
    for seed in range(SEEDS):
        puffs = [rng.standard_normal(FRAME) * np.exp(-np.arange(FRAME) / 300) for _ in range(6)]  # none like another
        audio = np.concatenate([0.3 * np.concatenate(puffs), speech(seed)]).astype(np.float32)
        assert "flux" in judged(audio)


def test_a_blast_is_a_burst() -> None:
    for seed in range(SEEDS):
        audio = speech(seed)
        audio[2400:7200] *= 10
        assert "level" in judged(audio)


def test_what_is_odd_from_beginning_to_end_is_no_burst() -> None:
    everywhere = Segments([1.0, 8.0, 2.1], [[1.0, 8.0, 2.2]] * 30)
    once = Segments([1.0, 8.0, 2.1], [[1.0, 8.0, 0.02]] * 30)
    assert burst(everywhere, CLIPS) == []
    assert burst(once, CLIPS) == ["repetition"]


@pytest.mark.parametrize("samples", [1, FRAME, 11_999, 12_000, 13_000, 30_000])
def test_outputs_of_any_length_are_measured(samples: int) -> None:
    measured = segments(speech(1)[:samples], RATE, FRAME)
    assert len(measured.start) == len(FEATURES)
    assert np.isfinite([measured.start, *measured.rest]).all()
    burst(measured, CLIPS)


def test_intervals() -> None:
    assert wilson(0, 200) == pytest.approx((0.0, 0.01885), abs=1e-4)
    assert wilson(180, 200) == pytest.approx((0.8506, 0.9344), abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0)
    value, low, high = median([float(number) for number in range(101)])
    assert value == 50
    assert 35 < low < 50 < high < 65
