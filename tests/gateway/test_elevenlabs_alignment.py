"""Characters in time: what an utterance tells when it is complete, and while it is still coming."""

from __future__ import annotations

from itertools import pairwise

from dia2_client import Word
from dia2_gateway.elevenlabs.alignment import Aligner, Character, whole
from hypothesis import given
from hypothesis import strategies as st

RATE = 24_000
FRAME = 1920  # samples, 80 ms


def test_whole_utterance() -> None:
    words = [Word("Hi", 0.0), Word("you.", 0.24)]
    assert whole(words, 0.74) == [
        Character("H", 0, 80),
        Character("i", 80, 80),
        Character(" ", 160, 80),
        Character("y", 240, 100),
        Character("o", 340, 100),
        Character("u", 440, 100),
        Character(".", 540, 100),
        Character(" ", 640, 100),
    ]
    assert whole([], 1.0) == []


def test_word_goes_on_through_chunks_and_ends_at_the_next_onset() -> None:
    aligner = Aligner(RATE)
    assert aligner.feed(FRAME, [Word("Hi", 0.0)]) == [Character("H", 0, 80)]
    assert aligner.feed(FRAME, []) == [Character("i", 80, 80)]
    assert aligner.feed(2 * FRAME, [Word("you", 0.24)]) == [Character(" ", 160, 80), Character("y", 240, 80)]
    assert aligner.finish() == [Character("o", 320, 0), Character("u", 320, 0), Character(" ", 320, 0)]


def test_silence_is_a_space() -> None:
    aligner = Aligner(RATE)
    assert aligner.feed(FRAME, []) == [Character(" ", 0, 80)]
    assert aligner.feed(FRAME, [Word("I", 0.08)]) == [Character("I", 80, 80)]
    assert aligner.feed(3 * FRAME, []) == [Character(" ", 160, 240)]
    assert aligner.feed(FRAME, []) == [Character(" ", 400, 80)]
    assert aligner.finish() == []


@st.composite
def utterances(draw: st.DrawFn) -> list[tuple[int, list[Word]]]:
    """Chunks of whole frames, in each of which some words begin: (samples, words)."""
    chunks, frame = [], 0
    for frames in draw(st.lists(st.integers(1, 8), min_size=1, max_size=20)):
        onsets = draw(st.lists(st.integers(frame, frame + frames - 1), max_size=3).map(sorted))
        texts = draw(st.lists(st.text("ab.'", min_size=1, max_size=9), min_size=len(onsets), max_size=len(onsets)))
        words = [Word(text, onset * 0.08) for text, onset in zip(texts, onsets, strict=True)]
        chunks.append((frames * FRAME, words))
        frame += frames
    return chunks


@given(utterances())
def test_chunks_tell_their_own_time_and_together_the_words(chunks: list[tuple[int, list[Word]]]) -> None:
    aligner = Aligner(RATE)
    told: list[Character] = []
    onsets_ms: list[int] = []
    for samples, words in chunks:
        start_ms = aligner.time_ms
        characters = aligner.feed(samples, words)
        assert characters[0].start_ms >= start_ms
        for before, after in pairwise(characters):
            assert before.start_ms + before.duration_ms <= after.start_ms
        last = characters[-1]
        assert last.start_ms + last.duration_ms == aligner.time_ms  # so that pieces can be laid end to end
        told += characters
        onsets_ms += [round(word.start_s * 1000) for word in words]
    told += aligner.finish()
    words_told = "".join(character.text for character in told).split()
    assert words_told == [word.text for _, words in chunks for word in words]
    starts_ms = [
        character.start_ms
        for before, character in zip([None, *told], told, strict=False)
        if character.text != " " and (before is None or before.text == " ")
    ]
    assert starts_ms == onsets_ms
    assert not told or onsets_ms == [] or told[-1].text == " "
