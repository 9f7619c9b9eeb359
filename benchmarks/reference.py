#!/usr/bin/env python3
"""Measure this engine and nari-labs/dia2 side by side, on the same weights, voice and script, in one run.

    git clone https://github.com/nari-labs/dia2 && git -C dia2 checkout 8687268
    benchmarks/reference.py --dia2 dia2 --checkpoint build/2b --json reference.json

The reference comes from a source checkout: its wheel lacks sub-packages, and it is no dependency of ours. Two things
are changed in it, in memory, so that it runs with transformers 5 and without sphn: how it unpacks `MimiModel.decode`,
and which library reads audio (none is read here). Both speak behind the voice
anna-and-ben (12 s), guidance 2, top-k 50.

- frame: wall-clock time of a full frame, all codebooks, in the middle of a stream. The reference has no streaming, so
  it is the difference of a long and a short generation, over the frames between them, without the codec; ours is that
  of as many steps in a row, with the codec, the host's work and all.
- first audio: until the first frame's samples are on the host. Of the reference, what a server built on it needs at
  the least: its steps from the prefix's end to the first whole frame, and the codec for that frame; with CUDA graphs
  that includes recording them, which it does anew in each request. Feeding the prefix, which it also does in each
  request, is told apart. Ours is from submission to the first chunk, through all threads.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.engine import FirstAudio
from dia2_engine import Engine, EngineConfig, Request, Worker

ROOT = Path(__file__).resolve().parent.parent
VOICE = "anna-and-ben"
SCRIPT = "[S1] " + "This goes on and on, and it does not end before all of it has been measured. " * 8


class Reference:
    """The `dia2` package, driven below its public `generate` so that its parts can be timed."""

    def __init__(
        self, source: Path, checkpoint: Path, device: str, dtype: str, engine: Engine, cuda_graphs: bool
    ) -> None:
        sys.path.insert(0, str(source))
        sys.modules.setdefault("sphn", ModuleType("sphn"))
        package, generation = (importlib.import_module(name) for name in ("dia2.engine", "dia2.generation"))
        codec = importlib.import_module("dia2.audio.codec").MimiCodec
        codec.decode = lambda self, codes: self.model.decode(codes, return_dict=True).audio_values.clamp(-1, 1)
        self._loop = importlib.import_module("dia2.runtime.generator")
        self._clone = importlib.import_module("dia2.runtime.voice_clone")
        self._entry = importlib.import_module("dia2.runtime.state_machine").Entry
        self._parse = importlib.import_module("dia2.runtime.script_parser").parse_script
        sampling = generation.SamplingConfig(0.8, 50)
        self._config = generation.GenerationConfig(
            text=generation.SamplingConfig(0.6, 50),
            audio=sampling,
            cfg_scale=2.0,
            cfg_filter_k=50,
            use_cuda_graph=cuda_graphs,
        )
        self._runtime = package.Dia2.from_local(
            checkpoint / "config.json",
            checkpoint / "model.safetensors",
            device=device,
            dtype=dtype,
            tokenizer_id=str(checkpoint),
            mimi_id=str(checkpoint / "mimi"),
        )._ensure_runtime()
        self._prepared = engine.workshop.load(ROOT / "voices" / VOICE)
        self._plan = engine.workshop.lay_out(self._prepared).plan

    def run(self, steps: int) -> tuple[float, float]:
        """Seconds of feeding the prefix, and of `steps` steps behind it with the codec for their last frame."""
        runtime, plan = self._runtime, self._plan
        object.__setattr__(runtime.config.runtime, "max_context_steps", steps)
        entries = [self._entry(list(e.tokens), e.text, e.padding) for e in plan.entries]
        tokens = torch.from_numpy(self._prepared.tokens)
        prefix = self._clone.PrefixPlan(entries, list(plan.new_word_steps), tokens, plan.frames)
        script = self._parse([SCRIPT], runtime.tokenizer, runtime.constants, runtime.frame_rate)
        state = runtime.machine.new_state([*entries, *script])
        generation = self._loop.build_initial_state(runtime, prefix=prefix)
        started = now()
        first = self._loop.warmup_with_prefix(runtime, prefix, state, generation)
        fed = now()
        _, grid = self._loop.run_generation_loop(
            runtime, state=state, generation=generation, config=self._config, start_step=first
        )
        frame = torch.stack(
            [grid[0, c, -1 - (max(runtime.audio_delays) - d)] for c, d in enumerate(runtime.audio_delays)]
        )
        legal = frame.clamp(0, int(self._prepared.tokens.max()))[None, :, None]  # with few steps some are not made yet
        self._loop.decode_audio(runtime, legal).cpu()
        return fed - started, now() - fed


def now() -> float:
    """Seconds, when the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def measure_reference(reference: Reference, max_delay: int, frames: int, rounds: int) -> dict[str, float]:
    reference.run(max_delay + 2)  # warm-up
    prefix, short = zip(*(reference.run(max_delay + 1) for _ in range(rounds)), strict=True)
    long = [reference.run(max_delay + 1 + frames)[1] for _ in range(rounds)]
    return {
        "frame_ms": 1000 * (statistics.median(long) - statistics.median(short)) / frames,
        "first_audio_ms": 1000 * statistics.median(short),
        "prefix_ms": 1000 * statistics.median(prefix),
    }


def measure_frames(engine: Engine, frames: int, rounds: int) -> float:
    """Milliseconds of one of our steps with all codebooks, alone: the median of rounds of `frames` steps in a row."""
    times: list[float] = []
    for seed in range(rounds):
        stream = engine.parse(Request(SCRIPT, voice=VOICE, seed=seed))
        engine.start(stream)
        while not stream.boundary.samples_audio():
            engine.step([stream], lambda *_: None)
        engine.step([stream], lambda *_: None)  # of which the next one reads and decodes the results
        started = now()
        for _ in range(frames):
            engine.step([stream], lambda *_: None)
        times.append((now() - started) / frames)
        if stream.boundary.end is not None:
            raise SystemExit(f"the script ends before {frames} frames have been measured")
        engine.step([], lambda *_: None)
        engine.release(stream)
    return 1000 * statistics.median(times)


def measure_first_audio(config: EngineConfig, rounds: int) -> float:
    """Median milliseconds from submission to the first chunk, alone."""
    worker, times = Worker(config), []
    for seed in range(rounds + 2):
        sink = FirstAudio()
        worker.submit(Request(SCRIPT, voice=VOICE, seed=seed, max_seconds=0.5), sink)
        if not sink.done.wait(120) or math.isnan(sink.first_ms):
            raise SystemExit("a stream sent no audio within 120 s")
        times.append(sink.first_ms)
    worker.close()
    return statistics.median(times[2:])


def print_report(report: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in report["machine"].items()))
    ours, theirs = report["ours"], report["reference"]
    print("\n| | ours | reference | ratio |\n|--|--:|--:|--:|")
    for name, key in (("frame", "frame_ms"), ("first audio", "first_audio_ms")):
        print(f"| {name} | {ours[key]:.2f} ms | {theirs[key]:.2f} ms | {theirs[key] / ours[key]:.1f} |")
    print(f"\nThe reference also feeds the prefix in each request: {theirs['prefix_ms']:.0f} ms.")


def main(argv: list[str] | None = None) -> int:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dia2", type=Path, required=True, help="source checkout of nari-labs/dia2")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a checkpoint with its mimi/")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: cuda)")
    parser.add_argument("--frames", type=int, default=40, help="frames that are timed (default: 40)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions (default: 5)")
    parser.add_argument("--eager", action="store_true", help="the reference without its CUDA graphs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    args = parser.parse_args(argv)
    if not (args.dia2 / "dia2").is_dir():
        parser.error(f"--dia2 {args.dia2}: no source checkout of dia2")
    dtype = "bfloat16" if args.device.startswith("cuda") else "float32"
    config = EngineConfig(
        str(args.checkpoint), voices=str(ROOT / "voices"), device=args.device, slots=1, run_ahead_s=0.0
    )
    engine = Engine(config)
    reference = Reference(args.dia2, args.checkpoint, args.device, dtype, engine, not args.eager)
    report: dict[str, Any] = {
        "machine": {
            "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device,
            "torch": torch.__version__,
            "dtype": dtype,
            "reference": "eager" if args.eager else "CUDA graphs",
        },
        "reference": measure_reference(reference, engine.model_config.max_delay, args.frames, args.rounds),
        "ours": {
            "frame_ms": measure_frames(engine, args.frames, args.rounds),
            "first_audio_ms": measure_first_audio(config, 3 * args.rounds),
        },
    }
    print_report(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
