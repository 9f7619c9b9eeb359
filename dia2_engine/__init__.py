"""Streaming Dia2: the engine behind the Triton model `dia2_stream`."""

from .config import EngineConfig
from .engine import Engine
from .errors import (
    Cancelled,
    ConfigError,
    Dia2Error,
    IdOutOfRange,
    InternalError,
    InvalidArgument,
    Unavailable,
)
from .telemetry import Telemetry
from .types import AudioChunk, Event, Failed, Finished, Request, Word
from .worker import Worker

__all__ = [
    "AudioChunk",
    "Cancelled",
    "ConfigError",
    "Dia2Error",
    "Engine",
    "EngineConfig",
    "Event",
    "Failed",
    "Finished",
    "IdOutOfRange",
    "InternalError",
    "InvalidArgument",
    "Request",
    "Telemetry",
    "Unavailable",
    "Word",
    "Worker",
]
