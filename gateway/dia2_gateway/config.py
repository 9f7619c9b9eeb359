"""The settings: strict frozen dataclasses, read from a TOML file. A mistake in it is told at start-up, by its name."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from .errors import ConfigError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(r"[^\s:/]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")
_ORIGIN = re.compile(r"https?://[^\s/]+")


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _require(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {value!r}; allowed: {allowed}")


@dataclass(frozen=True)
class Limits:
    """What one key may use; 0 is no limit."""

    requests_per_minute: int = 0  # utterances begun; a burst may take a whole minute's worth
    concurrent_streams: int = 0  # utterances at the same time
    characters_per_request: int = 10_000  # of one utterance's text

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            _require(type(value) is int and value >= 0, name, value, "a whole number; 0 is no limit")


@dataclass(frozen=True)
class Key:
    """A key's entry: its hash, since the key itself is written down nowhere, and its limits."""

    sha256: str
    limits: Limits


@dataclass(frozen=True)
class Config:
    """Everything that can be set. Names and defaults are those of the file."""

    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free one
    backends: tuple[str, ...] = ("localhost:8001",)  # gRPC addresses of Tritons with the model dia2_session
    streams_per_backend: int = 8  # at the same time; a back end's setting `slots`
    queue: int = 64  # utterances that wait for a place; more are refused at once
    queue_timeout_s: float = 10.0  # an utterance that has waited so long for a place is refused
    health_interval_s: float = 2.0  # between two looks at a back end
    send_timeout_s: float = 10.0  # a caller who takes nothing for so long is cut off
    idle_timeout_s: float = 300.0  # a WebSocket without an utterance and without a message for so long is closed
    ping_interval_s: float = 20.0  # between two pings of a WebSocket; one unanswered for so long ends it
    drain_s: float = 30.0  # after SIGTERM, live utterances have this long to end
    max_message_bytes: int = 65_536  # of a message of a WebSocket; a longer one ends the connection
    max_body_bytes: int = 1_048_576  # of an HTTP request
    cors_origins: tuple[str, ...] = ()  # web pages of these origins may call; "*": of any. The own page always may
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # further names of voices
    limits: Limits = Limits()  # of keys that do not say, and of all callers where there are no keys
    keys: Mapping[str, Key] = field(default_factory=lambda: MappingProxyType({}))  # by the name of who has it

    def __post_init__(self) -> None:
        _require(isinstance(self.host, str) and bool(self.host), "host", self.host, "a name or an address")
        _require(type(self.port) is int and 0 <= self.port < 65_536, "port", self.port, "0 to 65535")
        _require(bool(self.backends), "backends", [], "at least one HOST:PORT")
        for address in self.backends:
            _require(_matches(_ADDRESS, address), "backends", address, "HOST:PORT of gRPC, such as localhost:8001")
        _require(len(set(self.backends)) == len(self.backends), "backends", list(self.backends), "each only once")
        for origin in self.cors_origins:
            allowed = "an origin such as https://example.com, without a path, or *"
            _require(origin == "*" or _matches(_ORIGIN, origin), "cors_origins", origin, allowed)
        for name in ("streams_per_backend", "max_message_bytes", "max_body_bytes"):
            value = getattr(self, name)
            _require(type(value) is int and value > 0, name, value, "a whole number above 0")
        _require(type(self.queue) is int and self.queue >= 0, "queue", self.queue, "a whole number; 0: nobody waits")
        for name in _SECONDS:
            value = getattr(self, name)
            _require(type(value) in (int, float) and 0 < value < 86_400, name, value, "seconds above 0, below a day")
        for alias, voice in self.aliases.items():
            _require(isinstance(voice, str) and bool(voice), f"aliases.{alias}", voice, "the name of a voice")
        if not self.keys and not is_loopback(self.host):
            raise ConfigError(
                f"host is {self.host!r} and there are no keys; allowed without keys: only this machine (127.0.0.1). "
                "`dia2-gateway new-key NAME` makes a key"
            )

    @classmethod
    def load(cls, path: Path | None, **changes: Any) -> Self:
        """From a file, if any, and what replaces its values. Raises ConfigError."""
        values: dict[str, Any] = {}
        if path is not None:
            try:
                values = tomllib.loads(path.read_text("utf-8"))
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}") from None
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise ConfigError(f"{path} is not TOML: {error}") from None
        return cls.from_mapping({**values, **changes})

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """From values as TOML has them. Raises ConfigError for what is unknown, of a wrong type or out of range."""
        given = dict(values)
        limits = _limits(given.pop("limits", {}), "limits", Limits())
        keys = {
            name: _key(entry, f"keys.{name}", limits) for name, entry in _table(given.pop("keys", {}), "keys").items()
        }
        hashes = [key.sha256 for key in keys.values()]
        _require(len(set(hashes)) == len(hashes), "keys", "one sha256 twice", "a key of its own for each name")
        aliases = _table(given.pop("aliases", {}), "aliases")
        for name in ("backends", "cors_origins"):
            if name in given:
                _require(isinstance(given[name], list | tuple), name, given[name], "a list of strings")
                given[name] = tuple(given[name])
        _known(given, {setting.name for setting in dataclasses.fields(cls)}, "")
        return cls(**given, limits=limits, keys=MappingProxyType(keys), aliases=MappingProxyType(dict(aliases)))


_SECONDS = tuple(setting.name for setting in dataclasses.fields(Config) if setting.name.endswith("_s"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key(entry: Any, name: str, default: Limits) -> Key:
    given = dict(_table(entry, name))
    sha256 = given.pop("sha256", None)
    _require(_matches(_SHA256, sha256), f"{name}.sha256", sha256, "64 hexadecimal digits, as `new-key` prints them")
    return Key(str(sha256), _limits(given, name, default))


def _limits(entry: Any, name: str, default: Limits) -> Limits:
    given = _table(entry, name)
    _known(given, {limit.name for limit in dataclasses.fields(Limits)}, f"{name}.")
    try:
        return dataclasses.replace(default, **given)
    except ConfigError as error:
        raise ConfigError(f"{name}.{error}") from None


def _table(value: Any, name: str) -> Mapping[str, Any]:
    _require(isinstance(value, Mapping), name, value, "a table")
    return dict(value)


def _known(given: Mapping[str, Any], names: set[str], prefix: str) -> None:
    for name in given:
        if name not in names:
            raise ConfigError(f"{prefix}{name} is no setting; there are {', '.join(sorted(names))}")
