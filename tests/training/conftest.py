"""Tiny clips of tones, in the layout that synthesis writes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from training.data.clips import CLIP_RATE, Clip

CLIP_SAMPLES = 24000


def write_tones(data: Path, which: str, shard: int, pitches: list[int]) -> None:
    """A shard with one clip of a second for each pitch in Hz; its phonemes are 10 in the first half, then 20."""
    (data / which).mkdir(parents=True, exist_ok=True)
    at = np.arange(CLIP_SAMPLES) / CLIP_RATE
    parts = [np.round(3000 * np.sin(2 * np.pi * pitch * at) * (1 + at)).astype(np.int16) for pitch in pitches]
    half, whole = CLIP_SAMPLES // 2, CLIP_SAMPLES
    clips = [
        Clip(
            "a tone", "s147", index * CLIP_SAMPLES, CLIP_SAMPLES, [0.0, 0.5], [10, 0, 20, 0], [1, half, half + 1, whole]
        )
        for index in range(len(pitches))
    ]
    np.save(data / which / f"{shard:05d}.npy", np.concatenate(parts))
    (data / which / f"{shard:05d}.json").write_text(json.dumps([asdict(clip) for clip in clips]), "utf-8")


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("tones")
    write_tones(data, "train", 0, [200, 450])
    write_tones(data, "train", 1, [300, 700])
    write_tones(data, "test", 0, [250, 500])
    return data
