"""The model's passes in plain PyTorch: on the CPU, and the twin of what `model.fused` does on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import FROM_PREFIX, SAMPLED
from .dia2 import Dia2
from .sampling import SamplingRows, sample
from .step import Columns, Rows, SlotMemory, Step


class PlainModel:
    """The three passes: `extend`, `transform` and `depform`. A page of its memory is a whole context."""

    def __init__(self, model: Dia2, filter_k: int) -> None:
        self.model, self.config, self.filter_k = model, model.config, filter_k

    def extend(self, columns: Columns, memory: SlotMemory) -> None:
        """Feed N known columns of each row; nothing is sampled."""
        self._hidden(columns, columns.text, columns.audio, memory)

    def transform(self, step: Step, memory: SlotMemory) -> None:
        """Feed one column of each row; samples actions and codebook 0, and keeps the hidden state."""
        config, model, rows = self.config, self.model.transformer, step.slots.shape[0]
        hidden = self._hidden(step, step.text[:, None], memory.audio[step.slots][:, None], memory)[:, 0]
        step.hidden.copy_(hidden)
        hidden = hidden.view(rows, 2, -1)
        step.actions.copy_(sample(model.action_logits(hidden), self._settings(step, 0), step.uniforms[:, 0]))
        # BOS and PAD are cut off in front of the guidance filter, so they cannot take places in it.
        cb0 = model.cb0_logits(hidden)[..., : config.codec_vocab]
        step.codes[:, 0] = sample(cb0, self._settings(step, 1), step.uniforms[:, 1])
        self._keep(step, memory)

    def depform(self, step: Step, memory: SlotMemory) -> None:
        """Codebooks 1 and up, from the hidden state and codebook 0 of `transform`."""
        audio, rows = self._settings(step, 1), step.slots.shape[0]

        def pick(codebook: int, logits: Tensor) -> Tensor:
            ids = sample(logits.view(rows, 2, -1), audio, step.uniforms[:, 1 + codebook])
            step.codes[:, codebook] = ids
            return build_on(codebook)

        def build_on(codebook: int) -> Tensor:
            from_prefix = step.given_kind[:, codebook] == FROM_PREFIX
            ids = torch.where(from_prefix, step.given[:, codebook], step.codes[:, codebook])
            return ids.repeat_interleave(2)

        text = step.next_text.repeat_interleave(2, dim=0)
        self.model.depformer(step.hidden, text, build_on(0), pick)
        self._keep(step, memory)

    @staticmethod
    def _keep(step: Step, memory: SlotMemory) -> None:
        """The slots' next columns, as far as they are made."""
        memory.audio[step.slots] = torch.where(step.given_kind == SAMPLED, step.codes, step.given)

    def _hidden(self, rows: Rows, text: Tensor, audio: Tensor, memory: SlotMemory) -> Tensor:
        """Hidden states [R * 2, N, width], both branches, of text ids [R, N, 2] and audio ids [R, N, C]."""
        following = torch.arange(text.shape[1], device=text.device)
        positions, where = (
            (first[:, None] + following).repeat_interleave(2, dim=0) for first in (rows.positions, rows.where)
        )
        spans = (where[::2, -1] + 1).tolist()
        mask = torch.arange(max(spans), device=where.device) <= where[:, None, :, None]
        keys, values = memory.keys.flatten(1, 2), memory.values.flatten(1, 2)
        pages = memory.table[rows.slots, 0].tolist()
        tokens = self._branches(torch.cat((text, audio), dim=-1))
        out: Tensor = self.model.transformer(tokens, positions, pages, where, mask, spans, keys, values)
        return out

    def _branches(self, columns: Tensor) -> Tensor:
        """Both guidance branches [2R, N, 2 + C] of columns [R, N, 2 + C]: the second one without text."""
        both = columns[:, None].repeat(1, 2, 1, 1)
        both[:, 1, :, 0] = self.config.text_zero
        both[:, 1, :, 1] = self.config.text_pad
        return both.flatten(0, 1)

    def _settings(self, step: Step, head: int) -> SamplingRows:
        return SamplingRows(step.cfg_scale, step.temperatures[:, head], step.top_k[:, head], self.filter_k)
