"""Classifier-free guidance, filtering and sampling, for a batch in which every row has its own settings.

Per row: `guided = lerp(uncond, cond, scale)`; keep the `filter_k` highest *guided* ids; sample from the
*conditional* logits of those with temperature and top-k. Illegal ids are cut off before any of it, so they cannot
take places in the filter. At scale 1 there is no guidance and no filter.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_NO_BOUND = 1 << 30  # ids, more than any vocabulary has


class SamplingRows:
    """Settings of B rows, on the device, worked out once for all that a pass samples with them."""

    def __init__(self, cfg_scale: Tensor, temperature: Tensor, top_k: Tensor, filter_k: int) -> None:
        """cfg_scale [B]; temperature [B], 0 is greedy; top_k [B] integers, 0 is off; filter_k 0 is off."""
        self.filter_k = filter_k
        self.cfg_scale = cfg_scale[:, None]
        self.filters = self.cfg_scale != 1.0
        self.greedy = temperature[:, None] <= 0
        self.heat = temperature[:, None].masked_fill(self.greedy, 1.0)
        ranks = top_k[:, None].long()
        self.worst = ranks.masked_fill(ranks == 0, _NO_BOUND) - 1  # rank of the last that stays
        self.top_k_max = int(self.worst.max()) + 1


def guided_filter(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Conditional logits [B, V] with everything outside the `filter_k` best guided ids at -inf.

    logits [B, 2, V]: conditional, unconditional.
    """
    cond, uncond = logits.unbind(1)
    k = min(rows.filter_k, logits.shape[-1])
    if k == 0:
        return cond
    guided = torch.lerp(uncond, cond, rows.cfg_scale)
    worst = torch.topk(guided, k, dim=-1).values[:, -1:]
    return cond.masked_fill((guided < worst) & rows.filters, -torch.inf)


def distribution(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Unnormalised probabilities [B, V], in id order, of the ids each row may sample; of greedy rows the best alone."""
    cond = guided_filter(logits, rows)
    limit = min(rows.top_k_max, cond.shape[-1])
    ranked = torch.topk(cond, limit, dim=-1).values  # [B, limit], descending
    best, worst = ranked[:, :1], ranked.gather(-1, rows.worst.clamp(max=limit - 1))
    weights = torch.exp((cond - best) / rows.heat) * (cond >= worst)
    return torch.where(rows.greedy, cond == best, weights)


def sample(logits: Tensor, rows: SamplingRows, uniform: Tensor) -> Tensor:
    """Ids [B] drawn by inverting the cumulative distribution at `uniform` [B] in [0, 1).

    Always inside 0..V-1 and never an id of probability zero, whatever the rounding and order of the running sum (a
    parallel one need not be monotone): only ids with weight of their own are candidates, and the one where the sum is
    largest always qualifies, because `uniform` is a multiple of 2^-23 below 1, so that `uniform * total < total`.
    """
    weights = distribution(logits, rows)
    cumulative = torch.where(weights > 0, weights.cumsum(-1), 0.0)
    uniform = uniform[:, None].masked_fill(rows.greedy, 0.0)  # the first, if several are best
    target = uniform * cumulative.amax(-1, keepdim=True)
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
