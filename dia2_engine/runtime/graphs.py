"""CUDA graphs: each pass of static shape is recorded once, at start-up, and replayed as one launch."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


class Graphs:
    """Passes by key, of one stream of the device. Without a GPU, or switched off for debugging, a pass simply runs."""

    def __init__(self, enabled: bool, stream: torch.cuda.Stream | None = None) -> None:
        self.enabled = enabled
        self._stream = stream  # to record on, for its priority; the caller runs the passes on it
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        # One pool for all: passes run one after another and keep nothing in it between them.
        self._pool = torch.cuda.graph_pool_handle() if enabled else None

    def record(self, key: Hashable, run: Callable[[], object]) -> None:
        """Run a pass, which compiles and allocates what it needs, record it, and replay it once to see that it does."""
        if not self.enabled:
            return
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            run()
        graph.replay()  # recording alone does not run it
        self._graphs[key] = graph

    def run(self, key: Hashable, run: Callable[[], object]) -> None:
        """Replay the pass recorded as `key`, or run it where graphs are off. Raises KeyError if none was recorded."""
        if self.enabled:
            self.replay(key)
        else:
            run()

    def replay(self, key: Hashable) -> None:
        """One launch of a recorded pass."""
        self._graphs[key].replay()
