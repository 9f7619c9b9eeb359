"""Programmatic dependent launch: a kernel may start while the one before it ends, and fetch what does not depend on it.

Every kernel of this package calls `arrive` before it touches what another kernel writes or reads. What stands in
front of that call overlaps with the kernel before: the weights of a product, for instance.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

# From Hopper on; the interpreter, which runs kernels on the CPU, has none of it.
OVERLAP = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


@triton.jit
def arrive(OVERLAP: tl.constexpr):
    """Wait for the kernel before to have ended, and let the one behind start."""
    if OVERLAP:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()
