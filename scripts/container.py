"""The server as a container: the same options, for docker."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from pathlib import Path

from dia2_engine.config import SETTING_NAMES
from scripts.options import GATEWAY_PORT, IMAGE, PORTS, ROOT, chosen_port
from scripts.supervisor import ProcessGroup, StartError, free_ports, say


def run_container(args: argparse.Namespace, environ: dict[str, str]) -> int:
    """Run the Docker image with the same settings; docker itself forwards signals and cleans up."""
    if not shutil.which("docker"):
        raise StartError("docker is not installed, or not on the PATH")
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True).returncode:
        say(f"building the image {IMAGE} (once; the base image is large)")
        ProcessGroup.run(["docker", "build", "-t", IMAGE, ROOT], environ)
    command = ["docker", "run", "--rm", "--init", "-v", f"{IMAGE}-cache:/var/cache/stream-dia2"]
    if args.device == "cuda" or (args.device == "auto" and Path("/dev/nvidiactl").exists()):
        command += ["--gpus", "all"]
    for name, inside in PORTS.items():
        port = chosen_port(args, name) or free_ports(1)[0]
        command += ["-p", f"{args.host}:{port}:{inside}"]
    if args.gateway:
        port = args.gateway_port or free_ports(1)[0]
        command += ["-p", f"{args.host}:{port}:{GATEWAY_PORT}"]
        command += ["-v", f"{args.gateway_config.resolve()}:/mnt/gateway.toml:ro"]
    for name in SETTING_NAMES:
        value = environ.get(f"DIA2_{name.upper()}", "")
        if name in ("checkpoint", "mimi", "voices") and Path(value).is_dir() and value:
            command += ["-v", f"{Path(value).resolve()}:/mnt/{name}:ro"]
            value = f"/mnt/{name}"
        if value:
            command += ["-e", f"DIA2_{name.upper()}={value}"]
    command += [IMAGE, "--models", *args.models]
    command += ["--gateway", "--gateway-config", "/mnt/gateway.toml"] if args.gateway else []
    os.execvp("docker", command)  # noqa: S606
