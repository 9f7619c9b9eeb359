#!/usr/bin/env python3
"""The boundary laboratory: what is heard where a voice hands over to a request, by protocol.

    benchmarks/boundary.py all build/lab --checkpoint DIR                  # generate, listen, print the table
    benchmarks/boundary.py generate build/lab --checkpoint DIR --device cuda --slots 64    # on a machine with a GPU
    benchmarks/boundary.py score build/lab --checkpoint DIR --workers 2    # elsewhere, with the recogniser
    benchmarks/boundary.py plant build/planted --data build/training       # what the detectors see of planted faults
    benchmarks/boundary.py cut build/cut                                   # voices for --voices, cut off in a sound

Needs what the engine needs, and for listening training/requirements.txt. Stopped, it goes on where it was. The folder's
outputs.jsonl (some 2 kB an output) is all that `score` needs besides the checkpoint's codec.

Every protocol speaks the same requests in the same voices with the same noise: request i in voice i modulo their
number, or in each (--every-voice). Protocols: seamless, what the engine does; no-cooldown, no-kick, no-fade, reference:
its settings; no-prefix, without a voice, for what the detectors see where there is nothing; and three that are wrong on
purpose, and that only this laboratory has: undelayed, bos-cooldown, clamp (benchmarks/laboratory/protocols.py).

- prefix repeated: outputs in which words of the voice's clip are heard that the request does not have: three in a row
  anywhere, or two that begin with the first or second word, or the clip's last word as one of these. "Of another voice"
  is the same with another voice's clip, which nobody has spoken: what is there is chance.
- word error rate: Whisper base against the request's text; intervals by drawing requests anew. Against seamless: the
  rate less that of seamless, request by request, in points.
- own voice: outputs whose speaker vector (resemblyzer) is nearer to their voice's clip, as the codec plays it, than to
  any other voice's.
- bursts: outputs whose first half second is far out (Tukey's outer fence) of the rest of the output and of all clips
  in level, in spectral flux or in repeating itself frame by frame (benchmarks/laboratory/measures.py).
- first audible: milliseconds of audio before the first 10 ms above -40 dBFS, median; first word due: when the engine
  says that the request's first word begins, counted from the first frame that is due.

Rates have Wilson's intervals. The sentences (benchmarks/laboratory/requests.txt) are this project's own, CC0, and no
training set has them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import ROOT, machine
from benchmarks.laboratory.cut import cut_voices
from benchmarks.laboratory.outputs import Run
from benchmarks.laboratory.protocols import PROTOCOLS
from dia2_engine.config import EngineConfig
from dia2_engine.errors import Dia2Error
from dia2_engine.model.checkpoint import find_checkpoint
from dia2_engine.voice.voice import codec_sha256

REQUESTS = ROOT / "benchmarks" / "laboratory" / "requests.txt"


def codec(args: argparse.Namespace) -> str:
    """Which codec the checkpoint has."""
    return codec_sha256(find_checkpoint(args.checkpoint, args.mimi or None, weights=False).mimi)[:12]


def generate(args: argparse.Namespace, run: Run) -> None:
    """Make the outputs that are missing."""
    from benchmarks.laboratory.generate import Laboratory, choose_voices, pair, read_requests

    given = {"checkpoint": args.checkpoint, "mimi": args.mimi, "device": args.device, "dtype": args.dtype}
    config = EngineConfig.from_mapping({**given, "slots": str(args.slots), "run_ahead_s": "0", **dict(args.set)}, {})
    laboratory = Laboratory(run, config, choose_voices(args.voices, args.voice))
    cases = pair(
        read_requests(args.requests, args.count), list(laboratory.voices), args.seed, every_voice=args.every_voice
    )
    run.begin(
        {
            "checkpoint": Path(args.checkpoint).name,
            "codec": codec(args),
            "requests": args.count,
            "every_voice": args.every_voice,
            "seed": args.seed,
            "settings": ", ".join(map("=".join, sorted(args.set))) or "default",
            "transcripts": {name: chosen.clips for name, chosen in laboratory.voices.items()},
        }
    )
    if args.sources:
        laboratory.take_sources(args.sources, cases)
    laboratory.generate(args.protocols, cases)


def score(args: argparse.Namespace, run: Run) -> None:
    """Hear what has not been heard, and report."""
    from benchmarks.laboratory.report import print_report, summarise
    from benchmarks.laboratory.score import Ears, listen

    if "codec" in run.settings and codec(args) != run.settings["codec"]:
        raise ValueError(f"{args.checkpoint} has another codec than the checkpoint that made the outputs")
    listen(run, Ears(args.checkpoint, args.mimi, args.whisper, args.audio), args.workers)
    report: dict[str, Any] = {"machine": machine(), **summarise(run)}
    print_report(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


def plant(args: argparse.Namespace, run: Run) -> None:
    """Make speech with faults in it."""
    from benchmarks.laboratory.generate import read_requests
    from benchmarks.laboratory.plant import plant

    plant(run, args.data, read_requests(args.requests, args.count))


def setting(text: str) -> tuple[str, str]:
    """NAME=VALUE, apart."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def parse(argv: list[str] | None) -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(dest="stage", required=True)

    def options(title: str) -> tuple[argparse.ArgumentParser, argparse._ArgumentGroup]:
        shared = argparse.ArgumentParser(add_help=False)
        return shared, shared.add_argument_group(title)

    model, group = options("the model")
    group.add_argument("--checkpoint", required=True, help="folder, or Hugging Face repository")
    group.add_argument("--mimi", default="", help="codec folder or repository (default: the checkpoint's own)")

    asked, group = options("the requests")
    group.add_argument("--requests", type=Path, default=REQUESTS, metavar="FILE", help="sentences, one a line")
    group.add_argument("--count", type=int, metavar="N", help="of them, from the first (default: 200; of plant, 48)")

    made, group = options("how they are spoken")
    group.add_argument("--voices", type=Path, default=ROOT / "voices", metavar="DIR", help="default: the examples")
    group.add_argument("--voice", nargs="+", default=[], metavar="NAME", help="default: all of one speaker")
    group.add_argument("--every-voice", action="store_true", help="each request in every voice")
    group.add_argument("--protocols", nargs="+", default=list(PROTOCOLS), choices=PROTOCOLS, metavar="NAME",
                       help=f"default: all ({', '.join(PROTOCOLS)})")  # fmt: skip
    group.add_argument("--sources", type=Path, metavar="DIR",
                       help="recordings, REQUEST-VOICE.wav (0007-anna.wav), to hear as they are and coded")  # fmt: skip
    group.add_argument("--device", default="auto", help="default: a GPU if there is one")
    group.add_argument("--dtype", default="auto", help="default: bfloat16 on a GPU, float32 on the CPU")
    group.add_argument("--slots", type=int, default=8, help="requests at once (default: 8)")
    group.add_argument("--seed", type=int, default=1, help="of the noise (default: 1)")
    group.add_argument("--set", action="append", default=[], type=setting, metavar="NAME=VALUE",
                       help="a setting of the engine, such as temperature=0.7")  # fmt: skip

    listened, group = options("how they are heard")
    group.add_argument("--workers", type=int, default=2, help="processes that listen (default: 2)")
    group.add_argument("--whisper", type=Path, default=ROOT / ".cache" / "whisper-base", metavar="DIR",
                       help="where the recogniser is kept (default: .cache/whisper-base)")  # fmt: skip
    group.add_argument("--audio", type=Path, metavar="DIR", help="write what is heard there, as WAV")
    group.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")

    parents = {
        "all": ([model, asked, made, listened], "generate, then score"),
        "generate": ([model, asked, made], "speak the requests"),
        "score": ([model, listened], "listen to what was spoken, and report"),
        "plant": ([asked, listened], "put faults into synthesised speech, and report which are seen"),
    }
    for name, (shared, what) in parents.items():
        stage = stages.add_parser(name, parents=shared, help=what, description=what)
        stage.add_argument("run", type=Path, metavar="RUN", help="folder of the run, made if need be")
    what = "copy voices, each clip cut off where its last word is loudest"
    cut = stages.add_parser("cut", help=what, description=what)
    cut.add_argument("out", type=Path, metavar="OUT", help="folder of voices")
    cut.add_argument("--voices", type=Path, default=ROOT / "voices", metavar="DIR", help="default: the examples")
    stages.choices["plant"].add_argument("--data", type=Path, required=True, help="holds the voice.onnx of training/")
    stages.choices["plant"].set_defaults(checkpoint="", mimi="")
    args = parser.parse_args(argv)
    if "count" in args and args.count is None:  # parsers share their options, so a default would be both's
        args.count = 48 if args.stage == "plant" else 200
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        if args.stage == "cut":
            print(*cut_voices(args.voices, args.out), sep="\n")
            return 0
        run = Run(args.run)
        if args.stage in ("all", "generate"):
            generate(args, run)
        if args.stage == "plant":
            plant(args, run)
        if args.stage != "generate":
            score(args, run)
    except (Dia2Error, ValueError, ModuleNotFoundError) as error:
        print(f"boundary.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
