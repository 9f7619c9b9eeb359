"""Stage `speed`: steps per second of the codec's training, by way of compiling, without and with discriminators.

    python -m training speed --seconds 15

It needs no data: crops are cut from noise of the length of an hour. The last line names the fastest way for a run.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

from .batches import Crops
from .model import Codec
from .shape import Shape
from .train import COMPILE_MODES, Settings, Trainer, new_run


def measure(mode: str, settings: Settings, crops: Crops, device: torch.device, seconds: float) -> tuple[float, str]:
    """Seconds for a step; and in words: the time before the first steps are through, the speed, the memory's peak."""
    torch.compiler.reset()
    torch.manual_seed(0)
    trainer = Trainer(new_run(Codec(Shape()), device), settings, device, mode)
    shape, sizes = trainer.run.codec.shape, {"batch": settings.batch, "frames": settings.frames}

    def steps(count: int) -> float:
        began = time.monotonic()
        for _ in range(count):
            losses = trainer.step(crops.draw(trainer.run.step, shape, dropout=settings.dropout, **sizes))
        if not all(torch.isfinite(loss) for loss in losses.values()):
            raise ArithmeticError(f"a loss is not finite: {losses}")
        return time.monotonic() - began  # reading the losses has waited for the device

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    first_s = steps(5)
    count, elapsed_s = 0, 0.0
    while elapsed_s < seconds:
        elapsed_s += steps(10)
        count += 10
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
    found = f"{first_s:6.1f} s to begin  {count / elapsed_s:6.2f} steps/s  {peak_gb:5.1f} GB"
    return elapsed_s / count, found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training speed", description="Measure the codec's training.")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each measurement")
    parser.add_argument("--batch", type=int, nargs="+", default=[Settings.batch])
    parser.add_argument("--modes", nargs="+", choices=COMPILE_MODES, default=list(COMPILE_MODES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    crops = Crops.noise(hours=1.0, device=device)
    run_s: dict[str, float] = {}  # of an average step of a whole run with the first batch size
    for batch in args.batch:
        for mode in args.modes:
            mean_s = 0.0
            for judges_from, share in ((1.0, Settings.judges_from), (0.0, 1 - Settings.judges_from)):
                name = f"batch {batch:4d}  {mode:28s} {'with' if judges_from == 0 else 'without'} discriminators"
                settings = Settings(steps=1 << 40, batch=batch, judges_from=judges_from)
                try:
                    step_s, found = measure(mode, settings, crops, device, args.seconds)
                except Exception as error:  # a way that fails is a result too: the others are still measured
                    step_s, found = math.inf, f"failed: {type(error).__name__}: {str(error)[:200]}"
                mean_s += share * step_s
                print(f"{name:64s} {found}", flush=True)
            run_s.setdefault(mode, mean_s)
    print(min(run_s, key=lambda mode: run_s[mode]))
    return 0
