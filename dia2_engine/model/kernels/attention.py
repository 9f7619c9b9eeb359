"""Attention of the two transformers, with the norms and rotation of queries and keys and the cache writes fused in.

Tokens come in rows of N columns: row 2 * r + branch is one guidance branch of the step's row r. The transformer's
cache is paged: a slot's columns lie in the pages that its row of the table names, in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..step import Rows, SlotMemory
from .launch import arrive, launch
from .linear import Pending, pending_arguments, row_factor

_ENOUGH_BLOCKS = 264  # two for each multiprocessor of an H100: what a pass is split into, if it has fewer
_MOST_SPLITS = 8


@triton.jit
def _scales(scale_ptr, HEAD: tl.constexpr):
    """Both halves [1, HEAD / 2] of a norm's weight."""
    d = tl.arange(0, HEAD // 2)[None, :]
    return tl.load(scale_ptr + d).to(tl.float32), tl.load(scale_ptr + HEAD // 2 + d).to(tl.float32)


@triton.jit
def _angles(rope_ptr, HEAD: tl.constexpr):
    """cos and sin [1, HEAD / 2] of the position at which `rope_ptr` is."""
    d = tl.arange(0, HEAD // 2)[None, :]
    return tl.load(rope_ptr + d), tl.load(rope_ptr + HEAD + HEAD // 2 + d)  # in the first half it is -sin


@triton.jit
def _rotated(first, second, scale_1, scale_2, cos, sin, eps, HEAD: tl.constexpr, ROPE: tl.constexpr):
    """Norm and rotation of float32 heads [H, HEAD / 2], given as their two halves."""
    factor = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / HEAD + eps)[:, None]
    first *= factor * scale_1
    second *= factor * scale_2
    if ROPE:
        first, second = first * cos - second * sin, second * cos + first * sin
    return first, second


@triton.jit
def _prepare(
    qkv_ptr, query_norm_ptr, key_norm_ptr, rope_ptr, slots_ptr, positions_ptr, where_ptr, table_ptr,
    queries_ptr, keys_ptr, values_ptr, x_ptr, x_eps, eps, columns, pages,
    QUERY_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD: tl.constexpr, PAGE: tl.constexpr,
    WIDTH_X: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One token: its queries to `queries`, its key and value into the cache."""
    token = tl.program_id(0)
    row, column = token // columns, token % columns
    owner, branch = row // 2, row % 2
    half: tl.constexpr = HEAD // 2
    d = tl.arange(0, half)[None, :]
    query_scale_1, query_scale_2 = _scales(query_norm_ptr, HEAD)
    key_scale_1, key_scale_2 = _scales(key_norm_ptr, HEAD)
    cos, sin = _angles(rope_ptr + (tl.load(positions_ptr + owner) + column) * 2 * HEAD, HEAD)
    where = tl.load(where_ptr + owner) + column
    page = tl.load(table_ptr + tl.load(slots_ptr + owner) * pages + where // PAGE).to(tl.int64)
    qkv = qkv_ptr + token.to(tl.int64) * (QUERY_HEADS + 2 * KV_HEADS) * HEAD
    scale = row_factor(x_ptr, token.to(tl.int64), x_eps, WIDTH_X, BLOCK_X) if WIDTH_X else 1.0
    arrive(OVERLAP)

    h = tl.arange(0, BLOCK_Q)[:, None]
    at, inside = h * HEAD + d, h < QUERY_HEADS
    first = tl.load(qkv + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(qkv + half + at, mask=inside, other=0.0).to(tl.float32)
    first, second = _rotated(
        first * scale, second * scale, query_scale_1, query_scale_2, cos, sin, eps, HEAD, True
    )  # fmt: skip
    queries = queries_ptr + token.to(tl.int64) * QUERY_HEADS * HEAD + at
    tl.store(queries, first.to(queries_ptr.dtype.element_ty), mask=inside)
    tl.store(queries + half, second.to(queries_ptr.dtype.element_ty), mask=inside)

    h = tl.arange(0, BLOCK_KV)[:, None]
    at, inside = h * HEAD + d, h < KV_HEADS
    keys, values = qkv + QUERY_HEADS * HEAD, qkv + (QUERY_HEADS + KV_HEADS) * HEAD
    first = tl.load(keys + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(keys + half + at, mask=inside, other=0.0).to(tl.float32)
    first, second = _rotated(first * scale, second * scale, key_scale_1, key_scale_2, cos, sin, eps, HEAD, True)
    cell = ((page * 2 + branch) * KV_HEADS + h) * (PAGE * HEAD) + (where % PAGE) * HEAD + d
    tl.store(keys_ptr + cell, first.to(keys_ptr.dtype.element_ty), mask=inside)
    tl.store(keys_ptr + cell + half, second.to(keys_ptr.dtype.element_ty), mask=inside)
    first = tl.load(values + at, mask=inside, other=0.0).to(tl.float32) * scale
    second = tl.load(values + half + at, mask=inside, other=0.0).to(tl.float32) * scale
    tl.store(values_ptr + cell, first.to(values_ptr.dtype.element_ty), mask=inside)
    tl.store(values_ptr + cell + half, second.to(values_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _added_up(
    partial_ptr, sums_ptr, HEAD: tl.constexpr, SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, REAL_M: tl.constexpr
):  # fmt: skip
    """The attention [REAL_M, HEAD] of which each split has a part. Unrolled, so that all is asked for at once."""
    m, d = tl.arange(0, REAL_M), tl.arange(0, HEAD)
    best = tl.full((REAL_M,), -1e30, tl.float32)
    for split in tl.static_range(SPLITS):
        best = tl.maximum(best, tl.load(sums_ptr + (split * BLOCK_M + m) * 2, cache_modifier=".cg"))
    total = tl.zeros((REAL_M,), tl.float32)
    out = tl.zeros((REAL_M, HEAD), tl.float32)
    for split in tl.static_range(SPLITS):
        cell = split * BLOCK_M + m
        weight = tl.exp(tl.load(sums_ptr + cell * 2, cache_modifier=".cg") - best)
        total += tl.load(sums_ptr + cell * 2 + 1, cache_modifier=".cg") * weight
        out += tl.load(partial_ptr + cell[:, None] * HEAD + d[None, :], cache_modifier=".cg") * weight[:, None]
    return out / total[:, None]


@triton.jit
def _attend(
    queries_ptr, keys_ptr, values_ptr, out_ptr, slots_ptr, where_ptr, table_ptr,
    partial_ptr, sums_ptr, arrived_ptr, columns, pages,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr, PAGE: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_M: tl.constexpr, REAL_M: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """All columns of one row and KV head, over one share of the slot's pages; the last share to end adds them up."""
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    owner, branch = row // 2, row % 2
    first_seen = tl.load(where_ptr + owner)
    table = table_ptr + tl.load(slots_ptr + owner) * pages
    m = tl.arange(0, BLOCK_M)
    column, head = m // GROUP, kv_head * GROUP + m % GROUP
    d = tl.arange(0, HEAD)
    at = ((row * columns + column) * KV_HEADS * GROUP + head)[:, None].to(tl.int64) * HEAD + d[None, :]
    inside = (column < columns)[:, None]
    pages_seen = (first_seen + columns + PAGE - 1) // PAGE
    share = (pages_seen + SPLITS - 1) // SPLITS
    t = tl.arange(0, PAGE)
    best = tl.full((BLOCK_M,), -1e30, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, HEAD), tl.float32)
    arrive(OVERLAP)
    query = tl.load(queries_ptr + at, mask=inside, other=0.0)
    for index in range(split * share, tl.minimum(pages_seen, (split + 1) * share)):
        page = tl.load(table + index).to(tl.int64)
        cells = ((page * 2 + branch) * KV_HEADS + kv_head) * (PAGE * HEAD) + t[:, None] * HEAD + d[None, :]
        written = (index * PAGE + t < first_seen + columns)[:, None]
        key = tl.load(keys_ptr + cells, mask=written, other=0.0)
        value = tl.load(values_ptr + cells, mask=written, other=0.0)
        scores = tl.dot(query, key.T, input_precision="ieee")
        seen = (index * PAGE + t)[None, :] <= (first_seen + column)[:, None]
        scores = tl.where(seen, scores, -1e30)
        new_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.where(seen, tl.exp(scores - new_best[:, None]), 0.0)
        decay = tl.exp(best - new_best)
        total = total * decay + tl.sum(weights, 1)
        out = out * decay[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        best = new_best
    if SPLITS == 1:
        tl.store(out_ptr + at, (out / total[:, None]).to(out_ptr.dtype.element_ty), mask=inside)
    else:
        group = row * KV_HEADS + kv_head
        cell = (group * SPLITS + split).to(tl.int64) * BLOCK_M
        tl.store(partial_ptr + (cell + m)[:, None] * HEAD + d[None, :], out, mask=inside)
        tl.store(sums_ptr + (cell + m) * 2, best)
        tl.store(sums_ptr + (cell + m) * 2 + 1, total)
        tl.debug_barrier()  # all of the block's partial results are written before it counts as arrived
        if tl.atomic_add(arrived_ptr + group, 1, sem="acq_rel") == SPLITS - 1:
            first_split = group.to(tl.int64) * SPLITS * BLOCK_M
            merged = _added_up(
                partial_ptr + first_split * HEAD, sums_ptr + first_split * 2, HEAD, SPLITS, BLOCK_M, REAL_M
            )
            real = tl.arange(0, REAL_M)
            token, its_head = row * columns + real // GROUP, kv_head * GROUP + real % GROUP
            cells = (token * KV_HEADS * GROUP + its_head)[:, None].to(tl.int64) * HEAD + d[None, :]
            tl.store(out_ptr + cells, merged.to(out_ptr.dtype.element_ty), mask=(real < columns * GROUP)[:, None])
            tl.store(arrived_ptr + group, 0)


class PagedAttention:
    """Scratch memory of `attend`, shared by all layers, and its calls."""

    def __init__(self, rows: int, columns: int, query_heads: int, kv_heads: int, head: int, like: Tensor) -> None:
        """For passes of `rows` rows (two per slot) of `columns` columns."""
        self.columns, self.query_heads, self.kv_heads, self.head = columns, query_heads, kv_heads, head
        blocks = rows * kv_heads
        self.splits = max(1, min(_MOST_SPLITS, _ENOUGH_BLOCKS // blocks)) if columns == 1 else 1
        self.real_m = triton.next_power_of_2(columns * query_heads // kv_heads)
        self.block_m = max(16, self.real_m)
        size = blocks * self.splits * self.block_m if self.splits > 1 else 1
        self.queries = like.new_empty((rows * columns, query_heads * head))
        self.partial = like.new_empty((size, head), dtype=torch.float32)
        self.sums = like.new_empty((size, 2), dtype=torch.float32)
        self.arrived = like.new_zeros((blocks,), dtype=torch.int32)

    def __call__(
        self,
        qkv: Tensor,
        norm: Pending | None,
        norms: tuple[Tensor, Tensor],
        eps: float,
        rope: Tensor,
        at: Rows,
        memory: SlotMemory,
        layer: int,
    ) -> Tensor:
        """From the products `qkv` [R * N, (query_heads + 2 * kv_heads) * head_dim] to [R * N, query_heads * head_dim].

        The columns' own keys and values are written to the layer's cache first. norm: what is still to be applied
        to qkv; norms: of queries, of keys; rope [positions, 2, head_dim] float32.
        """
        tokens, columns = qkv.shape[0], self.columns
        keys, values, pages = memory.keys[layer], memory.values[layer], memory.table.shape[1]
        heads = {"KV_HEADS": self.kv_heads, "HEAD": self.head, "PAGE": keys.shape[3]}
        of_x, constants = pending_arguments(qkv, norm)
        launch(
            _prepare, (tokens,),
            qkv, *norms, rope, at.slots, at.positions, at.where, memory.table,
            self.queries, keys, values, *of_x, eps, columns, pages,
            QUERY_HEADS=self.query_heads, **heads, **constants,
            BLOCK_Q=triton.next_power_of_2(self.query_heads), BLOCK_KV=triton.next_power_of_2(self.kv_heads),
        )  # fmt: skip
        out = torch.empty_like(self.queries)
        launch(
            _attend, (tokens // columns, self.kv_heads, self.splits),
            self.queries, keys, values, out, at.slots, at.where, memory.table,
            self.partial, self.sums, self.arrived, columns, pages,
            GROUP=self.query_heads // self.kv_heads, **heads, SPLITS=self.splits, BLOCK_M=self.block_m,
            REAL_M=self.real_m,
        )  # fmt: skip
        return out


@triton.jit(do_not_specialize=["stage"])
def _attend_stages(
    qkv_ptr, query_norm_ptr, key_norm_ptr, rope_ptr, cache_ptr, out_ptr, x_ptr, x_eps, rows, stage, eps,
    STAGES: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, ROPE: tl.constexpr, BLOCK_T: tl.constexpr,
    WIDTH_X: tl.constexpr, BLOCK_X: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One row and head of one stage of the depformer: all stages before it fit into one block."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half: tl.constexpr = HEAD // 2
    d, t = tl.arange(0, half), tl.arange(0, BLOCK_T)
    keys = cache_ptr + (row * HEADS + head) * STAGES * HEAD
    values = keys + rows.to(tl.int64) * HEADS * STAGES * HEAD
    cells, past = t[:, None] * HEAD + d[None, :], (t < stage)[:, None]
    keys_1 = tl.load(keys + cells, mask=past, other=0.0)
    keys_2 = tl.load(keys + half + cells, mask=past, other=0.0)
    values_1 = tl.load(values + cells, mask=past, other=0.0)
    values_2 = tl.load(values + half + cells, mask=past, other=0.0)
    query_scale_1, query_scale_2 = _scales(query_norm_ptr, HEAD)
    key_scale_1, key_scale_2 = _scales(key_norm_ptr, HEAD)
    cos, sin = _angles(rope_ptr + stage * 2 * HEAD, HEAD) if ROPE else (1.0, 0.0)
    scale = row_factor(x_ptr, row, x_eps, WIDTH_X, BLOCK_X) if WIDTH_X else 1.0
    arrive(OVERLAP)
    zero = tl.zeros((1,), tl.int32)[:, None]  # one head, in the two dimensions that `_rotated` expects
    qkv = qkv_ptr + (row * 3 * HEADS + head) * HEAD + zero + d[None, :]
    query_1, query_2 = tl.load(qkv).to(tl.float32) * scale, tl.load(qkv + half).to(tl.float32) * scale
    qkv += HEADS * HEAD
    key_1, key_2 = tl.load(qkv).to(tl.float32) * scale, tl.load(qkv + half).to(tl.float32) * scale
    qkv += HEADS * HEAD
    value_1, value_2 = tl.load(qkv).to(tl.float32) * scale, tl.load(qkv + half).to(tl.float32) * scale
    query_1, query_2 = _rotated(query_1, query_2, query_scale_1, query_scale_2, cos, sin, eps, HEAD, ROPE)
    key_1, key_2 = _rotated(key_1, key_2, key_scale_1, key_scale_2, cos, sin, eps, HEAD, ROPE)

    own = stage * HEAD + zero + d[None, :]
    kind = cache_ptr.dtype.element_ty
    tl.store(keys + own, key_1.to(kind))
    tl.store(keys + own + half, key_2.to(kind))
    tl.store(values + own, value_1.to(kind))
    tl.store(values + own + half, value_2.to(kind))
    scores = tl.sum(keys_1.to(tl.float32) * query_1 + keys_2.to(tl.float32) * query_2, 1)
    scores = tl.where(t < stage, scores, -1e30)
    own_score = tl.sum(key_1 * query_1 + key_2 * query_2, 1)  # [1], from registers, not back from memory
    best = tl.maximum(tl.max(scores, 0), own_score)
    weights, own_weight = tl.exp(scores - best), tl.exp(own_score - best)
    total = (tl.sum(weights, 0) + own_weight)[:, None]
    weights, own_weight = weights[:, None], own_weight[:, None]
    out_1 = tl.sum(values_1.to(tl.float32) * weights, 0)[None, :] + value_1 * own_weight
    out_2 = tl.sum(values_2.to(tl.float32) * weights, 0)[None, :] + value_2 * own_weight
    out = out_ptr + (row * HEADS + head) * HEAD + zero + d[None, :]
    tl.store(out, (out_1 / total).to(out_ptr.dtype.element_ty))
    tl.store(out + half, (out_2 / total).to(out_ptr.dtype.element_ty))


def attend_stages(
    qkv: Tensor,
    norm: Pending | None,
    query_norm: Tensor,
    key_norm: Tensor,
    eps: float,
    rope: Tensor | None,
    cache: Tensor,
    stage: int,
) -> Tensor:
    """Attention over the stages so far, from `qkv` [R, 3 * heads * head_dim] to [R, heads * head_dim].

    norm: what is still to be applied to qkv; rope [stages, 2, head_dim] float32;
    cache [2, R, heads, stages, head_dim], written at `stage`.
    """
    _, rows, heads, stages, head = cache.shape
    out = qkv.new_empty((rows, heads * head))
    of_x, constants = pending_arguments(qkv, norm)
    block = max(8, triton.next_power_of_2(stage))  # few registers let many blocks be resident, and read ahead
    launch(
        _attend_stages, (rows, heads),
        qkv, query_norm, key_norm, query_norm if rope is None else rope, cache, out, *of_x, rows, stage, eps,
        **constants,
        STAGES=stages, HEADS=heads, HEAD=head, ROPE=rope is not None, BLOCK_T=block, num_warps=1 if block <= 8 else 2,
    )  # fmt: skip
    return out
