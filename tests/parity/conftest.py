"""`pytest tests/parity --vectors DIR`: DIR is one folder of golden vectors, or a folder of such folders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dia2_engine import Engine, EngineConfig

DEFAULT = Path(__file__).parent.parent / "data" / "parity"


@dataclass(frozen=True)
class Vectors:
    """One variant: a checkpoint, its cases and their tensors."""

    folder: Path

    @property
    def cases(self) -> dict[str, Any]:
        return _cases(self.folder)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return _tensors(self.folder)

    def engine(self, device: str = "cpu", **settings: Any) -> Engine:
        """A new engine on the variant's checkpoint, float32, greedy unless told otherwise."""
        defaults: dict[str, Any] = {"slots": 1, "temperature": 0.0, "text_temperature": 0.0, "max_seconds": 600.0}
        defaults |= settings
        return Engine(EngineConfig(str(self.folder / "checkpoint"), device=device, dtype="float32", **defaults))


@cache
def _cases(folder: Path) -> dict[str, Any]:
    cases: dict[str, Any] = json.loads((folder / "cases.json").read_text("utf-8"))
    return cases


@cache
def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folder / "cases.safetensors")
    return tensors


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vectors", type=Path, default=DEFAULT, help="golden vectors (default: tests/data/parity)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    root: Path = metafunc.config.getoption("--vectors")
    folders = [root] if (root / "cases.json").is_file() else sorted(p.parent for p in root.glob("*/cases.json"))
    if not folders:
        raise pytest.UsageError(f"--vectors {root}: no cases.json in it or in its folders")
    variants = {folder.name: Vectors(folder) for folder in folders}
    if "case" in metafunc.fixturenames:
        kind: str = metafunc.function.kind  # set by @over("kind")
        cases = [(name, index) for name, v in variants.items() for index in range(len(v.cases.get(kind, ())))]
        metafunc.parametrize(
            ("vectors", "case"), [(variants[n], i) for n, i in cases], ids=[f"{n}-{kind}{i}" for n, i in cases]
        )
    elif "vectors" in metafunc.fixturenames:
        metafunc.parametrize("vectors", list(variants.values()), ids=list(variants))
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


@pytest.fixture(autouse=True)
def _needs_gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
