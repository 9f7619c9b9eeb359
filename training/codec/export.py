"""Stage `export`: a codec as a folder of the published format, in 16 bits.

    python -m training export runs/codec mimi/

Such a folder is also what a later run starts from on another machine: the optimiser's moments stay behind and are
gathered anew during the warm-up.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .model import Codec
from .shape import Shape


def save_codec(folder: Path, shape: Shape, weights: dict[str, Tensor], *, step: int) -> None:
    """`weights` is a `state_dict` of `Codec`. Entries are stored with a use of one, so that 16 bits hold them."""
    stored = {name: tensor.detach().cpu().float() for name, tensor in weights.items()}
    for name in [name for name in stored if name.endswith("cluster_usage")]:
        sums = name.replace("cluster_usage", "embed_sum")
        stored[sums] = stored[sums] / stored[name].clamp(min=1e-5)[:, None]
        stored[name] = torch.ones_like(stored[name])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2, sort_keys=True) + "\n", "utf-8")
    half = {name: tensor.half().contiguous() for name, tensor in stored.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt", "step": str(step)})


def load_codec(folder: Path) -> tuple[Codec, int]:
    """A codec that `save_codec` wrote, and the step it had reached."""
    codec = Codec(Shape.parse(json.loads((folder / "config.json").read_text("utf-8"))))
    path = folder / "model.safetensors"
    codec.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    with safe_open(str(path), framework="pt") as file:
        step = int(file.metadata()["step"])
    return codec, step


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training export", description="Write OUT from the average of RUN's weights.")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("out", type=Path, metavar="OUT")
    args = parser.parse_args(argv)
    from .state import load_average

    shape, weights, step = load_average(args.run)
    save_codec(args.out, shape, weights, step=step)
    print(f"{args.out}: step {step}, {(args.out / 'model.safetensors').stat().st_size / 1e6:.1f} MB")
    return 0
