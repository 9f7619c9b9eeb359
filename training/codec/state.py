"""The state of a codec's training."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import state
from .losses import Discriminators, PhonemeHead
from .model import Codec
from .shape import Shape


@dataclass
class Run(state.Resumable):
    codec: Codec
    average: Codec  # moving average of the codec's weights: what is exported
    head: PhonemeHead
    judges: Discriminators
    optimizers: dict[str, torch.optim.Optimizer]
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def modules(self) -> dict[str, nn.Module]:
        return {"codec": self.codec, "average": self.average, "head": self.head, "judges": self.judges}

    def notes(self) -> dict[str, str]:
        return {"shape": json.dumps(self.codec.shape.config())}


def load_average(folder: Path) -> tuple[Shape, dict[str, Tensor], int]:
    """Shape, averaged weights and step of a run."""
    weights, metadata = state.load_average(folder)
    return Shape.parse(json.loads(metadata["shape"])), weights, int(metadata["step"])
