"""The codec for training. Its `state_dict` is the published layout, name by name and shape by shape."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .layers import Conv, Decoder, Encoder, Transformer, Upsampling
from .quantizer import SplitQuantizer
from .shape import STRIDE, Shape


class Reconstruction(NamedTuple):
    audio: Tensor  # [B, samples] float32
    semantic: Tensor  # [B, frames, codebook_dim] the first codebook's entries; gradients pass to the encoder
    codes: Tensor  # [codebooks, B, frames]
    commitment: Tensor  # []


class Codec(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        sizes = (shape.hidden, shape.heads, shape.mlp, shape.layers, shape.window)
        self.encoder = Encoder(shape.hidden, shape.filters, shape.ratios)
        self.encoder_transformer = Transformer(*sizes)
        self.downsample = Conv(shape.hidden, shape.hidden, 2 * STRIDE, stride=STRIDE, bias=False, replicate=True)
        self.quantizer = SplitQuantizer(shape.hidden, shape.codebooks, shape.codebook_size, shape.codebook_dim)
        self.upsample = Upsampling(shape.hidden, shape.hidden, STRIDE, groups=shape.hidden, bias=False)
        self.decoder_transformer = Transformer(*sizes)
        self.decoder = Decoder(shape.hidden, shape.filters, shape.ratios)

    def forward(self, audio: Tensor, used: Tensor, candidates: Tensor | None = None) -> Reconstruction:
        """audio [B, samples], whole frames; `used` [B] codebooks; see `ResidualQuantizer` for `candidates`."""
        semantic, acoustic = self.quantizer(self._latent(audio), used, candidates)
        x = self.decoder_transformer(self.upsample(semantic.latent + acoustic.latent))
        return Reconstruction(
            self.decoder(x)[:, 0, 0].float(),
            semantic.entries,
            torch.cat((semantic.codes, acoustic.codes)),
            semantic.commitment + acoustic.commitment,
        )

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """audio [B, samples], whole frames -> codes [codebooks, B, frames]."""
        every = torch.full(audio.shape[:1], self.shape.codebooks, device=audio.device)
        return torch.cat([part.codes for part in self.quantizer(self._latent(audio), every, None)])

    def _latent(self, audio: Tensor) -> Tensor:
        x = audio[:, None, None].contiguous(memory_format=torch.channels_last)
        latent: Tensor = self.downsample(self.encoder_transformer(self.encoder(x)))
        return latent
