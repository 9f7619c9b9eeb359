"""The few numbers the engine reports; the server maps them to its own metrics."""

from __future__ import annotations


class Telemetry:
    """Does nothing; subclass to record. Called from several threads, so implementations must be thread-safe.

    gauges      live, queued                       (streams)
    counters    invalid, rejected, cancelled, failed, finished (requests), frames (of audio), illegal_ids
    histogram   first_audio_s                      (seconds from submission to the first chunk)
    """

    def gauge(self, name: str, value: float) -> None:
        """Set a gauge."""

    def count(self, name: str, n: int = 1) -> None:
        """Add to a counter."""

    def observe(self, name: str, value: float) -> None:
        """Add one observation to a histogram."""
