"""The whole state of a training run, as one safetensors file: with it a run goes on as if never stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..codec.state import FILE
from .model import LanguageModel


@dataclass
class Run:
    """Everything that changes from step to step. The optimiser must have its moments: see `make_moments`."""

    model: LanguageModel
    average: LanguageModel  # moving average of the model's weights: what is exported
    adam: torch.optim.Optimizer
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by name, to be read or written in place."""
        for name, module in (("model", self.model), ("average", self.average)):
            for key, tensor in module.state_dict().items():
                yield f"{name}.{key}", tensor
        parameters = [parameter for group in self.adam.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(parameters):
            for key, tensor in self.adam.state[parameter].items():
                yield f"adam.{index}.{key}", tensor

    def save(self, folder: Path) -> None:
        metadata = {"step": str(self.step), "history": json.dumps(self.history)}
        unfinished = folder / f"{FILE}.part"
        save_file({name: tensor.contiguous() for name, tensor in self.tensors()}, unfinished, metadata)
        os.replace(unfinished, folder / FILE)

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote, of a run of the same shape."""
        with safe_open(str(folder / FILE), framework="pt") as file, torch.no_grad():
            metadata = file.metadata()
            self.step, self.history = int(metadata["step"]), json.loads(metadata["history"])
            for name, tensor in self.tensors():
                tensor.copy_(file.get_tensor(name))


def load_average(folder: Path) -> tuple[dict[str, Tensor], int]:
    """Averaged weights and step of a run."""
    with safe_open(str(folder / FILE), framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("average.")]  # noqa: SIM118
        weights = {name.removeprefix("average."): file.get_tensor(name) for name in names}
        return weights, int(file.metadata()["step"])
