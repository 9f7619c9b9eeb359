"""The page of the demo voice names every file that is written for it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from training.gallery import SENTENCES, page, write_mp3, write_spectrogram


def test_every_sentence_has_audio_and_a_picture_in_every_voice() -> None:
    shown = page(["anna", "ben"], [('Say "<hello>".', "01"), ("Bye.", "02")])
    files = re.findall(r'src="([^"]+)"', shown)
    assert files == [
        f"{voice}-{name}.{kind}" for name in ("01", "02") for voice in ("anna", "ben") for kind in ("mp3", "png")
    ]
    assert "<hello>" not in shown
    assert len(set(SENTENCES)) == 10


def test_audio_and_picture_are_written(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    pytest.importorskip("matplotlib", reason="matplotlib is installed for training only")
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(24000) / 24000)).astype(np.float32)
    write_mp3(tmp_path / "tone.mp3", tone, 24000)
    with av.open(str(tmp_path / "tone.mp3")) as container:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(heard) == pytest.approx(24000, abs=2400)
    spectrum = np.abs(np.fft.rfft(heard[6000:18000]))
    assert int(np.argmax(spectrum)) == 220  # of 12,000 samples
    write_spectrogram(tmp_path / "tone.png", tone, 24000)
    assert (tmp_path / "tone.png").read_bytes().startswith(b"\x89PNG")
