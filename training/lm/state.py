"""The state of a language model's training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import state
from .model import LanguageModel


@dataclass
class Run(state.Resumable):
    model: LanguageModel
    average: LanguageModel  # moving average of the model's weights: what is exported
    optimizers: dict[str, torch.optim.Optimizer]
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "average": self.average}


def load_average(folder: Path) -> tuple[dict[str, Tensor], int]:
    """Averaged weights and step of a run."""
    weights, metadata = state.load_average(folder)
    return weights, int(metadata["step"])
