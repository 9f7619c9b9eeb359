"""Every per-step tensor of the engine, allocated once; one row per slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.config import ModelConfig
from ..model.sampling import SamplingRows


@dataclass
class Staged:
    """A host array, and the device tensor it is copied to. On the CPU they share their memory."""

    host: NDArray[Any]
    tensor: Tensor
    pinned: Tensor | None

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Staged:
        if device.type == "cpu":
            tensor = torch.zeros(shape, dtype=dtype)
            return cls(tensor.numpy(), tensor, None)
        pinned = torch.zeros(shape, dtype=dtype, pin_memory=True)
        return cls(pinned.numpy(), torch.zeros(shape, dtype=dtype, device=device), pinned)

    def upload(self, rows: int) -> Tensor:
        """Copy the first rows to the device; returns them."""
        if self.pinned is not None:
            self.tensor[:rows].copy_(self.pinned[:rows], non_blocking=True)
        return self.tensor[:rows]


@dataclass
class StepBuffers:
    """Inputs and outputs of one `frame` over all slots (C codebooks, W decoder width)."""

    columns: Staged  # [slots, 2 + C] ids of the column to consume
    positions: Staged  # [slots] its position
    where: Staged  # [slots] its KV row
    uniforms: Staged  # [slots, 1 + C] noise: action, then codebooks
    text: Staged  # [slots, 2] text ids of the next column
    known: Staged  # [slots, C] ids of the next column that the prefix gives
    known_mask: Staged  # [slots, C] where it does
    cfg_scale: Staged  # [slots]
    temperatures: Staged  # [2, slots] text, audio
    top_k: Staged  # [2, slots] text, audio
    hidden: Tensor  # [slots, 2, W]
    actions: Tensor  # [slots]
    codes: Tensor  # [slots, C]

    @classmethod
    def allocate(cls, slots: int, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> StepBuffers:
        def ints(*shape: int) -> Staged:
            return Staged.zeros(shape, torch.int64, device)

        def floats(*shape: int) -> Staged:
            return Staged.zeros(shape, torch.float32, device)

        buffers = cls(
            columns=ints(slots, 2 + config.codebooks),
            positions=ints(slots),
            where=ints(slots),
            uniforms=floats(slots, 1 + config.codebooks),
            text=ints(slots, 2),
            known=ints(slots, config.codebooks),
            known_mask=Staged.zeros((slots, config.codebooks), torch.bool, device),
            cfg_scale=floats(slots),
            temperatures=floats(2, slots),
            top_k=ints(2, slots),
            hidden=torch.zeros((slots, 2, config.decoder.width), dtype=dtype, device=device),
            actions=torch.zeros(slots, dtype=torch.int64, device=device),
            codes=torch.zeros((slots, config.codebooks), dtype=torch.int64, device=device),
        )
        buffers.cfg_scale.host.fill(1.0)
        buffers.top_k.host.fill(1)
        return buffers

    def settings(self, slot: int, *, cfg_scale: float, temperatures: tuple[float, float], top_k: int) -> None:
        """A slot's sampling settings, for as long as its stream lives."""
        self.cfg_scale.host[slot] = cfg_scale
        self.temperatures.host[:, slot] = temperatures
        self.top_k.host[:, slot] = top_k
        for staged in (self.temperatures, self.top_k):
            staged.upload(2)
        self.cfg_scale.upload(len(self.cfg_scale.host))

    def sampling(self, head: int, rows: int, filter_k: int) -> SamplingRows:
        """Settings of the first rows for the text head (0) or the audio heads (1)."""
        top_k = self.top_k.host[head, :rows]
        return SamplingRows(
            cfg_scale=self.cfg_scale.tensor[:rows],
            temperature=self.temperatures.tensor[head, :rows],
            top_k=self.top_k.tensor[head, :rows],
            filter_k=filter_k,
            top_k_max=0 if np.any(top_k == 0) else int(top_k.max()),
        )
