"""The codec's encoder against the golden prefix tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dia2_engine.audio.io import load_clip
from dia2_engine.errors import ConfigError
from dia2_engine.model.encoder import MimiEncoder

PARITY = Path(__file__).parents[1] / "data" / "parity"
GOLDEN = PARITY / "small" / "checkpoint" / "mimi"


@pytest.fixture(scope="module")
def golden() -> MimiEncoder:
    return MimiEncoder.load(GOLDEN, codebooks=8)


@pytest.mark.parametrize("variant", ["small", "lowrank", "textdep"])
def test_golden_prefixes(variant: str) -> None:
    folder = PARITY / variant
    cases = load_file(folder / "cases.safetensors")
    encoder = MimiEncoder.load(folder / "checkpoint" / "mimi", codebooks=len(cases["plan.s1.audio_tokens"]))
    clips = [encoder.encode(load_clip(folder / f"prefix_{who}.wav", 24000)) for who in ("s1", "s2")]
    assert clips[0].dtype == np.int64
    assert np.array_equal(clips[0], cases["plan.s1.audio_tokens"])
    assert np.array_equal(np.concatenate(clips, axis=1), cases["plan.s1s2.audio_tokens"])


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (1919, 1), (1920, 1), (1921, 2), (4000, 3)])
def test_a_part_of_a_frame_is_padded_with_silence(golden: MimiEncoder, samples: int, frames: int) -> None:
    audio = load_clip(PARITY / "small" / "prefix_s1.wav", 24000)[:samples]
    codes = golden.encode(audio)
    assert codes.shape == (8, frames)
    assert codes.min() >= 0
    assert codes.max() < 2048
    assert np.array_equal(codes, golden.encode(np.pad(audio, (0, frames * 1920 - samples))))


def test_fewer_codebooks_are_the_first_ones(golden: MimiEncoder) -> None:
    audio = load_clip(PARITY / "small" / "prefix_s2.wav", 24000)
    fewer = MimiEncoder.load(GOLDEN, codebooks=3).encode(audio)
    assert np.array_equal(fewer, golden.encode(audio)[:3])


@pytest.mark.parametrize("shape", [(0,), (1, 1920)])
def test_audio_of_another_shape_is_refused(golden: MimiEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"audio must be \[n >= 1\]"):
        golden.encode(np.zeros(shape, dtype=np.float32))


def test_codecs_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs 9 codebooks, the codec gives 1 to 8"):
        MimiEncoder.load(GOLDEN, codebooks=9)
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read"):
        MimiEncoder.load(tmp_path, codebooks=8)
    shutil.copyfile(GOLDEN / "config.json", tmp_path / "config.json")
    with pytest.raises(ConfigError, match="cannot be read as a Mimi codec"):
        MimiEncoder.load(tmp_path, codebooks=8)
    tensors = load_file(GOLDEN / "model.safetensors")
    del tensors["encoder.layers.0.conv.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"missing: .*layers\.0\.conv\.weight"):
        MimiEncoder.load(tmp_path, codebooks=8)
