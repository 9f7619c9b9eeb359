"""The model for training, whole rows at once. Its `state_dict` is the published layout, name by name."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dia2_engine.model.config import ModelConfig, StackConfig
from dia2_engine.model.layers import rope_table, rotate


class Linear(nn.Linear):
    """At first it keeps its input's scale, times `gain`."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__(inputs, outputs, bias=False)
        nn.init.normal_(self.weight, std=gain * inputs**-0.5)


def _norm(width: int, config: ModelConfig, gain: float = 1.0) -> nn.RMSNorm:
    norm = nn.RMSNorm(width, eps=config.norm_eps)
    nn.init.constant_(norm.weight, gain)
    return norm


def _embedding(entries: int, width: int, summands: int) -> nn.Embedding:
    """One of several that are added up."""
    embedding = nn.Embedding(entries, width)
    nn.init.normal_(embedding.weight, std=summands**-0.5)
    return embedding


class Heads(nn.Module):
    """Attention at scale 1 of normalised queries and keys, causal, [..., T, heads, head] each."""

    def __init__(self, stack: StackConfig, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.q_norm = _norm(stack.head_dim, config, stack.head_dim**-0.25)
        self.k_norm = _norm(stack.head_dim, config, stack.head_dim**-0.25)
        self.dropout = dropout

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rope: Tensor | None) -> Tensor:
        """[B, T, query heads * head]; `rope` [T, 1, 2, head]."""
        q, k = self.q_norm(q.float()), self.k_norm(k.float())
        if rope is not None:
            cos, sin = rope.unbind(-2)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        attended = F.scaled_dot_product_attention(
            q.to(v.dtype).transpose(1, 2),
            k.to(v.dtype).transpose(1, 2),
            v.transpose(1, 2),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
            scale=1.0,
            enable_gqa=q.shape[2] != k.shape[2],
        )
        return attended.transpose(1, 2).flatten(2)


class Attention(Heads):
    def __init__(self, config: ModelConfig, dropout: float) -> None:
        stack = config.decoder
        super().__init__(stack, config, dropout)
        inner, shared = stack.query_heads * stack.head_dim, stack.kv_heads * stack.head_dim
        self.q_proj = Linear(stack.width, inner)
        self.k_proj = Linear(stack.width, shared)
        self.v_proj = Linear(stack.width, shared)
        self.o_proj = Linear(inner, stack.width, (2 * stack.layers) ** -0.5)
        self.head = stack.head_dim

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        heads = (*x.shape[:2], -1, self.head)
        q, k, v = (part(x).view(heads) for part in (self.q_proj, self.k_proj, self.v_proj))
        output: Tensor = self.o_proj(self.attend(q, k, v, rope))
        return output


class StageAttention(Heads):
    """Over the stages of one frame; projections by weight group."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        stack = config.depformer
        super().__init__(stack, config, dropout)
        inner, groups = stack.query_heads * stack.head_dim, set(config.weights_schedule)
        self.in_proj = nn.ModuleDict({str(g): Linear(stack.width, 3 * inner) for g in sorted(groups)})
        gain = (2 * stack.layers) ** -0.5
        self.out_proj = nn.ModuleDict({str(g): Linear(inner, stack.width, gain) for g in sorted(groups)})
        self.spans, self.head = _spans(config), stack.head_dim

    def forward(self, x: Tensor, rope: Tensor | None) -> Tensor:
        """x [stages, N, width]."""
        qkv = torch.cat([self.in_proj[group](x[begin:end]) for group, begin, end in self.spans])
        qkv = qkv.view(*qkv.shape[:2], 3, -1, self.head)
        q, k, v = qkv.transpose(0, 1).unbind(2)  # [N, stages, heads, head]
        attended = self.attend(q, k, v, rope).transpose(0, 1)
        return torch.cat([self.out_proj[group](attended[begin:end]) for group, begin, end in self.spans])


def _spans(config: ModelConfig) -> list[tuple[str, int, int]]:
    """Neighbouring stages of one weight group: its name, their begin and end."""
    spans, begin = [], 0
    for group, stages in groupby(config.weights_schedule):
        end = begin + len(list(stages))
        spans.append((str(group), begin, end))
        begin = end
    return spans


class Mlp(nn.Module):
    def __init__(self, stack: StackConfig) -> None:
        super().__init__()
        self.wi = Linear(stack.width, 2 * stack.hidden)
        self.wo = Linear(stack.hidden, stack.width, (2 * stack.layers) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.wi(x).chunk(2, dim=-1)
        output: Tensor = self.wo(F.silu(gate) * up)
        return output


class Block(nn.Module):
    """Attention and MLP, each behind a norm, added to what comes in."""

    def __init__(self, stack: StackConfig, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.pre_norm, self.post_norm = _norm(stack.width, config), _norm(stack.width, config)
        self.mlp = Mlp(stack)
        self.dropout = nn.Dropout(dropout)

    def add(self, attention: nn.Module, x: Tensor, rope: Tensor | None) -> Tensor:
        x = x + self.dropout(attention(self.pre_norm(x), rope))
        output: Tensor = x + self.dropout(self.mlp(self.post_norm(x)))
        return output


class Layer(Block):
    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__(config.decoder, config, dropout)
        self.attn = Attention(config, dropout)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        return self.add(self.attn, x, rope)


class DepformerLayer(Block):
    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__(config.depformer, config, dropout)
        self.self_attention = StageAttention(config, dropout)

    def forward(self, x: Tensor, rope: Tensor | None) -> Tensor:
        return self.add(self.self_attention, x, rope)


class TextEmbedding(nn.Module):
    """Sum of both streams; a PAD in the second one adds nothing."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.decoder.width
        self.embedding = _embedding(config.text_vocab, width, 1)
        self.main_proj = Linear(width, width, 0.5)
        self.second_proj = Linear(width, width, 0.5)
        self.pad = config.text_pad

    def forward(self, text: Tensor) -> Tensor:
        """text [B, T, 2]."""
        main, second = self.embedding(text).unbind(2)
        seen = (text[..., 1:] != self.pad).to(second.dtype)
        total: Tensor = self.main_proj(main) + seen * self.second_proj(second)
        return total


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        width = config.decoder.width
        self.audio_embeds = nn.ModuleList(
            _embedding(config.audio_vocab, width, config.codebooks) for _ in range(config.codebooks)
        )
        self.text_embed = TextEmbedding(config)
        self.layers = nn.ModuleList(Layer(config, dropout) for _ in range(config.decoder.layers))
        self.norm = _norm(width, config)
        self.action_head = Linear(width, config.actions, 0.1)
        self.cb0_head = Linear(width, config.audio_vocab, 0.1)
        rope = rope_table(config.decoder.head_dim, config, config.max_context_steps).unsqueeze(1)
        self.register_buffer("rope", rope, persistent=False)

    def forward(self, columns: Tensor) -> Tensor:
        """Hidden states [B, T, width] of columns [B, T, 2 + C]."""
        x = self.text_embed(columns[..., :2])
        for codebook, embed in enumerate(self.audio_embeds):
            x = x + embed(columns[..., 2 + codebook])
        rope = cast(Tensor, self.rope)[: columns.shape[1]]
        for layer in self.layers:
            x = layer(x, rope)
        hidden: Tensor = self.norm(x)
        return hidden


class Depformer(nn.Module):
    """Stage s makes codebook s + 1 of a column, from the hidden state before it and its codebooks up to s."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        stack, stages = config.depformer, config.codebooks - 1
        self.audio_embeds = nn.ModuleList(_embedding(config.audio_vocab, stack.width, 2) for _ in range(stages))
        groups = sorted(set(config.weights_schedule))
        self.depformer_in = nn.ModuleDict({str(g): Linear(config.decoder.width, stack.width) for g in groups})
        self.layers = nn.ModuleList(DepformerLayer(config, dropout) for _ in range(stack.layers))
        self.norm = _norm(stack.width, config)
        self.logits = nn.ModuleList(Linear(stack.width, config.audio_vocab, 0.1) for _ in range(stages))
        self.spans = _spans(config)
        rope = rope_table(stack.head_dim, config, stages).unsqueeze(1) if config.depformer_rope else None
        self.register_buffer("rope", rope, persistent=False)

    def forward(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Logits [stages, N, audio vocabulary] of N columns: hidden [N, width], codes [N, stages] to build on."""
        x = torch.stack([embed(codes[:, stage]) for stage, embed in enumerate(self.audio_embeds)])
        inputs = [self.depformer_in[group](hidden).expand(end - begin, -1, -1) for group, begin, end in self.spans]
        x = x + torch.cat(inputs)
        for layer in self.layers:
            x = layer(x, self.rope)
        x = self.norm(x)
        return torch.stack([head(x[stage]) for stage, head in enumerate(self.logits)])


class Logits(NamedTuple):
    """float32, over what may be sampled: BOS and PAD are cut off, as the engine does it."""

    action: Tensor  # [B, T, actions]
    first: Tensor  # [B, T, codec vocabulary] codebook 0
    others: Tensor  # [C - 1, N, codec vocabulary] the other codebooks, of N frames


class LanguageModel(nn.Module):
    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        if config.text_low_rank or config.depformer_text:
            raise ValueError("the text embedding must be of full rank, and the depformer without one")
        self.config = config
        self.transformer = Transformer(config, dropout)
        self.depformer = Depformer(config, dropout)

    def forward(self, columns: Tensor, following: Tensor, frames: Tensor) -> Logits:
        """What step t makes of columns up to t.

        columns    [B, T, 2 + C]
        following  [B, T, C] audio of column t + 1, for the depformer to build on
        frames     [N] which of the B * T steps pass the depformer
        """
        hidden = self.transformer(columns)
        codes = following.flatten(0, 1)[frames, :-1]
        others = self.depformer(hidden.flatten(0, 1)[frames], codes)
        legal = self.config.codec_vocab
        return Logits(
            self.transformer.action_head(hidden).float(),
            self.transformer.cb0_head(hidden)[..., :legal].float(),
            others[..., :legal].float(),
        )
