"""The main transformer: reads columns of text and audio ids, gives hidden states, action and codebook-0 logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig, StackConfig
from .layers import GatedMlp, Linear, TextEmbedding, rope_table, rotate

Rope = tuple[Tensor, Tensor]  # cos and sin, [2S, N, 1, head_dim]
Places = tuple[Tensor, Tensor, Tensor]  # an index of the cache's rows, heads and columns


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys, over a cache that the caller owns."""

    def __init__(self, stack: StackConfig, eps: float) -> None:
        super().__init__()
        self.stack = stack
        self.q_proj = Linear(stack.width, stack.query_heads * stack.head_dim)
        self.k_proj = Linear(stack.width, stack.kv_heads * stack.head_dim)
        self.v_proj = Linear(stack.width, stack.kv_heads * stack.head_dim)
        self.o_proj = Linear(stack.query_heads * stack.head_dim, stack.width)
        self.q_norm = nn.RMSNorm(stack.head_dim, eps=eps)
        self.k_norm = nn.RMSNorm(stack.head_dim, eps=eps)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        keys: Tensor,
        values: Tensor,
        slots: Sequence[int],
        places: Places,
        mask: Tensor,
        spans: Sequence[int],
    ) -> Tensor:
        """Attend from `x` [2S, N, width], two rows (guidance branches) of S slots each.

        keys    [2 * all slots, kv_heads, T, head_dim]: this layer's cache (values alike)
        slots   whose part of the cache the rows read
        places  where in it they write
        mask    [2S, 1, N, span]: what each column may see of the cache's first `span` rows, itself included
        spans   for each of the S slots, how many cache rows its columns see at most
        """
        rows, columns, _ = x.shape
        heads = (rows, columns, -1, self.stack.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).view(heads)), *rope)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)), *rope)
        keys[places] = k
        values[places] = self.v_proj(x).view(heads)
        out = attend(q.transpose(1, 2), keys, values, slots, mask, spans)
        projected: Tensor = self.o_proj(out.transpose(1, 2).reshape(rows, columns, -1))
        return projected


def attend(q: Tensor, keys: Tensor, values: Tensor, slots: Sequence[int], mask: Tensor, spans: Sequence[int]) -> Tensor:
    """Scaled dot-product attention at scale 1 of `q` [2S, heads, N, head_dim] over the cache.

    Slot by slot, each over its own cache rows and no more, so that neighbours change nothing in it, for the reason
    given at `affine`.
    """
    parts = []
    for index, (slot, span) in enumerate(zip(slots, spans, strict=True)):
        own, cached = slice(2 * index, 2 * index + 2), slice(2 * slot, 2 * slot + 2)
        parts.append(
            F.scaled_dot_product_attention(
                q[own],
                keys[cached, :, :span],
                values[cached, :, :span],
                attn_mask=mask[own, :, :, :span],
                scale=1.0,
                enable_gqa=q.shape[1] != keys.shape[1],
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Layer(nn.Module):
    def __init__(self, stack: StackConfig, eps: float) -> None:
        super().__init__()
        self.pre_norm = nn.RMSNorm(stack.width, eps=eps)
        self.attn = Attention(stack, eps)
        self.post_norm = nn.RMSNorm(stack.width, eps=eps)
        self.mlp = GatedMlp(stack.width, stack.hidden, stack.activations)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        keys: Tensor,
        values: Tensor,
        slots: Sequence[int],
        places: Places,
        mask: Tensor,
        spans: Sequence[int],
    ) -> Tensor:
        x = x + self.attn(self.pre_norm(x), rope, keys, values, slots, places, mask, spans)
        out: Tensor = x + self.mlp(self.post_norm(x))
        return out


class Transformer(nn.Module):
    """Published as `transformer.*`."""

    rope: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        stack = config.decoder
        self.audio_embeds = nn.ModuleList(
            nn.Embedding(config.audio_vocab, stack.width) for _ in range(config.codebooks)
        )
        self.text_embed = TextEmbedding(config.text_vocab, stack.width, config.text_pad, config.text_low_rank)
        self.layers = nn.ModuleList(Layer(stack, config.norm_eps) for _ in range(stack.layers))
        self.norm = nn.RMSNorm(stack.width, eps=config.norm_eps)
        self.action_head = Linear(stack.width, config.actions)
        self.cb0_head = Linear(stack.width, config.audio_vocab)
        table = rope_table(stack.head_dim, config, config.max_context_steps)
        self.register_buffer("rope", table, persistent=False)

    def forward(
        self,
        columns: Tensor,
        positions: Tensor,
        slots: Sequence[int],
        where: Tensor,
        mask: Tensor,
        spans: Sequence[int],
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """Hidden states [2S, N, width] of two rows (guidance branches) of each of S slots, N columns each.

        columns      [2S, N, 2 + C] ids
        positions    [2S, N] for RoPE, below max_context_steps
        where        [2S, N]: in which cache rows of their slot the columns are kept
        slots, mask, spans  see `Attention`
        keys, values [layers, 2 * all slots, kv_heads, T, head_dim], written in place
        """
        x = self.text_embed(columns[..., 0], columns[..., 1])
        for codebook, embed in enumerate(self.audio_embeds):
            x = x + embed(columns[..., 2 + codebook])
        cos, sin = self.rope[positions].unsqueeze(2).to(x.dtype).unbind(-2)
        row = torch.tensor([2 * slot + branch for slot in slots for branch in (0, 1)], device=x.device)
        head = torch.arange(keys.shape[2], device=x.device)
        places = (row[:, None, None], head, where[:, :, None])
        for index, layer in enumerate(self.layers):
            x = layer(x, (cos, sin), keys[index], values[index], slots, places, mask, spans)
        out: Tensor = self.norm(x)
        return out

    def action_logits(self, hidden: Tensor) -> Tensor:
        """float32 [..., actions]."""
        logits: Tensor = self.action_head(hidden)
        return logits.float()

    def cb0_logits(self, hidden: Tensor) -> Tensor:
        """float32 [..., audio_vocab]; BOS and PAD are in it and must be masked before anything else."""
        logits: Tensor = self.cb0_head(hidden)
        return logits.float()
