"""The codec's decoder on a GPU: one frame of some slots by the kernels of `model.kernels.codec`.

A frame has static shapes and touches no host, so it can be recorded as a CUDA graph. Longer inputs are decoded frame
by frame. The plain decoder keeps working: most of its weights become views of what is laid out here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..kernels.codec import Inputs, Product, Products, attend, enter, normed, rounded
from .decoder import MimiDecoder, MimiState
from .layers import CausalConv, ResidualUnit
from .transformer import Layer

MOST_SPLIT_TILES = 128  # products are split only if they have fewer


@dataclass(frozen=True)
class _Block:
    """A layer of the transformer."""

    qkv: Product
    output: Product
    up: Product
    down: Product


class FusedMimi:
    """Decodes with the weights of a `MimiDecoder`.

    exact: products in float32 and a ring of keys and values in float32, to equal the plain decoder up to rounding;
    else products on matrix units (TF32), and a ring in float16, which has as many digits; the decoder's weights are
    rounded to TF32 then.
    """

    def __init__(self, decoder: MimiDecoder, *, exact: bool) -> None:
        self.decoder, self.config = decoder, decoder.config
        config, device = decoder.config, decoder.entries.device
        self._precision, self._ring_dtype = ("ieee", torch.float32) if exact else ("tf32", torch.float16)
        self._arrived = torch.zeros(MOST_SPLIT_TILES, dtype=torch.int32, device=device)
        steps = config.latent_stride
        self._blocks = [self._block(cast(Layer, layer), steps) for layer in decoder.transformer.layers]
        # In the order of `History`: the up-sampling's latents first, then each convolution with past inputs.
        self._history_size = decoder.upsample.state_size
        self._first = self._conv(decoder.waveform.first, steps)
        steps *= decoder.waveform.first.stride
        self._stages: list[Product | tuple[Product, Product]] = []
        for stage in decoder.waveform.stages:
            if isinstance(stage, ResidualUnit):
                self._stages.append((self._conv(stage.reduce, steps), self._conv(stage.expand, steps)))
            else:
                conv = cast(CausalConv, stage)
                self._stages.append(self._conv(conv, steps))
                steps *= conv.stride
        self._last = self._conv(decoder.waveform.last, steps)
        latents = (config.hidden_size, 1, 1, 0)
        inputs = [stage[0] if isinstance(stage, tuple) else stage for stage in self._stages]
        remembering = [
            (layer.channels, layer.steps, layer.positions, layer.history_at)
            for layer in (self._first, *inputs, self._last)
        ]
        self._inputs = Inputs([latents, *remembering], device)

    def new_state(self, slots: int) -> MimiState:
        """State of `slots` streams, each at its start. Only this class can read what it will hold."""
        config, device = self.config, self.decoder.entries.device
        # A frame overwrites only keys that have left the window of its first position.
        ring = config.window - 1 + config.latent_stride
        shape = (config.layers, 2, slots, config.kv_heads, ring, config.head_dim)
        return MimiState(
            history=torch.zeros(slots, self._history_size, device=device),
            rings=torch.zeros(shape, dtype=self._ring_dtype, device=device),
            positions=torch.zeros(slots, dtype=torch.int64, device=device),
        )

    def decode(self, codes: Tensor, state: MimiState, rows: Tensor, audio: Tensor) -> None:
        """Decode the next frame of some slots into audio [B, frame_samples], and advance those slots only.

        codes int32 [B, codebooks]; rows [B], their slots, none twice but for one of scratch, whose audio means nothing.
        """
        decoder, config, batch = self.decoder, self.config, codes.shape[0]
        run = Products(state.history, rows, self._arrived, self._precision)
        buffer = self._inputs.new(batch, state.history)
        latent, x, *inputs = self._inputs.of(buffer, batch)
        upsample, frequencies = decoder.upsample, decoder.transformer.frequencies
        rope = enter(
            codes, decoder.entries, (upsample.now, upsample.before), frequencies,
            state.history, 0, state.positions, rows, latent, x,
        )  # fmt: skip
        for block, (keys, values) in zip(self._blocks, state.rings, strict=True):
            qkv = run(x, block.qkv)
            attended = attend(qkv, rope, keys, values, rows, state.positions, config.heads, config.window)
            run(attended, block.output, x, add=x)
            run(run(x, block.up, then="gelu"), block.down, x, add=x)
        self._waveform(run, x, inputs, audio)
        self._inputs.renew(buffer, state.history, state.positions, rows, config.latent_stride)

    def _waveform(self, run: Products, x: Tensor, outs: list[Tensor], audio: Tensor) -> None:
        """From x, the input of the first convolution; `outs` are those of the ones behind it, in order.

        A residual unit needs its input before the ELU too, so it applies that itself; for the others it is applied
        once, where their input is written.
        """
        first = "round"  # the transformer's output is no activation's
        layers = [self._first, *self._stages]
        for layer, following, out in zip(layers, [*self._stages, self._last], outs, strict=True):
            then = "" if isinstance(following, tuple) else "elu"
            if isinstance(layer, tuple):
                run.residual_unit(x, *layer, out, then=then)
            else:
                run(x, layer, out.view(x.shape[0], -1), first=first, then=then)
            x, first = out, ""
        run(x, self._last, audio.view(-1, 1), then="clamp")

    def _conv(self, conv: CausalConv, positions: int) -> Product:
        """A convolution of `positions` inputs a frame; its past inputs come next in the history."""
        at, self._history_size = self._history_size, self._history_size + conv.state_size
        return Product(self._laid_out(conv, "weight"), conv.bias, positions, conv.kernel, conv.dilation, at)

    def _block(self, layer: Layer, positions: int) -> _Block:
        def behind(matrix: Tensor, gain: Tensor, bias: Tensor) -> Product:
            weight, offset = normed(matrix, gain, bias)
            return Product(rounded(weight, self._precision), offset, positions, norm_eps=layer.eps)

        return _Block(
            behind(layer.qkv, layer.norm1, layer.norm1_bias),
            Product(self._laid_out(layer, "output"), None, positions),
            behind(layer.up, layer.norm2, layer.norm2_bias),
            Product(self._laid_out(layer, "down"), None, positions),
        )

    def _laid_out(self, module: nn.Module, name: str) -> Tensor:
        """A module's matrix [in, out] as a contiguous [out, in]; the module's own becomes a view of it."""
        matrix = rounded(cast(Tensor, getattr(module, name)).t().contiguous(), self._precision)
        setattr(module, name, nn.Buffer(matrix.t()))
        return matrix
