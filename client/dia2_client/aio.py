"""The asyncio client: `async for chunk in client.stream("Hello."): ...`"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self, Unpack

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ._wire import CHANNEL_ARGS, MODEL, build_request, read_reply, read_sample_rate
from .errors import Timeout, Unavailable, from_call
from .types import Chunk, FinishReason, Options, Speech, join


class AsyncClient:
    """`Client` for asyncio: the same options, streams and errors. Use it within one event loop."""

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
        self._channel: Any = None  # made within the loop that will use it
        self._stub: Any = None
        self._sample_rate: int | None = None

    async def connect(self) -> int:
        """Makes first contact, once; returns the sample rate. Raises ConnectionFailed or Unavailable."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.url, CHANNEL_ARGS)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        if self._sample_rate is None:
            try:
                ready = service_pb2.ModelReadyRequest(name=self.model)
                if not (await self._stub.ModelReady(ready, timeout=self.connect_timeout_s)).ready:
                    raise Unavailable(f"{self.url} has no model {self.model} ready")
                config = service_pb2.ModelConfigRequest(name=self.model)
                answer = await self._stub.ModelConfig(config, timeout=self.connect_timeout_s)
            except grpc.RpcError as error:
                raise from_call(error, self.url) from None
            self._sample_rate = read_sample_rate(answer)
        return self._sample_rate

    def stream(self, text: str, **options: Unpack[Options]) -> AsyncStream:
        """An utterance, sent when its iteration (or its `async with`) starts.

        Raises InvalidArgument for what cannot be sent; everything else is raised by the iteration.
        """
        return AsyncStream(self, build_request(text, options, self.model))

    async def say(self, text: str, **options: Unpack[Options]) -> Speech:
        """The whole utterance as one piece; raises what the iteration over `stream()` raises."""
        async with self.stream(text, **options) as stream:
            chunks = [chunk async for chunk in stream]
        return join(chunks, stream.sample_rate, stream.finish_reason)

    async def close(self) -> None:
        """Cancels what still streams, and disconnects."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncStream(AsyncIterator[Chunk]):
    """One utterance on its way: an async iterator of chunks, and a context manager that cancels on leaving.

    Cancelling the task that waits for a chunk cancels the stream too. Also when dropped, it is cancelled.
    """

    def __init__(self, client: AsyncClient, request: service_pb2.ModelInferRequest) -> None:
        self.sample_rate = 0  # known from the first chunk (or `async with`) on
        self.finish_reason: FinishReason | None = None  # known at the end, where the server tells
        self._client = client
        self._request = request
        self._call: Any = None
        self._open = True
        self._started_s = 0.0

    async def __anext__(self) -> Chunk:
        """The next chunk as soon as it is there; raises what `Stream.__next__` raises."""
        while self._open:
            try:
                await self._start()
                async with asyncio.timeout(self._client.timeout_s):
                    response = await self._call.read()
                if response is grpc.aio.EOF:
                    self._open = False
                    break
                reply = read_reply(response, time.monotonic() - self._started_s)
            except TimeoutError:
                self._shut()
                raise Timeout(f"nothing from {self._client.url} for {self._client.timeout_s:g} s") from None
            except grpc.RpcError as error:
                self._shut()
                raise from_call(error, self._client.url) from None
            except asyncio.CancelledError:
                self.cancel()
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                break  # gRPC raises this too when the call, not the task, was cancelled
            except BaseException:
                self._shut()
                raise
            self.finish_reason = reply.finish_reason or self.finish_reason
            if reply.chunk is not None:
                return reply.chunk
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Stops the stream, on the server too. The iteration ends without an error."""
        if self._open:
            self.finish_reason = "cancelled"
            self._shut()

    async def _start(self) -> None:
        if self._call is None:
            self.sample_rate = await self._client.connect()
            self._started_s = time.monotonic()
            # Nothing follows the request, so the server ends the call after its last response.
            self._call = self._client._stub.ModelStreamInfer(iter([self._request]))

    def _shut(self) -> None:
        self._open = False
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
