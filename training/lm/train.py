"""Stage `lm`: train the language model on the codec's tokens, in pieces.

    python -m training lm DATA runs/lm --compile reduce-overhead

It takes the tokens in DATA/tokens; the tokenizer is made from all sentences. A piece ends after its minutes and
leaves RUN/state.safetensors, from which the same command goes on. Whatever is random about a step follows from the
step's number and the rows that the pool holds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dia2_engine.model.config import load_model_config

from .. import curves
from ..codec.train import COMPILE_MODES
from ..data import sentences
from ..state import FILE, WARMUP_STEPS, learning_rate, make_moments
from .conversation import read_corpus
from .export import FOLDER_FILES, load_checkpoint
from .model import LanguageModel, Logits
from .pool import IGNORED, SHARD_ROWS, Batch, Pool, Shards
from .rows import Builder
from .shape import Shape
from .state import Run
from .tokenizer import save_tokenizer, train_tokenizer

_AVERAGING = 0.999
_CLIP = 1.0
_LOG_STEPS = 50
_TEST_STEPS = 500
_TEST_ROWS = 16  # at once
_TEST_PARTS = 8
_FIRST_SHARDS = 8  # that the first step waits for
_ROWS_AHEAD = 16 * SHARD_ROWS  # of those that steps have read: no faster, since on a CPU both take the same cores
_SAVE_S = 150.0
_OTHERS_WEIGHT = 1.5  # of the mean of codebooks 1 and up, beside the action and codebook 0


@dataclass(frozen=True)
class Settings:
    """Of a whole run; to go on, give the same."""

    steps: int
    batch: int = 32  # rows
    rate: float = 2e-3
    final_rate: float = 2e-5
    decay: float = 0.1
    dropout: float = 0.2
    depth: float = 0.5  # share of frames that pass the depformer
    textless: float = 0.12  # share of rows that teach guidance's other branch
    blanks: float = 0.05  # share of audio that is missing in what is read


def new_run(model: LanguageModel, settings: Settings, device: torch.device) -> Run:
    """A run at its beginning, with the weights of `model`."""
    average = LanguageModel(model.config)
    average.load_state_dict(model.state_dict())
    average.eval().requires_grad_(False).to(device)
    named = list(model.to(device).named_parameters())
    decays = {name for name, parameter in named if parameter.ndim == 2 and "embed" not in name}
    groups = [
        {"params": [parameter for name, parameter in named if name in decays], "weight_decay": settings.decay},
        {"params": [parameter for name, parameter in named if name not in decays], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=device.type == "cuda")
    make_moments(adam)
    return Run(model, average, {"adam": adam})


def losses(logits: Logits, batch: Batch) -> dict[str, Tensor]:
    """By head, in nats."""
    others = batch.audio.flatten(0, 1)[batch.frames, 1:].t()  # [C - 1, N]
    found = {"action": _nats(logits.action, batch.actions), "cb0": _nats(logits.first, batch.audio[..., 0])}
    return found | {
        f"cb{index + 1}": _nats(*pair) for index, pair in enumerate(zip(logits.others, others, strict=True))
    }


def _nats(logits: Tensor, targets: Tensor) -> Tensor:
    total = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def _weighted(found: dict[str, Tensor]) -> Tensor:
    others = [loss for name, loss in found.items() if name not in ("action", "cb0")]
    return found["action"] + found["cb0"] + _OTHERS_WEIGHT * torch.stack(others).mean()


class Trainer:
    """Takes steps. `compile_mode` is one of torch.compile's, or `none`."""

    def __init__(self, run: Run, settings: Settings, device: torch.device, compile_mode: str = "none") -> None:
        self.run, self.settings, self.device = run, settings, device
        self._began_at = run.step
        self._losses: Callable[[Batch], dict[str, Tensor]] = self._compute
        self._compiled = compile_mode != "none"
        if self._compiled:
            compiled: Any = torch.compile(mode=None if compile_mode == "default" else compile_mode, dynamic=False)
            self._losses = compiled(self._compute)

    def rate(self) -> float:
        own = self.settings
        return learning_rate(self.run.step, own.steps, own.rate, own.final_rate, began_at=self._began_at)

    def resumed(self) -> None:
        """The moments are those of the step before: no warm-up."""
        self._began_at = -WARMUP_STEPS if self.run.step else 0

    def draw(self, pool: Pool) -> Batch:
        """The next step's batch."""
        own = self.settings
        return pool.draw(self.run.step, own.batch, depth=own.depth, textless=own.textless, blanks=own.blanks)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step. Returns the losses, on the device."""
        run, parameters = self.run, list[Tensor](self.run.model.parameters())
        torch.manual_seed(run.step)  # of the dropout
        if self._compiled:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        found = self._losses(batch)
        _weighted(found).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        adam = run.optimizers["adam"]
        for group in adam.param_groups:
            group["lr"] = self.rate()
        adam.step()
        adam.zero_grad(set_to_none=True)
        decay = min(_AVERAGING, (run.step + 1) / (run.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list[Tensor](run.average.parameters()), parameters, 1 - decay)
        run.step += 1
        return {name: loss.detach() for name, loss in found.items()}

    @torch.no_grad()
    def test(self, pool: Pool) -> dict[str, float]:
        """The averaged model on the rows of the test set, with the whole text and all of the audio."""
        parts = (pool.draw(-1 - part, _TEST_ROWS, depth=1.0) for part in range(_TEST_PARTS))
        found = [losses(self._logits(self.run.average, part), part) for part in parts]
        return {f"test_{name}": float(torch.stack([part[name] for part in found]).mean()) for name in found[0]}

    def _compute(self, batch: Batch) -> dict[str, Tensor]:
        return losses(self._logits(self.run.model, batch), batch)

    def _logits(self, model: LanguageModel, batch: Batch) -> Logits:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits: Logits = model(batch.columns, batch.audio.clamp(min=0), batch.frames)
        return logits


def train(trainer: Trainer, shards: Shards, pool: Pool, held_out: Pool, out: Path, seconds: float) -> None:
    """Steps until the run's end or the piece's, on rows that come in meanwhile."""
    run, sums = trainer.run, dict[str, Tensor]()
    began = mark = saved = time.monotonic()
    first = logged = run.step
    while run.step < trainer.settings.steps and time.monotonic() - began < seconds:
        if pool.taken <= (run.step - first) * trainer.settings.batch + _ROWS_AHEAD:
            for rows in shards.ready(wait=0 if pool.taken else _FIRST_SHARDS):
                pool.put(rows)
        found = trainer.step(trainer.draw(pool))
        for name, loss in found.items():
            sums[name] = sums.get(name, torch.zeros_like(loss)) + loss
        if run.step % _LOG_STEPS:
            continue
        steps = run.step - logged
        entry = {name: float(total) / steps for name, total in sums.items()}
        now = time.monotonic()
        entry |= {"step": run.step, "steps_per_s": steps / (now - mark), "rows": pool.taken}
        if run.step % _TEST_STEPS == 0:
            entry |= trainer.test(held_out)
        run.history.append(entry)
        print(curves.line(entry), flush=True)
        sums, logged = {}, run.step
        if now - saved > _SAVE_S:
            run.save(out)
            saved = now
        mark = time.monotonic()
    run.save(out)
    heads = sorted({name for entry in run.history for name in entry if f"test_{name}" in entry})
    curves.write(out, run.history, [*((head, f"test_{head}") for head in heads), ("steps_per_s",)])


def _prepare(run: Path, data: Path, start: Path | None, dropout: float) -> tuple[LanguageModel, int]:
    """The model of a run that begins or goes on, and its step. RUN gets its config and tokenizer."""
    run.mkdir(parents=True, exist_ok=True)
    if start is not None:
        for name in FOLDER_FILES:
            shutil.copy(start / name, run / name)
        return load_checkpoint(start, dropout)
    if not (run / FOLDER_FILES[0]).exists():
        tokenizer = train_tokenizer(sentence.text for sentence in sentences.read(data))
        save_tokenizer(tokenizer, run)
        config = Shape().config(tokenizer.get_vocab_size())
        (run / FOLDER_FILES[0]).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    return LanguageModel(load_model_config(run / FOLDER_FILES[0]), dropout), 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="training lm", description="Train a language model on DATA; RUN keeps its state."
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with the sentences, and tokens/ of both sets")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--steps", type=int, default=14000, help="of the whole run")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this piece")
    parser.add_argument("--batch", type=int, default=Settings.batch, help="rows")
    parser.add_argument("--rate", type=float, default=Settings.rate)
    parser.add_argument("--dropout", type=float, default=Settings.dropout)
    parser.add_argument("--depth", type=float, default=Settings.depth, help="share of frames that pass the depformer")
    parser.add_argument("--start", type=Path, help="exported checkpoint to begin with, if RUN has no state")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 3), help="that make rows")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", default="none", choices=COMPILE_MODES)
    args = parser.parse_args(argv)
    began, device = time.monotonic(), torch.device(args.device)
    settings = Settings(args.steps, batch=args.batch, rate=args.rate, dropout=args.dropout, depth=args.depth)
    torch.manual_seed(0)
    goes_on = (args.run / FILE).exists()
    model, step = _prepare(args.run, args.data, None if goes_on else args.start, settings.dropout)
    run = new_run(model, settings, device)
    run.step = step
    trainer = Trainer(run, settings, device, args.compile)
    if goes_on:
        run.load(args.run)
        trainer.resumed()
    tokens = args.data / "tokens"
    spoken = read_corpus(tokens, "test")
    # The numbers of earlier pieces' shards are below their steps, so these rows are new.
    shards = Shards(args.run, tokens, run.step, args.processes)
    try:
        held_out = Pool(model.config, device, _TEST_ROWS * _TEST_PARTS)
        held_out.put(Builder(args.run, spoken).rows(range(_TEST_ROWS * _TEST_PARTS)))
        pool = Pool(model.config, device)
        train(trainer, shards, pool, held_out, args.run, 60 * args.minutes - (time.monotonic() - began))
    finally:
        shards.close()
    return 0
