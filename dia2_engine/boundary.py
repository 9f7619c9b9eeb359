"""The safe boundary protocol: one stream's columns, from the voice prefix into the request, without a model.

Column t holds, for codebook c, the aligned frame `t - delay[c]`. A step consumes column t and produces column t+1.
A prefix of P frames fills columns 0..P-1, but codebook c of its last `delay[c]` frames still belongs to columns
P and later. So every cell whose frame is below P is *teacher-forced* with the prefix's own token, nothing is
sampled before a codebook's frame P, and frames are emitted from P on: the prefix is never heard, the model
continues from the true voice, and no cell is ever read before it is written (docs/boundary.md derives all this).

With `boundary="reference"` the stream does what nari-labs/dia2 does instead: column P-1 is fed a second time and
everything after it is sampled, so the delayed tail is generated again and output starts at frame P-1.

Everything here is plain Python and numpy, so that it can be tested against any model, and without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import Boundary
from .text.state_machine import Entry, TextMachine
from .types import BEFORE_START, FROM_PREFIX, SAMPLED, FinishReason

Ids = NDArray[np.int64]

UNFILLED = -2  # "not generated": legal nowhere, so that reading such a cell is caught by every guard


class DelayGrid:
    """Audio ids of one stream on the delayed grid: BOS before a codebook's first frame, then prefix, then samples."""

    def __init__(self, delays: Sequence[int], bos: int, prefix: Ids, sample_from: Sequence[int], columns: int) -> None:
        """`prefix` is aligned [C, P]; cell c is sampled from column `sample_from[c]` on, but not before its delay."""
        self.delays = np.asarray(delays, np.int64)  # [C]
        self.sample_from = np.maximum(sample_from, self.delays)  # [C]
        self.all_sampled_from = int(self.sample_from.max())  # from this column on every cell is
        self._codebooks = np.arange(len(delays))
        self.cells = np.full((len(delays), columns), UNFILLED, np.int64)  # [C, columns]
        for c, (delay, end) in enumerate(zip(self.delays, self.sample_from, strict=True)):
            self.cells[c, :end] = bos
            known = min(end, columns) - delay
            if known > 0 and prefix.shape[1]:
                self.cells[c, delay : delay + known] = prefix[c, :known]

    def sampled(self, column: int) -> NDArray[np.bool_]:
        """Which codebooks of a column are sampled, [C]."""
        return column >= self.sample_from

    def write(self, column: int, ids: Ids) -> None:
        """Store sampled ids [C]; cells that are not sampled keep what they are."""
        if column >= self.all_sampled_from:
            self.cells[:, column] = ids
        else:
            mask = self.sampled(column)
            self.cells[mask, column] = ids[mask]

    def frame(self, index: int) -> Ids:
        """Aligned frame `index`, [C]."""
        ids: Ids = self.cells[self._codebooks, index + self.delays]
        return ids


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


@dataclass(frozen=True)
class StreamLimits:
    """Where a stream ends at the latest."""

    max_steps: int  # columns of context, the prefix's included
    max_frames: int  # emitted
    tail_frames: int  # emitted after the step at which the script ran out


class BoundaryStream:
    """One request on the grid. Per step: `column()` and `given()`, then `take_action()` and `advance()`.

    The ids that a step samples are needed for its frames only, so `take_codes()` may come later: neither text nor
    the end of a stream depends on them. `replay` holds the columns from the cut to the prefix's end, which the
    request's text makes known; feed them in one pass before the first step.
    """

    def __init__(
        self,
        *,
        machine: TextMachine,
        delays: Sequence[int],
        bos: int,
        prefix: Prefix | None,
        boundary: Boundary,
        kick: bool,
        limits: StreamLimits,
    ) -> None:
        """`machine` holds the request's entries; with a prefix, behind what is left of the prefix's own."""
        self.machine = machine
        self.limits = limits
        self.max_delay = max(delays)
        self.end: FinishReason | None = None
        self.words: list[tuple[str, int]] = []  # text and grid frame at which it starts
        self.cache_shift = 0  # KV rows run ahead of positions by this: the reference feeds one column twice
        if prefix is None:
            empty = np.zeros((len(delays), 0), np.int64)
            self._forced_steps, self._word_steps, self._kick_step = 0, frozenset[int](), -1
            # Column 0 is input: with a delay of 0 no step makes that codebook's frame 0, so frames begin at 1.
            self.grid = DelayGrid(delays, bos, empty, [max(1, delay) for delay in delays], limits.max_steps + 1)
            self.step, self.text = 0, (machine.tokens.bos, machine.tokens.pad)
            self.first_frame: int | None = int(min(delays) == 0)
            self.replay = np.zeros((0, 2 + len(delays)), np.int64)
        else:
            frames = prefix.frames
            regenerate = boundary == "reference"
            self._forced_steps, self._word_steps = frames, prefix.word_steps
            self._kick_step = frames if kick and not regenerate else -1
            sample_from = [frames if regenerate else frames + delay for delay in delays]
            self.grid = DelayGrid(delays, bos, prefix.tokens, sample_from, limits.max_steps + 1)
            self.step, self.text = prefix.cut, prefix.cut_text
            self.first_frame = frames
            self.replay = self._replay(frames if regenerate or min(delays) > 0 else frames - 1)
            if regenerate:
                self._forced_steps, self.step, self.cache_shift = 0, frames - 1, 1
                # The reference crops where the main stream first shows a word boundary, less the initial padding;
                # with a second stream the main one never shows any, and it crops at its first step.
                self.first_frame = self.step if machine.lookahead_words else None
        self.first_step = self.step
        self.frames_out = 0
        self.most_steps = self._most_steps()  # columns it may ever take
        self._depformer_from = int(min(self.grid.sample_from[1:], default=limits.max_steps + 1))
        self._nothing_given = np.zeros(len(delays), np.int64), np.zeros(len(delays), np.int64)

    def _most_steps(self) -> int:
        if self.first_frame is None:  # no frame is sent until a word begins, which an empty script has none of
            return self.limits.max_steps
        text = self.step + self.machine.most_steps() + self.limits.tail_frames + self.max_delay + 1
        return min(self.limits.max_steps, text, self.first_frame + self.limits.max_frames + self.max_delay)

    def _replay(self, end: int) -> Ids:
        start, text = self.step, []
        while self.step < end:
            text.append(self.text)
            self.take_action(False)
            self.step += 1
        audio = self.grid.cells[:, start:end].T
        return np.concatenate([np.asarray(text, np.int64).reshape(len(text), 2), audio], axis=1)

    def column(self) -> Ids:
        """The column this step consumes, [2 + C]."""
        return np.concatenate([np.asarray(self.text, np.int64), self.grid.cells[:, self.step]])

    def samples_audio(self) -> bool:
        """Whether this step needs the depformer; else it is text-only (codebook 0 comes with the transformer)."""
        return self.step + 1 >= self._depformer_from

    def given(self) -> tuple[Ids, Ids]:
        """Ids [C] of the next column that are not sampled (0 where they are), and of each cell what it comes from.

        The depformer builds on what is `FROM_PREFIX`, and elsewhere on what it sampled.
        """
        column = self.step + 1
        if column >= self.grid.all_sampled_from:
            return self._nothing_given
        kind = np.where(column >= self.grid.delays, FROM_PREFIX, BEFORE_START)
        kind[self.grid.sampled(column)] = SAMPLED
        return np.where(kind == SAMPLED, 0, self.grid.cells[:, column]), kind

    def take_action(self, new_word: bool) -> None:
        """Apply this step's sampled action (overridden inside the prefix and by the kick): the next column's text."""
        in_prefix = self.step < self._forced_steps
        kicked = self.step == self._kick_step
        if in_prefix:
            new_word = self.step in self._word_steps
        made = self.machine.step(self.step, new_word or kicked, forced=in_prefix or kicked)
        self.text = (made.main, made.second)
        if in_prefix:
            return
        if self.first_frame is None and made.main == self.machine.tokens.new_word:
            self.first_frame = max(0, self.step - self.machine.initial_padding)
        if made.started is not None and made.started.tokens:
            self.words.append((made.started.text, self.step))

    def advance(self) -> range:
        """The step is made. Indices of the frames that its codes complete, in order; sets `end` with the last one."""
        self.step += 1
        out_of_context = self.step >= self.limits.max_steps
        if self.first_frame is None and out_of_context:
            self.first_frame = self.first_step
        if self.end is not None or self.first_frame is None:
            return range(0)
        frames_total, reason = self.limits.max_frames, "length"
        if self.machine.end_step is not None:
            spoken = self.machine.end_step + self.limits.tail_frames + 1 - self.first_frame
            if spoken <= frames_total:
                frames_total, reason = spoken, "stop"
        first = self.first_frame + self.frames_out
        complete = self.step - self.max_delay + 1 - self.first_frame
        self.frames_out = max(self.frames_out, min(frames_total, complete))
        if self.frames_out >= frames_total:
            self.end = "stop" if reason == "stop" else "length"
        elif out_of_context:
            self.end = "length"
        return range(first, self.first_frame + self.frames_out)

    def take_codes(self, column: int, ids: Ids) -> None:
        """Store the ids [C] that were sampled for a column. Cells that are not sampled are ignored."""
        self.grid.write(column, ids)


def steps_needed(entries: Iterable[Entry], prefix_frames: int, max_delay: int, tail_frames: int) -> int:
    """Fewest columns in which `entries` can be spoken after the prefix, delay and tail included."""
    text = sum(entry.padding + 1 if entry.tokens else entry.padding for entry in entries)
    return prefix_frames + text + tail_frames + max_delay
