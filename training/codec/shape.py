"""The codec's shape, and its `config.json` in the published format."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

SAMPLE_RATE = 24000
FRAME_SAMPLES = 1920
STRIDE = 2  # transformer positions per frame


@dataclass(frozen=True)
class Shape:
    """The default has 7.5 M parameters, 15 MB in 16 bits, and decodes a second of audio with 1 GFLOP.

    The window is short, so that crops of two seconds train all of it. The first up-sampling is by 5 and not by 8,
    as in the published codec, because the kernel of that layer is the largest of all.
    """

    hidden: int = 192
    filters: int = 32
    ratios: tuple[int, ...] = (5, 6, 8, 4)  # of the decoder; the product is a transformer position's samples
    layers: int = 3
    heads: int = 4
    mlp: int = 384
    window: int = 32  # positions
    codebooks: int = 8
    codebook_size: int = 1024
    codebook_dim: int = 64

    def __post_init__(self) -> None:
        if math.prod(self.ratios) * STRIDE != FRAME_SAMPLES:
            raise ValueError(f"the product of {self.ratios} must be {FRAME_SAMPLES // STRIDE}")

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["MimiModel"],
            "model_type": "mimi",
            "dtype": "float32",
            "sampling_rate": SAMPLE_RATE,
            "audio_channels": 1,
            "hidden_size": self.hidden,
            "num_filters": self.filters,
            "num_residual_layers": 1,
            "upsampling_ratios": list(self.ratios),
            "kernel_size": 7,
            "last_kernel_size": 3,
            "residual_kernel_size": 3,
            "dilation_growth_rate": 2,
            "use_causal_conv": True,
            "pad_mode": "constant",
            "compress": 2,
            "trim_right_ratio": 1.0,
            "codebook_size": self.codebook_size,
            "codebook_dim": self.codebook_dim,
            "num_quantizers": self.codebooks,
            "num_semantic_quantizers": 1,
            "use_conv_shortcut": False,
            "vector_quantization_hidden_dimension": self.codebook_dim,
            "upsample_groups": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.mlp,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.hidden // self.heads,
            "hidden_act": "gelu",
            "max_position_embeddings": 8000,
            "norm_eps": 1e-5,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "sliding_window": self.window,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "layer_scale_initial_scale": 0.01,
            "use_cache": False,
        }

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Shape:
        """The shape of which `values` is the `config`."""
        return cls(
            hidden=values["hidden_size"],
            filters=values["num_filters"],
            ratios=tuple(values["upsampling_ratios"]),
            layers=values["num_hidden_layers"],
            heads=values["num_attention_heads"],
            mlp=values["intermediate_size"],
            window=values["sliding_window"],
            codebooks=values["num_quantizers"],
            codebook_size=values["codebook_size"],
            codebook_dim=values["codebook_dim"],
        )
