"""How a stream uses the model's context: what bounds it, what is fed again, and what it remembers of its words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .grid import Ids
from .text.state_machine import Entry

TAIL_FRAMES = 6  # emitted after the step at which the script ran out, as by the reference
FRESH_CONTEXT_STEPS = 64  # before a context's end, a stream looks for a good place to leave it


@dataclass(frozen=True)
class StreamLimits:
    """Where a stream ends at the latest, and what it may take along."""

    max_steps: int  # columns of context, the prefix's included
    max_frames: int  # emitted
    tail_frames: int  # emitted after the step at which the script ran out
    carried_frames: int = 0  # of its own audio that a stream takes along into a fresh context; 0: it ends there
    heard_frames: int = 0  # of other speakers between two of its turns


@dataclass(frozen=True)
class Replay:
    """What is known and must be fed before the next step."""

    start: int  # position of the first column
    columns: Ids  # [N, 2 + C]
    from_voice: bool  # behind the voice's snapshot, in place of all that was fed before
    heard: Ids  # frames [C, n] that are not emitted, but that the codec must have decoded before the next one


@dataclass(frozen=True)
class Begun:
    """An entry that began behind the voice, the step at which it did, and who speaks."""

    entry: Entry
    step: int
    speaker: int | None

    def named(self, until: int) -> Entry:
        """With its speaker's tag, where somebody else may have spoken before, if that fits in before step `until`."""
        pieces = self.entry.tokens
        if not pieces or self.speaker is None or self.speaker in pieces or until - self.step < len(pieces) + 2:
            return self.entry
        return replace(self.entry, tokens=(self.speaker, *pieces))


def steps_needed(entries: Iterable[Entry], prefix_frames: int, max_delay: int, tail_frames: int) -> int:
    """Fewest columns in which `entries` can be spoken after the prefix, delay and tail included."""
    text = sum(entry.padding + 1 if entry.tokens else entry.padding for entry in entries)
    return prefix_frames + text + tail_frames + max_delay


def end_steps(max_padding: int, tail_frames: int, max_delay: int) -> int:
    """For which there must be room in a context, so that what is spoken can end."""
    return max_padding + tail_frames + max_delay + 2


def carried_room(max_steps: int, prefix_frames: int, max_delay: int, max_padding: int) -> int:
    """How many frames may be carried or heard at most: of either, half of what is left beside the voice and an end."""
    end = end_steps(max_padding, TAIL_FRAMES, max_delay)
    return (max_steps - prefix_frames - end - FRESH_CONTEXT_STEPS) // 2
