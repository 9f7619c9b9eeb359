"""The sum of a column's embeddings, for both guidance branches, in one kernel."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..step import Columns, SlotMemory, Step
from .launch import arrive, launch


@triton.jit
def _embed(
    text_ptr, ids_ptr, slots_ptr, audio_ptr, main_ptr, second_ptr, x_ptr, columns, zero,
    CODEBOOKS: tl.constexpr, AUDIO_VOCAB: tl.constexpr, WIDTH: tl.constexpr, BY_SLOT: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    arrive(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    row, column = token // columns, token % columns
    c, w = tl.arange(0, BLOCK_C), tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    inside = w < WIDTH
    owner = tl.load(slots_ptr + row).to(tl.int64) if BY_SLOT else token
    cells = tl.load(ids_ptr + owner * CODEBOOKS + c, mask=c < CODEBOOKS, other=0)
    table = audio_ptr + (c * AUDIO_VOCAB + cells).to(tl.int64)[:, None] * WIDTH + w[None, :]
    audio = tl.sum(tl.load(table, mask=(c < CODEBOOKS)[:, None] & inside[None, :], other=0.0).to(tl.float32), 0)
    text = text_ptr + token * 2
    main = tl.load(main_ptr + tl.load(text).to(tl.int64) * WIDTH + w, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(second_ptr + tl.load(text + 1).to(tl.int64) * WIDTH + w, mask=inside, other=0.0).to(tl.float32)
    silent = tl.load(main_ptr + zero * WIDTH + w, mask=inside, other=0.0).to(tl.float32)
    x = x_ptr + (row * 2 * columns + column) * WIDTH + w
    tl.store(x, (audio + main + second).to(x_ptr.dtype.element_ty), mask=inside)
    tl.store(x + columns * WIDTH, (audio + silent).to(x_ptr.dtype.element_ty), mask=inside)


def embed(
    rows: Columns | Step, memory: SlotMemory, audio: Tensor, main: Tensor, second: Tensor, zero: int, x: Tensor
) -> None:
    """Fill x [R * 2 * N, width] from the rows' N columns: each row's columns with their text, then without.

    The audio ids of a step's one column are in the slots' memory.
    audio [C, audio_vocab, width]; main, second [text_vocab, width], already projected, `second` zero at PAD;
    zero is the main id that stands for no text.
    """
    by_slot = isinstance(rows, Step)
    ids, columns = (memory.audio, 1) if isinstance(rows, Step) else (rows.audio, rows.audio.shape[1])
    count = rows.slots.shape[0]
    codebooks, audio_vocab, width = audio.shape
    block_w = min(128, triton.next_power_of_2(width))
    launch(
        _embed, (count * columns, triton.cdiv(width, block_w)),
        rows.text, ids, rows.slots, audio, main, second, x, columns, zero,
        CODEBOOKS=codebooks, AUDIO_VOCAB=audio_vocab, WIDTH=width, BY_SLOT=by_slot,
        BLOCK_C=triton.next_power_of_2(codebooks), BLOCK_W=block_w,
    )  # fmt: skip
