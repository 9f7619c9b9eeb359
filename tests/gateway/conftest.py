"""Real gateways for the tests: processes of `dia2-gateway serve`, before a real Triton with a random checkpoint."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import ROOT, SETTLE_S, VOICES, Server, launched

SEED = 7
LINE = "[S1] Hello there, how can I help you today?"
LONG = " ".join(["This goes on and on, and it does not end before somebody stops it."] * 12)


@dataclass(frozen=True)
class Answer:
    """What came over HTTP."""

    status: int
    headers: Message
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        return dict(json.loads(self.body)["error"])


@dataclass(frozen=True)
class Gateway:
    """A gateway that is up."""

    url: str  # http://127.0.0.1:PORT
    ws_url: str  # ws://127.0.0.1:PORT
    process: subprocess.Popen[bytes]
    log_file: Path

    def call(self, path: str, body: Any = None, **headers: str) -> Answer:
        """GET, or POST of a body as JSON; `_` in the names of headers stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, named)
        try:
            with urllib.request.urlopen(request, timeout=SETTLE_S) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def speak(self, text: str, **headers: str) -> Answer:
        """PCM over HTTP."""
        body = {"model": "dia2", "input": text, "response_format": "pcm", "seed": SEED}
        return self.call("/v1/audio/speech", body, **headers)

    def metrics(self) -> dict[str, float]:
        """Gauges and counters by name, without the `dia2_gateway_` prefix; those with labels as `name{label="..."}`."""
        lines = self.call("/metrics").body.decode().splitlines()
        values = (line.removeprefix("dia2_gateway_").rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in values}

    def live(self) -> float:
        """Utterances that have a place."""
        return sum(value for name, value in self.metrics().items() if name.startswith("live_streams"))

    def log(self) -> list[dict[str, Any]]:
        """The lines so far."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def settle(self) -> None:
        """Wait until no utterance is left."""
        eventually(lambda: self.live() == 0 and self.metrics()["waiting"] == 0, "utterances are left")


def eventually(holds: Callable[[], object], complaint: str = "it never came") -> None:
    """Wait for what should happen soon."""
    deadline_s = time.monotonic() + SETTLE_S
    while not holds():
        assert time.monotonic() < deadline_s, complaint
        time.sleep(0.02)


def toml(config: dict[str, Any]) -> str:
    """A configuration as TOML; JSON's strings, numbers and lists are TOML's too."""
    plain = [f"{name} = {json.dumps(value)}" for name, value in config.items() if not isinstance(value, dict)]
    tables = []
    for name, table in config.items():
        if isinstance(table, dict):
            nested = {key: value for key, value in table.items() if isinstance(value, dict)}
            own = [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items() if key not in nested]
            tables += [f"[{name}]", *own]
            for key, value in nested.items():
                tables += [f"[{name}.{json.dumps(key)}]", *(f"{k} = {json.dumps(v)}" for k, v in value.items())]
    return "\n".join([*plain, *tables]) + "\n"


@contextmanager
def running_gateway(folder: Path, **config: Any) -> Iterator[Gateway]:
    """A gateway with this configuration, on a free port unless told; ended as an operator would end it."""
    folder.mkdir(exist_ok=True)
    ready, log_file = folder / "gateway.json", folder / "gateway.log"
    ready.unlink(missing_ok=True)
    (folder / "gateway.toml").write_text(toml({"port": 0, "health_interval_s": 0.2, **config}))
    command = [sys.executable, "-W", "error", "-m", "dia2_gateway", "serve", "--config", str(folder / "gateway.toml")]
    with log_file.open("wb") as log:
        process = subprocess.Popen([*command, "--ready-file", str(ready)], stdout=log, stderr=log, env=dict(os.environ))
    try:
        eventually(lambda: ready.exists() or process.poll() is not None, "not up in time")
        assert process.poll() is None, log_file.read_text()
        port = json.loads(ready.read_text())["port"]
        yield Gateway(f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}", process, log_file)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(SETTLE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
    defects = [line for line in log_file.read_text().splitlines() if "Traceback" in line or '"exception"' in line]
    assert not defects, defects


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One Triton with sessions; its model makes noise, which sounds alike whatever the text and the seed."""
    folder = tmp_path_factory.mktemp("triton")
    script = ROOT / "scripts" / "make_random_checkpoint.py"
    subprocess.run([sys.executable, script, folder / "random"], check=True, stdout=subprocess.DEVNULL)
    options = ("--models", "dia2_session", "--checkpoint", str(folder / "random"))
    with launched(folder, *options, voices=VOICES) as server:
        yield server


@pytest.fixture(scope="session")
def gateway(triton: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway without keys, before that Triton."""
    with running_gateway(tmp_path_factory.mktemp("gateway"), backends=[triton.grpc_url]) as one:
        yield one


@pytest.fixture
def make_gateway(triton: Server, tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Makes further gateways, with the settings given; before that Triton unless `backends` says otherwise."""
    with ExitStack() as stack:
        made: list[Gateway] = []

        def make(**config: Any) -> Gateway:
            config = {"backends": [triton.grpc_url], **config}
            made.append(stack.enter_context(running_gateway(tmp_path / f"gateway-{len(made)}", **config)))
            return made[-1]

        yield make


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a stream in the shared Triton."""
    yield
    if "triton" in request.fixturenames:
        request.getfixturevalue("triton").settle(live_streams=0, queued_streams=0)
