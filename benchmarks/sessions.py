#!/usr/bin/env python3
"""Measure sessions on a real Triton: text in while audio comes out, and audio without end.

    scripts/launch_triton.sh --say "Hello." hello.wav        # once, to install
    python=.cache/env-py3.11-cpu/bin/python                  # or any Python that has the client installed

    $python benchmarks/sessions.py --streams 1 8                                 # a laptop's CPU, demo checkpoint
    $python benchmarks/sessions.py --long 10 --streams                           # ten minutes of audio, and memory
    $python benchmarks/sessions.py --checkpoint build/2b --device cuda --voice anna-and-ben --set slots=64 \\
        --streams 1 8 32 --long 10                                               # a GPU

Both models run on the server, and one at a time is used. Each figure, p50 / p95, is of --rounds rounds of so many
callers at once.

- request: from sending the whole text to the first chunk of its audio (dia2_stream).
- pieces: the text comes word by word, all words at once (dia2_session); from sending the third word, with which the
  first one may begin, to the first chunk.
- paced: the same with --words-per-second, as from a language model. The first chunk needs the text of the 1.4 s that
  the model's codebooks are delayed by, and two words more, so most of this is waiting for words.
- turn: in a session whose audio has all been played, from sending the next sentence with a flush to its first chunk.
- answer: the same, where what the user has said (the clip of the voice ben, 5 s) is sent just in front of the sentence;
  so this has its encoding, and the passes over it.
- long: one session that gets a sentence whenever it has fewer than 30 words left to speak, until it has made so many
  minutes. Underruns are chunks that came after a listener had run dry; memory is what the server's processes have
  resident after a tenth of the time, and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
from dia2_client import AsyncClient, AsyncSession, Chunk, TimedWord
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import machine, resident_mb, running_server
from benchmarks.figures import spread

UserTurn = tuple[NDArray[np.float32], list[TimedWord]]
FIGURES = ("request", "pieces", "paced", "turn", "answer")
LINE = "Hello there, how can I help you today? I have time for you."
REPLY = "Of course, one moment please. "
SENTENCE = "This goes on and on, and it does not end before all of it has been heard. "
AHEAD_WORDS = 30  # that a long session has to speak
TIMEOUT_S = 60.0
ENOUGH_WORDS = 3  # a word begins when the two behind it are known


class Listener:
    """Takes a session's chunks as they come, and plays them: when each came, and whether playback had run dry."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._came = asyncio.Condition()
        self.chunks: list[tuple[float, Chunk]] = []
        self.dry_s = 0.0  # when all that came will have been played
        self.underruns = 0
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for chunk in self._session:
            now_s = time.monotonic()
            self.underruns += bool(self.chunks) and now_s > self.dry_s
            self.dry_s = max(self.dry_s, now_s) + len(chunk.audio) / self._session.sample_rate
            async with self._came:
                self.chunks.append((now_s, chunk))
                self._came.notify_all()

    async def first_after(self, count: int) -> float:
        """When chunk number `count` came; waits for it."""
        async with self._came:
            await asyncio.wait_for(self._came.wait_for(lambda: len(self.chunks) > count), TIMEOUT_S)
        return self.chunks[count][0]

    async def heard(self, words: int) -> None:
        """Returns when so many words have been heard of, and nothing has come for a while."""
        async with self._came:
            await asyncio.wait_for(self._came.wait_for(lambda: len(self._session.words) >= words), TIMEOUT_S)
        while (left_s := self.dry_s - time.monotonic()) > 0:
            await asyncio.sleep(left_s)


async def request_ms(client: AsyncClient, voice: str | None, seed: int) -> dict[str, float]:
    sent_s = time.monotonic()
    async with client.stream(f"[S1] {LINE}", voice=voice, seed=seed) as stream:
        await anext(stream)
        return {"request": 1000 * (time.monotonic() - sent_s)}


def user_speech() -> UserTurn:
    """What the voice ben says in its clip."""
    folder = Path(__file__).resolve().parent.parent / "voices" / "ben"
    (speaker,) = json.loads((folder / "voice.json").read_text())["speakers"]
    with wave.open(str(folder / speaker["clip"])) as clip:
        audio = np.frombuffer(clip.readframes(clip.getnframes()), "<i2").astype(np.float32) / 32768
    return audio, [TimedWord(word["text"], word["start"], word["end"]) for word in speaker["words"]]


async def session_ms(
    client: AsyncClient, voice: str | None, seed: int, word_s: float, user: UserTurn
) -> dict[str, float]:
    async with client.session(voice=voice, seed=seed) as session:
        listener, sent_s = Listener(session), 0.0
        for index, word in enumerate(LINE.split(), 1):
            if index == ENOUGH_WORDS:
                sent_s = time.monotonic()
            await session.send(word + " ")
            await asyncio.sleep(word_s)
        first_ms = 1000 * (await listener.first_after(0) - sent_s)
        await session.flush()
        await listener.heard(len(LINE.split()))
        count, sent_s = len(listener.chunks), time.monotonic()
        await session.send(REPLY, flush=True)
        turn_ms = 1000 * (await listener.first_after(count) - sent_s)
        await listener.heard(len(LINE.split()) + len(REPLY.split()))
        count, sent_s = len(listener.chunks), time.monotonic()
        await session.hear(*user)
        await session.send(REPLY, flush=True)
        answer_ms = 1000 * (await listener.first_after(count) - sent_s)
        await session.cancel()
        await listener.task
        return {"paced" if word_s else "pieces": first_ms, "turn": turn_ms, "answer": answer_ms}


async def measure_first_audio(client: AsyncClient, streams: int, args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of as many requests at once, and then of sessions."""
    found: dict[str, list[float]] = {}
    user = user_speech()
    for number in range(args.rounds + 1):
        seeds = range(number * streams, (number + 1) * streams)
        calls: list[Any] = [request_ms(client, args.voice, seed) for seed in seeds]
        times = await asyncio.gather(*calls)
        for word_s in (0, 1 / args.words_per_second):
            calls = [session_ms(client, args.voice, seed, word_s, user) for seed in seeds]
            times += await asyncio.gather(*calls)
        if number:  # the first round warms up
            for one in times:
                for name, milliseconds in one.items():
                    found.setdefault(name, []).append(milliseconds)
    return {"streams": streams, **{name: spread(values) for name, values in found.items()}}


async def measure_long(client: AsyncClient, minutes: float, voice: str | None, group: int) -> dict[str, Any]:
    """One session, fed as it is heard."""
    said: list[str] = []
    early_mb: dict[str, float] = {}
    async with client.session(voice=voice, seed=1) as session:
        listener, started_s = Listener(session), time.monotonic()
        while (audio_s := sum(len(chunk.audio) for _, chunk in listener.chunks) / session.sample_rate) < 60 * minutes:
            words = [f"{word}{len(said) + index}" for index, word in enumerate(SENTENCE.split())]
            said += words
            await session.send(" ".join(words) + ". ")
            await listener.first_after(len(listener.chunks))
            while session.words and len(said) - len(session.words) > AHEAD_WORDS:
                await listener.first_after(len(listener.chunks))
            if not early_mb and audio_s > 6 * minutes:
                early_mb = resident_mb(group)
            print(f"\r{audio_s:6.0f} s of audio", end="", file=sys.stderr, flush=True)
        late_mb, wall_s = resident_mb(group), time.monotonic() - started_s
        heard = [word.text.strip(".") for word in session.words]
        await session.cancel()
        await listener.task
    print(file=sys.stderr)
    return {
        "audio_s": audio_s,
        "wall_s": wall_s,
        "words": len(heard),
        "in_order": heard == said[: len(heard)],
        "underruns": listener.underruns,
        "memory_mb": {name: (early_mb.get(name, 0.0), late) for name, late in late_mb.items()},
    }


async def measure(url: str, group: int, args: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {"machine": machine(), "first_audio": []}
    async with AsyncClient(url, timeout_s=TIMEOUT_S) as client:
        for streams in args.streams:
            report["first_audio"].append(await measure_first_audio(client, streams, args))
            print_first_audio(report["first_audio"][-1], header=streams == args.streams[0])
        if args.long:
            report["long"] = await measure_long(client, args.long, args.voice, group)
            print_long(report["long"])
    return report


def print_first_audio(row: dict[str, Any], *, header: bool) -> None:
    if header:
        print(f"| callers | {' | '.join(f'{name}, ms' for name in FIGURES)} |\n|--:|{'--:|' * len(FIGURES)}")
    cells = [f"{row[name]['p50']:.0f} / {row[name]['p95']:.0f}" for name in FIGURES]
    print(f"| {row['streams']} | {' | '.join(cells)} |", flush=True)


def print_long(long: dict[str, Any]) -> None:
    print(
        f"\n{long['audio_s']:.0f} s of audio in one session, in {long['wall_s']:.0f} s: {long['words']} words, "
        f"{'each once and in order' if long['in_order'] else 'NOT each once and in order'}; {long['underruns']} "
        "underruns; resident after a tenth of it and at the end: "
        + ", ".join(f"{name} {early:.0f} and {late:.0f} MB" for name, (early, late) in long["memory_mb"].items())
    )


def main(argv: list[str] | None = None) -> int:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", help="of the server (default: the demo checkpoint)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server")
    parser.add_argument("--voice", help="default: the server's")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8], metavar="N", help="callers at once")
    parser.add_argument("--rounds", type=int, default=10, help="that are counted (default: 10)")
    parser.add_argument("--words-per-second", type=float, default=20.0, metavar="N", help="that come (default: 20)")
    parser.add_argument("--long", type=float, default=0.0, metavar="MINUTES", help="of audio of one session")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    args = parser.parse_args(argv)
    options = ["--models", "dia2_stream", "dia2_session", "--device", args.device]
    options += ["--checkpoint", args.checkpoint] if args.checkpoint else []
    options += [part for setting in args.set for part in ("--set", setting)]
    with running_server(*options) as server:
        report = asyncio.run(measure(server.grpc, server.pid, args))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
