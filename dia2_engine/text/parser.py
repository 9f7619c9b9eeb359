"""Scripts to entries: `[S1]`/`[S2]` turns, `<break time="1.0s"/>`, curly apostrophes, `:` as a space."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from .state_machine import Entry, TextTokens

Encode = Callable[[str], list[int]]  # text to piece ids, no special tokens added

_BREAK = re.compile(r"<break\s+time=\"([0-9]+(?:\.[0-9]*)?)s\"\s*/?>")
_LONGEST_BREAK_S = 1e6  # far beyond what `max_seconds` lets anybody hear
_SPEAKERS = ("[S1]", "[S2]")


def _beginning(parts: Sequence[str]) -> re.Pattern[str]:
    """What matches a tag made of `parts` that the end of the text cuts short."""
    pattern = ""
    for part in reversed(parts):
        pattern = f"{part}(?:{pattern})?" if pattern else part
    return re.compile(pattern + r"\Z")


_BEGUN_BREAK = _beginning(
    [*"<break", r"\s+", *"time=", '"', "[0-9]+", r"(?:\.[0-9]*)?", "s", '"', r"\s*", "/?"]
)  # fmt: skip


def parse_script(lines: Sequence[str], encode: Encode, tokens: TextTokens, frame_rate: float) -> list[Entry]:
    """Parse a script, one entry per word or pause.

    Each line belongs to a speaker, alternating from speaker 1, until a tag says otherwise (a script given as one
    string is one line). Follows the reference's parser, but for what `ScriptReader` tells.
    """
    entries: list[Entry] = []
    last_speaker: int | None = None
    for index, line in enumerate(lines):
        reader = ScriptReader(encode, tokens, frame_rate, (tokens.spk1, tokens.spk2)[index % 2], last_speaker)
        entries += reader.read(line, to_its_end=True)
        last_speaker = reader.last_speaker
    return entries


class ScriptReader:
    """Reads one line that comes in pieces, which may end anywhere: in a word, in a tag.

    A word forces as many steps of padding as it has pieces, so that its pieces fit before the next word. There are two
    differences to the reference's parser, where its result would be a crash or a hidden command: a malformed break is
    spoken as written, and pieces that equal a control id (`<pad>` typed by a user, say) are dropped; a word with no
    other piece is dropped with them.
    """

    def __init__(
        self,
        encode: Encode,
        tokens: TextTokens,
        frame_rate: float,
        speaker: int,
        last_speaker: int | None = None,
    ) -> None:
        """The line opens with the tag of its `speaker`, unless that is `last_speaker`."""
        self._encode, self._frame_rate, self._speaker = encode, frame_rate, speaker
        self._control = {tokens.bos, tokens.new_word, tokens.pad, tokens.zero}
        self._opens_line = True
        self._tag: str | None = None  # of the next word
        self.last_speaker = last_speaker
        self.rest = ""  # what may still grow: the last word, or a break that has begun

    def is_followed_by(self, speaker: int) -> None:
        """Somebody else speaks next, so the word behind that opens a line again."""
        self._opens_line, self.last_speaker = True, speaker

    def read(self, text: str, *, to_its_end: bool = False) -> list[Entry]:
        """The entries that the text completes: a word ends at white space, at a break or, `to_its_end`, at the end."""
        text = self.rest + text.replace("\u2019", "'").replace(":", " ")
        settled = len(text) if to_its_end else _settled(text)
        self.rest = text[settled:]
        entries: list[Entry] = []
        for position, part in enumerate(_BREAK.split(text[:settled])):  # text, seconds, text, seconds, ..., text
            if position % 2:
                padding = round(min(float(part), _LONGEST_BREAK_S) * self._frame_rate)
                if padding > 0:
                    entries.append(Entry((), "", padding))
            else:
                entries.extend(entry for word in part.split() if (entry := self._word(word)) is not None)
        return entries

    def _word(self, text: str) -> Entry | None:
        if text in _SPEAKERS:
            self._tag = text
            return None
        if all(piece in self._control for piece in self._encode(text)):
            return None
        tagged = f"{self._tag} {text}" if self._tag else text
        pieces = [piece for piece in self._encode(tagged) if piece not in self._control]
        if self._opens_line and self._speaker != self.last_speaker:
            if pieces[0] != self._speaker:
                pieces.insert(0, self._speaker)
            self.last_speaker = self._speaker
        self._opens_line, self._tag = False, None
        return Entry(tuple(pieces), text, len(pieces))


def _settled(text: str) -> int:
    """Up to where no text to come can change what is read."""
    begun = next((match.start() for match in re.finditer("<", text) if _BEGUN_BREAK.match(text, match.start())), None)
    text = text[:begun]
    breaks = [match.end() for match in _BREAK.finditer(text)]
    spaces = [match.end() for match in re.finditer(r"\s", text)]
    return max([0, *breaks[-1:], *spaces[-1:]])
