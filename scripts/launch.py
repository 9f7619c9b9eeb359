"""What scripts/launch_triton.sh runs: installs, starts the server, waits until it is ready, and cleans up after it.

Standard library only, since it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# The settings, without dia2_engine/__init__.py: that imports torch, which is not installed yet.
sys.modules["dia2_engine"] = types.ModuleType("dia2_engine")
sys.modules["dia2_engine"].__path__ = [str(ROOT / "dia2_engine")]

from dia2_engine.config import SETTING_NAMES, EngineConfig  # noqa: E402
from dia2_engine.errors import ConfigError  # noqa: E402
from scripts.supervisor import ProcessGroup, Signals, StartError, Stopped, TritonServer, free_ports  # noqa: E402

IMAGE = "stream-dia2"
MODELS = sorted(config.parent.name for config in (ROOT / "model_repository").glob("*/config.pbtxt"))
ONE_SHOT, SESSION = "dia2_stream", "dia2_session"
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
EPILOG = """\
examples:
  %(prog)s                                          a demo server on the CPU (noise, not speech), until Ctrl-C
  %(prog)s --say "[S1] Hello there." hello.wav      start, speak one line, stop
  %(prog)s --checkpoint nari-labs/Dia2-2B           the real model (7.7 GB download; wants an NVIDIA GPU)
  %(prog)s --checkpoint ./dia2 --voices ./voices --set slots=16 --set dtype=bfloat16
  %(prog)s --models dia2_session                    text in, piece by piece, while audio comes out
  %(prog)s --http-port 0 --grpc-port 0 --metrics-port 0 --ready-file ready.json

The first start makes an environment under --cache (1.4 GB for the CPU); later starts reuse it. Delete the folder
to remove it. Every setting of the engine can be given as --set NAME=VALUE, or as DIA2_NAME in the environment.
"""


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
            environ["DIA2_CHECKPOINT"] = str(demo_checkpoint(python, args.cache))
            # Its tensors are so small that handing them to a second thread takes longer than computing them.
            environ.setdefault("OMP_NUM_THREADS", "1")
        return serve(args, python, tritonserver, environ)
    except Stopped as stopped:
        return 128 + stopped.number
    except subprocess.CalledProcessError as error:  # it has said why
        say(f"{Path(error.cmd[0]).name} ended with status {error.returncode}")
        return 1
    except (StartError, OSError) as error:
        say(str(error))
        return 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch_triton.sh",
        description="Start a Triton server that streams the Dia2 text-to-speech model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_argument_group("what to serve")
    model.add_argument("--checkpoint", metavar="DIR|REPO", help="a folder, or a Hugging Face repository OWNER/NAME or "
                       "OWNER/NAME@REVISION (default: a small random demo checkpoint, which makes noise)")  # fmt: skip
    model.add_argument("--voices", metavar="DIR", help="folder of voices (default: the examples in voices/)")
    model.add_argument("--models", nargs="+", choices=MODELS, default=[ONE_SHOT], metavar="NAME",
                       help=f"which of {', '.join(MODELS)}; each has an engine of its own, with weights of its own "
                       f"(default: {ONE_SHOT})")  # fmt: skip
    model.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    model.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                       help=f"any engine setting: {', '.join(SETTING_NAMES)}")  # fmt: skip

    where = parser.add_argument_group("where to serve it")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    for name, port in PORTS.items():
        usual = f"default {port}; 0, or with --say: any free"
        where.add_argument(f"--{name}-port", type=a_port, metavar="N", help=usual)
    where.add_argument("--ready-file", type=Path, metavar="FILE", help="write the addresses there as JSON, once ready")

    what = parser.add_argument_group("what to do")
    what.add_argument("--say", nargs=2, metavar=("TEXT", "OUT.wav"), help="speak one line, then stop")
    what.add_argument("--docker", action="store_true", help=f"run the container {IMAGE} instead, building it if needed")

    install = parser.add_argument_group("installation (also: PYTHON=/path/to/python3.12 in the environment)")
    install.add_argument("--cache", type=Path, default=ROOT / ".cache", metavar="DIR", help="default: .cache here")
    install.add_argument("--reuse", action="store_true", help="use the packages that this Python already has (torch, "
                         "transformers, ...) and install only what is missing")  # fmt: skip
    install.add_argument("--tritonserver", type=Path, metavar="PATH", help="use this server and this Python as they "
                         "are, and install nothing (the container does)")  # fmt: skip
    install.add_argument("--log", type=Path, metavar="FILE", help="the server's log; - for standard error "
                         "(default: tritonserver-PORT.log in the cache)")  # fmt: skip
    return parser


def a_port(value: str) -> int:
    """For argparse, which names the option and the value."""
    port = int(value)
    if not 0 <= port < 65_536:
        raise argparse.ArgumentTypeError(f"{port} is no port; allowed: 0 to 65535")
    return port


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What would fail only once the server runs, and need not; ends the program with status 2."""
    if args.say and ONE_SHOT not in args.models:
        parser.error(f"--say needs the model {ONE_SHOT}")
    if args.docker and (args.say or args.tritonserver or args.ready_file):
        parser.error("--docker goes with neither --say, --tritonserver nor --ready-file")
    ports = [port for port in (chosen_port(args, name) for name in PORTS) if port]
    if len(set(ports)) < len(ports):
        parser.error("the ports must differ from each other")
    if args.say and Path(args.say[1]).suffix.lower() not in (".wav", ".raw", ".pcm"):
        parser.error(f"--say: {args.say[1]}: the suffix must be .wav, .raw or .pcm")
    for option, path in (("--say", args.say and Path(args.say[1])), ("--ready-file", args.ready_file)):
        if path and not path.absolute().parent.is_dir():
            parser.error(f"{option}: {path}: there is no folder {path.absolute().parent}")
    if args.tritonserver and not args.tritonserver.is_file():
        parser.error(f"--tritonserver: there is no file {args.tritonserver}")
    reference = args.checkpoint or "owner/name"
    if not Path(reference).expanduser().is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@.+)?", reference):
        parser.error(f"--checkpoint: {reference} is neither a folder nor a repository OWNER/NAME[@REVISION]")


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


def demo_checkpoint(python: Path, cache: Path) -> Path:
    """A small random checkpoint, made once per version of the script that makes it."""
    script = ROOT / "scripts/make_demo_checkpoint.py"
    folder = cache.resolve() / f"demo-checkpoint-{hashlib.sha256(script.read_bytes()).hexdigest()[:8]}"
    if not folder.exists():
        unfinished = folder.with_suffix(f".{os.getpid()}")
        try:
            ProcessGroup.run([python, script, unfinished], os.environ)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    say("no --checkpoint: serving the random demo checkpoint. It makes NOISE, NOT SPEECH; the real model is")
    say("  --checkpoint nari-labs/Dia2-2B")
    return folder


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
    with TritonServer(python, tritonserver, models, args.host, environ, log) as server:
        server.start(ports)
        server.wait_ready()
        if args.ready_file:
            unfinished = args.ready_file.with_suffix(".tmp")
            unfinished.write_text(json.dumps({**server.addresses, "pid": server.pid}))
            unfinished.rename(args.ready_file)
        if args.say:
            text, output = args.say
            client = [python, "-m", "dia2_client", "--url", server.addresses["grpc"], "-o", output, "--", text]
            return ProcessGroup.run(client, environ, check=False)
        explain(server.addresses, python.parent, args.models)
        raise StartError(server.wait())


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
    if SESSION in models:
        print(f"Text may come while audio goes out: docs/protocol.md, Sessions (gRPC at {addresses['grpc']}).")
    print(f"Watch it at http://{addresses['metrics']}/metrics. Ctrl-C stops it.\n", flush=True)


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
    for name in SETTING_NAMES:
        value = environ.get(f"DIA2_{name.upper()}", "")
        if name in ("checkpoint", "mimi", "voices") and Path(value).is_dir() and value:
            command += ["-v", f"{Path(value).resolve()}:/mnt/{name}:ro"]
            value = f"/mnt/{name}"
        if value:
            command += ["-e", f"DIA2_{name.upper()}={value}"]
    os.execvp("docker", [*command, IMAGE, "--models", *args.models])  # noqa: S606


def chosen_port(args: argparse.Namespace, name: str) -> int:
    """The port asked for; else the usual one, or any (0) where the server speaks one line and stops."""
    given: int | None = getattr(args, f"{name}_port")
    return given if given is not None else 0 if args.say else PORTS[name]


def say(line: str) -> None:
    """One line to the person who watches."""
    print(f"launch_triton: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
