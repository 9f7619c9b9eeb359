"""Finding and loading a checkpoint: a local folder or a Hugging Face repository, safetensors only, strictly."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import ConfigError
from .config import ModelConfig, load_model_config
from .dia2 import Dia2
from .layers import Linear

DEFAULT_MIMI = "kyutai/mimi"
_MANIFEST = "dia2_assets.json"  # optional: renames the parts of a published checkpoint
_TEXT_FILES = ["*.json", "*.txt", "*.model", "mimi/*"]
_FILES = [*_TEXT_FILES, "*.safetensors"]
_SHOWN = 5


@dataclass(frozen=True)
class CheckpointFiles:
    """Where the parts of a checkpoint lie, and its parsed configuration."""

    config: ModelConfig
    weights: Path
    tokenizer: Path  # folder
    mimi: Path  # folder


def resolve_folder(reference: str, what: str, *, weights: bool = True) -> Path:
    """A local folder as it is, else a Hugging Face repository `owner/name[@revision]`, downloaded or from its cache.

    Without `weights` the repository's own are not downloaded; a codec inside it, in `mimi/`, still is.
    Set HF_HUB_OFFLINE=1 to use the cache only. Raises ConfigError naming `what` and the reference.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    repo, _, revision = reference.partition("@")
    if repo.count("/") != 1 or reference.startswith((".", "/", "~")):
        raise ConfigError(f"{what} {reference!r} is neither a folder nor a repository 'owner/name[@revision]'")
    from huggingface_hub import snapshot_download

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}
    files = _FILES if weights else _TEXT_FILES
    try:
        path = snapshot_download(repo, revision=revision or None, allow_patterns=files, local_files_only=offline)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{what} {reference!r} is no folder here, and cannot be fetched: {reason}") from None
    return Path(path)


def find_checkpoint(reference: str, mimi: str | None = None, *, weights: bool = True) -> CheckpointFiles:
    """Locate config, weights, tokenizer and codec. `mimi` overrides where the codec comes from.

    Without `weights` the language model's are not downloaded; preparing a voice does not need them.
    """
    folder = resolve_folder(reference, "checkpoint", weights=weights)
    manifest = _manifest(folder / _MANIFEST)
    config = load_model_config(folder / manifest.get("config", "config.json"))
    tokenizer = manifest.get("tokenizer") or config.tokenizer
    own_mimi = str(folder / "mimi") if (folder / "mimi").is_dir() else None
    return CheckpointFiles(
        config=config,
        weights=folder / manifest.get("weights", "model.safetensors"),
        tokenizer=resolve_folder(tokenizer, "tokenizer", weights=False) if tokenizer else folder,
        mimi=resolve_folder(mimi or own_mimi or manifest.get("mimi") or config.mimi or DEFAULT_MIMI, "mimi"),
    )


def _manifest(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise ConfigError(f"{path}: must hold a JSON object, got {type(manifest).__name__}")
    named = {name: manifest[name] for name in ("config", "weights", "tokenizer", "mimi") if manifest.get(name)}
    for name, value in named.items():
        if not isinstance(value, str):
            raise ConfigError(f"{path}: '{name}' is {value!r}; it must be a string")
    return named


def check_tensors(path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ConfigError naming every kind of disagreement between a file and what the model needs."""
    problems = []
    for label, names in (("missing", expected.keys() - found.keys()), ("unexpected", found.keys() - expected.keys())):
        if names:
            problems.append(f"{label}: {_some(sorted(names))}")
    wrong = [
        f"{name} is {list(found[name])}, must be {list(shape)}"
        for name, shape in sorted(expected.items())
        if name in found and found[name] != shape
    ]
    if wrong:
        problems.append(f"mis-shaped: {_some(wrong)}")
    if problems:
        raise ConfigError(f"{path}: {'; '.join(problems)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def load_strictly(module: nn.Module, path: Path, *, device: torch.device, dtype: torch.dtype) -> None:
    """Fill a module built on the meta device from a safetensors file, tensor by tensor, straight to the device.

    A tensor may be stored in 8 bits: int8, with a factor for each row in `NAME_scale`, [rows, 1] for a matrix.
    """
    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            small = {name for name in expected if name in stored and stored[name].get_dtype() == "I8"}
            scales = {f"{name}_scale": (*expected[name][:1], *[1] * len(expected[name][1:])) for name in small}
            found = {name: tuple(part.get_shape()) for name, part in stored.items()}
            check_tensors(path, expected | scales, found)

            def value(name: str) -> Tensor:
                tensor: Tensor = file.get_tensor(name)
                if name in small:
                    tensor = tensor.float() * file.get_tensor(f"{name}_scale").float()
                return tensor.to(dtype)

            state = {name: value(name) for name in expected}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: not a readable safetensors file: {error}") from None
    module.load_state_dict(state, assign=True)
    module.to(device).eval().requires_grad_(False)


def load_dia2(files: CheckpointFiles, *, device: torch.device, dtype: torch.dtype) -> Dia2:
    """The language model with its weights on `device` in `dtype`."""
    with torch.device("meta"):
        model = Dia2(files.config)
    load_strictly(model, files.weights, device=device, dtype=dtype)
    if device.type == "cpu":
        for module in model.modules():
            if isinstance(module, Linear):
                module.store_for_cpu()
    return model
