"""The sum of a column's embeddings, for both guidance branches, in one kernel."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import OVERLAP, arrive


@triton.jit
def _embed(
    ids_ptr, audio_ptr, main_ptr, second_ptr, x_ptr, columns, zero,
    CODEBOOKS: tl.constexpr, AUDIO_VOCAB: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    arrive(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    row, column = token // columns, token % columns
    c, w = tl.arange(0, BLOCK_C), tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    inside = w < WIDTH
    ids = ids_ptr + token * (2 + CODEBOOKS)
    cells = tl.load(ids + 2 + c, mask=c < CODEBOOKS, other=0)
    table = audio_ptr + (c * AUDIO_VOCAB + cells).to(tl.int64)[:, None] * WIDTH + w[None, :]
    audio = tl.sum(tl.load(table, mask=(c < CODEBOOKS)[:, None] & inside[None, :], other=0.0).to(tl.float32), 0)
    main = tl.load(main_ptr + tl.load(ids).to(tl.int64) * WIDTH + w, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(second_ptr + tl.load(ids + 1).to(tl.int64) * WIDTH + w, mask=inside, other=0.0).to(tl.float32)
    silent = tl.load(main_ptr + zero * WIDTH + w, mask=inside, other=0.0).to(tl.float32)
    x = x_ptr + (row * 2 * columns + column) * WIDTH + w
    tl.store(x, (audio + main + second).to(x_ptr.dtype.element_ty), mask=inside)
    tl.store(x + columns * WIDTH, (audio + silent).to(x_ptr.dtype.element_ty), mask=inside)


def embed(ids: Tensor, audio: Tensor, main: Tensor, second: Tensor, zero: int, x: Tensor) -> None:
    """Fill x [R * 2 * N, width] from columns `ids` [R, N, 2 + C]: each row's columns with their text, then without.

    audio [C, audio_vocab, width]; main, second [text_vocab, width], already projected, `second` zero at PAD;
    zero is the main id that stands for no text.
    """
    rows, columns, _ = ids.shape
    codebooks, audio_vocab, width = audio.shape
    block_w = min(128, triton.next_power_of_2(width))
    _embed[(rows * columns, triton.cdiv(width, block_w))](
        ids, audio, main, second, x, columns, zero,
        CODEBOOKS=codebooks, AUDIO_VOCAB=audio_vocab, WIDTH=width,
        BLOCK_C=triton.next_power_of_2(codebooks), BLOCK_W=block_w,
        OVERLAP=OVERLAP, launch_pdl=OVERLAP,
    )  # fmt: skip
