"""On a CUDA device: a fuzz in debug mode, bfloat16 near float32, batched near alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dia2_engine import Cancelled, Failed, Finished, Request, Worker
from tests.support import LINE, Collector, make_config, make_engine, speak, tokens_of, write_voices

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

REQUESTS = 200
WORDS = ["hello", "there,", "[S1]", "[S2]", '<break time="0.4s"/>', "\U0001f600", "\x00", "it\u2019s", "10:30", "<pad>"]


@pytest.fixture(params=["small", "lowrank", "textdep"])
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def worker(variant: str, tmp_path: Path) -> Iterator[Worker]:
    voices = write_voices(tmp_path / "voices", variant)
    worker = Worker(make_config(variant, device="cuda", slots=16, queue=REQUESTS, voices=str(voices)))
    yield worker
    worker.close(60)


def test_a_fuzz_of_random_requests_raises_no_device_assert(worker: Worker) -> None:
    """Every id is checked at every place; a device-side assert would fail every later call, and the last one."""
    rng = random.Random(7)
    sinks = []
    for _ in range(REQUESTS):
        request = Request(
            "go " + " ".join(rng.choices(WORDS, k=rng.randrange(1, 12))),
            voice=rng.choice(["solo", "duo", "none"]),
            seed=rng.randrange(2**63),
            temperature=rng.choice([0.0, 0.3, 1.0, 2.0]),
            top_k=rng.choice([0, 1, 5, 50, 10_000]),
            cfg_scale=rng.choice([0.0, 1.0, 2.0, 10.0]),
            max_seconds=rng.choice([0.08, 1.0, 120.0]),
        )
        sink = Collector()
        stream = worker.submit(request, sink)
        if rng.random() < 0.1:
            stream.cancel()
        sinks.append(sink)
    for sink in sinks:
        end = sink.wait(300)[-1]
        assert isinstance(end, Finished) or (isinstance(end, Failed) and isinstance(end.error, Cancelled)), end
    torch.cuda.synchronize()
    last = Collector()
    worker.submit(Request(LINE, seed=1), last)
    assert isinstance(last.wait()[-1], Finished)


def test_float32_equals_the_cpu(variant: str) -> None:
    request = Request(LINE, seed=3, temperature=0.0)
    cpu, _ = speak(make_engine(variant, slots=1, dtype="float32"), request)
    cuda, _ = speak(make_engine(variant, slots=1, dtype="float32", device="cuda"), request)
    np.testing.assert_array_equal(tokens_of(cuda), tokens_of(cpu))


def test_bfloat16_logits_stay_near_float32(variant: str) -> None:
    hidden = {}
    for dtype in ("float32", "bfloat16"):
        engine = make_engine(variant, slots=1, dtype=dtype, device="cuda")
        stream = engine.parse(Request(LINE, seed=3))
        engine.start(stream)
        engine.step([stream], lambda *_: None)
        with torch.inference_mode():
            state = engine.runner.buffers.hidden[:1].clone()
            hidden[dtype] = engine.runner.model.transformer.cb0_logits(state).float()
        engine.release(stream)
    error = (hidden["bfloat16"] - hidden["float32"]).norm() / hidden["float32"].norm()
    assert error < 0.05, f"relative error {error:.3g}"
