"""The tensors of one pass over the slots, as both implementations of the model read and write them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SlotMemory:
    """The KV cache of all slots: for each layer pages of columns, both guidance branches in each.

    The plain model has one page per slot, which holds the whole context.
    """

    keys: Tensor  # [layers, pages, 2, kv_heads, page, head_dim]
    values: Tensor
    table: Tensor  # [slots, pages of one slot] int32: in which pages a slot's columns lie, in order


@dataclass(frozen=True)
class Step:
    """Inputs and outputs of a pass over R rows of N columns, one row per slot; ids are int32. C codebooks."""

    slots: Tensor  # [R] int32: whose cache a row reads and writes
    columns: Tensor  # [R, N, 2 + C] ids to consume
    positions: Tensor  # [R] int32: of the first column, for RoPE
    where: Tensor  # [R] int32: its row in the cache
    uniforms: Tensor  # [R, 1 + C] float32 noise: action, then codebooks
    text: Tensor  # [R, 2] text ids of the column that is made, for a depformer that reads text
    known: Tensor  # [R, C] ids of that column that the prefix gives
    known_mask: Tensor  # [R, C] int32: 1 where it does
    cfg_scale: Tensor  # [R] float32
    temperatures: Tensor  # [R, 2] float32: text, audio
    top_k: Tensor  # [R, 2] int32: text, audio; 0 is off
    hidden: Tensor  # [R * 2, width]: what `transform` leaves for `depform`, both branches
    actions: Tensor  # [R] int32: sampled
    codes: Tensor  # [R, C] int32: sampled

    def first(self, rows: int) -> Step:
        """The same, of the first rows only."""
        parts = {name: tensor[:rows] for name, tensor in self.__dict__.items()}
        return Step(**{**parts, "hidden": self.hidden[: 2 * rows]})
