"""Stage `sources`: sentences as the synthesiser itself says them in the example voices, for the laboratory.

    python -m training sources DATA OUT
    benchmarks/boundary.py all RUN --checkpoint checkpoints/demo --sources OUT

Sentence i is in voice i modulo their number, as the laboratory pairs them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .data.clips import CLIP_RATE, Synthesiser
from .voices import EXAMPLES, speaker_of

_REQUESTS = Path(__file__).parents[1] / "benchmarks" / "laboratory" / "requests.txt"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training sources", description="Write the laboratory's requests to OUT.")
    parser.add_argument("data", type=Path, metavar="DATA", help="holds the voice")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--requests", type=Path, default=_REQUESTS, metavar="FILE", help="sentences, one a line")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    import soundfile

    synthesiser, names, left_out = Synthesiser(args.data, args.seed), sorted(EXAMPLES), 0
    args.out.mkdir(parents=True, exist_ok=True)
    texts = [line.strip() for line in args.requests.read_text("utf-8").splitlines() if line.strip()]
    for index, text in enumerate(texts):
        name = names[index % len(names)]
        try:
            samples, _ = synthesiser.say(text, speaker_of(name))
        except ValueError:  # its words cannot be told apart
            left_out += 1
            continue
        soundfile.write(args.out / f"{index:04d}-{name}.wav", samples, CLIP_RATE, subtype="PCM_16")
    print(f"{args.out}: {len(texts) - left_out} recordings, {left_out} sentences left out")
    return 0
