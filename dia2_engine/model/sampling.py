"""Classifier-free guidance, filtering and sampling, for a batch in which every row has its own settings.

Per row: `guided = lerp(uncond, cond, scale)`; keep the `filter_k` highest *guided* ids; sample from the
*conditional* logits of those with temperature and top-k. Illegal ids are cut off before any of it, so they cannot
take places in the filter. At scale 1 there is no guidance and no filter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class SamplingRows:
    """Settings of B rows, on the device. `*_max` bound the k of any row, so that shapes stay static."""

    cfg_scale: Tensor  # [B]
    temperature: Tensor  # [B]; 0 is greedy
    top_k: Tensor  # [B] int64; 0 is off
    filter_k: int
    top_k_max: int  # 0: some row has top-k off


def guided_filter(logits: Tensor, scale: Tensor, filter_k: int) -> Tensor:
    """Conditional logits [B, V] with everything outside the `filter_k` best guided ids at -inf.

    logits [B, 2, V]: conditional, unconditional. filter_k 0 keeps all.
    """
    cond, uncond = logits.unbind(1)
    k = min(filter_k, logits.shape[-1])
    if k == 0:
        return cond
    guided = torch.lerp(uncond, cond, scale[:, None])
    threshold = torch.topk(guided, k, dim=-1).values[:, -1:]
    dropped = (guided < threshold) & (scale != 1.0)[:, None]
    return cond.masked_fill(dropped, -torch.inf)


def distribution(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Unnormalised probabilities [B, V], in id order, of the ids each row may sample; greedy rows are one-hot."""
    cond = guided_filter(logits, rows.cfg_scale, rows.filter_k)
    vocab = cond.shape[-1]
    limit = min(rows.top_k_max or vocab, vocab)
    best = torch.topk(cond, limit, dim=-1).values  # [B, limit], descending
    last = torch.where(rows.top_k > 0, rows.top_k, vocab).clamp(max=vocab) - 1
    threshold = best.gather(-1, last.clamp(max=limit - 1)[:, None])
    keep = cond >= torch.where((last < limit)[:, None], threshold, -torch.inf)
    greedy = (rows.temperature <= 0)[:, None]
    heat = torch.where(rows.temperature > 0, rows.temperature, 1.0)[:, None]
    weights = torch.exp((cond - best[:, :1]) / heat) * keep
    one_hot = torch.zeros_like(weights).scatter_(-1, cond.argmax(-1, keepdim=True), 1.0)
    return torch.where(greedy, one_hot, weights)


def sample(logits: Tensor, rows: SamplingRows, uniform: Tensor) -> Tensor:
    """Ids [B] drawn by inverting the cumulative distribution at `uniform` [B] in [0, 1).

    Always inside 0..V-1 and never an id of probability zero, whatever the rounding and order of the running sum (a
    parallel one need not be monotone): only ids with weight of their own are candidates, and the one where the sum is
    largest always qualifies, because `uniform` is a multiple of 2^-23 below 1, so that `uniform * total < total`.
    """
    weights = distribution(logits, rows)
    cumulative = torch.where(weights > 0, weights.cumsum(-1), 0.0)
    target = uniform[:, None] * cumulative.amax(-1, keepdim=True)
    return (cumulative > target).int().argmax(-1)  # the first of them


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def uniforms(seeds: NDArray[np.uint64], steps: NDArray[np.int64], heads: int) -> NDArray[np.float32]:
    """Noise [B, heads] of each row's step, a pure function of (seed, step, head).

    Counter-based (SplitMix64 of the counter under a hashed key), so a stream's noise depends neither on its
    neighbours nor on how often others have sampled.
    """
    counter = steps.astype(np.uint64)[:, None] * np.uint64(heads) + np.arange(1, heads + 1, dtype=np.uint64)
    bits = _mix(_mix(seeds + _GAMMA)[:, None] + counter * _GAMMA)
    return ((bits >> np.uint64(41)).astype(np.float32) * np.float32(2.0**-23)).astype(np.float32)
