"""What the benchmarks share: a server of their own, and the machine that the figures were measured on."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
READY_DEADLINE_S = 600  # the first start may have to install
STOP_DEADLINE_S = 60
PACKAGES = ("torch", "numpy", "transformers", "tritonclient")


@dataclass(frozen=True)
class Server:
    """A running server: where it is, its process group, and how long it took to become ready."""

    grpc: str
    pid: int
    ready_s: float


@contextmanager
def running_server(*options: str) -> Iterator[Server]:
    """Start the real launch script with these options on free ports, and end it as a user would."""
    with tempfile.TemporaryDirectory() as scratch:
        ready_file = Path(scratch, "ready.json")
        command = ["bash", str(ROOT / "scripts" / "launch_triton.sh"), "--log", str(Path(scratch, "server.log"))]
        command += [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
        command += [*options, "--ready-file", str(ready_file)]
        started_s = time.monotonic()
        launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not ready_file.exists():
                if launcher.poll() is not None:
                    raise SystemExit(f"the launch script ended with status {launcher.returncode}")
                if time.monotonic() - started_s > READY_DEADLINE_S:
                    raise SystemExit(f"no server after {READY_DEADLINE_S} s")
                time.sleep(0.02)
            ready_s = time.monotonic() - started_s
            addresses = json.loads(ready_file.read_text())
            yield Server(addresses["grpc"], int(addresses["pid"]), ready_s)
        finally:
            launcher.send_signal(signal.SIGTERM)
            launcher.wait(STOP_DEADLINE_S)


def peak_memory_mb(group: int) -> dict[str, float]:
    """High-water mark of the resident memory of each process in the group, by name."""
    return _memory_mb(group, "VmHWM")


def resident_mb(group: int) -> dict[str, float]:
    """The resident memory of each process in the group, by name."""
    return _memory_mb(group, "VmRSS")


def _memory_mb(group: int, field: str) -> dict[str, float]:
    peaks: dict[str, float] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if os.getpgid(int(folder.name)) != group:
                continue
            fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        except (ProcessLookupError, FileNotFoundError):
            continue  # it ended while we looked
        name = f"{fields['Name'].strip()} ({folder.name})"
        peaks[name] = int(fields[field].split()[0]) * 1024 / 1e6
    return peaks


def machine() -> dict[str, Any]:
    """The hardware, the system and the versions, by name; `gpu` only where there is one."""
    total_kb = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        **gpus(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(total_kb * 1024 / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **package_versions(),
        "commit": commit.stdout.strip() or "unknown",
    }


def gpus() -> dict[str, str]:
    """The GPUs of this machine, as their driver names them."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    return {
        "gpu": "; ".join(f"{name}, driver {driver}" for name, _, driver in (line.rpartition(", ") for line in found))
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def package_versions() -> dict[str, str]:
    """Versions that this Python has; the server's own if it is the server's environment."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not in this environment"
    return found
