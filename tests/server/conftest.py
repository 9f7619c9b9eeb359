"""Real servers for the tests, started by the real launch script on free ports."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "checkpoints" / "demo"  # what the launch script serves by default
VOICES = ROOT / "voices"
LAUNCH = ROOT / "scripts" / "launch_triton.sh"
FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
INSTALL_S = 900  # the first start on a machine downloads torch and Triton
SETTLE_S = 30  # for whatever should happen soon: fail rather than hang


@dataclass(frozen=True)
class Server:
    """A server that is up."""

    http_url: str  # host:port, as all of these
    grpc_url: str
    metrics_url: str
    pid: int  # of tritonserver, and its process group
    launcher: subprocess.Popen[bytes]

    def metrics(self) -> dict[str, float]:
        """The engine's gauges and counters by name, without the `dia2_` prefix; as fresh as the server has them."""
        with urllib.request.urlopen(f"http://{self.metrics_url}/metrics", timeout=SETTLE_S) as answer:
            lines = answer.read().decode().splitlines()
        values = (line.removeprefix("dia2_").rsplit(" ", 1) for line in lines if line.startswith("dia2_"))
        return {name.split("{")[0]: float(value) for name, value in values if "le=" not in name}

    def settle(self, **expected: float) -> None:
        """Wait until the metrics have these values."""
        deadline_s = time.monotonic() + SETTLE_S
        while not expected.items() <= (seen := self.metrics()).items():
            assert time.monotonic() < deadline_s, f"{seen} never became {expected}"
            time.sleep(0.01)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to the launch script and return its exit status."""
        self.launcher.send_signal(number)
        return self.launcher.wait(SETTLE_S)


@contextmanager
def launched(folder: Path, *options: str, voices: Path | None = None) -> Iterator[Server]:
    """A server of its own, with a log in `folder`; ended, and checked to have left nothing, on the way out.

    It starts sooner with one voice: unless told otherwise, only the first of the examples.
    """
    ready = folder / "ready.json"
    if voices is None:
        voices = folder / "voices"
        voices.mkdir()
        (voices / "anna").symlink_to(VOICES / "anna")
    command: list[str | Path] = [LAUNCH, *FREE_PORTS, "--device", "cpu", "--voices", voices, *options]
    command += shlex.split(os.environ.get("LAUNCH_OPTIONS", ""))  # --reuse, on a machine with packages of its own
    command += ["--ready-file", ready, "--log", folder / "triton.log"]
    with (folder / "launch.log").open("wb") as log:
        launcher = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + INSTALL_S
        while not ready.exists():
            assert launcher.poll() is None, (folder / "launch.log").read_text()
            assert time.monotonic() < deadline_s, "not ready in time"
            time.sleep(0.05)
        told = json.loads(ready.read_text())
        yield Server(told["http"], told["grpc"], told["metrics"], told["pid"], launcher)
    finally:
        if launcher.poll() is None:
            launcher.terminate()
        launcher.wait(SETTLE_S)
    assert leftovers(launcher.pid, told["pid"]) == []


def leftovers(launcher_pid: int, server_pid: int) -> list[str]:
    """Processes of the server's group that still run, and shared-memory files of this launch."""
    found = [str(file) for file in Path("/dev/shm").glob(f"stream-dia2-{launcher_pid}-*")]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(") ")
        except OSError:  # it ended while we looked
            continue
        state, _, group = rest.split()[:3]
        if int(group) == server_pid and state != "Z":
            found.append(f"process {name.replace(' (', ' ')}")
    return found


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with the demo checkpoint and the example voices, shared by most tests."""
    with launched(tmp_path_factory.mktemp("server"), "--set", "max_text_chars=2000", voices=VOICES) as server:
        yield server


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one slot and room for one more in the queue."""
    with launched(tmp_path_factory.mktemp("small"), "--set", "slots=1", "--set", "queue=1") as server:
        yield server


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with changes."""
    return {**os.environ, **changes}
