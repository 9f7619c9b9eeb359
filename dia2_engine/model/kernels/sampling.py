"""Guidance, filter, top-k and sampling of `dia2_engine.model.sampling` in one kernel, and the step that follows.

The k highest logits are found by bisection, so that every row may have a k of its own, and none is sorted.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ..step import SlotMemory, Step
from .launch import arrive, launch
from .linear import Pending, pending_arguments, row_factor


@triton.jit
def _cut(x, lowest, highest, k):
    """The largest threshold found for which at least k of x are not below it: exactly k, but for ties.

    Bisection between bounds of x; it ends as soon as exactly k are left, which for logits is after about ten steps.
    """
    count = tl.sum((x >= lowest).to(tl.int32), 0)
    middle = lowest + (highest - lowest) * 0.5
    while (count > k) & (middle > lowest) & (middle < highest):
        above = tl.sum((x >= middle).to(tl.int32), 0)
        enough = above >= k
        count = tl.where(enough, above, count)
        lowest = tl.where(enough, middle, lowest)
        highest = tl.where(enough, highest, middle)
        middle = lowest + (highest - lowest) * 0.5
    if count > k:  # `highest` is the next number up: only ties are left
        lowest = tl.where(tl.sum((x >= highest).to(tl.int32), 0) >= k, highest, lowest)
    return lowest


@triton.jit
def _sampled(cond, uncond, vocab, scale, temperature, top_k, uniform, filter_k, BLOCK: tl.constexpr):
    """One id, always below `vocab`, from the logits [BLOCK] of both branches."""
    v = tl.arange(0, BLOCK)
    nothing = float("-inf")
    legal = v < vocab
    keep = legal
    if (filter_k > 0) & (filter_k < vocab) & (scale != 1.0):
        guided = uncond + scale * (cond - uncond)
        low = tl.min(tl.where(legal, guided, float("inf")), 0)
        guided = tl.where(legal, guided, nothing)
        keep = guided >= _cut(guided, low, tl.max(guided, 0), filter_k)
    best = tl.max(tl.where(keep, cond, nothing), 0)
    chosen = tl.min(tl.where(keep & (cond == best), v, vocab - 1), 0)
    if temperature > 0.0:
        if (top_k > 0) & (top_k < vocab):
            low = tl.min(tl.where(keep, cond, best), 0)
            cond = tl.where(keep, cond, nothing)
            keep = cond >= _cut(cond, low, best, top_k)
        weights = tl.where(keep, tl.exp((cond - best) / temperature), 0.0)
        cumulative = tl.where(weights > 0.0, tl.cumsum(weights, 0), 0.0)
        chosen = tl.min(tl.where(cumulative > uniform * tl.max(cumulative, 0), v, vocab - 1), 0)
    return chosen


@triton.jit
def _sample_heads(
    logits_ptr, scale_ptr, temperature_ptr, top_k_ptr, uniform_ptr, actions_ptr, codes_ptr,
    slots_ptr, given_ptr, kind_ptr, audio_ptr, x_ptr, x_eps, filter_k, actions, vocab,
    WIDTH: tl.constexpr, CODEBOOKS: tl.constexpr, WIDTH_X: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """The action (head 0) or codebook 0 (head 1) of one row; with that, what is given of the slot's next column."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    v = tl.arange(0, BLOCK)
    scale, temperature = tl.load(scale_ptr + row), tl.load(temperature_ptr + row * 2 + head)
    top_k, uniform = tl.load(top_k_ptr + row * 2 + head), tl.load(uniform_ptr + row * (1 + CODEBOOKS) + head)
    audio = audio_ptr + tl.load(slots_ptr + row).to(tl.int64) * CODEBOOKS
    c = tl.arange(0, BLOCK_C)
    kind = tl.load(kind_ptr + row * CODEBOOKS + c, mask=c < CODEBOOKS, other=0)
    given = tl.load(given_ptr + row * CODEBOOKS + c, mask=c < CODEBOOKS, other=0)
    sampled = tl.load(kind_ptr + row * CODEBOOKS) == 0
    size = tl.where(head == 0, actions, vocab)
    logits = logits_ptr + row * 2 * WIDTH + tl.where(head == 0, 0, actions) + v
    factor = row_factor(x_ptr, row * 2, x_eps, WIDTH_X, BLOCK_X) if WIDTH_X else 1.0
    other = row_factor(x_ptr, row * 2 + 1, x_eps, WIDTH_X, BLOCK_X) if WIDTH_X else 1.0
    arrive(OVERLAP)
    cond = tl.load(logits, mask=v < size, other=0.0) * factor
    uncond = tl.load(logits + WIDTH, mask=v < size, other=0.0) * other
    chosen = _sampled(cond, uncond, size, scale, temperature, top_k, uniform, filter_k, BLOCK)
    tl.store(actions_ptr + row, chosen, mask=head == 0)
    tl.store(codes_ptr + row * CODEBOOKS, chosen, mask=head == 1)
    tl.store(audio + c, given, mask=(kind != 0) & (head == 1))
    tl.store(audio, chosen, mask=sampled & (head == 1))


@triton.jit
def _stage_inputs(inputs_ptr, row, group, groups, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr):
    """What both branches' hidden states give to a stage's input, [BLOCK_W] float32 each."""
    w = tl.arange(0, BLOCK_W)
    one = inputs_ptr + (row * 2 * groups + group) * WIDTH + w
    inside = w < WIDTH
    return tl.load(one, mask=inside).to(tl.float32), tl.load(one + groups * WIDTH, mask=inside).to(tl.float32)


@triton.jit
def _enter_stage(
    chosen, kind, given, one, other, row, table_ptr, x_ptr, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr
):  # fmt: skip
    """The next stage's input, for both branches: it builds on the prefix's id where there is one."""
    w = tl.arange(0, BLOCK_W)
    inside = w < WIDTH
    built_on = tl.where(kind == 1, given, chosen)
    embedding = tl.load(table_ptr + built_on * WIDTH + w, mask=inside).to(tl.float32)
    x = x_ptr + row * 2 * WIDTH + w
    tl.store(x, (embedding + one).to(x_ptr.dtype.element_ty), mask=inside)
    tl.store(x + WIDTH, (embedding + other).to(x_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["group", "groups"])
def _first_stage(
    codes_ptr, given_ptr, kind_ptr, table_ptr, inputs_ptr, x_ptr, group, groups,
    CODEBOOKS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """From codebook 0, which came with the transformer, to the first stage."""
    arrive(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    kind, given = tl.load(kind_ptr + row * CODEBOOKS), tl.load(given_ptr + row * CODEBOOKS)
    chosen = tl.load(codes_ptr + row * CODEBOOKS)
    one, other = _stage_inputs(inputs_ptr, row, group, groups, WIDTH, BLOCK_W)
    _enter_stage(chosen, kind, given, one, other, row, table_ptr, x_ptr, WIDTH, BLOCK_W)


@triton.jit(do_not_specialize=["codebook", "group", "groups"])
def _sample_stage(
    logits_ptr, normed_ptr, norm_eps, scale_ptr, temperature_ptr, top_k_ptr, uniform_ptr, filter_k,
    codes_ptr, slots_ptr, given_ptr, kind_ptr, audio_ptr, table_ptr, inputs_ptr, x_ptr, vocab, codebook, group, groups,
    WIDTH_X: tl.constexpr, BLOCK_X: tl.constexpr, CODEBOOKS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK: tl.constexpr, LAST: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One codebook of one row, and the input of the next stage."""
    row = tl.program_id(0).to(tl.int64)
    v = tl.arange(0, BLOCK)
    scale, temperature = tl.load(scale_ptr + row), tl.load(temperature_ptr + row * 2 + 1)
    top_k, uniform = tl.load(top_k_ptr + row * 2 + 1), tl.load(uniform_ptr + row * (1 + CODEBOOKS) + 1 + codebook)
    kind, given = tl.load(kind_ptr + row * CODEBOOKS + codebook), tl.load(given_ptr + row * CODEBOOKS + codebook)
    audio = audio_ptr + tl.load(slots_ptr + row).to(tl.int64) * CODEBOOKS + codebook
    if not LAST:
        one, other = _stage_inputs(inputs_ptr, row, group, groups, WIDTH, BLOCK_W)
    logits = logits_ptr + row * 2 * vocab + v
    factor = row_factor(normed_ptr, row * 2, norm_eps, WIDTH_X, BLOCK_X) if WIDTH_X else 1.0
    other_factor = row_factor(normed_ptr, row * 2 + 1, norm_eps, WIDTH_X, BLOCK_X) if WIDTH_X else 1.0
    arrive(OVERLAP)
    cond = tl.load(logits, mask=v < vocab, other=0.0) * factor
    uncond = tl.load(logits + vocab, mask=v < vocab, other=0.0) * other_factor
    chosen = _sampled(cond, uncond, vocab, scale, temperature, top_k, uniform, filter_k, BLOCK)
    tl.store(codes_ptr + row * CODEBOOKS + codebook, chosen)
    tl.store(audio, chosen, mask=kind == 0)
    if not LAST:
        _enter_stage(chosen, kind, given, one, other, row, table_ptr, x_ptr, WIDTH, BLOCK_W)


def sample_heads(
    logits: Tensor, norm: Pending | None, step: Step, memory: SlotMemory, filter_k: int, actions: int, vocab: int
) -> None:
    """Sample the action and codebook 0 from float32 logits [R * 2, actions + at least `vocab`].

    Begins the slots' next columns with codebook 0 and all that is given. norm: what is still to be applied to the
    logits.
    """
    rows, codebooks = step.codes.shape
    of_x, constants = pending_arguments(logits, norm)
    launch(
        _sample_heads, (rows, 2),
        logits, step.cfg_scale, step.temperatures, step.top_k, step.uniforms, step.actions, step.codes,
        step.slots, step.given, step.given_kind, memory.audio, *of_x, filter_k, actions, vocab,
        **constants,
        WIDTH=logits.shape[1], CODEBOOKS=codebooks, BLOCK_C=triton.next_power_of_2(codebooks),
        BLOCK=triton.next_power_of_2(max(actions, vocab)),
    )  # fmt: skip


@dataclass(frozen=True)
class StageInput:
    """What a stage of the depformer begins with: x = table[id of the codebook before] + inputs[:, group]."""

    table: Tensor  # [audio_vocab, width]
    inputs: Tensor  # [R * 2, groups, width], from the transformer's hidden state
    group: int
    x: Tensor  # [R * 2, width], written


def first_stage(step: Step, enter: StageInput) -> None:
    """Enter the first stage with codebook 0."""
    rows, codebooks = step.codes.shape
    width = enter.x.shape[1]
    launch(
        _first_stage, (rows,),
        step.codes, step.given, step.given_kind, enter.table, enter.inputs, enter.x,
        enter.group, enter.inputs.shape[1],
        CODEBOOKS=codebooks, WIDTH=width, BLOCK_W=triton.next_power_of_2(width),
    )  # fmt: skip


def sample_stage(
    logits: Tensor,
    norm: Pending | None,
    codebook: int,
    step: Step,
    memory: SlotMemory,
    filter_k: int,
    enter: StageInput | None,
) -> None:
    """Sample a codebook of the slots' next columns from float32 logits [R * 2, vocab]; then enter the next stage.

    norm: what is still to be applied to the logits; its x may be the one that is written.
    """
    rows, codebooks = step.codes.shape
    vocab, last = logits.shape[1], enter is None
    enter = enter or StageInput(logits, logits[:, None], 0, logits)
    width = enter.x.shape[1]
    of_x, constants = pending_arguments(logits, norm)
    launch(
        _sample_stage, (rows,),
        logits, *of_x, step.cfg_scale, step.temperatures, step.top_k, step.uniforms, filter_k,
        step.codes, step.slots, step.given, step.given_kind, memory.audio, enter.table, enter.inputs, enter.x,
        vocab, codebook, enter.group, enter.inputs.shape[1],
        **constants, CODEBOOKS=codebooks, WIDTH=width, BLOCK_W=triton.next_power_of_2(width),
        BLOCK=triton.next_power_of_2(vocab), LAST=last,
    )  # fmt: skip
