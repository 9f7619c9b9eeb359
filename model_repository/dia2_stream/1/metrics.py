"""The engine's telemetry as Triton's custom metrics."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from dia2_engine.telemetry import Telemetry


class Metrics(Telemetry):
    """The engine's numbers on the server's `/metrics`, labelled with the instance."""

    FAMILIES = (
        ("live", "GAUGE", "dia2_live_streams", "Streams that are producing audio"),
        ("queued", "GAUGE", "dia2_queued_streams", "Streams that wait for a slot"),
        ("invalid", "COUNTER", "dia2_invalid_total", "Requests refused because they can never succeed as written"),
        ("rejected", "COUNTER", "dia2_rejected_total", "Requests refused because the server was full or closing"),
        ("cancelled", "COUNTER", "dia2_cancelled_total", "Streams ended by their caller"),
        ("failed", "COUNTER", "dia2_failed_total", "Streams ended by an internal error"),
        ("finished", "COUNTER", "dia2_finished_total", "Streams that ran to their end"),
        ("frames", "COUNTER", "dia2_frames_total", "Frames of audio generated"),
        ("illegal_ids", "COUNTER", "dia2_illegal_ids_total", "Token ids caught outside their vocabulary; always 0"),
        ("first_audio_s", "HISTOGRAM", "dia2_first_audio_seconds", "Submission to first audio"),
    )
    BUCKETS_S = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)

    def __init__(self, instance: str) -> None:
        self._metrics: dict[str, tuple[Any, Any]] = {}  # with its family, because a metric dies with that
        for name, kind, metric_name, description in self.FAMILIES:
            if hasattr(pb_utils.MetricFamily, kind):  # histograms came with 24.09
                family = pb_utils.MetricFamily(metric_name, description, getattr(pb_utils.MetricFamily, kind))
                extra = {"buckets": list(self.BUCKETS_S)} if kind == "HISTOGRAM" else {}
                self._metrics[name] = (family.Metric(labels={"instance": instance}, **extra), family)

    def gauge(self, name: str, value: float) -> None:
        self._metrics[name][0].set(value)

    def count(self, name: str, n: int = 1) -> None:
        self._metrics[name][0].increment(n)

    def observe(self, name: str, value: float) -> None:
        if name in self._metrics:
            self._metrics[name][0].observe(value)
