"""Every per-step tensor of the engine, allocated once; one row per stream that takes part in the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.config import ModelConfig
from ..model.step import Columns, Step

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]


class Staged:
    """Named arrays on the host that one copy takes to their twins on the device; on the CPU they are the same memory.

    All are int32 but those named in `floats`, which are float32.
    """

    def __init__(self, shapes: Shapes, device: torch.device, floats: frozenset[str] = frozenset()) -> None:
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        self._on_gpu = device.type == "cuda"
        self._host = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=self._on_gpu)
        self._device = torch.zeros_like(self._host, device=device) if self._on_gpu else self._host
        if self._on_gpu:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

        def views(block: Tensor) -> dict[str, Tensor]:
            parts = zip(shapes.items(), torch.split(block, sizes), strict=True)
            shaped = {name: part.view(shape) for (name, shape), part in parts}
            return {name: part.view(torch.float32) if name in floats else part for name, part in shaped.items()}

        self.arrays: dict[str, NDArray[Any]] = {name: part.numpy() for name, part in views(self._host).items()}
        self.tensors = views(self._device)

    def wait(self) -> None:
        """Until the last copy is made: the arrays may be written again."""
        if self._on_gpu:
            self._copied.synchronize()

    def upload(self) -> None:
        """Copy the arrays to the device, in the order of its current stream."""
        if self._on_gpu:
            self._device.copy_(self._host, non_blocking=True)
            self._copied.record()


@dataclass(frozen=True)
class StepInputs:
    """What the host decides about a step. C codebooks; the fields are those of `Step`."""

    slots: Ints  # [rows]
    positions: Ints  # [rows]
    where: Ints  # [rows]
    text: Ints  # [rows, 2]
    next_text: Ints  # [rows, 2]
    given: Ints  # [rows, C]
    given_kind: Ints  # [rows, C]
    top_k: Ints  # [rows, 2]
    uniforms: Floats  # [rows, 1 + C]
    cfg_scale: Floats  # [rows]
    temperatures: Floats  # [rows, 2]

    def make_inert(self, first: int, end: int, slot: int) -> None:
        """Rows that only fill a bucket up: legal ids, and a slot that nobody reads."""
        for values in self.__dict__.values():
            values[first:end] = 0
        self.slots[first:end] = slot


_FLOATS = frozenset(name for name, kind in StepInputs.__annotations__.items() if kind == "Floats")


class StepBuffers:
    """Inputs on the host and on the device, and results."""

    def __init__(self, rows: int, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        codebooks = config.codebooks
        shapes: Shapes = {
            "slots": (rows,), "positions": (rows,), "where": (rows,), "text": (rows, 2), "next_text": (rows, 2),
            "given": (rows, codebooks), "given_kind": (rows, codebooks), "top_k": (rows, 2),
            "uniforms": (rows, 1 + codebooks), "cfg_scale": (rows,), "temperatures": (rows, 2),
        }  # fmt: skip
        self._staged = Staged(shapes, device, _FLOATS)
        self.inputs = StepInputs(**self._staged.arrays)
        self.step = Step(
            **self._staged.tensors,
            hidden=torch.zeros((rows * 2, config.decoder.width), dtype=dtype, device=device),
            actions=torch.zeros(rows, dtype=torch.int32, device=device),
            codes=torch.zeros((rows, codebooks), dtype=torch.int32, device=device),
        )

    def wait(self) -> None:
        """Until the inputs may be written again."""
        self._staged.wait()

    def upload(self) -> None:
        """Copy the inputs to the device, in the order of its stream."""
        self._staged.upload()


class ColumnBuffers:
    """N known columns of one slot, on the host and on the device."""

    def __init__(self, columns: int, config: ModelConfig, device: torch.device) -> None:
        place: Shapes = {"slots": (1,), "positions": (1,), "where": (1,)}
        ids: Shapes = {"text": (1, columns, 2), "audio": (1, columns, config.codebooks)}
        self._staged = Staged(place | ids, device)
        self.columns = Columns(**self._staged.tensors)

    def fill(self, slot: int, ids: NDArray[np.int64], position: int) -> None:
        """Stage `ids` [n <= N, 2 + C] for a slot at a position, and copy them to the device.

        What is behind them is left over from before: legal, and overwritten in the cache before it is read.
        """
        self._staged.wait()
        arrays = self._staged.arrays
        arrays["slots"][0], arrays["positions"][0], arrays["where"][0] = slot, position, position
        arrays["text"][0, : len(ids)], arrays["audio"][0, : len(ids)] = ids[:, :2], ids[:, 2:]
        self._staged.upload()
