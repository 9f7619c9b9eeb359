"""The asyncio client: `async for chunk in client.stream("Hello."): ...`"""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any, Self, Unpack

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ._wire import (
    CHANNEL_ARGS,
    MODEL,
    SESSION_MODEL,
    build_request,
    build_voices_request,
    read_sample_rate,
    read_voices,
)
from .aio_streams import AsyncSession, AsyncStream
from .errors import Unavailable, from_call
from .types import Options, SessionOptions, Speech, VoiceInfo, join


class AsyncClient:
    """`Client` for asyncio: the same options, streams and errors. Use it within one event loop."""

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        model: str = MODEL,
        session_model: str = SESSION_MODEL,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 30.0,
    ) -> None:
        self.url = url
        self.model = model
        self.session_model = session_model
        self.connect_timeout_s = connect_timeout_s
        self.timeout_s = timeout_s
        self._channel: Any = None  # made within the loop that will use it
        self._stub: Any = None
        self._sample_rates: dict[str, int] = {}  # by model, of those that have been contacted
        self._sessions: weakref.WeakSet[AsyncSession] = weakref.WeakSet()

    async def connect(self) -> int:
        """Makes first contact, once; returns the sample rate. Raises ConnectionFailed or Unavailable."""
        return await self._contact(self.model)

    async def voices(self) -> tuple[VoiceInfo, ...]:
        """The server's voices. Raises ConnectionFailed, Unavailable, and ServerError for a server that cannot tell."""
        model = self.model
        try:
            await self._contact(model)
        except Unavailable:  # it may have sessions only
            model = self.session_model
            await self._contact(model)
        request = build_voices_request(model, in_session=model == self.session_model)
        try:
            call = self._stub.ModelStreamInfer(iter([request]), timeout=self.timeout_s)
            (response,) = [response async for response in call]
        except grpc.RpcError as error:
            raise from_call(error, self.url) from None
        return read_voices(response)

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

    def session(self, **options: Unpack[SessionOptions]) -> AsyncSession:
        """A session, which begins when it is entered with `async with`: send text into it while iterating over it.

        Raises InvalidArgument for what cannot be sent. Entering raises ConnectionFailed, and Unavailable if the
        server has no sessions; what it objects to is raised by `send()` and by the iteration.
        """
        session = AsyncSession(self, options)
        self._sessions.add(session)
        return session

    async def close(self) -> None:
        """Cancels what still streams, and disconnects."""
        for session in list(self._sessions):
            await session.cancel()
        if self._channel is not None:
            await self._channel.close()

    async def _contact(self, model: str) -> int:
        """Makes first contact with a model, once; returns its sample rate."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.url, CHANNEL_ARGS)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        if model not in self._sample_rates:
            try:
                ready = service_pb2.ModelReadyRequest(name=model)
                if not (await self._stub.ModelReady(ready, timeout=self.connect_timeout_s)).ready:
                    raise Unavailable(f"{self.url} has no model {model} ready")
                config = service_pb2.ModelConfigRequest(name=model)
                answer = await self._stub.ModelConfig(config, timeout=self.connect_timeout_s)
            except grpc.RpcError as error:
                raise from_call(error, self.url) from None
            self._sample_rates[model] = read_sample_rate(answer)
        return self._sample_rates[model]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
