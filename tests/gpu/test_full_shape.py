"""The full Dia2-2B shape, with random weights in the published format, through a real Triton on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dia2_engine import EngineConfig, Request, Worker
from tests.server.calls import speak
from tests.server.conftest import ROOT, VOICES, Server, launched
from tests.support import Collector, audio_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.server,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LINE = "[S1] Hello there, how can I help you today? [S2] I would like to change my order."
SECONDS = 2.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if made := os.environ.get("FULL_SHAPE_CHECKPOINT"):  # writing it takes a minute
        return Path(made)
    folder = tmp_path_factory.mktemp("full") / "checkpoint"
    script = ROOT / "scripts" / "make_random_checkpoint.py"
    subprocess.run([sys.executable, script, folder, "--shape", "2b", "--dtype", "bfloat16"], check=True)
    return folder


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with launched(folder, "--device", "cuda", "--checkpoint", str(checkpoint)) as server:
        yield server


def test_streams_through_triton_are_the_engines_own(server: Server, checkpoint: Path) -> None:
    # Without a voice: clips are encoded with as many threads as there are, which may round differently.
    alone = speak(server.grpc_url, LINE, SEED=5, VOICE="none", MAX_SECONDS=SECONDS).wait()
    assert alone.message == ""
    assert alone.finals == 1
    together = [speak(server.grpc_url, LINE, SEED=seed, MAX_SECONDS=SECONDS) for seed in range(8)]
    for call in together:
        assert call.wait().message == ""
        assert call.audio.size == int(SECONDS * 24_000) // 1920 * 1920
    worker = Worker(EngineConfig(str(checkpoint), voices=str(VOICES), device="cuda", run_ahead_s=0.0))
    try:
        sink = Collector()
        worker.submit(Request(LINE, seed=5, voice="none", max_seconds=SECONDS), sink)
        np.testing.assert_array_equal(alone.audio, audio_of(sink.wait()))
    finally:
        worker.close()
