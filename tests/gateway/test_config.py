"""Settings: what is read, and that every mistake is told by its name before anything starts."""

from __future__ import annotations

import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from dia2_gateway.config import Config, Key, Limits, is_loopback
from dia2_gateway.errors import ConfigError
from dia2_gateway.keys import Keyring
from dia2_gateway.server import listen

from .conftest import toml

HASH = "ab" * 32


def test_the_defaults_need_no_file() -> None:
    config = Config.load(None)
    assert (config.host, config.port, config.backends) == ("127.0.0.1", 8080, ("localhost:8001",))
    assert config.keys == {}
    assert config.cors_origins == ()


def test_a_file_and_options_that_replace_its_values(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "host": "0.0.0.0",
        "port": 1,
        "backends": ["a:8001", "[::1]:8001"],
        "drain_s": 5,
        "aliases": {"alloy": "anna"},
        "limits": {"requests_per_minute": 10, "concurrent_streams": 2},
        "keys": {"phone": {"sha256": HASH}, "web": {"sha256": "cd" * 32, "concurrent_streams": 9}},
    }
    (tmp_path / "gateway.toml").write_text(toml(settings))
    config = Config.load(tmp_path / "gateway.toml", port=2)
    assert (config.host, config.port, config.backends) == ("0.0.0.0", 2, ("a:8001", "[::1]:8001"))
    assert config.drain_s == 5
    assert config.aliases == {"alloy": "anna"}
    assert config.keys == {"phone": Key(HASH, Limits(10, 2)), "web": Key("cd" * 32, Limits(10, 9))}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prot": 1}, "prot is no setting; there are"),
        ({"port": "8080"}, "port is '8080'; allowed: 0 to 65535"),
        ({"port": 65_536}, "port is 65536"),
        ({"host": ""}, "host is ''"),
        ({"backends": []}, "backends is []; allowed: at least one"),
        ({"backends": "a:1"}, "backends is 'a:1'; allowed: a list"),
        ({"backends": ["http://a:1"]}, "backends is 'http://a:1'; allowed: HOST:PORT"),
        ({"backends": ["a:1", "a:1"]}, "each only once"),
        ({"streams_per_backend": 0}, "streams_per_backend is 0"),
        ({"queue": -1}, "queue is -1"),
        ({"queue": True}, "queue is True"),
        ({"drain_s": 0}, "drain_s is 0"),
        ({"send_timeout_s": "1"}, "send_timeout_s is '1'"),
        ({"idle_timeout_s": float("nan")}, "idle_timeout_s is nan"),
        ({"cors_origins": ["https://a.example/page"]}, "cors_origins is 'https://a.example/page'"),
        ({"aliases": {"alloy": 1}}, "aliases.alloy is 1"),
        ({"aliases": []}, "aliases is []; allowed: a table"),
        ({"limits": {"concurrent_streams": -1}}, "limits.concurrent_streams is -1"),
        ({"limits": {"streams": 1}}, "limits.streams is no setting"),
        ({"keys": {"a": {}}}, "keys.a.sha256 is None; allowed: 64 hexadecimal digits"),
        ({"keys": {"a": {"sha256": "dia2_secret"}}}, "keys.a.sha256 is"),
        ({"keys": {"a": {"sha256": HASH, "limit": 1}}}, "keys.a.limit is no setting"),
        ({"keys": {"a": {"sha256": HASH, "requests_per_minute": 0.5}}}, "keys.a.requests_per_minute is 0.5"),
        ({"keys": {"a": {"sha256": HASH}, "b": {"sha256": HASH}}}, "a key of its own for each name"),
        ({"host": "0.0.0.0"}, "there are no keys; allowed without keys: only this machine"),
        ({"host": "gateway.example"}, "there are no keys"),
    ],
)
def test_a_mistake_is_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as mistake:
        Config.from_mapping(settings)
    assert told in str(mistake.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_what_only_this_machine_can_reach(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        Config.load(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("port = ")
    with pytest.raises(ConfigError, match="is not TOML"):
        Config.load(tmp_path / "broken.toml")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dia2_gateway", *arguments], capture_output=True, text=True, timeout=60
    )


def test_the_command_tells_mistakes_and_ends() -> None:
    done = command("serve", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.startswith("dia2-gateway: host is '0.0.0.0' and there are no keys")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("serve", "--port", str(port))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert command("serve", "--backend", "nowhere").returncode == 2


def test_a_new_key_fits_its_entry() -> None:
    done = command("new-key", "phone-line")
    assert done.returncode == 0
    key, entry = done.stdout.split("\n", 1)
    found = Config.from_mapping(tomllib.loads(entry[entry.index("[keys") :]))
    assert Keyring(found.keys).name(key) == "phone-line"
    assert command("new-key", "a b").returncode == 2


def test_connections_send_what_is_small_at_once() -> None:
    """And not only when what was sent before is acknowledged, which takes a client's kernel 40 ms."""
    with listen(Config(port=0)) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
