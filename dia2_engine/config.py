"""The engine's settings: one frozen value, filled from strings (model parameters, environment) with strict checks."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from .errors import ConfigError

Boundary = Literal["seamless", "reference"]  # how a request joins its voice; docs/boundary.md

ENVIRONMENT_PREFIX = "DIA2_"


@dataclass(frozen=True)
class EngineConfig:
    """Everything a deployment chooses. What a request may choose is in `Request`, the model's in `ModelConfig`."""

    checkpoint: str  # folder, or Hugging Face repository "owner/name[@revision]"
    mimi: str = ""  # codec folder or repository; empty: the checkpoint's own
    voices: str = ""  # folder of voices; empty: none
    default_voice: str = ""  # empty: the first by name, or the model's own if there are no voices
    device: str = "auto"  # auto, cpu, cuda, cuda:N
    dtype: str = "auto"  # auto (bfloat16 on CUDA, float32 on the CPU), float32, bfloat16
    slots: int = 8  # streams that generate at the same time
    kv_gb: float = 0.0  # memory of the KV cache; 0: a whole context for each slot, if that is free
    queue: int = 32  # requests that may wait for a slot; more are refused at once
    boundary: Boundary = "seamless"  # seamless, or reference (what nari-labs/dia2 does; docs/boundary.md)
    cooldown_frames: int = 6  # encoded silence between the voice prefix and the request
    fade_ms: float = 20.0  # fade at the end of each clip of a voice
    kick: bool = True  # begin the request's first word at once
    cfg_scale: float = 2.0  # defaults of a request that does not say
    temperature: float = 0.8
    text_temperature: float = 0.6
    top_k: int = 50
    cfg_filter_k: int = 50  # guided candidates kept at every sampling; 0: all
    max_seconds: float = 1800.0  # longest utterance of a request; a session may last longer
    max_text_chars: int = 10_000  # longest script
    carry_over_s: float = 8.0  # of its own audio that a stream takes into a fresh context; 0: it ends with its context
    session_idle_s: float = 60.0  # a session that lacks text for so long is ended
    run_ahead_s: float = 4.0  # how far generation may run ahead of playback; 0: no bound
    max_chunk_frames: int = 4  # largest audio chunk; the first ones are one frame
    cuda_graphs: bool = True  # on a GPU, record every pass at start-up; off for debugging
    stop_file: str = ""  # when this file appears, every stream is ended; for whoever is about to stop the process
    debug: bool = False  # check every id at every place, synchronously

    def __post_init__(self) -> None:
        _range(self, "slots", 1, 1024)
        _range(self, "kv_gb", 0, 10_000)
        _range(self, "queue", 0, 100_000)
        _range(self, "cooldown_frames", 0, 250)
        _range(self, "fade_ms", 0, 1000)
        _range(self, "cfg_scale", *REQUEST_RANGES["cfg_scale"])
        _range(self, "temperature", *REQUEST_RANGES["temperature"])
        _range(self, "text_temperature", *REQUEST_RANGES["temperature"])
        _range(self, "top_k", *REQUEST_RANGES["top_k"])
        _range(self, "cfg_filter_k", 0, 100_000)
        _range(self, "max_seconds", 0.1, 3600)
        _range(self, "max_text_chars", 1, 1_000_000)
        _range(self, "carry_over_s", 0, 60)
        _range(self, "session_idle_s", 0.01, 3600)  # Triton forgets a sequence after an hour
        _range(self, "run_ahead_s", 0, 3600)
        _range(self, "max_chunk_frames", 1, 250)
        _choice(self, "boundary", ("seamless", "reference"))
        _choice(self, "dtype", ("auto", "float32", "bfloat16"))
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", self.device):
            raise ConfigError(f"device is {self.device!r}; allowed: auto, cpu, cuda, cuda:N")
        if not self.checkpoint:
            raise ConfigError("checkpoint is empty; give a folder or a repository 'owner/name[@revision]'")
        if self.voices and not Path(self.voices).expanduser().is_dir():
            raise ConfigError(f"voices is {self.voices!r}; that folder does not exist")

    @classmethod
    def from_mapping(cls, parameters: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> EngineConfig:
        """Read settings given as text. A `DIA2_<NAME>` in the environment wins over the parameter.

        Empty text means "not given". Raises ConfigError naming field, value and what is allowed; names that are no
        setting are errors too, so that a typing mistake is not silently ignored.
        """
        kinds = get_type_hints(cls)
        given = {name: value for name, value in parameters.items() if value != ""}
        for name in kinds:
            value = environ.get(ENVIRONMENT_PREFIX + name.upper(), "")
            if value != "":
                given[name] = value
        unknown = sorted(given.keys() - kinds.keys())
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(unknown)}; known: {', '.join(sorted(kinds))}")
        if "checkpoint" not in given:
            raise ConfigError("checkpoint is not set; give a folder or a repository 'owner/name[@revision]'")
        return cls(**{name: _parse(name, value, kinds[name]) for name, value in given.items()})


REQUEST_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "temperature": (0.0, 2.0),
    "top_k": (0, 10_000),
    "cfg_scale": (0.0, 10.0),
}


def _parse(name: str, value: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[value.strip().lower()]
        return kind(value.strip()) if kind in (int, float) else value
    except (ValueError, KeyError):
        allowed = {bool: "true or false", int: "an integer", float: "a number"}[kind]
        raise ConfigError(f"{name} is {value!r}; it must be {allowed}") from None


def _range(config: EngineConfig, name: str, low: float, high: float) -> None:
    value = getattr(config, name)
    if not low <= value <= high:  # also false for NaN
        raise ConfigError(f"{name} is {value}; allowed: {low} to {high}")


def _choice(config: EngineConfig, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


SETTING_NAMES = tuple(field.name for field in fields(EngineConfig))
