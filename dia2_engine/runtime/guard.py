"""Checks that token ids are legal where they are about to be used.

Ids are legal by construction. What goes to the codec is checked always, since it costs nothing and is what a
listener would hear; with `debug` every place is checked, before the ids reach the device, so that a defect ends one
request with an error that names place, id and limit, and not the process with a device-side assert.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import IdOutOfRange
from ..model.config import ModelConfig

Ids = NDArray[np.int64]


class IdGuard:
    """Each method raises IdOutOfRange."""

    def __init__(self, config: ModelConfig, *, debug: bool) -> None:
        self.config = config
        self.debug = debug

    def columns(self, columns: Ids) -> None:
        """Columns [..., 2 + C] about to be read by the transformer."""
        if self.debug:
            self._check("text embedding", columns[..., :2], self.config.text_vocab)
            self._check("transformer audio embedding", columns[..., 2:], self.config.audio_vocab)

    def text(self, ids: Ids) -> None:
        """Text ids about to be read by the depformer."""
        if self.debug:
            self._check("depformer text embedding", ids, self.config.text_vocab)

    def depformer_input(self, ids: Ids) -> None:
        """Prefix ids the depformer is about to build on."""
        if self.debug:
            self._check("depformer input", ids, self.config.codec_vocab)

    def sampled(self, ids: Ids) -> None:
        """Ids that were sampled."""
        if self.debug:
            self._check("sampled codebook", ids, self.config.codec_vocab)

    def codec(self, ids: Ids) -> None:
        """Ids about to be decoded."""
        self._check("codec", ids, self.config.codec_vocab)

    @staticmethod
    def _check(place: str, ids: Ids, limit: int) -> None:
        illegal = (ids < 0) | (ids >= limit)
        if illegal.any():
            raise IdOutOfRange(place, int(ids[illegal][0]), limit)
