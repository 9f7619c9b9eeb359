"""How kernels are launched, and compiled before that.

Programmatic dependent launch: a kernel may start while the one before it ends, and fetch what does not depend on it.
What stands in front of a kernel's call of `arrive` overlaps with the kernel before. It may read whatever that one does
not write: weights, what the step was staged with, and results of kernels before that one, since all of those have ended
when it lets this one start. Nothing is written there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

# From Hopper on; the interpreter, which runs kernels on the CPU, has none of it.
OVERLAP = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)

_compiling = ContextVar("compiling", default=False)


@triton.jit
def arrive(OVERLAP: tl.constexpr):
    """Wait for the kernel before to have ended, and let the one behind start, in this order: see above."""
    if OVERLAP:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()


@triton.jit
def prefetch(pointers):
    """Have the lines of 128 bytes in which these point brought to the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a kernel of this package, or inside `compiled_ahead` only compile it."""
    options |= {"OVERLAP": OVERLAP, "launch_pdl": OVERLAP}
    if _compiling.get():
        kernel.warmup(*arguments, grid=grid, **options)
    else:
        kernel[grid](*arguments, **options)


@contextmanager
def compiled_ahead() -> Iterator[None]:
    """Passes that run in here launch nothing; on leaving, all of their kernels are compiled, on all cores."""
    token = _compiling.set(True)
    try:
        with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool, triton.AsyncCompileMode(pool):
            yield
    finally:
        _compiling.reset(token)
