"""Reads a JSON object that a caller sent, field by field."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, Self

from .errors import BadRequest


class Fields:
    """Its fields by type; null is as good as absent. Everything here raises BadRequest, which names the field.

    Fields that are not among the `allowed` are refused; without that list they are ignored.
    """

    def __init__(self, values: Mapping[str, Any], allowed: Collection[str] | None = None) -> None:
        for name in values:
            if allowed is not None and name not in allowed:
                message = f"{shown(name)} is no field; allowed: {', '.join(allowed)}"
                raise BadRequest(message, field=name if _is_unicode(name) else None)
        self._values = values

    @classmethod
    def from_json(cls, data: bytes | str, allowed: Collection[str] | None = None) -> Self:
        """From a body or a message, which must be a JSON object."""
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise BadRequest(f"what was sent is not JSON: {reason}") from None
        if not isinstance(values, dict):
            raise BadRequest("what was sent must be a JSON object")
        return cls(values, allowed)

    def get(self, name: str) -> Any:
        """The value as it is."""
        return self._values.get(name)

    def text(self, name: str) -> str | None:
        value = self.get(name)
        if value is None or (isinstance(value, str) and _is_unicode(value)):
            return value
        raise refused(name, value, "a string")

    def required_text(self, name: str) -> str:
        """A string that is there, and is not only white space."""
        value = self.text(name)
        if value is None:
            raise BadRequest(f"{name} is required", field=name)
        if not value.strip():
            raise refused(name, value, "a string that is not empty")
        return value

    def choice(self, name: str, allowed: Collection[str]) -> str | None:
        """One of a few strings."""
        value = self.text(name)
        if value is None or value in allowed:
            return value
        raise refused(name, value, " or ".join(allowed))

    def boolean(self, name: str) -> bool | None:
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return value
        raise refused(name, value, "true or false")

    def whole(self, name: str) -> int | None:
        """A whole number, of 64 bits at most. JSON may write it as 7.0."""
        value = self.get(name)
        if type(value) is float and value.is_integer():
            value = int(value)
        if value is None or (type(value) is int and -(2**63) <= value < 2**63):
            return value
        raise refused(name, value, "a whole number of 64 bits")

    def number(self, name: str) -> float | None:
        value = self.get(name)
        if value is None or type(value) is int or (type(value) is float and math.isfinite(value)):
            return value
        raise refused(name, value, "a number")


def refused(name: str, value: object, allowed: str) -> BadRequest:
    """The error of a field with a value that it may not have."""
    return BadRequest(f"{name} is {shown(value)}; allowed: {allowed}", field=name)


def _is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8. JSON can spell half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def shown(value: object, most: int = 100) -> str:
    """A caller's value as JSON, for a message: short, and printable anywhere."""
    text = json.dumps(value)
    return text if len(text) <= most else f"{text[:most]}..."
