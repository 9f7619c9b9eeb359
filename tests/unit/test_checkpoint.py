"""Checkpoints that are not what they should be: each refusal names the file and what is wrong in it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dia2_engine import ConfigError
from dia2_engine.model.checkpoint import find_checkpoint, load_dia2, load_strictly
from dia2_engine.model.config import load_model_config
from dia2_engine.model.dia2 import Dia2
from dia2_engine.model.tokenizer import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "data" / "parity" / "small" / "checkpoint"
CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A private copy of a golden checkpoint."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "checkpoint"))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def load(folder: Path) -> Dia2:
    return load_dia2(find_checkpoint(str(folder)), device=CPU, dtype=torch.float32)


def rewrite(checkpoint: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors")


def refusal(checkpoint: Path, change: Callable[[dict[str, Tensor]], None]) -> str:
    """What loading says of a checkpoint that was changed."""
    rewrite(checkpoint, change)
    with pytest.raises(ConfigError) as error:
        load(checkpoint)
    return str(error.value)


# ---- weights


def test_weights_are_loaded_as_they_are() -> None:
    model = load(GOLDEN)
    tensors = load_file(GOLDEN / "model.safetensors")
    state = model.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_take_the_asked_dtype_whatever_they_are_stored_in(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda t: t.update({name: tensor.bfloat16() for name, tensor in t.items()}))
    assert {parameter.dtype for parameter in load(checkpoint).parameters()} == {torch.float32}


def in_8_bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stores every matrix as int8; what each must then be read as."""
    expected = {}
    for name, tensor in list(tensors.items()):
        expected[name] = tensor
        if tensor.ndim == 2:
            scale = tensor.abs().amax(1, keepdim=True) / 127
            tensors[name] = (tensor / scale).round().to(torch.int8)
            tensors[f"{name}_scale"] = scale
            expected[name] = tensors[name] * scale
    return expected


def test_matrices_of_8_bits_are_multiplied_out(checkpoint: Path) -> None:
    expected: dict[str, Tensor] = {}
    rewrite(checkpoint, lambda t: expected.update(in_8_bits(t)))
    state = load(checkpoint).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    files = find_checkpoint(str(checkpoint))
    half = load_dia2(files, device=CPU, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(half[name], tensor.bfloat16()) for name, tensor in expected.items())


def test_scales_must_be_there_fit_and_belong_to_something(checkpoint: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        in_8_bits(tensors)
        names.extend([name for name in sorted(tensors) if name.endswith("_scale")][:3])
        shapes.append(list(tensors[names[1]].shape))
        del tensors[names[0]]
        tensors[names[1]] = tensors[names[1]].reshape(1, -1)
        whole = names[2].removesuffix("_scale")
        tensors[whole] = tensors[whole].float()

    names: list[str] = []
    shapes: list[list[int]] = []
    message = refusal(checkpoint, change)
    assert f"missing: {names[0]};" in message
    assert f"unexpected: {names[2]};" in message
    assert f"mis-shaped: {names[1]} is {shapes[0][::-1]}, must be {shapes[0]}" in message


def test_missing_unexpected_and_misshaped_tensors_are_all_named(checkpoint: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        missing, misshaped = sorted(tensors)[:2]
        names.extend([missing, misshaped])
        shapes.append(list(tensors[misshaped].shape))
        del tensors[missing]
        tensors[misshaped] = torch.zeros(3, 5)
        tensors["extra.weight"] = torch.zeros(1)

    names: list[str] = []
    shapes: list[list[int]] = []
    message = refusal(checkpoint, change)
    assert message.startswith(str(checkpoint / "model.safetensors"))
    assert f"missing: {names[0]}" in message
    assert "unexpected: extra.weight" in message
    assert f"mis-shaped: {names[1]} is [3, 5], must be {shapes[0]}" in message


def test_a_long_list_of_faults_is_counted(checkpoint: Path) -> None:
    rewrite(checkpoint, lambda t: [t.pop(name) for name in sorted(t)[:12]])
    with pytest.raises(ConfigError, match=r"missing: (\S+, ){4}\S+ and 7 more$"):
        load(checkpoint)


def test_a_truncated_file_is_refused(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    whole = weights.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"model\.safetensors: not a readable safetensors file"):
            load(checkpoint)


def test_a_pickle_is_refused_and_not_run(checkpoint: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    (checkpoint / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        load(checkpoint)
    torch.save({"weight": torch.zeros(2)}, checkpoint / "model.safetensors")
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        load(checkpoint)
    assert not (tmp_path / "exploded").exists()


def test_absent_weights_are_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model\.safetensors does not exist"):
        load(checkpoint)


def test_a_module_that_was_refused_stays_without_weights(checkpoint: Path) -> None:
    """No half-loaded model: nothing is filled unless everything fits."""
    rewrite(checkpoint, lambda t: t.pop(sorted(t)[-1]))
    with torch.device("meta"):
        model = Dia2(load_model_config(checkpoint / "config.json"))
    with pytest.raises(ConfigError):
        load_strictly(model, checkpoint / "model.safetensors", device=CPU, dtype=torch.float32)
    assert all(parameter.is_meta for parameter in model.parameters())


# ---- references


@pytest.mark.parametrize("reference", ["nothing-here", "./nothing/here", "/nothing/here", "a/b/c", "~/x/nothing"])
def test_neither_a_folder_nor_a_repository(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is neither a folder nor a repository 'owner/name") as error:
        find_checkpoint(reference)
    assert repr(reference) in str(error.value)


@pytest.mark.parametrize("reference", ["nobody/nothing", "nobody/nothing@v1", "no body/not a name"])
def test_a_repository_that_is_not_in_the_cache_offline(reference: str) -> None:
    with pytest.raises(ConfigError, match="is no folder here, and cannot be fetched") as error:
        find_checkpoint(reference)
    assert repr(reference) in str(error.value)


def test_a_repository_in_the_cache_is_used_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--dia2"
    shutil.copytree(GOLDEN, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    for revision in ("main", "v1"):
        (repository / "refs" / revision).write_text(commit)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for reference in ("someone/dia2", "someone/dia2@v1", f"someone/dia2@{commit}"):
        files = find_checkpoint(reference)
        assert files.weights == repository / "snapshots" / commit / "model.safetensors"
        assert files.mimi.name == "mimi"
    with pytest.raises(ConfigError, match="cannot be fetched"):
        find_checkpoint("someone/dia2@v2")


def test_another_codec_and_a_codec_that_is_not_there(checkpoint: Path) -> None:
    own = find_checkpoint(str(checkpoint))
    assert own.mimi == checkpoint / "mimi"
    other = (checkpoint / "mimi").rename(checkpoint.parent / "codec")
    assert find_checkpoint(str(checkpoint), str(other)).mimi == other
    with pytest.raises(ConfigError, match="mimi 'kyutai/mimi' is no folder here"):
        find_checkpoint(str(checkpoint))


# ---- the manifest


def test_a_manifest_renames_the_parts(checkpoint: Path) -> None:
    codec = (checkpoint / "mimi").rename(checkpoint.parent / "codec")
    words = checkpoint.parent / "words"
    words.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (checkpoint / name).rename(words / name)
    (checkpoint / "config.json").rename(checkpoint / "shape.json")
    (checkpoint / "model.safetensors").rename(checkpoint / "dia2.safetensors")
    manifest = {"config": "shape.json", "weights": "dia2.safetensors", "tokenizer": str(words), "mimi": str(codec)}
    (checkpoint / "dia2_assets.json").write_text(json.dumps(manifest))
    files = find_checkpoint(str(checkpoint))
    assert (files.weights.name, files.tokenizer, files.mimi) == ("dia2.safetensors", words, codec)
    load_dia2(files, device=CPU, dtype=torch.float32)
    assert load_tokenizer(files)[0]("[S1]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must hold a JSON object, got list"),
        ('{"weights": 3}', "'weights' is 3; it must be a string"),
        ('{"mimi": ["a"]}', "'mimi' is .*; it must be a string"),
    ],
)
def test_bad_manifests(checkpoint: Path, text: str, message: str) -> None:
    (checkpoint / "dia2_assets.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"dia2_assets\.json: {message}"):
        find_checkpoint(str(checkpoint))


# ---- config.json


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data", None, "'data' is missing"),
        ("data", 3, "'data.' must be an object, got int"),
        ("model.decoder", None, "'model.decoder' is missing"),
        ("data.channels", None, "'data.channels' is missing"),
        ("data.channels", 2, "'data.channels' is 2; it must be an integer >= 3"),
        ("data.channels", "10", "'data.channels' is '10'; it must be an integer"),
        ("data.channels", True, "'data.channels' is True; it must be an integer"),
        ("data.channels", 11, "'data.delay_pattern' has 8 entries; it needs one per codebook .9"),
        ("data.delay_pattern", [1, -1], "'data.delay_pattern' must be a list of integers >= 0"),
        ("data.delay_pattern", [400] * 8, "'runtime.max_context_steps' is 400; it must exceed the largest delay"),
        ("data.text_vocab_size", 5.5, "'data.text_vocab_size' is 5.5; it must be an integer"),
        ("data.text_zero_token_id", 416, "'text_zero' id is 416; the text vocabulary is 0..415"),
        ("data.audio_pad_token_id", 2050, "'data.audio_pad_token_id' is 2050; the audio vocabulary is 0..2049"),
        ("data.action_new_word_token_id", 2, "'data.action_new_word_token_id' is outside the action vocabulary"),
        ("model.decoder.n_layer", 0, "'model.decoder.n_layer' is 0; it must be an integer >= 1"),
        ("model.decoder.kv_heads", 3, "'model.decoder': 4 query heads cannot share 3 KV heads"),
        ("model.decoder.gqa_head_dim", 15, "'model.decoder.gqa_head_dim' is 15; RoPE needs an even number"),
        ("model.depformer.kv_heads", 1, "'model.depformer': the published format has as many KV heads"),
        ("model.depformer.apply_rope", 1, "'model.depformer.apply_rope' is 1; it must be true or false"),
        ("model.depformer.mlp_activations", ["silu"], "'model.depformer.mlp_activations' is .* two of silu"),
        ("model.depformer.mlp_activations", ["silu", "tanh"], "'model.depformer.mlp_activations' is .* two of"),
        ("model.rope_max_timescale", 0, "'model.rope_max_timescale' is 0; it must be a number > 0"),
        ("model.normalization_layer_epsilon", float("nan"), "'model.normalization_layer_epsilon' is nan; it must"),
        ("model.rope_max_timescale", float("inf"), "'model.rope_max_timescale' is inf; it must be a number > 0"),
        ("runtime.weights_schedule", [0, 1], "'runtime.weights_schedule' has 2 entries; it needs one per"),
        ("runtime.max_context_steps", 0, "'runtime.max_context_steps' is 0; it must be an integer >= 1"),
        ("runtime.max_padding_steps", 0, "'runtime.max_padding_steps' is 0; it must be an integer >= 1"),
        ("assets", {"mimi": 4}, "'assets.mimi' is 4; it must be a string"),
    ],
)
def test_bad_config_fields(tmp_path: Path, field: str, value: Any, message: str) -> None:
    config = json.loads((GOLDEN / "config.json").read_text())
    *parents, last = field.split(".")
    block = config
    for name in parents:
        block = block[name]
    if value is None:
        del block[last]
    else:
        block[last] = value
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message) as error:
        load_model_config(path)
    assert str(error.value).startswith(str(path))


def test_a_config_may_say_how_long_words_wait(tmp_path: Path) -> None:
    config = json.loads((GOLDEN / "config.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert load_model_config(path).max_padding_steps == 6
    config["runtime"]["max_padding_steps"] = 10
    path.write_text(json.dumps(config))
    assert load_model_config(path).max_padding_steps == 10


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\udcff"])
def test_a_config_that_is_no_object(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=r"config\.json: ('' must be an object|cannot be read as JSON)"):
        find_checkpoint(str(checkpoint))


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: cannot be read as JSON: .*No such file"):
        find_checkpoint(str(tmp_path))


# ---- the tokenizer


def test_an_unreadable_tokenizer_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="no usable tokenizer"):
        load_tokenizer(find_checkpoint(str(checkpoint)))


def test_a_tokenizer_with_ids_beyond_the_text_vocabulary_is_refused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["data"]["text_vocab_size"] = 100
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"id \d+ is outside the text vocabulary 0\.\.99"):
        load_tokenizer(find_checkpoint(str(checkpoint)))
