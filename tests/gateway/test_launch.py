"""`scripts/launch_triton.sh --gateway`: one command brings up the whole, and takes it down again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.server.conftest import FREE_PORTS, LAUNCH, launched

from .conftest import LINE
from .talk import in_loop, talking

pytestmark = pytest.mark.server


def launch(*options: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(part) for part in (LAUNCH, *FREE_PORTS, "--device", "cpu", "--gateway", *options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, **variables})


@in_loop
async def test_both_come_up_and_end_together(tmp_path: Path) -> None:
    """A live utterance is heard to its end: the gateway waits for it, and Triton for the gateway."""
    with launched(tmp_path, "--gateway", "--gateway-port", "0", "--set", "slots=3") as server:
        address = json.loads((tmp_path / "ready.json").read_text())["gateway"]
        async with talking(f"ws://{address}") as talk:
            await talk.send("text", text=LINE)
            assert (await talk.event())["type"] == "started"
            server.launcher.send_signal(signal.SIGINT)
            await talk.send("close")
            assert (await talk.hear()).last["type"] == "done"
        assert server.launcher.wait(30) == 128 + signal.SIGINT
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
    assert "back end is ready" in (tmp_path / "triton-gateway.log").read_text()


def test_a_gateway_that_ends_takes_the_server_along(tmp_path: Path) -> None:
    with launched(tmp_path, "--gateway", "--gateway-port", "0") as server:
        (tree,) = Path(f"/proc/{server.launcher.pid}/task/{server.launcher.pid}").glob("children")
        (gateway,) = [int(child) for child in tree.read_text().split() if int(child) != server.pid]
        os.kill(gateway, signal.SIGKILL)
        assert server.launcher.wait(30) == 1
    assert "the gateway ended with status -9" in (tmp_path / "launch.log").read_text()


def test_what_cannot_work_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = launch("--gateway-port", port)
    assert done.returncode == 1
    assert f"port {port} is taken; choose another with --gateway-port" in done.stderr
    (tmp_path / "gateway.toml").write_text("speed = 2\n")
    done = launch("--gateway-port", "0", "--gateway-config", tmp_path / "gateway.toml")
    assert done.returncode == 1
    assert "speed is no setting" in done.stderr
    done = launch("--gateway-port", "0", "--host", "0.0.0.0")
    assert done.returncode == 1
    assert "there are no keys" in done.stderr
    for options, told in (
        (["--models", "dia2_stream"], "--gateway needs the model dia2_session"),
        (["--say", "Hello.", str(tmp_path / "out.wav")], "and no gateway"),
        (["--docker"], "--docker --gateway needs --gateway-config"),
        (["--gateway-config", str(tmp_path / "none.toml")], "there is no file"),
    ):
        done = launch(*options)
        assert done.returncode == 2
        assert told in done.stderr


def test_docker_is_told_to_run_it_too(tmp_path: Path) -> None:
    """With a stand-in for docker that notes what it is asked for."""
    notes, docker, config = tmp_path / "notes", tmp_path / "docker", tmp_path / "gateway.toml"
    docker.write_text(f'#!/bin/sh\necho "$@" >>{notes}\n')
    docker.chmod(0o755)
    config.write_text("")
    done = launch("--docker", "--gateway-config", config, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    run = notes.read_text().splitlines()[-1]
    assert f"-p 127.0.0.1:8080:8080 -v {config}:/mnt/gateway.toml:ro" in run
    assert run.endswith("stream-dia2 --models dia2_session --gateway --gateway-config /mnt/gateway.toml")
