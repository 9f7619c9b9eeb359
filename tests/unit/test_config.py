"""Settings from strings: every field, the environment wins, and refusals name field, value and what is allowed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from dia2_engine import ConfigError, EngineConfig
from dia2_engine.config import SETTING_NAMES


def given_for_every_field(voices: Path) -> dict[str, tuple[str, object]]:
    """As written, and as read; each unlike the default."""
    return {
        "checkpoint": ("owner/name@main", "owner/name@main"),
        "mimi": ("kyutai/mimi", "kyutai/mimi"),
        "voices": (str(voices), str(voices)),
        "default_voice": ("anna", "anna"),
        "device": ("cuda:1", "cuda:1"),
        "dtype": ("bfloat16", "bfloat16"),
        "slots": (" 3 ", 3),
        "kv_gb": ("1.5", 1.5),
        "carry_over_s": ("4.5", 4.5),
        "session_idle_s": ("20", 20.0),
        "queue": ("0", 0),
        "boundary": ("reference", "reference"),
        "cooldown_frames": ("12", 12),
        "fade_ms": ("7.5", 7.5),
        "kick": ("False", False),
        "cfg_scale": ("1", 1.0),
        "temperature": ("0", 0.0),
        "text_temperature": ("1.5", 1.5),
        "top_k": ("0", 0),
        "cfg_filter_k": ("20", 20),
        "max_seconds": ("30", 30.0),
        "max_text_chars": ("99", 99),
        "run_ahead_s": ("0", 0.0),
        "max_chunk_frames": ("1", 1),
        "cuda_graphs": ("false", False),
        "stop_file": ("/run/stop", "/run/stop"),
        "debug": ("1", True),
    }


def test_every_field_is_read_from_its_string(tmp_path: Path) -> None:
    given = given_for_every_field(tmp_path)
    assert set(given) == set(SETTING_NAMES), "a new setting needs its line here"
    config = EngineConfig.from_mapping({name: text for name, (text, _) in given.items()}, {})
    for field in fields(EngineConfig):
        value = getattr(config, field.name)
        assert value == given[field.name][1]
        assert value != field.default
        assert type(value) is type(given[field.name][1])


def test_the_environment_wins_for_every_field(tmp_path: Path) -> None:
    given = given_for_every_field(tmp_path)
    environ = {f"DIA2_{name.upper()}": text for name, (text, _) in given.items()}
    config = EngineConfig.from_mapping({"checkpoint": "other", "slots": "99", "kick": "true"}, environ)
    assert {name: getattr(config, name) for name in given} == {name: value for name, (_, value) in given.items()}


def test_empty_means_not_given() -> None:
    environ = {"DIA2_SLOTS": "", "DIA2_UNRELATED": "x", "PATH": "/bin", "SLOTS": "9"}
    config = EngineConfig.from_mapping({"checkpoint": "here", "slots": "5", "queue": "", "voices": ""}, environ)
    assert (config.slots, config.queue, config.voices) == (5, EngineConfig.queue, "")


def test_the_real_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIA2_SLOTS", "17")
    assert EngineConfig.from_mapping({"checkpoint": "here"}).slots == 17


def test_unknown_names_are_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(ConfigError, match=r"unknown settings: colour, slot; known: boundary, .*slots"):
        EngineConfig.from_mapping({"checkpoint": "here", "slot": "3", "colour": "blue"}, {})


def test_a_checkpoint_is_needed() -> None:
    for parameters in ({}, {"checkpoint": ""}):
        with pytest.raises(ConfigError, match="checkpoint is not set; give a folder or a repository"):
            EngineConfig.from_mapping(parameters, {})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("slots", "many", "it must be an integer"),
        ("slots", "2.0", "it must be an integer"),
        ("slots", "0", "allowed: 1 to 1024"),
        ("slots", "1025", "allowed: 1 to 1024"),
        ("queue", "-1", "allowed: 0 to"),
        ("cooldown_frames", "-1", "allowed: 0 to 250"),
        ("fade_ms", "quick", "it must be a number"),
        ("fade_ms", "nan", "allowed: 0 to 1000"),
        ("fade_ms", "inf", "allowed: 0 to 1000"),
        ("kick", "yes", "it must be true or false"),
        ("debug", "2", "it must be true or false"),
        ("cfg_scale", "-0.1", "allowed: 0.0 to 10.0"),
        ("temperature", "2.1", "allowed: 0.0 to 2.0"),
        ("text_temperature", "-1", "allowed: 0.0 to 2.0"),
        ("top_k", "10001", "allowed: 0 to 10000"),
        ("cfg_filter_k", "-5", "allowed: 0 to"),
        ("max_seconds", "0", "allowed: 0.1 to 3600"),
        ("max_text_chars", "0", "allowed: 1 to"),
        ("run_ahead_s", "-1", "allowed: 0 to 3600"),
        ("max_chunk_frames", "0", "allowed: 1 to 250"),
        ("boundary", "abrupt", "allowed: seamless, reference"),
        ("dtype", "float16", "allowed: auto, float32, bfloat16"),
        ("device", "tpu", "allowed: auto, cpu, cuda, cuda:N"),
        ("device", "cuda:", "allowed: auto, cpu, cuda, cuda:N"),
        ("device", "cuda:x", "allowed: auto, cpu, cuda, cuda:N"),
        ("device", "cpu:0", "allowed: auto, cpu, cuda, cuda:N"),
        ("device", "cuda:\u00b2", "allowed: auto, cpu, cuda, cuda:N"),
        ("voices", "/does/not/exist", "that folder does not exist"),
    ],
)
@pytest.mark.parametrize("through", ["parameter", "environment"])
def test_bad_values_name_field_value_and_what_is_allowed(name: str, value: str, allowed: str, through: str) -> None:
    parameters, environ = {"checkpoint": "here"}, {}
    if through == "parameter":
        parameters[name] = value
    else:
        environ[f"DIA2_{name.upper()}"] = value
    with pytest.raises(ConfigError) as error:
        EngineConfig.from_mapping(parameters, environ)
    message = str(error.value)
    assert message.startswith(f"{name} is ")
    assert value in message
    assert allowed in message
