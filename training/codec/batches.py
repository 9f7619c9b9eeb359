"""Random crops of the finished shards, cut on the training device: all audio lies there, 173 MB per hour."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.clips import read_shard, shards
from .losses import LABEL_SAMPLES
from .shape import FRAME_SAMPLES, SAMPLE_RATE, Shape

PHONEMES = 256  # ids of Piper's voices are below
_SILENCE_LABELS = 10  # 0.4 s behind every clip: the product codes digital silence, and synthesis never makes any


class Batch(NamedTuple):
    """Everything random about a step, so that a step depends on its number alone."""

    audio: Tensor  # [B, samples] float32
    labels: Tensor  # [B, positions] phoneme ids, two to a frame
    used: Tensor  # [B] codebooks that reach the decoder
    candidates: Tensor  # [codebooks, size] vectors that dead entries may move to


class Crops:
    """Crops of a set. Clips follow each other with a little silence; a crop may hold the end of one and the next."""

    def __init__(self, data: Path, which: str, device: torch.device) -> None:
        self._data, self._which, self._device = data, which, device
        self._read = 0
        self._audio = torch.zeros(0, dtype=torch.int16, device=device)
        self._labels = torch.zeros(0, dtype=torch.uint8, device=device)  # [samples / LABEL_SAMPLES]

    @classmethod
    def noise(cls, *, hours: float, device: torch.device) -> Crops:
        """White noise and random phonemes, to measure speed with."""
        crops = cls(Path(), "", device)
        labels = round(hours * 3600 * SAMPLE_RATE) // LABEL_SAMPLES
        crops._audio = torch.randint(-3000, 3000, (labels * LABEL_SAMPLES,), dtype=torch.int16, device=device)
        crops._labels = torch.randint(0, 150, (labels,), dtype=torch.uint8, device=device)
        return crops

    @property
    def hours(self) -> float:
        return self._audio.shape[0] / SAMPLE_RATE / 3600

    def refresh(self) -> None:
        """Take in the shards that were finished since. They are read in order: a gap hides what is behind it."""
        audio, labels = [self._audio], [self._labels]
        for index in shards(self._data, self._which):
            if int(index.stem) != self._read:
                continue
            self._read += 1
            for clip, samples in read_shard(index):
                whole = np.pad(samples, (0, -len(samples) % LABEL_SAMPLES))
                middles = np.arange(len(whole) // LABEL_SAMPLES) * LABEL_SAMPLES + LABEL_SAMPLES // 2
                spoken = np.searchsorted(clip.ends, middles, side="right").clip(max=len(clip.ends) - 1)
                symbols = _symbols(clip.phonemes)[spoken]
                audio.append(torch.from_numpy(np.pad(whole, (0, _SILENCE_LABELS * LABEL_SAMPLES))).to(self._device))
                labels.append(torch.from_numpy(np.pad(symbols, (0, _SILENCE_LABELS))).to(self._device))
        self._audio, self._labels = torch.cat(audio), torch.cat(labels)

    def draw(self, step: int, shape: Shape, *, batch: int, frames: int, dropout: float) -> Batch:
        """The batch of a step. `dropout` is the share of crops that use fewer codebooks than there are."""
        chance = torch.Generator(self._device).manual_seed(step)

        def uniform(*size: int) -> Tensor:
            return torch.rand(size, generator=chance, device=self._device)

        samples = frames * FRAME_SAMPLES
        starts = (uniform(batch) * (self._audio.shape[0] - samples)).long()
        audio = self._audio[starts[:, None] + torch.arange(samples, device=self._device)].float() / 32768
        audio = audio * (0.3 + uniform(batch, 1))  # loudness varies by 13 dB
        middles = torch.arange(samples // LABEL_SAMPLES, device=self._device) * LABEL_SAMPLES + LABEL_SAMPLES // 2
        labels = self._labels[(starts[:, None] + middles) // LABEL_SAMPLES].long()
        fewer = 1 + (uniform(batch) * shape.codebooks).long().clamp(max=shape.codebooks - 1)
        used = torch.where(uniform(batch) < dropout, fewer, shape.codebooks)
        candidates = (uniform(shape.codebooks, shape.codebook_size) * (batch * frames)).long()
        return Batch(audio, labels, used, candidates)


def _symbols(phonemes: list[int]) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Piper puts a pad behind every phoneme, and gives it much of the time: it counts as the phoneme before."""
    symbols = np.array(phonemes, dtype=np.uint8)
    symbols[1:][symbols[1:] == 0] = symbols[:-1][symbols[1:] == 0]
    return symbols
