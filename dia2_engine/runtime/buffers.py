"""Every per-step tensor of the engine, allocated once; one row per stream that takes part in the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.config import ModelConfig
from ..model.step import Step

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class StepInputs:
    """What the host decides about a step: views of one block of memory, so that one copy takes all to the device.

    C codebooks; the fields are those of `Step`, with one column.
    """

    slots: Ints  # [rows]
    columns: Ints  # [rows, 2 + C]
    positions: Ints  # [rows]
    where: Ints  # [rows]
    text: Ints  # [rows, 2]
    known: Ints  # [rows, C]
    known_mask: Ints  # [rows, C]
    top_k: Ints  # [rows, 2]
    uniforms: Floats  # [rows, 1 + C]
    cfg_scale: Floats  # [rows]
    temperatures: Floats  # [rows, 2]

    def make_inert(self, first: int, end: int, slot: int) -> None:
        """Rows that only fill a bucket up: legal ids, and a slot that nobody reads."""
        for values in self.__dict__.values():
            values[first:end] = 0
        self.slots[first:end] = slot


class StepBuffers:
    """Inputs on the host and on the device, and results. On the CPU host and device share the inputs' memory."""

    def __init__(self, rows: int, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        codebooks = config.codebooks
        widths = {
            "slots": (), "columns": (2 + codebooks,), "positions": (), "where": (), "text": (2,),
            "known": (codebooks,), "known_mask": (codebooks,), "top_k": (2,), "uniforms": (1 + codebooks,),
            "cfg_scale": (), "temperatures": (2,),
        }  # fmt: skip
        sizes = [rows * int(np.prod(width)) for width in widths.values()]
        on_gpu = device.type == "cuda"
        self._host = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=on_gpu)
        self._device = torch.zeros_like(self._host, device=device) if on_gpu else self._host

        def views(block: Tensor) -> dict[str, Tensor]:
            parts = zip(widths.items(), torch.split(block, sizes), strict=True)
            shaped = {name: part.view(rows, *width) for (name, width), part in parts}
            return {n: t.view(torch.float32) if n in _FLOATS else t for n, t in shaped.items()}

        arrays: dict[str, NDArray[Any]] = {name: part.numpy() for name, part in views(self._host).items()}
        self.inputs = StepInputs(**arrays)
        tensors = views(self._device)
        self.step = Step(
            **{**tensors, "columns": tensors["columns"][:, None]},
            hidden=torch.zeros((rows * 2, config.decoder.width), dtype=dtype, device=device),
            actions=torch.zeros(rows, dtype=torch.int32, device=device),
            codes=torch.zeros((rows, codebooks), dtype=torch.int32, device=device),
        )

    def upload(self) -> None:
        """Copy the inputs to the device, in the order of its stream."""
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)


_FLOATS = frozenset(name for name, kind in StepInputs.__annotations__.items() if kind == "Floats")
