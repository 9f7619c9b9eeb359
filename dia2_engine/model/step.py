"""The tensors of one pass over the slots, as both implementations of the model read and write them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SlotMemory:
    """What the device keeps of each slot between passes.

    The KV cache lies, for each layer, in pages of columns, both guidance branches in each. The plain model has one
    page per slot, which holds the whole context. The ids that a step samples stay on the device, as the next step's
    input, so that no step waits for the host to read and return them.
    """

    keys: Tensor  # [layers, pages, 2, kv_heads, page, head_dim]
    values: Tensor
    table: Tensor  # [slots, pages of one slot] int32: in which pages a slot's columns lie, in order
    audio: Tensor  # [slots, C] int32: audio ids of the slot's next column


@dataclass(frozen=True)
class Rows:
    """Where R rows stand, one row per slot; int32."""

    slots: Tensor  # [R]: whose memory a row reads and writes
    positions: Tensor  # [R]: of the first column, for RoPE
    where: Tensor  # [R]: its row in the cache


@dataclass(frozen=True)
class Columns(Rows):
    """N known columns of each row, to be fed; ids are int32. C codebooks."""

    text: Tensor  # [R, N, 2]
    audio: Tensor  # [R, N, C]


@dataclass(frozen=True)
class Step(Rows):
    """Inputs and outputs of a pass over one column of each row, and what makes the next one; ids are int32."""

    text: Tensor  # [R, 2] text ids to consume; the audio ids are in the slot's memory
    next_text: Tensor  # [R, 2] text ids of the column that is made, for a depformer that reads text
    given: Tensor  # [R, C] ids of that column that are not sampled
    given_kind: Tensor  # [R, C] int32: `types.SAMPLED`, FROM_PREFIX or BEFORE_START
    uniforms: Tensor  # [R, 1 + C] float32 noise: action, then codebooks
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
