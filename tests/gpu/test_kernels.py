"""The kernels against their plain twins, on random weights and ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dia2_engine.model.checkpoint import load_strictly
from dia2_engine.model.config import ModelConfig, load_model_config
from dia2_engine.model.dia2 import Dia2
from dia2_engine.model.plain import PlainModel
from dia2_engine.model.step import Columns, SlotMemory, Step
from dia2_engine.types import SAMPLED
from tests.support import VECTORS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CONTEXT = 320
FILTER_K = 50
ROWS = [1, 2, 3, 40]  # the first two run products without matrix units


@dataclass
class Twins:
    """The same weights, plain and fused, each with a memory of its own."""

    config: ModelConfig
    plain: PlainModel
    fused: object
    plain_memory: SlotMemory
    fused_memory: SlotMemory


def make_memory(config: ModelConfig, rows: int, page: int, dtype: torch.dtype) -> SlotMemory:
    stack, pages = config.decoder, CONTEXT // page
    shape = (stack.layers, rows * pages, 2, stack.kv_heads, page, stack.head_dim)
    keys = torch.zeros(shape, device="cuda", dtype=dtype)
    order = torch.randperm(rows * pages, device="cuda", dtype=torch.int32) if pages > 1 else torch.arange(rows)
    table = order.to("cuda", torch.int32).view(rows, pages)
    return SlotMemory(keys, torch.zeros_like(keys), table, ids(config.audio_vocab, rows, config.codebooks))


def ids(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, device="cuda", dtype=torch.int32)


@pytest.fixture(params=["small", "lowrank", "textdep"])
def config_path(request: pytest.FixtureRequest) -> Path:
    return VECTORS / str(request.param) / "checkpoint"


def make_twins(folder: Path, rows: int, dtype: torch.dtype) -> Twins:
    from dia2_engine.model.fused import FusedModel

    torch.manual_seed(rows)
    config = load_model_config(folder / "config.json")
    with torch.device("meta"):
        model = Dia2(config)
    load_strictly(model, folder / "model.safetensors", device=torch.device("cuda"), dtype=dtype)
    fused = FusedModel(model, FILTER_K)  # from here on the plain weights are views of the fused ones
    mine = make_memory(config, rows, 64, dtype)
    plain = replace(make_memory(config, rows, CONTEXT, dtype), audio=mine.audio.clone())
    return Twins(config, PlainModel(model, FILTER_K), fused, plain, mine)


def random_columns(config: ModelConfig, slot: int, start: int, columns: int) -> Columns:
    at = torch.full((1,), start, device="cuda", dtype=torch.int32)
    return Columns(
        slots=torch.full_like(at, slot),
        positions=at,
        where=at,
        text=ids(config.text_vocab, 1, columns, 2),
        audio=ids(config.audio_vocab, 1, columns, config.codebooks),
    )


def random_step(config: ModelConfig, rows: int, dtype: torch.dtype, start: Tensor) -> Step:
    choice = torch.arange(rows, device="cuda") % 4
    return Step(
        slots=torch.arange(rows, device="cuda", dtype=torch.int32),
        positions=start,
        where=start,
        text=ids(config.text_vocab, rows, 2),
        next_text=ids(config.text_vocab, rows, 2),
        given=ids(config.codec_vocab, rows, config.codebooks),
        given_kind=ids(3, rows, config.codebooks),
        uniforms=ids(1 << 23, rows, 1 + config.codebooks) * 2.0**-23,
        cfg_scale=torch.tensor([2.0, 1.0, 3.5, 0.0], device="cuda")[choice],
        temperatures=torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 1.3], [0.5, 0.0]], device="cuda")[choice],
        top_k=torch.tensor([[50, 50], [1, 1], [0, 0], [2, 5]], device="cuda", dtype=torch.int32)[choice],
        hidden=torch.full((rows * 2, config.decoder.width), torch.nan, device="cuda", dtype=dtype),
        actions=torch.full((rows,), -1, device="cuda", dtype=torch.int32),
        codes=torch.full((rows, config.codebooks), -1, device="cuda", dtype=torch.int32),
    )


def twin_of(step: Step) -> Step:
    return replace(step, **{name: getattr(step, name).clone() for name in ("hidden", "actions", "codes")})


@pytest.mark.parametrize("rows", ROWS)
def test_passes_equal_their_plain_twins_in_float32(config_path: Path, rows: int) -> None:
    """A prefix, then one frame: the same actions and ids, and hidden states that differ by rounding."""
    twins = make_twins(config_path, rows, torch.float32)
    config, fused = twins.config, twins.fused
    for slot in range(rows):
        columns = random_columns(config, slot, 0, 3 + 31 * slot % 29)
        twins.plain.extend(columns, twins.plain_memory)
        fused.extend(columns, twins.fused_memory)  # type: ignore[attr-defined]
    start = torch.tensor([3 + 31 * slot % 29 for slot in range(rows)], device="cuda", dtype=torch.int32)
    plain = random_step(config, rows, torch.float32, start)
    mine = twin_of(plain)
    twins.plain.transform(plain, twins.plain_memory)
    fused.transform(mine, twins.fused_memory)  # type: ignore[attr-defined]
    norm = twins.plain.model.transformer.norm
    torch.testing.assert_close(norm(mine.hidden), plain.hidden, rtol=0, atol=1e-4)
    assert mine.actions.tolist() == plain.actions.tolist()
    assert mine.codes[:, 0].tolist() == plain.codes[:, 0].tolist()
    twins.plain.depform(plain, twins.plain_memory)
    fused.depform(mine, twins.fused_memory)  # type: ignore[attr-defined]
    assert mine.codes.tolist() == plain.codes.tolist()
    following = torch.where(plain.given_kind == SAMPLED, plain.codes, plain.given)
    for memory in (twins.plain_memory, twins.fused_memory):
        assert memory.audio.tolist() == following.tolist()


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
def test_attention_over_pages_of_any_number(length: int) -> None:
    """One column behind `length` others, fed in pieces: near what the plain model sees."""
    twins = make_twins(VECTORS / "small" / "checkpoint", 2, torch.float32)
    config, fused = twins.config, twins.fused
    for slot in range(2):
        for first in range(0, length, 32):
            columns = random_columns(config, slot, first, min(32, length - first))
            twins.plain.extend(columns, twins.plain_memory)
            fused.extend(columns, twins.fused_memory)  # type: ignore[attr-defined]
    plain = random_step(config, 2, torch.float32, torch.full((2,), length, device="cuda", dtype=torch.int32))
    mine = twin_of(plain)
    twins.plain.transform(plain, twins.plain_memory)
    fused.transform(mine, twins.fused_memory)  # type: ignore[attr-defined]
    torch.testing.assert_close(twins.plain.model.transformer.norm(mine.hidden), plain.hidden, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 4, 5, 16, 17, 33, 64, 100, 200])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 40), (1024, 1024), (3072, 1000)])
def test_products_equal_their_plain_twins(dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> None:
    """With all that may stand around one; and a row keeps its bits, whatever the rows beside it are."""
    from dia2_engine.model.kernels.linear import linear, pending

    def normed_product(x: Tensor) -> Tensor:
        out, norm = pending(x, weight, 1e-5, torch.float32)
        return out if norm is None else out * torch.rsqrt(norm.x.float().square().mean(1, keepdim=True) + norm.eps)

    def settled(tensor: Tensor) -> Tensor:  # as `linear` demands of what it adds to
        copy = tensor.clone()
        torch.cuda.synchronize()
        return copy

    torch.manual_seed(rows)
    x = torch.randn(rows, inputs, device="cuda", dtype=dtype)
    weight = torch.randn(2 * outputs, inputs, device="cuda", dtype=dtype) / inputs**0.5
    stream = torch.randn(rows, 2 * outputs, device="cuda", dtype=dtype)
    rtol, atol = (0.0, 1e-4) if dtype == torch.float32 else (2e-2, 2e-2)
    product = x.double() @ weight.double().t()
    normed = F.rms_norm(x.double(), (inputs,), eps=1e-5) @ weight.double().t()
    gate, up = normed.chunk(2, 1)

    out = normed_product(x)
    torch.testing.assert_close(out.double(), normed, rtol=0.0, atol=1e-4)
    gated = linear(x, weight, norm=1e-5, gate=("silu", "linear"))
    torch.testing.assert_close(gated.double(), F.silu(gate) * up, rtol=rtol, atol=atol)
    added = linear(x, weight, add_to=settled(stream))
    torch.testing.assert_close(added.double(), product + stream.double(), rtol=rtol, atol=atol)

    other = torch.randn_like(x)
    other[rows // 2] = x[rows // 2]
    assert torch.equal(normed_product(other)[rows // 2], out[rows // 2])
    assert torch.equal(linear(other, weight, add_to=settled(stream))[rows // 2], added[rows // 2])


@pytest.mark.parametrize("splits", [2, 4])
def test_products_split_along_their_inputs(splits: int) -> None:
    """The last block to end adds the shares up, in an order that does not depend on which one it is."""
    from dia2_engine.model.kernels.linear import Tile, tiled

    torch.manual_seed(splits)
    x = torch.randn(40, 3072, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(1000, 3072, device="cuda", dtype=torch.bfloat16) / 3072**0.5
    for tile in (Tile(64, 32, 64, stages=5), Tile(16, 32, 64, slices=4)):
        outs = [torch.zeros(40, 1000, device="cuda", dtype=torch.float32) for _ in range(20)]
        torch.cuda.synchronize()
        for out in outs:
            tiled(x, weight, out, tile, add=True, splits=splits)
        torch.testing.assert_close(outs[0], x.float() @ weight.float().t(), rtol=0.0, atol=1e-4)
        assert all(torch.equal(out, outs[0]) for out in outs)
