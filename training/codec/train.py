"""Stage `codec`: train the codec, in pieces.

    python -m training codec data/ runs/codec --steps 30000 --minutes 8

A piece ends after its minutes and leaves RUN/state.safetensors, from which the same command goes on as if it had
never stopped: whatever is random about a step follows from the step's number. The discriminators come late: for most
of the run the spectral loss alone teaches more per second.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import curves
from ..state import FILE, WARMUP_STEPS, learning_rate, make_moments
from .batches import PHONEMES, Batch, Crops
from .export import load_codec
from .losses import Discriminators, MelLoss, PhonemeHead
from .model import Codec
from .shape import Shape
from .state import Run

COMPILE_MODES = ("none", "default", "reduce-overhead")
_AVERAGING = 0.999
_CLIP = 1.0
_LOG_STEPS = 50
_TEST_STEPS = 500
_TEST_DRAW = 1 << 40  # a step number that training never reaches: the test crops are always the same
_SAVE_S = 150.0
_REFRESH_S = 20.0
_PANELS = (
    ("mel", "test_mel"),
    ("commitment", "phonemes"),
    ("adversarial", "features", "judges"),
    ("steps_per_s", "hours"),
)
_WEIGHTS = {"mel": 1.0, "commitment": 0.25, "phonemes": 0.1, "adversarial": 0.1, "features": 0.2}


@dataclass(frozen=True)
class Settings:
    """Of a whole run; to go on, give the same."""

    steps: int
    batch: int = 64
    frames: int = 24  # of a crop
    rate: float = 1e-3
    final_rate: float = 2e-5
    dropout: float = 0.3  # share of crops that use fewer codebooks
    judges_from: float = 0.6  # share of the steps before the discriminators


def new_run(codec: Codec, device: torch.device, seed: int = 0) -> Run:
    """A run at its beginning, with the weights of `codec`."""
    torch.manual_seed(seed)
    average = Codec(codec.shape)
    average.load_state_dict(codec.state_dict())
    average.requires_grad_(False)
    head, judges = PhonemeHead(codec.shape.codebook_dim, PHONEMES), Discriminators()
    for module in (codec, average, head, judges):
        module.to(device)

    def adam(*modules: torch.nn.Module) -> torch.optim.Optimizer:
        parameters = list(itertools.chain.from_iterable(module.parameters() for module in modules))
        made = torch.optim.AdamW(parameters, betas=(0.8, 0.99), weight_decay=1e-3, fused=device.type == "cuda")
        make_moments(made)
        return made

    return Run(codec, average, head, judges, {"codec_adam": adam(codec, head), "judges_adam": adam(judges)})


class Trainer:
    """Takes steps. `compile_mode` is one of torch.compile's, or `none`."""

    def __init__(self, run: Run, settings: Settings, device: torch.device, compile_mode: str = "none") -> None:
        self.run, self.settings, self.device = run, settings, device
        self.mel = MelLoss().to(device)
        self._began_at = run.step
        self._losses: Callable[..., dict[str, Tensor]] = self._compute
        self._judge: Callable[[Tensor, Tensor], Tensor] = run.judges.judge
        self._compiled = compile_mode != "none"
        if self._compiled:
            compiled: Any = torch.compile(mode=None if compile_mode == "default" else compile_mode, dynamic=False)
            self._losses, self._judge = compiled(self._compute), compiled(run.judges.judge)

    @property
    def judging(self) -> bool:
        return self.run.step >= self.settings.judges_from * self.settings.steps

    def rate(self) -> float:
        own = self.settings
        return learning_rate(self.run.step, own.steps, own.rate, own.final_rate, began_at=self._began_at)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of everything. Returns the losses, on the device."""
        run, judging = self.run, self.judging
        if self._compiled:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        for optimizer in run.optimizers.values():
            optimizer.param_groups[0]["lr"] = self.rate()
        losses = dict(self._losses(batch, judging))
        made = losses.pop("made")
        self._descend("codec_adam", _weighted(losses))
        if judging:
            losses["judges"] = self._autocast(self._judge, made.detach(), batch.audio)
            self._descend("judges_adam", losses["judges"])
        decay = min(_AVERAGING, (run.step + 1) / (run.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(run.average.parameters()), list(run.codec.parameters()), 1 - decay)
        run.step += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def resumed(self) -> None:
        """The moments are those of the step before: no warm-up."""
        self._began_at = -WARMUP_STEPS if self.run.step else 0

    @torch.no_grad()
    def test(self, batch: Batch) -> dict[str, float]:
        """The averaged codec on crops of the test set, with all codebooks."""
        self.settle()
        made = self._autocast(
            self.run.average, batch.audio, torch.full_like(batch.used, self.run.codec.shape.codebooks)
        )
        found = {"test_mel": float(self.mel(made.audio, batch.audio))}
        for index, codes in enumerate(made.codes):
            share = torch.bincount(codes.flatten()).float() / codes.numel()
            found[f"bits_{index}"] = float(-(share * share.clamp(min=1e-9).log2()).sum())
        return found

    def settle(self) -> None:
        """Codebooks are averages already: the averaged codec takes them over."""
        for target, source in zip(self.run.average.buffers(), self.run.codec.buffers(), strict=True):
            target.copy_(source)

    def _compute(self, batch: Batch, judging: bool) -> dict[str, Tensor]:
        def forward() -> dict[str, Tensor]:
            run = self.run
            made = run.codec(batch.audio, batch.used, batch.candidates)
            losses = {
                "mel": self.mel(made.audio, batch.audio),
                "commitment": made.commitment,
                "phonemes": run.head(made.semantic, batch.labels),
                "made": made.audio,
            }
            if judging:
                losses["adversarial"], losses["features"] = run.judges.persuade(made.audio, batch.audio)
            return losses

        losses: dict[str, Tensor] = self._autocast(forward)
        return losses

    def _autocast(self, function: Callable[..., Any], *inputs: Any) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return function(*inputs)

    def _descend(self, name: str, loss: Tensor) -> None:
        optimizer = self.run.optimizers[name]
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], _CLIP)
        optimizer.step()
        for group in self.run.optimizers.values():
            group.zero_grad(set_to_none=True)


def _weighted(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([_WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


def train(trainer: Trainer, data: Path, out: Path, minutes: float, *, wait_s: float = 300) -> None:
    """Steps until the run's end or the piece's. Waits for the first shards, and takes in new ones as they come."""
    run, settings = trainer.run, trainer.settings
    began = saved = refreshed = time.monotonic()
    crops, test = Crops(data, "train", trainer.device), Crops(data, "test", trainer.device)
    sizes = {"batch": settings.batch, "frames": settings.frames}
    while not crops.hours:
        crops.refresh()
        test.refresh()
        if time.monotonic() - began > wait_s:
            raise TimeoutError(f"no clips in {data / 'train'} after {wait_s:g} s")
        time.sleep(0 if crops.hours else 1)
    sums, summed = dict[str, Tensor](), 0
    mark = time.monotonic()
    while run.step < settings.steps and time.monotonic() - began < 60 * minutes:
        losses = trainer.step(crops.draw(run.step, run.codec.shape, dropout=settings.dropout, **sizes))
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros_like(loss)) + loss
        summed += 1
        if run.step % _LOG_STEPS:
            continue
        entry = {name: float(total) / summed for name, total in sums.items()}
        now = time.monotonic()
        entry |= {"step": run.step, "steps_per_s": summed / (now - mark), "hours": crops.hours}
        if run.step % _TEST_STEPS == 0 and test.hours:
            entry |= trainer.test(test.draw(_TEST_DRAW, run.codec.shape, dropout=0.0, **sizes))
        run.history.append(entry)
        print(curves.line(entry), flush=True)
        sums, summed = {}, 0
        if now - saved > _SAVE_S:
            trainer.settle()
            run.save(out)
            saved = now
        if now - refreshed > _REFRESH_S:
            crops.refresh()
            test.refresh()
            refreshed = now
        mark = time.monotonic()
    trainer.settle()
    run.save(out)
    curves.write(out, run.history, _PANELS)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training codec", description="Train a codec on DATA; RUN keeps its state.")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--steps", type=int, default=30000, help="of the whole run")
    parser.add_argument("--minutes", type=float, default=8.0, help="of this piece")
    parser.add_argument("--batch", type=int, default=Settings.batch)
    parser.add_argument("--rate", type=float, default=Settings.rate)
    parser.add_argument("--judges-from", type=float, default=Settings.judges_from, help="share of the steps")
    parser.add_argument("--start", type=Path, help="exported codec to begin with, if RUN has no state")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", default="none", choices=COMPILE_MODES)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    settings = Settings(args.steps, batch=args.batch, rate=args.rate, judges_from=args.judges_from)
    torch.manual_seed(0)
    codec, step = load_codec(args.start) if args.start else (Codec(Shape()), 0)
    run = new_run(codec, device)
    run.step = step
    trainer = Trainer(run, settings, device, args.compile)
    if (args.run / FILE).exists():
        run.load(args.run)
        trainer.resumed()
    train(trainer, args.data, args.run, args.minutes)
    return 0
