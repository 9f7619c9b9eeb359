"""The text state machine: turns the model's actions (stay / next word) into its two text streams.

The machine is deterministic and owns every decision about text. The model only proposes actions, and the machine
overrides a proposal where the word's remaining pieces, a forced pause or the padding budget demand it; the engine
forces an action through the same door, so machine and model never disagree. Semantics follow the state machine of
nari-labs/dia2, itself after Kyutai's delayed-streams text-to-speech.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

INITIAL_PADDING_STEPS = 2  # wait before the first word, where no prefix stands in front of it


@dataclass(frozen=True)
class TextTokens:
    """Ids with a meaning of their own in the text vocabulary."""

    bos: int
    new_word: int
    pad: int
    zero: int
    spk1: int
    spk2: int


@dataclass(frozen=True)
class Entry:
    """One word, or (with no tokens) a pause, and the steps of padding forced after it begins."""

    tokens: tuple[int, ...]
    text: str
    padding: int


@dataclass(frozen=True)
class TextStep:
    """What one step adds: the two text ids of the next column, and the entry that began, if one did."""

    main: int
    second: int
    started: Entry | None


class TextMachine:
    """State of one stream's text. Copy it with `copy()`: a voice's snapshot is shared by its requests."""

    def __init__(
        self,
        tokens: TextTokens,
        entries: Iterable[Entry] = (),
        *,
        lookahead_words: int,
        max_padding: int,
        initial_padding: int,
    ) -> None:
        self.tokens = tokens
        self.lookahead_words = lookahead_words
        self.max_padding = max_padding
        self.initial_padding = initial_padding
        self.entries: deque[Entry] = deque(entries)
        self.pending: deque[int] = deque()  # pieces of the current word not yet in the main stream
        self.lookahead: deque[int] = deque()  # pieces of a later word not yet in the second stream
        self.padding_budget = initial_padding  # steps the model may still wait before a word is forced
        self.forced_padding = initial_padding  # steps it must still wait
        self.end_step: int | None = None  # the step at which the machine first had no word left to start
        self.open = False  # whether more entries may come
        self.flushed = 0  # of the entries: these may begin, although words behind them may be missing
        self.flushing = False  # whether the last entry that began is of those, or none is left

    def copy(self) -> TextMachine:
        twin = TextMachine.__new__(TextMachine)
        twin.__dict__.update(self.__dict__)
        for name in ("entries", "pending", "lookahead"):
            setattr(twin, name, getattr(self, name).copy())
        return twin

    def step(self, step: int, new_word: bool, *, forced: bool = False) -> TextStep:
        """Advance by one column.

        `new_word` is the proposed action. A forced proposal overrides padding, but never cuts a word's pieces short.
        """
        begins = self._may_begin(new_word, forced)
        started = self._begin_entry(step) if begins else None
        speaks = started is not None and bool(started.tokens)
        # With a second stream, the end of the script is announced once by the boundary token alone.
        announces_end = begins and started is None and self.lookahead_words > 0 and self.end_step == step
        if speaks or announces_end:
            return self._boundary_column(started)
        self.padding_budget = max(0, self.padding_budget - 1)
        self.forced_padding = max(0, self.forced_padding - 1)
        main = self.pending.popleft() if self.pending else self.tokens.pad
        if not self.lookahead_words:
            return TextStep(main, main, started)
        second = self.lookahead.popleft() if self.lookahead else self.tokens.pad
        return TextStep(main, second, started)

    def insert(self, index: int, entries: Sequence[Entry]) -> None:
        """Put entries in front of entry `index`. They may begin if what stands behind them may."""
        self.entries.rotate(-index)
        self.entries.extendleft(reversed(entries))
        self.entries.rotate(index)
        self.flushed += len(entries) if self.flushed else 0

    def flush(self) -> None:
        """Let all entries begin that there are now, without the words that they look ahead to."""
        self.flushed, self.flushing = len(self.entries), True

    def lacks_text(self) -> bool:
        """Whether the next entry cannot begin yet: it is not there, or not all that it looks ahead to."""
        if not self.open or self.flushed:
            return False
        return not self.entries or bool(self.entries[0].tokens and self.lookahead_words and not self._peek(1))

    def waits(self) -> bool:
        """Whether the next step could begin an entry, and that cannot begin yet."""
        return not self.pending and self.forced_padding <= 0 and self.lacks_text()

    def most_steps(self) -> int:
        """In how many more steps `end_step` is set at the latest, whatever the model proposes."""
        first = max(len(self.pending), self.forced_padding, self.padding_budget) + 1
        return first + sum(max(len(e.tokens) + 1, e.padding, self.max_padding) + 1 for e in self.entries)

    def _may_begin(self, new_word: bool, forced: bool) -> bool:
        if self.pending:
            return False
        if forced:
            return new_word
        if self.forced_padding > 0:
            return False
        return new_word or self.padding_budget <= 0

    def _begin_entry(self, step: int) -> Entry | None:
        if not self.entries:
            if self.end_step is None:
                self.end_step = step
            return None
        entry = self.entries.popleft()
        self.flushing = self.flushed > 0
        self.flushed = max(0, self.flushed - 1)
        if entry.tokens:
            self.pending.extend(entry.tokens)
            self.lookahead.extend(self._peek())
            self.padding_budget = self.max_padding
        self.forced_padding = entry.padding
        return entry

    def _peek(self, first: int = 0) -> tuple[int, ...]:
        """Pieces of the word `lookahead_words` ahead of the one before entry `first`; pauses do not count as words."""
        ahead = self.lookahead_words
        for entry in islice(self.entries, first, None):
            if entry.tokens:
                ahead -= 1
                if ahead == 0:
                    return entry.tokens
        return ()

    def _boundary_column(self, started: Entry | None) -> TextStep:
        boundary = self.tokens.new_word
        if not self.lookahead_words:
            return TextStep(boundary, boundary, started)
        main = self.pending.popleft() if self.pending else self.tokens.pad
        return TextStep(main, boundary, started)
