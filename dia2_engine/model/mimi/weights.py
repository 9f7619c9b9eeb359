"""Strict reading of the published tensors: each is asked for by name and shape, and none may be left over."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import ConfigError

# Parts of a checkpoint that serve the encoder or training only.
_NOT_FOR_DECODING = re.compile(
    r"(encoder|encoder_transformer|downsample)\..+"
    r"|quantizer\.\w+\.input_proj\.weight"
    r"|quantizer\.\w+\.layers\.\d+\.codebook\.initialized"
)
_NAMES_IN_MESSAGE = 20


class WeightReader:
    """Hands out a file's tensors as float32 on the CPU.

    On leaving the `with` block raises one ConfigError naming all keys missing, mis-shaped or never asked for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open(path)
        self._unread = {key for key in self._file.keys() if not _NOT_FOR_DECODING.fullmatch(key)}  # noqa: SIM118
        self._missing: list[str] = []
        self._misshaped: list[str] = []

    def take(self, key: str, *shape: int) -> Tensor:
        """The tensor `key`; zeros in its place after a fault, so that one pass finds all faults."""
        if key not in self._unread:
            self._missing.append(key)
            return torch.zeros(shape)
        self._unread.remove(key)
        found = tuple(self._file.get_slice(key).get_shape())
        if found != shape:
            self._misshaped.append(f"{key} {list(found)} instead of {list(shape)}")
            return torch.zeros(shape)
        tensor: Tensor = self._file.get_tensor(key)
        return tensor.float()

    def skip(self, pattern: str) -> None:
        """Leave the keys that match `pattern` unread on purpose."""
        self._unread = {key for key in self._unread if not re.fullmatch(pattern, key)}

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            return
        faults = {"missing": self._missing, "mis-shaped": self._misshaped, "unexpected": sorted(self._unread)}
        if any(faults.values()):
            raise ConfigError(f"{self._path}: " + "; ".join(_listing(k, v) for k, v in faults.items() if v))


def _open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read as safetensors: {error}") from None


def _listing(kind: str, names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_IN_MESSAGE])
    more = len(names) - _NAMES_IN_MESSAGE
    return f"{kind}: {shown}" + (f" and {more} more" if more > 0 else "")
