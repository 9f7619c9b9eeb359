"""Stage `run`: what there is to do on the GPU, within a time limit.

    python -m training run codec build/training --out $OUT --minutes 9 --steps 24000
    python -m training run lm build/training --codec $OUT/mimi --out $OUT --minutes 9 --steps 30000

Synthesis, and for the language model the encoding of what it makes, run beside the training, on the processor's other
cores; the trainer takes in what is finished. At the end the weights are exported to OUT, with the curves. The same
command goes on where it was stopped; on another machine, with the exported folder as `--start`.
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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .codec import export as codec_export
from .codec import train as codec_train
from .data.clips import HELD_OUT_SENTENCES, TRAIN_CLIPS
from .lm import export as lm_export
from .lm import train as lm_train

_EXPORT_S = 20.0  # kept back for the end
_PHASES = 4  # of each clip: training goes through the same speech again and again


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="training run", description="Synthesise, train and export; options of the stage itself are passed on."
    )
    parser.add_argument("stage", choices=("codec", "lm"))
    parser.add_argument("data", type=Path, metavar="DATA", help="holds the sentences and the voice")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--codec", type=Path, help="exported codec, for the language model")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--clips", type=int, default=TRAIN_CLIPS)
    parser.add_argument("--synthesisers", type=int, default=max(1, (os.cpu_count() or 1) - 6), help="processes")
    known, others = parser.parse_known_args(argv)
    if known.stage == "lm" and known.codec is None:
        parser.error("the language model needs --codec")
    data, deadline = known.data, time.monotonic() + 60 * known.minutes - _EXPORT_S
    folder, tokens = data / known.stage, data / "tokens"
    with ExitStack() as beside:
        clips = [f"--test-clips={HELD_OUT_SENTENCES}", f"--train-clips={known.clips}", f"--encoded={tokens}"]
        beside.enter_context(_stage("clips", data, *clips, f"--processes={known.synthesisers}"))
        if known.stage == "lm":
            beside.enter_context(_stage("tokens", data, f"--codec={known.codec}", f"--phases={_PHASES}", "--follow"))
        options = [str(folder), f"--minutes={(deadline - time.monotonic()) / 60:.3f}", *others]
        (codec_train if known.stage == "codec" else lm_train).main([str(data), *options])
    if known.stage == "codec":
        codec_export.main([str(folder), str(known.out / "mimi")])
    else:
        lm_export.main([str(folder), str(known.out / "demo"), f"--mimi={known.codec}"])
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
