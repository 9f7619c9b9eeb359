"""Products of rows with a published weight [out, in], with what stands around them fused in.

With few rows such a product is bound by reading the weight once. So what counts is that all of the chip asks for
bytes at once, early, and that nothing else costs a launch: the RMSNorm in front becomes a factor of each row that is
applied behind the product, and the gate or the residual sum behind it is its epilogue. With many rows it is bound by
arithmetic, and the vendor's library does it better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .launch import OVERLAP, arrive

_SCALAR_ROWS = 4  # up to here without matrix units: they would compute 16 rows
_FEW_ROWS = 32  # up to here our own kernels win (docs/performance.md)


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
def _product(x, weight, total, MATRIX: tl.constexpr):
    """total + x [R, K] times weight [N, K]: [R, N] on the matrix units, or still [R, N, K], to be summed at the end."""
    if MATRIX:
        total = tl.dot(x.to(weight.dtype), weight.T, total, input_precision="ieee")
    else:
        total += x.to(tl.float32)[:, None, :] * weight.to(tl.float32)[None, :, :]
    return total


@triton.jit(do_not_specialize=["rows"])
def _linear(
    x_ptr, norm_ptr, weight_ptr, out_ptr, rows, outputs, eps,
    INPUTS: tl.constexpr, NORM: tl.constexpr, ADD: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    MATRIX: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, OVERLAP: tl.constexpr,
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
    if MATRIX:
        total = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
        second = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    else:
        total = tl.zeros((BLOCK_R, BLOCK_N, BLOCK_K), tl.float32)
        second = tl.zeros((BLOCK_R, BLOCK_N, BLOCK_K), tl.float32)
    if NORM:
        x = x.to(tl.float32)
        squares += tl.sum(x * x, 1)
        x *= tl.load(norm_ptr + k).to(tl.float32)[None, :]
    total = _product(x, weight, total, MATRIX)
    if GATE != "":
        second = _product(x, up, second, MATRIX)
    for start in tl.range(BLOCK_K, INPUTS, BLOCK_K, num_stages=STAGES):
        weight = tl.load(weights + start, mask=real, other=0.0)
        x = tl.load(xs + start, mask=inside, other=0.0)
        if NORM:
            x = x.to(tl.float32)
            squares += tl.sum(x * x, 1)
            x *= tl.load(norm_ptr + start + k).to(tl.float32)[None, :]
        total = _product(x, weight, total, MATRIX)
        if GATE != "":
            up = tl.load(ups + start, mask=real, other=0.0)
            second = _product(x, up, second, MATRIX)
    if not MATRIX:
        total, second = tl.sum(total, 2), tl.sum(second, 2)
    if NORM:
        factor = tl.rsqrt(squares / INPUTS + eps)[:, None]
        total *= factor
        second *= factor
    if GATE != "":
        total = _activate(total, GATE) * _activate(second, UP)
    outs = out_ptr + r[:, None] * outputs + n[None, :]
    wanted = inside & (n < outputs)[None, :]
    if ADD:
        total += tl.load(outs, mask=wanted, other=0.0).to(tl.float32)
    tl.store(outs, total.to(out_ptr.dtype.element_ty), mask=wanted)


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
    block_k = min(1024, inputs & -inputs)  # a divisor, so that no block is ragged
    if rows > _FEW_ROWS or block_k < 16:
        return _many_rows(x, weight, norm=norm, gate=gate, add_to=add_to, dtype=dtype)
    outputs = weight.shape[0] // 2 if gate else weight.shape[0]
    out = x.new_empty((rows, outputs), dtype=dtype or x.dtype) if add_to is None else add_to
    if rows <= _SCALAR_ROWS:
        block_r, block_n, stages = triton.next_power_of_2(rows), 4, 3
        block_k = min(block_k, 1024 // block_r if gate else 2048 // block_r)
    else:
        block_r, block_n, stages = max(16, triton.next_power_of_2(rows)), 32 if gate else 16, 3 if gate else 4
        block_k = min(block_k, 8192 // (block_r * weight.element_size()))
    _linear[(triton.cdiv(outputs, block_n),)](
        x, norm.weight if norm else x, weight, out, rows, outputs, norm.eps if norm else 0.0,
        INPUTS=inputs, NORM=norm is not None, ADD=add_to is not None,
        GATE=gate[0] if gate else "", UP=gate[1] if gate else "", MATRIX=rows > _SCALAR_ROWS,
        BLOCK_R=block_r, BLOCK_N=block_n, BLOCK_K=block_k, STAGES=stages, OVERLAP=OVERLAP,
        num_warps=4, launch_pdl=OVERLAP,
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
