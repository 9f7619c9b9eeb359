"""What the protocol modules call: who asks, what voices there are, and a new utterance."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from dia2_client import AsyncSession, SessionOptions, VoiceInfo
from starlette.requests import HTTPConnection

from .backends import Backend, Backends
from .config import Config
from .errors import BadRequest, Overloaded
from .keys import Keyring
from .limits import Allowance
from .metrics import Metrics
from .utterance import Utterance

__all__ = ["Caller", "Speech", "Utterance", "VoiceInfo"]

PUBLISHED_RATE = 24_000  # Hz; of the published models, until a back end has told
DRAIN_RETRY_S = 5.0  # when another gateway may have taken this one's place


@dataclass
class Caller:
    """Who asks, in one HTTP request or over one WebSocket."""

    name: str  # of the key; "" where keys are off
    request_id: str
    allowance: Allowance
    _utterances: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def next_id(self) -> str:
        """The first utterance has the id of its request, further ones a number behind it."""
        number = next(self._utterances)
        return self.request_id if number == 1 else f"{self.request_id}-{number}"


class Speech:
    """One for each gateway: `app.state.speech`."""

    def __init__(self, config: Config, metrics: Metrics) -> None:
        self.metrics = metrics
        self.backends = Backends(config, metrics)
        self.aliases: Mapping[str, str] = config.aliases  # further names of voices
        self.draining = False
        self._keyring = Keyring(config.keys)
        self._allowances = {name: Allowance(key.limits) for name, key in config.keys.items()}
        self._allowances[""] = Allowance(config.limits)
        self._leaving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Look at the back ends. None needs to be ready yet."""
        await self.backends.start()

    async def close(self) -> None:
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self.backends.close()

    @property
    def sample_rate(self) -> int:
        """Of all audio, in Hz."""
        known = self.backends.known
        return known.sample_rate if known else PUBLISHED_RATE

    @property
    def live(self) -> int:
        """Utterances that are not over."""
        return sum(allowance.live for allowance in self._allowances.values())

    async def voices(self) -> tuple[VoiceInfo, ...]:
        """The voices of the back ends, which are the same on all. Raises Overloaded while none is known."""
        known = self.backends.known
        if known is None:
            raise Overloaded("no back end is ready", retry_after_s=DRAIN_RETRY_S)
        return known.voices

    @property
    def default_voice(self) -> str | None:
        """Who speaks where no voice is named, once that is known."""
        known = self.backends.known
        return next((voice.name for voice in known.voices if voice.default), None) if known else None

    def resolve_voice(self, name: str | None) -> str | None:
        """The back ends' name for a voice; None is their default. Raises BadRequest for one that there is not."""
        if name is None:
            return None
        voice = self.aliases.get(name, name)
        known = self.backends.known
        if known is not None and voice not in {info.name for info in known.voices}:
            allowed = ", ".join([info.name for info in known.voices] + sorted(self.aliases))
            raise BadRequest(f"voice is {name!r}; known voices: {allowed}", field="voice")
        return voice

    def caller(self, connection: HTTPConnection, key: str | None) -> Caller:
        """Who has this key. Raises Unauthorized; without configured keys any will do, and none."""
        name = self._keyring.name(key)
        return Caller(name, connection.state.request_id, self._allowances[name])

    def open(
        self,
        caller: Caller,
        *,
        voice: str | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        cfg_scale: float | None = None,
    ) -> Utterance:
        """An utterance, which begins when it is entered. Raises BadRequest for an unknown voice."""
        options = SessionOptions(
            voice=self.resolve_voice(voice), seed=seed, temperature=temperature, top_k=top_k, cfg_scale=cfg_scale
        )
        return Utterance(self, caller, options)

    def check_open(self) -> None:
        """Raises Overloaded while the gateway closes."""
        if self.draining:
            raise Overloaded("the gateway is shutting down", retry_after_s=DRAIN_RETRY_S)

    def leave(
        self, session: AsyncSession | None, backend: Backend, allowance: Allowance | None = None
    ) -> asyncio.Task[None]:
        """End a session, if it has begun, then give its place back, and the `allowance` if the utterance ends with it.

        Goes on when whoever waits for the task is cancelled.
        """

        async def end() -> None:
            try:
                if session is not None:
                    await session.__aexit__(None, None, None)
            finally:
                self.backends.give_back(backend)
                if allowance is not None:
                    allowance.give_back()

        task = asyncio.create_task(end())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task
