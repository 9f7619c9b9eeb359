"""What the Dockerfile runs, without its base image: here an embedded server stands in for the image's own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest

from .calls import speak
from .conftest import INSTALL_S, ROOT, SETTLE_S, Server, environment

pytestmark = pytest.mark.server

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
TRITON = "/opt/tritonserver/bin/tritonserver"


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)


def copy_context(target: Path) -> None:
    """What `COPY . .` takes, given .dockerignore: its exceptions, less what it ignores anywhere."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    ignored = [rule.removeprefix("**/") for rule in rules if rule.startswith("**/")]
    for rule in rules:
        if rule.startswith("!"):
            source = ROOT / rule[1:]
            if source.is_dir():
                drop = lambda _, names: [n for n in names if any(fnmatch(n, i) for i in ignored)]  # noqa: E731
                shutil.copytree(source, target / source.name, ignore=drop)
            else:
                shutil.copy(source, target)


def test_the_image_serves(server: Server, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    copy_context(context)
    for copied in instructions("COPY"):
        *sources, _ = copied.split()
        assert all((context / source).exists() for source in sources), copied

    # The image's Python, with the numpy that its server was built for.
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "image"], check=True)
    path = f"{tmp_path / 'image' / 'bin'}:{os.environ['PATH']}"
    numpy = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.startswith("numpy==")]
    subprocess.run([tmp_path / "image/bin/pip", "install", "-q", *numpy], check=True)
    (install,) = [run for run in instructions("RUN") if "install.sh" in run]
    command = shlex.split(install.replace("${DEVICE}", "cpu"))
    install_environment = environment(PATH=path, PIP_NO_COMPILE="1")  # what is imported is compiled then
    subprocess.run(command, check=True, cwd=context, env=install_environment, timeout=INSTALL_S)

    (entry,) = instructions("ENTRYPOINT")
    (embedded,) = (ROOT / ".cache").glob(f"env-py3.{sys.version_info.minor}-cpu")
    replaced = {
        TRITON: str(embedded / "triton/pytriton/tritonserver/bin/tritonserver"),
        "/var/cache/stream-dia2": str(tmp_path / "cache"),
    }
    command = [replaced.get(word, word) for word in json.loads(entry)]
    assert replaced[TRITON] in command
    ready = tmp_path / "ready.json"
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--ready-file", str(ready)]
    with (tmp_path / "log").open("wb") as log:
        launcher = subprocess.Popen([*command, *ports], cwd=context, env=environment(PATH=path), stdout=log, stderr=log)
    try:
        deadline_s = time.monotonic() + SETTLE_S * 4
        while not ready.exists():
            assert launcher.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline_s, "not ready in time"
            time.sleep(0.05)
        told = json.loads(ready.read_text())
        assert speak(told["grpc"], "[S1] Hello there.", SEED=1, MAX_SECONDS=1.0).wait().error is None
        (health,) = instructions("HEALTHCHECK")
        check = json.loads(health[health.index("[") :])
        check[-1] = check[-1].replace("127.0.0.1:8000", told["http"])
        subprocess.run(check, check=True, env=environment(PATH=path))
    finally:
        launcher.terminate()
        launcher.wait(SETTLE_S)


def test_the_image_runs_as_nobody_in_particular() -> None:
    (user,) = instructions("USER")
    assert int(user) > 1000
    assert "nvcr.io/nvidia/tritonserver" in instructions("FROM")[0]
    assert not any("safetensors" in line or "huggingface-cli" in line for line in DOCKERFILE.splitlines())
