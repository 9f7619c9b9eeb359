"""The whole state of a training run, as one safetensors file: with it a run goes on as if never stopped."""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = "state.safetensors"
WARMUP_STEPS = 300


class Resumable(ABC):
    """Everything that changes from step to step. The optimisers must have their moments: see `make_moments`."""

    optimizers: dict[str, torch.optim.Optimizer]
    step: int
    history: list[dict[str, float]]

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """By name; what is exported is `average`."""

    def notes(self) -> dict[str, str]:
        """What else a reader of the file needs."""
        return {}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by name, to be read or written in place."""
        for name, module in self.modules().items():
            for key, tensor in module.state_dict().items():
                yield f"{name}.{key}", tensor
        for name, optimizer in self.optimizers.items():
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for index, parameter in enumerate(parameters):
                for key, tensor in optimizer.state[parameter].items():
                    yield f"{name}.{index}.{key}", tensor

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"step": str(self.step), "history": json.dumps(self.history), **self.notes()}
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


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser create its state, by a step that changes nothing and is not counted."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for moments in optimizer.state.values():
        moments["step"].zero_()


def load_average(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Averaged weights of a run, and its step and notes."""
    with safe_open(str(folder / FILE), framework="pt") as file:
        prefix = "average."
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}, file.metadata()


def learning_rate(step: int, steps: int, peak: float, final: float, *, began_at: int) -> float:
    """Cosine over the run; a piece without the optimiser's moments, begun at a step, begins with a warm-up."""
    cosine = (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
    rate = final + (peak - final) * cosine
    return rate * min(1.0, (step - began_at + 1) / WARMUP_STEPS)
