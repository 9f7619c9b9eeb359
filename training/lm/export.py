"""Stage `lm-export`: a checkpoint that the server loads, with weights of 8 bits.

    python -m training lm-export runs/lm demo/ --mimi mimi/

It is also what a later run starts from on another machine (`lm --start`): the optimiser's moments stay behind.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dia2_engine.model.checkpoint import load_strictly
from dia2_engine.model.config import load_model_config

from .model import LanguageModel
from .state import load_average
from .tokenizer import FILES

WEIGHTS = "model.safetensors"
FOLDER_FILES = ("config.json", *FILES)  # what a run and a checkpoint have in common


def in_8_bits(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as int8, with a factor for each row in `NAME_scale` [rows, 1]; vectors as they are."""
    stored = {}
    for name, tensor in weights.items():
        stored[name] = tensor.detach().cpu().float().contiguous()
        if tensor.ndim == 2:
            scale = stored[name].abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            stored[name], stored[f"{name}_scale"] = (stored[name] / scale).round().to(torch.int8), scale
    return stored


def save_checkpoint(folder: Path, run: Path, weights: dict[str, Tensor], *, step: int) -> None:
    """All of a checkpoint but its codec. `run` has its config and its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FOLDER_FILES:
        shutil.copy(run / name, folder / name)
    save_file(in_8_bits(weights), folder / WEIGHTS, metadata={"format": "pt", "step": str(step)})


def load_checkpoint(folder: Path, dropout: float = 0.0) -> tuple[LanguageModel, int]:
    """A model that `save_checkpoint` wrote, to be trained, and the step it had reached."""
    model = LanguageModel(load_model_config(folder / "config.json"), dropout)
    load_strictly(model, folder / WEIGHTS, device=torch.device("cpu"), dtype=torch.float32)
    with safe_open(str(folder / WEIGHTS), framework="pt") as file:
        step = int(file.metadata()["step"])
    return model.train().requires_grad_(True), step


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="training lm-export", description="Write OUT from the average of RUN's weights and a codec."
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--mimi", type=Path, required=True, help="exported codec, which is copied into OUT")
    args = parser.parse_args(argv)
    weights, step = load_average(args.run)
    save_checkpoint(args.out, args.run, weights, step=step)
    shutil.copytree(args.mimi, args.out / "mimi", dirs_exist_ok=True)
    print(f"{args.out}: step {step}, {(args.out / WEIGHTS).stat().st_size / 1e6:.1f} MB without the codec")
    return 0
