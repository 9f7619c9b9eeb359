"""The blocking client: `for chunk in client.stream("Hello."): ...`"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, Unpack

from tritonclient.grpc import InferenceServerClient, InferResult
from tritonclient.utils import InferenceServerException

from ._wire import CHANNEL_ARGS, MODEL, build_request, read_reply, read_sample_rate, translate
from .errors import Timeout, Unavailable
from .types import Chunk, FinishReason, Options, Speech, join

Arrival = tuple[float, InferResult | None, InferenceServerException | None]


class Client:
    """Speaks through one Triton server. Safe to share between threads; every stream is its own gRPC stream.

    `url` is HOST:PORT of the server's gRPC endpoint. `connect_timeout_s` bounds the first contact, which
    happens at the first use; `timeout_s` the wait for each chunk, the first one (it may queue) included.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        model: str = MODEL,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 30.0,
    ) -> None:
        self.url = url
        self.model = model
        self.connect_timeout_s = connect_timeout_s
        self.timeout_s = timeout_s
        # Kept for the client's life: gRPC lets the streams' channels share its connection.
        self._control = InferenceServerClient(url, channel_args=CHANNEL_ARGS)
        self._sample_rate: int | None = None
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()

    @property
    def sample_rate(self) -> int:
        """Samples per second of every stream; connects if need be. Raises ConnectionFailed or Unavailable."""
        if self._sample_rate is None:
            try:
                if not self._control.is_model_ready(self.model, client_timeout=self.connect_timeout_s):
                    raise Unavailable(f"{self.url} has no model {self.model} ready")
                config = self._control.get_model_config(self.model, client_timeout=self.connect_timeout_s)
            except InferenceServerException as error:
                raise translate(error, self.url) from None
            self._sample_rate = read_sample_rate(config)
        return self._sample_rate

    def stream(self, text: str, **options: Unpack[Options]) -> Stream:
        """Sends the request and returns at once; iterate over the result for the audio.

        Raises InvalidArgument for what cannot be sent, ConnectionFailed or Unavailable at the first contact;
        what the server objects to is raised by the iteration.
        """
        request = build_request(text, options, self.model)
        stream = Stream(self.url, request, self.sample_rate, self.timeout_s)
        self._streams.add(stream)
        return stream

    def say(self, text: str, **options: Unpack[Options]) -> Speech:
        """The whole utterance as one piece; raises what the iteration over `stream()` raises."""
        with self.stream(text, **options) as stream:
            chunks = list(stream)
        return join(chunks, stream.sample_rate, stream.finish_reason)

    def close(self) -> None:
        """Cancels what still streams, and disconnects."""
        for stream in list(self._streams):
            stream.cancel()
        self._control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Stream(Iterator[Chunk]):
    """One utterance on its way: an iterator of chunks, and a context manager that cancels on leaving.

    Dropped unfinished, it is cancelled when it is garbage collected, at the latest when Python exits.
    """

    def __init__(self, url: str, request: dict[str, Any], sample_rate: int, timeout_s: float) -> None:
        self.sample_rate = sample_rate
        self.finish_reason: FinishReason | None = None  # known at the end, where the server tells
        self._url = url
        self._timeout_s = timeout_s
        self._open = True
        self._inbox: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        # tritonclient allows one stream per InferenceServerClient.
        self._transport = InferenceServerClient(url, channel_args=CHANNEL_ARGS)
        # What the finalizer and the callback hold must not lead back to self, or it is never collected.
        self._abort = weakref.finalize(self, _abort, self._transport)
        self._started_s = time.monotonic()
        _start(self._transport, self._inbox)
        # Where the connection has failed already this raises, but the reason is, or will be, in the inbox.
        with contextlib.suppress(InferenceServerException):
            self._transport.async_stream_infer(**request, enable_empty_final_response=True)

    def __next__(self) -> Chunk:
        """The next chunk as soon as it is there.

        Raises InvalidArgument, Unavailable, Cancelled or ServerError as the server says, ConnectionFailed,
        and Timeout after `timeout_s` without one. Ends quietly after `cancel()`.
        """
        while self._open:
            try:
                arrived_s, result, error = self._inbox.get(timeout=self._timeout_s)
                if not self._open:
                    break  # cancelled by another thread while we waited
                if error is not None:
                    raise translate(error, self._url)
                reply = read_reply(result, arrived_s - self._started_s)
            except queue.Empty:
                self._shut()
                raise Timeout(f"nothing from {self._url} for {self._timeout_s:g} s") from None
            except Exception:
                self._shut()
                raise
            self.finish_reason = reply.finish_reason or self.finish_reason
            if reply.final:
                self._finish()
            if reply.chunk is not None:
                return reply.chunk
        raise StopIteration

    def cancel(self) -> None:
        """Stops the stream, on the server too, from any thread. The iteration ends without an error."""
        if self._open:
            self.finish_reason = "cancelled"
            self._shut()

    def _shut(self) -> None:
        self._open = False
        self._abort()

    def _finish(self) -> None:
        """Hangs up politely after the last response."""
        self._open = False
        if self._abort.detach():
            self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


def _start(transport: InferenceServerClient, inbox: queue.SimpleQueue[Arrival]) -> None:
    """Opens the gRPC stream from a daemon thread, because tritonclient's reader thread inherits that.

    As an ordinary thread it would keep Python from exiting while any stream is open.
    """

    def receive(result: InferResult | None, error: InferenceServerException | None) -> None:
        inbox.put((time.monotonic(), result, error))

    starter = threading.Thread(target=transport.start_stream, args=(receive,), daemon=True)
    starter.start()
    starter.join()


def _abort(transport: InferenceServerClient) -> None:
    transport.stop_stream(cancel_requests=True)
    transport.close()
