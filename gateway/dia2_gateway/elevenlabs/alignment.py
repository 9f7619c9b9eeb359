"""When each character is spoken. The engine tells when words begin; characters are spread over the time between.

    words        Hello              there.
    audio   |-----+----.----.----.----+----.----.----|      chunks, as they come
    chars         H  e    l    l   o_ t he   re   .   _     each chunk brings characters for its own time

A word's end is known only when the next one begins, which may be several chunks later, and audio does not wait for it.
So a chunk brings as many characters of its last word as fit its length at an ordinary pace, and keeps the space behind
the word, at least, for what follows. The characters of all chunks together are the words, with one space behind each
(and a further one for a chunk of silence that would have none).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dia2_client import Word

PACE_MS = 80  # of one character, until the next word tells better


@dataclass(frozen=True)
class Character:
    """A character and its time, from the beginning of the utterance."""

    text: str
    start_ms: int
    duration_ms: int


def whole(words: Sequence[Word], seconds: float) -> list[Character]:
    """The characters of a complete utterance: each word spread evenly until the next one, the last until the end."""
    ends_s = [*(word.start_s for word in words[1:]), seconds]
    return [
        character
        for word, end_s in zip(words, ends_s, strict=False)
        for character in _spread(f"{word.text} ", _ms(word.start_s), _ms(end_s))
    ]


class Aligner:
    """The characters of an utterance that is still coming."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._samples = 0
        self._rest = ""  # of the word that is being spoken, with its space: not yet told

    @property
    def time_ms(self) -> int:
        """How much audio there was so far."""
        return round(self._samples * 1000 / self._sample_rate)

    def feed(self, samples: int, words: Sequence[Word]) -> list[Character]:
        """The characters for the next `samples` of audio, in which `words` begin; they fill it up to its end."""
        start_ms = self.time_ms
        self._samples += samples
        characters: list[Character] = []
        for word in words:
            onset_ms = min(max(_ms(word.start_s), start_ms), self.time_ms)
            characters += _spread(self._rest, start_ms, onset_ms)
            self._rest, start_ms = f"{word.text} ", onset_ms
        told = min(max(1, (self.time_ms - start_ms) // PACE_MS), max(1, len(self._rest) - 1))
        text, self._rest = self._rest[:told], self._rest[told:]
        return characters + _spread(text or " ", start_ms, self.time_ms)

    def finish(self) -> list[Character]:
        """What is left of the last word. Its time is over."""
        text, self._rest = self._rest, ""
        return _spread(text, self.time_ms, self.time_ms)


def _spread(text: str, start_ms: int, end_ms: int) -> list[Character]:
    edges = [start_ms + (end_ms - start_ms) * i // max(1, len(text)) for i in range(len(text) + 1)]
    return [
        Character(character, edge, following - edge)
        for character, edge, following in zip(text, edges, edges[1:], strict=False)
    ]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
