"""The depth transformer: codebooks 1..C-1 of one frame, one stage after another, given the frame's hidden state."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .layers import GatedMlp, Linear, TextEmbedding, project, rope_table, rotate

Pick = Callable[[int, Tensor], Tensor]  # (codebook, logits [R, codec_vocab]) -> ids [R] to build on


class StageAttention(nn.Module):
    """Attention over the stages so far; projections per weight group, norms shared."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stack = config.depformer
        self.stack = stack
        inner = stack.query_heads * stack.head_dim
        groups = [str(group) for group in sorted(set(config.weights_schedule))]
        self.in_proj = nn.ModuleDict({group: Linear(stack.width, 3 * inner) for group in groups})
        self.out_proj = nn.ModuleDict({group: Linear(inner, stack.width) for group in groups})
        self.q_norm = nn.RMSNorm(stack.head_dim, eps=config.norm_eps)
        self.k_norm = nn.RMSNorm(stack.head_dim, eps=config.norm_eps)

    def forward(self, x: Tensor, group: str, rope: Tensor | None, cache: Tensor, stage: int) -> Tensor:
        """One stage of `x` [R, 1, width]; `cache` [2, R, heads, stages, head_dim] is written at `stage`."""
        rows = x.shape[0]
        qkv = self.in_proj[group](x).view(rows, 3, self.stack.query_heads, self.stack.head_dim)
        q, k, v = qkv.unbind(1)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            cos, sin = rope
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        cache[0, :, :, stage] = k
        cache[1, :, :, stage] = v
        seen = cache[:, :, :, : stage + 1]
        keys, values = seen.flatten(1, 2)  # [R * heads, stages so far, head_dim]
        # Products of their own for each row, for the reason given at `affine`; the scale is 1.
        weights = torch.bmm(q.reshape(-1, 1, self.stack.head_dim), keys.transpose(1, 2)).softmax(-1)
        projected: Tensor = self.out_proj[group](torch.bmm(weights, values).view(rows, 1, -1))
        return projected


class DepformerLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stack = config.depformer
        self.pre_norm = nn.RMSNorm(stack.width, eps=config.norm_eps)
        self.post_norm = nn.RMSNorm(stack.width, eps=config.norm_eps)
        self.self_attention = StageAttention(config)
        self.mlp = GatedMlp(stack.width, stack.hidden, stack.activations)

    def forward(self, x: Tensor, group: str, rope: Tensor | None, cache: Tensor, stage: int) -> Tensor:
        x = x + self.self_attention(self.pre_norm(x), group, rope, cache, stage)
        out: Tensor = x + self.mlp(self.post_norm(x))
        return out


class Depformer(nn.Module):
    """Published as `depformer.*`. Stage s predicts codebook s+1."""

    rope: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stack = config.depformer
        self.config = config
        self.stages = config.codebooks - 1
        groups = [str(group) for group in sorted(set(config.weights_schedule))]
        self.audio_embeds = nn.ModuleList(nn.Embedding(config.audio_vocab, stack.width) for _ in range(self.stages))
        self.text_embed = (
            TextEmbedding(config.text_vocab, stack.width, config.text_pad, None) if config.depformer_text else None
        )
        self.depformer_in = nn.ModuleDict({group: Linear(config.decoder.width, stack.width) for group in groups})
        self.layers = nn.ModuleList(DepformerLayer(config) for _ in range(stack.layers))
        self.norm = nn.RMSNorm(stack.width, eps=config.norm_eps)
        self.logits = nn.ModuleList(Linear(stack.width, config.audio_vocab) for _ in range(self.stages))
        table = rope_table(stack.head_dim, config, max(self.stages, 1)) if config.depformer_rope else None
        self.register_buffer("rope", table, persistent=False)

    def forward(self, hidden: Tensor, text: Tensor, first: Tensor, pick: Pick) -> None:
        """Run all stages for R rows (branches of slots).

        hidden  [R, decoder width]
        text    [R, 2] main and second text id of the *next* column (the one being filled)
        first   [R] id of codebook 0 to build on
        pick    called once per stage with float32 logits over legal codec ids only
        """
        rows, stack = hidden.shape[0], self.config.depformer
        # A frame's own KV: every row is written before it is read.
        cache = hidden.new_empty((stack.layers, 2, rows, stack.query_heads, self.stages, stack.head_dim))
        previous, hidden = first, hidden.unsqueeze(1)
        ropes = [None] * self.stages if self.rope is None else self.rope.to(hidden.dtype)
        for stage, (embed, head, rope) in enumerate(zip(self.audio_embeds, self.logits, ropes, strict=True)):
            group = str(self.config.weights_schedule[stage])
            x = embed(previous.unsqueeze(1))
            if stage == 0 and self.text_embed is not None:
                x = x + self.text_embed(text[:, :1], text[:, 1:])
            x = x + self.depformer_in[group](hidden)
            for index, layer in enumerate(self.layers):
                x = layer(x, group, rope, cache[index], stage)
            # Rows of BOS and PAD are cut off: what is never a candidate can never be sampled.
            weight = cast(Linear, head).weight[: self.config.codec_vocab]
            previous = pick(stage + 1, project(self.norm(x), weight).squeeze(1).float())
