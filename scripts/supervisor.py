"""Child processes that never outlive us: a process group that is killed as a whole, and a tritonserver in one."""

from __future__ import annotations

import ctypes
import errno
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Self

# After SIGTERM Triton takes no new requests, and live streams go on. They have this long; then the engine is told to
# end them (its setting `stop_file`), and they and the unloading have a little longer. Then the group is killed, before
# Triton's own deadline, at which 2.51 exits with a crash and leaves its children behind.
STREAMS_DEADLINE_S = 6
STOP_DEADLINE_S = 8
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
POLL_S = 0.05
WATCH_S = 0.25
PROGRESS_S = 5.0
FREE_PORT_ATTEMPTS = 5
RESPONSE_POOL = 128  # of a request, for a caller who is slow to take them
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None)


def say(line: str) -> None:
    """One line to the person who watches."""
    print(f"launch_triton: {line}", file=sys.stderr, flush=True)


class StartError(Exception):
    """The server cannot run; the message says why and where to look."""


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived. Not an `Exception`: nothing but cleaning up may handle it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Remembers SIGINT and SIGTERM. A handler that raised could lose a child between its start and its bookkeeping."""

    received: ClassVar[list[int]] = []

    @classmethod
    def install(cls) -> None:
        """From now on, `nap` raises what used to end the process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: cls.received.append(number))

    @classmethod
    def nap(cls, duration_s: float = POLL_S) -> None:
        """Sleep a moment; raises Stopped if a signal has come. Every wait of the launcher is a loop of these."""
        time.sleep(duration_s)
        if cls.received:
            raise Stopped(cls.received[0])


class ProcessGroup:
    """A command in a session of its own, so that all it starts can be ended at once, and Ctrl-C reaches only us."""

    def __init__(self, command: Sequence[str | Path], environ: Mapping[str, str], log: int | None = None) -> None:
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._process = subprocess.Popen(
            command, env=environ, stdout=log, stderr=log, start_new_session=True, preexec_fn=_die_with_parent
        )
        self.pid = self._process.pid

    @classmethod
    def run(cls, command: Sequence[str | Path], environ: Mapping[str, str], check: bool = True) -> int:
        """Run to the end and return the exit status; raises CalledProcessError for a bad one if `check`."""
        group = cls(command, environ)
        try:
            status = group.wait()
        except BaseException:
            group.kill()
            raise
        if check and status:
            raise subprocess.CalledProcessError(status, [str(part) for part in command])
        return status

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def has_lost_a_process(self) -> bool:
        """Whether a process of the group has died and nobody has taken note of it (a zombie)."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it ended while we looked
                state, _, group = stat.read_text().rpartition(") ")[2].split()[:3]
                if state == "Z" and int(group) == self.pid:
                    return True
        return False

    def wait(self) -> int:
        """Wait for its end, and return the exit status. Raises Stopped."""
        while (status := self._process.poll()) is None:
            Signals.nap()
        return status

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def ends_within(self, deadline_s: float) -> bool:
        """Wait for its end until the deadline, or until one more signal comes."""
        deadline_at_s = time.monotonic() + deadline_s
        signals = len(Signals.received)
        while self._process.poll() is None and time.monotonic() < deadline_at_s and len(Signals.received) == signals:
            time.sleep(POLL_S)
        return self._process.poll() is not None

    def kill(self) -> None:
        """End every process of the group at once, and see them gone: orphans became our children (see __init__)."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-self.pid, 0)


class TritonServer:
    """One tritonserver; leaving the `with` ends it, with every process and shared-memory file of it."""

    def __init__(
        self, python: Path, tritonserver: Path, models: Path, host: str, environ: Mapping[str, str], log: Path
    ) -> None:
        self._tritonserver = tritonserver
        self._models = models
        self._host = host
        self._log = log
        self._shm_prefix = f"stream-dia2-{os.getpid()}-"
        self._stop_file = SHARED_MEMORY / f"{self._shm_prefix}stop"
        self._group: ProcessGroup | None = None
        self._ready = False
        self.addresses: dict[str, str] = {}
        # The backend's stub embeds the Python that comes first on the PATH, and needs its shared library.
        libdir = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"], text=True
        ).strip()
        libraries = os.pathsep.join(filter(None, [libdir, environ.get("LD_LIBRARY_PATH")]))
        path = f"{python.parent}{os.pathsep}{environ.get('PATH', os.defpath)}"
        own = {"PATH": path, "LD_LIBRARY_PATH": libraries, "DIA2_STOP_FILE": str(self._stop_file)}
        self._environ = {**environ, **own}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._group is not None:
            if self._ready:
                say(f"stopping; live streams have {STREAMS_DEADLINE_S} s")
                self._group.terminate()
                if not self._group.ends_within(STREAMS_DEADLINE_S):
                    self._stop_file.touch()
                    self._group.ends_within(STOP_DEADLINE_S - STREAMS_DEADLINE_S)
            # Before it is ready there is nothing to drain, and asked nicely it would load its models to the end first.
            self._group.kill()
            self._remove_shared_memory()

    @property
    def pid(self) -> int:
        """The server's process id, which is also its process group."""
        assert self._group is not None
        return self._group.pid

    def start(self, ports: Mapping[str, int]) -> None:
        """Start it on the given ports; 0 is any free one. Raises StartError if one is taken."""
        self._ports = dict(ports)
        for name, port in ports.items():
            if port and not is_free(self._host, port):
                raise StartError(f"port {port} is taken; choose another with --{name}-port, or 0 for any free one")
        free = iter(free_ports(3, self._host))
        chosen = {name: port or next(free) for name, port in ports.items()}
        shown = "127.0.0.1" if self._host == "0.0.0.0" else self._host  # noqa: S104
        self.addresses = {name: f"{shown}:{port}" for name, port in chosen.items()}
        command: list[str | Path] = [
            self._tritonserver,
            f"--model-repository={self._models}",
            f"--backend-directory={self._tritonserver.parent.parent / 'backends'}",
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            f"--exit-timeout-secs={2 * STOP_DEADLINE_S}",
            "--disable-auto-complete-config",  # config.pbtxt is complete; guessing would load the model's code twice
        ]
        command += self._pool_options()
        for name, port in chosen.items():
            command += [f"--{name}-address={self._host}", f"--{name}-port={port}"]
        if str(self._log) == "-":
            self._group = ProcessGroup(command, self._environ)
            return
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._group = ProcessGroup(command, self._environ, log.fileno())

    def _pool_options(self) -> list[str]:
        """What keeps the server from holding every response of a stream until the stream ends; 2.51 cannot be told."""
        usage = subprocess.run([self._tritonserver, "--help"], env=self._environ, capture_output=True, text=True)
        option = "--grpc-max-response-pool-size"
        return [f"{option}={RESPONSE_POOL}"] if option in usage.stdout + usage.stderr else []

    def wait_ready(self) -> None:
        """Wait until the model answers. Raises StartError, with the end of the log, if the server gives up."""
        assert self._group is not None
        started_s = said_s = time.monotonic()
        attempts = 1
        while not self._answers():
            if self._group.poll() is not None:
                self._remove_shared_memory()
                # Another process may take a free port while the model loads.
                if "already in use" in self._log_text() and attempts < FREE_PORT_ATTEMPTS:
                    attempts += 1
                    self.start(self._ports)
                else:
                    raise StartError(self._describe_end())
            if time.monotonic() - said_s >= PROGRESS_S:
                said_s = time.monotonic()
                say(f"loading ... {said_s - started_s:.0f} s")
            Signals.nap()
        self._ready = True
        say(f"ready after {time.monotonic() - started_s:.1f} s")

    def end(self) -> str | None:
        """How it ended by itself, or lost an engine; None while it runs."""
        assert self._group is not None
        if self._group.poll() is not None:
            return self._describe_end()
        # Triton does not restart the process of a model, and goes on to call itself ready without it.
        if self._group.has_lost_a_process():
            self._ready = False  # what is live now will not end by itself
            return f"an engine's process has died\n{self._log_end()}"
        return None

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self.addresses["http"], timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _describe_end(self) -> str:
        assert self._group is not None
        return f"the server ended with status {self._group.poll()}\n{self._log_end()}"

    def _log_end(self) -> str:
        lines = self._log_text().splitlines()
        telling = [line for line in lines if "failed to load" in line or "already in use" in line] or lines[-20:]
        telling = [line.partition(r"\n\nAt:")[0] for line in telling]  # what follows is a traceback
        shown = "".join(f"  {line}\n" for line in telling).replace("\\n", "\n  ")  # Triton escapes tracebacks
        return f"{shown}The whole log: {self._log}"

    def _log_text(self) -> str:
        return self._log.read_text(errors="replace") if self._log.is_file() else ""

    def _remove_shared_memory(self) -> None:
        for leftover in SHARED_MEMORY.glob(f"{self._shm_prefix}*"):
            leftover.unlink(missing_ok=True)


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that nobody uses, below the range the kernel hands out by itself, so that they stay free for a while.

    Raises StartError if `host` is no address of this machine.
    """
    candidates = (random.randrange(20_000, 32_000) for _ in iter(int, None))  # noqa: S311
    ports: list[int] = []
    while len(ports) < count:
        port = next(candidates)
        if port not in ports and is_free(host, port):
            ports.append(port)
    return ports


def is_free(host: str, port: int) -> bool:
    """Whether one can listen there. Raises StartError if `host` is no address of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise StartError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return True


def _die_with_parent() -> None:
    """In the child: be sent SIGTERM when the launcher dies without a chance to clean up."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
