"""What the gateway counts, for Prometheus: each gateway has a registry of its own."""

from __future__ import annotations

import asyncio

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside each counter, with the time when it was made

FIRST_AUDIO_BUCKETS_S = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """The instruments, by what they measure."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # CPU seconds, resident memory, open files
        PlatformCollector(registry=registry)
        self.ready = Gauge(
            "dia2_gateway_backend_ready", "1 where the back end takes utterances", ["backend"], registry=registry
        )
        self.live = Gauge(
            "dia2_gateway_live_streams", "Utterances that have a place on the back end", ["backend"], registry=registry
        )
        self.waiting = Gauge("dia2_gateway_waiting", "Utterances that wait for a place", registry=registry)
        self.connections = Gauge("dia2_gateway_websockets", "Open WebSockets", registry=registry)
        self.tasks = Gauge("dia2_gateway_tasks", "Tasks of the event loop", registry=registry)
        self.tasks.set_function(lambda: len(asyncio.all_tasks()))
        self.requests = Counter(
            "dia2_gateway_requests",
            "HTTP requests, and WebSockets that have ended, by the status of their first answer (101: a WebSocket)",
            ["route", "status"],
            registry=registry,
        )
        self.utterances = Counter(
            "dia2_gateway_utterances",
            "Utterances by how they ended: stop, length, cancelled, or the code of an error",
            ["outcome"],
            registry=registry,
        )
        self.characters = Counter("dia2_gateway_characters", "Characters of text taken", registry=registry)
        self.audio_s = Counter("dia2_gateway_audio_seconds", "Seconds of audio from the back ends", registry=registry)
        self.failovers = Counter(
            "dia2_gateway_failovers", "Times an utterance went on to another back end", registry=registry
        )
        self.first_audio_s = Histogram(
            "dia2_gateway_first_audio_seconds",
            "From the beginning of an utterance, its wait for a place included, to its first audio",
            buckets=FIRST_AUDIO_BUCKETS_S,
            registry=registry,
        )
