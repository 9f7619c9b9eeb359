"""Building blocks shared by the transformer and the depformer. Module names are the published key names."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig

Activation = Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "swish": F.silu,
    "swiglu": F.silu,
    "gelu": F.gelu,
    "geglu": F.gelu,
    "relu": F.relu,
    "linear": lambda x: x,
}


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight + bias, for x [B, T, in], weight [in, out], bias [out].

    On the CPU each row of the batch is its own product of the same shape, so that a stream's numbers do not
    depend, to the last bit, on how many neighbours it is computed with; BLAS rounds differently when the rows
    are merged into one product. A GPU needs them merged to be fast.
    """
    if x.device.type == "cpu":
        each = weight.expand(x.shape[0], -1, -1)
        return torch.bmm(x, each) if bias is None else torch.baddbmm(bias, x, each)
    return F.linear(x, weight.t(), bias)


class Linear(nn.Module):
    """Published as `weight` [out, in], without bias; x [B, T, in]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return project(x, self.weight)

    def store_for_cpu(self) -> None:
        """Lay a weight with more outputs than inputs out by columns, which is faster for one row; its shape stays."""
        if self.weight.shape[0] > self.weight.shape[1]:
            self.weight.data = self.weight.t().contiguous().t()


def project(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, T, in] times a published weight [out, in]."""
    return affine(x, weight.t())


def rope_table(head_dim: int, config: ModelConfig, positions: int) -> Tensor:
    """cos and sin of the rotary angles, [positions, 2, head_dim], each for both halves; in the first, -sin."""
    # On the CPU explicitly: modules are built on the meta device, tables are not loaded.
    fraction = 2.0 * torch.arange(head_dim // 2, device="cpu") / head_dim
    ratio = config.rope_max_timescale / config.rope_min_timescale
    inverse = 1.0 / (config.rope_min_timescale * ratio**fraction)
    angles = torch.arange(positions, dtype=torch.float32, device="cpu")[:, None] * inverse[None, :].float()
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)], dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x` [..., head_dim] by rows of `rope_table`, [..., head_dim], that broadcast to it."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([second, first], dim=-1) * sin


class GatedMlp(nn.Module):
    """Two-branch gated MLP: `wo(f(gate) * g(up))`."""

    def __init__(self, width: int, hidden: int, activations: tuple[str, str]) -> None:
        super().__init__()
        self.wi = Linear(width, 2 * hidden)
        self.wo = Linear(hidden, width)
        self.gate, self.up = (_ACTIVATIONS[name] for name in activations)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.wi(x).chunk(2, dim=-1)
        out: Tensor = self.wo(self.gate(gate) * self.up(up))
        return out


class TextEmbedding(nn.Module):
    """Sum of the main and the second text stream's embeddings; a PAD in the second stream adds nothing."""

    def __init__(self, vocab: int, width: int, pad: int, low_rank: int | None) -> None:
        super().__init__()
        inner = low_rank or width
        self.pad = pad
        self.embedding = nn.Embedding(vocab, inner)
        self.main_proj = Linear(inner, width)
        self.second_proj = Linear(inner, width)

    def forward(self, main: Tensor, second: Tensor) -> Tensor:
        shared = self.second_proj(self.embedding(second))
        shared = shared.masked_fill((second == self.pad).unsqueeze(-1), 0.0)
        out: Tensor = self.main_proj(self.embedding(main)) + shared
        return out
