"""Runs the application: the listening socket, the ready file, and an end in which nobody is cut off."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import time
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from .config import Config
from .errors import ConfigError
from .speech import Speech

log = logging.getLogger(__name__)

BACKLOG = 2048
# For a caller who takes nothing, so much waits in the kernel; without it, megabytes would. It is enough for 1 MB/s
# over a line with 100 ms, which is twenty times what PCM needs.
SEND_BUFFER_BYTES = 65_536
KEEP_ALIVE_S = 75  # an idle HTTP connection is kept for the next request: longer than the usual clients keep theirs
CLOSE_S = 2  # connections have after the last utterance


def listen(config: Config) -> socket.socket:
    """The socket. Raises ConfigError if the address cannot be had."""
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {config.host}:{config.port}: {error.strerror}") from None
    # Connections inherit these. Without the first, the kernel holds a first piece of audio back for 40 ms, until what
    # was sent in front of it is acknowledged (asyncio sets it only where a listener names its protocol). Without the
    # third, a caller who takes nothing keeps a connection that was closed.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * config.send_timeout_s))
    return listener


class Server(uvicorn.Server):
    """uvicorn's, which on the first signal lets live utterances end, and refuses new ones meanwhile."""

    def __init__(self, app: Starlette, ready_file: Path | None) -> None:
        settings: Config = app.state.config
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="websockets-sansio",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=CLOSE_S,
                ws_max_size=settings.max_message_bytes,
                ws_ping_interval=settings.ping_interval_s,
                ws_ping_timeout=settings.ping_interval_s,
                ws_per_message_deflate=False,  # audio does not get smaller
            )
        )
        self._speech: Speech = app.state.speech
        self._drain_s = settings.drain_s
        self._ready_file = ready_file
        self._draining_since_s = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets
        host, port = sockets[0].getsockname()[:2]
        log.info("listening", extra={"host": host, "port": port})
        if self._ready_file is not None:
            unfinished = self._ready_file.with_suffix(".tmp")
            unfinished.write_text(json.dumps({"host": host, "port": port, "pid": os.getpid()}))
            unfinished.rename(self._ready_file)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the end; a second one does not wait for it."""
        if self._speech.draining:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
        self._speech.draining = True
        self._draining_since_s = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        if self._speech.draining:
            over = time.monotonic() - self._draining_since_s > self._drain_s
            self.should_exit = self.should_exit or over or self._speech.live == 0
        return await super().on_tick(counter)
