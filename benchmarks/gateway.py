#!/usr/bin/env python3
"""Measure the gateway: what it adds to the time to first audio, what a stream costs, how many it carries.

    scripts/launch_triton.sh --say "Hello." hello.wav        # once, to install
    python=.cache/env-py3.11-cpu/bin/python

    $python benchmarks/gateway.py --clients 1 4 --device cpu                     # a laptop's CPU, demo checkpoint
    $python benchmarks/gateway.py --checkpoint build/2b --device cuda --set slots=64 --set queue=256     # a GPU
    $python benchmarks/gateway.py --grpc localhost:8001 --slots 64               # a server that runs
    $python benchmarks/gateway.py --paced                                        # a stand-in: what the way itself takes
    $python benchmarks/gateway.py --clients --carry 100 200 400                  # no engine at all

The gateway is a process of this run, `dia2-gateway serve`, on this machine. Audio is PCM at 24 kHz.

- First audio: from sending a whole text to the first audio, p50 / p95 over --rounds rounds of so many callers at once.
  In each round the three roads take turns: gRPC is a session of the server's, called directly; WebSocket is /v1/stream
  over a connection that is open already; HTTP is POST /v1/audio/speech over one that is open already. Texts and seeds
  are the same on all three. Added is the difference of the percentiles.
- CPU: seconds of the gateway's process per stream and, in brackets, per minute of audio; not for gRPC.
- Carried: so many callers of /v1/stream at once, begun over --ramp seconds, each of whom hears --seconds of audio from
  a stand-in for Triton (benchmarks/paced.py) that sends each chunk when a listener needs it. Busy is CPU time over wall
  time of the gateway's process, whose limit is 1.0; that of the busiest caller's process is beside it, and where that
  comes near 1.0 the callers are the limit. Late is how much later than due the chunks came, over what the first chunk
  of the stream took.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dia2_client import AsyncClient
from websockets.asyncio.client import connect

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import READY_DEADLINE_S, STOP_DEADLINE_S, machine, running_server
from benchmarks.figures import spread
from benchmarks.load import script
from benchmarks.paced import SAMPLE_RATE, paced_servers

ROADS = ("grpc", "websocket", "http")
BYTES_PER_S = 2 * SAMPLE_RATE
TIMEOUT_S = 120.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Gateway:
    """The gateway's process."""

    url: str
    pid: int

    def cpu_s(self) -> float:
        """CPU time that it has used so far, all its threads together."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


@dataclass(frozen=True)
class Heard:
    """One utterance: seconds to its first audio, and how much there was in all."""

    first_s: float
    audio_s: float


@contextmanager
def running_gateway(backends: list[str], streams_per_backend: int) -> Iterator[Gateway]:
    """A gateway with default settings but for the places; its log goes nowhere."""
    with tempfile.TemporaryDirectory() as scratch:
        ready = Path(scratch, "gateway.json")
        command = [sys.executable, "-m", "dia2_gateway", "serve", "--port", "0", "--ready-file", str(ready)]
        command += ["--streams-per-backend", str(streams_per_backend)]
        command += [part for backend in backends for part in ("--backend", backend)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            deadline_s = time.monotonic() + READY_DEADLINE_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline_s:
                    raise SystemExit("the gateway did not start")
                time.sleep(0.02)
            yield Gateway(f"127.0.0.1:{json.loads(ready.read_text())['port']}", process.pid)
        finally:
            process.terminate()
            process.wait(STOP_DEADLINE_S)


async def hear_grpc(client: AsyncClient, voice: str | None, text: str, seed: int, start: asyncio.Barrier) -> Heard:
    await start.wait()
    sent_s, first_s, samples = time.monotonic(), 0.0, 0
    async with client.session(voice=voice, seed=seed) as session:
        await asyncio.gather(session.send(text), session.close())
        async for chunk in session:
            first_s = first_s or time.monotonic() - sent_s
            samples += chunk.audio.size
    return Heard(first_s, samples / SAMPLE_RATE)


async def hear_websocket(url: str, voice: str | None, text: str, seed: int, start: asyncio.Barrier) -> Heard:
    async with connect(f"ws://{url}/v1/stream", compression=None) as socket:
        message = json.dumps({"type": "tts", "text": text, "seed": seed, "voice": voice})
        await start.wait()
        sent_s, first_s, size = time.monotonic(), 0.0, 0
        await socket.send(message)
        async for answer in socket:
            if isinstance(answer, bytes):
                first_s = first_s or time.monotonic() - sent_s
                size += len(answer)
            elif (event := json.loads(answer))["type"] == "error":
                raise SystemExit(f"the gateway said: {event['message']}")
            elif event["type"] == "done":
                break
    return Heard(first_s, size / BYTES_PER_S)


async def hear_http(url: str, voice: str | None, text: str, seed: int, start: asyncio.Barrier) -> Heard:
    parts = urlsplit(f"//{url}")
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    asked = {"model": "dia2", "input": text, "seed": seed, "voice": voice, "response_format": "pcm"}
    body = json.dumps(asked).encode()
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: {url}\r\nContent-Type: application/json\r\n"
    await start.wait()
    sent_s, first_s, size = time.monotonic(), 0.0, 0
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise SystemExit(f"the gateway said: {answer.decode()}")
    while chunk_size := int(await reader.readline(), 16):
        await reader.readexactly(chunk_size + 2)
        first_s = first_s or time.monotonic() - sent_s
        size += chunk_size
    writer.close()
    return Heard(first_s, size / BYTES_PER_S)


async def measure_first_audio(grpc: str, gateway: Gateway, clients: int, args: argparse.Namespace) -> dict[str, Any]:
    """Rounds in which the roads take turns; the first one warms up."""
    heard: dict[str, list[Heard]] = {road: [] for road in ROADS}
    cpu_s = dict.fromkeys(ROADS, 0.0)
    async with AsyncClient(grpc, timeout_s=TIMEOUT_S) as client:
        calls: dict[str, Callable[..., Awaitable[Heard]]] = {
            "grpc": lambda *call: hear_grpc(client, *call),
            "websocket": lambda *call: hear_websocket(gateway.url, *call),
            "http": lambda *call: hear_http(gateway.url, *call),
        }
        for number in range(args.rounds + 1):
            texts = [script(args.seed, number * clients + index) for index in range(clients)]
            for road in ROADS[number % 3 :] + ROADS[: number % 3]:
                before_s, start = gateway.cpu_s(), asyncio.Barrier(clients)
                found = await asyncio.gather(*(calls[road](args.voice, *text, start) for text in texts))
                if number:
                    heard[road] += found
                    cpu_s[road] += gateway.cpu_s() - before_s
    row: dict[str, Any] = {"clients": clients, "streams": args.rounds * clients}
    for road in ROADS:
        audio_s = sum(one.audio_s for one in heard[road])
        row[road] = {"first_audio_ms": spread([1000 * one.first_s for one in heard[road]]), "audio_s": audio_s}
        if road != "grpc":
            row[road] |= {
                "cpu_s_per_stream": cpu_s[road] / row["streams"],
                "cpu_s_per_minute": 60 * cpu_s[road] / audio_s,
            }
    return row


def print_first_audio(row: dict[str, Any], *, header: bool) -> None:
    if header:
        print("| callers | gRPC, ms | WebSocket, ms | added | CPU, ms | HTTP, ms | added | CPU, ms |")
        print("|--:|" + "--:|" * 7)
    direct = row["grpc"]["first_audio_ms"]
    cells = [f"{direct['p50']:.1f} / {direct['p95']:.1f}"]
    for road in ROADS[1:]:
        first, part = row[road]["first_audio_ms"], row[road]
        cells.append(f"{first['p50']:.1f} / {first['p95']:.1f}")
        cells.append(f"{first['p50'] - direct['p50']:+.1f} / {first['p95'] - direct['p95']:+.1f}")
        cells.append(f"{1000 * part['cpu_s_per_stream']:.1f} ({1000 * part['cpu_s_per_minute']:.0f})")
    print(f"| {row['clients']} | {' | '.join(cells)} |", flush=True)


async def carry(url: str, count: int, ramp_s: float) -> list[float]:
    """So many callers, begun over the ramp; how late each of their chunks came, in seconds."""

    async def hear(index: int) -> list[float]:
        await asyncio.sleep(ramp_s * index / count)
        async with connect(f"ws://{url}/v1/stream", compression=None, open_timeout=TIMEOUT_S) as socket:
            await socket.send(json.dumps({"type": "tts", "text": "Hello."}))
            began_s, samples, late = 0.0, 0, []
            async for answer in socket:
                if isinstance(answer, bytes):
                    began_s = began_s or time.monotonic()
                    late.append(time.monotonic() - began_s - samples / SAMPLE_RATE)
                    samples += len(answer) // 2
                elif (event := json.loads(answer))["type"] == "error":
                    raise SystemExit(f"the gateway said: {event['message']}")
                elif event["type"] == "done":
                    return late
        raise SystemExit("the gateway closed the connection")

    return [one for late in await asyncio.gather(*(hear(index) for index in range(count))) for one in late]


def carry_part(url: str, count: int, ramp_s: float) -> tuple[list[float], float]:
    """In a process of its own: how late, and how busy it was."""
    began_s, cpu_s = time.monotonic(), time.process_time()
    late = asyncio.run(carry(url, count, ramp_s))
    return late, (time.process_time() - cpu_s) / (time.monotonic() - began_s)


def live(gateway: Gateway) -> float:
    """Its WebSockets."""
    with urllib.request.urlopen(f"http://{gateway.url}/metrics", timeout=TIMEOUT_S) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("dia2_gateway_websockets "))


def measure_carried(gateway: Gateway, streams: int, args: argparse.Namespace) -> dict[str, Any]:
    """Busy is taken while all are live: from when the last has begun to when the first ends."""
    shares = [streams // args.processes + (part < streams % args.processes) for part in range(args.processes)]
    calls = [(gateway.url, share, args.ramp) for share in shares if share]
    with multiprocessing.get_context("spawn").Pool(len(calls)) as pool:
        running = pool.starmap_async(carry_part, calls, chunksize=1)
        while live(gateway) < streams:
            if running.ready():
                running.get()
                raise SystemExit(f"{streams} streams were never live at once; try a shorter --ramp or more --seconds")
            time.sleep(0.05)
        began_s, cpu_s = time.monotonic(), gateway.cpu_s()
        time.sleep(args.seconds - args.ramp - 1.0)
        wall_s, used_s = time.monotonic() - began_s, gateway.cpu_s() - cpu_s
        parts = running.get()
    late_ms = [1000 * late for part, _ in parts for late in part]
    return {
        "streams": streams,
        "busy": used_s / wall_s,
        "busiest_caller": max(busy for _, busy in parts),
        "cpu_s_per_minute": 60 * used_s / (wall_s * streams),
        "late_ms": spread(late_ms),
        "latest_ms": max(late_ms),
    }


def print_carried(row: dict[str, Any], *, header: bool) -> None:
    if header:
        print("\n| carried | busy | busiest caller | CPU per minute of audio, ms | late, p50 / p95 / p99 / most, ms |")
        print("|--:|" + "--:|" * 4)
    late = " / ".join(f"{value:.0f}" for value in (*row["late_ms"].values(), row["latest_ms"]))
    cells = (f"{row['busy']:.2f}", f"{row['busiest_caller']:.2f}", f"{1000 * row['cpu_s_per_minute']:.0f}", late)
    print(f"| {row['streams']} | {' | '.join(cells)} |", flush=True)


@contextmanager
def back_end(args: argparse.Namespace) -> Iterator[str]:
    """The gRPC address of what the gateway is put in front of."""
    if args.grpc:
        yield args.grpc
    elif args.paced:
        with paced_servers(1, 1.0) as addresses:
            yield addresses[0]
    else:
        options = ["--models", "dia2_session", "--device", args.device, *args.launch]
        options += ["--checkpoint", args.checkpoint] if args.checkpoint else []
        options += [part for setting in args.settings for part in ("--set", setting)]
        with running_server(*options) as server:
            yield server.grpc


def build_parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    server = parser.add_argument_group("server")
    server.add_argument("--grpc", metavar="HOST:PORT", help="gRPC address of a server that runs; else one is started")
    server.add_argument("--slots", type=int, help="with --grpc: streams that it takes at a time")
    server.add_argument(
        "--paced", action="store_true", help="a stand-in that makes a second of audio, the first at once"
    )
    server.add_argument("--checkpoint", help="of the server to start (default: the demo checkpoint)")
    server.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    server.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                        help="a setting of the server to start, such as slots=64; can be given again")  # fmt: skip
    server.add_argument("launch", nargs="*", metavar="-- OPTION", help="more options of scripts/launch_triton.sh")
    loads = parser.add_argument_group("loads")
    loads.add_argument("--clients", type=int, nargs="*", default=[1, 16, 64], metavar="N",
                       help="callers at once (default: 1 16 64; none: no server is needed)")  # fmt: skip
    loads.add_argument("--rounds", type=int, default=10, help="that are counted (default: 10)")
    loads.add_argument("--voice", help="default: the server's")
    loads.add_argument("--seed", type=int, default=0, help="of texts and audio (default: 0)")
    loads.add_argument("--carry", type=int, nargs="*", default=[], metavar="N", help="streams to carry at once")
    loads.add_argument("--seconds", type=float, default=20.0, help="of audio of each carried stream (default: 20)")
    loads.add_argument("--ramp", type=float, default=5.0, metavar="S", help="over which they begin (default: 5)")
    loads.add_argument("--processes", type=int, default=max(1, min(8, (os.cpu_count() or 1) // 4)), metavar="N",
                       help="of callers, and of stand-ins (default: one for each four cores, at most 8)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if bool(args.grpc) != bool(args.slots):
        parser.error("--grpc and --slots go together")
    if args.carry and args.seconds < args.ramp + 2:
        parser.error("--seconds must be at least 2 more than --ramp")
    report: dict[str, Any] = {"machine": machine(), "first_audio": [], "carried": []}
    if args.clients:
        with back_end(args) as grpc, running_gateway([grpc], args.slots or max(args.clients)) as gateway:
            for clients in args.clients:
                row = asyncio.run(measure_first_audio(grpc, gateway, clients, args))
                print_first_audio(row, header=not report["first_audio"])
                report["first_audio"].append(row)
    if args.carry:
        with paced_servers(args.processes, args.seconds) as backends:
            for streams in args.carry:
                with running_gateway(backends, streams) as gateway:
                    row = measure_carried(gateway, streams, args)
                print_carried(row, header=not report["carried"])
                report["carried"].append(row)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
