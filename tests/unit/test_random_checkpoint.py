"""Random checkpoints: reproducible, in the published format, loud enough to hear and never clipping."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, MimiModel

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_random_checkpoint.py"
PUBLISHED_PARAMETERS = 1_919_556_608  # Dia2-2B


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def small(script: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint") / "small"
    script["build"](out)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_command_gives_the_same_bytes_says_what_it_is_and_keeps_what_is_there(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "small"
    command = [sys.executable, str(SCRIPT), str(out)]
    first = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "NOISE, NOT SPEECH" in first.stdout
    assert files(out) == files(small)
    assert [path.name for path in out.parent.iterdir()] == ["small"]  # no scratch folder stays

    (out / "config.json").write_text("mine")
    assert "exists" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert (out / "config.json").read_text() == "mine"
    subprocess.run([*command, "--force"], check=True)
    assert files(out) == files(small)


def test_force_never_replaces_a_folder_that_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    result = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path), "--force"], capture_output=True, text=True)
    assert result.returncode != 0
    assert "not a checkpoint" in result.stderr
    assert files(tmp_path) == {"precious.txt": b"mine"}


def test_another_seed_gives_other_weights(script: dict[str, Any], small: Path, tmp_path: Path) -> None:
    script["build"](tmp_path / "other", seed=3)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (small / "model.safetensors").read_bytes()


def test_it_is_finite_and_the_names_and_shapes_are_those_declared(script: dict[str, Any], small: Path) -> None:
    config = json.loads((small / "config.json").read_text())
    weights = load_file(small / "model.safetensors")
    declared = {name: tensor.shape for name, tensor in script["dia2_tensors"](config).items()}
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == declared
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    assert sum(len(content) for content in files(small).values()) < 20e6


def test_its_tensor_names_are_those_of_the_golden_checkpoints(script: dict[str, Any]) -> None:
    golden = Path(__file__).parents[1] / "data" / "parity" / "small" / "checkpoint"
    config = json.loads((golden / "config.json").read_text())
    mimi = json.loads((golden / "mimi" / "config.json").read_text())
    for tensors, path in (
        (script["dia2_tensors"](config), golden / "model.safetensors"),
        (script["mimi_tensors"](mimi), golden / "mimi" / "model.safetensors"),
    ):
        expected = {name: tuple(tensor.shape) for name, tensor in load_file(path).items()}
        assert {name: tensor.shape for name, tensor in tensors.items()} == expected


def test_the_2b_shape_has_the_published_number_of_parameters(script: dict[str, Any]) -> None:
    dia2, mimi, speaker_1_id = script["shape_configs"]("2b")
    shapes = [tensor.shape for tensor in script["dia2_tensors"](dia2).values()]
    assert sum(math.prod(shape) for shape in shapes) == PUBLISHED_PARAMETERS
    assert len(dia2["runtime"]["weights_schedule"]) == mimi["num_quantizers"] - 1 == 31
    assert speaker_1_id == 49152


def test_bfloat16_is_the_rounded_float32(script: dict[str, Any], small: Path, tmp_path: Path) -> None:
    script["build"](tmp_path / "bf16", dtype="bfloat16")
    halves = load_file(tmp_path / "bf16" / "model.safetensors")
    for name, tensor in load_file(small / "model.safetensors").items():
        assert torch.equal(halves[name], tensor.to(torch.bfloat16)), name


def test_the_tokenizer_has_the_published_ids_and_loses_no_text(script: dict[str, Any], small: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small)
    data = json.loads((small / "config.json").read_text())["data"]
    names = ["<s>", "<new_word>", "<pad>", "<zero>"]
    assert tokenizer.convert_tokens_to_ids(names) == [1, 2, 3, 7]
    assert [data[f"text_{name}_token_id"] for name in ("new_word", "pad", "zero")] == [2, 3, 7]
    assert tokenizer.bos_token_id == 1
    speakers = tokenizer.convert_tokens_to_ids(["[S1]", "[S2]"])
    assert speakers == [len(tokenizer) - 2, len(tokenizer) - 1]
    assert len(tokenizer) <= data["text_vocab_size"]
    assert tokenizer.encode("[S2] Hi", add_special_tokens=False)[0] == speakers[1]
    text = "Hello, this is the café ☎ 😀\x07"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode())  # merges happen
    assert min(ids) > 7


def test_the_codec_loads_whole_and_its_noise_is_audible_and_does_not_clip(small: Path) -> None:
    codec, info = MimiModel.from_pretrained(small / "mimi", output_loading_info=True)
    assert not any(info.values()), info
    codes = torch.randint(0, 2048, (1, codec.config.num_quantizers, 50), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        audio = codec.eval().decode(codes).audio_values
    assert audio.shape == (1, 1, 50 * 1920)
    assert 0.03 < float(audio.square().mean().sqrt()) < 0.12
    assert float(audio.abs().max()) < 0.9
