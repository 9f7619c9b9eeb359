"""One exception tree: everything this package raises on purpose is a `Dia2ClientError`.

On a gRPC stream Triton reports a failed request as a bare message, without its code. The model therefore
begins the message with the code (`INVALID_ARG: ...`), and this module turns the code back into a type.
Triton's `triton_grpc_error` header would carry the code, but must not be sent: it makes server 2.51 crash.
"""

from __future__ import annotations

from typing import Any


class Dia2ClientError(Exception):
    """Base of the tree. `str(error)` is the server's message, where the server had one."""


class InvalidArgument(Dia2ClientError):
    """The request can never succeed as written: unknown voice, value out of range, nothing to say."""


class Unavailable(Dia2ClientError):
    """The server is full, closing or not ready; the same request may succeed later."""


class Cancelled(Dia2ClientError):
    """The server cancelled the stream. (A stream that *you* cancel just ends.)"""


class ServerError(Dia2ClientError):
    """The server failed, or answered with something that is not the protocol."""


class ConnectionFailed(Dia2ClientError):
    """The server cannot be reached, or the connection broke."""


class SessionEnded(Dia2ClientError):
    """The text was not sent, because the session was closed or cancelled, or its audio has ended."""


class Timeout(Dia2ClientError):
    """The server was silent for longer than the client's `timeout_s`."""


_BY_CODE: dict[str, type[Dia2ClientError]] = {
    "INVALID_ARG": InvalidArgument,
    "UNAVAILABLE": Unavailable,
    "CANCELLED": Cancelled,
    "INTERNAL": ServerError,
}

# What Triton itself (not the model) says, without a code, when it will not take a request for now.
_BUSY = ("unknown model", "not ready", "maximum queue size", "timeout expired", "stopped accepting")


def from_message(message: str) -> Dia2ClientError:
    """The error that a response of the stream reports: `CODE: message`, or Triton's own words."""
    code, colon, rest = message.partition(": ")
    if colon and code in _BY_CODE:
        return _BY_CODE[code](rest)
    if any(phrase in message for phrase in _BUSY):
        return Unavailable(message)
    return ServerError(message)


def from_call(error: Any, url: str) -> Dia2ClientError:
    """The error of a call that gRPC ended with the `grpc.RpcError` given.

    A failed request does not end the call (see `from_message`), so this is about the connection.
    """
    status, message = error.code().name, error.details() or ""
    if status == "UNAVAILABLE":
        return ConnectionFailed(f"cannot reach {url}: {message}")
    if status == "DEADLINE_EXCEEDED":
        return ConnectionFailed(f"no answer from {url} in time")
    if status == "CANCELLED":
        return Cancelled(message)
    return ServerError(f"{status}: {message}")
