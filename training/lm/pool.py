"""Rows for the trainer: made in background processes, kept on the training device, drawn there.

The pool is small against what the processes make in the course of a run: old rows give way to new ones all the time.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dia2_engine.model.config import ModelConfig

from .conversation import read_corpus
from .rows import FORCED, Builder, Rows

SHARD_ROWS = 128
POOL_ROWS = 64 * SHARD_ROWS
IGNORED = -100  # a target that no loss counts


class Batch(NamedTuple):
    """Everything random about a step but its dropout."""

    columns: Tensor  # [B, T, 2 + C] to read
    actions: Tensor  # [B, T] to choose, or IGNORED
    audio: Tensor  # [B, T, C] to sample, or IGNORED
    frames: Tensor  # [N] which of the B * T steps pass the depformer


class Pool:
    """The latest rows, on the device."""

    def __init__(self, config: ModelConfig, device: torch.device, rows: int = POOL_ROWS) -> None:
        steps = config.max_context_steps
        self._config, self._device = config, device
        self._columns = torch.zeros(rows, steps + 1, 2 + config.codebooks, dtype=torch.int16, device=device)
        self._actions = torch.zeros(rows, steps, dtype=torch.int8, device=device)
        self._heard = torch.zeros(rows, dtype=torch.int16, device=device)
        self.taken = 0  # rows, with those that have given way

    def put(self, rows: Rows) -> None:
        """In place of the oldest ones if the pool is full."""
        count = len(rows.heard)
        at = (self.taken + torch.arange(count, device=self._device)) % len(self._heard)
        for kept, part in zip((self._columns, self._actions, self._heard), rows, strict=True):
            kept[at] = torch.from_numpy(part).to(self._device)
        self.taken += count

    def draw(self, step: int, batch: int, *, depth: float, textless: float = 0.0, blanks: float = 0.0) -> Batch:
        """The batch of a step: a share `depth` of its frames passes the depformer, a share `textless` of its rows is
        branch 1 of guidance, and a share `blanks` of the audio that it reads is missing (PAD, which nothing else uses).
        """
        config, chance = self._config, torch.Generator(self._device).manual_seed(step)

        def uniform(*size: int) -> Tensor:
            return torch.rand(size, generator=chance, device=self._device)

        rows = (uniform(batch) * min(self.taken, len(self._heard))).long()
        columns, actions = self._columns[rows].long(), self._actions[rows].long()
        audio = columns[:, 1:, 2:]
        steps = torch.arange(actions.shape[1], device=self._device)
        sampled = (audio < config.codec_vocab) & (steps < self._heard[rows, None]).unsqueeze(-1)
        branch_1 = uniform(batch, 1) < textless
        text = torch.stack(
            [
                columns[:, :-1, 0].masked_fill(branch_1, config.text_zero),
                columns[:, :-1, 1].masked_fill(branch_1, config.text_pad),
            ],
            dim=2,
        )
        read = columns[:, :-1, 2:]
        blank = (uniform(*read.shape) < blanks) & (read < config.codec_vocab)
        frames = torch.randperm(actions.numel(), generator=chance, device=self._device)
        return Batch(
            torch.cat([text, read.masked_fill(blank, config.audio_pad)], dim=2),
            actions.masked_fill(branch_1 | (actions == FORCED), IGNORED),
            audio.masked_fill(~sampled, IGNORED),
            frames[: round(depth * actions.numel())],
        )


class Shards:
    """Shards of rows, in the order of their numbers, which are their seeds."""

    def __init__(self, run: Path, tokens: Path, first: int, processes: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._workers = ProcessPoolExecutor(processes, spawn, initializer=_begin, initargs=(run, tokens))
        self._next, self._ahead = first, 2 * processes
        self._pending: deque[Future[Rows]] = deque()

    def _order(self) -> None:
        while len(self._pending) < self._ahead:
            self._pending.append(self._workers.submit(_shard, self._next))
            self._next += 1

    def ready(self, *, wait: int = 0) -> Iterator[Rows]:
        """What is finished, and at least `wait` shards."""
        self._order()
        while wait > 0 or self._pending[0].done():
            yield self._pending.popleft().result()
            self._order()
            wait -= 1

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)


_builder: Builder  # of a background process


def _begin(run: Path, tokens: Path) -> None:
    global _builder
    _builder = Builder(run, read_corpus(tokens, "train"))


def _shard(number: int) -> Rows:
    return _builder.rows(range(number * SHARD_ROWS, (number + 1) * SHARD_ROWS))
