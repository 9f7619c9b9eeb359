#!/usr/bin/env python3
"""Measure the engine on a GPU, without Triton: what a frame costs, and when its first audio comes.

    scripts/make_random_checkpoint.py build/2b --shape 2b --dtype bfloat16     # once: random weights, the full shape
    benchmarks/engine.py --checkpoint build/2b --json engine.json

Passes. One engine with as many slots as the largest load, its streams 300 columns into their context, guidance on.
Each pass is one CUDA graph, timed by device events; the figure is the median of 30 replays after 5 of warm-up.

- text: a transformer-only step, with its heads and sampling; depformer: the other codebooks; codec: one frame of audio
- frame: all three as the engine runs them, the codec beside the next text step: of 20 frames in a row, each
- real time: how many streams that frame rate would serve, streams * 80 ms / frame
- bytes/s: the weights that one text step and one depformer read, over their time; copy: of 1 GiB, read and written

Steps. The engine without threads, its streams behind the example voice anna-and-ben (a prefix of 12 s): wall-clock
time of a step with all codebooks, and, under the profiler, for how long of it the device had nothing to do.

First audio. Another engine, with the whole context and the same voice, threads and all: from submission to the first
chunk in the host's memory, alone and while others stream.

Divergence. One request alone and among others, which are rows of passes of other sizes: how much the logits of codebook
0 differ after its first step, and the first frame with another id. (Within passes of one size nothing differs.)

Live (--live N). N streams of --seconds each through the threads, heard by players who start at their first chunk:
underruns are chunks that came after the player had run dry.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dia2_engine import AudioChunk, Engine, EngineConfig, Event, Failed, Finished, Request, Worker
from dia2_engine.model.checkpoint import find_checkpoint, load_dia2
from dia2_engine.model.dia2 import Dia2
from dia2_engine.model.mimi import MimiDecoder
from dia2_engine.runtime.runner import ModelRunner

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 512  # of the passes: 256 whole contexts do not fit beside the weights
POSITION = 300
FRAME_MS = 80.0
VOICE = "anna-and-ben"
KV_GB = 60.0  # what is left beside the weights, with room to spare
LINE = "[S1] Hello there, how can I help you today?"
LONG = "[S1] " + "This goes on and on, and it does not end before everything else has been measured. " * 12


def median_ms(run: Callable[[], object], repeats: int = 30, warm_up: int = 5) -> float:
    """Median time on the device."""
    times: list[float] = []
    for index in range(warm_up + repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if index >= warm_up:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes/s of a copy on the device, read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / median_ms(lambda: target.copy_(source)) * 1000


def frame_ms(runner: ModelRunner, streams: int, frames: int = 20) -> float:
    """Median time of a frame with the codec beside the next text step; as in the engine, at most one frame behind."""
    main, beside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def run() -> None:
        decoded = None
        for _ in range(frames):
            runner.graphs.replay(("transform", streams))
            if decoded is not None:
                main.wait_event(decoded)
            runner.graphs.replay(("depform", streams))
            beside.wait_stream(main)
            with torch.cuda.stream(beside):
                runner.codec_graphs.replay(streams)
            decoded = beside.record_event()
        main.wait_stream(beside)

    return median_ms(run, repeats=5, warm_up=1) / frames


def weight_bytes(model: Dia2) -> tuple[int, int]:
    """What a text step and the depformer of one frame read: embeddings are looked up, not read."""
    transformer, depformer = model.transformer, model.depformer
    text = sum(p.nbytes for n, p in transformer.named_parameters() if "embed" not in n)
    schedule = model.config.weights_schedule
    stages = 0
    for name, parameter in depformer.named_parameters():
        part = name.split(".")
        if "embed" in name:
            continue
        if "in_proj" in part or "out_proj" in part:  # one of each weight group, by stage
            stages += parameter.nbytes * schedule.count(int(part[-2]))
        else:  # the heads and the inputs once, what all stages share each time
            stages += parameter.nbytes * (1 if part[0] in ("logits", "depformer_in") else len(schedule))
    return text, stages


def print_kernels(title: str, run: Callable[[], object]) -> None:
    """How many kernels a pass launches, and which take the most time; waiting for the kernel before counts in it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    kernels = [event for event in profiler.key_averages() if event.device_time_total > 0]
    print(f"{title}: {sum(kernel.count for kernel in kernels)} launches")
    for kernel in sorted(kernels, key=lambda kernel: -kernel.device_time_total)[:8]:
        print(f"    {kernel.count:5} x {kernel.device_time_total / kernel.count:6.1f} us  {kernel.key[:80]}")


@torch.inference_mode()
def measure_passes(checkpoint: str, loads: list[int], *, profile: bool = False) -> dict[str, Any]:
    """What each pass costs, by number of streams."""
    device = torch.device("cuda")
    files = find_checkpoint(checkpoint)
    files = replace(files, config=replace(files.config, max_context_steps=CONTEXT))
    model = load_dia2(files, device=device, dtype=torch.bfloat16)
    codec = MimiDecoder.load(files.mimi, codebooks=files.config.codebooks, device=device)
    weights_gb = torch.cuda.memory_allocated() / 1e9
    text_bytes, depformer_bytes = weight_bytes(model)
    copy = copy_bandwidth()
    runner = ModelRunner(model, codec, slots=max(loads), filter_k=50)
    inputs = runner.buffers.inputs
    inputs.slots[:], inputs.positions[:], inputs.where[:] = range(max(loads)), POSITION, POSITION
    inputs.uniforms[:], inputs.cfg_scale[:], inputs.temperatures[:], inputs.top_k[:] = 0.5, 2.0, (0.6, 0.8), 50
    runner.buffers.upload()
    runner.frames.arrays["slots"][:] = range(max(loads))
    runner.frames.upload()
    runner.codec_state.positions.fill_(POSITION * codec.config.latent_stride)
    for slot in range(max(loads)):
        runner.open(slot, CONTEXT)
    rows = []
    for streams in loads:
        text, depformer = (
            median_ms(partial(runner.graphs.replay, (name, streams))) for name in ("transform", "depform")
        )
        decode = median_ms(partial(runner.codec_graphs.replay, streams))
        frame = frame_ms(runner, streams)
        rows.append(
            {
                "streams": streams,
                "text_ms": text,
                "depformer_ms": depformer,
                "codec_ms": decode,
                "frame_ms": frame,
                "real_time": streams * FRAME_MS / frame,
                "text_bytes_s": text_bytes / text * 1000,
                "depformer_bytes_s": depformer_bytes / depformer * 1000,
            }
        )
    for streams in loads if profile else []:  # at the end, since the profiler slows down what comes after it
        for name in ("transform", "depform"):
            print_kernels(f"{name}, {streams} streams", partial(runner.graphs.replay, (name, streams)))
        print_kernels(f"codec, {streams} streams", partial(runner.codec_graphs.replay, streams))
    return {
        "context": CONTEXT,
        "position": POSITION,
        "copy_bytes_s": copy,
        "weights_gb": weights_gb,
        "kv_mb_per_stream": (runner.memory.keys.nbytes + runner.memory.values.nbytes) / max(loads) / 1e6,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "passes": rows,
    }


def measure_steps(checkpoint: str, loads: list[int], steps: int = 30) -> list[dict[str, Any]]:
    """What a step costs with its host, by number of streams; they enter one after another, so their columns differ."""
    settings: dict[str, Any] = {"device": "cuda", "slots": max(loads), "run_ahead_s": 0.0, "kv_gb": KV_GB}
    engine = Engine(EngineConfig(checkpoint, voices=str(ROOT / "voices"), default_voice=VOICE, **settings))
    walls, shares = {}, {}
    for profiled in (False, True):  # in this order, since the profiler slows down what comes after it
        for streams in loads:
            for seed in range(streams):
                engine.start(engine.parse(Request(LONG, seed=seed, max_seconds=30)))
            while not all(stream.boundary.frames_out for stream in engine.live):
                engine.step(engine.live, _ignore)
            if profiled:
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
                    _time_steps(engine, steps)
                shares[streams] = _device_share(profiler, steps)
            else:
                walls[streams] = statistics.median(_time_steps(engine, steps))
            for stream in engine.live:
                engine.release(stream)
    return [{"streams": streams, "step_ms": walls[streams], **shares[streams]} for streams in loads]


def _time_steps(engine: Engine, steps: int) -> list[float]:
    times = []
    for _ in range(steps):
        started = time.monotonic()
        engine.step(engine.live, _ignore)
        times.append(1000 * (time.monotonic() - started))
    torch.cuda.synchronize()
    return times


def _ignore(*_: object) -> None:
    pass


def _device_share(profiler: torch.profiler.profile, steps: int) -> dict[str, float]:
    """Milliseconds of a step in which some kernel or copy ran, and none did; and how many ran."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or []  # type: ignore[no-untyped-call]
        if event.device_type.name == "CUDA"
    )
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    idle = until - spans[0][0] - busy
    return {"busy_ms": busy / 1000 / steps, "idle_ms": idle / 1000 / steps, "launches": len(spans) / steps}


@torch.inference_mode()
def measure_divergence(checkpoint: str, loads: list[int]) -> list[dict[str, Any]]:
    """What the number of rows of a pass does to one stream."""
    settings: dict[str, Any] = {"device": "cuda", "slots": max(loads), "run_ahead_s": 0.0, "kv_gb": KV_GB}
    engine = Engine(EngineConfig(checkpoint, voices=str(ROOT / "voices"), default_voice=VOICE, **settings))
    alone: tuple[torch.Tensor, list[list[int]]] | None = None
    rows = []
    for streams in [1, *(load for load in loads if load > 1)]:
        watched = engine.parse(Request(LINE, seed=1, max_seconds=3))
        others = [engine.parse(Request(LONG, seed=seed, max_seconds=10)) for seed in range(2, streams + 1)]
        for stream in (watched, *others):
            engine.start(stream)  # the one that is watched gets slot 0, and so row 0 of the first step
        engine.step(engine.live, _ignore)
        model = engine.runner.model.transformer
        logits = model.cb0_logits(model.norm(engine.runner.buffers.step.hidden[:2])).clone()
        while watched.slot >= 0:
            engine.step(engine.live, _ignore)
        for stream in others:
            engine.release(stream)
        first, grid = watched.boundary.first_frame or 0, watched.boundary.grid
        frames = [grid.frame(first + index).tolist() for index in range(watched.boundary.frames_out)]
        if alone is None:
            alone = logits, frames
            continue
        same = [one == other for one, other in zip(alone[1], frames, strict=False)]
        error = (logits - alone[0]).norm() / alone[0].norm()
        rows.append(
            {"streams": streams, "logits": float(error), "frames": len(same), "equal": (*same, False).index(False)}
        )
    return rows


class FirstAudio:
    """A sink that notes when its first chunk came."""

    def __init__(self) -> None:
        self.submitted_s = time.monotonic()
        self.first_ms = float("nan")
        self.done = threading.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, AudioChunk) and math.isnan(self.first_ms):
            self.first_ms = 1000 * (time.monotonic() - self.submitted_s)
        if isinstance(event, Finished | Failed):
            self.done.set()


def measure_first_audio(checkpoint: str, others: list[int], rounds: int) -> dict[str, Any]:
    """Time to first audio of one request after another, while others stream at the pace of a listener."""
    settings: dict[str, Any] = {"device": "cuda", "slots": max(others) + 1, "run_ahead_s": 1.0}
    started_s = time.monotonic()
    worker = Worker(EngineConfig(checkpoint, voices=str(ROOT / "voices"), default_voice=VOICE, **settings))
    ready_s, rows = time.monotonic() - started_s, []
    try:
        for count in others:
            background = [worker.submit(Request(LONG, seed=seed), FirstAudio()) for seed in range(count)]
            times = []
            for seed in range(rounds + 3):
                sink = FirstAudio()
                worker.submit(Request(LINE, seed=seed, max_seconds=0.5), sink)
                if not sink.done.wait(60):
                    raise SystemExit("a stream did not end within 60 s")
                times.append(sink.first_ms)
            times = sorted(times[3:])
            for stream in background:
                stream.cancel()
            rows.append(
                {
                    "others": count,
                    "p50_ms": statistics.median(times),
                    "p95_ms": times[min(len(times) - 1, int(0.95 * len(times)))],
                    "worst_ms": times[-1],
                }
            )
    finally:
        worker.close()
    return {"ready_s": ready_s, "rows": rows}


class Player:
    """A sink that plays from its first chunk on, and notes when it runs dry."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self.submitted_s = time.monotonic()
        self.first_s = math.nan
        self.audio_s = 0.0
        self.underruns = 0
        self.slack_s = math.inf  # the least audio in hand when a chunk came
        self.end: Event | None = None
        self.done = threading.Event()

    def __call__(self, event: Event) -> None:
        now_s = time.monotonic()
        if isinstance(event, AudioChunk):
            if math.isnan(self.first_s):
                self.first_s = self._dry_s = now_s
            else:
                self.slack_s = min(self.slack_s, self._dry_s - now_s)
            if now_s > self._dry_s:
                self.underruns, self._dry_s = self.underruns + 1, now_s
            self._dry_s += len(event.audio) / self._sample_rate
            self.audio_s += len(event.audio) / self._sample_rate
        else:
            self.end = event
            self.done.set()


def measure_live(checkpoint: str, streams: int, seconds: float) -> dict[str, Any]:
    """Streams of so many seconds, all at once, each to its end."""
    settings: dict[str, Any] = {"device": "cuda", "slots": streams, "kv_gb": KV_GB}
    worker = Worker(EngineConfig(checkpoint, voices=str(ROOT / "voices"), default_voice=VOICE, **settings))
    try:
        started_s = time.monotonic()
        players = []
        for seed in range(streams):
            players.append(Player(worker.sample_rate))
            worker.submit(Request(LONG, seed=seed, max_seconds=seconds), players[-1])
        for player in players:
            if not player.done.wait(20 * seconds + 60):
                raise SystemExit("a stream did not end in time")
        wall_s = time.monotonic() - started_s
    finally:
        worker.close()
    waits_ms = sorted(1000 * (player.first_s - player.submitted_s) for player in players)
    return {
        "streams": streams,
        "seconds": seconds,
        "finished": sum(isinstance(player.end, Finished) for player in players),
        "underruns": sum(player.underruns for player in players),
        "least_slack_s": min(player.slack_s for player in players),
        "audio_s": sum(player.audio_s for player in players),
        "wall_s": wall_s,
        "first_audio_p50_ms": statistics.median(waits_ms),
        "first_audio_worst_ms": waits_ms[-1],
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def print_passes(machine: dict[str, Any], passes: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(
        f"bfloat16, CFG, context {passes['context']}, at column {passes['position']}; "
        f"weights {passes['weights_gb']:.2f} GB, KV {passes['kv_mb_per_stream']:.0f} MB a stream, "
        f"peak {passes['peak_gb']:.1f} GB; "
        f"copy {passes['copy_bytes_s'] / 1e9:.0f} GB/s\n"
    )
    print("| streams | text | depformer | codec | frame | real time | text GB/s | depformer GB/s |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in passes["passes"]:
        print(
            f"| {row['streams']} | {row['text_ms']:.2f} ms | {row['depformer_ms']:.2f} ms | {row['codec_ms']:.2f} ms "
            f"| {row['frame_ms']:.2f} ms | {row['real_time']:.0f} | {row['text_bytes_s'] / 1e9:.0f} "
            f"| {row['depformer_bytes_s'] / 1e9:.0f} |",
            flush=True,
        )


def print_steps(rows: list[dict[str, Any]]) -> None:
    print("\n| streams | step, wall clock | device busy | device idle | launches |\n|--:|--:|--:|--:|--:|")
    for row in rows:
        print(
            f"| {row['streams']} | {row['step_ms']:.2f} ms | {row['busy_ms']:.2f} ms | {row['idle_ms']:.2f} ms "
            f"| {row['launches']:.0f} |"
        )


def print_divergence(rows: list[dict[str, Any]]) -> None:
    print("\n| streams | relative difference of the logits | equal frames until the first other id |\n|--:|--:|--:|")
    for row in rows:
        print(f"| {row['streams']} | {row['logits']:.1e} | {row['equal']} of {row['frames']} |")


def print_live(live: dict[str, Any]) -> None:
    print(
        f"\n{live['streams']} streams of {live['seconds']:.0f} s at once: {live['finished']} finished, "
        f"{live['underruns']} underruns, at least {live['least_slack_s']:.2f} s in hand; {live['audio_s']:.0f} s of "
        f"audio in {live['wall_s']:.1f} s; first audio p50 {live['first_audio_p50_ms']:.0f} ms, worst "
        f"{live['first_audio_worst_ms']:.0f} ms, from the submission of all; peak {live['peak_gb']:.1f} GB"
    )


def print_first_audio(first_audio: dict[str, Any]) -> None:
    rows = first_audio["rows"]
    print(f"\nEngine ready after {first_audio['ready_s']:.1f} s, compiling what the kernel cache did not have.")
    print("\n| others streaming | first audio p50 | p95 | worst |\n|--:|--:|--:|--:|")
    for row in rows:
        print(f"| {row['others']} | {row['p50_ms']:.1f} ms | {row['p95_ms']:.1f} ms | {row['worst_ms']:.1f} ms |")


def free_memory() -> None:
    """Of the engine that was measured last, whose parts refer to each other."""
    gc.collect()
    torch.cuda.empty_cache()


def main(argv: list[str] | None = None) -> int:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="folder of a checkpoint")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8, 32, 64, 128, 256], help="powers of two")
    parser.add_argument(
        "--steps", type=int, nargs="*", default=[1, 64], help="streams whose steps are timed with their host"
    )
    parser.add_argument(
        "--divergence",
        type=int,
        nargs="*",
        default=[8, 64],
        help="streams among which one is compared with itself alone",
    )
    parser.add_argument("--live", type=int, default=0, metavar="N", help="have N streams heard at once (default: none)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of audio, at most 60, with --live (default: 60)")
    parser.add_argument("--others", type=int, nargs="*", default=[0, 64], help="streams beside a request's first audio")
    parser.add_argument("--rounds", type=int, default=20, help="requests whose first audio is timed (default: 20)")
    parser.add_argument("--profile", action="store_true", help="print the kernels of each pass")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("this measures a GPU, and there is none")
    gpu = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cuda": torch.version.cuda}
    report: dict[str, Any] = {"machine": gpu}
    if args.others:  # before anything that uses the profiler
        report["first_audio"] = measure_first_audio(args.checkpoint, args.others, args.rounds)
        print_first_audio(report["first_audio"])
        free_memory()
    if args.live:
        report["live"] = measure_live(args.checkpoint, args.live, args.seconds)
        print_live(report["live"])
        free_memory()
    if args.streams:
        report["passes"] = measure_passes(args.checkpoint, args.streams, profile=args.profile)
        print_passes(gpu, report["passes"])
        free_memory()
    if args.divergence:
        report["divergence"] = measure_divergence(args.checkpoint, args.divergence)
        print_divergence(report["divergence"])
        free_memory()
    if args.steps:
        report["steps"] = measure_steps(args.checkpoint, args.steps)
        print_steps(report["steps"])
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
