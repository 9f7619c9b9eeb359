#!/usr/bin/env python3
"""Measure the demo checkpoint on the CPU, through Triton, as a user meets it.

    scripts/launch_triton.sh --say "Hello." hello.wav      # once, to install
    .cache/env-py3.11-cpu/bin/python benchmarks/cpu.py     # or any Python that has the client installed
    taskset -c 0,1 ... benchmarks/cpu.py --json cpu.json   # on two cores of a larger machine

Starts scripts/launch_triton.sh with the demo checkpoint, no bound on run-ahead and free ports, and speaks one script
over gRPC with the client package: alone and as several streams at once, with a new seed each time. Client and
server share the cores. The numbers:

- real-time factor: seconds from sending the request to its last chunk, per second of its audio; per stream.
- underruns: chunks that came after a listener, who plays from the first chunk on, had run out of audio.
- first audio: from sending the request to the arrival of its first chunk.
- time to ready: from starting the launch script, with everything installed, to the server reporting ready.
- peak memory: resident high-water marks (VmHWM) of the server's processes, added up. Pages that they share count
  in each, so it is an upper bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dia2_client import Client
from dia2_client.stats import StreamStats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import machine, peak_memory_mb, running_server

SERVER_SETTINGS = ("run_ahead_s=0",)
TEXT = (
    "[S1] Hello, thank you for calling. I can see your order here, and it left our warehouse this morning. "
    "[S2] Oh, that is good to hear. When will it be with me? "
    "[S1] It should reach you on Friday, before noon. Is there anything else that I can do for you today?"
)


@dataclass(frozen=True)
class Load:
    """What was measured with this many streams at once; medians and extremes over all streams of all rounds."""

    streams: int
    rounds: int
    audio_s: float  # mean length of a stream
    rtf_median: float
    rtf_worst: float
    first_audio_p50_ms: float
    first_audio_worst_ms: float
    underruns: int


def launch_options(checkpoint: str | None, cache: Path | None) -> list[str]:
    """For the launch script."""
    options = ["--device", "cpu", *(part for setting in SERVER_SETTINGS for part in ("--set", setting))]
    options += ["--checkpoint", checkpoint] if checkpoint else []
    options += ["--cache", str(cache)] if cache else []
    return options


def speak(client: Client, seed: int) -> StreamStats:
    """One stream, from the request to its end."""
    with client.stream(TEXT, seed=seed) as stream:
        stats = StreamStats(stream.sample_rate)
        for chunk in stream:
            stats.add(chunk)
    return stats


def measure(client: Client, streams: int, rounds: int, first_seed: int) -> Load:
    """Speak `streams` at once, `rounds` times over."""
    done: list[StreamStats] = []
    with ThreadPoolExecutor(streams) as pool:
        for index in range(rounds):
            seeds = range(first_seed + index * streams, first_seed + (index + 1) * streams)
            done += pool.map(lambda seed: speak(client, seed), seeds)
    factors = [stats.last_arrival_s / stats.audio_s for stats in done]
    first_ms = [1000 * (stats.first_audio_s or 0.0) for stats in done]
    return Load(
        streams=streams,
        rounds=rounds,
        audio_s=statistics.mean(stats.audio_s for stats in done),
        rtf_median=statistics.median(factors),
        rtf_worst=max(factors),
        first_audio_p50_ms=statistics.median(first_ms),
        first_audio_worst_ms=max(first_ms),
        underruns=sum(stats.underruns for stats in done),
    )


def print_report(report: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    print(f"settings: {report['checkpoint']}, {', '.join(SERVER_SETTINGS)}, first voice by name, CFG on\n")
    print("| streams | rounds | audio of each | RTF median | RTF worst | first audio p50 | worst | underruns |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    for load in report["loads"]:
        print(
            f"| {load['streams']} | {load['rounds']} | {load['audio_s']:.1f} s | {load['rtf_median']:.3f} "
            f"| {load['rtf_worst']:.3f} | {load['first_audio_p50_ms']:.0f} ms "
            f"| {load['first_audio_worst_ms']:.0f} ms | {load['underruns']} |"
        )
    memory = report["peak_memory_mb"]
    parts = ", ".join(f"{name} {peak:.0f}" for name, peak in memory.items())
    print(f"\ntime to ready {report['ready_s']:.1f} s; peak memory {sum(memory.values()):.0f} MB ({parts})")


def main(argv: list[str] | None = None) -> int:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4], help="loads to measure (default: 1 4)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each load (default: 5)")
    parser.add_argument("--checkpoint", help="default: the demo checkpoint")
    parser.add_argument("--cache", type=Path, help="the launch script's --cache")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    args = parser.parse_args(argv)
    options = launch_options(args.checkpoint, args.cache)
    with running_server(*options):
        pass  # installs what is missing, so that the next start is nothing but a start
    with running_server(*options) as server, Client(server.grpc) as client:
        for streams in args.streams:  # warm-up, outside the numbers
            measure(client, streams, rounds=1, first_seed=0)
        loads = [measure(client, streams, args.rounds, first_seed=1) for streams in args.streams]
        memory = peak_memory_mb(server.pid)
    report: dict[str, Any] = {
        "machine": machine(),
        "checkpoint": args.checkpoint or "demo checkpoint",
        "loads": [asdict(load) for load in loads],
        "ready_s": server.ready_s,
        "peak_memory_mb": memory,
    }
    print_report(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
