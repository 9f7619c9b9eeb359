"""The model's passes on a GPU: the weights of `Dia2`, laid out for and run by the kernels of `model.kernels`.

Every pass has static shapes and touches no host, so it can be recorded as a CUDA graph. The plain modules keep
working: their parameters become views of what is laid out here, and the weight of an RMSNorm is part of the products
behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .depformer import Depformer, DepformerLayer
from .dia2 import Dia2
from .kernels.attention import PagedAttention, attend_stages
from .kernels.embedding import embed
from .kernels.linear import Pending, linear, pending
from .kernels.sampling import StageInput, first_stage, sample_heads, sample_stage
from .layers import GatedMlp, Linear, TextEmbedding, rope_table
from .step import Columns, SlotMemory, Step
from .transformer import Layer

EXTEND_COLUMNS = 32  # that one pass of `extend` feeds at most


class FusedModel:
    """The three passes: `extend`, `transform` and `depform`."""

    def __init__(self, model: Dia2, filter_k: int) -> None:
        """Raises ConfigError for heads that the kernels cannot hold."""
        for name, stack in (("decoder", model.config.decoder), ("depformer", model.config.depformer)):
            if stack.head_dim < 16 or stack.head_dim & (stack.head_dim - 1):
                allowed = "a power of two from 16 on where the model runs on a GPU"
                raise ConfigError(f"'model.{name}.gqa_head_dim' is {stack.head_dim}; it must be {allowed}")
        self._config, self._filter_k = model.config, filter_k
        self._transformer = _FusedTransformer(model)
        self._depformer = _FusedDepformer(model.depformer, self._transformer.eps)

    def extend(self, columns: Columns, memory: SlotMemory) -> None:
        """Feed N known columns of each row; nothing is sampled."""
        rows, count, _ = columns.text.shape
        x = memory.keys.new_empty((rows * 2 * count, self._config.decoder.width))
        self._transformer(columns, memory, x, all_of_it=False)

    def transform(self, step: Step, memory: SlotMemory) -> None:
        """Feed one column of each row; samples actions and codebook 0, and keeps the hidden state."""
        config, transformer = self._config, self._transformer
        transformer(step, memory, step.hidden)
        logits = pending(step.hidden, transformer.heads, transformer.eps, torch.float32)
        sample_heads(*logits, step, memory, self._filter_k, config.actions, config.codec_vocab)

    def depform(self, step: Step, memory: SlotMemory) -> None:
        """Codebooks 1 and up, from the hidden state and codebook 0 of `transform`."""
        self._depformer(step, memory, self._filter_k)


@dataclass(frozen=True)
class _Mlp:
    eps: float  # of the norm in front
    wi: Tensor  # [2 * hidden, width]
    wo: Tensor  # [width, hidden]
    activations: tuple[str, str]

    @classmethod
    def of(cls, norm: nn.RMSNorm, mlp: GatedMlp, activations: tuple[str, str]) -> _Mlp:
        return cls(_folded(norm, [mlp.wi]), mlp.wi.weight, mlp.wo.weight, activations)

    def add_to(self, x: Tensor) -> None:
        linear(linear(x, self.wi, norm=self.eps, gate=self.activations), self.wo, add_to=x)


@dataclass(frozen=True)
class _Attention:
    eps: float  # of the norm in front, and of both others
    qkv: Tensor  # [(query_heads + 2 * kv_heads) * head_dim, width]
    norms: tuple[Tensor, Tensor]  # [head_dim] of queries, of keys
    out: Tensor  # [width, query_heads * head_dim]


class _FusedTransformer:
    def __init__(self, model: Dia2) -> None:
        module, config = model.transformer, model.config
        self.stack, self.zero = config.decoder, config.text_zero
        self.audio = _stacked([cast(nn.Embedding, table) for table in module.audio_embeds])
        self.text = _projected(module.text_embed)
        # Passes of many columns may end in columns that nobody reads: they stand behind the context.
        positions = config.max_context_steps + EXTEND_COLUMNS
        self.rope = rope_table(config.decoder.head_dim, config, positions).to(self.audio.device)
        heads = [module.action_head, module.cb0_head]
        inputs = [cast(Linear, part) for part in model.depformer.depformer_in.values()]
        self.eps = _folded(module.norm, [*heads, *inputs])
        self.heads = _joined(heads)
        self.layers = [self._laid_out(cast(Layer, layer)) for layer in module.layers]
        self._attention: dict[tuple[int, int], PagedAttention] = {}

    def _laid_out(self, layer: Layer) -> tuple[_Attention, _Mlp]:
        own = layer.attn
        parts = [own.q_proj, own.k_proj, own.v_proj]
        eps, norms = _folded(layer.pre_norm, parts), (own.q_norm.weight, own.k_norm.weight)
        attention = _Attention(eps, _joined(parts), norms, own.o_proj.weight)
        return attention, _Mlp.of(layer.post_norm, layer.mlp, self.stack.activations)

    def __call__(self, rows: Columns | Step, memory: SlotMemory, x: Tensor, *, all_of_it: bool = True) -> None:
        """Leave hidden states before the last norm in x [R * 2 * N, width]; not `all_of_it`: only fill the cache."""
        branches = 2 * rows.slots.shape[0]
        attend = self._attention_for(branches, x.shape[0] // branches)
        embed(rows, memory, self.audio, *self.text, self.zero, x)
        for index, (attention, mlp) in enumerate(self.layers):
            qkv = pending(x, attention.qkv, attention.eps)
            attended = attend(*qkv, attention.norms, attention.eps, self.rope, rows, memory, index)
            if not all_of_it and index == len(self.layers) - 1:
                break
            linear(attended, attention.out, add_to=x)
            mlp.add_to(x)

    def _attention_for(self, rows: int, columns: int) -> PagedAttention:
        stack, key = self.stack, (rows, columns)
        if key not in self._attention:
            heads = (stack.query_heads, stack.kv_heads, stack.head_dim)
            self._attention[key] = PagedAttention(rows, columns, *heads, like=self.audio)
        return self._attention[key]


class _FusedDepformer:
    def __init__(self, module: Depformer, input_eps: float) -> None:
        """input_eps: of the transformer's last norm, whose weight is part of the inputs' products already."""
        config = module.config
        self.stack, self.schedule = config.depformer, config.weights_schedule
        self.groups = sorted(set(self.schedule))
        self.tables = [cast(nn.Embedding, table).weight for table in module.audio_embeds]
        self.text = None if module.text_embed is None else _projected(module.text_embed)
        self.input_eps = input_eps
        self.inputs = _joined([cast(Linear, module.depformer_in[str(group)]) for group in self.groups])
        self.layers = [self._laid_out(cast(DepformerLayer, layer)) for layer in module.layers]
        heads = [cast(Linear, head) for head in module.logits]
        self.eps, self.rope = _folded(module.norm, heads), module.rope
        # Rows of BOS and PAD are cut off: what is never a candidate can never be sampled.
        self.logits = [head.weight[: config.codec_vocab] for head in heads]

    def _laid_out(self, layer: DepformerLayer) -> tuple[dict[int, _Attention], _Mlp]:
        """A layer's attention by weight group, and its MLP."""
        own = layer.self_attention
        eps = _folded(layer.pre_norm, [cast(Linear, part) for part in own.in_proj.values()])
        norms = (own.q_norm.weight, own.k_norm.weight)
        by_group = {}
        for group in self.groups:
            qkv, out = (cast(Linear, part[str(group)]).weight for part in (own.in_proj, own.out_proj))
            by_group[group] = _Attention(eps, qkv, norms, out)
        return by_group, _Mlp.of(layer.post_norm, layer.mlp, self.stack.activations)

    def __call__(self, step: Step, memory: SlotMemory, filter_k: int) -> None:
        stack, rows, stages = self.stack, step.hidden.shape[0], len(self.schedule)
        inputs = linear(step.hidden, self.inputs, norm=self.input_eps).view(rows, len(self.groups), stack.width)
        # A frame's own KV: every row is written before it is read.
        cache = inputs.new_empty((stack.layers, 2, rows, stack.query_heads, stages, stack.head_dim))
        x = inputs.new_empty((rows, stack.width))
        entries = [
            StageInput(table, inputs, self.groups.index(group), x)
            for table, group in zip(self.tables, self.schedule, strict=True)
        ]
        first_stage(step, entries[0])
        self._add_text(x, step)
        for stage, following in enumerate([*entries[1:], None]):
            sample_stage(*self._logits(x, stage, cache), stage + 1, step, memory, filter_k, following)

    def _add_text(self, x: Tensor, step: Step) -> None:
        if self.text is not None:
            main, second = self.text
            ids = step.next_text.long()
            x += (main[ids[:, 0]] + second[ids[:, 1]]).repeat_interleave(2, dim=0)

    def _logits(self, x: Tensor, stage: int, cache: Tensor) -> tuple[Tensor, Pending | None]:
        for (by_group, mlp), own in zip(self.layers, cache, strict=True):
            attention = by_group[self.schedule[stage]]
            qkv = pending(x, attention.qkv, attention.eps)
            attended = attend_stages(*qkv, *attention.norms, attention.eps, self.rope, own, stage)
            linear(attended, attention.out, add_to=x)
            mlp.add_to(x)
        return pending(x, self.logits[stage], self.eps, torch.float32)


@torch.no_grad()
def _folded(norm: nn.RMSNorm, behind: Sequence[Linear]) -> float:
    """Multiply a norm's weight into all products that follow it, rounded once, and leave ones; returns its epsilon."""
    assert norm.eps is not None
    for module in behind:
        module.weight.copy_(module.weight.float() * norm.weight.float())
    norm.weight.fill_(1.0)
    return norm.eps


def _joined(modules: Sequence[Linear]) -> Tensor:
    """The weights of several products as one; each module's own becomes a view of it."""
    joined = torch.cat([module.weight for module in modules])
    parts = torch.split(joined, [module.weight.shape[0] for module in modules])
    for module, part in zip(modules, parts, strict=True):
        module.weight = nn.Parameter(part, requires_grad=False)
    return joined


def _stacked(tables: Sequence[nn.Embedding]) -> Tensor:
    stacked = torch.stack([table.weight for table in tables])
    for table, part in zip(tables, stacked, strict=True):
        table.weight = nn.Parameter(part, requires_grad=False)
    return stacked


def _projected(embedding: TextEmbedding) -> tuple[Tensor, Tensor]:
    """Tables [vocab, width] of the main and the second text stream, each behind its projection; PAD adds nothing."""
    table = embedding.embedding.weight
    main, second = table @ embedding.main_proj.weight.t(), table @ embedding.second_proj.weight.t()
    second[embedding.pad] = 0.0
    return main, second
