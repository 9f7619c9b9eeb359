"""From what the server or gRPC says to one exception of the tree."""

from __future__ import annotations

import asyncio
import socket
import time

import dia2_client
import pytest
from dia2_client import (
    AsyncClient,
    Cancelled,
    Client,
    ConnectionFailed,
    Dia2ClientError,
    InvalidArgument,
    Options,
    ServerError,
    Stream,
    Unavailable,
)
from dia2_client._wire import build_request
from dia2_client.errors import from_message


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        ("INVALID_ARG: VOICE: unknown voice 'x'", InvalidArgument, "VOICE: unknown voice 'x'"),
        ("UNAVAILABLE: all slots are busy", Unavailable, "all slots are busy"),
        ("CANCELLED: the server is closing", Cancelled, "the server is closing"),
        ("INTERNAL: INVALID_ARG: not this one", ServerError, "INVALID_ARG: not this one"),
        ("Request for unknown model: 'x' is not found", Unavailable, "Request for unknown model: 'x' is not found"),
        ("[request id: 1] Exceeds maximum queue size", Unavailable, "[request id: 1] Exceeds maximum queue size"),
        ("inference input 'SEED' data-type is 'FP32'", ServerError, "inference input 'SEED' data-type is 'FP32'"),
        ("", ServerError, ""),
    ],
)
def test_a_failed_request_keeps_its_code_and_message(message: str, kind: type[Dia2ClientError], text: str) -> None:
    error = from_message(message)
    assert type(error) is kind
    assert str(error) == text


def test_every_public_error_is_a_dia2_client_error() -> None:
    errors = [value for value in vars(dia2_client).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(errors) == 8
    assert all(issubclass(error, Dia2ClientError) for error in errors)


def test_nobody_listening_is_a_failed_connection() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, so no one else listens there, but not listening either
        port = taken.getsockname()[1]
        with Client(f"127.0.0.1:{port}") as client, pytest.raises(ConnectionFailed, match=f"127.0.0.1:{port}"):
            client.stream("hello")


def test_a_listener_that_never_answers_is_a_failed_connection_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"127.0.0.1:{mute.getsockname()[1]}"
        started_s = time.monotonic()
        with Client(url, connect_timeout_s=0.2) as client, pytest.raises(ConnectionFailed, match=url):
            client.say("hello")
        assert time.monotonic() - started_s >= 0.2


def test_a_server_that_has_gone_since_the_first_contact_is_a_failed_connection() -> None:
    async def listen(url: str) -> None:
        async with AsyncClient(url) as client:
            await client.say("hello")

    request = build_request("hello", Options())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{taken.getsockname()[1]}"
        with Client(url) as client:
            for _ in range(3):  # from the second on, gRPC knows before the request is sent
                stream = Stream(client, request, 24_000)
                with pytest.raises(ConnectionFailed, match=url):
                    next(stream)
                assert list(stream) == []
        with pytest.raises(ConnectionFailed, match=url):
            asyncio.run(listen(url))
