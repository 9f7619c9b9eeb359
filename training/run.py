"""Stage `run`: clips and the codec's training on them at once, within a time limit.

    python -m training run build/training --out $OUT --minutes 9 --steps 24000

Synthesis runs beside the training, on the processor's other cores; the trainer takes in what is finished. At the end
the weights are exported to OUT, with the curves. The same command goes on where it was stopped; on another machine,
with the exported folder as `--start`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .codec import export, train
from .data.clips import HELD_OUT_SENTENCES, TRAIN_CLIPS

_EXPORT_S = 20.0  # kept back for the end


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="training run", description="Synthesise, train a codec and export it; its options are passed on."
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="holds the sentences and the voice")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--clips", type=int, default=TRAIN_CLIPS)
    parser.add_argument("--synthesisers", type=int, default=max(1, (os.cpu_count() or 1) - 6), help="processes")
    known, others = parser.parse_known_args(argv)
    data, deadline = known.data, time.monotonic() + 60 * known.minutes - _EXPORT_S
    folder = data / "codec"
    clips = [f"--test-clips={HELD_OUT_SENTENCES}", f"--train-clips={known.clips}"]
    with _stage("clips", data, *clips, f"--processes={known.synthesisers}"):
        minutes = (deadline - time.monotonic()) / 60
        train.main([str(data), str(folder), f"--minutes={minutes:.3f}", *others])
    export.main([str(folder), str(known.out / "mimi")])
    for name in ("curves.json", "curves.png"):
        if (folder / name).exists():
            shutil.copy(folder / name, known.out / name)
    return 0


@contextmanager
def _stage(name: str, data: Path, *options: str) -> Iterator[None]:
    """Another stage in the background, in a process group of its own; it leaves DATA/NAME.log."""
    command = [sys.executable, "-m", "training", name, str(data), *options]
    with (data / f"{name}.log").open("ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running = subprocess.Popen(command, stdout=log, stderr=log, env=environment, process_group=0)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGTERM)  # its workers too
        running.wait()
