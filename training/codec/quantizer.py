"""Residual vector quantisation with codebooks that follow moving averages."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Weights

# Together: an entry that nobody chooses is moved after 115 steps. Slower, and the encoder runs away from its entries
# while it still learns fast: all vectors then choose the same one.
_DECAY = 0.98
_DEAD = 0.1  # share of the average use, below which an entry is dead
_FLOOR = 1e-5  # of the published codec: an unused entry is not divided by zero


class Codebook(nn.Module):
    """An entry is `embed_sum / cluster_usage`: the moving average of the vectors that chose it."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.initialized = nn.Buffer(torch.ones(1))
        self.cluster_usage = nn.Buffer(torch.zeros(size))
        self.embed_sum = nn.Buffer(torch.zeros(size, dim))

    def entries(self) -> Tensor:
        return self.embed_sum / self.cluster_usage.clamp(min=_FLOOR)[:, None]

    def nearest(self, x: Tensor) -> Tensor:
        """x [N, dim] -> codes [N]."""
        entries = self.entries()
        return (entries.square().sum(-1) - 2 * x @ entries.t()).argmin(-1)

    @torch.no_grad()
    def revive(self, x: Tensor, candidates: Tensor) -> None:
        """Move dead entries to vectors of the batch: x [N, dim], `candidates` [size] indices into it.

        At the start all are dead, so this is the initialisation too.
        """
        average = x.shape[0] / self.cluster_usage.shape[0]
        dead = self.cluster_usage < _DEAD * average
        self.embed_sum.copy_(torch.where(dead[:, None], x[candidates] * average, self.embed_sum))
        self.cluster_usage.copy_(torch.where(dead, average, self.cluster_usage))

    @torch.no_grad()
    def follow(self, x: Tensor, codes: Tensor) -> None:
        chosen = F.one_hot(codes, self.cluster_usage.shape[0]).to(x.dtype)  # [N, size]
        self.cluster_usage.lerp_(chosen.sum(0), 1 - _DECAY)
        self.embed_sum.lerp_(chosen.t() @ x, 1 - _DECAY)


class QuantizerLayer(nn.Module):
    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.codebook = Codebook(size, dim)


class Quantized(NamedTuple):
    latent: Tensor  # [B, hidden, 1, T] what the decoder gets
    entries: Tensor  # [B, T, dim] before the projection back
    codes: Tensor  # [codebooks, B, T]
    commitment: Tensor  # [] how far the encoder is from the entries


class ResidualQuantizer(nn.Module):
    """Some codebooks in a row: each quantises what the ones before it left."""

    def __init__(self, hidden: int, books: int, size: int, dim: int) -> None:
        super().__init__()
        self.input_proj = Weights((dim, hidden, 1), hidden)
        self.output_proj = Weights((hidden, dim, 1), dim)
        self.layers = nn.ModuleList(QuantizerLayer(size, dim) for _ in range(books))

    def books(self) -> list[Codebook]:
        return [layer.codebook for layer in self.layers if isinstance(layer, QuantizerLayer)]

    def forward(self, x: Tensor, used: Tensor, candidates: Tensor | None) -> Quantized:
        """x [B, hidden, 1, T]; `used` [B]: how many codebooks reach the decoder.

        With `candidates` [codebooks, size], indices into the B * T vectors, the codebooks learn.
        """
        batch, _, _, steps = x.shape
        x = x.squeeze(2).transpose(1, 2).float()  # [B, T, hidden]
        with torch.autocast(x.device.type, enabled=False):
            target = (x @ self.input_proj.weight[:, :, 0].t()).flatten(0, 1)  # [B * T, dim]
            residual, total, codes = target, torch.zeros_like(target), []
            commitment = target.new_zeros(())
            sums = []
            for index, book in enumerate(self.books()):
                fixed = residual.detach()
                if candidates is not None:
                    book.revive(fixed, candidates[index])
                chosen = book.nearest(fixed)
                entries = book.entries()[chosen]
                if candidates is not None:
                    book.follow(fixed, chosen)
                commitment = commitment + F.mse_loss(residual, entries)
                counts = (used > index).repeat_interleave(steps)[:, None]
                total = total + entries * counts
                residual = residual - entries
                codes.append(chosen.view(batch, steps))
                sums.append(entries)
            through = (target + (total - target).detach()).view(batch, steps, -1)  # straight through
            latent = (through @ self.output_proj.weight[:, :, 0].t()).transpose(1, 2).unsqueeze(2)
        return Quantized(latent, through, torch.stack(codes), commitment)


class SplitQuantizer(nn.Module):
    """One semantic codebook beside the acoustic ones, each with a projection of its own; their outputs are added."""

    def __init__(self, hidden: int, books: int, size: int, dim: int) -> None:
        super().__init__()
        self.semantic_residual_vector_quantizer = ResidualQuantizer(hidden, 1, size, dim)
        self.acoustic_residual_vector_quantizer = ResidualQuantizer(hidden, books - 1, size, dim)

    def forward(self, x: Tensor, used: Tensor, candidates: Tensor | None) -> tuple[Quantized, Quantized]:
        """`used` [B] counts all codebooks, 1 at least; candidates [codebooks, size]."""
        first = candidates[:1] if candidates is not None else None
        others = candidates[1:] if candidates is not None else None
        return (
            self.semantic_residual_vector_quantizer(x, used, first),
            self.acoustic_residual_vector_quantizer(x, used - 1, others),
        )
