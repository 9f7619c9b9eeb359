"""Stage `run`: what there is to do on the GPU, within a time limit.

    python -m training run build/training --minutes 9 --steps 30000 --out $OUT

Synthesis runs beside the codec's training, on the processor's other cores, and the trainer takes in shards as they are
finished. At the end the codec is exported to OUT, with its curves and `resume.json`, which says what the next piece
needs: on the same machine the same command, on another one the exported codec. When the codec's last step is done, the
piece also waits for the clips that are still missing and writes all of them to OUT as tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from . import tokens
from .codec import export, train
from .data import sentences, voice
from .data.clips import HELD_OUT_SENTENCES, shards

_EXPORT_S = 20.0  # kept back for the end
_TOKENS_S = 60.0  # likewise, in the piece that finishes the codec


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training run", description="Synthesise, train the codec and export it.")
    parser.add_argument("data", type=Path, metavar="DATA", help="holds the sentences and the voice")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--clips", type=int, default=15360)
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 4), help="that synthesise")
    known, for_codec = parser.parse_known_args(argv)
    deadline = time.monotonic() + 60 * known.minutes - _EXPORT_S

    synthesis = _synthesise(known.data, known.clips, known.processes)
    try:
        minutes = (deadline - time.monotonic()) / 60
        codec_run = known.data / "codec"
        finished = train.train_piece([str(known.data), str(codec_run), f"--minutes={minutes:.3f}", *for_codec])
        if finished and deadline - time.monotonic() > _TOKENS_S:
            with suppress(subprocess.TimeoutExpired):
                synthesis.wait(deadline - time.monotonic() - _TOKENS_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(synthesis.pid, signal.SIGTERM)  # its workers too
        synthesis.wait()
    mimi = known.out / "mimi"
    export.main([str(codec_run), str(mimi)])
    if finished:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        left_s = deadline + _EXPORT_S / 2 - time.monotonic()
        tokens.encode_all(known.data, mimi, known.out / "tokens", device, seconds=left_s)
    for name in ("curves.json", "curves.png"):
        if (codec_run / name).exists():
            shutil.copy(codec_run / name, known.out / name)
    resume = {
        "finished_shards": {which: len(shards(known.data, which)) for which in ("test", "train")},
        "same_machine": ["python", "-m", "training", "run", *argv],
        "other_machine": {
            "carry": [str(known.data / sentences.FILE), str(known.data / voice.FILE), "mimi/"],
            "command": ["python", "-m", "training", "run", *argv, "--start", "mimi"],
        },
    }
    (known.out / "resume.json").write_text(json.dumps(resume, indent=1), encoding="utf-8")
    return 0


def _synthesise(data: Path, clips: int, processes: int) -> subprocess.Popen[bytes]:
    """The held-out clips first, then the training set, in a process group of its own."""
    command = [
        sys.executable,
        "-m",
        "training",
        "clips",
        str(data),
        f"--test-clips={HELD_OUT_SENTENCES}",
        f"--train-clips={clips}",
        f"--processes={processes}",
    ]
    with (data / "clips.log").open("ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, process_group=0)
