"""The committed example voices: complete, clean, and every word where it says it is."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

VOICES = Path(__file__).parents[2] / "voices"
NAMES = sorted(path.parent.name for path in VOICES.glob("*/voice.json"))
SAMPLE_RATE = 24000

Audio = npt.NDArray[np.float64]


def rms(audio: Audio) -> float:
    return float(np.sqrt(np.mean(np.square(audio))))


def pitch_hz(audio: Audio) -> float:
    """Median pitch of the loud parts, by autocorrelation."""
    found = []
    for start in range(0, len(audio) - 2048, 1024):
        window = audio[start : start + 2048]
        if rms(window) > 0.05:
            correlation = np.correlate(window, window, "full")[2047:]
            shortest, longest = SAMPLE_RATE // 400, SAMPLE_RATE // 60
            found.append(SAMPLE_RATE / (shortest + int(np.argmax(correlation[shortest:longest]))))
    return float(np.median(found))


def load(name: str) -> tuple[dict[str, Any], list[tuple[Audio, list[dict[str, Any]]]]]:
    """voice.json, and per speaker the clip and its words."""
    voice = json.loads((VOICES / name / "voice.json").read_text(encoding="utf-8"))
    clips = []
    for speaker in voice["speakers"]:
        info = soundfile.info(VOICES / name / speaker["clip"])
        assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
        clips.append((soundfile.read(VOICES / name / speaker["clip"])[0], speaker["words"]))
    return voice, clips


def test_there_are_four_speakers_and_a_voice_of_two_of_them() -> None:
    assert NAMES == ["anna", "anna-and-ben", "ben", "carla", "david"]


@pytest.mark.parametrize("name", NAMES)
def test_the_description_is_complete(name: str) -> None:
    voice, clips = load(name)
    assert all(voice[field] for field in ("description", "license", "source"))
    assert "python -m training voices" in voice["source"]
    assert ("second_speaker" in voice) == (len(clips) == 1)


@pytest.mark.parametrize("name", NAMES)
def test_clips_are_loud_enough_do_not_clip_and_end_in_silence(name: str) -> None:
    for audio, _ in load(name)[1]:
        assert 4.0 < len(audio) / SAMPLE_RATE < 7.0
        assert 0.5 < float(np.abs(audio).max()) < 0.9
        assert rms(audio) > 0.03
        assert abs(float(audio.mean())) < 0.01
        assert rms(audio[-SAMPLE_RATE // 4 :]) < 0.001


@pytest.mark.parametrize("name", NAMES)
def test_words_are_in_order_inside_the_clip_and_do_not_overlap(name: str) -> None:
    for audio, words in load(name)[1]:
        assert all(word["start"] < word["end"] for word in words)
        assert all(before["end"] <= after["start"] for before, after in pairwise(words))
        assert words[0]["start"] >= 0
        assert words[-1]["end"] <= len(audio) / SAMPLE_RATE
        assert all(word["text"] and not word["text"].isspace() for word in words)


@pytest.mark.parametrize("name", NAMES)
def test_words_and_sound_are_in_the_same_places(name: str) -> None:
    for audio, words in load(name)[1]:
        covered = np.zeros(len(audio), dtype=bool)
        for word in words:
            start, end = round(word["start"] * SAMPLE_RATE), round(word["end"] * SAMPLE_RATE)
            covered[start:end] = True
            assert float(np.abs(audio[start:end]).max()) > 0.03, word
            if not covered[max(0, start - 3600) : start].any():  # words of one breath may have no edge between them
                before, after = audio[max(0, start - 240) : start], audio[start : start + 720]
                assert rms(after) > 3 * rms(before), word
        outside = audio[~np.convolve(covered, np.ones(241), "same").astype(bool)]
        assert rms(outside) < 0.002  # nothing is said that no word accounts for


def test_the_two_speakers_are_clearly_different() -> None:
    (anna, _), (ben, _) = load("anna-and-ben")[1]
    assert pitch_hz(anna) > 1.4 * pitch_hz(ben)


def test_the_voice_of_both_has_the_clips_of_each() -> None:
    for name in ("anna", "ben"):
        alone = (VOICES / name / f"{name}.wav").read_bytes()
        assert (VOICES / "anna-and-ben" / f"{name}.wav").read_bytes() == alone
