"""Scripts to entries: `[S1]`/`[S2]` turns, `<break time="1.0s"/>`, curly apostrophes, `:` as a space."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from .state_machine import Entry, TextTokens

Encode = Callable[[str], list[int]]  # text to piece ids, no special tokens added

_BREAK = re.compile(r"<break\s+time=\"([0-9]+(?:\.[0-9]*)?)s\"\s*/?>")
_LONGEST_BREAK_S = 1e6  # far beyond any context: the budget check refuses it with a clear message
_SPEAKERS = ("[S1]", "[S2]")


def parse_script(lines: Sequence[str], encode: Encode, tokens: TextTokens, frame_rate: float) -> list[Entry]:
    """Parse a script, one entry per word or pause.

    Each line belongs to a speaker, alternating from speaker 1, until a tag says otherwise (a script given as one
    string is one line). A word forces as many steps of padding as it has pieces, so that its pieces fit before the
    next word. Follows the reference's parser, with two differences, where the reference's result would be a
    crash or a hidden command: a malformed break is spoken as written, and pieces that equal a control id
    (`<pad>` typed by a user, say) are dropped; a word with no other piece is dropped with them.
    """
    control = {tokens.bos, tokens.new_word, tokens.pad, tokens.zero}
    entries: list[Entry] = []
    last_speaker: int | None = None
    for index, line in enumerate(lines):
        line_speaker = (tokens.spk1, tokens.spk2)[index % 2]
        opens_line = True
        tag: str | None = None
        for kind, text in _pieces(line):
            if kind == "break":
                padding = round(min(float(text), _LONGEST_BREAK_S) * frame_rate)
                if padding > 0:
                    entries.append(Entry((), "", padding))
            elif text in _SPEAKERS:
                tag = text
            elif any(piece not in control for piece in encode(text)):
                pieces = [p for p in encode(f"{tag} {text}" if tag else text) if p not in control]
                if opens_line and line_speaker != last_speaker:
                    if pieces[0] != line_speaker:
                        pieces.insert(0, line_speaker)
                    last_speaker = line_speaker
                opens_line, tag = False, None
                entries.append(Entry(tuple(pieces), text, len(pieces)))
    return entries


def _pieces(line: str) -> list[tuple[str, str]]:
    text = line.replace("\u2019", "'").replace(":", " ")
    parts = _BREAK.split(text)  # text, seconds, text, seconds, ..., text
    found: list[tuple[str, str]] = []
    for position, part in enumerate(parts):
        if position % 2:
            found.append(("break", part))
        else:
            found.extend(("word", word) for word in part.split())
    return found
