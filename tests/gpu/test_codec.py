"""The codec's kernels against the plain decoder: streams that start, end and move between rows, on random codes."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dia2_engine.model.mimi import MimiDecoder, MimiState
from tests.support import VECTORS
from tests.unit.test_mimi import SHAPES, random_codes, write_codec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

FRAMES = 40  # reach beyond every window but the published one
EXACT_TOLERANCE = 1e-5
FAST_SNR_DB = 50.0  # of TF32 and a ring of float16, against float32
GOLDEN = ["small", "lowrank", "textdep"]


@dataclass
class Twins:
    """The same weights, plain and fused, in states of their own."""

    plain: MimiDecoder
    fused: Any  # FusedMimi, which only a machine with a GPU can import


def make_twins(folder: Path, codebooks: int, *, exact: bool) -> Twins:
    from dia2_engine.model.mimi.fused import FusedMimi

    plain, weights = (MimiDecoder.load(folder, codebooks=codebooks, device="cuda") for _ in range(2))
    return Twins(plain, FusedMimi(weights, exact=exact))


@pytest.fixture(autouse=True)
def _plain_in_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random codec of the published shape."""
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "make_random_checkpoint.py"))
    folder = tmp_path_factory.mktemp("published")
    _, config, _ = script["shape_configs"]("2b")
    script["write_json"](folder / "config.json", config)
    script["write_safetensors"](folder / "model.safetensors", script["mimi_tensors"](config), seed=2)
    return folder


def snr_db(audio: Tensor, expected: Tensor) -> float:
    noise = (audio - expected).double().square().mean().clamp(min=1e-30)
    return float(10 * torch.log10(expected.double().square().mean() / noise))


def decode(fused: Any, codes: Tensor, state: MimiState, slots: Tensor) -> Tensor:
    audio = torch.full((len(codes), fused.config.frame_samples), torch.nan, device="cuda")
    fused.decode(codes.int().contiguous(), state, slots, audio)
    return audio


def stream_both(twins: Twins, streams: int, frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    """All audio of `streams` streams, fused and plain: rows shuffled, some left out, a slot started over, padding."""
    codes = random_codes(twins.plain, streams, frames).cuda()
    slots = torch.randperm(streams + 2, generator=torch.Generator().manual_seed(1)).cuda()
    scratch, slots = slots[-1:], slots[:streams]
    states = twins.plain.new_state(streams + 2), twins.fused.new_state(streams + 2)
    generator, heard = torch.Generator().manual_seed(2), []
    for frame in range(frames):
        live = torch.randperm(streams, generator=generator).cuda()
        live = live[: max(1, streams - frame % 3)]
        if frame in (7, 30):
            for state in states:
                state.reset(int(slots[0]))
        expected = twins.plain.decode(codes[live, :, frame : frame + 1], states[0], slots[live])
        padding = codes[:1, :, frame].expand(streams - len(live), -1)
        rows = torch.cat((slots[live], scratch.expand(len(padding))))
        audio = decode(twins.fused, torch.cat((codes[live, :, frame], padding)), states[1], rows)
        assert audio.isfinite().all()
        heard.append((audio[: len(live)], expected))
    assert torch.equal(states[0].positions[slots], states[1].positions[slots])
    fused, plain = (torch.cat(parts) for parts in zip(*heard, strict=True))
    assert plain.std() > 0.01
    return fused, plain


@pytest.mark.parametrize("streams", [1, 2, 3, 9, 40])
@pytest.mark.parametrize("variant", GOLDEN)
def test_the_golden_codecs(variant: str, streams: int) -> None:
    folder = VECTORS / variant / "checkpoint" / "mimi"
    torch.testing.assert_close(*stream_both(make_twins(folder, 8, exact=True), streams), rtol=0, atol=EXACT_TOLERANCE)
    assert snr_db(*stream_both(make_twins(folder, 8, exact=False), streams)) > FAST_SNR_DB


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_other_shapes(shape: dict[str, Any], tmp_path: Path) -> None:
    write_codec(tmp_path, **shape)
    torch.testing.assert_close(*stream_both(make_twins(tmp_path, 5, exact=True), 3), rtol=0, atol=EXACT_TOLERANCE)
    assert snr_db(*stream_both(make_twins(tmp_path, 5, exact=False), 3)) > FAST_SNR_DB


@pytest.mark.parametrize("streams", [1, 2, 5, 16, 64, 200])
def test_the_published_shape(published: Path, streams: int) -> None:
    frames = 140 if streams == 2 else FRAMES  # once beyond the window
    exact = make_twins(published, 32, exact=True)
    torch.testing.assert_close(*stream_both(exact, streams, frames), rtol=0, atol=EXACT_TOLERANCE)
    assert snr_db(*stream_both(make_twins(published, 32, exact=False), streams, frames)) > FAST_SNR_DB


@pytest.mark.parametrize("exact", [True, False])
def test_a_stream_of_months_sounds_as_a_new_one(exact: bool) -> None:
    fused = make_twins(VECTORS / "small" / "checkpoint" / "mimi", 8, exact=exact).fused
    codes = random_codes(fused.decoder, 1, 60)[0].t().cuda()
    state = fused.new_state(2)
    state.positions[1] = 10**9
    rows = torch.tensor([0, 1], device="cuda")
    audio = torch.cat([decode(fused, ids.expand(2, -1), state, rows) for ids in codes[:, None]])
    new, old = audio.view(60, 2, -1)[35:].unbind(1)
    assert snr_db(old, new) > (80.0 if exact else FAST_SNR_DB)


@pytest.mark.parametrize("streams", [2, 5, 64])
@pytest.mark.parametrize("exact", [True, False])
def test_neighbours_change_nothing_within_a_bucket(published: Path, streams: int, exact: bool) -> None:
    """Bit for bit, from another row and another slot too."""
    fused = make_twins(published, 32, exact=exact).fused
    mine = random_codes(fused.decoder, 1, 12)[0].t().cuda()
    heard = []
    for seed, row, slot in ((1, 0, 0), (2, streams - 1, 1)):
        codes = random_codes(fused.decoder, streams, 12, seed=seed).cuda()
        codes[row] = mine.t()
        state, rows = fused.new_state(streams + 2), torch.arange(2, streams + 2, device="cuda")
        rows[row] = slot
        heard.append(torch.cat([decode(fused, codes[:, :, frame], state, rows)[row] for frame in range(12)]))
    assert torch.equal(*heard)


def test_a_graph_equals_running_it_and_snapshots_continue_anywhere(published: Path) -> None:
    fused = make_twins(published, 32, exact=False).fused
    codes = random_codes(fused.decoder, 3, 20).cuda()
    state, rows = fused.new_state(5), torch.tensor([3, 0, 2], device="cuda")
    ids = codes[:, :, 0].int().contiguous()
    audio = torch.empty((3, fused.config.frame_samples), device="cuda")
    expected = [decode(fused, codes[:, :, frame], state, rows) for frame in range(20)]

    for slot in range(5):
        state.reset(slot)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        fused.decode(ids, state, rows, audio)
    for frame in range(20):
        if frame == 10:
            snapshots = [state.snapshot(int(slot)) for slot in rows]
            rows.copy_(torch.tensor([1, 3, 0]))
            for slot, snapshot in zip(rows.tolist(), snapshots, strict=True):
                state.restore(slot, snapshot)
        ids.copy_(codes[:, :, frame])
        graph.replay()
        assert torch.equal(audio, expected[frame]), f"frame {frame}"
