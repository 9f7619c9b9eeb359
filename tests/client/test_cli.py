"""The command without a server: usage, input, and what is said when nobody answers."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dia2_client.cli import build_parser, main


@pytest.fixture
def dead_url() -> Iterator[str]:
    """An address where nobody listens, and nobody else can start to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def usage_error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_help_gives_examples_and_exit_codes() -> None:
    text = build_parser().format_help()
    examples = re.findall(r"dia2-say (?:.*)", text.partition("examples:")[2])
    assert len(examples) >= 4
    for code in ("0", "1", "2", "3", "130"):
        assert re.search(rf"\b{code}  \w", text.partition("exit status:")[2])


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        ([], "TEXT"),
        (["hello"], "-o OUT.wav"),
        (["hello", "--file", "x.txt", "-o", "x.wav"], "not allowed"),
        (["hello", "-o", "x.mp3"], ".wav, .raw or .pcm"),
        (["hello", "--waveform", "x.gif"], ".png, .svg or .pdf"),
        (["hello", "-o", "x.wav", "--seed", "pi"], "--seed"),
        (["hello", "-o", "x.wav", "--timeout", "0"], "greater than 0"),
        (["hello", "-o", "x.wav", "--timeout", "nan"], "greater than 0"),
        (["hello", "-o", "x.wav", "--timeout", "inf"], "finite"),
        (["hello", "-o", "x.wav", "--url", "localhost"], "is not HOST:PORT"),
        (["hello", "-o", "x.wav", "--url", "http://localhost:8001"], "is not HOST:PORT"),
        (["hello", "-o", "x.wav", "--url", ":8001"], "is not HOST:PORT"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_hint(capsys: pytest.CaptureFixture[str], argv: list[str], hint: str) -> None:
    assert hint in usage_error(capsys, *argv)


@pytest.mark.parametrize(("module", "option"), [("sounddevice", "--play"), ("matplotlib", "--waveform=x.png")])
def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: str, option: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # makes importing it fail, installed or not
    assert f"{sys.executable} -m pip install {module}" in usage_error(capsys, "hello", option)


def test_unreadable_text_ends_with_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    for path in (latin, tmp_path / "none.txt"):
        assert main(["--file", str(path), "-o", str(tmp_path / "x.wav")]) == 2
        assert "cannot read the text" in capsys.readouterr().err


def test_an_unreachable_server_ends_with_3_and_leaves_files_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, dead_url: str
) -> None:
    out = tmp_path / "x.wav"
    out.write_bytes(b"precious")
    assert main(["hello", "-o", str(out), "--url", dead_url]) == 3
    assert dead_url in capsys.readouterr().err
    assert out.read_bytes() == b"precious"


def test_a_value_that_cannot_be_sent_ends_with_2(capsys: pytest.CaptureFixture[str], dead_url: str) -> None:
    assert main(["hello", "--raw", "-", "--seed", str(2**70), "--url", dead_url]) == 2
    assert "seed" in capsys.readouterr().err


def test_importing_the_client_loads_nothing_heavy() -> None:
    code = (
        "import sys, dia2_client, dia2_client.cli; "
        "print([m for m in ('torch', 'matplotlib', 'sounddevice', 'dia2_engine') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "dia2_client", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: dia2-say")
