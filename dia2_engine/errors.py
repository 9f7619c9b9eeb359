"""One exception tree: what a caller sees, with the code the server reports."""

from __future__ import annotations


class Dia2Error(Exception):
    """Base of everything this package raises on purpose. `code` is the wire code (docs/protocol.md)."""

    code = "INTERNAL"


class ConfigError(Dia2Error):
    """A configuration, checkpoint or voice that cannot be served; raised at start-up only."""


class InvalidArgument(Dia2Error):
    """A request that can never succeed as written; the message names field, value and what is allowed."""

    code = "INVALID_ARG"


class Unavailable(Dia2Error):
    """The server is full or closing; the same request may succeed later."""

    code = "UNAVAILABLE"


class Cancelled(Dia2Error):
    """The caller cancelled, or went away."""

    code = "CANCELLED"


class InternalError(Dia2Error):
    """A defect on our side; only the one request it names has failed."""


class IdOutOfRange(InternalError):
    """A token id outside the vocabulary of the place it was about to be used at.

    Ids are legal by construction (docs/boundary.md), so this is never expected; it exists so that a defect
    costs one request and not a CUDA device-side assert, which would cost the process.
    """

    def __init__(self, place: str, token_id: int, limit: int) -> None:
        super().__init__(f"{place}: id {token_id} is outside 0..{limit - 1}")
        self.place = place
        self.token_id = token_id
        self.limit = limit
