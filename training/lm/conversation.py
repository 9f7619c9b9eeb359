"""What a row of training says: utterances of the corpus, joined as a voice and a request that continues it.

The voice is one clip or two, the request what a server is sent: text with tags and breaks. Who speaks can be told from
the voice alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dia2_engine.errors import ConfigError
from dia2_engine.text.parser import Encode
from dia2_engine.text.state_machine import TextMachine
from dia2_engine.voice.plan import PrefixPlan, TimedWord, check_plan, plan_prefix

from ..tokens import Utterance, read
from .shape import FRAME_RATE

Codes = NDArray[np.int16]

_NO_VOICE = 0.12  # share of rows
_ALONE = 0.35  # only speaker 1 says something
_ONE_SPEAKER = {True: 0.5, False: 0.15}  # both speakers are the same one: if alone, if not
_SAME_CLIP = 0.75  # of those: the voice's one clip stands for both
_FIRST_CLIP_ONLY = 0.15
_CLIP_FRAMES = (20, 75)  # a clip has whole utterances, until it is so long
_CLIP_GAP_FRAMES = (1, 6)
_COOLDOWN_FRAMES = (4, 10)
_KICK = 0.85
_ENDS = 0.4
_TURN = 0.5  # the other one speaks next
_SECOND_BEGINS = 0.2
_TAG = 0.3  # where the same one goes on
_GAP_FRAMES = (2, 14, 4)  # least, most, most likely
_BREAK_FRAMES = 6  # gaps from here on are asked for in the text, or it would run ahead of the audio


@dataclass(frozen=True)
class Conversation:
    """Audio and text of a row. Frames are counted from the row's first."""

    voice: PrefixPlan | None
    codes: Codes  # [codebooks, frames], the voice's first; as many frames as columns, or more
    script: str
    starts: list[int]  # frame in which each word or break of the script begins
    end: int  # frame in which the last word has ended
    kick: bool


class Corpus:
    """Utterances by speaker."""

    def __init__(self, utterances: Iterable[Utterance]) -> None:
        self.speakers: dict[str, list[Utterance]] = {}
        for utterance in utterances:
            self.speakers.setdefault(utterance.speaker, []).append(utterance)
        self.names = sorted(self.speakers)


def read_corpus(folder: Path, which: str) -> Corpus:
    """A set, `train` or `test`, of a folder of tokens. Raises FileNotFoundError if there is none of it."""
    paths = sorted(folder.glob(f"{which}-*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"{folder} has no {which}-*.safetensors; make them with the stage `tokens`")
    return Corpus(utterance for path in paths for utterance in read(path))


class Writer:
    """Draws conversations; the same seed gives the same one."""

    def __init__(self, corpus: Corpus, encode: Encode, machine: TextMachine, steps: int) -> None:
        """`machine` is an empty one, to copy; rows have so many `steps`."""
        self._corpus, self._encode, self._machine, self._steps = corpus, encode, machine, steps

    def draw(self, seed: int) -> Conversation:
        chance = random.Random(seed)  # noqa: S311
        alone = chance.random() < _ALONE
        first = second = chance.choice(self._corpus.names)
        if chance.random() >= _ONE_SPEAKER[alone]:
            second = chance.choice(self._corpus.names)
        cast = self._corpus.speakers[first], self._corpus.speakers[second]
        voice = None
        while voice is None and chance.random() >= _NO_VOICE:
            voice = self._voice(chance, cast)
        plan, codes = voice or (None, cast[0][0].codes[:, :0])
        return self._request(chance, cast, alone, plan, codes)

    def _voice(
        self, chance: random.Random, cast: tuple[list[Utterance], list[Utterance]]
    ) -> tuple[PrefixPlan, Codes] | None:
        """None if it takes more than half of the row, or its words come too fast to be laid out as a server does it."""
        clips = [_clip(chance, cast[0])]
        if chance.random() >= _FIRST_CLIP_ONLY:
            again = cast[0] is cast[1] and chance.random() < _SAME_CLIP
            clips.append(clips[0] if again else _clip(chance, cast[1]))
        timed = [(words, codes.shape[1]) for words, codes in clips]
        plan = plan_prefix(timed, self._encode, FRAME_RATE, cooldown_frames=chance.randint(*_COOLDOWN_FRAMES))
        try:
            check_plan(plan, self._machine, plan.frames)
        except ConfigError:
            return None
        if plan.frames > self._steps // 2:
            return None
        parts = [lasting(codes, frames) for (_, codes), frames in zip(clips, plan.clip_frames, strict=True)]
        return plan, np.concatenate(parts, axis=1)

    def _request(
        self,
        chance: random.Random,
        cast: tuple[list[Utterance], list[Utterance]],
        alone: bool,
        voice: PrefixPlan | None,
        codes: Codes,
    ) -> Conversation:
        kick = voice is not None and chance.random() < _KICK
        begin = codes.shape[1]
        until = chance.randint(begin + 1, self._steps) if chance.random() < _ENDS else self._steps + 1
        script: list[str] = []
        starts: list[int] = []
        speaker, last = int(not alone and chance.random() < _SECOND_BEGINS), -1
        said = chance.choice(cast[speaker])
        parts, silence = [codes], codes[:, -1:] if voice else said.codes[:, -1:]
        frame = end = begin
        while frame < until:
            if starts:
                gap = round(chance.triangular(*_GAP_FRAMES))
            elif voice is None:  # the machine begins the first word after its initial padding
                gap = max(0, self._machine.initial_padding - int(said.onsets_s[0] * FRAME_RATE))
            else:
                gap = 0 if kick else chance.randint(0, _GAP_FRAMES[0])
            onsets = [frame + gap + int(onset_s * FRAME_RATE) for onset_s in said.onsets_s]
            if starts and gap >= _BREAK_FRAMES:
                script.append(f'<break time="{(onsets[0] - end) / FRAME_RATE:.2f}s"/>')
                starts.append(end)
            if speaker != last or chance.random() < _TAG:
                script.append(f"[S{speaker + 1}]")
            script.append(said.text)
            starts += onsets
            speech = math.ceil(said.end_s * FRAME_RATE)
            parts += [lasting(silence, gap), said.codes[:, :speech]]
            silence = said.codes[:, speech:]
            frame = end = frame + gap + speech
            last = speaker
            speaker ^= not alone and chance.random() < _TURN
            said = chance.choice(cast[speaker])
        parts.append(lasting(silence, max(1, self._steps + 1 - frame)))
        return Conversation(voice, np.concatenate(parts, axis=1), " ".join(script), starts, end, kick)


def _clip(chance: random.Random, utterances: list[Utterance]) -> tuple[list[TimedWord], Codes]:
    """Some utterances as one recording of a voice, with the time of each word."""
    words: list[TimedWord] = []
    parts: list[Codes] = []
    frames, wanted = 0, chance.randint(*_CLIP_FRAMES)
    while frames < wanted:
        said = chance.choice(utterances)
        begin_s, ends_s = frames / FRAME_RATE, [*said.onsets_s[1:], said.end_s]
        for text, onset_s, end_s in zip(said.text.split(), said.onsets_s, ends_s, strict=True):
            words.append(TimedWord(text, begin_s + onset_s, begin_s + end_s))
        parts.append(lasting(said.codes, math.ceil(said.end_s * FRAME_RATE) + chance.randint(*_CLIP_GAP_FRAMES)))
        frames += parts[-1].shape[1]
    return words, np.concatenate(parts, axis=1)


def lasting(codes: Codes, frames: int) -> Codes:
    """So many frames of an utterance: cut in the silence behind it, or with the last of it repeated."""
    return codes[:, np.minimum(np.arange(frames), codes.shape[1] - 1)]
