"""Products of rows with a published weight [out, in], with what stands around them fused in.

With the rows of one or two streams such a product is bound by reading the weight once, and matrix units, which work
on 16 rows, gain nothing. What counts then is that all of the chip asks for bytes at once, early, and that nothing
else costs a launch: the RMSNorm in front becomes a factor of each row that is applied behind the product, and the
gate or the residual sum behind it is its epilogue. With more rows the vendor's library does better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .launch import OVERLAP, arrive

_FEW_ROWS = 4  # up to here our own kernel wins (docs/performance.md)
_OUTPUTS = 4  # of one block
_WEIGHTS = 2048  # of each output that a block holds at a time, over its rows


@triton.jit
def _activate(x, NAME: tl.constexpr):
    if NAME == "silu":
        x = x * tl.sigmoid(x)
    elif NAME == "gelu":
        x = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif NAME == "relu":
        x = tl.maximum(x, 0.0)
    return x


@triton.jit
def _products(x, weight):
    """x [R, K] and weight [N, K]: the terms [R, N, K] of their product."""
    return x.to(tl.float32)[:, None, :] * weight.to(tl.float32)[None, :, :]


@triton.jit(do_not_specialize=["rows"])
def _linear(
    x_ptr, norm_ptr, weight_ptr, out_ptr, rows, outputs, eps,
    INPUTS: tl.constexpr, NORM: tl.constexpr, ADD: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    r = tl.arange(0, BLOCK_R)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    real = (n < outputs)[:, None]
    weights = weight_ptr + n[:, None].to(tl.int64) * INPUTS + k[None, :]
    ups = weights + outputs * INPUTS
    weight = tl.load(weights, mask=real, other=0.0)  # before `arrive`: while the kernel before still runs
    if GATE != "":
        up = tl.load(ups, mask=real, other=0.0)
    arrive(OVERLAP)
    xs = x_ptr + r[:, None] * INPUTS + k[None, :]
    inside = (r < rows)[:, None]
    x = tl.load(xs, mask=inside, other=0.0)
    squares = tl.zeros((BLOCK_R,), tl.float32)
    if NORM:
        x = x.to(tl.float32)
        squares += tl.sum(x * x, 1)
        x *= tl.load(norm_ptr + k).to(tl.float32)[None, :]
    total = _products(x, weight)
    if GATE != "":
        second = _products(x, up)
    for start in tl.range(BLOCK_K, INPUTS, BLOCK_K, num_stages=3):
        weight = tl.load(weights + start, mask=real, other=0.0)
        x = tl.load(xs + start, mask=inside, other=0.0)
        if NORM:
            x = x.to(tl.float32)
            squares += tl.sum(x * x, 1)
            x *= tl.load(norm_ptr + start + k).to(tl.float32)[None, :]
        total += _products(x, weight)
        if GATE != "":
            up = tl.load(ups + start, mask=real, other=0.0)
            second += _products(x, up)
    factor = tl.rsqrt(squares / INPUTS + eps)[:, None] if NORM else 1.0
    result = tl.sum(total, 2) * factor
    if GATE != "":
        result = _activate(result, GATE) * _activate(tl.sum(second, 2) * factor, UP)
    outs = out_ptr + r[:, None] * outputs + n[None, :]
    wanted = inside & (n < outputs)[None, :]
    if ADD:
        result += tl.load(outs, mask=wanted, other=0.0).to(tl.float32)
    tl.store(outs, result.to(out_ptr.dtype.element_ty), mask=wanted)


@triton.jit
def _gate(
    both_ptr, out_ptr, HIDDEN: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    arrive(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(both_ptr + row * 2 * HIDDEN + h, mask=h < HIDDEN).to(tl.float32)
    up = tl.load(both_ptr + row * 2 * HIDDEN + HIDDEN + h, mask=h < HIDDEN).to(tl.float32)
    out = _activate(gate, GATE) * _activate(up, UP)
    tl.store(out_ptr + row * HIDDEN + h, out.to(out_ptr.dtype.element_ty), mask=h < HIDDEN)


@dataclass(frozen=True)
class Norm:
    """An RMSNorm in front of a product."""

    weight: Tensor  # [in]
    eps: float


def linear(
    x: Tensor,
    weight: Tensor,
    *,
    norm: Norm | None = None,
    gate: tuple[str, str] | None = None,
    add_to: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`norm(x) @ weight.T` for contiguous x [R, in] and weight [out, in].

    gate    names of activations (f, g): `weight` is [2 * out, in], and the result f(first half) * g(second half)
    add_to  the residual stream [R, out]: the product is added to it in place, and it is returned
    dtype   of the result, if not that of x
    """
    rows, inputs = x.shape
    if rows > _FEW_ROWS:
        return _many_rows(x, weight, norm=norm, gate=gate, add_to=add_to, dtype=dtype)
    block_r = triton.next_power_of_2(rows)
    block_k = min(_WEIGHTS // (block_r * (2 if gate else 1)), inputs & -inputs)  # a divisor: no block is ragged
    outputs = weight.shape[0] // 2 if gate else weight.shape[0]
    out = x.new_empty((rows, outputs), dtype=dtype or x.dtype) if add_to is None else add_to
    _linear[(triton.cdiv(outputs, _OUTPUTS),)](
        x, norm.weight if norm else x, weight, out, rows, outputs, norm.eps if norm else 0.0,
        INPUTS=inputs, NORM=norm is not None, ADD=add_to is not None,
        GATE=gate[0] if gate else "", UP=gate[1] if gate else "",
        BLOCK_R=block_r, BLOCK_N=_OUTPUTS, BLOCK_K=block_k, OVERLAP=OVERLAP, launch_pdl=OVERLAP,
    )  # fmt: skip
    return out


def _many_rows(
    x: Tensor,
    weight: Tensor,
    *,
    norm: Norm | None,
    gate: tuple[str, str] | None,
    add_to: Tensor | None,
    dtype: torch.dtype | None,
) -> Tensor:
    if norm is not None:
        x = F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps)
    if add_to is not None:
        return torch.addmm(add_to, x, weight.t(), out=add_to)
    product = F.linear(x, weight)
    if gate is not None:
        rows, hidden = x.shape[0], weight.shape[0] // 2
        product, both = x.new_empty((rows, hidden)), product
        block = min(1024, triton.next_power_of_2(hidden))
        _gate[(rows, triton.cdiv(hidden, block))](
            both, product, HIDDEN=hidden, GATE=gate[0], UP=gate[1], BLOCK=block, OVERLAP=OVERLAP, launch_pdl=OVERLAP
        )
    return product if dtype is None else product.to(dtype)
