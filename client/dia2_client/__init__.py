"""Streams speech from a Triton server that runs stream-dia2. See the README beside this package."""

from .aio import AsyncClient, AsyncStream
from .client import Client, Stream
from .errors import (
    Cancelled,
    ConnectionFailed,
    Dia2ClientError,
    InvalidArgument,
    ServerError,
    Timeout,
    Unavailable,
)
from .types import Chunk, FinishReason, Options, Speech, Word, pcm16

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "Chunk",
    "Client",
    "ConnectionFailed",
    "Dia2ClientError",
    "FinishReason",
    "InvalidArgument",
    "Options",
    "ServerError",
    "Speech",
    "Stream",
    "Timeout",
    "Unavailable",
    "Word",
    "pcm16",
]
