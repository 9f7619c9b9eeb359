"""The codec's frame: a window of past inputs times a matrix, with all that stands around it fused in, and attention.

Everything is channels-last. A layer's input has one part in memory for each row of the batch, the positions of this
frame, and one in the slot's history, the steps before it; `_window` addresses both as one. Weights are [out, taps * C],
so that a block's weights are contiguous, and matrix units find them in the order they want.

All is float32 but the ring of keys and values, whose type is the caller's. `precision` is that of the products:
"ieee", or "tf32" on matrix units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import arrive, launch, prefetch

_ENOUGH_BLOCKS = 128  # about one for each multiprocessor of an H100: tiles shrink, then K is split, until there are
_FEW_ROWS = 4  # up to here matrix units, which work on 16 rows, gain nothing (see `linear`)
_FEW_TERMS = 8192  # of a block that does without them, held at a time
_SMALL_PRODUCT = 1 << 25  # multiplications; below, blocks of 16 x 16 may read the operands many times over
_LEAST_OF_K = 256  # for one split
_MOST_SPLITS = 8
_STAGED_BYTES = 96 << 10  # of operands that a block asks for ahead: two blocks fit on a multiprocessor
_UNIT_CHANNELS = 128  # at most, for a residual unit in one kernel: its block holds all channels


@dataclass(frozen=True)
class Tile:
    """How a product is cut into blocks. Without `dot`, a block multiplies without matrix units."""

    m: int
    n: int
    k: int  # channels of one tap at a time
    splits: int = 1  # of K; a power of two
    warps: int = 4
    stages: int = 4
    dot: bool = True


def choose_tile(rows: int, outputs: int, channels: int, taps: int, precision: str) -> Tile:
    """For a product [rows, taps * channels] x [taps * channels, outputs]."""
    if rows <= _FEW_ROWS:
        m = triton.next_power_of_2(rows)
        return Tile(m, 4, _divisor(channels, _FEW_TERMS // 4 // m), stages=3, dot=False)
    inputs = taps * channels
    m, n = (min(128, max(16, triton.next_power_of_2(size))) for size in (rows, outputs))
    small = rows * outputs * inputs <= _SMALL_PRODUCT
    least_m, least_n = min(m, 16 if small else 64), min(n, 16 if small else 32)
    while triton.cdiv(rows, m) * triton.cdiv(outputs, n) < _ENOUGH_BLOCKS and (m > least_m or n > least_n):
        if n > least_n and (n >= m or m == least_m):
            n //= 2
        else:
            m //= 2
    blocks, splits = triton.cdiv(rows, m) * triton.cdiv(outputs, n), 1
    while 2 * blocks * splits <= _ENOUGH_BLOCKS and 2 * splits <= min(_MOST_SPLITS, inputs // _LEAST_OF_K):
        splits *= 2
    if precision == "ieee":  # without matrix units, operands of a block are held in registers
        return Tile(min(m, 64), min(n, 64), _divisor(channels, 32), splits, stages=2)
    k = _divisor(channels, 128 if m + n <= 32 else 64 if m + n <= 128 else 32)
    stages = max(2, min(4, _STAGED_BYTES // ((m + n) * k * 4)))
    return Tile(m, n, k, splits, warps=8 if m * n > 8192 else 4, stages=stages)


def choose_unit(rows: int, channels: int, precision: str) -> Tile:
    """For a residual unit in one kernel: its blocks hold all channels."""
    exact, m = precision == "ieee", 16
    while not exact and m < 64 and rows // (2 * m) >= _ENOUGH_BLOCKS:
        m *= 2
    n = max(16, triton.next_power_of_2(channels))
    return Tile(m, n, _divisor(channels, 32), stages=2 if exact else 3)


def rounded(weight: Tensor, precision: str) -> Tensor:
    """A product's weights as its kernel has to find them."""
    if precision != "tf32":
        return weight
    return ((weight.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def normed(matrix: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The weights [out, in] and bias of a product [in, out] behind a LayerNorm, with that one's gain and bias in them.

    Taking the mean off the inputs is taking each output's mean weight off its weights. What is left of the norm is a
    factor of each row, for which the product itself sees enough of the row.
    """
    scaled = matrix.double() * gain.double()[:, None]
    weight = (scaled - scaled.mean(dim=0)).t().float().contiguous()
    return weight, (bias.double() @ matrix.double()).float()


def _divisor(channels: int, most: int) -> int:
    """Of how many channels a block takes at a time: a power of two, at best one that divides them."""
    whole = channels & -channels
    return min(most, whole if whole >= 16 else max(16, triton.next_power_of_2(channels)))


# ---- parts of kernels


@triton.jit
def _elu(x):
    return tl.where(x > 0.0, x, tl.exp(x) - 1.0)


@triton.jit
def _rounded(x, PRECISION: tl.constexpr):
    """To the nearest number that matrix units can read: they cut the rest off, and every product would be too small."""
    if PRECISION == "tf32":
        x = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return x


@triton.jit
def _finished(x, POST: tl.constexpr, PRECISION: tl.constexpr):
    """What an activation makes of x, rounded, as the next product reads it."""
    if POST == "elu":
        x = _rounded(_elu(x), PRECISION)
    elif POST == "gelu":
        x = _rounded(0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476)), PRECISION)
    elif POST == "clamp":
        x = tl.minimum(tl.maximum(x, -1.0), 1.0)
    return x


@triton.jit
def _history(history_ptr, rows_ptr, row, history_size, history_at, TAPS: tl.constexpr):
    """The past inputs of a layer in the slots of some rows of the batch, oldest first."""
    if TAPS > 1:
        return history_ptr + tl.load(rows_ptr + row).to(tl.int64) * history_size + history_at
    return history_ptr + row.to(tl.int64) * 0


@triton.jit
def _window(x_ptr, past, m, position, tap, C: tl.constexpr, TAPS: tl.constexpr, DILATION: tl.constexpr):
    """Where the inputs [C] of one tap lie for rows m = row * T + position."""
    back = (TAPS - 1 - tap) * DILATION
    now = x_ptr + (m - back) * C
    if TAPS > 1:
        steps: tl.constexpr = (TAPS - 1) * DILATION
        return tl.where(position >= back, now, past + (position - back + steps) * C)
    return now


@triton.jit
def _products(
    x_ptr, past, weights, real_m, real_n, m, position, first, last,
    C: tl.constexpr, TAPS: tl.constexpr, DILATION: tl.constexpr, PRE: tl.constexpr, PRECISION: tl.constexpr,
    DOT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Windows times weights [BLOCK_M, BLOCK_N], over the pieces first .. last - 1: BLOCK_K channels of one tap each.

    With a norm, also the sums [BLOCK_M] of the inputs and of their squares.
    """
    pieces: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K  # of a tap
    k = tl.arange(0, BLOCK_K)
    if DOT:
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    else:
        total = tl.zeros((BLOCK_M, BLOCK_N, BLOCK_K), tl.float32)
    sums, squares = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    for piece in tl.range(first, last, num_stages=STAGES):
        tap, c = piece // pieces, (piece % pieces) * BLOCK_K + k
        inside_m, inside_n = real_m[:, None], real_n[:, None]
        if C % BLOCK_K != 0:
            inside_m &= (c < C)[None, :]
            inside_n &= (c < C)[None, :]
        weight = tl.load(weights[:, None] + (tap * C + c)[None, :], mask=inside_n, other=0.0)
        xs = _window(x_ptr, past, m, position, tap, C, TAPS, DILATION)
        x = tl.load(xs[:, None] + c[None, :], mask=inside_m, other=0.0)
        if PRE == "elu":
            x = _elu(x)
        elif PRE == "norm":
            sums += tl.sum(x, 1)
            squares += tl.sum(x * x, 1)
        if PRE != "":
            x = _rounded(x, PRECISION)
        if DOT:
            total = tl.dot(x, weight.T, total, input_precision=PRECISION)
        else:
            total += x[:, None, :] * weight[None, :, :]
    if not DOT:
        total = tl.sum(total, 2)
    return total, sums, squares


@triton.jit
def _finish(
    total, m, n, real, bias_ptr, skip_ptr, out_ptr, outputs,
    BIAS: tl.constexpr, ADD: tl.constexpr, POST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The epilogue of a product."""
    if BIAS:
        total += tl.load(bias_ptr + n, mask=n < outputs, other=0.0)[None, :]
    at = m[:, None] * outputs + n[None, :]
    if ADD:
        total += tl.load(skip_ptr + at, mask=real, other=0.0)
    tl.store(out_ptr + at, _finished(total, POST, PRECISION), mask=real)


# ---- products


@triton.jit(do_not_specialize=["count", "positions"])
def _product(
    x_ptr, history_ptr, rows_ptr, weight_ptr, bias_ptr, skip_ptr, out_ptr,
    partial_ptr, arrived_ptr, count, positions, outputs, history_size, history_at, eps,
    C: tl.constexpr, TAPS: tl.constexpr, DILATION: tl.constexpr, PRE: tl.constexpr, BIAS: tl.constexpr,
    ADD: tl.constexpr, POST: tl.constexpr, PRECISION: tl.constexpr, DOT: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    LINES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One block of rows and outputs, over one share of the inputs; the last share to end adds them up."""
    tile, split = tl.program_id(0), tl.program_id(1)
    across = (outputs + BLOCK_N - 1) // BLOCK_N
    m = (tile // across) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = (tile % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    real_m, real_n = m < count, n < outputs
    inputs: tl.constexpr = TAPS * C
    pieces: tl.constexpr = TAPS * ((C + BLOCK_K - 1) // BLOCK_K)
    share: tl.constexpr = (pieces + SPLITS - 1) // SPLITS
    first = split * share
    weights = weight_ptr + n * inputs
    if OVERLAP and LINES > 0:  # while the kernel before still runs
        line = tl.minimum(first * BLOCK_K + tl.arange(0, LINES) * 32, inputs - 1)
        prefetch(weight_ptr + (tl.minimum(n, outputs - 1) * inputs)[:, None] + line[None, :])
    arrive(OVERLAP)
    position = m % positions
    past = _history(history_ptr, rows_ptr, tl.where(real_m, m // positions, 0), history_size, history_at, TAPS)
    total, sums, squares = _products(
        x_ptr, past, weights, real_m, real_n, m, position, first, tl.minimum(first + share, pieces),
        C, TAPS, DILATION, PRE, PRECISION, DOT, BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
    )  # fmt: skip
    if PRE == "norm":
        mean = sums / C
        total *= tl.rsqrt(tl.maximum(squares / C - mean * mean, 0.0) + eps)[:, None]
    real = real_m[:, None] & real_n[None, :]
    if SPLITS == 1:
        _finish(total, m, n, real, bias_ptr, skip_ptr, out_ptr, outputs, BIAS, ADD, POST, PRECISION)
    else:
        block: tl.constexpr = BLOCK_M * BLOCK_N
        cell = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        partial = partial_ptr + tile * SPLITS * block + cell
        tl.store(partial + split * block, total)
        tl.debug_barrier()  # all of the block's partial sums are written before it counts as arrived
        if tl.atomic_add(arrived_ptr + tile, 1, sem="acq_rel") == SPLITS - 1:
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for other in tl.static_range(SPLITS):  # always in this order, whichever came last
                total += tl.load(partial + other * block, cache_modifier=".cg")
            _finish(total, m, n, real, bias_ptr, skip_ptr, out_ptr, outputs, BIAS, ADD, POST, PRECISION)
            tl.store(arrived_ptr + tile, 0)


@triton.jit(do_not_specialize=["count", "positions"])
def _unit(
    x_ptr, history_ptr, rows_ptr, reduce_ptr, reduce_bias_ptr, expand_ptr, expand_bias_ptr, out_ptr,
    count, positions, history_size, history_at,
    C: tl.constexpr, INNER: tl.constexpr, TAPS: tl.constexpr, DILATION: tl.constexpr, POST: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """A whole residual unit for a block of rows: what lies between its two convolutions never leaves the chip."""
    arrive(OVERLAP)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    i, c = tl.arange(0, BLOCK_I), tl.arange(0, BLOCK_C)
    real_m, real_i, real_c = m < count, i < INNER, c < C
    position = m % positions
    past = _history(history_ptr, rows_ptr, tl.where(real_m, m // positions, 0), history_size, history_at, TAPS)
    inner, _, _ = _products(
        x_ptr, past, reduce_ptr + i * (TAPS * C), real_m, real_i, m, position,
        0, TAPS * ((C + BLOCK_K - 1) // BLOCK_K),
        C, TAPS, DILATION, "elu", PRECISION, True, BLOCK_M, BLOCK_I, BLOCK_K, STAGES,
    )  # fmt: skip
    inner = _finished(inner + tl.load(reduce_bias_ptr + i, mask=real_i, other=0.0)[None, :], "elu", PRECISION)
    weight = tl.load(expand_ptr + c[:, None] * INNER + i[None, :], mask=real_c[:, None] & real_i[None, :], other=0.0)
    total = tl.dot(inner, weight.T, input_precision=PRECISION)
    real = real_m[:, None] & real_c[None, :]
    _finish(total, m, c, real, expand_bias_ptr, x_ptr, out_ptr, C, True, True, POST, PRECISION)


@dataclass(frozen=True)
class Product:
    """A layer: the matrix, and where its past inputs lie in a slot's history."""

    weight: Tensor  # [out, taps * C], oldest tap first
    bias: Tensor | None
    positions: int  # T: inputs of a frame
    taps: int = 1
    dilation: int = 1
    history_at: int = 0
    norm_eps: float | None = None  # of a LayerNorm in front, of which only a factor of each row is left: see `normed`

    @property
    def channels(self) -> int:
        return self.weight.shape[1] // self.taps

    @property
    def steps(self) -> int:
        """Past inputs it needs."""
        return (self.taps - 1) * self.dilation


class Products:
    """Runs the products of a pass: its slots, their history, and what all of them share."""

    def __init__(self, history: Tensor, rows: Tensor, arrived: Tensor, precision: str) -> None:
        """history [slots, N]; rows [B], the slots; arrived int32 [at least 64], zero between two kernels."""
        self.history, self.rows, self.arrived, self.precision = history, rows, arrived, precision

    def __call__(
        self,
        x: Tensor,
        layer: Product,
        out: Tensor | None = None,
        *,
        first: str = "",
        add: Tensor | None = None,
        then: str = "",
    ) -> Tensor:
        """The layer's outputs [B * T, out] for x [B * T, C].

        first  "elu" or "round": what its inputs go through, unless they are an activation's outputs already
        add    [B * T, out]: added; may be `out` itself
        then   "elu", "gelu" or "clamp": what the sum goes through
        """
        count, outputs = x.shape[0], layer.weight.shape[0]
        tile = choose_tile(count, outputs, layer.channels, layer.taps, self.precision)
        if layer.norm_eps is not None:
            first, tile = "norm", replace(tile, splits=1)  # each block has to see whole rows
        down, across = triton.cdiv(count, tile.m), triton.cdiv(outputs, tile.n)
        out = x.new_empty((count, outputs)) if out is None else out
        partial = x.new_empty((down * across * tile.splits * tile.m * tile.n,)) if tile.splits > 1 else x
        # Blocks that share their weights with many others need not fetch them ahead.
        lines = triton.next_power_of_2(triton.cdiv(layer.weight.shape[1] // tile.splits, 32)) if down <= 2 else 0
        launch(
            _product, (down * across, tile.splits),
            x, self.history, self.rows, layer.weight, x if layer.bias is None else layer.bias,
            x if add is None else add, out,
            partial, self.arrived, count, layer.positions, outputs,
            self.history.shape[1], layer.history_at, layer.norm_eps or 0.0,
            C=layer.channels, TAPS=layer.taps, DILATION=layer.dilation, PRE=first,
            BIAS=layer.bias is not None, ADD=add is not None, POST=then, PRECISION=self.precision, DOT=tile.dot,
            SPLITS=tile.splits, BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, STAGES=tile.stages, LINES=lines,
            num_warps=tile.warps,
        )  # fmt: skip
        return out

    def residual_unit(self, x: Tensor, reduce: Product, expand: Product, out: Tensor, *, then: str) -> None:
        """out = then(x + expand(elu(reduce(elu(x))))), each [B * T, C]; `out` is not x, which history is taken from."""
        assert reduce.bias is not None
        assert expand.bias is not None
        count, channels, inner = x.shape[0], reduce.channels, reduce.weight.shape[0]
        if channels > _UNIT_CHANNELS:
            self(self(x, reduce, first="elu", then="elu"), expand, out, add=x, then=then)
            return
        tile = choose_unit(count, channels, self.precision)
        launch(
            _unit, (triton.cdiv(count, tile.m),),
            x, self.history, self.rows, reduce.weight, reduce.bias, expand.weight, expand.bias, out,
            count, reduce.positions, self.history.shape[1], reduce.history_at,
            C=channels, INNER=inner, TAPS=reduce.taps, DILATION=reduce.dilation, POST=then, PRECISION=self.precision,
            BLOCK_M=tile.m, BLOCK_I=max(16, triton.next_power_of_2(inner)), BLOCK_C=tile.n, BLOCK_K=tile.k,
            STAGES=tile.stages, num_warps=tile.warps,
        )  # fmt: skip


# ---- the frame's beginning and end


@triton.jit
def _enter(
    codes_ptr, entries_ptr, now_ptr, before_ptr, frequencies_ptr, history_ptr, rows_ptr, positions_ptr,
    latent_ptr, x_ptr, rope_ptr, history_size, history_at,
    CODEBOOKS: tl.constexpr, ENTRIES: tl.constexpr, WIDTH: tl.constexpr, POSITIONS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Some channels of one row: from ids to the transformer's input; and the angles of its positions."""
    arrive(OVERLAP)
    row = tl.program_id(0)
    k, c = tl.arange(0, BLOCK_K), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    slot = tl.load(rows_ptr + row).to(tl.int64)
    ids = tl.load(codes_ptr + row * CODEBOOKS + k, mask=k < CODEBOOKS, other=0).to(tl.int32) + k * ENTRIES
    inside = (k < CODEBOOKS)[:, None] & (c < WIDTH)[None, :]
    latent = tl.sum(tl.load(entries_ptr + ids[:, None] * WIDTH + c[None, :], mask=inside, other=0.0), 0)
    past = tl.load(history_ptr + slot * history_size + history_at + c, mask=c < WIDTH, other=0.0)
    tl.store(latent_ptr + row * WIDTH + c, latent, mask=c < WIDTH)
    for t in tl.static_range(POSITIONS):
        now = tl.load(now_ptr + t * WIDTH + c, mask=c < WIDTH, other=0.0)
        before = tl.load(before_ptr + t * WIDTH + c, mask=c < WIDTH, other=0.0)
        tl.store(x_ptr + (row * POSITIONS + t) * WIDTH + c, latent * now + past * before, mask=c < WIDTH)
    if tl.program_id(1) == 0:
        h = tl.arange(0, BLOCK_H)
        frequency = tl.load(frequencies_ptr + h, mask=h < HALF, other=0.0)
        position = tl.load(positions_ptr + slot)
        for t in tl.static_range(POSITIONS):
            angle = (position + t).to(tl.float64) * frequency
            angle -= tl.floor(angle * 0.15915494309189535) * 6.283185307179586  # whole turns
            rope = rope_ptr + (row * POSITIONS + t) * 2 * HALF + h
            tl.store(rope, tl.cos(angle).to(tl.float32), mask=h < HALF)
            tl.store(rope + HALF, tl.sin(angle).to(tl.float32), mask=h < HALF)


def enter(
    codes: Tensor,
    entries: Tensor,
    upsample: tuple[Tensor, Tensor],
    frequencies: Tensor,
    history: Tensor,
    history_at: int,
    positions: Tensor,
    rows: Tensor,
    latent: Tensor,
    x: Tensor,
) -> Tensor:
    """Fill latent [B, C] and x [B * T, C] from codes [B, K].

    Returns cos and sin of the positions' angles, [B * T, 2, D / 2], from which all layers rotate.
    entries [K * codebook_size, C]; upsample: two [T, C], of a latent and of the one before it, which is in the slot's
    history at `history_at`; frequencies float64 [D / 2]; positions int64 [slots].
    """
    batch, codebooks = codes.shape
    steps, width = upsample[0].shape
    half = frequencies.shape[0]
    rope = x.new_empty((batch * steps, 2, half))
    block_c = min(64, triton.next_power_of_2(width))
    launch(
        _enter, (batch, triton.cdiv(width, block_c)),
        codes, entries, *upsample, frequencies, history, rows, positions, latent, x, rope,
        history.shape[1], history_at,
        CODEBOOKS=codebooks, ENTRIES=entries.shape[0] // codebooks, WIDTH=width, POSITIONS=steps, HALF=half,
        BLOCK_K=triton.next_power_of_2(codebooks), BLOCK_C=block_c, BLOCK_H=triton.next_power_of_2(half),
    )  # fmt: skip
    return rope


@triton.jit(do_not_specialize=["batch"])
def _renew(
    inputs_ptr, history_ptr, positions_ptr, rows_ptr, table_ptr, batch, history_size,
    ADVANCE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """The past inputs of one row, one layer and some channels, as the next frame has to find them."""
    arrive(OVERLAP)
    row, layer = tl.program_id(0), tl.program_id(1)
    slot = tl.load(rows_ptr + row).to(tl.int64)
    entry = table_ptr + layer * 5
    channels, steps, positions = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    history_at, inputs_at = tl.load(entry + 3), tl.load(entry + 4)
    s = tl.arange(0, BLOCK_S)[:, None]
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    past = history_ptr + slot * history_size + history_at
    now = inputs_ptr + batch.to(tl.int64) * inputs_at + row * positions * channels
    source = s + positions - steps  # position in this frame; negative: the frame was shorter than the history
    wanted = (s < steps) & (c < channels)
    x = tl.load(tl.where(source >= 0, now + source * channels, past + (s + positions) * channels) + c, mask=wanted)
    tl.debug_barrier()  # what moves within the history is read before it is overwritten
    tl.store(past + s * channels + c, x, mask=wanted)
    if (layer == 0) & (tl.program_id(2) == 0):
        tl.store(positions_ptr + slot, tl.load(positions_ptr + slot) + ADVANCE)


class Inputs:
    """The inputs of all layers in one buffer, from which the history is renewed in one kernel when a frame is done."""

    def __init__(self, layers: list[tuple[int, int, int, int]], device: torch.device) -> None:
        """layers: channels, past steps, positions of a frame, and where its past lies in a slot's history."""
        self._shapes = [(positions, channels) for channels, _, positions, _ in layers]
        sizes = [positions * channels for positions, channels in self._shapes]
        self._starts = [sum(sizes[:index]) for index in range(len(sizes))]
        self._size = sum(sizes)
        remembered = [(*layer, start) for layer, start in zip(layers, self._starts, strict=True) if layer[1]]
        self._table = torch.tensor(remembered, dtype=torch.int32, device=device)
        self._most_steps = max(layer[1] for layer in layers)
        self._most_channels = max(layer[0] for layer in remembered)

    def of(self, buffer: Tensor, batch: int) -> list[Tensor]:
        """Each layer's [B * T, C]."""
        return [
            buffer[batch * start : batch * (start + positions * channels)].view(batch * positions, channels)
            for start, (positions, channels) in zip(self._starts, self._shapes, strict=True)
        ]

    def new(self, batch: int, like: Tensor) -> Tensor:
        return like.new_empty((batch * self._size,))

    def renew(self, buffer: Tensor, history: Tensor, positions: Tensor, rows: Tensor, advance: int) -> None:
        """Keep what the next frame needs, and let the rows' slots be `advance` positions further."""
        batch, block_c = rows.shape[0], min(128, triton.next_power_of_2(self._most_channels))
        launch(
            _renew, (batch, len(self._table), triton.cdiv(self._most_channels, block_c)),
            buffer, history, positions, rows, self._table, batch, history.shape[1],
            ADVANCE=advance, BLOCK_S=triton.next_power_of_2(self._most_steps), BLOCK_C=block_c,
        )  # fmt: skip


# ---- attention


@triton.jit
def _turned(head, rope, d, D: tl.constexpr):
    """The head at each address, rotated by the angles at `rope`."""
    half: tl.constexpr = D // 2
    inside = d < D
    cos = tl.load(rope + d % half, mask=inside, other=0.0)
    sin = tl.load(rope + half + d % half, mask=inside, other=0.0)
    other = tl.load(head + (d + half) % D, mask=inside, other=0.0)
    return tl.load(head + d, mask=inside, other=0.0) * cos + tl.where(d < half, -other, other) * sin


@triton.jit
def _attend(
    qkv_ptr, rope_ptr, keys_ptr, values_ptr, rows_ptr, positions_ptr, out_ptr,
    POSITIONS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    WINDOW: tl.constexpr, RING: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """The queries of one row and key head: over the frame's own positions, then over the ring."""
    arrive(OVERLAP)
    row, kv_head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(rows_ptr + row).to(tl.int64)
    position = tl.load(positions_ptr + slot)
    stride: tl.constexpr = (GROUP + 2) * KV_HEADS * D  # of a position's products
    qkv = qkv_ptr + row * POSITIONS * stride
    rope = rope_ptr + row * POSITIONS * D
    ring = (slot * KV_HEADS + kv_head) * RING * D
    q, d, t = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_T)
    step, head = q // GROUP, kv_head * GROUP + q % GROUP
    real = q < POSITIONS * GROUP
    half: tl.constexpr = D // 2
    kind = keys_ptr.dtype.element_ty

    inside = real[:, None] & (d < D)[None, :]
    turn = rope + step[:, None] * D + (d % half)[None, :]
    cos, sin = tl.load(turn, mask=inside, other=0.0), tl.load(turn + half, mask=inside, other=0.0)
    query = qkv + step[:, None] * stride + head[:, None] * D
    other = tl.load(query + ((d + half) % D)[None, :], mask=inside, other=0.0)
    other = tl.where((d < half)[None, :], -other, other)
    query = tl.load(query + d[None, :], mask=inside, other=0.0) * cos + other * sin

    best = tl.full((BLOCK_Q,), -1e30, tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    out = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for own in tl.static_range(POSITIONS):
        key_at = qkv + own * stride + (KV_HEADS * GROUP + kv_head) * D
        key = _turned(key_at, rope + own * D, d, D)
        value = tl.load(key_at + KV_HEADS * D + d, mask=d < D, other=0.0)
        cell = ring + (position + own) % RING * D + d  # none that a query of this frame still needs
        tl.store(keys_ptr + cell, key.to(kind), mask=d < D)
        tl.store(values_ptr + cell, value.to(kind), mask=d < D)
        seen = (own <= step) & (step - own < WINDOW)
        score = tl.where(seen, tl.sum(query * key[None, :], 1), -1e30)
        new_best = tl.maximum(best, score)
        weight = tl.where(seen, tl.exp(score - new_best), 0.0)
        decay = tl.exp(best - new_best)
        total = total * decay + weight
        out = out * decay[:, None] + weight[:, None] * value[None, :]
        best = new_best

    newest = ((position + RING - 1) % RING).to(tl.int32)  # the cell of the position before this frame
    query_kind = query.to(kind)
    for start in tl.range(0, RING, BLOCK_T, num_stages=STAGES):
        age = newest - (start + t)
        age = tl.where(age < 0, age + RING, age) + 1  # how far before this frame's first position
        held = (start + t < RING) & (age <= position) & (age < WINDOW)
        cells = ring + (start + t)[:, None] * D + d[None, :]
        wanted = held[:, None] & (d < D)[None, :]
        keys = tl.load(keys_ptr + cells, mask=wanted, other=0.0)
        values = tl.load(values_ptr + cells, mask=wanted, other=0.0)
        scores = tl.dot(query_kind, keys.T, input_precision="ieee")
        visible = held[None, :] & (age[None, :] + step[:, None] < WINDOW)
        scores = tl.where(visible, scores, -1e30)
        new_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.where(visible, tl.exp(scores - new_best[:, None]), 0.0)
        decay = tl.exp(best - new_best)
        total = total * decay + tl.sum(weights, 1)
        out = out * decay[:, None] + tl.dot(weights.to(kind), values, input_precision="ieee")
        best = new_best
    at = out_ptr + (row * POSITIONS + step)[:, None] * (KV_HEADS * GROUP * D) + head[:, None] * D + d[None, :]
    tl.store(at, _rounded(out / total[:, None], PRECISION), mask=inside)


def attend(
    qkv: Tensor, rope: Tensor, keys: Tensor, values: Tensor, rows: Tensor, positions: Tensor, heads: int, window: int
) -> Tensor:
    """From qkv [B * T, (heads + 2 * kv_heads) * D], queries scaled, to [B * T, heads * D]; keys and values are kept.

    What comes out is rounded for a product as the ring is: with a ring of float32 not at all.
    rope [B * T, 2, D / 2]; keys, values [slots, kv_heads, ring, D], of which a ring holds at least window - 1 + T;
    rows [B]; positions int64 [slots].
    """
    _, kv_heads, ring, dim = keys.shape
    batch = rows.shape[0]
    steps, group = qkv.shape[0] // batch, heads // kv_heads
    out = qkv.new_empty((qkv.shape[0], heads * dim))
    exact = keys.dtype == torch.float32
    launch(
        _attend, (batch, kv_heads),
        qkv, rope, keys, values, rows, positions, out,
        POSITIONS=steps, KV_HEADS=kv_heads, GROUP=group, D=dim, WINDOW=window, RING=ring,
        BLOCK_Q=max(16, triton.next_power_of_2(steps * group)), BLOCK_D=max(16, triton.next_power_of_2(dim)),
        BLOCK_T=32 if exact else 64, STAGES=2 if exact else 4, PRECISION="ieee" if exact else "tf32",
    )  # fmt: skip
    return out
