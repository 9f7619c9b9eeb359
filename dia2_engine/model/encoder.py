"""Encoding clips with the codec, by `transformers`. Only preparing a voice needs it, at start-up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import ConfigError
from .mimi import load_mimi_config


class MimiEncoder:
    """The encoding half of a Mimi codec, in float32 on the CPU."""

    def __init__(self, model: Any, codebooks: int, frame_samples: int) -> None:
        self._model = model
        self.codebooks = codebooks
        self.frame_samples = frame_samples

    @classmethod
    def load(cls, folder: Path, *, codebooks: int) -> MimiEncoder:
        """Read a folder of the published format; `codebooks` is how many the language model uses.

        Raises ConfigError naming the folder and what is wrong with it.
        """
        config = load_mimi_config(folder / "config.json")
        if not config.semantic_codebooks <= codebooks <= config.codebooks:
            allowed = f"{config.semantic_codebooks} to {config.codebooks}"
            raise ConfigError(f"{folder}: the model needs {codebooks} codebooks, the codec gives {allowed}")
        from transformers import MimiModel  # slow to import, and a server of prepared voices never needs it

        try:
            with _no_progress_bar():
                model, report = MimiModel.from_pretrained(
                    str(folder), local_files_only=True, dtype=torch.float32, output_loading_info=True
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"{folder}: cannot be read as a Mimi codec: {error}") from error
        if missing := sorted(report["missing_keys"]):
            raise ConfigError(f"{folder}: missing: {', '.join(missing)}")
        return cls(model.eval(), codebooks, config.frame_samples)

    @torch.inference_mode()
    def encode(self, audio: NDArray[np.float32]) -> NDArray[np.int64]:
        """Codes of mono samples [n] at the codec's rate: int64 [codebooks, frames].

        A last part of a frame is padded with silence. Raises ValueError if there are no samples.
        """
        if audio.ndim != 1 or not len(audio):
            raise ValueError(f"audio must be [n >= 1], got {list(audio.shape)}")
        whole = np.pad(audio, (0, -len(audio) % self.frame_samples))
        samples = torch.from_numpy(whole.astype(np.float32))[None, None]
        codes: NDArray[np.int64] = self._model.encode(samples, num_quantizers=self.codebooks).audio_codes[0].numpy()
        return codes


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """A server's log is no place for one."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
