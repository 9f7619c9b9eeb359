"""Streams speech from a Triton server that runs stream-dia2. See the README beside this package."""

from .aio import AsyncClient
from .aio_streams import AsyncSession, AsyncStream
from .client import Client
from .errors import (
    Cancelled,
    ConnectionFailed,
    Dia2ClientError,
    InvalidArgument,
    ServerError,
    SessionEnded,
    Timeout,
    Unavailable,
)
from .streams import Session, Stream
from .types import (
    Chunk,
    FinishReason,
    Options,
    SessionOptions,
    Speech,
    TimedWord,
    UserSpeech,
    VoiceInfo,
    Word,
    pcm16,
)

__all__ = [
    "AsyncClient",
    "AsyncSession",
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
    "Session",
    "SessionEnded",
    "SessionOptions",
    "Speech",
    "Stream",
    "TimedWord",
    "Timeout",
    "Unavailable",
    "UserSpeech",
    "VoiceInfo",
    "Word",
    "pcm16",
]
