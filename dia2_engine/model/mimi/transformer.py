"""The codec's transformer: causal attention over a sliding window, with a ring of keys and values per slot.

Positions grow without bound. A slot's key for position p lies in ring cell p % ring, already rotated by p.
The ring is larger than the window by the positions of one pass, so that writing a pass never overwrites a key
that the pass itself still needs. Angles are computed in float64: RoPE is relative, but in float32 the
rounding of p * frequency alone would shift them by thousandths of a radian after an hour, and more each hour.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import affine
from .config import MimiConfig
from .weights import WeightReader


@dataclass(frozen=True)
class Places:
    """Where the rows of one pass stand: B rows of T positions each."""

    slots: Tensor  # [B]
    cells: Tensor  # [B, T] ring cells to write
    cos: Tensor  # [B, T, 1, head_dim]
    sin: Tensor  # same, negated in the first half
    mask: Tensor  # [B, 1, T, ring], added to the scores


class Layer(nn.Module):
    def __init__(self, weights: WeightReader, config: MimiConfig, index: int) -> None:
        super().__init__()
        key = f"decoder_transformer.layers.{index}"
        width, dim, mlp = config.hidden_size, config.head_dim, config.mlp_size
        self.heads, self.kv_heads, self.dim, self.eps = config.heads, config.kv_heads, dim, config.norm_eps

        def matrix(name: str, inputs: int, outputs: int) -> Tensor:
            return weights.take(f"{key}.{name}.weight", outputs, inputs).t()

        def scale(name: str) -> Tensor:
            return weights.take(f"{key}.{name}.scale", width)

        query = matrix("self_attn.q_proj", width, self.heads * dim) * dim**-0.5  # the scores' scale
        keys = matrix("self_attn.k_proj", width, self.kv_heads * dim)
        values = matrix("self_attn.v_proj", width, self.kv_heads * dim)
        self.qkv = nn.Buffer(torch.cat((query, keys, values), dim=1))
        # The layer scales multiply the outputs of these two matrices: folded in.
        output = matrix("self_attn.o_proj", self.heads * dim, width) * scale("self_attn_layer_scale")
        down = matrix("mlp.fc2", mlp, width) * scale("mlp_layer_scale")
        self.output = nn.Buffer(output.contiguous())
        self.up = nn.Buffer(matrix("mlp.fc1", width, mlp).contiguous())
        self.down = nn.Buffer(down.contiguous())
        self.norm1 = nn.Buffer(weights.take(f"{key}.input_layernorm.weight", width))
        self.norm1_bias = nn.Buffer(weights.take(f"{key}.input_layernorm.bias", width))
        self.norm2 = nn.Buffer(weights.take(f"{key}.post_attention_layernorm.weight", width))
        self.norm2_bias = nn.Buffer(weights.take(f"{key}.post_attention_layernorm.bias", width))

    def forward(self, x: Tensor, ring: Tensor, at: Places) -> Tensor:
        """x [B, T, width]; ring [2, slots, kv_heads, ring, head_dim] is written in place."""
        normed = F.layer_norm(x, x.shape[-1:], self.norm1, self.norm1_bias, self.eps)
        x = x + affine(self._attend(normed, ring, at), self.output)
        normed = F.layer_norm(x, x.shape[-1:], self.norm2, self.norm2_bias, self.eps)
        return affine(F.gelu(affine(normed, self.up)), self.down).add_(x)

    def _attend(self, x: Tensor, ring: Tensor, at: Places) -> Tensor:
        batch, steps, _ = x.shape
        kv_heads, group = self.kv_heads, self.heads // self.kv_heads
        qkv = affine(x, self.qkv).view(batch, steps, self.heads + 2 * kv_heads, self.dim)
        turning, values = torch.split(qkv, [self.heads + kv_heads, kv_heads], dim=2)
        turned = torch.addcmul(turning * at.cos, turning.roll(self.dim // 2, dims=-1), at.sin)
        queries, keys = torch.split(turned, [self.heads, kv_heads], dim=2)

        written = torch.stack((keys, values), dim=2)  # [B, T, 2, kv_heads, head_dim]
        ring.permute(1, 3, 0, 2, 4).index_put_((at.slots[:, None], at.cells), written)
        keys, values = ring.index_select(1, at.slots).flatten(1, 2).unbind()  # [B * kv_heads, ring, head_dim]

        # Plain products, one per row and head, and not the fused attention: on the CPU that one's rounding
        # depends on the batch (see `affine`). The query heads of a group are queries of one key head.
        queries = queries.reshape(batch, steps, kv_heads, group, self.dim).permute(0, 2, 3, 1, 4)
        queries = queries.reshape(batch * kv_heads, group * steps, self.dim)
        scores = torch.bmm(queries, keys.transpose(1, 2)).view(batch, self.heads, steps, -1)
        weights = F.softmax(scores.add_(at.mask), dim=-1)
        attended = torch.bmm(weights.view(batch * kv_heads, group * steps, -1), values)
        return attended.view(batch, self.heads, steps, self.dim).transpose(1, 2).reshape(batch, steps, -1)


class SlidingTransformer(nn.Module):
    """[B, T, hidden] -> the same, T at most `pass_positions`."""

    def __init__(self, weights: WeightReader, config: MimiConfig, *, pass_positions: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(weights, config, index) for index in range(config.layers))
        self.window = config.window
        ring = config.window - 1 + pass_positions
        self.ring_shape = (config.kv_heads, ring, config.head_dim)  # of a slot's keys, and of its values
        powers = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        # float32 first, as in the published model, whose frequencies are rounded to float32.
        self.frequencies = nn.Buffer((1.0 / config.rope_theta**powers).double())
        self.cells = nn.Buffer(torch.arange(ring))

    def forward(self, x: Tensor, rings: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """rings [layers, 2, slots, *ring_shape]; slots [B]; positions [B]: how many each row has behind it."""
        at = self._places(x, slots, positions)
        for layer, ring in zip(self.layers, rings, strict=True):
            x = layer(x, ring, at)
        return x

    def _places(self, x: Tensor, slots: Tensor, positions: Tensor) -> Places:
        now = positions[:, None] + self.cells[: x.shape[1]]  # [B, T]
        size = self.cells.shape[0]
        angles = now.unsqueeze(-1) * self.frequencies  # [B, T, head_dim / 2]
        cos, sin = angles.cos(), angles.sin()
        newest = now[:, -1:]
        held = newest - (newest - self.cells) % size  # [B, ring] position that each cell holds
        behind = now[:, :, None] - held[:, None]  # [B, T, ring]
        hidden = (behind < 0) | (behind >= self.window) | (held < 0)[:, None]
        mask = torch.zeros(hidden.shape, dtype=x.dtype, device=x.device).masked_fill_(hidden, float("-inf"))
        return Places(
            slots=slots,
            cells=now % size,
            cos=torch.cat((cos, cos), dim=-1).to(x.dtype)[:, :, None],
            sin=torch.cat((-sin, sin), dim=-1).to(x.dtype)[:, :, None],
            mask=mask[:, None],
        )
