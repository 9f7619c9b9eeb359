"""The client against a real server. Nothing here depends on what the audio sounds like."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import wave
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from dia2_client import (
    AsyncClient,
    AsyncStream,
    Chunk,
    Client,
    InvalidArgument,
    Timeout,
    Unavailable,
    VoiceInfo,
    pcm16,
)

pytestmark = pytest.mark.server

SHORT = "[S1] Hello there, how are you today?"
LONG = "[S1] " + "This goes on and on and on. " * 40  # far more than a server runs ahead of playback


class Server(Protocol):
    grpc_url: str


def samples(chunks: list[Chunk]) -> np.ndarray[Any, Any]:
    return np.concatenate([chunk.audio for chunk in chunks])


async def asay(url: str, text: str, **options: Any) -> np.ndarray[Any, Any]:
    async with AsyncClient(url) as client:
        return (await client.say(text, **options)).audio


def test_chunks_carry_audio_and_words_in_order(server: Server) -> None:
    with Client(server.grpc_url) as client, client.stream(SHORT, seed=1) as stream:
        chunks = list(stream)
        assert stream.finish_reason in ("stop", None)
    assert len(chunks) > 1
    assert all(chunk.audio.dtype == np.float32 and chunk.audio.ndim == 1 for chunk in chunks)
    arrivals = [chunk.arrived_s for chunk in chunks]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] > 0

    starts_s = [word.start_s for chunk in chunks for word in chunk.words]
    assert starts_s
    assert starts_s == sorted(starts_s)
    done = 0
    for chunk in chunks:  # a word comes with the chunk it starts in
        for word in chunk.words:
            assert done <= round(word.start_s * client.sample_rate) < done + chunk.audio.size
        done += chunk.audio.size


def test_every_option_reaches_the_server(server: Server) -> None:
    with Client(server.grpc_url) as client:
        speech = client.say(LONG, seed=2, temperature=0.7, top_k=20, cfg_scale=1.5, max_seconds=1.0, words=False)
    assert 0 < speech.audio.size <= speech.sample_rate
    assert speech.words == ()
    assert speech.finish_reason in ("length", None)


def test_a_seed_gives_the_same_audio_however_it_is_asked_for(server: Server) -> None:
    with Client(server.grpc_url) as client:
        streamed = samples(list(client.stream(SHORT, seed=3)))
        said = client.say(SHORT, seed=3).audio
        other = client.say(SHORT, seed=4).audio
    np.testing.assert_array_equal(streamed, said)
    np.testing.assert_array_equal(streamed, asyncio.run(asay(server.grpc_url, SHORT, seed=3)))
    assert not np.array_equal(streamed, other)


def test_streams_side_by_side_keep_their_own_audio(server: Server) -> None:
    async def together() -> list[np.ndarray[Any, Any]]:
        async with AsyncClient(server.grpc_url) as client:
            return [s.audio for s in await asyncio.gather(*(client.say(SHORT, seed=n) for n in range(3)))]

    with Client(server.grpc_url) as client:
        streams = [client.stream(SHORT, seed=n) for n in range(3)]  # all three are under way
        blocking = [samples(list(stream)) for stream in reversed(streams)][::-1]
        alone = [client.say(SHORT, seed=n).audio for n in range(3)]
    for one, other, expected in zip(asyncio.run(together()), blocking, alone, strict=True):
        np.testing.assert_array_equal(one, expected)
        np.testing.assert_array_equal(other, expected)


BAD: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    (SHORT, {"voice": "no-such-voice"}),
    (SHORT, {"temperature": float("nan")}),
    (SHORT, {"cfg_scale": -1.0}),
    (SHORT, {"max_seconds": -1.0}),
]


@pytest.mark.parametrize(("text", "options"), BAD)
def test_what_the_server_refuses_is_an_invalid_argument(server: Server, text: str, options: dict[str, Any]) -> None:
    with Client(server.grpc_url) as client:
        stream = client.stream(text, **options)
        with pytest.raises(InvalidArgument) as sync_error:
            next(stream)
        assert next(stream, None) is None  # over, and stays over
    with pytest.raises(InvalidArgument) as async_error:
        asyncio.run(asay(server.grpc_url, text, **options))
    assert str(sync_error.value) == str(async_error.value)
    assert str(options.get("voice", "")) in str(sync_error.value)


def test_a_model_that_is_not_there_is_unavailable(server: Server) -> None:
    async def connect() -> None:
        async with AsyncClient(server.grpc_url, model="no_such_model") as client:
            await client.connect()

    with Client(server.grpc_url, model="no_such_model") as client, pytest.raises(Unavailable):
        client.stream(SHORT)
    with pytest.raises(Unavailable):
        asyncio.run(connect())


def test_silence_for_longer_than_the_timeout_is_a_timeout(server: Server) -> None:
    async def wait() -> None:
        async with AsyncClient(server.grpc_url, timeout_s=1e-6) as client:
            await client.say(LONG)

    with Client(server.grpc_url, timeout_s=1e-6) as client:
        stream = client.stream(LONG)
        with pytest.raises(Timeout):
            next(stream)
        assert list(stream) == []
    with pytest.raises(Timeout):
        asyncio.run(wait())


def test_cancel_ends_the_iteration_quietly(server: Server) -> None:
    with Client(server.grpc_url) as client:
        stream = client.stream(LONG)
        next(stream)
        stream.cancel()
        stream.cancel()  # once more changes nothing
        assert list(stream) == []
        assert stream.finish_reason == "cancelled"
        assert client.say(SHORT).audio.size  # the client lives on


def test_cancel_before_the_first_chunk(server: Server) -> None:
    with Client(server.grpc_url) as client:
        stream = client.stream(LONG)
        stream.cancel()
        assert (list(stream), stream.finish_reason) == ([], "cancelled")


def test_another_thread_may_cancel(server: Server) -> None:
    heard = threading.Event()
    with Client(server.grpc_url) as client, client.stream(LONG) as stream:

        def interrupt() -> None:
            heard.wait()
            stream.cancel()

        thread = threading.Thread(target=interrupt)
        thread.start()
        for _ in stream:
            heard.set()
        thread.join()
        assert stream.finish_reason == "cancelled"


def test_leaving_early_cancels(server: Server) -> None:
    with Client(server.grpc_url) as client:
        with client.stream(LONG) as stream:
            for _ in stream:
                break
        assert (list(stream), stream.finish_reason) == ([], "cancelled")
        left = client.stream(LONG)
        next(left)
    assert (list(left), left.finish_reason) == ([], "cancelled")  # by the client's own end


def readers() -> list[threading.Thread]:
    """The blocking client's threads, one for each open stream."""
    return [thread for thread in threading.enumerate() if thread.name == "dia2-stream"]


def test_a_dropped_stream_is_cancelled(server: Server) -> None:
    with Client(server.grpc_url) as client:
        stream = client.stream(LONG)
        next(stream)
        (reader,) = set(readers())
        del stream
        gc.collect()
        reader.join(30)  # it ends with the call
        assert not reader.is_alive()


def test_an_open_stream_keeps_its_client(server: Server) -> None:
    stream = Client(server.grpc_url).stream(SHORT)
    gc.collect()
    assert samples(list(stream)).size


def test_nothing_is_left_behind(server: Server) -> None:
    others = set(threading.enumerate())
    with Client(server.grpc_url) as client:
        for attempt in range(5):
            client.say(SHORT, max_seconds=0.3)
            with pytest.raises(InvalidArgument):
                client.say("")
            with client.stream(LONG) as stream:
                if attempt:
                    next(stream)
        for reader in readers():
            reader.join(30)
        assert readers() == []
    for thread in set(threading.enumerate()) - others:  # gRPC's own: the one that sends the request, for instance
        thread.join(30)
        assert not thread.is_alive(), thread


def test_an_open_stream_does_not_keep_python_from_exiting(server: Server) -> None:
    code = f"""
from dia2_client import Client
stream = Client({server.grpc_url!r}).stream({LONG!r})
next(stream)
raise SystemExit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 7


def test_cancelling_the_task_cancels_the_stream(server: Server) -> None:
    async def main() -> None:
        async with AsyncClient(server.grpc_url) as client:
            stream = client.stream(LONG)
            heard = asyncio.Event()

            async def listen() -> None:
                async for _ in stream:
                    heard.set()

            task = asyncio.create_task(listen())
            await heard.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert stream.finish_reason == "cancelled"
            assert [chunk async for chunk in stream] == []

    asyncio.run(main())


def test_async_cancel_ends_the_iteration_quietly(server: Server) -> None:
    async def listen(stream: AsyncStream, heard: asyncio.Event) -> None:
        async for _ in stream:
            heard.set()

    async def main() -> None:
        async with AsyncClient(server.grpc_url) as client:
            stream, heard = client.stream(LONG), asyncio.Event()
            task = asyncio.create_task(listen(stream, heard))
            await heard.wait()
            stream.cancel()  # while the task waits for a chunk
            await task
            assert stream.finish_reason == "cancelled"

            async with client.stream(LONG) as left:
                async for _ in left:
                    break
            assert ([chunk async for chunk in left], left.finish_reason) == ([], "cancelled")

            early = client.stream(LONG)
            early.cancel()
            assert [chunk async for chunk in early] == []

    asyncio.run(main())


def say(server: Server, *argv: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "dia2_client", "--url", server.grpc_url, *argv]
    return subprocess.run(command, capture_output=True, timeout=120, **options)


def read_wav(path: Path) -> tuple[int, bytes]:
    with wave.open(str(path), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return file.getframerate(), file.readframes(file.getnframes())


def test_say_writes_the_same_audio_everywhere(server: Server, tmp_path: Path) -> None:
    with Client(server.grpc_url) as client:
        speech = client.say(SHORT, seed=5)
    expected = pcm16(speech.audio)

    done = say(server, SHORT, "--seed", "5", "-o", str(tmp_path / "out.wav"), "--raw", "-")
    assert done.returncode == 0
    assert done.stdout == expected
    assert read_wav(tmp_path / "out.wav") == (speech.sample_rate, expected)
    report = done.stderr.decode()
    for figure in ("real-time factor", "first audio after", "chunk", "longest gap", "underrun"):
        assert figure in report

    done = say(server, "-", "--seed", "5", "-o", str(tmp_path / "out.pcm"), "-q", input=SHORT.encode())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (tmp_path / "out.pcm").read_bytes() == expected

    (tmp_path / "script.txt").write_text(SHORT, "utf-8")
    done = say(server, "--file", str(tmp_path / "script.txt"), "--seed", "5", "--raw", "-")
    assert done.stdout == expected


def test_say_draws_the_waveform(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = say(server, SHORT, "--waveform", str(tmp_path / "plot.png"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_voices_of_a_server(server: Server) -> None:
    with Client(server.grpc_url) as client:
        voices = client.voices()
    assert [(voice.name, voice.default) for voice in voices][:2] == [("anna", True), ("anna-and-ben", False)]

    async def ask() -> tuple[VoiceInfo, ...]:
        async with AsyncClient(server.grpc_url) as client:
            return await client.voices()

    assert asyncio.run(ask()) == voices
    listed = say(server, "--list-voices")
    assert listed.returncode == 0
    assert listed.stdout.decode().split() == ["anna", "(default)", "anna-and-ben", "ben", "carla", "david", "none"]


def test_say_ends_with_2_when_refused_and_leaves_files_alone(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    out.write_bytes(b"precious")
    done = say(server, SHORT, "--voice", "no-such-voice", "-o", str(out))
    assert done.returncode == 2
    assert b"no-such-voice" in done.stderr
    assert b"Traceback" not in done.stderr
    assert out.read_bytes() == b"precious"


def test_control_c_keeps_a_valid_file_of_what_arrived(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    command = [sys.executable, "-m", "dia2_client", "--url", server.grpc_url, LONG, "-o", str(out), "--raw", "-"]

    def heed_control_c() -> None:  # a shell that runs the tests in the background has it ignored, which is inherited
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, preexec_fn=heed_control_c) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1)  # it streams, and will wait for us when the pipe is full
        process.send_signal(signal.SIGINT)
        rest, report = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in report
    assert b"Traceback" not in report
    _, kept = read_wav(out)
    assert kept.startswith((first + rest)[: len(kept)])
    assert kept


def test_a_reader_that_leaves_ends_the_command_quietly(server: Server) -> None:
    command = [sys.executable, "-m", "dia2_client", "--url", server.grpc_url, LONG, "--raw", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 1
