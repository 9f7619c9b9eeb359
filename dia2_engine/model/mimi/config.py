"""The codec's published `config.json`, read strictly. Absent fields take the published values."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError

# What the decoder is written for. A checkpoint that says otherwise would decode to noise, so it is refused.
_FIXED: dict[str, Any] = {
    "model_type": "mimi",
    "audio_channels": 1,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": False,
    "normalize": False,
    "attention_bias": False,
    "hidden_act": "gelu",
}


@dataclass(frozen=True)
class MimiConfig:
    """Shape of a Mimi codec, as far as decoding needs it."""

    sample_rate: int
    frame_samples: int  # samples of one frame of codes
    codebook_size: int
    codebook_dim: int
    codebooks: int  # all that the checkpoint has; the first `semantic_codebooks` are the semantic ones
    semantic_codebooks: int
    hidden_size: int
    latent_stride: int  # transformer positions per frame
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_size: int
    norm_eps: float
    rope_theta: float
    window: int  # positions a query sees, itself included
    filters: int
    ratios: tuple[int, ...]  # samples per step of each up-sampling stage
    kernel: int
    last_kernel: int
    residual_kernel: int
    residual_layers: int
    dilation_growth: int
    compress: int

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.frame_samples

    @property
    def projected(self) -> bool:
        """Whether codebook entries need a projection to the hidden size."""
        return self.codebook_dim != self.hidden_size


class _Fields:
    """Typed reads of one JSON object; every refusal names file, field, value and what is allowed."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values

    def refuse(self, field: str, value: Any, allowed: str) -> ConfigError:
        return ConfigError(f"{self.path}: '{field}' is {value!r}; it must be {allowed}")

    def integer(self, field: str, default: int) -> int:
        value = self.values.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse(field, value, "an integer >= 1")
        return value

    def integers(self, field: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self.values.get(field) or list(default)
        if not isinstance(value, list) or any(type(v) is not int or v < 1 for v in value):
            raise self.refuse(field, value, "a list of integers >= 1")
        return tuple(value)

    def number(self, field: str, default: float) -> float:
        value = self.values.get(field, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.refuse(field, value, "a number > 0")
        return float(value)


def load_mimi_config(path: Path) -> MimiConfig:
    """Read and check the codec's `config.json`, in the style of transformers 4 or 5.

    Raises ConfigError naming the file, the field, its value and what is allowed. Fields that decoding does
    not need are ignored.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a JSON object, got {type(values).__name__}")
    fields = _Fields(path, values)
    for name, allowed in _FIXED.items():
        value = values.get(name, allowed)
        if value != allowed or isinstance(value, bool) != isinstance(allowed, bool):
            raise fields.refuse(name, value, f"{allowed!r} (nothing else is supported)")

    hidden, heads = fields.integer("hidden_size", 512), fields.integer("num_attention_heads", 8)
    ratios = fields.integers("upsampling_ratios", (8, 6, 5, 4))
    sample_rate = fields.integer("sampling_rate", 24000)
    stride = _latent_stride(fields, sample_rate, math.prod(ratios))
    config = MimiConfig(
        sample_rate=sample_rate,
        frame_samples=math.prod(ratios) * stride,
        codebook_size=fields.integer("codebook_size", 2048),
        codebook_dim=fields.integer("codebook_dim", 256),
        codebooks=fields.integer("num_quantizers", 32),
        semantic_codebooks=fields.integer("num_semantic_quantizers", 1),
        hidden_size=hidden,
        latent_stride=stride,
        layers=fields.integer("num_hidden_layers", 8),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", 8),
        head_dim=fields.integer("head_dim", 1) if values.get("head_dim") is not None else hidden // heads,
        mlp_size=fields.integer("intermediate_size", 2048),
        norm_eps=fields.number("norm_eps", 1e-5),
        rope_theta=_rope_theta(fields),
        window=fields.integer("sliding_window", 250),
        filters=fields.integer("num_filters", 64),
        ratios=ratios,
        kernel=fields.integer("kernel_size", 7),
        last_kernel=fields.integer("last_kernel_size", 3),
        residual_kernel=fields.integer("residual_kernel_size", 3),
        residual_layers=fields.integer("num_residual_layers", 1),
        dilation_growth=fields.integer("dilation_growth_rate", 2),
        compress=fields.integer("compress", 2),
    )
    _check(fields, config)
    return config


def _latent_stride(fields: _Fields, sample_rate: int, hop_samples: int) -> int:
    """Transformer positions per frame. Older configs state the frame rate; newer ones imply 2."""
    name = "frame_rate" if fields.values.get("frame_rate") is not None else "_frame_rate"
    if fields.values.get(name) is None:
        return 2
    frame_rate = fields.number(name, 12.5)
    stride = round(sample_rate / hop_samples / frame_rate)
    if stride < 2 or not math.isclose(stride * hop_samples * frame_rate, sample_rate):
        raise fields.refuse(name, frame_rate, f"{sample_rate / hop_samples:g} divided by an integer >= 2")
    return stride


def _rope_theta(fields: _Fields) -> float:
    """RoPE's base: a field of its own before transformers 5, inside `rope_parameters` since."""
    parameters = fields.values.get("rope_parameters")
    if parameters is None:
        return fields.number("rope_theta", 10000.0)
    if not isinstance(parameters, dict) or parameters.get("rope_type", "default") != "default":
        raise fields.refuse("rope_parameters", parameters, "an object with 'rope_type' 'default'")
    return _Fields(fields.path, parameters).number("rope_theta", 10000.0)


def _check(fields: _Fields, config: MimiConfig) -> None:
    """Relations between the fields that the decoder's shapes rely on."""

    def require(field: str, value: int, holds: bool, allowed: str) -> None:
        if not holds:
            raise fields.refuse(field, value, allowed)

    require("head_dim", config.head_dim, config.head_dim % 2 == 0, "even, for RoPE")
    divides = config.heads % config.kv_heads == 0
    require("num_key_value_heads", config.kv_heads, divides, f"a divisor of {config.heads} (num_attention_heads)")
    fewer = config.semantic_codebooks < config.codebooks
    require("num_semantic_quantizers", config.semantic_codebooks, fewer, f"less than {config.codebooks}")
    require(
        "compress",
        config.compress,
        config.compress <= config.filters,
        f"at most {config.filters} (num_filters)",
    )
    for field, default, other, size in (
        ("vector_quantization_hidden_dimension", 256, "codebook_dim", config.codebook_dim),
        ("upsample_groups", 512, "hidden_size", config.hidden_size),
    ):
        value = fields.integer(field, default)
        require(field, value, value == size, f"{size} ({other})")
