"""Streaming decoding with the Mimi codec: codes in, samples out, frame by frame, for a fixed set of slots.

`transformers` has no streaming decode for Mimi, so this is one of our own. It reads the published tensors by
their names on disk, and whatever the chunking, what it gives is the decoding of the whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ConfigError
from .config import MimiConfig, load_mimi_config
from .layers import History, Upsample, WaveformDecoder
from .transformer import SlidingTransformer
from .weights import WeightReader

Snapshot = dict[str, Tensor]  # one slot's state, of plain tensors: it can be moved, or stored as safetensors

_PASS_FRAMES = 8  # longer inputs are decoded in passes of this many, which bounds memory and the ring
_USAGE_FLOOR = 1e-5  # of the published codec: an unused codebook entry is not divided by zero


@dataclass(frozen=True)
class MimiState:
    """The decoding state of every slot, in tensors whose shapes and addresses never change."""

    history: Tensor  # [slots, N] past inputs of all convolutions
    rings: Tensor  # [layers, 2, slots, kv_heads, ring, head_dim] keys, values
    positions: Tensor  # [slots] int64, transformer positions so far

    def reset(self, slot: int) -> None:
        """Back to the start of a stream."""
        for part in self._of(slot).values():
            part.zero_()

    def snapshot(self, slot: int) -> Snapshot:
        """A copy of the slot's state, on the same device."""
        return {name: part.clone() for name, part in self._of(slot).items()}

    def restore(self, slot: int, snapshot: Snapshot) -> None:
        """Continue in `slot` where `snapshot`, from any slot or device, was taken.

        Raises ValueError if it is not of this codec.
        """
        parts = self._of(slot)
        expected = {name: tuple(part.shape) for name, part in parts.items()}
        found = {name: tuple(part.shape) for name, part in snapshot.items()}
        if found != expected:
            raise ValueError(f"snapshot of another codec: {found}, this one needs {expected}")
        for name, part in parts.items():
            part.copy_(snapshot[name])

    def _of(self, slot: int) -> Snapshot:
        if not 0 <= slot < self.positions.shape[0]:
            raise ValueError(f"slot {slot} is outside 0..{self.positions.shape[0] - 1}")
        return {
            "history": self.history[slot],
            "rings": self.rings[:, :, slot],
            "positions": self.positions[slot],
        }


class MimiDecoder(nn.Module):
    """The decoding half of a Mimi codec. Ids are the caller's to keep in range: none is repaired."""

    def __init__(self, config: MimiConfig, codebooks: int, weights: WeightReader) -> None:
        super().__init__()
        self.config = config
        self.codebooks = codebooks
        self.dtype = torch.float32
        self.entries = nn.Buffer(_read_codebooks(weights, config, codebooks))
        self.offsets = nn.Buffer(torch.arange(codebooks) * config.codebook_size)
        self.upsample = Upsample(weights, config)
        self.transformer = SlidingTransformer(weights, config, pass_positions=_PASS_FRAMES * config.latent_stride)
        self.waveform = WaveformDecoder(weights, config)
        self._history_size = sum(getattr(module, "state_size", 0) for module in self.modules())

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        codebooks: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> MimiDecoder:
        """Read `config.json` and `model.safetensors` of the published format.

        `codebooks` is how many of the codec's codebooks the language model produces. Codebook entries stay in
        float32 whatever the `dtype`. Raises ConfigError naming the field or the tensors at fault.
        """
        config = load_mimi_config(folder / "config.json")
        if not 1 <= codebooks <= config.codebooks:
            raise ConfigError(f"{folder}: the model needs {codebooks} codebooks, the codec has {config.codebooks}")
        with WeightReader(folder / "model.safetensors") as weights:
            decoder = cls(config, codebooks, weights)
        decoder.to(device)
        for part in (decoder.upsample, decoder.transformer.layers, decoder.waveform):
            part.to(dtype)
        decoder.dtype = dtype
        return decoder

    def new_state(self, slots: int) -> MimiState:
        """State of `slots` streams, each at its start."""
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        device, rings = self.entries.device, (self.config.layers, 2, slots, *self.transformer.ring_shape)
        return MimiState(
            history=torch.zeros(slots, self._history_size, dtype=self.dtype, device=device),
            rings=torch.zeros(rings, dtype=self.dtype, device=device),
            positions=torch.zeros(slots, dtype=torch.int64, device=device),
        )

    @torch.inference_mode()
    def decode(self, codes: Tensor, state: MimiState, rows: Tensor) -> Tensor:
        """Decode the next T frames of some slots, and advance those slots only, in place.

        `codes` int64 [B, codebooks, T] on the decoder's device, B and T >= 1; `rows` int64 [B], their slots,
        none twice (but for one kept as scratch, for padding rows). Returns float32
        [B, T * frame_samples] in -1..1. Raises ValueError for other shapes.
        """
        fits = codes.dim() == 3 and codes.shape[1] == self.codebooks and codes.numel() > 0
        if not fits or codes.dtype != torch.int64:
            expected = f"int64 [B >= 1, {self.codebooks}, T >= 1]"
            raise ValueError(f"codes must be {expected}, got {codes.dtype} {list(codes.shape)}")
        if rows.shape != codes.shape[:1] or rows.dtype != torch.int64:
            raise ValueError(f"rows must be int64 [{codes.shape[0]}], got {rows.dtype} {list(rows.shape)}")
        passes = [self._decode(part, state, rows) for part in torch.split(codes, _PASS_FRAMES, dim=2)]
        return passes[0] if len(passes) == 1 else torch.cat(passes, dim=1)

    def _decode(self, codes: Tensor, state: MimiState, rows: Tensor) -> Tensor:
        batch, _, frames = codes.shape
        ids = codes.transpose(1, 2) + self.offsets  # [B, T, K]
        x = F.embedding_bag(ids.flatten(0, 1), self.entries, mode="sum").view(batch, frames, -1).to(self.dtype)
        history = History(state.history.index_select(0, rows))
        positions = state.positions.index_select(0, rows)
        x = self.upsample(x, history)
        state.positions.index_copy_(0, rows, positions + x.shape[1])
        x = self.transformer(x, state.rings, rows, positions)
        x = self.waveform(x, history)
        state.history.index_copy_(0, rows, history.renewed())
        samples: Tensor = x.view(batch, -1).float().clamp_(-1.0, 1.0)
        return samples


def _read_codebooks(weights: WeightReader, config: MimiConfig, codebooks: int) -> Tensor:
    """All entries of the codebooks in use, projected to the hidden size: [codebooks * codebook_size, hidden].

    A frame's latent is the sum of its entries, and projecting is linear, so it is done once, here.
    """
    tables: list[Tensor] = []
    for kind, first, size in (
        ("semantic", 0, config.semantic_codebooks),
        ("acoustic", config.semantic_codebooks, config.codebooks - config.semantic_codebooks),
    ):
        key = f"quantizer.{kind}_residual_vector_quantizer"
        width, hidden = config.codebook_dim, config.hidden_size
        projection = weights.take(f"{key}.output_proj.weight", hidden, width, 1) if config.projected else None
        for index in range(min(size, codebooks - first)):
            book = f"{key}.layers.{index}.codebook"
            usage = weights.take(f"{book}.cluster_usage", config.codebook_size).clamp(min=_USAGE_FLOOR)
            entries = weights.take(f"{book}.embed_sum", config.codebook_size, width) / usage[:, None]
            tables.append(entries if projection is None else entries @ projection[:, :, 0].t())
        for index in range(max(0, codebooks - first), size):
            weights.skip(rf"{re.escape(key)}\.layers\.{index}\.codebook\.(cluster_usage|embed_sum)")
    return torch.cat(tables)
