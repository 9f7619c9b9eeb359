"""The published `config.json`, read strictly into frozen values. Every number of the model's shape lives here."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError

MAX_PADDING_STEPS = 6  # the reference's setting, with which the published models were trained
ACTIVATIONS = ("silu", "swish", "swiglu", "gelu", "geglu", "relu", "linear")


@dataclass(frozen=True)
class StackConfig:
    """Shape of one transformer stack (the decoder or the depformer)."""

    layers: int
    width: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    activations: tuple[str, str]


@dataclass(frozen=True)
class ModelConfig:
    """Shape and vocabularies of a Dia2 checkpoint.

    Vocabularies differ by place: text embedding `0..text_vocab-1`; transformer audio embeddings
    `0..audio_vocab-1` (BOS and PAD legal); depformer input, everything sampled, and the codec
    `0..codec_vocab-1` (BOS and PAD never).
    """

    codebooks: int
    text_vocab: int
    audio_vocab: int
    codec_vocab: int
    actions: int
    action_new_word: int
    text_pad: int
    text_new_word: int
    text_zero: int
    audio_pad: int
    audio_bos: int
    delays: tuple[int, ...]  # columns, one per codebook
    lookahead_words: int  # how far the second text stream looks ahead
    max_context_steps: int
    max_padding_steps: int  # longest wait between words
    decoder: StackConfig
    depformer: StackConfig
    text_low_rank: int | None
    depformer_rope: bool
    depformer_text: bool
    weights_schedule: tuple[int, ...]  # weight group of each depformer stage
    rope_min_timescale: float
    rope_max_timescale: float
    norm_eps: float
    mimi: str | None  # where the checkpoint says its codec is
    tokenizer: str | None

    @property
    def max_delay(self) -> int:
        """Columns between a frame's first and last cell, counted from the frame's own column."""
        return max(self.delays)

    @property
    def first_frame(self) -> int:
        """First frame that can be generated with no prefix: column 0 is input, so delay 0 cannot fill frame 0."""
        return 1 if min(self.delays) == 0 else 0


class _Block:
    """One JSON object with errors that name the file and the field."""

    def __init__(self, source: str, name: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise ConfigError(f"{source}: '{name}' must be an object, got {type(values).__name__}")
        self.source, self.name, self.values = source, name, values

    def child(self, key: str, *, required: bool = True) -> _Block:
        if key not in self.values and required:
            raise ConfigError(f"{self.source}: '{self.name}{key}' is missing")
        return _Block(self.source, f"{self.name}{key}.", self.values.get(key) or {})

    def integer(self, key: str, default: int | None = None, *, low: int = 0) -> int:
        value = self.values.get(key, default)
        if value is None:
            raise ConfigError(f"{self.source}: '{self.name}{key}' is missing")
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigError(f"{self.source}: '{self.name}{key}' is {value!r}; it must be an integer >= {low}")
        return value

    def integers(self, key: str, default: list[int] | None = None) -> tuple[int, ...]:
        value = self.values.get(key, default)
        if not isinstance(value, list) or any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in value):
            raise ConfigError(f"{self.source}: '{self.name}{key}' must be a list of integers >= 0, got {value!r}")
        return tuple(value)

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ConfigError(f"{self.source}: '{self.name}{key}' is {value!r}; it must be a number > 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.source}: '{self.name}{key}' is {value!r}; it must be true or false")
        return value

    def activations(self) -> tuple[str, str]:
        value = self.values.get("mlp_activations", ["silu", "linear"])
        if not isinstance(value, list) or len(value) != 2 or any(v not in ACTIVATIONS for v in value):
            raise ConfigError(
                f"{self.source}: '{self.name}mlp_activations' is {value!r}; it must be two of {', '.join(ACTIVATIONS)}"
            )
        return value[0], value[1]

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{self.source}: '{self.name}{key}' is {value!r}; it must be a string")
        return value


def load_model_config(path: Path) -> ModelConfig:
    """Read and check a published `config.json`.

    Raises ConfigError naming the file, the field, its value and what is allowed. Unknown fields are ignored:
    published configs carry training settings that inference does not need.
    """
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from None
    root = _Block(str(path), "", raw)
    data, model, runtime = root.child("data"), root.child("model"), root.child("runtime")
    decoder, depformer = model.child("decoder"), model.child("depformer")
    assets = root.child("assets", required=False)

    codebooks = data.integer("channels", low=3) - 2
    audio_vocab = data.integer("audio_vocab_size", low=3)
    audio_pad = data.integer("audio_pad_token_id", audio_vocab - 1)
    audio_bos = data.integer("audio_bos_token_id", audio_vocab - 2)
    config = ModelConfig(
        codebooks=codebooks,
        text_vocab=data.integer("text_vocab_size", low=1),
        audio_vocab=audio_vocab,
        codec_vocab=min(audio_pad, audio_bos),
        actions=data.integer("action_vocab_size", low=2),
        action_new_word=data.integer("action_new_word_token_id"),
        text_pad=data.integer("text_pad_token_id"),
        text_new_word=data.integer("text_new_word_token_id"),
        text_zero=data.integer("text_zero_token_id", 7),
        audio_pad=audio_pad,
        audio_bos=audio_bos,
        delays=data.integers("delay_pattern", [0] * codebooks),
        lookahead_words=data.integer("second_stream_ahead", 0),
        max_context_steps=runtime.integer("max_context_steps", 1500, low=1),
        max_padding_steps=runtime.integer("max_padding_steps", MAX_PADDING_STEPS, low=1),
        decoder=_stack(decoder, model.child("linear", required=False).activations()),
        depformer=_stack(depformer, depformer.activations()),
        text_low_rank=decoder.integer("low_rank_dim", low=1) if decoder.values.get("low_rank_dim") else None,
        depformer_rope=depformer.flag("apply_rope", True),
        depformer_text=depformer.flag("text_embedding", True),
        weights_schedule=runtime.integers("weights_schedule", list(range(codebooks - 1))),
        rope_min_timescale=model.number("rope_min_timescale", 1),
        rope_max_timescale=model.number("rope_max_timescale", 10000),
        norm_eps=model.number("normalization_layer_epsilon", 1e-5),
        mimi=assets.text("mimi"),
        tokenizer=assets.text("tokenizer") or data.text("tokenizer_path"),
    )
    _check(str(path), config)
    return config


def _stack(block: _Block, activations: tuple[str, str]) -> StackConfig:
    return StackConfig(
        layers=block.integer("n_layer", low=1),
        width=block.integer("n_embd", low=1),
        hidden=block.integer("n_hidden", low=1),
        query_heads=block.integer("gqa_query_heads", low=1),
        kv_heads=block.integer("kv_heads", low=1),
        head_dim=block.integer("gqa_head_dim", low=2),
        activations=activations,
    )


def _check(source: str, config: ModelConfig) -> None:
    def require(holds: bool, message: str) -> None:
        if not holds:
            raise ConfigError(f"{source}: {message}")

    require(
        len(config.delays) == config.codebooks,
        f"'data.delay_pattern' has {len(config.delays)} entries; it needs one per codebook ({config.codebooks})",
    )
    require(
        len(config.weights_schedule) == config.codebooks - 1,
        f"'runtime.weights_schedule' has {len(config.weights_schedule)} entries; "
        f"it needs one per depformer stage ({config.codebooks - 1})",
    )
    special_audio = {"data.audio_pad_token_id": config.audio_pad, "data.audio_bos_token_id": config.audio_bos}
    for name, value in special_audio.items():
        require(value < config.audio_vocab, f"'{name}' is {value}; the audio vocabulary is 0..{config.audio_vocab - 1}")
    for name in ("text_pad", "text_new_word", "text_zero"):
        value = getattr(config, name)
        require(value < config.text_vocab, f"'{name}' id is {value}; the text vocabulary is 0..{config.text_vocab - 1}")
    require(config.action_new_word < config.actions, "'data.action_new_word_token_id' is outside the action vocabulary")
    for name, stack in (("decoder", config.decoder), ("depformer", config.depformer)):
        require(stack.head_dim % 2 == 0, f"'model.{name}.gqa_head_dim' is {stack.head_dim}; RoPE needs an even number")
        require(
            stack.query_heads % stack.kv_heads == 0,
            f"'model.{name}': {stack.query_heads} query heads cannot share {stack.kv_heads} KV heads",
        )
    require(
        config.depformer.query_heads == config.depformer.kv_heads,
        "'model.depformer': the published format has as many KV heads as query heads",
    )
    require(
        config.max_context_steps > config.max_delay + 1,
        f"'runtime.max_context_steps' is {config.max_context_steps}; it must exceed the largest delay + 1",
    )
