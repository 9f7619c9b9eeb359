"""Made-up sentences of the kind that phone agents and their callers say, with names, numbers and times.

They are drawn from the patterns in `everyday.txt`, where a field such as `{name}` stands for a random entry of that
list, which may hold fields itself.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

_FIELD = re.compile(r"\{(\w+)\}")


class Everyday:
    """Draws sentences; the same seed gives the same ones."""

    def __init__(self, seed: int) -> None:
        text = Path(__file__).with_suffix(".txt").read_text("utf-8")
        _, lists, patterns = text.strip().split("\n\n")
        self._lists = {name: entries.split("|") for name, entries in (line.split(": ") for line in lists.splitlines())}
        self._patterns = patterns.splitlines()
        self._draw = random.Random(seed)  # noqa: S311

    def sentence(self) -> str:
        text = self._draw.choice(self._patterns)
        while field := _FIELD.search(text):
            text = text[: field.start()] + self._draw.choice(self._lists[field[1]]) + text[field.end() :]
        return text[0].upper() + text[1:]
