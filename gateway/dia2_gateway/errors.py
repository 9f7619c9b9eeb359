"""One exception tree: whatever a caller is told went wrong is an `ApiError`.

Each protocol module puts it into the shape of its own API. A bad deployment is a `ConfigError`, which no caller sees.
"""

from __future__ import annotations

import re
from typing import ClassVar

from dia2_client import Cancelled, ConnectionFailed, Dia2ClientError, InvalidArgument, SessionEnded, Unavailable

# What the back end calls the fields of a session, at the beginning of a message about one.
_FIELD = re.compile(r"(TEXT|VOICE|SEED|TEMPERATURE|TOP_K|CFG_SCALE)\b", re.IGNORECASE)


class ConfigError(Exception):
    """The gateway cannot run as configured; the message names the setting, the value and what is allowed."""


class ApiError(Exception):
    """Base of the tree."""

    status: ClassVar[int] = 500  # of HTTP
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field  # of the request that is at fault, by the name the caller gave it
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Those that go with the answer: Retry-After, in whole seconds, rounded up."""
        return {} if self.retry_after_s is None else {"Retry-After": str(max(1, int(-(-self.retry_after_s // 1))))}


class BadRequest(ApiError):
    """The request can never succeed as written. The message names the field, its value and what is allowed."""

    status, code = 400, "invalid_request"


class Unauthorized(ApiError):
    """No key, or one that is not known."""

    status, code = 401, "unauthorized"


class Forbidden(ApiError):
    """A web page of another origin, which the configuration does not allow."""

    status, code = 403, "forbidden"


class NotFound(ApiError):
    """There is nothing of this name."""

    status, code = 404, "not_found"


class TimedOut(ApiError):
    """The caller has sent no text for too long."""

    status, code = 408, "idle"


class TooLarge(ApiError):
    """The body or the message is longer than what is read."""

    status, code = 413, "too_large"


class TooMany(ApiError):
    """This key's requests in a minute, or its streams at a time, are used up."""

    status, code = 429, "too_many_requests"


class BackendFailed(ApiError):
    """The stream has failed in the back end."""

    status, code = 502, "backend_failed"


class Overloaded(ApiError):
    """No back end has room or is ready, or the gateway is closing; the same request may succeed later."""

    status, code = 503, "overloaded"


RETRY_S = 1.0  # when a place of some back end may be free again


def from_client(error: Dia2ClientError) -> ApiError:
    """What a caller is told of an error of the back end."""
    message = str(error)
    if isinstance(error, InvalidArgument):
        field = _FIELD.match(message)
        return BadRequest(message, field=field[1].lower() if field else None)
    if isinstance(error, SessionEnded):
        return BadRequest("the utterance has ended and takes no more text", field="text")
    if isinstance(error, Cancelled) and "idle" in message:
        return TimedOut(message)
    if isinstance(error, Unavailable):
        return Overloaded(message, retry_after_s=RETRY_S)
    if isinstance(error, ConnectionFailed):
        return BackendFailed("the connection to the back end broke")  # its address is nobody's business
    return BackendFailed(message)
