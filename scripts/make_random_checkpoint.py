#!/usr/bin/env python3
"""Write a random checkpoint in the published Dia2 format: the model, its tokenizer and its Mimi codec.

    python scripts/make_random_checkpoint.py build/small          # 14 MB, real time on two CPU cores
    python scripts/make_random_checkpoint.py build/2b --shape 2b  # the shape of Dia2-2B, 7.7 GB (bfloat16: 3.8)

The weights are random, so it makes NOISE, NOT SPEECH. The 2b shape lets the real model's speed be measured without its
weights; the small one lets the path around a model be tested. Whatever is not a width is as published in both: the
delays, the special ids, the look-ahead, the weight groups, the context.

The same arguments give the same bytes everywhere: each tensor is drawn from its own generator, seeded by
the tensor's name, and streamed to disk, so that even the 2b shape needs little memory. The scales are chosen
so that activations stay near one, both actions are likely (words spread, generations end), and the codec's
output is audible noise that does not clip.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Config = dict[str, Any]

SEED = 2
CHUNK_VALUES = 1 << 24  # even, since one raw draw gives two values
DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}

AUDIO_LOGIT_STD = 2.0  # spread of the audio logits: top-k sampling then varies, but follows its input
ACTION_LOGIT_STD = 0.5  # small: both actions stay likely
CODEC_GAIN = 0.1  # scale of the codec's last convolution; gives an RMS of 0.05 to 0.1
ENCODER_GAIN = 8.0  # speech has an RMS near 0.1: brings the encoder's activations near one

SPECIAL_TOKENS = ("<unk>", "<s>", "<new_word>", "<pad>", "</s>", "<r5>", "<r6>", "<zero>")  # ids 0 to 7
MERGES = [
    *(
        "t h",
        "th e",
        "i n",
        "in g",
        "a n",
        "an d",
        "e r",
        "o u",
        "o n",
        "r e",
        "a t",
        "e n",
        "y ou",
        "l l",
        "s t",
    ),
    *(
        "i s",
        "i t",
        "o r",
        "a r",
        "e s",
        "e d",
        "h e",
        "he ll",
        "hell o",
        "th at",
        "th is",
        "w i",
        "wi th",
        "f or",
    ),
    *("c an", "h a", "ha v", "hav e", "w or", "wor l", "worl d", "Ġ the", "Ġ a", "Ġ you", "Ġ hello"),
]


def dia2_config(
    *, codebooks: int, groups: list[int], text_vocab: int, decoder: list[int], depformer: list[int]
) -> Config:
    """config.json; `decoder`, `depformer`: layers, width, MLP width, query heads, KV heads, head width."""
    sizes = ("n_layer", "n_embd", "n_hidden", "gqa_query_heads", "kv_heads", "gqa_head_dim")
    return {
        "data": {
            "channels": codebooks + 2,
            "text_vocab_size": text_vocab,
            "audio_vocab_size": 2050,
            "action_vocab_size": 2,
            "text_pad_token_id": SPECIAL_TOKENS.index("<pad>"),
            "text_new_word_token_id": SPECIAL_TOKENS.index("<new_word>"),
            "text_zero_token_id": SPECIAL_TOKENS.index("<zero>"),
            "audio_pad_token_id": 2049,
            "audio_bos_token_id": 2048,
            "action_pad_token_id": 0,
            "action_new_word_token_id": 1,
            "delay_pattern": [16] + [18] * (codebooks - 1),
            "first_word_min_start": 3,
            "max_pad": 8,
            "second_stream_ahead": 2,
        },
        "model": {
            "decoder": dict(zip(sizes, decoder, strict=True)),
            "depformer": {
                **dict(zip(sizes, depformer, strict=True)),
                "apply_rope": True,
                "text_embedding": False,
            },
            "dropout": 0.0,
            "rope_min_timescale": 1,
            "rope_max_timescale": 10000,
            "normalization_layer_epsilon": 1e-6,
        },
        "runtime": {"weights_schedule": groups, "max_context_steps": 1500},
    }


def mimi_config(*, codebooks: int, hidden: int, layers: int, heads: int, filters: int, code: int) -> Config:
    """mimi/config.json; `code` is the width of a codebook entry."""
    return {
        "architectures": ["MimiModel"],
        "model_type": "mimi",
        "dtype": "float32",
        "sampling_rate": 24000,
        "audio_channels": 1,
        "hidden_size": hidden,
        "num_filters": filters,
        "num_residual_layers": 1,
        "upsampling_ratios": [8, 6, 5, 4],
        "kernel_size": 7,
        "last_kernel_size": 3,
        "residual_kernel_size": 3,
        "dilation_growth_rate": 2,
        "use_causal_conv": True,
        "pad_mode": "constant",
        "compress": 2,
        "trim_right_ratio": 1.0,
        "codebook_size": 2048,
        "codebook_dim": code,
        "num_quantizers": codebooks,
        "num_semantic_quantizers": 1,
        "use_conv_shortcut": False,
        "vector_quantization_hidden_dimension": code,
        "upsample_groups": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "hidden_act": "gelu",
        "max_position_embeddings": 8000,
        "norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "sliding_window": 250,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "layer_scale_initial_scale": 0.01,
        "use_cache": False,
    }


def shape_configs(shape: str) -> tuple[Config, Config, int]:
    """The Dia2 config, the Mimi config and the id of `[S1]` for a shape, `small` or `2b`."""
    if shape == "2b":
        dia2 = dia2_config(
            codebooks=32,
            groups=[0, 1, 2, 2, 2, 2, 2, 2] + [3] * 8 + [4] * 15,
            text_vocab=49280,
            decoder=[28, 2048, 6144, 16, 8, 128],
            depformer=[4, 1024, 3072, 8, 8, 128],
        )
        return dia2, mimi_config(codebooks=32, hidden=512, layers=8, heads=8, filters=64, code=256), 49152
    dia2 = dia2_config(
        codebooks=8,
        groups=[0, 1, 2, 2, 3, 3, 4],
        text_vocab=384,
        decoder=[4, 64, 192, 4, 2, 16],
        depformer=[2, 32, 96, 2, 2, 16],
    )
    return dia2, mimi_config(codebooks=8, hidden=64, layers=2, heads=4, filters=8, code=32), 352


@dataclass(frozen=True)
class Weights:
    """One tensor: `mean`, plus uniform noise of standard deviation `std`."""

    shape: tuple[int, ...]
    std: float = 0.0
    mean: float = 0.0


def linear(outputs: int, inputs: int, gain: float = 1.0) -> Weights:
    """A matrix that keeps its input's scale, times `gain`."""
    return Weights((outputs, inputs), std=gain / math.sqrt(inputs))


def dia2_tensors(config: Config) -> dict[str, Weights]:
    """Every tensor of model.safetensors, by its published name."""
    data, main, depth = config["data"], config["model"]["decoder"], config["model"]["depformer"]
    codebooks, audio_vocab = data["channels"] - 2, data["audio_vocab_size"]
    groups = sorted(set(config["runtime"]["weights_schedule"]))
    width, heads, kv, head = main["n_embd"], main["gqa_query_heads"], main["kv_heads"], main["gqa_head_dim"]
    embed_std = 1 / math.sqrt(data["channels"])  # one embedding per channel is added up
    tensors: dict[str, Weights] = {}

    def add_layer(name: str, sizes: Config) -> None:
        tensors[f"{name}.pre_norm.weight"] = Weights((sizes["n_embd"],), mean=1.0)
        tensors[f"{name}.post_norm.weight"] = Weights((sizes["n_embd"],), mean=1.0)
        tensors[f"{name}.mlp.wi.weight"] = linear(2 * sizes["n_hidden"], sizes["n_embd"])
        tensors[f"{name}.mlp.wo.weight"] = linear(sizes["n_embd"], sizes["n_hidden"])

    def head_norm(size: int) -> Weights:
        return Weights((size,), mean=size**-0.25)  # attention is not scaled: keeps its logits near one

    for codebook in range(codebooks):
        tensors[f"transformer.audio_embeds.{codebook}.weight"] = Weights((audio_vocab, width), embed_std)
    tensors["transformer.text_embed.embedding.weight"] = Weights((data["text_vocab_size"], width), embed_std)
    tensors["transformer.text_embed.main_proj.weight"] = linear(width, width)
    tensors["transformer.text_embed.second_proj.weight"] = linear(width, width)
    for layer in range(main["n_layer"]):
        name = f"transformer.layers.{layer}"
        add_layer(name, main)
        tensors[f"{name}.attn.q_proj.weight"] = linear(heads * head, width)
        tensors[f"{name}.attn.k_proj.weight"] = linear(kv * head, width)
        tensors[f"{name}.attn.v_proj.weight"] = linear(kv * head, width)
        tensors[f"{name}.attn.o_proj.weight"] = linear(width, heads * head)
        tensors[f"{name}.attn.q_norm.weight"] = head_norm(head)
        tensors[f"{name}.attn.k_norm.weight"] = head_norm(head)
    tensors["transformer.norm.weight"] = Weights((width,), mean=1.0)
    tensors["transformer.action_head.weight"] = linear(data["action_vocab_size"], width, ACTION_LOGIT_STD)
    tensors["transformer.cb0_head.weight"] = linear(audio_vocab, width, AUDIO_LOGIT_STD)

    heads, head = depth["gqa_query_heads"], depth["gqa_head_dim"]
    for stage in range(codebooks - 1):
        tensors[f"depformer.audio_embeds.{stage}.weight"] = Weights((audio_vocab, depth["n_embd"]), 1.0)
        tensors[f"depformer.logits.{stage}.weight"] = linear(audio_vocab, depth["n_embd"], AUDIO_LOGIT_STD)
    for group in groups:
        tensors[f"depformer.depformer_in.{group}.weight"] = linear(depth["n_embd"], width)
    for layer in range(depth["n_layer"]):
        name = f"depformer.layers.{layer}"
        add_layer(name, depth)
        for group in groups:
            attention = f"{name}.self_attention"
            tensors[f"{attention}.in_proj.{group}.weight"] = linear(3 * heads * head, depth["n_embd"])
            tensors[f"{attention}.out_proj.{group}.weight"] = linear(depth["n_embd"], heads * head)
        tensors[f"{name}.self_attention.q_norm.weight"] = head_norm(head)
        tensors[f"{name}.self_attention.k_norm.weight"] = head_norm(head)
    tensors["depformer.norm.weight"] = Weights((depth["n_embd"],), mean=1.0)
    return tensors


def mimi_tensors(config: Config) -> dict[str, Weights]:
    """Every tensor of mimi/model.safetensors, by its published name."""
    hidden, filters, code = config["hidden_size"], config["num_filters"], config["codebook_dim"]
    ratios: list[int] = config["upsampling_ratios"]
    tensors: dict[str, Weights] = {}

    def conv(name: str, outputs: int, inputs: int, kernel: int, gain: float = 1.0) -> None:
        tensors[f"{name}.conv.weight"] = Weights((outputs, inputs, kernel), gain / math.sqrt(inputs * kernel))
        tensors[f"{name}.conv.bias"] = Weights((outputs,), std=0.02 * gain)

    def upsampling(name: str, outputs: int, inputs: int, stride: int) -> None:
        # A transposed convolution: two of the 2 * stride taps meet in each output sample.
        tensors[f"{name}.conv.weight"] = Weights((inputs, outputs, 2 * stride), 1 / math.sqrt(2 * inputs))
        tensors[f"{name}.conv.bias"] = Weights((outputs,), std=0.02)

    def residual(name: str, channels: int) -> None:
        narrow = channels // config["compress"]
        conv(f"{name}.block.1", narrow, channels, config["residual_kernel_size"])
        conv(f"{name}.block.3", channels, narrow, 1)

    channels = filters
    conv("encoder.layers.0", channels, 1, config["kernel_size"], ENCODER_GAIN)
    for index, ratio in enumerate(reversed(ratios)):
        residual(f"encoder.layers.{3 * index + 1}", channels)
        conv(f"encoder.layers.{3 * index + 3}", 2 * channels, channels, 2 * ratio)
        channels *= 2
    conv(f"encoder.layers.{3 * len(ratios) + 2}", hidden, channels, config["last_kernel_size"])
    tensors["downsample.conv.weight"] = Weights((hidden, hidden, 4), 1 / math.sqrt(4 * hidden))

    per_group = hidden // config["upsample_groups"]
    tensors["upsample.conv.weight"] = Weights((hidden, per_group, 4), math.sqrt(0.5 / per_group))
    conv("decoder.layers.0", channels, hidden, config["kernel_size"])
    for index, ratio in enumerate(ratios):
        upsampling(f"decoder.layers.{3 * index + 2}", channels // 2, channels, ratio)
        channels //= 2
        residual(f"decoder.layers.{3 * index + 3}", channels)
    conv(f"decoder.layers.{3 * len(ratios) + 2}", 1, channels, config["last_kernel_size"], CODEC_GAIN)

    inner = config["num_attention_heads"] * config["head_dim"]
    for half in ("encoder_transformer", "decoder_transformer"):
        for layer in range(config["num_hidden_layers"]):
            name = f"{half}.layers.{layer}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{name}.{norm}.weight"] = Weights((hidden,), mean=1.0)
                tensors[f"{name}.{norm}.bias"] = Weights((hidden,))
            for projection in ("q_proj", "k_proj", "v_proj"):
                tensors[f"{name}.self_attn.{projection}.weight"] = linear(inner, hidden)
            tensors[f"{name}.self_attn.o_proj.weight"] = linear(hidden, inner)
            tensors[f"{name}.mlp.fc1.weight"] = linear(config["intermediate_size"], hidden)
            tensors[f"{name}.mlp.fc2.weight"] = linear(hidden, config["intermediate_size"])
            for scale in ("self_attn_layer_scale", "mlp_layer_scale"):
                tensors[f"{name}.{scale}.scale"] = Weights((hidden,), mean=0.3)

    semantic = config["num_semantic_quantizers"]
    for kind, layers in (("semantic", semantic), ("acoustic", config["num_quantizers"] - semantic)):
        name = f"quantizer.{kind}_residual_vector_quantizer"
        tensors[f"{name}.input_proj.weight"] = Weights((code, hidden, 1), 1 / math.sqrt(hidden))
        tensors[f"{name}.output_proj.weight"] = Weights((hidden, code, 1), 0.5 / math.sqrt(code))
        for layer in range(layers):
            book = f"{name}.layers.{layer}.codebook"
            tensors[f"{book}.embed_sum"] = Weights((config["codebook_size"], code), 0.9**layer)
            tensors[f"{book}.cluster_usage"] = Weights((config["codebook_size"],), mean=1.0)
            tensors[f"{book}.initialized"] = Weights((1,), mean=1.0)
    return tensors


def draw(name: str, weights: Weights, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """The tensor's values in order, in chunks, from raw generator output, which numpy never changes."""
    bits = np.random.PCG64([seed, zlib.crc32(name.encode())])
    scale = np.float32(weights.std * math.sqrt(3) / 2**31)
    left = math.prod(weights.shape)
    while left:
        count = min(left, CHUNK_VALUES)
        left -= count
        integers = np.asarray(bits.random_raw((count + 1) // 2)).view(np.int32)[:count]
        yield integers.astype(np.float32) * scale + np.float32(weights.mean)


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to the nearest bfloat16, as its 16 bits (numpy has no such type)."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: dict[str, Weights], *, seed: int, dtype: str = "float32") -> None:
    """Stream the tensors to `path`; peak memory is a few chunks, whatever the size of the file."""
    code, value_bytes = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weights in sorted(tensors.items()):
        start, end = end, end + value_bytes * math.prod(weights.shape)
        header[name] = {"dtype": code, "shape": list(weights.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, weights in sorted(tensors.items()):
            for values in draw(name, weights, seed):
                file.write((to_bfloat16(values) if dtype == "bfloat16" else values).tobytes())


def write_tokenizer(folder: Path, speaker_1_id: int) -> None:
    """A byte-level BPE with the published special ids; unused ids fill the room below `[S1]`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL_TOKENS, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]
    words += [f"<unused{index}>" for index in range(len(words), speaker_1_id)]
    vocab = {word: index for index, word in enumerate(words)}
    if len(vocab) != speaker_1_id:
        raise ValueError(f"the base vocabulary has {len(vocab)} words, not {speaker_1_id}")
    merges = [(left, right) for left, right in (merge.split(" ") for merge in MERGES)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=SPECIAL_TOKENS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = (*SPECIAL_TOKENS, "[S1]", "[S2]")
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "extra_special_tokens": ["[S1]", "[S2]"],
        },
    )


def write_json(path: Path, value: Config) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def build(out: Path, *, shape: str = "small", dtype: str = "float32", seed: int = SEED) -> None:
    """Write the checkpoint to `out`, whole or not at all; a folder already there is replaced."""
    dia2, mimi, speaker_1_id = shape_configs(shape)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        folder = Path(scratch, "checkpoint")  # made here, for the usual permissions
        (folder / "mimi").mkdir(parents=True)
        write_json(folder / "config.json", dia2)
        write_json(folder / "mimi" / "config.json", mimi)
        write_tokenizer(folder, speaker_1_id)
        write_safetensors(folder / "mimi" / "model.safetensors", mimi_tensors(mimi), seed=seed)
        write_safetensors(folder / "model.safetensors", dia2_tensors(dia2), seed=seed, dtype=dtype)
        if out.exists():
            os.replace(out, Path(scratch, "old"))  # deleted with the scratch folder
        os.replace(folder, out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write a random Dia2 checkpoint: noise, not speech.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--shape", choices=("small", "2b"), default="small")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of the model on disk")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--force", action="store_true", help="replace OUT_DIR if it exists")
    args = parser.parse_args(argv)
    if args.out.exists() and not args.force:
        print(f"{args.out} exists already; --force replaces it")
        return 0 if (args.out / "config.json").is_file() else 1
    if args.force and args.out.exists() and not (args.out / "config.json").is_file():
        parser.error(f"{args.out} is not a checkpoint folder; not replacing it")
    build(args.out, shape=args.shape, dtype=args.dtype, seed=args.seed)
    size_mb = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file()) / 1e6
    print(f"{args.out}: random weights, {size_mb:.1f} MB. It makes NOISE, NOT SPEECH.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
