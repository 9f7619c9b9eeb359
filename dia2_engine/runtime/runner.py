"""The one place that runs the model: KV cache, codec state and step buffers of all slots, and the passes over them.

Two kinds of work. `extend` feeds known columns of one slot, many at once, transformer only. A `frame` is one column
of every slot: `transform`, then, for slots past their delay, `depform`. Rows of slots that take no step are inert:
they run with legal ids, write a KV row that is overwritten before it is read, and their results are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.dia2 import Dia2
from ..model.mimi import MimiDecoder
from ..model.sampling import sample
from .buffers import StepBuffers

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class SlotSnapshot:
    """Device state after the columns and frames that no request can influence."""

    keys: Tensor  # [layers, 2, kv_heads, cut, head_dim]
    values: Tensor
    codec: Any | None  # the codec's state after the prefix's frames


class ModelRunner:
    """Owns the device. Not thread-safe: one engine thread calls it."""

    def __init__(self, model: Dia2, codec: MimiDecoder, *, slots: int, filter_k: int) -> None:
        config = model.config
        weight = model.transformer.cb0_head.weight
        self.model, self.codec, self.config = model, codec, config
        self.slots, self.filter_k, self.device = slots, filter_k, weight.device
        self.buffers = StepBuffers.allocate(slots, config, weight.device, weight.dtype)
        stack = config.decoder
        # One row more than positions: the reference's boundary feeds one column twice.
        shape = (stack.layers, slots * 2, stack.kv_heads, config.max_context_steps + 1, stack.head_dim)
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=self.device)
        self.values = torch.zeros_like(self.keys)
        self.codec_state = codec.new_state(slots)

    @torch.inference_mode()
    def extend(self, slot: int, columns: Ids, start: int) -> None:
        """Feed `columns` [N, 2 + C] to a slot at positions `start ..`; nothing is sampled."""
        count = len(columns)
        if count == 0:
            return
        tokens = self._branches(torch.from_numpy(columns).to(self.device)[None])
        positions = torch.arange(start, start + count, device=self.device)
        seen = torch.arange(start + count, device=self.device)
        mask = (seen[None, :] <= positions[:, None])[None, None].expand(2, -1, -1, -1)
        positions = positions[None].expand(2, -1)
        rows = slice(slot * 2, slot * 2 + 2)
        keys, values = self.keys[:, rows], self.values[:, rows]
        self.model.transformer(tokens, positions, positions, mask, [start + count], keys, values)

    @torch.inference_mode()
    def transform(self, rows: int) -> Ids:
        """One column of slots 0..rows-1, as staged in the buffers; samples actions and codebook 0.

        Returns the actions [rows]; codebook 0 waits in the buffers.
        """
        buffers, model = self.buffers, self.model.transformer
        tokens = self._branches(buffers.columns.upload(rows)[:, None])
        positions = buffers.positions.upload(rows).repeat_interleave(2)[:, None]
        where = buffers.where.upload(rows).repeat_interleave(2)[:, None]
        noise = buffers.uniforms.upload(rows)
        spans = (buffers.where.host[:rows] + 1).tolist()
        mask = torch.arange(max(spans), device=self.device)[None, None, None] <= where[:, :, None, None]
        hidden = model(tokens, positions, where, mask, spans, self.keys[:, : rows * 2], self.values[:, : rows * 2])
        hidden = hidden.view(rows, 2, -1)
        buffers.hidden[:rows] = hidden
        text = buffers.sampling(0, rows, self.filter_k)
        audio = buffers.sampling(1, rows, self.filter_k)
        buffers.actions[:rows] = sample(model.action_logits(hidden), text, noise[:, 0])
        # BOS and PAD are cut off in front of the guidance filter, so they cannot take places in it.
        cb0 = model.cb0_logits(hidden)[..., : self.config.codec_vocab]
        buffers.codes[:rows, 0] = sample(cb0, audio, noise[:, 1])
        return buffers.actions[:rows].cpu().numpy()

    @torch.inference_mode()
    def depform(self, rows: int) -> None:
        """Codebooks 1..C-1 of slots 0..rows-1, into the buffers, from the hidden states of `transform`."""
        buffers = self.buffers
        known, mask = buffers.known.upload(rows), buffers.known_mask.upload(rows)
        audio = buffers.sampling(1, rows, self.filter_k)
        noise = buffers.uniforms.tensor[:rows]

        def pick(codebook: int, logits: Tensor) -> Tensor:
            ids = sample(logits.view(rows, 2, -1), audio, noise[:, 1 + codebook])
            buffers.codes[:rows, codebook] = ids
            return build_on(codebook)

        def build_on(codebook: int) -> Tensor:
            ids = torch.where(mask[:, codebook], known[:, codebook], buffers.codes[:rows, codebook])
            return ids.repeat_interleave(2)

        text = buffers.text.upload(rows).repeat_interleave(2, dim=0)
        hidden = buffers.hidden[:rows].view(rows * 2, -1)
        self.model.depformer(hidden, text, build_on(0), pick)

    def codes(self, rows: int) -> Ids:
        """The sampled ids [rows, C] of the frame."""
        ids: Ids = self.buffers.codes[:rows].cpu().numpy()
        return ids

    @torch.inference_mode()
    def decode(self, slots: list[int], codes: Ids) -> NDArray[np.float32]:
        """Audio [B, T * frame_samples] of the next T frames `codes` [B, C, T] of some slots, continuing each one's."""
        rows = torch.tensor(slots, device=self.device)
        audio = self.codec.decode(torch.from_numpy(codes).to(self.device), self.codec_state, rows)
        pcm: NDArray[np.float32] = audio.float().cpu().numpy()
        return pcm

    @torch.inference_mode()
    def snapshot(self, slot: int, columns: int, *, codec: bool) -> SlotSnapshot:
        """Copy what a slot has seen: the first `columns` KV rows and, if asked, its codec state."""
        rows = slice(slot * 2, slot * 2 + 2)
        keys, values = (cache[:, rows, :, :columns].clone() for cache in (self.keys, self.values))
        return SlotSnapshot(keys, values, self.codec_state.snapshot(slot) if codec else None)

    @torch.inference_mode()
    def restore(self, slot: int, snapshot: SlotSnapshot | None) -> None:
        """Put a slot into a snapshot's state; None: empty."""
        rows = slice(slot * 2, slot * 2 + 2)
        if snapshot is not None:
            columns = snapshot.keys.shape[3]
            self.keys[:, rows, :, :columns] = snapshot.keys
            self.values[:, rows, :, :columns] = snapshot.values
        if snapshot is not None and snapshot.codec is not None:
            self.codec_state.restore(slot, snapshot.codec)
        else:
            self.codec_state.reset(slot)

    def _branches(self, columns: Tensor) -> Tensor:
        """Both guidance branches [2B, N, 2 + C] of columns [B, N, 2 + C]: the second one without text."""
        both = columns[:, None].repeat(1, 2, 1, 1)
        both[:, 1, :, 0] = self.config.text_zero
        both[:, 1, :, 1] = self.config.text_pad
        return both.flatten(0, 1)
