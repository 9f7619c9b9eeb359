"""The gateway beside a Triton, as one more child of the launcher."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from scripts.supervisor import STREAMS_DEADLINE_S, ProcessGroup, Signals, StartError, say

CLOSE_DEADLINE_S = 3  # from the moment when it is told not to wait for streams any longer


class GatewayServer:
    """One `dia2-gateway serve`; leaving the `with` ends it, and lets its streams end first."""

    def __init__(self, python: Path, options: Sequence[str | Path], environ: Mapping[str, str], log: Path) -> None:
        self._command: list[str | Path] = [python, "-m", "dia2_gateway", "serve", *options]
        self._environ = environ
        self._log = log
        self._group: ProcessGroup | None = None
        self.address = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._group is None:
            return
        if self._group.poll() is None:
            say(f"the gateway's streams have {STREAMS_DEADLINE_S} s")
            self._group.terminate()
            if not self._group.ends_within(STREAMS_DEADLINE_S):
                self._group.terminate()  # the second time, it does not wait
                self._group.ends_within(CLOSE_DEADLINE_S)
        self._group.kill()

    def check(self) -> None:
        """Whether its settings are right. If not it says so itself, and this raises CalledProcessError."""
        ProcessGroup.run([*self._command, "--check"], self._environ)

    def start(self, backend: str) -> None:
        """Start it before a Triton, given by its gRPC address, and wait until it listens. Raises StartError."""
        with tempfile.TemporaryDirectory() as folder:
            ready_file = Path(folder, "ready.json")
            command = [*self._command, "--backend", backend, "--ready-file", ready_file]
            if str(self._log) == "-":
                self._group = ProcessGroup(command, self._environ)
            else:
                self._log.parent.mkdir(parents=True, exist_ok=True)
                with self._log.open("wb") as log:
                    self._group = ProcessGroup(command, self._environ, log.fileno())
            while not ready_file.exists():
                if (end := self.end()) is not None:
                    raise StartError(end)
                Signals.nap()
            told = json.loads(ready_file.read_text())
        host = "127.0.0.1" if told["host"] == "0.0.0.0" else told["host"]  # noqa: S104
        self.address = f"{host}:{told['port']}"

    def end(self) -> str | None:
        """How it ended, or None while it runs."""
        assert self._group is not None
        if self._group.poll() is None:
            return None
        lines = self._log.read_text(errors="replace").splitlines()[-5:] if self._log.is_file() else []
        shown = "".join(f"  {line}\n" for line in lines)
        return f"the gateway ended with status {self._group.poll()}\n{shown}Its whole log: {self._log}"
