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

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import dropwhile, islice

import numpy as np

from .config import Boundary
from .context import FRESH_CONTEXT_STEPS, Begun, Replay, StreamLimits, end_steps
from .grid import DelayGrid, Ids
from .prefix import Heard, Prefix, joined
from .text.state_machine import Entry, TextMachine
from .types import BEFORE_START, FROM_PREFIX, SAMPLED, FinishReason


class BoundaryStream:
    """One request on the grid. Per step: `column()` and `given()`, then `take_action()` and `advance()`.

    The ids that a step samples are needed for its frames only, so `take_codes()` may come later: neither text nor
    the end of a stream depends on them.

    Text may come while it is spoken, if the machine is open: `append()`, `flush()`, `close()`. A stream whose next step
    may need a word that is missing `waits`. Where all that has begun was flushed, it goes on as if the text ended there
    (a copy of the machine ends, `_ending`), until all of it has been emitted; when more text comes it goes back to the
    first frame that has not been. In between somebody else may speak: `hear()`.

    Before a step `turn()` is due whenever `turns`: it lays out columns that are known and must be fed in one pass. At
    the start those are the columns from the cut to the prefix's end, which the text makes known; after a flush the
    pause since the last word; what was heard of others; and where the context ends, the voice again and the stream's
    last seconds behind it.
    Everything that has been made goes along, so a fresh context is no seam in the audio.
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
        fresh: TextMachine,
    ) -> None:
        """`machine` holds the request's entries; with a prefix, behind what is left of the prefix's own.

        `fresh` is a machine without entries, as streams without a prefix begin with.
        """
        self.machine = machine
        self.limits = limits
        self.max_delay = max(delays)
        self._instant = int(min(delays) == 0)  # then a frame's first cell is made by the step before its column
        self.end: FinishReason | None = None
        self.words: deque[tuple[str, int]] = deque()  # text and grid frame at which it starts, until they are taken
        self.cache_shift = 0  # KV rows run ahead of positions by this: the reference feeds one column twice
        self.frames_out = 0
        self._prefix, self._fresh = prefix, fresh
        self._kicks = kick and boundary == "seamless"
        self._ending: TextMachine | None = None
        self._ending_from = (0, (0, 0))  # the step at which it was copied, and the text of that step's column
        self._heard: list[Heard] = []  # since the last word
        self._begun: list[Begun] = []  # in this context
        self._speaker: int | None = None
        self._started = False
        empty = np.zeros((len(delays), 0), np.int64)
        if prefix is None:
            self._forced_steps, self._word_steps, self._kick_step = 0, frozenset[int](), -1
            # Column 0 is input: with a delay of 0 no step makes that codebook's frame 0, so frames begin at 1.
            self.grid = DelayGrid(delays, bos, empty, [max(1, delay) for delay in delays], limits.max_steps + 1)
            self.step, self.text = 0, (machine.tokens.bos, machine.tokens.pad)
            self.first_frame: int | None = self._instant
            self._replay_end = 0
        else:
            frames = prefix.frames
            regenerate = boundary == "reference"
            self._forced_steps, self._word_steps = frames, prefix.word_steps
            self._kick_step = frames if self._kicks else -1
            sample_from = [frames if regenerate else frames + delay for delay in delays]
            self.grid = DelayGrid(delays, bos, prefix.tokens, sample_from, limits.max_steps + 1)
            self.step, self.text = prefix.cut, prefix.cut_text
            self.first_frame = frames
            self._replay_end = frames if regenerate else frames - self._instant
            if regenerate:
                self.cache_shift = 1
                # The reference crops where the main stream first shows a word boundary, less the initial padding;
                # with a second stream the main one never shows any, and it crops at its first step.
                self.first_frame = frames - 1 if machine.lookahead_words else None
        self.most_steps = self._most_steps()  # columns it may ever take
        self._nothing_given = np.zeros(len(delays), np.int64), np.zeros(len(delays), np.int64)
        self._no_frames = empty

    def _most_steps(self) -> int:
        # No frame is sent until a word begins, which an empty script has none of.
        if self.first_frame is None or self.machine.open:
            return self.limits.max_steps
        begin = max(self.step, self._forced_steps)
        text = begin + self.machine.most_steps() + self.limits.tail_frames + self.max_delay + 1
        return min(self.limits.max_steps, text, self.first_frame + self.limits.max_frames + self.max_delay)

    # ---- text that comes while it is spoken

    def append(self, entries: Iterable[Entry]) -> None:
        """More of the script."""
        self.machine.entries.extend(entries)

    def flush(self) -> None:
        """Speak what is there to its end without waiting for the words behind it."""
        self.machine.flush()

    def close(self) -> None:
        """No more text will come."""
        self.machine.open = False
        if self._ending is not None and not self.machine.entries:
            self.machine, self._ending = self._ending, None
            if self._everything_out():
                self.end = "stop"

    def hear(self, heard: Heard) -> None:
        """What somebody else says now; only when all of the stream's own `is_said`. The next word comes behind it.

        Of more than the context has room for, the last is kept.
        """
        self._heard.append(heard)
        while sum(each.frames for each in self._heard) > self.limits.heard_frames:
            self._heard.pop(0)

    @property
    def is_said(self) -> bool:
        """Whether all words that it was given are out; before the start, whether there are none."""
        if not self._started:
            return not any(entry.tokens for entry in islice(self.machine.entries, self._voice_entries, None))
        return self._ending is not None and not self.machine.entries and self._everything_out()

    @property
    def _voice_entries(self) -> int:
        """How many of the machine's entries are the voice's."""
        return len(self._prefix.machine.entries) if self._prefix and not self._started else 0

    @property
    def may_start(self) -> bool:
        """Whether there is enough text for the replay and the step behind it; asked before the start."""
        machine, theirs = self.machine, self._voice_entries
        own = list(islice(machine.entries, theirs, None))
        words = sum(bool(entry.tokens) for entry in own)
        if not machine.open or machine.flushed > theirs:
            return words > 0
        return bool(own) and words >= machine.lookahead_words + bool(own[0].tokens)

    @property
    def waits(self) -> bool:
        """Whether it takes no step until more text has come."""
        if not self.machine.open:
            return False
        if self._ending is not None:
            return self._everything_out() and not self._goes_on()
        return self._lacks_text() and not self.machine.flushing

    def _lacks_text(self) -> bool:
        return self.machine.lacks_text() if self.step == self._kick_step else self.machine.waits()

    def _goes_on(self) -> bool:
        """Whether text has come since the stream began to end."""
        return bool(self.machine.entries) and not self.machine.lacks_text()

    def _everything_out(self) -> bool:
        return self.frames_out >= self._frames_total()[0]

    # ---- known columns

    @property
    def turns(self) -> bool:
        """Whether `turn()` is due before the next step. All ids made so far must have been taken before that."""
        if not self._started:
            return True
        if self._ending is not None:
            return self._goes_on()
        return self._is_due_for_a_fresh_context()

    def turn(self) -> Replay:
        """Go to where the next step continues, and say what must be fed for that."""
        heard = self._take_heard()
        if not self._started:
            self._started = True
            replay = self._start()
        elif self._ending is None:
            replay = self._take_a_fresh_context()
        else:
            replay = self._go_on()
            if self._left(heard.frames) < FRESH_CONTEXT_STEPS:
                replay = self._take_a_fresh_context()
        return self._listen(heard, replay) if heard.frames else replay

    def _start(self) -> Replay:
        start = self.step
        columns = self._forced(self.machine, self._replay_end, self._word_steps)
        if self.cache_shift:
            self._forced_steps, self.step = 0, self.step - 1
        return Replay(start, columns, True, self._no_frames)

    def _go_on(self) -> Replay:
        """After a flush: the frames that have been emitted are known, and what was made beyond is dropped.

        If none of the end has been emitted, the stream goes back to the step at which it began to end.
        """
        assert self.first_frame is not None
        self._ending = None
        start, self.text = self._ending_from
        self.step, frame = start, self.first_frame + self.frames_out
        columns = self._forced(self.machine, max(start, frame - self._instant), frozenset())
        self.grid.forget(self.step + 1, self._known())
        return Replay(start, columns, False, self._no_frames)

    def _known(self) -> int:
        """Frames below this one are complete."""
        assert self.first_frame is not None
        frame = self.first_frame + self.frames_out
        # Without a voice, where a codebook has no frame 0, the others' is neither emitted nor known in front.
        return frame if self._prefix or frame > self._instant else 0

    def _take_heard(self) -> Heard:
        """All that was heard, as one; its words are the machine's next ones, in front of the stream's own."""
        heard = joined(self._heard, len(self.grid.delays))
        self._heard.clear()
        self.machine.insert(self._voice_entries, heard.entries)
        return heard

    def _listen(self, heard: Heard, replay: Replay) -> Replay:
        """Go on behind what was heard. Its frames are known as a prefix's are, and none of them is emitted."""
        assert self.first_frame is not None
        # Where there is nothing in front it stands in for a voice, and also fills cells that no step makes.
        frame = self.first_frame + self.frames_out if self.step or self._prefix else 0
        end = frame + heard.frames
        self.grid.put(frame, heard.tokens)
        speaker = self.machine.tokens.spk2
        begun = [Begun(entry, frame + at, speaker) for entry, at in zip(heard.entries, heard.steps, strict=True)]
        # With an instant codebook the voice's last step is still to come, and a word of its may begin there.
        self._word_steps |= {one.step for one in begun}
        columns = self._forced(self.machine, max(self.step, end - self._instant), self._word_steps)
        self.grid.forget(self.step + 1, end)
        self._begun += begun
        self._speaker = speaker
        self._forced_steps, self._kick_step = end, end if self._kicks else -1
        self._move_frames(end - self.frames_out - self.first_frame)
        return replace(replay, columns=np.concatenate([replay.columns, columns]), heard=heard.tokens)

    def _move_frames(self, shift: int) -> None:
        """The next frame to be emitted is so many columns further on."""
        assert self.first_frame is not None
        self.first_frame += shift
        self.words = deque((word, frame + shift) for word, frame in self.words)

    def _is_due_for_a_fresh_context(self) -> bool:
        """Best at the end of a sentence, else of a word, and in a word only if there is none (a long pause, say)."""
        machine, left = self.machine, self._left()
        if left > FRESH_CONTEXT_STEPS or not self.limits.carried_frames or machine.end_step is not None:
            return False
        between = not machine.pending and machine.forced_padding <= 0
        if between and not machine.entries:
            return False  # it is about to end, for which there is room
        sentence_ended = bool(self._begun) and self._begun[-1].entry.text.endswith((".", "!", "?"))
        return left <= 0 or (between and (sentence_ended or left <= FRESH_CONTEXT_STEPS // 2))

    def _left(self, frames: int = 0) -> int:
        """Steps of context that are left behind so many frames more, with room for an end."""
        end = end_steps(self.machine.max_padding, self.limits.tail_frames, self.max_delay)
        return self.limits.max_steps - self.step - frames - end

    def _take_a_fresh_context(self) -> Replay:
        """The voice's columns, and behind them the stream's own from its first word in the last `carried_frames`."""
        assert self.first_frame is not None
        prefix, step, text = self._prefix, self.step, self.text
        begun = [one for one in self._begun if one.step >= step - self.limits.carried_frames]
        begun = list(dropwhile(lambda one: not one.entry.tokens, begun))
        # Frames that have not been emitted come along in any case.
        first = min([self.first_frame + self.frames_out, *(one.step for one in begun[:1])])
        start, voice_frames = (prefix.cut, prefix.frames) if prefix else (0, 0)
        shift = voice_frames - first
        machine = (prefix.machine if prefix else self._fresh).copy()
        until = begun[1].step if len(begun) > 1 else step
        machine.entries.extend(one.named(until) if one is begun[0] else one.entry for one in begun)
        machine.entries.extend(self.machine.entries)
        self.grid = self.grid.moved(prefix.tokens if prefix else self._no_frames, first, step, self._known())
        self._begun = [replace(one, step=one.step + shift) for one in begun]
        self._move_frames(shift)
        self._forced_steps, self._kick_step, self._word_steps = 0, -1, frozenset()
        word_steps = (prefix.word_steps if prefix else frozenset()) | {one.step for one in self._begun}
        self.step, self.text = start, prefix.cut_text if prefix else (machine.tokens.bos, machine.tokens.pad)
        columns = self._forced(machine, step + shift, word_steps)
        self.text = text
        return Replay(start, columns, True, self._no_frames)

    def _forced(self, machine: TextMachine, end: int, word_steps: frozenset[int]) -> Ids:
        """Go to step `end`, entries beginning at `word_steps`; the columns on the way."""
        start, text = self.step, []
        for step in range(start, end):
            text.append(self.text)
            made = machine.step(step, step in word_steps, forced=True)
            self.text = (made.main, made.second)
        self.step = max(start, end)
        audio = self.grid.cells[:, start : self.step].T
        return np.concatenate([np.asarray(text, np.int64).reshape(len(text), 2), audio], axis=1)

    # ---- a step

    def column(self) -> Ids:
        """The column this step consumes, [2 + C]."""
        return np.concatenate([np.asarray(self.text, np.int64), self.grid.cells[:, self.step]])

    def samples_audio(self) -> bool:
        """Whether this step needs the depformer; else it is text-only (codebook 0 comes with the transformer)."""
        return self.step + 1 >= self.grid.depformer_from

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
        elif self._ending is None and self._lacks_text():
            self._ending, self._ending_from = self.machine.copy(), (self.step, self.text)
            self._ending.entries.clear()
            self._ending.open = False
        machine = self._ending or self.machine
        made = machine.step(self.step, new_word or kicked, forced=in_prefix or kicked)
        self.text = (made.main, made.second)
        if in_prefix:
            return
        if self.first_frame is None and made.main == machine.tokens.new_word:
            self.first_frame = max(0, self.step - machine.initial_padding)
        if made.started is not None:
            self._begin(made.started)

    def _begin(self, entry: Entry) -> None:
        speakers = (self.machine.tokens.spk1, self.machine.tokens.spk2)
        self._speaker = next((piece for piece in entry.tokens if piece in speakers), self._speaker)
        self._begun.append(Begun(entry, self.step, self._speaker))
        if entry.tokens:
            self.words.append((entry.text, self.step))

    def advance(self) -> range:
        """The step is made. Indices of the frames that its codes complete, in order; sets `end` with the last one."""
        self.step += 1
        out_of_context = self.step >= self.limits.max_steps
        if self.first_frame is None and out_of_context:
            assert self._prefix is not None
            self.first_frame = self._prefix.frames - 1
        if self.end is not None or self.first_frame is None:
            return range(0)
        first = self.first_frame + self.frames_out
        frames_total, reason = self._frames_total()
        complete = self.step - self.max_delay + 1 - self.first_frame
        self.frames_out = max(self.frames_out, min(frames_total, complete))
        if self.frames_out >= frames_total:
            if reason == "length" or self._ending is None:
                self.end = reason
        elif out_of_context:
            self.end = "length"
        return range(first, self.first_frame + self.frames_out)

    def _frames_total(self) -> tuple[int, FinishReason]:
        """How many frames are emitted, as far as that is known, and why no more."""
        machine = self._ending or self.machine
        if machine.end_step is not None and self.first_frame is not None:
            spoken = machine.end_step + self.limits.tail_frames + 1 - self.first_frame
            if spoken <= self.limits.max_frames:
                return spoken, "stop"
        return self.limits.max_frames, "length"

    def take_codes(self, column: int, ids: Ids) -> None:
        """Store the ids [C] that were sampled for a column. Cells that are not sampled are ignored."""
        self.grid.write(column, ids)
