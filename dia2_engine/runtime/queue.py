"""The CPU's queue of passes: a thread that runs them while the caller's decodes what the last ones made."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import torch

_T = TypeVar("_T")


class PassQueue:
    """Runs one thing after another, each if all before it went well: in a thread, or at once in the caller's."""

    def __init__(self, *, thread: bool) -> None:
        self._thread: ThreadPoolExecutor | None = None
        if thread:  # how many helpers an operation has is each thread's own setting
            self._thread = ThreadPoolExecutor(1, "dia2-passes", initializer=torch.set_num_threads, initargs=(1,))
        self._last: Future[Any] | None = None

    def put(self, run: Callable[[], _T]) -> Future[_T]:
        """Run it behind what was put before; the result raises what it, or anything before it since `wait`, raised."""
        if self._thread is None:
            done: Future[_T] = Future()
            done.set_result(run())
            return done
        before = self._last

        @torch.inference_mode()
        def behind() -> _T:
            if before is not None:
                before.result()
            return run()

        self._last = future = self._thread.submit(behind)
        return future

    def wait(self) -> None:
        """Until all has run, and the caller may touch what it uses.

        What failed is not raised here, nor does it keep what comes now from running.
        """
        if self._last is not None:
            wait((self._last,))
            self._last = None
