"""Rows of training: conversations on columns, as a server feeds and samples them.

Step t reads column t and makes column t + 1. The text comes from the engine's own text machine, forced in the voice
and at the kick; elsewhere it is told to begin each word at the word's true frame, and does so unless it waits for
the pieces of the word before, or has waited its longest: what the model learns is what it will meet.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dia2_engine.context import TAIL_FRAMES
from dia2_engine.model.checkpoint import CheckpointFiles
from dia2_engine.model.config import ModelConfig, load_model_config
from dia2_engine.model.tokenizer import load_tokenizer
from dia2_engine.text.parser import parse_script
from dia2_engine.text.state_machine import INITIAL_PADDING_STEPS, TextMachine

from .conversation import Conversation, Corpus, Writer
from .shape import FRAME_RATE

FORCED = -1  # an action that is not the model's choice


class Rows(NamedTuple):
    """R rows of T steps."""

    columns: NDArray[np.int16]  # [R, T + 1, 2 + C]
    actions: NDArray[np.int8]  # [R, T] the right one, or FORCED
    heard: NDArray[np.int16]  # [R] the audio that later steps make is never heard


class Builder:
    """Rows for the model and the tokenizer of a run's folder."""

    def __init__(self, run: Path, corpus: Corpus) -> None:
        self.config: ModelConfig = load_model_config(run / "config.json")
        encode, tokens = load_tokenizer(CheckpointFiles(self.config, run, run, run))
        self.encode = cache(encode)  # words come again and again
        self.machine = TextMachine(
            tokens,
            lookahead_words=self.config.lookahead_words,
            max_padding=self.config.max_padding_steps,
            initial_padding=INITIAL_PADDING_STEPS,
        )
        self.writer = Writer(corpus, self.encode, self.machine, self.config.max_context_steps)

    def rows(self, seeds: Iterable[int]) -> Rows:
        rows = [self.lay_out(self.writer.draw(seed)) for seed in seeds]
        return Rows(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))

    def lay_out(self, said: Conversation) -> Rows:
        """One row."""
        config, machine, steps = self.config, self.machine.copy(), self.config.max_context_steps
        script = parse_script([said.script], self.encode, machine.tokens, FRAME_RATE)
        if len(script) != len(said.starts):
            raise ValueError(f"{len(said.starts)} words and breaks, but {len(script)} entries: {said.script!r}")
        columns = np.full((1, steps + 1, 2 + config.codebooks), config.audio_bos, np.int16)
        for codebook, delay in enumerate(config.delays):
            columns[0, delay:, 2 + codebook] = said.codes[codebook, : steps + 1 - delay]
        actions = np.full((1, steps), FORCED, np.int8)
        text = [(machine.tokens.bos, machine.tokens.pad)]
        begin = 0
        if said.voice is not None:
            begin, word_steps = said.voice.frames, frozenset(said.voice.new_word_steps)
            machine.entries.extend(said.voice.entries)
        machine.entries.extend(script)
        for step in range(steps):
            if step < begin:
                made = machine.step(step, step in word_steps, forced=True)
            else:
                next_one = len(script) - len(machine.entries)
                new_word = step >= (said.starts[next_one] if machine.entries else said.end)
                kicked = said.kick and step == begin
                if not kicked and _chooses(machine):
                    actions[0, step] = new_word
                made = machine.step(step, new_word or kicked, forced=kicked)
            text.append((made.main, made.second))
        columns[0, :, :2] = text
        last = steps
        if machine.end_step is not None:
            last = min(steps, machine.end_step + TAIL_FRAMES + config.max_delay)
        return Rows(columns, actions, np.array([last], np.int16))


def _chooses(machine: TextMachine) -> bool:
    """Whether the machine does at the next step what it is told."""
    busy = machine.pending or machine.forced_padding > 0 or machine.end_step is not None
    return not busy and machine.padding_budget > 0
