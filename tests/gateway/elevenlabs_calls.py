"""What the tests of ElevenLabs' API share: the engine's own audio to compare with, and a talkative WebSocket."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from dia2_client import Client, Speech
from dia2_client.types import join
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.gateway.test_openai import band_levels_db

WAIT_S = 30  # for whatever should happen soon: fail rather than hang
RATE = 24_000
SHORT = "Hello there, how are you?"
LONG = "one two three four five six seven eight nine ten " * 12  # far more than the engine may run ahead


@cache
def engine_speech(grpc_url: str, text: str, voice: str = "anna", seed: int = 7) -> Speech:
    """What the engine says, without a gateway."""
    with Client(grpc_url) as client, client.session(voice=voice, seed=seed) as session:
        session.send(text)
        session.close()
        return join(list(session), session.sample_rate, session.finish_reason)


def samples(pcm: bytes) -> NDArray[np.int16]:
    return np.frombuffer(pcm, "<i2")


def assert_sounds_like(heard: NDArray[np.int16], expected: NDArray[np.float32], rate: int = RATE) -> None:
    """Without a seed something else is heard each time, but for about as long and with the same spectrum."""
    assert 0.7 < (len(heard) / rate) / (len(expected) / RATE) < 1.6
    levels = band_levels_db(heard.astype(np.float32) / 32767, rate)
    assert np.abs(levels - band_levels_db(expected, RATE)).max() < 3


@dataclass
class Heard:
    """What came for one context."""

    audio: bytes = b""
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join("".join(message["alignment"]["chars"]) for message in self.messages if message.get("alignment"))

    @property
    def final(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("isFinal") is True

    def errors(self) -> list[str]:
        return [message["error"] for message in self.messages if "error" in message]


class Talk:
    """One end of a WebSocket of ElevenLabs' API."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.heard: dict[str | None, Heard] = defaultdict(Heard)

    def say(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def listen(self) -> dict[str, Any]:
        """The next message. Raises what `recv` raises."""
        message: dict[str, Any] = json.loads(self.socket.recv(WAIT_S))
        heard = self.heard[message.get("contextId")]
        heard.messages.append(message)
        heard.audio += base64.b64decode(message.get("audio") or "")
        return message

    def until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.listen()

    def until_final(self, context_id: str | None = None) -> Heard:
        self.until(lambda: self.heard[context_id].final)
        return self.heard[context_id]

    def until_heard(self, context_id: str | None = None) -> None:
        """Until some of its audio has come."""
        self.until(lambda: bool(self.heard[context_id].audio))

    def until_closed(self) -> int:
        """Until the gateway closes; the code."""
        for _ in iter(self._try_listen, False):
            pass
        assert self.socket.close_code is not None
        return self.socket.close_code

    def _try_listen(self) -> bool:
        try:
            self.listen()
        except ConnectionClosed:
            return False
        return True


@contextmanager
def talk(ws_url: str, path: str = "multi-stream-input", *, voice: str = "anna", key: str | None = None,
         **query: Any) -> Iterator[Talk]:  # fmt: skip
    """A conversation on one of the two WebSockets."""
    parameters = "&".join(f"{name}={value}" for name, value in {"output_format": "pcm_24000", **query}.items())
    headers = {"xi-api-key": key} if key else {}
    url = f"{ws_url}/v1/text-to-speech/{voice}/{path}?{parameters}"
    with connect(url, additional_headers=headers, open_timeout=WAIT_S) as socket:
        yield Talk(socket)
