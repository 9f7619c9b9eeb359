"""The language model as published: the keys of `model.safetensors` are this module's."""

from __future__ import annotations

from torch import nn

from .config import ModelConfig
from .depformer import Depformer
from .transformer import Transformer


class Dia2(nn.Module):
    """`transformer.*` and `depformer.*`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.depformer = Depformer(config)
