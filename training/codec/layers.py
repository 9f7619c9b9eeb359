"""The codec's layers for training, whole crops at once. Names and shapes of the weights are the published ones.

Signals are [B, C, 1, T], so that convolutions are two-dimensional: those have fast kernels for channels-last memory.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FIRST_LOUDNESS = 0.05  # about that of speech


class Weights(nn.Module):
    """The parameters of one convolution, at first of unit gain, so that latents differ enough to be quantised."""

    def __init__(self, shape: tuple[int, int, int], fan_in: int, bias: int = 0) -> None:
        super().__init__()
        bound = math.sqrt(3 / fan_in)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(bias)) if bias else None


class Conv(nn.Module):
    """Causal: [B, in, 1, T] -> [B, out, 1, T / stride]; the past is zeros, or the first sample repeated."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, bias: bool = True, replicate: bool = False
    ) -> None:
        super().__init__()
        self.conv = Weights((outputs, inputs, kernel), inputs * kernel, outputs if bias else 0)
        self.stride, self.past, self.replicate = stride, kernel - stride, replicate

    def forward(self, x: Tensor) -> Tensor:
        if self.past:
            x = F.pad(x, (self.past, 0, 0, 0), mode="replicate" if self.replicate else "constant")
        return F.conv2d(x, self.conv.weight[:, :, None], self.conv.bias, stride=(1, self.stride))


class Upsampling(nn.Module):
    """Transposed, kernel twice the stride, causal: [B, in, 1, T] -> [B, out, 1, T * stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        # Two of the 2 * stride taps meet in each output sample.
        self.conv = Weights((inputs, outputs // groups, 2 * stride), 2 * inputs // groups, outputs if bias else 0)
        self.stride, self.groups = stride, groups

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight[:, :, None]
        y = F.conv_transpose2d(x, weight, self.conv.bias, stride=(1, self.stride), groups=self.groups)
        return y[..., : -self.stride]


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.block = nn.ModuleList([nn.ELU(), Conv(channels, inner, 3), nn.ELU(), Conv(inner, channels, 1)])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.block:
            y = layer(y)
        return x + y


class Encoder(nn.Module):
    """[B, 1, 1, samples] -> [B, hidden, 1, positions]."""

    def __init__(self, hidden: int, filters: int, ratios: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv(1, filters, 7)]
        channels = filters
        for ratio in reversed(ratios):
            layers += [Residual(channels), nn.ELU(), Conv(channels, 2 * channels, 2 * ratio, stride=ratio)]
            channels *= 2
        self.layers = nn.Sequential(*layers, nn.ELU(), Conv(channels, hidden, 3))

    def forward(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.layers(x)
        return encoded


class Decoder(nn.Module):
    """[B, hidden, 1, positions] -> [B, 1, 1, samples]."""

    def __init__(self, hidden: int, filters: int, ratios: tuple[int, ...]) -> None:
        super().__init__()
        channels = filters << len(ratios)
        layers: list[nn.Module] = [Conv(hidden, channels, 7)]
        for ratio in ratios:
            layers += [nn.ELU(), Upsampling(channels, channels // 2, ratio), Residual(channels // 2)]
            channels //= 2
        last = Conv(channels, 1, 3)
        with torch.no_grad():
            last.conv.weight.mul_(_FIRST_LOUDNESS)
        self.layers = nn.Sequential(*layers, nn.ELU(), last)

    def forward(self, x: Tensor) -> Tensor:
        decoded: Tensor = self.layers(x)
        return decoded


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], self.heads, -1).transpose(1, 2)  # [B, heads, T, head]

        queries, keys, values = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        queries, keys = rotate(queries, turn).to(values.dtype), rotate(keys, turn).to(values.dtype)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        output: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return output


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE: `turn` is cosine and sine, each [T, head / 2]."""
    cos, sin = turn
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 0.1))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner, bias=False)
        self.fc2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return output


class Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(width, eps=1e-5)
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_scale = LayerScale(width)
        self.post_attention_layernorm = nn.LayerNorm(width, eps=1e-5)
        self.mlp = Mlp(width, inner)
        self.mlp_layer_scale = LayerScale(width)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        x = x + self.self_attn_layer_scale.scale * self.self_attn(self.input_layernorm(x), turn, mask)
        output: Tensor = x + self.mlp_layer_scale.scale * self.mlp(self.post_attention_layernorm(x))
        return output


class Transformer(nn.Module):
    """[B, C, 1, T] -> the same; each position sees itself and the `window - 1` before it."""

    def __init__(self, width: int, heads: int, inner: int, layers: int, window: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, heads, inner) for _ in range(layers))
        self.window, self.pairs = window, width // heads // 2

    def forward(self, x: Tensor) -> Tensor:
        y = x.squeeze(2).transpose(1, 2)  # [B, T, C]
        at = torch.arange(y.shape[1], device=x.device)
        frequencies: Tensor = 10000.0 ** (-torch.arange(self.pairs, device=x.device) / self.pairs)
        angles: Tensor = at[:, None] * frequencies
        behind = at[:, None] - at
        mask = (behind >= 0) & (behind < self.window)
        for layer in self.layers:
            y = layer(y, (angles.cos(), angles.sin()), mask)
        return y.transpose(1, 2).unsqueeze(2)
