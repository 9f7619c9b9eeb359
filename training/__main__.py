"""`python -m training STAGE ...`; each stage has its own `--help`."""

from __future__ import annotations

import sys
from importlib import import_module

STAGES = {
    "sentences": "data.sentences",
    "voice": "data.voice",
    "clips": "data.clips",
    "codec": "codec.train",
    "export": "codec.export",
    "tokens": "tokens",
    "speed": "codec.speed",
    "run": "run",
    "lm": "lm.train",
    "lm-export": "lm.export",
    "check": "check",
    "voices": "voices",
    "sources": "sources",
    "gallery": "gallery",
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in STAGES:
        print(f"usage: python -m training {{{','.join(STAGES)}}} ...", file=sys.stderr)
        return 2
    return int(import_module(f".{STAGES[argv[0]]}", __package__).main(argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
