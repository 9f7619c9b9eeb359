"""The Tritons behind the gateway: which are ready, and which of them takes the next utterance.

Each takes at most so many utterances at a time. Those beyond wait here, in order, so that whichever back end has a
place first takes the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from functools import partial

from dia2_client import AsyncClient, Dia2ClientError, VoiceInfo

from .config import Config
from .errors import RETRY_S, Overloaded
from .metrics import Metrics

log = logging.getLogger(__name__)

MODEL = "dia2_session"
CONNECT_TIMEOUT_S = 2.0
SILENCE_TIMEOUT_S = 30.0  # of a back end that owes audio or an answer


def _client(address: str) -> AsyncClient:
    timeouts_s = {"connect_timeout_s": CONNECT_TIMEOUT_S, "timeout_s": SILENCE_TIMEOUT_S}
    return AsyncClient(address, model=MODEL, session_model=MODEL, **timeouts_s)


class Backend:
    """One Triton."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.client = _client(address)
        self.ready = False
        self._told: bool | None = None  # of it in the log
        self.live = 0  # utterances that it has of us
        self.taken = 0  # that it ever had
        self.sample_rate = 0
        self.voices: tuple[VoiceInfo, ...] = ()

    async def look(self) -> None:
        """Find out whether it is ready and, when it has become so, what it offers."""
        try:
            async with _client(self.address) as fresh:  # it may have been restarted, with other voices
                self.sample_rate = await fresh.connect()
                if not self.ready:
                    self.voices = await fresh.voices()
        except Dia2ClientError as error:
            self._note(False, str(error))
        else:
            self._note(True)

    def lost(self) -> None:
        """An utterance found it gone: nothing goes there before it has been looked at again."""
        self._note(False, "the connection broke")

    async def close(self) -> None:
        await self.client.close()

    def _note(self, ready: bool, reason: str | None = None) -> None:
        self.ready = ready
        if ready != self._told:
            self._told = ready
            told = {"backend": self.address, "reason": reason}
            log.warning("back end is %s", "ready" if ready else "not ready", extra=told)


class Backends:
    """All of them."""

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self.all = [Backend(address) for address in config.backends]
        self._config = config
        self._waiting: deque[asyncio.Future[Backend]] = deque()
        self._watches: list[asyncio.Task[None]] = []
        metrics.waiting.set_function(lambda: len(self._waiting))
        for backend in self.all:
            metrics.ready.labels(backend.address).set_function(partial(getattr, backend, "ready"))
            metrics.live.labels(backend.address).set_function(partial(getattr, backend, "live"))

    @property
    def ready(self) -> list[Backend]:
        return [backend for backend in self.all if backend.ready]

    @property
    def known(self) -> Backend | None:
        """One that tells the sample rate and the voices: a ready one, or else one that has been."""
        return next(iter(self.ready), None) or next((backend for backend in self.all if backend.sample_rate), None)

    async def start(self) -> None:
        """Look at all once, then keep looking."""
        await asyncio.gather(*(backend.look() for backend in self.all))
        self._watches = [asyncio.create_task(self._watch(backend)) for backend in self.all]

    async def close(self) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await asyncio.gather(*(backend.close() for backend in self.all))

    async def take(self) -> Backend:
        """A place on the least loaded back end; waits in the queue for one. Give it back with `give_back`.

        Raises Overloaded if none is ready, the queue is full, or the wait takes too long.
        """
        if not self.ready:
            raise Overloaded("no back end is ready", retry_after_s=self._config.health_interval_s)
        backend = self._choose() if not self._waiting else None
        if backend is not None:
            return backend
        if len(self._waiting) >= self._config.queue:
            raise Overloaded("all back ends are busy and the queue is full", retry_after_s=RETRY_S)
        return await self._wait()

    def take_another(self, tried: Collection[Backend]) -> Backend | None:
        """A place on a back end that is none of those, for an utterance that cannot go on there. It does not wait."""
        return self._choose(tried)

    def give_back(self, backend: Backend) -> None:
        """An utterance has left its place."""
        backend.live -= 1
        self._serve_waiting()

    def _choose(self, but: Collection[Backend] = ()) -> Backend | None:
        most = self._config.streams_per_backend
        free = [backend for backend in self.ready if backend.live < most and backend not in but]
        if not free:
            return None
        backend = min(free, key=lambda backend: (backend.live, backend.taken))
        backend.live += 1
        backend.taken += 1
        return backend

    async def _wait(self) -> Backend:
        place: asyncio.Future[Backend] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(self._config.queue_timeout_s):
                return await place
        except TimeoutError:
            self._forget(place)
            message = f"all back ends are busy, and no place was free within {self._config.queue_timeout_s:g} s"
            raise Overloaded(message, retry_after_s=RETRY_S) from None
        except BaseException:
            self._forget(place)
            raise

    def _forget(self, place: asyncio.Future[Backend]) -> None:
        if place.done() and not place.cancelled():  # it came just as we stopped waiting
            self.give_back(place.result())
        with suppress(ValueError):
            self._waiting.remove(place)

    def _serve_waiting(self) -> None:
        while self._waiting and (backend := self._choose()):
            place = self._waiting.popleft()
            if place.done():  # cancelled, and about to be forgotten
                self.give_back(backend)
            else:
                place.set_result(backend)

    async def _watch(self, backend: Backend) -> None:
        while True:
            await asyncio.sleep(self._config.health_interval_s)
            await backend.look()
            self._serve_waiting()
