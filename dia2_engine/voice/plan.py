"""Aligning a voice prefix: which text entry begins at which column of the prefix.

Pure data, no audio and no model: a plan says how many frames each clip takes (with the silence it needs) and at
which steps its words begin, so that feeding the prefix consumes every word at its own step and leaves none over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import ConfigError
from ..text.parser import Encode
from ..text.state_machine import Entry, TextMachine, TextTokens

FIRST_CLIP_SHIFT_STEPS = 3  # the reference's offset of speaker 1's words; the model was trained with it


@dataclass(frozen=True)
class TimedWord:
    """A word of a clip, in seconds from the clip's start."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class PrefixPlan:
    """Words of a prefix on its columns. `clip_frames` counts each clip with the silence that follows it."""

    entries: tuple[Entry, ...]
    new_word_steps: tuple[int, ...]
    clip_frames: tuple[int, ...]

    @property
    def frames(self) -> int:
        """P: the prefix's length in frames."""
        return sum(self.clip_frames)


def align_words(
    words: Sequence[TimedWord], encode: Encode, speaker_tag: str, frame_rate: float
) -> tuple[list[Entry], list[int]]:
    """Entries of one clip and the step each begins at, as the reference aligns them.

    A word begins one step before its first piece; pieces of neighbours never overlap, so dense speech pushes
    later words back.
    """
    entries: list[Entry] = []
    steps: list[int] = []
    previous_end = 0
    for index, word in enumerate(words):
        pieces = tuple(encode(f"{speaker_tag} {word.text}" if index == 0 else word.text))
        start = max(previous_end + 1, round(word.start * frame_rate))
        end = start + len(pieces)
        following = words[index + 1].start if index + 1 < len(words) else word.end
        next_start = max(end + 1, round(following * frame_rate))
        entries.append(Entry(pieces, word.text, max(0, next_start - start - 1)))
        steps.append(start - 1)
        previous_end = end
    return entries, steps


def plan_prefix(
    clips: Sequence[tuple[Sequence[TimedWord], int]],
    encode: Encode,
    frame_rate: float,
    *,
    cooldown_frames: int = 0,
    fit: bool = True,
    first_speaker: int = 1,
) -> PrefixPlan:
    """Align clips of one speaker after the other, each given as its timed words and its length in frames.

    With `fit` (the default) a clip is followed by at least the silence its last word's pieces need, and the last
    one by `cooldown_frames` or more; without, frames are left as they are, which is the reference's plan.
    """
    entries: list[Entry] = []
    steps: list[int] = []
    clip_frames: list[int] = []
    for index, (words, frames) in enumerate(clips):
        speaker = first_speaker + index
        clip_entries, clip_steps = align_words(words, encode, f"[S{speaker}]", frame_rate)
        offset = FIRST_CLIP_SHIFT_STEPS if speaker == 1 else sum(clip_frames)
        clip_steps = [step + offset for step in clip_steps]
        entries += clip_entries
        steps += clip_steps
        if index == len(clips) - 1:
            frames += cooldown_frames
        if fit and clip_steps:
            # The last word needs one step for its boundary and one for each piece before the next may begin.
            needed = clip_steps[-1] + 1 + len(clip_entries[-1].tokens)
            frames = max(frames, needed - sum(clip_frames))
        clip_frames.append(frames)
    return PrefixPlan(tuple(entries), tuple(steps), tuple(clip_frames))


def check_plan(plan: PrefixPlan, machine: TextMachine, codec_frames: int) -> None:
    """Prove that feeding the prefix speaks all of it, and nothing of it is left for the request.

    A word left over would be *spoken as the first word of the request*: that is one road to the "prefix
    hallucination". Raises ConfigError saying which word and why.
    """
    if codec_frames != plan.frames:
        raise ConfigError(f"the prefix has {codec_frames} frames of audio but its plan covers {plan.frames}")
    if not plan.entries:
        raise ConfigError("the prefix has no words")
    started: list[tuple[Entry, int]] = []
    machine = machine.copy()
    machine.entries.extend(plan.entries)
    word_steps = set(plan.new_word_steps)
    for step in range(plan.frames):
        entry = machine.step(step, step in word_steps, forced=True).started
        if entry is not None:
            started.append((entry, step))
    for entry, step in zip(plan.entries, plan.new_word_steps, strict=True):
        if (entry, step) not in started:
            raise ConfigError(
                f"word {entry.text!r} does not begin at its frame {step} of {plan.frames}; its time lies outside "
                "the clip, out of order, or too close to its neighbour's"
            )
    if machine.entries or machine.pending:
        raise ConfigError(f"{len(machine.entries)} words and {len(machine.pending)} pieces are left over at the end")


def strip_control(plan: PrefixPlan, tokens: TextTokens) -> PrefixPlan:
    """Drop control ids that a transcript's words encode to; a word must keep at least one piece."""
    control = {tokens.bos, tokens.new_word, tokens.pad, tokens.zero}
    entries = []
    for entry in plan.entries:
        pieces = tuple(piece for piece in entry.tokens if piece not in control)
        if not pieces:
            raise ConfigError(f"word {entry.text!r} of the voice has no pronounceable piece")
        entries.append(replace(entry, tokens=pieces))
    return replace(plan, entries=tuple(entries))
