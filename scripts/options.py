"""The options of scripts/launch_triton.sh, and what is wrong with them that can be told before anything starts."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from dia2_engine.config import SETTING_NAMES

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "stream-dia2"
MODELS = sorted(config.parent.name for config in (ROOT / "model_repository").glob("*/config.pbtxt"))
ONE_SHOT, SESSION = "dia2_stream", "dia2_session"
GATEWAY_PORT = 8080
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
EPILOG = """\
examples:
  %(prog)s                                          a demo server on the CPU (a small model), until Ctrl-C
  %(prog)s --say "[S1] Hello there." hello.wav      start, speak one line, stop
  %(prog)s --checkpoint nari-labs/Dia2-2B           the real model (7.7 GB download; wants an NVIDIA GPU)
  %(prog)s --checkpoint ./dia2 --voices ./voices --set slots=16 --set dtype=bfloat16
  %(prog)s --models dia2_session                    text in, piece by piece, while audio comes out
  %(prog)s --gateway                                and the voice APIs and the web page before it, on port 8080
  %(prog)s --http-port 0 --grpc-port 0 --metrics-port 0 --ready-file ready.json

The first start makes an environment under --cache (1.4 GB for the CPU); later starts reuse it. Delete the folder
to remove it. Every setting of the engine can be given as --set NAME=VALUE, or as DIA2_NAME in the environment.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch_triton.sh",
        description="Start a Triton server that streams the Dia2 text-to-speech model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_argument_group("what to serve")
    model.add_argument("--checkpoint", metavar="DIR|REPO", help="a folder, or a Hugging Face repository OWNER/NAME or "
                       "OWNER/NAME@REVISION (default: checkpoints/demo, small enough for a CPU)")  # fmt: skip
    model.add_argument("--voices", metavar="DIR", help="folder of voices (default: the examples in voices/)")
    model.add_argument("--models", nargs="+", choices=MODELS, metavar="NAME",
                       help=f"which of {', '.join(MODELS)}; each has an engine of its own, with weights of its own "
                       f"(default: {ONE_SHOT}; with --gateway: {SESSION})")  # fmt: skip
    model.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    model.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                       help=f"any engine setting: {', '.join(SETTING_NAMES)}")  # fmt: skip

    gateway = parser.add_argument_group("the gateway (docs/gateway.md)")
    gateway.add_argument("--gateway", action="store_true", help="start it, too: OpenAI's and ElevenLabs' APIs, a "
                         "WebSocket of its own, and a web page")  # fmt: skip
    gateway.add_argument("--gateway-port", type=a_port, default=GATEWAY_PORT, metavar="N",
                         help=f"default {GATEWAY_PORT}; 0: any free")  # fmt: skip
    gateway.add_argument("--gateway-config", type=Path, metavar="FILE", help="its settings; keys, which are needed "
                         "where other machines can reach it (--host)")  # fmt: skip

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
    if args.gateway_config and not args.gateway:
        parser.error("--gateway-config goes with --gateway")
    if args.gateway_config and not args.gateway_config.is_file():
        parser.error(f"--gateway-config: there is no file {args.gateway_config}")
    if args.gateway and args.docker and not args.gateway_config:
        parser.error("--docker --gateway needs --gateway-config, with keys: from within, a container is reachable")
    if args.models is None:
        args.models = [SESSION if args.gateway else ONE_SHOT]
    if args.gateway and SESSION not in args.models:
        parser.error(f"--gateway needs the model {SESSION}")
    if args.say and (ONE_SHOT not in args.models or args.gateway):
        parser.error(f"--say needs the model {ONE_SHOT}, and no gateway")
    if args.docker and (args.say or args.tritonserver or args.ready_file):
        parser.error("--docker goes with neither --say, --tritonserver nor --ready-file")
    ports = [port for port in (chosen_port(args, name) for name in PORTS) if port]
    ports += [args.gateway_port] if args.gateway and args.gateway_port else []
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


def chosen_port(args: argparse.Namespace, name: str) -> int:
    """The port asked for; else the usual one, or any (0) where the server speaks one line and stops."""
    given: int | None = getattr(args, f"{name}_port")
    return given if given is not None else 0 if args.say else PORTS[name]
