"""Sampling: legal ids only, the right distribution, rows that do not know of each other, noise that is a function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dia2_engine.model.sampling import SamplingRows, distribution, guided_filter, sample, uniforms

LARGEST = np.float32(1 - 2**-23)
CHI_SQUARE_1E6 = {9: 44.8, 5: 36.8}  # by degrees of freedom: exceeded once in a million


def rows(batch: int, *, cfg: float = 1.0, temperature: float = 1.0, top_k: int = 0, filter_k: int = 0) -> SamplingRows:
    return SamplingRows(
        cfg_scale=torch.full((batch,), cfg),
        temperature=torch.full((batch,), temperature),
        top_k=torch.full((batch,), top_k),
        filter_k=filter_k,
    )


def both(cond: Tensor, uncond: Tensor | None = None) -> Tensor:
    """Logits [B, 2, V]."""
    return torch.stack([cond, torch.zeros_like(cond) if uncond is None else uncond], dim=1)


@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocab=st.integers(1, 3000),
    spread=st.sampled_from([0.0, 1e-6, 1.0, 30.0, 1e4]),
    cfg=st.sampled_from([0.0, 1.0, 2.0, 10.0]),
    temperature=st.sampled_from([0.0, 1e-30, 0.05, 0.8, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 50, 10_000]),
    filter_k=st.sampled_from([0, 1, 3, 50, 100_000]),
    uniform=st.sampled_from([0.0, float(np.float32(2.0**-23)), 0.5, float(LARGEST)]) | st.none(),
)
def test_no_id_of_probability_zero_is_ever_drawn(
    seed: int, vocab: int, spread: float, cfg: float, temperature: float, top_k: int, filter_k: int,
    uniform: float | None,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((4, 2, vocab), generator=generator) * spread
    settings_ = rows(4, cfg=cfg, temperature=temperature, top_k=top_k, filter_k=filter_k)
    if uniform is None:
        noise = torch.from_numpy(uniforms(np.full(4, seed, np.uint64), np.arange(4), 1)[:, 0])
    else:
        noise = torch.full((4,), uniform)
    ids = sample(logits, settings_, noise)
    weights = distribution(logits, settings_)
    assert ((ids >= 0) & (ids < vocab)).all()
    assert (weights.gather(1, ids[:, None]) > 0).all()


@pytest.mark.parametrize("dead", ["front", "back", "both"])
def test_the_ends_of_the_noise_stay_inside_the_ids_that_have_weight(dead: str) -> None:
    """Zero-weight ids in front of the first and behind the last candidate are what 0 and 1 - 2^-23 would hit."""
    logits = torch.zeros(1, 2050)
    if dead in ("front", "both"):
        logits[:, :1000] = -torch.inf
    if dead in ("back", "both"):
        logits[:, 1500:] = -torch.inf
    alive = torch.isfinite(logits[0]).nonzero()[:, 0]
    first = sample(both(logits), rows(1), torch.zeros(1))
    last = sample(both(logits), rows(1), torch.tensor([LARGEST]))
    assert first.tolist() == [int(alive[0])]
    assert last.tolist() == [int(alive[-1])]


def test_a_tiny_weight_behind_a_large_one_is_not_skipped_into_nothing() -> None:
    """Weights too small to move the float32 sum can never push the draw past the last id."""
    logits = torch.tensor([[0.0, -40.0, -50.0, -torch.inf]])
    assert sample(both(logits), rows(1), torch.tensor([LARGEST])).tolist() == [0]


def test_draws_follow_the_distribution() -> None:
    draws = 200_000
    logits = torch.linspace(-2, 1, 10)[None].expand(draws, -1)
    noise = torch.from_numpy(uniforms(np.full(draws, 7, np.uint64), np.arange(draws), 3)[:, 1])
    for temperature, top_k, freedom in ((1.0, 0, 9), (0.7, 6, 5)):
        counts = torch.bincount(sample(both(logits), rows(draws, temperature=temperature, top_k=top_k), noise))
        kept = torch.topk(logits[0], top_k or 10).values.min()
        scaled = torch.where(logits[0] >= kept, logits[0] / temperature, -torch.inf)
        expected = torch.softmax(scaled.double(), 0) * draws
        alive = expected > 0
        assert int(alive.sum()) == freedom + 1
        assert not counts[~alive[: len(counts)]].any()
        chi_square = ((counts[alive] - expected[alive]) ** 2 / expected[alive]).sum()
        assert float(chi_square) < CHI_SQUARE_1E6[freedom]


def test_guidance_chooses_the_candidates_and_the_conditional_logits_weigh_them() -> None:
    cond = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    uncond = torch.tensor([[9.0, 0.0, 0.0, 0.0]])  # guided at 2: -3, 4, 2, 0
    kept = guided_filter(both(cond, uncond), rows(1, cfg=2.0, filter_k=2))
    assert kept.tolist() == [[-torch.inf, 2.0, 1.0, -torch.inf]]
    weights = distribution(both(cond, uncond), rows(1, cfg=2.0, filter_k=2))[0]
    torch.testing.assert_close(weights / weights.sum(), torch.softmax(torch.tensor([-torch.inf, 2, 1, -torch.inf]), 0))
    greedy = sample(both(cond, uncond), rows(1, cfg=2.0, temperature=0.0, filter_k=2), torch.tensor([LARGEST]))
    assert greedy.tolist() == [1]


def test_at_scale_one_there_is_no_guidance_and_no_filter() -> None:
    cond = torch.tensor([[3.0, 2.0, 1.0]])
    uncond = torch.tensor([[9.0, 0.0, 0.0]])
    assert guided_filter(both(cond, uncond), rows(1, cfg=1.0, filter_k=1)).tolist() == cond.tolist()


def test_greedy_takes_the_best_whatever_the_noise() -> None:
    logits = torch.randn((64, 500), generator=torch.Generator().manual_seed(1))
    for noise in (0.0, 0.3, float(LARGEST)):
        ids = sample(both(logits), rows(64, temperature=0.0, top_k=50), torch.full((64,), noise))
        assert ids.tolist() == logits.argmax(1).tolist()
        tied = torch.tensor([[0.0, 7.0, 7.0, 1.0, 7.0]])
        assert sample(both(tied), rows(1, temperature=0.0), torch.tensor([noise])).tolist() == [1]


def test_top_k_zero_keeps_all_and_one_is_greedy() -> None:
    logits = torch.linspace(0, 1, 40)[None]
    assert (distribution(both(logits), rows(1, top_k=0)) > 0).all()
    assert distribution(both(logits), rows(1, top_k=1)).nonzero().tolist() == [[0, 39]]
    assert (distribution(both(logits), rows(1, top_k=3)) > 0)[0].nonzero()[:, 0].tolist() == [37, 38, 39]
    assert (distribution(both(logits), rows(1, top_k=500)) > 0).all()


def test_a_rows_settings_are_its_own() -> None:
    """Every row of a mixed batch draws what it draws alone, though its neighbours change the shared bound of k."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn((6, 2, 300), generator=generator) * 3
    noise = torch.rand(6, generator=generator)
    own = (
        torch.tensor([1.0, 2.0, 6.0, 2.0, 0.0, 3.0]),
        torch.tensor([0.8, 0.0, 1.5, 0.1, 2.0, 1.0]),
        torch.tensor([50, 3, 0, 1, 7, 299]),
    )
    mixed = SamplingRows(*own, 20)
    together = sample(logits, mixed, noise)
    weights = distribution(logits, mixed)
    for row in range(6):
        here = slice(row, row + 1)
        scale, temperature, top_k = (values[here] for values in own)
        alone = SamplingRows(scale, temperature, top_k, 20)
        assert torch.equal(distribution(logits[here], alone), weights[here])
        assert sample(logits[here], alone, noise[here]).tolist() == [int(together[row])]


# ---- noise


def test_noise_is_a_pure_function_of_seed_step_and_head() -> None:
    seeds = np.array([0, 1, 2**63 - 1, 12345], np.uint64)
    steps = np.array([0, 7, 1499, 3])
    batch = uniforms(seeds, steps, 33)
    for row in range(4):
        assert np.array_equal(uniforms(seeds[row : row + 1], steps[row : row + 1], 33)[0], batch[row])
    assert np.array_equal(uniforms(seeds[::-1], steps[::-1], 33), batch[::-1])


def test_noise_lies_on_its_lattice_below_one() -> None:
    noise = uniforms(np.arange(2000, dtype=np.uint64), np.arange(2000), 33)
    assert noise.dtype == np.float32
    scaled = noise.astype(np.float64) * 2**23
    assert np.array_equal(scaled, np.round(scaled))
    assert noise.min() >= 0
    assert noise.max() <= LARGEST


def test_noise_is_even_and_its_heads_steps_and_seeds_are_unlike() -> None:
    noise = uniforms(np.repeat(np.arange(40, dtype=np.uint64), 50), np.tile(np.arange(50), 40), 33)
    counts = np.histogram(noise, bins=10, range=(0, 1))[0]
    expected = noise.size / 10
    assert float(((counts - expected) ** 2 / expected).sum()) < CHI_SQUARE_1E6[9]
    assert len(np.unique(noise)) > 0.99 * noise.size  # about 0.4 % of 66,000 draws of 2^23 meet by chance
    grid = noise.reshape(40, 50, 33) - 0.5
    for axis in range(3):
        near = (grid * np.roll(grid, 1, axis)).mean() * 12  # correlation; sigma is 1 / sqrt(66,000)
        assert abs(near) < 5 / np.sqrt(noise.size)
