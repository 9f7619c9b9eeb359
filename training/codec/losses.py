"""What the codec is trained towards: log-mel spectra at several resolutions, phonemes, and to pass as speech."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .shape import FRAME_SAMPLES, SAMPLE_RATE

_RESOLUTIONS = ((256, 32), (512, 48), (1024, 80), (2048, 96))  # window in samples, mel bands
_LOWEST = 1e-4  # magnitude below which nothing is heard
LABELS_PER_FRAME = 2
LABEL_SAMPLES = FRAME_SAMPLES // LABELS_PER_FRAME


def mel_filters(window: int, bands: int) -> Tensor:
    """Triangles on the mel scale, each of unit sum: [window / 2 + 1, bands]."""
    top = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    edges: Tensor = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    bins = torch.arange(window // 2 + 1) * SAMPLE_RATE / window
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    triangles = torch.minimum(rising, falling).clamp(min=0)
    filters: Tensor = triangles / triangles.sum(0).clamp(min=1e-6)
    return filters


def spectrum(audio: Tensor, shape: Tensor, hop: int) -> Tensor:
    """[..., samples] -> complex [..., frames, window / 2 + 1], windowed by `shape` and of unit gain."""
    frames = audio.unfold(-1, shape.shape[0], hop) * (shape * (2 / shape.shape[0]))
    values: Tensor = torch.fft.rfft(frames)
    return values


class MelLoss(nn.Module):
    """Mean distance of log-mel magnitudes, averaged over the resolutions: [B, samples] twice -> []."""

    def __init__(self) -> None:
        super().__init__()
        for window, bands in _RESOLUTIONS:
            self.register_buffer(f"shape{window}", torch.hann_window(window), persistent=False)
            self.register_buffer(f"filters{window}", mel_filters(window, bands), persistent=False)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        with torch.autocast(made.device.type, enabled=False):  # 16 bits are too coarse for quiet bands
            return self._distance(made, real)

    def _distance(self, made: Tensor, real: Tensor) -> Tensor:
        total = made.new_zeros(())
        for window, _ in _RESOLUTIONS:
            shape, filters = self.get_buffer(f"shape{window}"), self.get_buffer(f"filters{window}")
            both = spectrum(torch.stack((made, real)), shape, window // 4)
            power = torch.view_as_real(both).square().sum(-1)
            mels = (power + 1e-12).sqrt() @ filters
            logs = (mels + _LOWEST).log()
            total = total + (logs[0] - logs[1]).abs().mean()
        return total / len(_RESOLUTIONS)


class PhonemeHead(nn.Module):
    """Guesses the phonemes of a frame from the first codebook's entry, which so becomes a code of what is said.

    Published codecs distil a self-supervised speech model for that; synthesis knows the phonemes themselves.
    """

    def __init__(self, dim: int, phonemes: int) -> None:
        super().__init__()
        self.phonemes = phonemes
        self.project = nn.Linear(dim, LABELS_PER_FRAME * phonemes)

    def forward(self, entries: Tensor, labels: Tensor) -> Tensor:
        """entries [B, frames, dim], labels [B, frames * 2] -> cross-entropy []."""
        scores = self.project(entries).view(-1, self.phonemes)
        return F.cross_entropy(scores.float(), labels.reshape(-1))


class Discriminator(nn.Module):
    """Tells synthesised from coded audio, by the complex spectrum at one resolution."""

    def __init__(self, window: int, channels: int = 24, layers: int = 4) -> None:
        super().__init__()
        self.hop = window // 2
        self.register_buffer("shape", torch.hann_window(window), persistent=False)
        sizes = [2] + [channels] * layers
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, (3, 5), stride=(1, 2), padding=(1, 2)) for inputs, outputs in pairwise(sizes)
        )
        self.last = nn.Conv2d(channels, 1, (3, 3), padding=1)

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """audio [B, samples] -> scores [B, 1, frames, bands], and what the layers made on the way."""
        complex_values = spectrum(audio, self.get_buffer("shape"), self.hop)
        x = torch.view_as_real(complex_values).permute(0, 3, 1, 2)  # [B, 2, frames, bins]
        x = x / (x.square().sum(1, keepdim=True) + 1e-6).sqrt().sqrt()  # soft compression of the magnitudes
        layers = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
            layers.append(x)
        return self.last(x).float(), layers


class Discriminators(nn.Module):
    def __init__(self, windows: tuple[int, ...] = (512, 1024, 2048)) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Discriminator(window) for window in windows)

    def judge(self, made: Tensor, real: Tensor) -> Tensor:
        """Their own loss (least squares) on the same batch of both kinds."""
        total = made.new_zeros(())
        for part in self.parts:
            total = total + (part(real)[0] - 1).square().mean() + part(made)[0].square().mean()
        return total / len(self.parts)

    def persuade(self, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The codec's loss, and the distance of their layers' outputs for the two kinds."""
        adversarial, features = made.new_zeros(()), made.new_zeros(())
        for part in self.parts:
            score, layers = part(made)
            with torch.no_grad():
                wanted = part(real)[1]
            adversarial = adversarial + (score - 1).square().mean()
            for layer, want in zip(layers, wanted, strict=True):
                distance = (layer - want).float().abs().mean() / want.float().abs().mean().clamp(min=1e-3)
                features = features + distance / len(layers)
        return adversarial / len(self.parts), features / len(self.parts)
