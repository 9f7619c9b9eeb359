"""The whole state of a training run, as one safetensors file: with it a run goes on as if never stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .losses import Discriminators, PhonemeHead
from .model import Codec
from .shape import Shape

FILE = "state.safetensors"


@dataclass
class Run:
    """Everything that changes from step to step. The optimisers must have their moments: see `make_moments`."""

    codec: Codec
    average: Codec  # moving average of the codec's weights: what is exported
    head: PhonemeHead
    judges: Discriminators
    optimizers: dict[str, torch.optim.Optimizer]
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def modules(self) -> dict[str, nn.Module]:
        return {"codec": self.codec, "average": self.average, "head": self.head, "judges": self.judges}

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
        metadata = {
            "step": str(self.step),
            "shape": json.dumps(self.codec.shape.config()),
            "history": json.dumps(self.history),
        }
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


def load_average(folder: Path) -> tuple[Shape, dict[str, Tensor], int]:
    """Shape, averaged weights and step of a run."""
    with safe_open(str(folder / FILE), framework="pt") as file:
        metadata: dict[str, Any] = file.metadata()
        prefix = "average."
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        weights = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    return Shape.parse(json.loads(metadata["shape"])), weights, int(metadata["step"])
