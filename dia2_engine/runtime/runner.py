"""The one place that runs the model: KV cache, codec state and step buffers of all slots, and the passes over them.

Two kinds of work. `extend` feeds known columns of one slot, many at once, transformer only. A `frame` is one column
of each slot that takes part: `transform`, then, for slots past their delay, `depform`.

On a GPU a pass has one of a few shapes (*buckets*), recorded at start-up. Rows that only fill a bucket up are inert:
they run with legal ids, on a slot of scratch that nobody reads, and their results are ignored.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.dia2 import Dia2
from ..model.mimi import MimiDecoder
from ..model.plain import PlainModel
from ..model.step import SlotMemory, Step
from .buffers import StepBuffers
from .graphs import Graphs
from .pages import PagePool

log = logging.getLogger(__name__)

Ids = NDArray[np.int64]

_PAGE_COLUMNS = 64  # of the KV cache on a GPU


class Passes(Protocol):
    """What a model can do; the results are in the step's own tensors."""

    def extend(self, step: Step, memory: SlotMemory) -> None: ...
    def transform(self, step: Step, memory: SlotMemory) -> None: ...
    def depform(self, step: Step) -> None: ...


@dataclass(frozen=True)
class SlotSnapshot:
    """Device state after the columns and frames that no request can influence."""

    keys: Tensor  # [layers, pages, 2, kv_heads, rows, head_dim]
    values: Tensor
    codec: Any | None  # the codec's state after the prefix's frames


class ModelRunner:
    """Owns the device. Not thread-safe: one engine thread calls it."""

    def __init__(
        self,
        model: Dia2,
        codec: MimiDecoder,
        *,
        slots: int,
        filter_k: int,
        cuda_graphs: bool = True,
        kv_gb: float = 0.0,
    ) -> None:
        """`kv_gb` bounds the KV cache, which holds at least one whole context; 0 holds one for each slot."""
        config = model.config
        weight = model.transformer.cb0_head.weight
        self.model, self.codec, self.config = model, codec, config
        self.slots, self.device = slots, weight.device
        self.on_gpu = self.device.type == "cuda"
        self.buffers = StepBuffers(slots, config, weight.device, weight.dtype)
        self._actions = self.buffers.step.actions  # on the host
        if self.on_gpu:
            self._actions = torch.zeros(slots, dtype=torch.int32, pin_memory=True)
            self._transformed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        context, page = config.max_context_steps + 1, config.max_context_steps + 1
        self._passes: Passes
        if self.on_gpu:
            from ..model.fused import EXTEND_COLUMNS, FusedModel

            self._passes = FusedModel(model, filter_k)
            self._extend_columns = EXTEND_COLUMNS
            context, page = context + EXTEND_COLUMNS, _PAGE_COLUMNS
        else:
            self._passes = PlainModel(model, filter_k)
            self._extend_columns = config.max_context_steps
        whole, stack = -(-context // page), config.decoder
        page_bytes = 2 * stack.layers * 2 * stack.kv_heads * page * stack.head_dim * weight.element_size()
        count = max(whole, min(slots * whole, int(kv_gb * 1e9) // page_bytes)) if kv_gb else slots * whole
        # One page more, of scratch: for rows that fill a bucket up, and for columns behind a stream's last.
        keys = torch.zeros(
            (stack.layers, count + 1, 2, stack.kv_heads, page, stack.head_dim), dtype=weight.dtype, device=self.device
        )
        self.pages, self._page_columns, self._scratch_page = PagePool(count), page, count
        self._table = torch.full((slots + 1, whole), count, dtype=torch.int32, pin_memory=self.on_gpu)  # on the host
        self.memory = SlotMemory(keys, torch.zeros_like(keys), self._table.clone().to(self.device))
        if self.on_gpu:
            from ..model.mimi.fused import FusedMimi

            self._codec = FusedMimi(codec, exact=weight.dtype == torch.float32)
            self.codec_state = self._codec.new_state(slots + 1)  # one of scratch, for rows that fill a bucket up
            self._codes = torch.zeros((slots, config.codebooks), dtype=torch.int32, device=self.device)
            self._codec_rows = torch.full((slots,), slots, dtype=torch.int64, device=self.device)
            self._audio = torch.zeros((slots, codec.config.frame_samples), device=self.device)
        else:
            self.codec_state = codec.new_state(slots)
        self._extended = self._extend_step(self._extend_columns if self.on_gpu else 1)
        self._buckets: list[int] = sorted({min(1 << power, slots) for power in range(slots.bit_length() + 1)})
        self.graphs = Graphs(self.on_gpu and cuda_graphs)
        if self.on_gpu:
            self._warm_up()

    # ---- passes

    @torch.inference_mode()
    def extend(self, slot: int, columns: Ids, start: int) -> None:
        """Feed `columns` [N, 2 + C] to a slot at positions `start ..`; nothing is sampled."""
        for first in range(0, len(columns), self._extend_columns):
            part = torch.from_numpy(columns[first : first + self._extend_columns].astype(np.int32))
            if not self.on_gpu:
                self._extended = self._extend_step(len(part))
            step = self._extended
            # On a GPU the columns behind the last one are leftovers: legal, and overwritten before they are read.
            step.columns[0, : len(part)].copy_(part)
            for tensor, value in ((step.slots, slot), (step.positions, start + first), (step.where, start + first)):
                tensor.fill_(value)
            self.graphs.run("extend", lambda step=step: self._passes.extend(step, self.memory))  # type: ignore[misc]

    @torch.inference_mode()
    def transform(self, rows: int) -> None:
        """One column of the slots staged in the buffers' first rows; samples actions and codebook 0."""
        step = self._fill_up(rows)
        self.graphs.run(("transform", len(step.slots)), lambda: self._passes.transform(step, self.memory))
        if self.on_gpu:
            self._actions.copy_(self.buffers.step.actions, non_blocking=True)
            self._transformed.record()

    def actions(self, rows: int) -> Ids:
        """The actions [rows] that `transform` sampled; waits for it, and for nothing that came after it."""
        if self.on_gpu:
            self._transformed.synchronize()
        return self._actions[:rows].numpy()

    @torch.inference_mode()
    def depform(self, rows: int) -> None:
        """Codebooks 1..C-1 of the slots in the first rows, into the buffers, from what `transform` left."""
        if self.config.depformer_text:
            self.buffers.upload()  # the text came after `transform`
        step = self.buffers.step.first(self._bucket(rows))
        self.graphs.run(("depform", len(step.slots)), lambda: self._passes.depform(step))

    def codes(self, rows: int) -> Ids:
        """The sampled ids [rows, C] of the frame."""
        ids: Ids = self.buffers.step.codes[:rows].cpu().numpy().astype(np.int64)
        return ids

    @torch.inference_mode()
    def decode(self, slots: list[int], codes: Ids) -> NDArray[np.float32]:
        """Audio [B, T * frame_samples] of the next T frames `codes` [B, C, T] of some slots, continuing each one's."""
        if self.on_gpu:
            audio = self._decode_frames(slots, torch.from_numpy(codes.transpose(2, 0, 1).astype(np.int32)))
        else:
            audio = self.codec.decode(torch.from_numpy(codes), self.codec_state, torch.tensor(slots))
        pcm: NDArray[np.float32] = audio.cpu().numpy()
        return pcm

    def _decode_frames(self, slots: list[int], frames: Tensor) -> Tensor:
        """Audio [B, T * frame_samples] of `frames` [T, B, C], on a GPU, where one recorded pass decodes one frame."""
        batch, bucket = len(slots), self._bucket(len(slots))
        self._codec_rows[:bucket].copy_(torch.tensor(slots + [self.slots] * (bucket - batch)))
        parts = []
        for frame in frames:
            self._codes[:batch].copy_(frame)
            self.graphs.run(("decode", bucket), lambda: self._decode(bucket))
            audio = self._audio[:batch]
            parts.append(audio if len(frames) == 1 else audio.clone())
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    # ---- a slot's state

    def has_room(self, columns: int) -> bool:
        """Whether a slot that may take so many columns could be opened now."""
        return self._pages_for(columns) <= self.pages.free

    @torch.inference_mode()
    def open(self, slot: int, columns: int) -> None:
        """Give a slot the memory for as many columns as it may ever take. Raises ValueError if there is not enough."""
        pages = self.pages.take(slot, self._pages_for(columns))
        self._table[slot] = self._scratch_page
        self._table[slot, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        self.memory.table[slot].copy_(self._table[slot], non_blocking=True)

    def close(self, slot: int) -> None:
        """Take a slot's memory back."""
        self.pages.give_back(slot)

    def _pages_for(self, columns: int) -> int:
        # One row more than positions: the reference's boundary feeds one column twice.
        return min(-(-(columns + 1) // self._page_columns), self._table.shape[1])

    @torch.inference_mode()
    def snapshot(self, slot: int, columns: int, *, codec: bool) -> SlotSnapshot:
        """Copy what a slot has seen: the first `columns` KV rows and, if asked, its codec state."""
        page = self._page_columns
        pages, rows = self.pages.of(slot)[: -(-columns // page)], min(columns, page)
        keys, values = (cache[:, pages, ..., :rows, :] for cache in (self.memory.keys, self.memory.values))
        return SlotSnapshot(keys, values, self.codec_state.snapshot(slot) if codec else None)

    @torch.inference_mode()
    def restore(self, slot: int, snapshot: SlotSnapshot | None) -> None:
        """Put a slot into a snapshot's state; None: empty."""
        if snapshot is not None:
            rows = snapshot.keys.shape[4]
            for page, keys, values in zip(
                self.pages.of(slot), snapshot.keys.unbind(1), snapshot.values.unbind(1), strict=False
            ):
                self.memory.keys[:, page, ..., :rows, :] = keys
                self.memory.values[:, page, ..., :rows, :] = values
        if snapshot is not None and snapshot.codec is not None:
            self.codec_state.restore(slot, snapshot.codec)
        else:
            self.codec_state.reset(slot)

    # ---- shapes

    def _fill_up(self, rows: int) -> Step:
        """The step's tensors on the device, of as many rows as a bucket has; those beyond `rows` are inert."""
        bucket = self._bucket(rows)
        self.buffers.inputs.make_inert(rows, bucket, slot=self.slots)
        self.buffers.upload()
        return self.buffers.step.first(bucket)

    def _bucket(self, rows: int) -> int:
        if not self.on_gpu:
            return rows
        return self._buckets[bisect_left(self._buckets, rows)]

    def _extend_step(self, columns: int) -> Step:
        step = self.buffers.step.first(1)
        ids = torch.zeros((1, columns, 2 + self.config.codebooks), dtype=torch.int32, device=self.device)
        slots, positions, where = (torch.zeros_like(step.slots) for _ in range(3))
        return Step(**{**step.__dict__, "columns": ids, "slots": slots, "positions": positions, "where": where})

    def _decode(self, bucket: int) -> None:
        rows, audio = self._codec_rows[:bucket], self._audio[:bucket]
        self._codec.decode(self._codes[:bucket], self.codec_state, rows, audio)

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Compile, run and record every pass in every shape, so that no request ever does."""
        started = time.monotonic()
        self.graphs.record("extend", lambda: self._passes.extend(self._extended, self.memory))
        for bucket in self._buckets:
            step = self._fill_up(bucket)
            self.graphs.record(("transform", bucket), lambda step=step: self._passes.transform(step, self.memory))  # type: ignore[misc]
            self.graphs.record(("depform", bucket), lambda step=step: self._passes.depform(step))  # type: ignore[misc]
            self.graphs.record(("decode", bucket), lambda bucket=bucket: self._decode(bucket))  # type: ignore[misc]
            log.info("passes of %d streams ready after %.1f s", bucket, time.monotonic() - started)
        torch.cuda.synchronize()
