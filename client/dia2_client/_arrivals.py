"""What blocking and asyncio streams share: how an arrival is read, and how a stream ends. No I/O but the cancelling."""

from __future__ import annotations

import time
from typing import Any

from ._ledger import Arrival
from ._wire import read_reply
from .errors import Dia2ClientError, Timeout
from .types import Chunk, FinishReason


class Arrivals:
    """The state of one gRPC stream whose audio is on its way."""

    def __init__(self, client: Any, sample_rate: int = 0) -> None:
        self.sample_rate = sample_rate
        self.finish_reason: FinishReason | None = None  # known at the end, where the server tells
        self._client = client  # also keeps the channel alive
        self._call: Any = None
        self._open = True
        self._started_s = time.monotonic()

    def _read(self, arrival: Arrival) -> Chunk | None:
        """The audio of an arrival, if it has any. Raises the error that it is, and what `read_reply` raises."""
        arrived_s, response = arrival
        if not self._open:
            return None  # cancelled while we waited
        if response is None:
            self._open = False
            return None
        if isinstance(response, Dia2ClientError):
            raise response
        reply = read_reply(response, arrived_s - self._started_s)
        self.finish_reason = reply.finish_reason or self.finish_reason
        return reply.chunk

    def _silence(self) -> Timeout:
        return Timeout(f"nothing from {self._client.url} for {self._client.timeout_s:g} s")

    def _cancel(self) -> None:
        if self._open:
            self.finish_reason = "cancelled"
            self._shut()

    def _shut(self) -> None:
        self._open = False
        if self._call is not None:
            self._call.cancel()
