"""The command `dia2-gateway`: `serve`, and `new-key`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import logs
from .app import create_app
from .config import Config
from .errors import ConfigError
from .keys import digest, new_key
from .server import Server, listen

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a bare key of TOML


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, or 2 for a wrong configuration or usage."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except ConfigError as error:
        print(f"dia2-gateway: {error}", file=sys.stderr)
        return 2


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dia2-gateway", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the gateway until Ctrl-C or SIGTERM")
    serve.add_argument("--config", type=Path, metavar="FILE", help="TOML; docs/gateway.md has all settings")
    serve.add_argument("--host", help=f"address to listen on (default: {Config.host})")
    serve.add_argument("--port", type=int, metavar="N", help=f"default: {Config.port}; 0: any free one")
    serve.add_argument("--backend", action="append", metavar="HOST:PORT", dest="backends",
                       help=f"a Triton's gRPC address; can be given again (default: {Config.backends[0]})")  # fmt: skip
    serve.add_argument("--streams-per-backend", type=int, metavar="N",
                       help=f"its setting `slots` (default: {Config.streams_per_backend})")  # fmt: skip
    serve.add_argument("--ready-file", type=Path, metavar="FILE", help="write the address there as JSON, once it is up")
    serve.add_argument("--check", action="store_true", help="only check the settings")
    serve.set_defaults(run=run_gateway)
    key = commands.add_parser("new-key", help="make an API key, and print it with its entry for the configuration")
    key.add_argument("name", help="who will have it")
    key.set_defaults(run=print_new_key)
    return parser


def run_gateway(args: argparse.Namespace) -> int:
    names = ("host", "port", "backends", "streams_per_backend")
    changes: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    config = Config.load(args.config, **changes)
    if args.check:
        return 0
    listener = listen(config)
    logs.configure()
    Server(create_app(config), args.ready_file).run([listener])
    return 0


def print_new_key(args: argparse.Namespace) -> int:
    if not _NAME.fullmatch(args.name):
        raise ConfigError(f"NAME is {args.name!r}; allowed: 1 to 64 letters, digits, - and _")
    key = new_key()
    print(f"{key}\n\nThis is the only time that it is shown. For the configuration:\n")
    print(f'[keys.{args.name}]\nsha256 = "{digest(key)}"')
    return 0
