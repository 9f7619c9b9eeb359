#!/usr/bin/env python3
"""Measure what callers get from a real Triton under load: latency, underruns, throughput, refusals.

    scripts/launch_triton.sh --say "Hello." hello.wav        # once, to install
    python=.cache/env-py3.11-cpu/bin/python                  # or any Python that has the client installed

    $python benchmarks/serve.py --closed 1 2 4 --open 0.2 0.5 --seconds 20 --html report.html   # a laptop's CPU, demo
    $python benchmarks/serve.py --checkpoint build/2b --device cuda --voice anna-and-ben --set slots=128 --seconds 30 \\
        --html report.html --json report.json                                                   # a GPU
    $python benchmarks/serve.py --url localhost:8001 --closed 1 8 --open                        # a server that runs
    $python benchmarks/serve.py --open -- --reuse --voices my-voices   # after --: options of the launch script

The files are written again after each load, so a run that is ended early leaves what it has.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dia2_client import Client, Dia2ClientError
from tritonclient.grpc import InferenceServerClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import perf_analyzer
from benchmarks.common import Server, machine, peak_memory_mb, running_server
from benchmarks.figures import LEVEL_S, LISTEN_S
from benchmarks.load import RETRY_S, Load, run_load
from benchmarks.page import render, spread_text

BUSY_LIMIT = 0.8
METHOD = [
    "Closed loop: callers, evenly started over the ramp, of whom each sends its next request when the last one has "
    f"ended. One that was refused or failed waits {RETRY_S:g} s.",
    "Open loop: requests come as a Poisson process, however many are still running. Times count from the moment a "
    "request was due, however late it was sent.",
    "Requests are gRPC calls of ModelStreamInfer, made with the project's asyncio client, over one connection for each "
    "client process. Scripts have 5 to 25 words; texts, seeds and arrival times follow from the seed.",
    "First chunk: until the first audio of a request has arrived.",
    f"First audible: until a listener, who plays from the first chunk on, hears the first {1000 * LEVEL_S:g} ms whose "
    "level (root mean square; a square wave of full scale has 0 dBFS) is above the threshold. It is looked for in the "
    f"first {LISTEN_S:g} s of audio.",
    "Underruns: chunks that came after that listener had run out of audio, however short the silence.",
    "Real-time factor: seconds from sending a request to its last chunk, per second of its audio. The server holds a "
    "stream back that is further ahead of playback than its setting run_ahead_s (default: 4 s), so long streams come "
    "near 1 even on an idle server.",
    "Audio s per s: seconds of audio that arrived in the counted time, of all streams, over that time.",
    "Rejected: refused with UNAVAILABLE. Unfinished: still running when the time to end was over.",
    "Percentiles are nearest ranks over the requests that were due in the counted time and got audio.",
    "Client busy: CPU time over wall time of the busiest client process, whose limit is one core. Client lag: how late "
    f"its loop woke up. A note warns above {100 * BUSY_LIMIT:.0f} %.",
    "perf_analyzer: Triton's own load generator, one run for each number of streams, with the same scripts and no "
    "seeds. The figures are worked out from its profile export, of all requests of its three windows.",
]
NO_PERF_ANALYZER = "perf_analyzer was not run: no --perf-analyzer was given."
OWN_SERVER = "started for this run by scripts/launch_triton.sh"


def progress(line: str) -> None:
    print(f"serve: {line}", file=sys.stderr, flush=True)


def build_parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n")
    details += "\n" + "\n".join(textwrap.fill(f"- {line}", 116, subsequent_indent="  ") for line in METHOD)
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    server = parser.add_argument_group("server")
    server.add_argument("--url", metavar="HOST:PORT", help="gRPC address of a server that runs; else one is started")
    server.add_argument("--checkpoint", help="of the server to start (default: the demo checkpoint)")
    server.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    server.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                        help="a setting of the server to start, such as slots=128; can be given again")  # fmt: skip
    server.add_argument("launch", nargs="*", metavar="-- OPTION", help="more options of scripts/launch_triton.sh")
    loads = parser.add_argument_group("loads")
    loads.add_argument("--closed", type=int, nargs="*", default=[1, 8, 32, 64, 128], metavar="N",
                       help="concurrent streams (default: 1 8 32 64 128; none: no closed loop)")  # fmt: skip
    loads.add_argument("--open", type=float, nargs="*", default=[1.0, 4.0, 10.0, 20.0], metavar="RATE",
                       help="requests per second (default: 1 4 10 20; none: no open loop)")  # fmt: skip
    loads.add_argument("--seconds", type=float, default=60.0, help="that are counted, of each load (default: 60)")
    loads.add_argument("--ramp", type=float, default=5.0, metavar="S",
                       help="each load runs this long before it is counted (default: 5)")  # fmt: skip
    loads.add_argument("--drain", type=float, default=60.0, metavar="S",
                       help="streams may take this long to end afterwards (default: 60)")  # fmt: skip
    loads.add_argument("--max-requests", type=int, default=10_000, metavar="N", help="of each load (default: 10000)")
    loads.add_argument("--voice", help="default: the server's")
    loads.add_argument("--seed", type=int, default=0, help="of texts, samples and arrivals (default: 0)")
    loads.add_argument("--audible-dbfs", type=float, default=-40.0, metavar="DB",
                       help="level from which audio is audible (default: -40, full scale is 0)")  # fmt: skip
    loads.add_argument("--processes", type=int, default=max(1, min(4, (os.cpu_count() or 1) // 4)), metavar="N",
                       help="client processes (default: one for each four cores, at most 4)")  # fmt: skip
    perf = parser.add_argument_group("perf_analyzer")
    perf.add_argument("--perf-analyzer", metavar="PATH", help="the program; docs/performance.md says how to install it")
    perf.add_argument("--perf-streams", type=int, nargs="+", default=[1, 8, 32], metavar="N",
                      help="its concurrent streams (default: 1 8 32)")  # fmt: skip
    report = parser.add_argument_group("report (a table is printed in any case)")
    report.add_argument("--json", type=Path, metavar="FILE", help="all figures")
    report.add_argument("--html", type=Path, metavar="FILE", help="a page with plots, which needs nothing else")
    report.add_argument("--note", action="append", default=[], metavar="TEXT",
                        help="a sentence for it, such as what the checkpoint is; can be given again")  # fmt: skip
    return parser


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What would fail only later."""
    for name, least in (("processes", 1), ("max_requests", 1), ("seconds", 0.1), ("ramp", 0.0), ("drain", 0.0)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least:g}")
    if min([*args.closed, *args.perf_streams, 1]) < 1 or min(args.open, default=1.0) <= 0:
        parser.error("a load must be above zero")
    if args.url and (args.checkpoint or args.settings or args.launch or args.device != "auto"):
        parser.error("--url is a server that runs: --checkpoint, --device, --set and launch options do not go with it")
    for file in (args.json, args.html):
        if file and not file.absolute().parent.is_dir():
            parser.error(f"{file}: there is no folder {file.absolute().parent}")


@contextmanager
def server_of(args: argparse.Namespace) -> Iterator[tuple[str, Server | None]]:
    """The address of the server to measure, and the server if it is ours."""
    if args.url:
        yield args.url, None
        return
    options = ["--device", args.device, *(part for setting in args.settings for part in ("--set", setting))]
    options += ["--checkpoint", args.checkpoint] if args.checkpoint else []
    progress("starting a server")
    with running_server(*options, *args.launch) as server:
        progress(f"ready after {server.ready_s:.1f} s")
        yield server.grpc, server


def describe(args: argparse.Namespace, url: str, server: Server | None) -> dict[str, Any]:
    """The report before its first load."""
    with InferenceServerClient(url) as client:
        triton = client.get_server_metadata()
    checkpoint = args.checkpoint or "the demo checkpoint"
    unknown = "not known here: the server ran already"
    settings = {
        "server": f"{OWN_SERVER}, ready after {server.ready_s:.1f} s" if server else f"{url}, which ran already",
        "checkpoint": checkpoint if server else unknown,
        "device": args.device if server else unknown,
        "settings of the server": ", ".join([*args.settings, *args.launch]) or "defaults" if server else unknown,
        "voice": args.voice or "the server's default",
        "closed loop": f"{', '.join(map(str, args.closed)) or 'no'} concurrent streams",
        "open loop": f"{', '.join(f'{rate:g}' for rate in args.open) or 'no'} requests per second",
        "times": f"{args.seconds:g} s counted after a ramp of {args.ramp:g} s; up to {args.drain:g} s to end",
        "seed": args.seed,
        "audible from": f"{args.audible_dbfs:g} dBFS",
        "client processes": args.processes,
    }
    return {
        "subject": checkpoint if server else f"the server at {url}",
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {**machine(), "server": f"{triton.name} {triton.version}"},
        "settings": settings,
        "method": METHOD,
        "notes": [*args.note, *([] if args.perf_analyzer else [NO_PERF_ANALYZER])],
        "loads": [],
    }


def measure(args: argparse.Namespace, url: str, sample_rate: int) -> Iterator[dict[str, Any] | str]:
    """One row for each load, or a note in place of one."""
    shared = {"url": url, "voice": args.voice, "seed": args.seed, "ramp_s": args.ramp, "seconds": args.seconds}
    shared |= {"drain_s": args.drain, "max_requests": args.max_requests, "audible_dbfs": args.audible_dbfs}
    loads = [Load("closed", streams, **shared) for streams in args.closed]
    loads += [Load("open", rate, **shared) for rate in args.open]
    for load in loads:
        what = "concurrent streams" if load.kind == "closed" else "requests per second"
        progress(f"{load.kind} loop, {load.value:g} {what}: {load.window[1]:g} s and up to {load.drain_s:g} s to end")
        row = run_load(load, args.processes)
        yield row
        name = f"{load.kind} loop at {load.value:g}"
        if row["client_busy"] > BUSY_LIMIT:
            yield f"{name}: the client was {100 * row['client_busy']:.0f} % busy and may have been the limit."
        if row["cut_short"]:
            yield f"{name}: ended early, at the limit of {load.max_requests} requests; its throughput is too low."
    for streams in args.perf_streams if args.perf_analyzer else []:
        progress(f"perf_analyzer, {streams} concurrent streams")
        limit_s = 4 * (args.seconds + args.drain)
        try:
            profile = perf_analyzer.run(args.perf_analyzer, url, streams, args.seed, args.voice, limit_s)
            yield from perf_analyzer.read_profile(profile, sample_rate, args.audible_dbfs)
        except perf_analyzer.PerfAnalyzerError as error:
            yield f"No figures from perf_analyzer at {streams} streams: {error}"


def write(args: argparse.Namespace, report: dict[str, Any]) -> None:
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.html:
        args.html.write_text(render(report))


HEAD = ("load", "requests", "first chunk, ms", "first audible, ms", "underruns (streams)", "real-time factor",
        "audio s/s", "rejected", "failed", "unfinished", "client busy")  # fmt: skip


def memory_text(peaks_mb: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {peak:.0f} MB" for name, peak in peaks_mb.items())
    return f"{sum(peaks_mb.values()):.0f} MB of the host, shared pages counted in each process ({parts})"


def table_line(row: dict[str, Any]) -> str:
    busy = f"{100 * row['client_busy']:.0f} %" if "client_busy" in row else "-"
    cells = [f"{row['kind']} {row['value']:g}", row["requests"], spread_text(row["first_chunk_ms"])]
    cells += [spread_text(row["first_audible_ms"]), f"{row['underruns']} ({row['streams_with_underruns']})"]
    cells += [spread_text(row["real_time_factor"]), f"{row['audio_s_per_s']:.1f}"]
    cells += [row["rejected"], row["failed"], row["unfinished"], busy]
    return f"| {' | '.join(map(str, cells))} |"


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    check(parser, args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and end the server on the way
    started_s = time.monotonic()
    try:
        with server_of(args) as (url, server):
            with Client(url) as client:
                sample_rate = client.sample_rate
            report = describe(args, url, server)
            print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
            print(f"{report['subject']}; p50 / p95 / p99\n\n| {' | '.join(HEAD)} |\n|{'--:|' * len(HEAD)}", flush=True)
            for result in measure(args, url, sample_rate):
                if isinstance(result, str):
                    report["notes"].append(result)
                else:
                    report["loads"].append(result)
                    print(table_line(result), flush=True)
                if server:
                    report["peak_memory_mb"] = peak_memory_mb(server.pid)
                    report["settings"]["peak memory"] = memory_text(report["peak_memory_mb"])
                write(args, report)
    except Dia2ClientError as error:
        progress(f"{type(error).__name__}: {error}")
        return 1
    except KeyboardInterrupt:
        progress("stopped; the files have the loads that were done")
        return 128 + signal.SIGINT
    print("".join(f"\n{note}" for note in report["notes"]))
    if "peak memory" in report["settings"]:
        print(f"\npeak memory: {report['settings']['peak memory']}")
    progress(f"done after {time.monotonic() - started_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
