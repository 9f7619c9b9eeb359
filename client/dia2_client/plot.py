"""Draws an utterance: the waveform, and where its words start."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .types import Speech

PLOT_SUFFIXES = (".png", ".svg", ".pdf")

_COLUMNS = 2000  # of the envelope; more than any plot has pixels


def draw(speech: Speech, path: Path) -> None:
    """Writes the picture to `path`, in the format its suffix names. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    length_s = speech.audio.size / speech.sample_rate
    figure = Figure(figsize=(max(6.0, min(24.0, 1.5 * length_s)), 3.0), layout="constrained")
    axes = figure.add_subplot()
    # An envelope keeps every peak, and keeps the file small however long the audio is.
    step = max(1, -(-speech.audio.size // _COLUMNS))
    padded = np.pad(speech.audio, (0, -speech.audio.size % step)).reshape(-1, step)  # [columns, step]
    times_s = np.arange(padded.shape[0]) * step / speech.sample_rate
    axes.fill_between(times_s, padded.min(1), padded.max(1), step="post", linewidth=0.3)
    for word in speech.words:
        axes.axvline(word.start_s, color="tab:red", linewidth=0.8)
        # Escaped, because matplotlib would read a pair of dollar signs as mathematics.
        axes.text(word.start_s, 1.02, " " + word.text.replace("$", r"\$"), rotation=45, fontsize=8)
    axes.set(xlabel="seconds", xlim=(0, max(length_s, 0.1)), ylim=(-1, 1))
    figure.savefig(path)
