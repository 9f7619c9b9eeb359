"""What others contribute to a stream: its voice, fed once at start-up, and who is heard between its turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .grid import DelayGrid, Ids
from .text.state_machine import Entry, TextMachine


@dataclass(frozen=True)
class Prefix:
    """What a voice contributes to a stream: its tokens, and its text up to the cut.

    Columns before `cut` depend on no request: they are fed once, at start-up. From the step where the word
    `lookahead_words` before the prefix's end begins, the second text stream looks into the request.
    """

    tokens: Ids  # aligned [C, P]
    word_steps: frozenset[int]
    machine: TextMachine  # having made the text of columns 0..cut
    columns: Ids  # columns 0..cut-1, [cut, 2 + C]
    cut_text: tuple[int, int]  # main and second id of column `cut`

    @property
    def frames(self) -> int:
        """P."""
        return int(self.tokens.shape[1])

    @property
    def cut(self) -> int:
        return int(self.columns.shape[0])


@dataclass(frozen=True)
class Heard:
    """What somebody else says between two turns of a stream, with the silence behind it."""

    tokens: Ids  # aligned [C, n]
    entries: tuple[Entry, ...]
    steps: tuple[int, ...]  # at which the entries begin, counted from the first frame

    @property
    def frames(self) -> int:
        """n."""
        return int(self.tokens.shape[1])


def joined(heard: Sequence[Heard], codebooks: int) -> Heard:
    """One after another."""
    tokens: Ids = np.zeros((codebooks, 0), np.int64)
    entries: tuple[Entry, ...] = ()
    steps: tuple[int, ...] = ()
    for each in heard:
        steps += tuple(tokens.shape[1] + step for step in each.steps)
        entries += each.entries
        tokens = np.concatenate([tokens, each.tokens], axis=1)
    return Heard(tokens, entries, steps)


def build_prefix(
    machine: TextMachine, tokens: Ids, new_word_steps: Sequence[int], delays: Sequence[int], bos: int
) -> Prefix:
    """Feed the prefix's text up to the cut. `machine` holds the prefix's entries, unstarted; `tokens` is [C, P]."""
    frames = int(tokens.shape[1])
    ahead = machine.lookahead_words
    cut = new_word_steps[max(0, len(new_word_steps) - ahead)] if ahead else frames
    if min(delays) == 0:
        cut = min(cut, frames - 1)  # step P-1 samples frame P of a codebook without delay
    grid = DelayGrid(delays, bos, tokens, [frames + delay for delay in delays], frames)
    word_steps = frozenset(new_word_steps)
    text = [(machine.tokens.bos, machine.tokens.pad)]
    for step in range(cut):
        made = machine.step(step, step in word_steps, forced=True)
        text.append((made.main, made.second))
    columns = np.concatenate([np.asarray(text[:cut], np.int64).reshape(cut, 2), grid.cells[:, :cut].T], axis=1)
    return Prefix(tokens, word_steps, machine, columns, text[cut])
