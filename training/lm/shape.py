"""The model's shape, and its `config.json` in the published format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SPECIAL_TOKENS = ("<unk>", "<s>", "<new_word>", "<pad>", "</s>", "<r5>", "<r6>", "<zero>")  # ids 0 to 7
SPEAKER_TAGS = ("[S1]", "[S2]")  # the last ids
FRAME_RATE = 12.5


@dataclass(frozen=True)
class Stack:
    """One transformer stack."""

    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    head: int = 64

    def config(self) -> dict[str, int]:
        return {
            "n_layer": self.layers,
            "n_embd": self.width,
            "n_hidden": self.mlp,
            "gqa_query_heads": self.heads,
            "kv_heads": self.kv_heads,
            "gqa_head_dim": self.head,
        }


@dataclass(frozen=True)
class Shape:
    """The default has 13.1 M parameters, 13.3 MB in 8 bits: a core of a CPU speaks with it faster than one listens.

    A CPU spends more on a layer than on its width, so the layers are few and wide, and the last two of the codec's
    eight codebooks are left out: each costs another pass of the depformer, and speech is understood as well without.
    """

    decoder: Stack = Stack(layers=4, width=384, mlp=1024, heads=6, kv_heads=2)
    depformer: Stack = Stack(layers=1, width=192, mlp=512, heads=3, kv_heads=3)
    groups: tuple[int, ...] = (0, 1, 2, 3, 4)  # of weights, for each codebook but the first
    codebook_size: int = 1024
    delays: tuple[int, ...] = (16, 18, 18, 18, 18, 18)  # of each codebook
    steps: int = 640  # of context: 51 s
    padding: int = 10  # longest wait between words; with 6, text often runs ahead of long words, such as numbers

    def config(self, text_vocab: int) -> dict[str, Any]:
        """`config.json`, for a tokenizer of that size."""
        return {
            "data": {
                "channels": len(self.delays) + 2,
                "text_vocab_size": text_vocab,
                "audio_vocab_size": self.codebook_size + 2,
                "action_vocab_size": 2,
                "text_pad_token_id": SPECIAL_TOKENS.index("<pad>"),
                "text_new_word_token_id": SPECIAL_TOKENS.index("<new_word>"),
                "text_zero_token_id": SPECIAL_TOKENS.index("<zero>"),
                "audio_pad_token_id": self.codebook_size + 1,
                "audio_bos_token_id": self.codebook_size,
                "action_pad_token_id": 0,
                "action_new_word_token_id": 1,
                "delay_pattern": list(self.delays),
                "second_stream_ahead": 2,
            },
            "model": {
                "decoder": self.decoder.config(),
                "depformer": {**self.depformer.config(), "apply_rope": True, "text_embedding": False},
                "dropout": 0.0,
                "rope_min_timescale": 1,
                "rope_max_timescale": 10000,
                "normalization_layer_epsilon": 1e-6,
            },
            "runtime": {
                "weights_schedule": list(self.groups),
                "max_context_steps": self.steps,
                "max_padding_steps": self.padding,
            },
        }
