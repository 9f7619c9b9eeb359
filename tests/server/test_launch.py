"""scripts/launch_triton.sh as its users run it, and what it leaves behind: nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import wave
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from .calls import eventually, speak
from .conftest import DEMO, FREE_PORTS, INSTALL_S, LAUNCH, ROOT, SETTLE_S, Server, environment, launched, leftovers

pytestmark = pytest.mark.server

LONG = "[S1] " + "This goes on and on and on. " * 40
INTERRUPTED = 128 + signal.SIGINT


def launch(*options: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the script to its end."""
    return subprocess.run(
        [LAUNCH, *options], env=environment(**changes), capture_output=True, text=True, timeout=INSTALL_S
    )


def test_say_speaks_one_line_and_stops(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    # The environment is there by now, so nothing may be asked of a package index.
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    say = ("--say", "[S1] Hello there.", out, "--log", tmp_path / "log")
    done = launch(*FREE_PORTS, "--device", "cpu", *say, **offline)
    assert done.returncode == 0, done.stderr
    assert "serving the demo" in done.stderr
    with wave.open(str(out)) as audio:
        assert audio.getframerate() == 24_000
        assert audio.getnframes() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "slotz=3"], "slotz=3: not NAME=VALUE with a known NAME"),
        (["--set", "slots=many"], "slots is 'many'; it must be an integer"),
        (["--voices", "/no/such/folder"], "that folder does not exist"),
        (["--models", "dia2_stream", "dia3"], "invalid choice: 'dia3' (choose from 'dia2_session', 'dia2_stream')"),
        (["--models", "dia2_session", "--say", "a", "b.wav"], "--say needs the model dia2_stream"),
        (["--docker", "--say", "a", "b.wav"], "--docker goes with neither"),
        (["--http-port", "65536"], "65536 is no port; allowed: 0 to 65535"),
        (["--http-port", "9000", "--grpc-port", "9000"], "the ports must differ"),
        (["--http-port", "8001"], "the ports must differ"),
        (["--say", "a", "b.mp3"], "b.mp3: the suffix must be .wav, .raw or .pcm"),
        (["--say", "a", "/no/such/folder/b.wav"], "there is no folder /no/such/folder"),
        (["--ready-file", "/no/such/folder/ready.json"], "there is no folder /no/such/folder"),
        (["--tritonserver", "/no/such/server"], "there is no file /no/such/server"),
        (["--checkpoint", "./no/such"], "./no/such is neither a folder nor a repository OWNER/NAME[@REVISION]"),
    ],
)
def test_wrong_usage_is_told_before_anything_starts(options: list[str], message: str) -> None:
    done = launch(*options, "--cache", "/proc/nowhere")
    assert done.returncode == 2
    assert message in done.stderr


def test_help_teaches() -> None:
    done = launch("--help")
    assert done.returncode == 0
    assert "--say" in done.stdout
    assert "examples:" in done.stdout


def test_a_missing_python_is_told() -> None:
    done = launch(PYTHON="/bin/false")
    assert done.returncode == 1
    assert "no Python 3.11 or 3.12 found" in done.stderr


def test_only_the_chosen_models_are_served(server: Server) -> None:
    """And nobody can load another one, which would run code of the caller's choice."""
    client = InferenceServerClient(server.grpc_url)
    assert [model.name for model in client.get_model_repository_index().models] == ["dia2_stream"]
    with pytest.raises(InferenceServerException, match="not allowed"):
        client.load_model("dia2_session")
    client.close()


def test_a_taken_port_is_told(server: Server) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = launch("--device", "cpu", *FREE_PORTS, "--grpc-port", str(port))
    assert done.returncode == 1
    assert f"port {port} is taken; choose another with --grpc-port" in done.stderr


def test_a_host_that_is_not_ours_is_told(server: Server) -> None:
    done = launch("--device", "cpu", *FREE_PORTS, "--host", "192.0.2.1")  # reserved for documentation
    assert done.returncode == 1
    assert "cannot listen on 192.0.2.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_checkpoint_is_told(server: Server, tmp_path: Path) -> None:
    done = launch("--device", "cpu", *FREE_PORTS, "--checkpoint", tmp_path, "--log", tmp_path / "log")
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert "config.json" in done.stderr
    assert "resolve_folder" not in done.stderr  # no traceback for a mistake


def test_sigterm_under_load_ends_everything_in_time(server: Server, tmp_path: Path) -> None:
    with launched(tmp_path, "--set", "slots=2") as loaded:  # two live, one queued
        calls = [speak(loaded.grpc_url, LONG) for _ in range(3)]
        assert calls[0].next()
        loaded.settle(live_streams=2, queued_streams=1)
        assert loaded.stop() == 128 + signal.SIGTERM
        for call in calls:  # each caller hears of it
            while call.next():
                pass
            assert call.message == "CANCELLED: the server is shutting down"
            call.cancel()


def test_control_c_during_start_up_leaves_nothing(server: Server, tmp_path: Path) -> None:
    launcher = subprocess.Popen(
        [LAUNCH, *FREE_PORTS, "--device", "cpu", "--log", tmp_path / "log"], stderr=subprocess.DEVNULL
    )
    eventually(lambda: list(Path("/dev/shm").glob(f"stream-dia2-{launcher.pid}-*")))  # its model is loading now
    (child,) = children(launcher.pid)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(SETTLE_S) == INTERRUPTED
    assert leftovers(launcher.pid, child) == []


def test_a_killed_launcher_takes_the_server_along(server: Server, tmp_path: Path) -> None:
    with launched(tmp_path) as orphan:
        orphan.launcher.kill()
        orphan.launcher.wait()
        eventually(lambda: leftovers(orphan.launcher.pid, orphan.pid) == [])


def test_a_dead_engine_ends_the_server(server: Server, tmp_path: Path) -> None:
    """So that whatever supervises the server starts a new one: Triton itself would go on without it."""
    with launched(tmp_path) as broken:
        (stub,) = [pid for pid in group(broken.pid) if pid != broken.pid]
        os.kill(stub, signal.SIGKILL)
        assert broken.launcher.wait(SETTLE_S) == 1
    assert "an engine's process has died" in (tmp_path / "launch.log").read_text()


def test_docker_is_told_to_run_the_same_settings(tmp_path: Path) -> None:
    """With a stand-in for docker that notes what it is asked for."""
    notes = tmp_path / "notes"
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >>{notes}\n')
    docker.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = launch(
        "--docker", "--checkpoint", tmp_path, "--http-port", "8123", "--set", "slots=3", "--device", "cpu", PATH=path
    )
    assert done.returncode == 0, done.stderr
    run = notes.read_text().splitlines()[-1]
    assert "-p 127.0.0.1:8123:8000 -p 127.0.0.1:8001:8001" in run
    assert f"-v {tmp_path}:/mnt/checkpoint:ro -e DIA2_CHECKPOINT=/mnt/checkpoint" in run
    assert "-e DIA2_SLOTS=3" in run
    assert "--gpus" not in run
    assert run.endswith("stream-dia2 --models dia2_stream")


def test_a_server_that_can_bound_its_responses_is_told_to(tmp_path: Path) -> None:
    """A later Triton, by its `--help`; the embedded one would refuse the option."""
    notes, stand_in = tmp_path / "notes", tmp_path / "bin" / "tritonserver"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f'#!/bin/sh\n[ "$1" = --help ] && echo "  --grpc-max-response-pool-size <integer>" || echo "$@" >{notes}\n'
    )
    stand_in.chmod(0o755)
    done = launch(*FREE_PORTS, "--tritonserver", stand_in, "--checkpoint", DEMO, "--cache", tmp_path)
    assert done.returncode != 0  # it did not serve
    assert "--grpc-max-response-pool-size=128" in notes.read_text()


def group(leader: int) -> list[int]:
    """The processes of a group."""
    found = subprocess.run(["ps", "-eo", "pid=,pgid="], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid, leads in (line.split() for line in found.splitlines()) if int(leads) == leader]


def children(pid: int) -> list[int]:
    """The processes that a process has started and not yet reaped."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_scripts_pass_the_linters() -> None:
    """Shell scripts and Dockerfile; the linters come with requirements-dev.lock."""
    scripts = [str(path) for path in sorted((ROOT / "scripts").glob("*.sh"))]
    for command in (["shellcheck", *scripts], ["hadolint", str(ROOT / "Dockerfile")]):
        tool = shutil.which(command[0], path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        assert tool, f"{command[0]} is missing"
        subprocess.run([tool, *command[1:]], check=True)
