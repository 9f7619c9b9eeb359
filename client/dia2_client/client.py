"""The blocking client: `for chunk in client.stream("Hello."): ...`"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, Unpack

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ._wire import CHANNEL_ARGS, MODEL, build_request, read_reply, read_sample_rate
from .errors import Timeout, Unavailable, from_call
from .types import Chunk, FinishReason, Options, Speech, join

# When it came, and what: a ModelStreamInferResponse, the grpc.RpcError that ended the call, or None at its end.
Arrival = tuple[float, Any]


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
        self._channel = grpc.insecure_channel(url, CHANNEL_ARGS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._sample_rate: int | None = None
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()

    @property
    def sample_rate(self) -> int:
        """Samples per second of every stream; connects if need be. Raises ConnectionFailed or Unavailable."""
        if self._sample_rate is None:
            try:
                ready = service_pb2.ModelReadyRequest(name=self.model)
                if not self._stub.ModelReady(ready, timeout=self.connect_timeout_s).ready:
                    raise Unavailable(f"{self.url} has no model {self.model} ready")
                config = service_pb2.ModelConfigRequest(name=self.model)
                answer = self._stub.ModelConfig(config, timeout=self.connect_timeout_s)
            except grpc.RpcError as error:
                raise from_call(error, self.url) from None
            self._sample_rate = read_sample_rate(answer)
        return self._sample_rate

    def stream(self, text: str, **options: Unpack[Options]) -> Stream:
        """Sends the request and returns at once; iterate over the result for the audio.

        Raises InvalidArgument for what cannot be sent, ConnectionFailed or Unavailable at the first contact;
        what the server objects to is raised by the iteration.
        """
        request = build_request(text, options, self.model)
        stream = Stream(self, request, self.sample_rate)
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
        self._channel.close()

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

    def __init__(self, client: Client, request: service_pb2.ModelInferRequest, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.finish_reason: FinishReason | None = None  # known at the end, where the server tells
        self._client = client  # also keeps the channel alive
        self._open = True
        self._inbox: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._started_s = time.monotonic()
        # Nothing follows the request, so the server ends the call after its last response.
        self._call = client._stub.ModelStreamInfer(iter([request]))
        # The thread must not hold self, or a dropped stream would never be collected (and so cancelled).
        threading.Thread(target=_receive, args=(self._call, self._inbox), name="dia2-stream", daemon=True).start()
        weakref.finalize(self, self._call.cancel)

    def __next__(self) -> Chunk:
        """The next chunk as soon as it is there.

        Raises InvalidArgument, Unavailable, Cancelled or ServerError as the server says, ConnectionFailed,
        and Timeout after `timeout_s` without one. Ends quietly after `cancel()`.
        """
        while self._open:
            try:
                arrived_s, response = self._inbox.get(timeout=min(self._client.timeout_s, threading.TIMEOUT_MAX))
                if not self._open:
                    break  # cancelled by another thread while we waited
                if response is None:
                    self._open = False
                    break
                if isinstance(response, grpc.RpcError):
                    raise from_call(response, self._client.url)
                reply = read_reply(response, arrived_s - self._started_s)
            except queue.Empty:
                self._shut()
                raise Timeout(f"nothing from {self._client.url} for {self._client.timeout_s:g} s") from None
            except Exception:
                self._shut()
                raise
            self.finish_reason = reply.finish_reason or self.finish_reason
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
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


def _receive(call: Any, inbox: queue.SimpleQueue[Arrival]) -> None:
    """Notes every response as it arrives, however busy the caller is; ends with the call."""
    try:
        for response in call:
            inbox.put((time.monotonic(), response))
        inbox.put((time.monotonic(), None))
    except grpc.RpcError as error:
        inbox.put((time.monotonic(), error))
