"""Loads: requests sent to a server on a schedule (open loop) or by a number of callers (closed loop).

The callers are spread over processes. Each has one asyncio loop, one connection and the client package, notes only
what arrived when, and works out the figures after its last stream. How busy it was is part of the result.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import Any, Literal

from dia2_client import AsyncClient, Dia2ClientError, Unavailable

from benchmarks.figures import Listener, Outcome, Status, percentile, summarise

RETRY_S = 1.0  # a caller who was refused waits this long
TICK_S = 0.02
START_DEADLINE_S = 120.0
TEXT = (
    "hello thank you for calling I can see your order here and it left our warehouse this morning. "
    "It should reach you on Friday before noon. Is there anything else that I can do for you today? "
    "If you are not at home then the driver will leave the parcel with a neighbour and send you a message. "
    "You can also change the address or choose another day until ten in the evening. "
    "I have sent you an email with the number of your parcel so that you can follow it on its way."
)
SCRIPT_WORDS = (5, 25)


@dataclass(frozen=True)
class Load:
    """One load. Counting begins after `ramp_s` and lasts `seconds`; then streams may take `drain_s` to end."""

    kind: Literal["closed", "open"]
    value: float  # concurrent streams, or requests per second
    url: str
    voice: str | None
    seed: int
    ramp_s: float
    seconds: float
    drain_s: float
    max_requests: int
    audible_dbfs: float

    @property
    def window(self) -> tuple[float, float]:
        """From when to when it counts, in seconds from its start."""
        return self.ramp_s, self.ramp_s + self.seconds


@dataclass(frozen=True)
class Part:
    """What one process saw."""

    outcomes: list[Outcome]
    busy: float  # CPU time over wall time, from the start to the window's end
    lags_s: list[float]  # how much later than asked for its loop woke up


def script(seed: int, index: int) -> tuple[str, int]:
    """The text of request `index`, of 5 to 25 words, and the seed to send with it."""
    words, choice = TEXT.split(), random.Random(f"{seed}/{index}")
    count, first = choice.randint(*SCRIPT_WORDS), choice.randrange(len(words))
    return "[S1] " + " ".join((words * 2)[first : first + count]), choice.getrandbits(62)


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process: `rate` per second, in seconds from the start."""
    choice, times, now_s = random.Random(f"{seed}/arrivals"), list[float](), 0.0
    while (now_s := now_s + choice.expovariate(rate)) < seconds:
        times.append(now_s)
    return times


def run_load(load: Load, processes: int) -> dict[str, Any]:
    """Put the load on the server from this many processes, and return its figures."""
    if load.kind == "closed":
        processes = min(processes, int(load.value))
    context = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
    barrier = context.Barrier(processes)
    deadline_s = START_DEADLINE_S + load.window[1] + 2 * load.drain_s
    with context.Pool(processes, _enter, (barrier,)) as pool:
        jobs = [(load, index, processes) for index in range(processes)]
        parts: list[Part] = pool.starmap_async(_run_part, jobs, chunksize=1).get(deadline_s)
    outcomes = [outcome for part in parts for outcome in part.outcomes]
    return {
        "kind": load.kind,
        "value": load.value,
        **summarise(outcomes, load.window),
        "cut_short": len(outcomes) >= load.max_requests,
        "client_processes": processes,
        "client_busy": max(part.busy for part in parts),
        "client_lag_p99_ms": 1000 * percentile([lag for part in parts for lag in part.lags_s], 99),
    }


_barrier: Barrier  # of this process, so that all start together and each takes one part


def _enter(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us


def _run_part(load: Load, index: int, count: int) -> Part:
    gc.freeze()
    gc.disable()  # a collection would stop the loop; this process is short
    return asyncio.run(_drive(load, index, count))


async def _drive(load: Load, index: int, count: int) -> Part:
    async with AsyncClient(load.url) as client:
        sample_rate = await client.connect()
        await asyncio.to_thread(_barrier.wait, START_DEADLINE_S)
        callers = _Callers(load, client, sample_rate)
        meter = asyncio.create_task(callers.meter())
        tasks: list[asyncio.Task[Any]]
        if load.kind == "closed":
            tasks = [asyncio.create_task(callers.caller(caller)) for caller in range(int(load.value))[index::count]]
        else:
            times = arrivals(load.value, load.window[1], load.seed)[: load.max_requests]
            tasks = [asyncio.create_task(callers.call(i, times[i])) for i in range(len(times))[index::count]]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=load.window[1] + load.drain_s)
            for task in late:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, Exception):  # a defect of ours; a task that we cancelled is none
                    raise ended
        busy, lags_s = await meter
    return Part([end() for end in callers.ends], busy, lags_s)


class _Callers:
    """The requests of one process."""

    def __init__(self, load: Load, client: AsyncClient, sample_rate: int) -> None:
        self.load, self.client, self.sample_rate = load, client, sample_rate
        self.started_s = time.monotonic()
        self.ends: list[Callable[[], Outcome]] = []  # each makes an outcome, once there is time

    def now_s(self) -> float:
        return time.monotonic() - self.started_s

    async def caller(self, number: int) -> None:
        """One of the callers of a closed loop: a request, and when it has ended the next."""
        callers = int(self.load.value)
        await asyncio.sleep(number / callers * self.load.ramp_s)
        for index in range(number, self.load.max_requests, callers):
            due_s = self.now_s()
            if due_s >= self.load.window[1]:
                break
            if await self.call(index, due_s) in ("rejected", "failed"):
                await asyncio.sleep(RETRY_S)

    async def call(self, index: int, due_s: float) -> Status:
        """One request, when it is due, to its end."""
        text, seed = script(self.load.seed, index)
        status: Status = "ended"
        message, listener = "", Listener(self.sample_rate, due_s)
        try:
            await asyncio.sleep(due_s - self.now_s())
            stream = self.client.stream(text, voice=self.load.voice, seed=seed, words=False)
            listener.late_s = self.now_s() - due_s
            async for chunk in stream:
                listener.add(chunk)
        except Unavailable as error:
            status, message = "rejected", str(error)
        except Dia2ClientError as error:
            status, message = "failed", f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            status = "unfinished"  # not raised again: we cancel only when the load is over
        self.ends.append(lambda: listener.outcome(status, self.load.window, self.load.audible_dbfs, message))
        return status

    async def meter(self) -> tuple[float, list[float]]:
        """How busy this process is, and how late its loop, until the window ends."""
        lags_s: list[float] = []
        cpu_s = time.process_time()
        while (before_s := self.now_s()) < self.load.window[1]:
            await asyncio.sleep(TICK_S)
            lags_s.append(self.now_s() - before_s - TICK_S)
        return (time.process_time() - cpu_s) / self.now_s(), lags_s
