"""Products of rows with a published weight [out, in], with what stands around them fused in.

Nothing else costs a launch: an RMSNorm in front is a factor of each row that is applied behind the product (its weight
is part of the product's), and the gate or the residual sum behind it is the epilogue. All weights are read once for
all rows, so what counts is that all of the chip asks for bytes at once, and early: before the kernel in front ends.

With the rows of one or two streams matrix units, which work on 16 rows, gain nothing. With more they do all the work,
and operands go from memory to them without passing through registers. With still more the vendor's library does
better; whoever reads its product then applies the norm's factor (`Pending`). It also serves float32, for parity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .launch import OVERLAP, arrive, launch, prefetch

# Which kernel wins where: docs/performance.md.
_FEW_ROWS = 4  # up to here the one without matrix units
_SOME_ROWS = 32  # up to here tiles in slices
_MORE_ROWS, _MORE_WEIGHTS = 128, 1 << 23  # up to here large tiles, with weights below this size; half of both for sums
_OUTPUTS = 4  # of a block of few rows
_INPUTS = 2048  # of each output that such a block holds at a time, at most


@triton.jit
def _activate(x, NAME: tl.constexpr):
    if NAME == "silu" or NAME == "swish" or NAME == "swiglu":
        x = x * tl.sigmoid(x)
    elif NAME == "gelu" or NAME == "geglu":
        x = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif NAME == "relu":
        x = tl.maximum(x, 0.0)
    return x


@triton.jit
def _products(x, weight):
    """x [R, K] and weight [N, K]: the terms [R, N, K] of their product."""
    return x.to(tl.float32)[:, None, :] * weight.to(tl.float32)[None, :, :]


@triton.jit
def _squares(x):
    """x [R, K]: the sum of squares of each row."""
    x = x.to(tl.float32)
    return tl.sum(x * x, 1)


@triton.jit
def row_factor(x_ptr, row, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The factor of an RMSNorm of one row of x [R, WIDTH]."""
    w = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * WIDTH + w, mask=w < WIDTH, other=0.0).to(tl.float32)
    return tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)


@triton.jit(do_not_specialize=["rows"])
def _few_rows(
    x_ptr, weight_ptr, out_ptr, rows, outputs, eps,
    INPUTS: tl.constexpr, NORM: tl.constexpr, ADD: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    r = tl.arange(0, BLOCK_R)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    real = (n < outputs)[:, None]
    weights = weight_ptr + n[:, None].to(tl.int64) * INPUTS + k[None, :]
    ups = weights + outputs * INPUTS
    xs = x_ptr + r[:, None] * INPUTS + k[None, :]
    inside = (r < rows)[:, None]
    outs = out_ptr + r[:, None] * outputs + n[None, :]
    wanted = inside & (n < outputs)[None, :]
    weight = tl.load(weights, mask=real, other=0.0)  # before `arrive`: while the kernel before still runs
    if GATE != "":
        up = tl.load(ups, mask=real, other=0.0)
    if ADD:
        before = tl.load(outs, mask=wanted, other=0.0).to(tl.float32)
    arrive(OVERLAP)
    x = tl.load(xs, mask=inside, other=0.0)
    squares = tl.zeros((BLOCK_R,), tl.float32)
    if NORM:
        squares += _squares(x)
    total = _products(x, weight)
    if GATE != "":
        second = _products(x, up)
    for start in tl.range(BLOCK_K, INPUTS, BLOCK_K, num_stages=3):
        weight = tl.load(weights + start, mask=real, other=0.0)
        x = tl.load(xs + start, mask=inside, other=0.0)
        if NORM:
            squares += _squares(x)
        total += _products(x, weight)
        if GATE != "":
            up = tl.load(ups + start, mask=real, other=0.0)
            second += _products(x, up)
    factor = tl.rsqrt(squares / INPUTS + eps)[:, None] if NORM else 1.0
    result = tl.sum(total, 2) * factor
    if GATE != "":
        result = _activate(result, GATE) * _activate(tl.sum(second, 2) * factor, UP)
    if ADD:
        result += before
    tl.store(outs, result.to(out_ptr.dtype.element_ty), mask=wanted)


@triton.jit
def _chunk(pointers, k, left, EVEN: tl.constexpr):
    """A tile of which the columns k < left exist; EVEN: all of them do."""
    if EVEN:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=k < left, other=0.0)


@triton.jit
def _times(x, weight, total, SLICES: tl.constexpr):
    """total + x @ weight.T, for tiles [M, K] and [N, K], or as many of them as there are slices."""
    if SLICES > 1:
        return tl.dot(x, tl.permute(weight, (0, 2, 1)), total)
    else:
        return tl.dot(x, weight.T, total)


@triton.jit(do_not_specialize=["rows"])
def _tile(
    x_ptr, weight_ptr, out_ptr, partial_ptr, arrived_ptr, rows, outputs, eps,
    INPUTS: tl.constexpr, NORM: tl.constexpr, ADD: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SLICES: tl.constexpr, SPLITS: tl.constexpr,
    STAGES: tl.constexpr, FETCH: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows and BLOCK_N outputs, over one of SPLITS shares of the inputs; the last to end adds shares up.

    Warps cannot divide a small tile between them, and one that walks along all inputs alone waits for its own last
    product at each step. So there are SLICES of BLOCK_K inputs in each step, one for each warp, added up at the end.
    """
    row_tiles = tl.cdiv(rows, BLOCK_M)
    tile, split = tl.program_id(0), tl.program_id(1)
    r = tile % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)  # neighbours share their weights
    n = tile // row_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    real_r, real_n = tl.minimum(r, rows - 1), tl.minimum(n, outputs - 1).to(tl.int64)  # what is not there is not stored
    share: tl.constexpr = INPUTS // SPLITS
    first = split * share
    if FETCH and tile % row_tiles == 0:
        line: tl.constexpr = 1024 // weight_ptr.dtype.element_ty.primitive_bitwidth
        lines = tl.arange(0, 16) * line
        for start in tl.range(first, first + share, 16 * line):
            at = real_n[:, None] * INPUTS + tl.minimum(start + lines, INPUTS - 1)[None, :]
            prefetch(weight_ptr + at)
            if GATE != "":
                prefetch(weight_ptr + outputs * INPUTS + at)
    step: tl.constexpr = SLICES * BLOCK_K
    even: tl.constexpr = share % step == 0
    if SLICES > 1:
        k = (tl.arange(0, SLICES) * BLOCK_K)[:, None, None] + tl.arange(0, BLOCK_K)[None, None, :]
        xs = x_ptr + real_r[None, :, None] * INPUTS + k
        weights = weight_ptr + real_n[None, :, None] * INPUTS + k
        total = tl.zeros((SLICES, BLOCK_M, BLOCK_N), tl.float32)
        squares = tl.zeros((SLICES, BLOCK_M, BLOCK_M), tl.float32)
    else:
        k = tl.arange(0, BLOCK_K)[None, :]
        xs = x_ptr + real_r[:, None] * INPUTS + k
        weights = weight_ptr + real_n[:, None] * INPUTS + k
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    second = total
    outs = out_ptr + r[:, None] * outputs + n[None, :]
    wanted = (r < rows)[:, None] & (n < outputs)[None, :]
    if ADD:
        before = tl.load(outs, mask=wanted, other=0.0).to(tl.float32)
    arrive(OVERLAP)
    for start in tl.range(first, first + share, step, num_stages=STAGES):
        x = _chunk(xs + start, k, INPUTS - start, even)
        total = _times(x, _chunk(weights + start, k, INPUTS - start, even), total, SLICES)
        if GATE != "":
            up = _chunk(weights + outputs * INPUTS + start, k, INPUTS - start, even)
            second = _times(x, up, second, SLICES)
        if NORM:  # x x^T, whose diagonal is wanted: x is in the matrix units anyhow
            tl.static_assert(SLICES > 1)
            squares = _times(x, x, squares, SLICES)
    if SLICES > 1:
        total, second = tl.sum(total, 0), tl.sum(second, 0)
    if NORM:
        m = tl.arange(0, BLOCK_M)
        squares = tl.sum(tl.where(m[:, None] == m[None, :], tl.sum(squares, 0), 0.0), 1)
        factor = tl.rsqrt(squares / INPUTS + eps)[:, None]
        total *= factor
        second *= factor
    if GATE != "":
        total = _activate(total, GATE) * _activate(second, UP)
    if SPLITS == 1:
        if ADD:
            total += before
        tl.store(outs, total.to(out_ptr.dtype.element_ty), mask=wanted)
    else:
        cells = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        partial = partial_ptr + tile * SPLITS * BLOCK_M * BLOCK_N + cells
        tl.store(partial + split * BLOCK_M * BLOCK_N, total)
        tl.debug_barrier()  # all of the block's share is written before it counts as arrived
        if tl.atomic_add(arrived_ptr + tile, 1, sem="acq_rel") == SPLITS - 1:
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for other in tl.static_range(SPLITS):
                total += tl.load(partial + other * BLOCK_M * BLOCK_N, cache_modifier=".cg")
            if ADD:
                total += before
            tl.store(outs, total.to(out_ptr.dtype.element_ty), mask=wanted)
            tl.store(arrived_ptr + tile, 0)


@dataclass(frozen=True)
class Tile:
    """How `_tile` divides a product."""

    rows: int  # of one block
    outputs: int  # of one block: rows of the weight
    inputs: int  # of one slice of one step
    slices: int = 1  # of a step
    warps: int = 4
    stages: int = 4  # of the pipeline through shared memory

    @property
    def takes_norm(self) -> bool:
        """Whether a norm and a gate are part of the product; with large tiles they gain nothing."""
        return self.slices > 1

    def blocks(self, rows: int, weights: int) -> int:
        """Without splits."""
        return -(-rows // self.rows) * -(-weights // self.outputs)


_ENOUGH_BLOCKS = 96  # for the 132 multiprocessors of an H100
# The first one with enough blocks is taken: large tiles read the fewest bytes.
_TILES = (Tile(16, 32, 64, slices=4), Tile(16, 16, 64, slices=4))
_LARGE_TILE = Tile(64, 32, 64, stages=5)
_MOST_SPLITS = 4
_AHEAD_BYTES = 8 << 20  # a larger weight than this gains nothing by being asked for ahead
_MOST_TILES = 4096  # of a product that is split


def _tile_for(x: Tensor, weight: Tensor, *, add: bool) -> Tile | None:
    """None: the vendor's library is to do it. Large tiles overlap with the kernel in front, which it does not."""
    rows, outputs = x.shape[0], weight.shape[0]
    if x.element_size() > 2:
        return None
    if rows <= _SOME_ROWS:
        return next((tile for tile in _TILES if tile.blocks(rows, outputs) >= _ENOUGH_BLOCKS), _TILES[-1])
    part = 2 if add else 1
    return _LARGE_TILE if rows * part <= _MORE_ROWS and weight.numel() * part < _MORE_WEIGHTS else None


def _splits_for(blocks: int, steps: int) -> int:
    """Only sums are split, since a norm or a gate applies to the whole, and only between whole steps."""
    wanted = min(_MOST_SPLITS, _ENOUGH_BLOCKS // blocks) if blocks <= _MOST_TILES else 1
    return next(count for count in range(max(wanted, 1), 0, -1) if steps % count == 0)


@cache
def _arrived(device: torch.device) -> Tensor:
    """Counters of arrived splits, zero between launches."""
    return torch.zeros(_MOST_TILES, dtype=torch.int32, device=device)


@triton.jit
def _gate(
    both_ptr, x_ptr, out_ptr, eps,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_W: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One row's f(first half) * g(second half) of a product, and before that the factor of a norm of x."""
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    factor = row_factor(x_ptr, row, eps, WIDTH, BLOCK_W) if NORM else 1.0
    arrive(OVERLAP)
    gate = tl.load(both_ptr + row * 2 * HIDDEN + h, mask=h < HIDDEN).to(tl.float32) * factor
    up = tl.load(both_ptr + row * 2 * HIDDEN + HIDDEN + h, mask=h < HIDDEN).to(tl.float32) * factor
    out = _activate(gate, GATE) * _activate(up, UP)
    tl.store(out_ptr + row * HIDDEN + h, out.to(out_ptr.dtype.element_ty), mask=h < HIDDEN)


def linear(
    x: Tensor,
    weight: Tensor,
    *,
    norm: float | None = None,
    gate: tuple[str, str] | None = None,
    add_to: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`x @ weight.T` for contiguous x [R, in] and weight [out, in].

    norm    the epsilon of an RMSNorm of x in front, whose own weight is multiplied into `weight`
    gate    names of activations (f, g): `weight` is [2 * out, in], and the result f(first half) * g(second half)
    add_to  the residual stream [R, out]: the product is added to it in place, and it is returned. It is read before the
            kernel in front has ended, so that one must not write it
    dtype   of the result, if not that of x
    """
    rows, outputs = x.shape[0], weight.shape[0] // 2 if gate else weight.shape[0]
    tile = _tile_for(x, weight, add=add_to is not None) if rows > _FEW_ROWS else None
    if rows > _FEW_ROWS and (tile is None or not tile.takes_norm):
        return _many_rows(x, weight, tile, norm=norm, gate=gate, add_to=add_to, dtype=dtype)
    out = x.new_empty((rows, outputs), dtype=dtype or x.dtype) if add_to is None else add_to
    if tile is not None:
        tiled(x, weight, out, tile, norm=norm, gate=gate, add=add_to is not None)
    else:
        _by_outputs(x, weight, out, norm=norm, gate=gate, add=add_to is not None)
    return out


@dataclass(frozen=True)
class Pending:
    """An RMSNorm of x [R, in], of which the factor of each row is still to be applied to a product."""

    x: Tensor
    eps: float


def pending(x: Tensor, weight: Tensor, norm: float, dtype: torch.dtype | None = None) -> tuple[Tensor, Pending | None]:
    """`linear` with a norm; but where that would take a kernel of its own, its factor is left to who reads the product.

    x must not change before that.
    """
    tile = _tile_for(x, weight, add=False)
    if x.shape[0] <= _FEW_ROWS or (tile is not None and tile.takes_norm):
        return linear(x, weight, norm=norm, dtype=dtype), None
    return linear(x, weight, dtype=dtype), Pending(x, norm)


def pending_arguments(product: Tensor, norm: Pending | None) -> tuple[tuple[Tensor, float], dict[str, int]]:
    """For a kernel that calls `row_factor`: x and eps, and the constants WIDTH_X (0: nothing pending) and BLOCK_X."""
    if norm is None:
        return (product, 0.0), {"WIDTH_X": 0, "BLOCK_X": 1}
    width = norm.x.shape[1]
    return (norm.x, norm.eps), {"WIDTH_X": width, "BLOCK_X": triton.next_power_of_2(width)}


def _by_outputs(
    x: Tensor, weight: Tensor, out: Tensor, *, norm: float | None, gate: tuple[str, str] | None, add: bool
) -> None:
    """`linear` of few rows into `out`."""
    (rows, inputs), outputs = x.shape, out.shape[1]
    block_r = triton.next_power_of_2(rows)
    block_k = min(_INPUTS, inputs & -inputs)  # a divisor: no block is ragged
    launch(
        _few_rows, (triton.cdiv(outputs, _OUTPUTS),),
        x, weight, out, rows, outputs, norm or 0.0,
        INPUTS=inputs, NORM=norm is not None, ADD=add, GATE=gate[0] if gate else "", UP=gate[1] if gate else "",
        BLOCK_R=block_r, BLOCK_N=_OUTPUTS, BLOCK_K=block_k,
    )  # fmt: skip


def tiled(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    tile: Tile,
    *,
    norm: float | None = None,
    gate: tuple[str, str] | None = None,
    add: bool = False,
    splits: int | None = None,
) -> None:
    """`linear` into `out` (or, `add`, onto it) by one kind of tile, of 16-bit numbers."""
    (rows, inputs), outputs = x.shape, out.shape[1]
    blocks, step = tile.blocks(rows, weight.shape[0]), tile.inputs * tile.slices
    if splits is None:
        splits = _splits_for(blocks, inputs // step) if add and inputs % step == 0 else 1
    scratch = out if splits == 1 else out.new_empty(blocks * splits * tile.rows * tile.outputs, dtype=torch.float32)
    launch(
        _tile, (blocks, splits),
        x, weight, out, scratch, _arrived(x.device), rows, outputs, norm or 0.0,
        INPUTS=inputs, NORM=norm is not None, ADD=add, GATE=gate[0] if gate else "", UP=gate[1] if gate else "",
        BLOCK_M=tile.rows, BLOCK_N=tile.outputs // 2 if gate else tile.outputs, BLOCK_K=tile.inputs,
        SLICES=tile.slices, SPLITS=splits, STAGES=tile.stages, FETCH=OVERLAP and weight.nbytes <= _AHEAD_BYTES,
        num_warps=tile.warps,
    )  # fmt: skip


def _many_rows(
    x: Tensor,
    weight: Tensor,
    tile: Tile | None,
    *,
    norm: float | None,
    gate: tuple[str, str] | None,
    add_to: Tensor | None,
    dtype: torch.dtype | None,
) -> Tensor:
    """`linear` with a norm and a gate in kernels of their own, by large tiles or the vendor's library."""
    if norm is not None and gate is None:
        x = F.rms_norm(x, x.shape[-1:], None, norm)
    if add_to is not None and tile is None:
        return torch.addmm(add_to, x, weight.t(), out=add_to)
    if tile is not None:
        product = x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype or x.dtype) if add_to is None else add_to
        tiled(x, weight, product, tile, add=add_to is not None)
    elif dtype is not None and dtype != x.dtype:
        product = torch.mm(x, weight.t(), out_dtype=dtype)
    else:
        product = F.linear(x, weight)
    if gate is not None:
        (rows, width), hidden = x.shape, weight.shape[0] // 2
        product, both = x.new_empty((rows, hidden)), product
        block = min(1024, triton.next_power_of_2(hidden))
        launch(
            _gate, (rows, triton.cdiv(hidden, block)),
            both, x, product, norm or 0.0, HIDDEN=hidden, WIDTH=width, NORM=norm is not None,
            GATE=gate[0], UP=gate[1], BLOCK=block, BLOCK_W=triton.next_power_of_2(width),
        )  # fmt: skip
    return product
