"""The one place that runs the model: KV cache, codec state and step buffers of all slots, and the passes over them.

Two kinds of work. `extend` feeds known columns of one slot, many at once, transformer only. A `frame` is one column
of each slot that takes part: `transform`, then, for slots past their delay, `depform`. On a GPU these are put into
the device's queue and the host goes on; `actions` and `fetch` say what came out. The codec has a queue of its own, so
that a frame is decoded while the next one is made. On the CPU, if a pass is to use no more than one thread, the queue
is a thread too, and the codec runs in the caller's.

On a GPU a pass has one of a few shapes (*buckets*), recorded at start-up. Rows that only fill a bucket up are inert:
they run with legal ids, on a slot of scratch that nobody reads, and their results are ignored.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.dia2 import Dia2
from ..model.mimi import MimiDecoder
from ..model.plain import PlainModel
from ..model.step import Columns, SlotMemory, Step
from .buffers import ColumnBuffers, Staged, StepBuffers
from .graphs import Graphs
from .pages import PagePool, cache_pages
from .queue import PassQueue

log = logging.getLogger(__name__)

Ids = NDArray[np.int64]

_PAGE_COLUMNS = 64  # of the KV cache on a GPU
_KV_SHARE = 0.9  # of the memory that is free beside the weights; CUDA graphs and the codec's state need the rest


class Passes(Protocol):
    """What a model can do; the results are in the step's own tensors."""

    def extend(self, columns: Columns, memory: SlotMemory) -> None: ...
    def transform(self, step: Step, memory: SlotMemory) -> None: ...
    def depform(self, step: Step, memory: SlotMemory) -> None: ...


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
        """`kv_gb` bounds the KV cache; 0: by the memory that is free, on a GPU."""
        config = model.config
        weight = model.transformer.cb0_head.weight
        self.model, self.codec, self.config = model, codec, config
        self.slots, self.device = slots, weight.device
        self.on_gpu = self.device.type == "cuda"
        self.buffers = StepBuffers(slots, config, weight.device, weight.dtype)
        self._host = _HostResults(self.buffers.step) if self.on_gpu else None
        # A pass that uses several threads leaves no core for another one to be beside it.
        beside = not self.on_gpu and torch.get_num_threads() == 1
        self._queue, self._acted = PassQueue(thread=beside), Future[None]()
        self.overlaps = self.on_gpu or beside  # whether a frame is decoded while the next one is made
        self._codec_queue = torch.cuda.Stream(priority=-1) if self.on_gpu else None  # type: ignore[no-untyped-call]
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
        room = kv_gb * 1e9
        if self.on_gpu and not kv_gb:
            room = _KV_SHARE * torch.cuda.mem_get_info(self.device)[0]
        count = cache_pages(slots, whole, int(room) // page_bytes if room else slots * whole)
        log.info("KV cache of %.1f GB: %.1f whole contexts", count * page_bytes / 1e9, count / whole)
        # One page more, of scratch: for rows that fill a bucket up, and for columns behind a stream's last.
        keys = torch.zeros(
            (stack.layers, count + 1, 2, stack.kv_heads, page, stack.head_dim), dtype=weight.dtype, device=self.device
        )
        self.pages, self._page_columns, self._scratch_page = PagePool(count), page, count
        self._table = torch.full((slots + 1, whole), count, dtype=torch.int32, pin_memory=self.on_gpu)  # on the host
        # One slot more, of scratch too.
        audio = torch.zeros((slots + 1, config.codebooks), dtype=torch.int32, device=self.device)
        self.memory = SlotMemory(keys, torch.zeros_like(keys), self._table.clone().to(self.device), audio)
        self._first_audio = Staged({"ids": (config.codebooks,)}, self.device)
        self._known = ColumnBuffers(self._extend_columns if self.on_gpu else 1, config, self.device)
        if self.on_gpu:
            from ..model.mimi.fused import FusedMimi

            self._codec = FusedMimi(codec, exact=weight.dtype == torch.float32)
            self.codec_state = self._codec.new_state(slots + 1)
            self.frames = Staged({"slots": (slots,), "codes": (slots, config.codebooks)}, self.device)
            self._audio = torch.zeros((slots, codec.config.frame_samples), device=self.device)
            self._pcm = torch.zeros_like(self._audio, device="cpu", pin_memory=True)
        else:
            self.codec_state = codec.new_state(slots)
        self._buckets: list[int] = sorted({min(1 << power, slots) for power in range(slots.bit_length() + 1)})
        self.graphs = Graphs(self.on_gpu and cuda_graphs)
        self.codec_graphs = Graphs(self.on_gpu and cuda_graphs, self._codec_queue)
        if self.on_gpu:
            self._warm_up()

    # ---- passes

    @torch.inference_mode()
    def extend(self, slot: int, columns: Ids, start: int) -> None:
        """Feed `columns` [N, 2 + C] to a slot at positions `start ..`; nothing is sampled."""
        self._queue.wait()
        for first in range(0, len(columns), self._extend_columns):
            part = columns[first : first + self._extend_columns]
            if not self.on_gpu:
                self._known = ColumnBuffers(len(part), self.config, self.device)
            self._known.fill(slot, part, start + first)
            self.graphs.run("extend", lambda: self._passes.extend(self._known.columns, self.memory))

    @torch.inference_mode()
    def enter(self, slot: int, audio: Ids) -> None:
        """Say which audio ids [C] the slot's first step consumes; each step leaves those of the next."""
        self._queue.wait()
        self._first_audio.wait()
        self._first_audio.arrays["ids"][:] = audio
        self._first_audio.upload()
        self.memory.audio[slot].copy_(self._first_audio.tensors["ids"])

    @torch.inference_mode()
    def transform(self, rows: int) -> None:
        """One column of the slots staged in the buffers' first rows; samples actions and codebook 0."""
        step = self._fill_up(rows)
        key = ("transform", len(step.slots))
        self._acted = self._queue.put(lambda: self.graphs.run(key, lambda: self._passes.transform(step, self.memory)))
        if self._host is not None:
            self._host.fetch_actions()

    def actions(self, rows: int) -> Ids:
        """The actions [rows] that `transform` sampled; waits for it, and for nothing that came after it."""
        if self._host is not None:
            return self._host.actions()[:rows]
        self._acted.result()
        return self.buffers.step.actions.numpy()[:rows]

    @torch.inference_mode()
    def depform(self, rows: int) -> None:
        """Codebooks 1..C-1 of the slots in the first rows, into the buffers, from what `transform` left."""
        if self.config.depformer_text:
            self.buffers.upload()  # the text came after `transform`
        step = self.buffers.step.first(self._bucket(rows))
        key = ("depform", len(step.slots))
        self._queue.put(lambda: self.graphs.run(key, lambda: self._passes.depform(step, self.memory)))

    @torch.inference_mode()
    def fetch(self, rows: int) -> Callable[[], Ids]:
        """Have the ids [rows, C] of the step that was just queued copied to the host; the result waits for them.

        It is to be called before the step after the next one is queued.
        """
        if self._host is not None:
            return self._host.fetch_codes(rows)
        return self._queue.put(lambda: self.buffers.step.codes[:rows].numpy().astype(np.int64)).result

    @torch.inference_mode()
    def decode(self, slots: list[int], codes: Ids) -> NDArray[np.float32]:
        """Audio [B, T * frame_samples] of the next T frames `codes` [B, C, T] of some slots, continuing each one's.

        Waits for the audio, but not for what is queued of the model's passes.
        """
        if self._codec_queue is None:
            audio: NDArray[np.float32] = self.codec.decode(
                torch.from_numpy(codes), self.codec_state, torch.tensor(slots)
            ).numpy()
            return audio
        batch, bucket, arrays = len(slots), self._bucket(len(slots)), self.frames.arrays
        arrays["slots"][:batch], arrays["slots"][batch:bucket] = slots, self.slots
        parts = []
        with self._beside():
            for frame in range(codes.shape[2]):
                self.frames.wait()
                arrays["codes"][:batch] = codes[:, :, frame]
                self.frames.upload()
                self.codec_graphs.run(bucket, lambda: self._decode(bucket))
                self._pcm[:batch].copy_(self._audio[:batch], non_blocking=True)
                self._codec_queue.synchronize()
                parts.append(self._pcm[:batch].numpy().copy())
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    # ---- a slot's state

    def has_room(self, columns: int) -> bool:
        """Whether a slot that may take so many columns could be opened now."""
        return self._pages_for(columns) <= self.pages.free

    @torch.inference_mode()
    def open(self, slot: int, columns: int) -> None:
        """Give a slot the memory for as many columns as it may ever take. Raises ValueError if there is not enough."""
        self._queue.wait()
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
        self._queue.wait()
        page = self._page_columns
        pages, rows = self.pages.of(slot)[: -(-columns // page)], min(columns, page)
        keys, values = (cache[:, pages, ..., :rows, :] for cache in (self.memory.keys, self.memory.values))
        return SlotSnapshot(keys, values, self.codec_state.snapshot(slot) if codec else None)

    @torch.inference_mode()
    def restore(self, slot: int, snapshot: SlotSnapshot | None, *, codec: bool = True) -> None:
        """Put a slot into a snapshot's state; None: empty. Not `codec`: the codec's state stays as it is."""
        self._queue.wait()
        if snapshot is not None:
            rows = snapshot.keys.shape[4]
            for page, keys, values in zip(
                self.pages.of(slot), snapshot.keys.unbind(1), snapshot.values.unbind(1), strict=False
            ):
                self.memory.keys[:, page, ..., :rows, :] = keys
                self.memory.values[:, page, ..., :rows, :] = values
        if not codec:
            return
        with self._beside():
            if snapshot is not None and snapshot.codec is not None:
                self.codec_state.restore(slot, snapshot.codec)
            else:
                self.codec_state.reset(slot)

    def _beside(self) -> AbstractContextManager[object]:
        """What touches the codec's state goes into the codec's queue."""
        return nullcontext() if self._codec_queue is None else torch.cuda.stream(self._codec_queue)

    # ---- the queue

    def wait(self) -> None:
        """Until the step's inputs may be written again."""
        self.buffers.wait()
        self._queue.wait()

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

    def _decode(self, bucket: int) -> None:
        codes, rows = (self.frames.tensors[name][:bucket] for name in ("codes", "slots"))
        self._codec.decode(codes, self.codec_state, rows, self._audio[:bucket])

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Compile, run and record every pass in every shape, so that no request ever does."""
        from ..model.kernels.launch import compiled_ahead

        started = time.monotonic()
        self.frames.arrays["slots"][:] = self.slots
        self.frames.upload()
        with compiled_ahead():
            self._passes.extend(self._known.columns, self.memory)
            for bucket in self._buckets:
                step = self._fill_up(bucket)
                self._passes.transform(step, self.memory)
                self._passes.depform(step, self.memory)
                self._decode(bucket)
        log.info("kernels compiled after %.1f s", time.monotonic() - started)
        self.graphs.record("extend", lambda: self._passes.extend(self._known.columns, self.memory))
        for bucket in self._buckets:
            step = self._fill_up(bucket)
            self.graphs.record(("transform", bucket), lambda step=step: self._passes.transform(step, self.memory))  # type: ignore[misc]
            self.graphs.record(("depform", bucket), lambda step=step: self._passes.depform(step, self.memory))  # type: ignore[misc]
            with self._beside():
                self.codec_graphs.record(bucket, lambda bucket=bucket: self._decode(bucket))  # type: ignore[misc]
            log.info("passes of %d streams ready after %.1f s", bucket, time.monotonic() - started)
        torch.cuda.synchronize()


class _HostResults:
    """What a GPU's passes gave, copied into pinned memory behind them, and when it has arrived."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._actions, self._acted = _pinned(step.actions), _event()
        # Two, by turns: the host reads one step's ids while the next step's are on their way.
        self._codes = [(_pinned(step.codes), _event()) for _ in range(2)]

    def fetch_actions(self) -> None:
        self._actions.copy_(self._step.actions, non_blocking=True)
        self._acted.record()

    def actions(self) -> NDArray[Any]:
        self._acted.synchronize()
        return self._actions.numpy()

    def fetch_codes(self, rows: int) -> Callable[[], Ids]:
        host, arrived = self._codes[0]
        self._codes.reverse()
        host[:rows].copy_(self._step.codes[:rows], non_blocking=True)
        arrived.record()

        def codes() -> Ids:
            arrived.synchronize()
            ids: Ids = host[:rows].numpy().astype(np.int64)
            return ids

        return codes


def _pinned(like: Tensor) -> Tensor:
    return torch.zeros_like(like, device="cpu", pin_memory=True)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
