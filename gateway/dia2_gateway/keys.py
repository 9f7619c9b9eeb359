"""API keys: how a caller gives one, and whose it is. Only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping

from starlette.requests import HTTPConnection

from .config import Key
from .errors import Unauthorized

PREFIX = "dia2_"  # by which a key is recognized where it should not be, in a log or a repository
KEY_BYTES = 32


def new_key() -> str:
    """A key of 256 random bits. It needs no slow hash: nobody guesses it, however fast a guess is checked."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest(key: str) -> str:
    """What is kept of a key: its SHA-256, in hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_key(connection: HTTPConnection) -> str | None:
    """The key that a request brings: `Authorization: Bearer KEY` or `xi-api-key: KEY`.

    Browsers cannot give headers to a WebSocket, so there it may also be `api_key` or `authorization` of the query.
    """
    headers, query = connection.headers, connection.query_params
    places = [headers.get("authorization"), headers.get("xi-api-key")]
    if connection.scope["type"] == "websocket":
        places += [query.get("authorization"), query.get("api_key")]
    for given in places:
        if given:
            scheme, space, rest = given.partition(" ")
            return rest.strip() if space and scheme.lower() == "bearer" else given.strip()
    return None


class Keyring:
    """Finds whose a key is."""

    def __init__(self, keys: Mapping[str, Key]) -> None:
        self._keys = keys

    def name(self, key: str | None) -> str:
        """The name of who has the key; "" where keys are off. Raises Unauthorized.

        Compares hashes, each in constant time and all of them, so that the time tells nothing about any.
        """
        if not self._keys:
            return ""  # any key will do: clients insist on having one
        if key is None:
            raise Unauthorized("an API key is needed: Authorization: Bearer KEY, or xi-api-key: KEY")
        given = digest(key)
        matches = [name for name, entry in self._keys.items() if hmac.compare_digest(entry.sha256, given)]
        if not matches:
            raise Unauthorized("the API key is not known")
        return matches[0]
