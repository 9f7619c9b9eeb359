"""The codec's layers, each streaming. Everything is channels-last: [B, T, C].

All convolutions are causal, and a transposed convolution whose kernel is twice its stride is one too: step t
of its input decides, with step t-1, samples t*stride ... t*stride + stride-1 of its output. So there is one
kind of convolution, "a window of past inputs times a matrix", and its only state is the last inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import affine
from .config import MimiConfig
from .weights import WeightReader


class History:
    """The convolutions' past inputs for the rows of one call, consumed and renewed in layer order."""

    def __init__(self, past: Tensor) -> None:
        self._past = past  # [B, steps * channels, over all layers]
        self._taken = 0
        self._renewed: list[Tensor] = []

    def prepend(self, x: Tensor, steps: int) -> Tensor:
        """x [B, T, C] with the layer's last `steps` inputs before it: [B, steps + T, C]."""
        batch, _, channels = x.shape
        size = steps * channels
        past = self._past[:, self._taken : self._taken + size].view(batch, steps, channels)
        joined = torch.cat((past, x), dim=1)
        self._taken += size
        self._renewed.append(joined[:, joined.shape[1] - steps :].reshape(batch, size))
        return joined

    def renewed(self) -> Tensor:
        """What the next call has to find."""
        return torch.cat(self._renewed, dim=1)


class CausalConv(nn.Module):
    """[B, T, in] -> [B, T * stride, out]; `weight` is [kernel * in, stride * out], oldest input first."""

    def __init__(self, weight: Tensor, bias: Tensor, *, kernel: int, dilation: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight.contiguous())
        self.bias = nn.Buffer(bias.contiguous())
        self.kernel, self.dilation, self.stride = kernel, dilation, stride
        self.steps = (kernel - 1) * dilation  # past inputs it needs
        self.state_size = self.steps * (weight.shape[0] // kernel)

    @classmethod
    def read(
        cls, weights: WeightReader, key: str, inputs: int, outputs: int, kernel: int, dilation: int = 1
    ) -> CausalConv:
        weight = weights.take(f"{key}.conv.weight", outputs, inputs, kernel).permute(2, 1, 0)
        bias = weights.take(f"{key}.conv.bias", outputs)
        return cls(weight.reshape(kernel * inputs, outputs), bias, kernel=kernel, dilation=dilation)

    @classmethod
    def read_transposed(cls, weights: WeightReader, key: str, inputs: int, outputs: int, stride: int) -> CausalConv:
        """A transposed convolution of kernel 2 * stride, trimmed on the right."""
        weight = weights.take(f"{key}.conv.weight", inputs, outputs, 2 * stride).permute(0, 2, 1)
        now, before = weight.reshape(inputs, 2, stride * outputs).unbind(1)
        bias = weights.take(f"{key}.conv.bias", outputs).repeat(stride)
        return cls(torch.cat((before, now)), bias, kernel=2, stride=stride)

    def forward(self, x: Tensor, history: History) -> Tensor:
        batch, steps, channels = x.shape
        if self.kernel > 1:
            windows = history.prepend(x, self.steps).unfold(1, self.steps + 1, 1)[..., :: self.dilation]
            x = windows.transpose(2, 3).reshape(batch, steps, self.kernel * channels)
        return affine(x, self.weight, self.bias).view(batch, steps * self.stride, -1)


class Upsample(nn.Module):
    """[B, T, C] -> [B, T * stride, C]: a transposed convolution of each channel with itself."""

    def __init__(self, weights: WeightReader, config: MimiConfig) -> None:
        super().__init__()
        channels, stride = config.hidden_size, config.latent_stride
        weight = weights.take("upsample.conv.weight", channels, 1, 2 * stride).view(channels, 2, stride)
        self.now = nn.Buffer(weight[:, 0].t().contiguous())  # [stride, C]
        self.before = nn.Buffer(weight[:, 1].t().contiguous())
        self.state_size = channels

    def forward(self, x: Tensor, history: History) -> Tensor:
        batch, _, channels = x.shape
        joined = history.prepend(x, 1).unsqueeze(2)  # [B, 1 + T, 1, C]
        return (joined[:, 1:] * self.now + joined[:, :-1] * self.before).view(batch, -1, channels)


class ResidualUnit(nn.Module):
    def __init__(self, weights: WeightReader, key: str, config: MimiConfig, channels: int, dilation: int) -> None:
        super().__init__()
        inner, kernel = channels // config.compress, config.residual_kernel
        self.reduce = CausalConv.read(weights, f"{key}.block.1", channels, inner, kernel, dilation)
        self.expand = CausalConv.read(weights, f"{key}.block.3", inner, channels, 1)

    def forward(self, x: Tensor, history: History) -> Tensor:
        inner = F.elu_(self.reduce(F.elu(x), history))
        expanded: Tensor = self.expand(inner, history)
        return expanded.add_(x)


class WaveformDecoder(nn.Module):
    """The SEANet decoder: [B, T, hidden] -> [B, T * product of ratios, 1]."""

    def __init__(self, weights: WeightReader, config: MimiConfig) -> None:
        super().__init__()
        channels = config.filters << len(config.ratios)
        self.first = CausalConv.read(weights, "decoder.layers.0", config.hidden_size, channels, config.kernel)
        self.stages = nn.ModuleList()
        index = 2  # the published names count the activations as layers
        for ratio in config.ratios:
            key, channels = f"decoder.layers.{index}", channels // 2
            self.stages.append(CausalConv.read_transposed(weights, key, channels * 2, channels, ratio))
            for unit in range(config.residual_layers):
                key, dilation = f"decoder.layers.{index + 1 + unit}", config.dilation_growth**unit
                self.stages.append(ResidualUnit(weights, key, config, channels, dilation))
            index += 2 + config.residual_layers
        self.last = CausalConv.read(weights, f"decoder.layers.{index}", channels, 1, config.last_kernel)

    def forward(self, x: Tensor, history: History) -> Tensor:
        x = self.first(x, history)
        for stage in self.stages:
            x = stage(x if isinstance(stage, ResidualUnit) else F.elu_(x), history)
        output: Tensor = self.last(F.elu_(x), history)
        return output
