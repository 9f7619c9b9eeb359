"""What scripts/launch_triton.sh runs: installs, starts the server, waits until it is ready, and cleans up after it.

Standard library only, since it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# The settings, without dia2_engine/__init__.py: that imports torch, which is not installed yet.
sys.modules["dia2_engine"] = types.ModuleType("dia2_engine")
sys.modules["dia2_engine"].__path__ = [str(ROOT / "dia2_engine")]

from dia2_engine.config import SETTING_NAMES, EngineConfig  # noqa: E402
from dia2_engine.errors import ConfigError  # noqa: E402
from scripts.container import run_container  # noqa: E402
from scripts.gateway import GatewayServer  # noqa: E402
from scripts.options import ONE_SHOT, PORTS, SESSION, build_parser, check, chosen_port  # noqa: E402
from scripts.supervisor import (  # noqa: E402
    WATCH_S,
    ProcessGroup,
    Signals,
    StartError,
    Stopped,
    TritonServer,
    is_free,
    say,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 (failed), 2 (usage), or 128 + signal."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check(parser, args)
    environ = engine_environment(parser, args)
    Signals.install()
    try:
        if args.docker:
            return run_container(args, environ)
        python, tritonserver = install(args)
        if "DIA2_CHECKPOINT" not in environ:
            # Handing tensors as small as the demo's to a second thread takes longer than computing them. And where a
            # pass has one thread, the engine decodes beside it.
            environ = {"OMP_NUM_THREADS": "1", **environ, "DIA2_CHECKPOINT": str(ROOT / "checkpoints" / "demo")}
            say("no --checkpoint: serving the demo, a small model for trying this out; the real one is")
            say("  --checkpoint nari-labs/Dia2-2B")
        return serve(args, python, tritonserver, environ)
    except Stopped as stopped:
        return 128 + stopped.number
    except subprocess.CalledProcessError as error:  # it has said why
        say(f"{Path(error.cmd[0]).name} ended with status {error.returncode}")
        return 1
    except (StartError, OSError) as error:
        say(str(error))
        return 1


def engine_environment(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, str]:
    """This process's environment plus the engine settings that the options stand for."""
    environ = dict(os.environ)
    for setting in args.settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in SETTING_NAMES:
            parser.error(f"--set {setting}: not NAME=VALUE with a known NAME ({', '.join(SETTING_NAMES)})")
        environ[f"DIA2_{name.upper()}"] = value
    if args.checkpoint:
        folder = Path(args.checkpoint).expanduser()
        environ["DIA2_CHECKPOINT"] = str(folder.resolve()) if folder.is_dir() else args.checkpoint
    if args.voices:
        environ["DIA2_VOICES"] = str(Path(args.voices).expanduser().resolve())
    environ.setdefault("DIA2_VOICES", str(ROOT / "voices"))
    if args.device != "auto":
        environ["DIA2_DEVICE"] = args.device
    if args.device == "cpu":
        environ["CUDA_VISIBLE_DEVICES"] = ""  # else Triton starts an instance per GPU
    try:
        EngineConfig.from_mapping({"checkpoint": "demo"}, environ)
    except ConfigError as error:
        parser.error(str(error))
    return environ


def install(args: argparse.Namespace) -> tuple[Path, Path]:
    """The Python and the tritonserver to run, installed if need be."""
    if args.tritonserver:
        return Path(sys.executable), args.tritonserver
    has_gpu = args.device != "cpu" and Path("/dev/nvidiactl").exists()
    device = "cuda" if has_gpu or args.device == "cuda" else "cpu"
    env = args.cache.resolve() / f"env-py3.{sys.version_info.minor}-{device}"
    command = [ROOT / "scripts/install.sh", "--env", env, "--device", device, *(["--reuse"] if args.reuse else [])]
    ProcessGroup.run(command, {**os.environ, "PYTHON": sys.executable})
    return env / "bin/python", env / "triton/pytriton/tritonserver/bin/tritonserver"


def repository(cache: Path, models: Sequence[str]) -> Path:
    """A model repository of the chosen models alone: links, made once per choice.

    Triton serves all that is in a repository. It could be told which (`--model-control-mode=explicit`), but would then
    load what any caller sends it, code included.
    """
    sources = [ROOT / "model_repository" / name for name in sorted(set(models))]
    digest = hashlib.sha256("".join(map(str, sources)).encode()).hexdigest()[:8]  # another checkout may share the cache
    folder = cache.resolve() / f"models-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        with suppress(FileExistsError):
            (folder / source.name).symlink_to(source)
    return folder


def serve(args: argparse.Namespace, python: Path, tritonserver: Path, environ: dict[str, str]) -> int:
    """Run the server until it is told to stop, or has said the one line."""
    ports = {name: chosen_port(args, name) for name in PORTS}
    log = args.log or args.cache.resolve() / f"tritonserver-{ports['http'] or os.getpid()}.log"
    models = repository(args.cache, args.models)
    gateway = None
    if args.gateway:  # before the server loads its models, which may take long
        if args.gateway_port and not is_free(args.host, args.gateway_port):
            raise StartError(f"port {args.gateway_port} is taken; choose another with --gateway-port, or 0")
        gateway_log = log if str(log) == "-" else log.with_name(f"{log.stem}-gateway{log.suffix}")
        gateway = GatewayServer(python, gateway_options(args, environ), environ, gateway_log)
        gateway.check()
    with ExitStack() as stack:
        server = stack.enter_context(TritonServer(python, tritonserver, models, args.host, environ, log))
        server.start(ports)
        server.wait_ready()
        addresses, children = dict(server.addresses), [server.end]
        if gateway is not None:
            stack.enter_context(gateway).start(server.addresses["grpc"])
            addresses["gateway"] = gateway.address
            children.append(gateway.end)
        if args.ready_file:
            unfinished = args.ready_file.with_suffix(".tmp")
            unfinished.write_text(json.dumps({**addresses, "pid": server.pid}))
            unfinished.rename(args.ready_file)
        if args.say:
            text, output = args.say
            client = [python, "-m", "dia2_client", "--url", addresses["grpc"], "-o", output, "--", text]
            return ProcessGroup.run(client, environ, check=False)
        explain(addresses, python.parent, args.models)
        while not (ends := [end for end in (child() for child in children) if end is not None]):
            Signals.nap(WATCH_S)
        raise StartError(ends[0])


def gateway_options(args: argparse.Namespace, environ: Mapping[str, str]) -> list[str | Path]:
    """Those of `dia2-gateway serve`: as many streams as the server's engines have slots."""
    slots = EngineConfig.from_mapping({"checkpoint": "demo"}, environ).slots
    options: list[str | Path] = ["--host", args.host, "--port", str(args.gateway_port)]
    options += ["--streams-per-backend", str(slots * engines(environ))]
    return options + (["--config", args.gateway_config.resolve()] if args.gateway_config else [])


def engines(environ: Mapping[str, str]) -> int:
    """How many of a model Triton starts: one for each GPU that it sees, else one."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))
    return max(1, len([gpu for gpu in chosen.split(",") if gpu]))


def explain(addresses: dict[str, str], bin_folder: Path, models: Sequence[str]) -> None:
    """Print how to call the server."""
    print("\nReady.")
    if ONE_SHOT in models:
        print(f"""Call it with the client

    {bin_folder / "dia2-say"} --url {addresses["grpc"]} "[S1] Hello there." -o hello.wav

over HTTP (one JSON object per chunk)

    curl -N http://{addresses["http"]}/v2/models/{ONE_SHOT}/generate_stream -d '{{"TEXT": "[S1] Hello there."}}'

measure it (docs/performance.md says where perf_analyzer comes from)

    echo '{{"data": [{{"TEXT": ["[S1] Hello there."]}}]}}' > say.json
    perf_analyzer -m {ONE_SHOT} -i grpc --async --streaming -u {addresses["grpc"]} --input-data say.json
""")
    if "gateway" in addresses:
        print(
            f"Open http://{addresses['gateway']}/ in a browser, or give that address to your client (docs/gateway.md)."
        )
    if SESSION in models:
        print(f"Text may come while audio goes out: docs/protocol.md, Sessions (gRPC at {addresses['grpc']}).")
    print(f"Watch it at http://{addresses['metrics']}/metrics. Ctrl-C stops it.\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
