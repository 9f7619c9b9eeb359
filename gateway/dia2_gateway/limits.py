"""What one key may use: so many utterances in a minute, so many at a time, so many characters in each."""

from __future__ import annotations

import time

from .config import Limits
from .errors import BadRequest, TooMany

BUSY_RETRY_S = 1.0  # an utterance that is live may end at any time


class Allowance:
    """Counts the utterances of one key."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.live = 0
        self._tokens = float(limits.requests_per_minute)  # a bucket that holds a minute's worth and fills steadily
        self._filled_s = time.monotonic()

    def take(self) -> None:
        """An utterance begins. Raises TooMany, and then nothing is counted."""
        limits = self.limits
        if limits.concurrent_streams and self.live >= limits.concurrent_streams:
            message = f"this key has {self.live} live streams, as many as it may have at a time"
            raise TooMany(message, retry_after_s=BUSY_RETRY_S)
        if limits.requests_per_minute:
            self._fill()
            if self._tokens < 1:
                message = f"this key may begin {limits.requests_per_minute} requests a minute"
                raise TooMany(message, retry_after_s=(1 - self._tokens) * 60 / limits.requests_per_minute)
            self._tokens -= 1
        self.live += 1

    def give_back(self) -> None:
        """An utterance that was taken has ended."""
        self.live -= 1

    def check_characters(self, count: int) -> None:
        """Raises BadRequest if an utterance's text is longer than this key may send."""
        most = self.limits.characters_per_request
        if most and count > most:
            raise BadRequest(f"the text has {count} characters; allowed: {most} in one request", field="text")

    def _fill(self) -> None:
        now_s, most = time.monotonic(), self.limits.requests_per_minute
        self._tokens = min(most, self._tokens + (now_s - self._filled_s) * most / 60)
        self._filled_s = now_s
