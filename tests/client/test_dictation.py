"""Standard input that is spoken as it arrives: its decoding, and the command against a server in this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from dia2_client import dictation, pcm16
from dia2_client.cli import main
from dia2_client.dictation import UnreadableText, pieces

from .peer import WAIT_S, Call, Peer, echo, ends, serving, text_of


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def test_text_is_there_as_soon_as_its_bytes_are(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    text = pieces(reader)
    for piece in ("Hello ", "there", ".\n"):
        os.write(writer, piece.encode())
        assert next(text) == piece  # would wait for ever if it wanted more
    os.close(writer)
    assert list(text) == []


def test_bytes_may_come_one_by_one(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictation, "_BLOCK_BYTES", 1)
    reader, writer = pipe
    os.write(writer, "\ufeffZoë 🙂".encode())
    os.close(writer)
    assert list(pieces(reader)) == list("Zoë 🙂")  # without the mark at the start


@pytest.mark.parametrize("cut", range(1, 4))
def test_a_split_character_comes_with_its_last_byte(pipe: tuple[int, int], cut: int) -> None:
    reader, writer = pipe
    data = "🙂".encode()
    text = pieces(reader)
    os.write(writer, b"a" + data[:cut])
    assert next(text) == "a"
    os.write(writer, data[cut:])
    assert next(text) == "🙂"
    os.close(writer)


@pytest.mark.parametrize("data", [b"caf\xe9 au lait", b"caf\xc3"])
def test_what_is_not_utf_8_is_unreadable(pipe: tuple[int, int], data: bytes) -> None:
    reader, writer = pipe
    os.write(writer, data)
    os.close(writer)
    with pytest.raises(UnreadableText, match="utf-8"):
        list(pieces(reader))


def test_a_descriptor_that_cannot_be_read_is_unreadable(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    with pytest.raises(UnreadableText):
        next(pieces(writer))
    os.close(writer)


# A shell that runs the tests in the background has Control-C ignored, which is inherited. It is not undone between fork
# and exec, because gRPC does not survive a fork in the midst of its threads.
COMMAND = """
import signal, sys
from dia2_client.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


@contextmanager
def saying(peer: Peer, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command, with our end of its standard input open."""
    command = [sys.executable, "-c", COMMAND, "--url", peer.url, "-", *argv]
    end = subprocess.PIPE
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end) as process:
        try:
            yield process
        finally:
            process.kill()


def write(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.flush()


def chunk(value: float) -> bytes:
    return pcm16(np.full(100, value, np.float32))


def test_standard_input_is_spoken_while_it_is_being_written() -> None:
    with serving(echo) as peer, saying(peer, "--raw", "-", "--seed", "7", "-q") as process:
        assert process.stdout is not None
        assert text_of(peer.next()) == ""  # the session is there before the text
        for number, piece in enumerate(("Hello ", "there"), 1):
            write(process, piece.encode())
            assert text_of(peer.next()) == piece
            assert process.stdout.read(200) == chunk(number / 100)
        rest, errors = process.communicate(timeout=WAIT_S)
        assert (rest, errors, process.returncode) == (b"", b"", 0)
        assert ends(peer.next())


def one_shot(call: Call) -> None:
    for request in call:
        call.audio(request, 0.5)
        call.final(request)


@pytest.mark.parametrize(("models", "argv"), [(("dia2_stream",), ()), ((), ("--max-seconds", "5"))])
def test_otherwise_all_of_it_is_read_first(models: tuple[str, ...], argv: tuple[str, ...]) -> None:
    with serving(one_shot, *models) as peer, saying(peer, "--raw", "-", "-q", *argv) as process:
        write(process, b"Hello ")
        out, errors = process.communicate(b"there", timeout=WAIT_S)
        assert (out, errors, process.returncode) == (chunk(0.5), b"", 0)
        request = peer.next()
        assert (request.model_name, text_of(request)) == ("dia2_stream", "Hello there")


@pytest.mark.parametrize(("data", "hint"), [(b"caf\xe9 au lait", b"cannot read the text"), (b" \n", b"nothing to say")])
def test_input_that_cannot_be_said_ends_with_2_and_leaves_files_alone(tmp_path: Path, data: bytes, hint: bytes) -> None:
    out = tmp_path / "x.wav"
    out.write_bytes(b"precious")

    def script(call: Call) -> None:
        for number, request in enumerate(call):
            if number:
                call.final(request)

    with serving(script) as peer, saying(peer, "-o", str(out)) as process:
        _, errors = process.communicate(data, timeout=WAIT_S)
    assert process.returncode == 2
    assert hint in errors
    assert b"Traceback" not in errors
    assert out.read_bytes() == b"precious"


@pytest.mark.parametrize(("message", "status"), [("INVALID_ARG: too long", 2), ("INTERNAL: broken", 1)])
@pytest.mark.parametrize("of_the_piece", [True, False])
def test_what_the_server_refuses_gives_the_exit_status(message: str, status: int, of_the_piece: bool) -> None:
    def script(call: Call) -> None:
        requests = iter(call)
        opening, piece = next(requests), next(requests)
        call.error(piece if of_the_piece else opening, message)
        for _ in requests:
            pass

    with serving(script) as peer, saying(peer, "--raw", "-") as process:
        write(process, b"Hello")
        assert process.wait(WAIT_S) == status  # although its input is still open
        assert process.stderr is not None
        assert process.stderr.read() == f"dia2-say: {message.partition(': ')[2]}\n".encode()


def test_a_full_server_ends_with_3() -> None:
    def full(call: Call) -> None:
        call.error(next(iter(call)), "UNAVAILABLE: all slots are busy")

    with serving(full) as peer, saying(peer, "--raw", "-") as process:
        assert process.wait(WAIT_S) == 3


def test_audio_that_ends_before_the_text_is_a_success() -> None:
    def short(call: Call) -> None:
        opening = next(iter(call))
        call.audio(opening, 0.5)
        call.final(opening, finish_reason="length")

    with serving(short) as peer, saying(peer, "--raw", "-") as process:
        assert process.wait(WAIT_S) == 0
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == chunk(0.5)
        assert b"ended by the length limit" in process.stderr.read()


def test_control_c_ends_a_session_whose_text_goes_on(tmp_path: Path) -> None:
    with serving(echo) as peer, saying(peer, "-o", str(tmp_path / "x.pcm"), "--raw", "-") as process:
        write(process, b"Hello")
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(200) == chunk(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130
        errors = process.stderr.read()
        assert b"interrupted" in errors
        assert b"Traceback" not in errors
    assert (tmp_path / "x.pcm").read_bytes() == chunk(0.01)


def test_a_value_that_cannot_be_sent_is_found_before_the_input_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-", "--raw", "-", "--seed", str(2**70)]) == 2
    assert "seed" in capsys.readouterr().err
